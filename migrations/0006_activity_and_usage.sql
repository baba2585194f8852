-- Who uses their instance, and what the tools are used for. Numbers only: no arguments, no answers.

-- what all control planes saw of a user's traffic; each adds what it carried
create table instance_activity (
  user_id     uuid primary key references users on delete cascade,
  -- last byte in either direction that was not a keep-alive, or last moment a call was open
  active_at   timestamptz not null,
  -- last moment an event stream was open, however silent
  streamed_at timestamptz,
  requests    bigint not null default 0,
  failures    bigint not null default 0
);

-- The numbers of one epoch (one run of an instance) only grow, so each collection overwrites the last one.
create table tool_usage (
  user_id  uuid not null references users on delete cascade,
  epoch    uuid not null,
  day      date not null,
  tool     text not null,
  calls    bigint not null,
  errors   bigint not null,
  total_ms double precision not null,
  max_ms   double precision not null,
  -- calls by latency; bounds: latencyBoundsMs in instance/src/contract.ts
  buckets  bigint[] not null default '{}',
  primary key (user_id, epoch, day, tool)
);
create index tool_usage_day on tool_usage (day);
