-- Authorizing with one click: a link that an admin hands to a person leads to Zoho's consent page and back.

create table connect_links (
  token_hash  bytea primary key check (octet_length(token_hash) = 32),
  user_id     uuid not null references users on delete cascade,
  created_by  text not null,
  created_at  timestamptz not null default now(),
  expires_at  timestamptz not null,
  -- the browser that went to Zoho, and the state it took along; a state is used once
  cookie_hash bytea check (octet_length(cookie_hash) = 32),
  state_hash  bytea unique check (octet_length(state_hash) = 32),
  used_at     timestamptz
);
create index connect_links_user on connect_links (user_id);

-- Of a grant code that came from the consent page: what it must be exchanged with. The client replaces the user's own
-- once Zoho has accepted it.
alter table oauth_tokens
  add column grant_redirect_uri text,
  add column grant_client_id text,
  add column grant_client_secret_sealed text;
