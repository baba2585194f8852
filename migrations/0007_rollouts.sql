-- Moving users to another instance image, one beside the other, without a dropped call.

create table rollouts (
  id              uuid primary key default gen_random_uuid(),
  image           text not null,
  state           text not null default 'running'
                  check (state in ('running', 'paused', 'rolling-back', 'done', 'rolled-back', 'aborted')),
  batch_size      integer not null check (batch_size between 1 and 1000),
  max_unavailable integer not null check (max_unavailable >= 0),
  drain_seconds   integer not null check (drain_seconds between 0 and 86400),
  observe_seconds integer not null check (observe_seconds between 0 and 86400),
  max_error_rate  double precision not null check (max_error_rate between 0 and 1),
  reason_code     text,
  reason          text,
  actor           text not null,
  created_at      timestamptz not null default now(),
  updated_at      timestamptz not null default now(),
  finished_at     timestamptz
);
-- one at a time
create unique index rollouts_one_active on rollouts ((true)) where state in ('running', 'paused', 'rolling-back');

create table rollout_members (
  rollout_id      uuid not null references rollouts on delete cascade,
  user_id         uuid not null references users on delete cascade,
  -- order of moving; 0 is the canary
  position        integer not null,
  state           text not null default 'waiting' check (state in ('waiting', 'moving', 'moved', 'failed', 'reverting', 'reverted')),
  previous_image  text not null,
  reason          text,
  -- traffic counted before the move, so that what follows can be told apart
  requests_before bigint not null default 0,
  failures_before bigint not null default 0,
  moved_at        timestamptz,
  primary key (rollout_id, user_id)
);

-- Which image a user's instance runs, where it is not the default. `basis` is SDP_INSTANCE_IMAGE at that time: when it
-- changes, the newer decision wins and the row no longer counts.
create table image_pins (
  user_id uuid primary key references users on delete cascade,
  image   text not null,
  basis   text not null
);
create table default_image (
  singleton boolean primary key default true check (singleton),
  image     text not null,
  basis     text not null
);

-- The second instance of a user who is being moved. `preparing`: the new one, until it has proved itself and the user's
-- new sessions go there. `draining`: the old one, until its sessions have ended.
create table instance_moves (
  user_id      uuid primary key references users on delete cascade,
  phase        text not null check (phase in ('preparing', 'draining')),
  image        text not null,
  generation   bigint not null,
  port         integer not null unique check (port between 1 and 65535),
  address      text,
  container_id text,
  -- draining ends at the latest now
  drain_until  timestamptz,
  started_at   timestamptz not null default now()
);
