-- Which image made the calls, so that a rollout can compare the new one with the one before.

alter table tool_usage add column image text;
-- counted with the rollout's image before the move, by an earlier attempt with it
alter table rollout_members add column calls_before bigint not null default 0;
alter table rollout_members add column errors_before bigint not null default 0;
