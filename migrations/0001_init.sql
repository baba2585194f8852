-- The first schema. Words: docs/architecture.md. Rules for this folder: migrations/README.md.

create table users (
  id              uuid primary key default gen_random_uuid(),
  username        text not null unique check (username ~ '^[a-z][a-z0-9-]{0,30}[a-z0-9]$'),
  display_name    text not null,
  email           text,
  suspended       boolean not null default false,
  toolsets        text[] not null default '{core}',
  read_only       boolean not null default false,
  limits          jsonb not null default '{}',
  -- null means: use the control plane's default of the moment
  sdp_data_center text,
  sdp_portal      text,
  sdp_base_url    text,
  sdp_accounts_url text,
  -- desired state of the instance; the fleet makes the runtime match it
  wanted          text not null default 'running' check (wanted in ('running', 'stopped', 'removed')),
  -- grows with every change that needs a new container; part of the audience an instance accepts
  generation      bigint not null default 1,
  created_at      timestamptz not null default now(),
  updated_at      timestamptz not null default now()
);

create table api_keys (
  id           uuid primary key default gen_random_uuid(),
  user_id      uuid not null references users on delete cascade,
  name         text,
  prefix       text not null,
  hash         bytea not null unique check (octet_length(hash) = 32),
  created_at   timestamptz not null default now(),
  expires_at   timestamptz,
  last_used_at timestamptz,
  revoked_at   timestamptz
);
create index api_keys_user on api_keys (user_id);

-- observed state; one row appears with the first attempt to start
create table instances (
  user_id      uuid primary key references users on delete cascade,
  state        text not null check (state in ('starting', 'ready', 'stopped', 'failed', 'draining')),
  reason_code  text,
  reason       text,
  port         integer unique check (port between 1 and 65535),
  address      text,
  container_id text,
  image        text,
  generation   bigint not null default 0,
  failures     integer not null default 0,
  retry_at     timestamptz,
  changed_at   timestamptz not null default now()
);

-- per-user data key, wrapped by the master key; and the password of the user's database role, sealed with the data key
create table data_keys (
  user_id             uuid primary key references users on delete cascade,
  wrapped_key         text not null,
  role_password_sealed text not null,
  created_at          timestamptz not null default now()
);

-- Ed25519 keys that sign the statements instances trust; the private half is sealed with the master key
create table signing_keys (
  kid            text primary key,
  public_jwk     jsonb not null,
  private_sealed text not null,
  created_at     timestamptz not null default now()
);

-- one row per connection (a user's grant at Zoho)
create table oauth_tokens (
  user_id              uuid primary key references users on delete cascade,
  client_id            text not null,
  client_secret_sealed text,
  grant_code_sealed    text,
  refresh_token_sealed text,
  scopes               text[] not null default '{}',
  state                text not null default 'needs-authorization'
                       check (state in ('connected', 'needs-authorization', 'needs-reauthorization')),
  reason_code          text,
  reason               text,
  last_refreshed_at    timestamptz,
  created_at           timestamptz not null default now(),
  updated_at           timestamptz not null default now()
);

create table oauth_access_tokens (
  user_id             uuid primary key references oauth_tokens on delete cascade,
  access_token_sealed text not null,
  minted_at           timestamptz not null default now(),
  expires_at          timestamptz not null
);

-- one row per call of the token endpoint, for Zoho's limit of 10 in 10 minutes
create table oauth_token_mints (
  user_id   uuid not null references oauth_tokens on delete cascade,
  minted_at timestamptz not null default now()
);
create index oauth_token_mints_recent on oauth_token_mints (user_id, minted_at);

create table audit_events (
  id       bigint generated always as identity primary key,
  at       timestamptz not null default now(),
  actor    text not null,
  action   text not null,
  username text,
  user_id  uuid,
  detail   jsonb not null default '{}'
);
create index audit_events_user on audit_events (username, id);

-- Every instance logs in with a role of its own, named sdpmcp_u_<user id without hyphens>, member of this group.
do $$ begin
  create role sdpmcp_instance nologin;
exception when duplicate_object or unique_violation then null;
end $$;

grant usage on schema public to sdpmcp_instance;
grant select, update on oauth_tokens to sdpmcp_instance;
grant select, insert, update, delete on oauth_access_tokens to sdpmcp_instance;
grant select, insert, delete on oauth_token_mints to sdpmcp_instance;

alter table oauth_tokens enable row level security;
alter table oauth_access_tokens enable row level security;
alter table oauth_token_mints enable row level security;

create policy own_row on oauth_tokens to sdpmcp_instance
  using (current_user = 'sdpmcp_u_' || replace(user_id::text, '-', ''))
  with check (current_user = 'sdpmcp_u_' || replace(user_id::text, '-', ''));
create policy own_row on oauth_access_tokens to sdpmcp_instance
  using (current_user = 'sdpmcp_u_' || replace(user_id::text, '-', ''))
  with check (current_user = 'sdpmcp_u_' || replace(user_id::text, '-', ''));
create policy own_row on oauth_token_mints to sdpmcp_instance
  using (current_user = 'sdpmcp_u_' || replace(user_id::text, '-', ''))
  with check (current_user = 'sdpmcp_u_' || replace(user_id::text, '-', ''));
