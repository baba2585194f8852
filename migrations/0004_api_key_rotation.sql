-- Rotation of API keys with an overlap, and who uses a key.

-- the key that takes this one's place; until expires_at both open the door
alter table api_keys add column replaced_by uuid references api_keys on delete set null;
-- what the last request with this key said of itself (User-Agent, cut short) and where it came from
alter table api_keys add column last_client text;
alter table api_keys add column last_address inet;
