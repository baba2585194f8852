-- Usage is read by day, user and tool, and stored within bounds for each user and day.

create index tool_usage_key on tool_usage (day, user_id, tool);
drop index tool_usage_day;
-- Rows of one run of an instance, not yet added up; see control-plane/src/usage.ts
create index tool_usage_runs on tool_usage (day) where epoch <> '00000000-0000-0000-0000-000000000000';
-- a day to come is no report: it would be kept for ever
delete from tool_usage where day > current_date + 2;
