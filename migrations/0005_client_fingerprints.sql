-- Recognises a user by the OAuth client (id and secret) a client presents. Keyed HMAC: the secret cannot be tried against
-- it without the master key. Instances have no right on this table.
create table client_fingerprints (
  user_id     uuid primary key references users on delete cascade,
  client_id   text not null,
  fingerprint bytea not null check (octet_length(fingerprint) = 32),
  -- SHA-256 of the sealed secret it was made of, so that a change made while this was switched off is noticed
  source_hash bytea not null check (octet_length(source_hash) = 32),
  -- id of the master key it was made under
  key_id      text not null,
  updated_at  timestamptz not null default now()
);
create index client_fingerprints_client on client_fingerprints (client_id);
