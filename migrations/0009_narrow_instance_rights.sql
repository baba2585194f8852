-- A stolen role of an instance may hold up nobody but its own user.
--
-- Who may UPDATE, DELETE or TRUNCATE a whole table may LOCK it in any mode, and who may INSERT into it in several: one
-- instance could have stopped the tokens of all. Rights on columns give no right to LOCK, so instances get these, and
-- functions bound to their login for what has no such form. From here on an instance needs the image of this release.

-- behind a reader who never ends, this gives up and is tried again, instead of holding up everybody behind itself
set local lock_timeout = '30s';

revoke insert, update, delete on oauth_tokens, oauth_access_tokens, oauth_token_mints from sdpmcp_instance;
grant update (client_id, client_secret_sealed, grant_code_sealed, grant_redirect_uri, grant_client_id,
              grant_client_secret_sealed, refresh_token_sealed, scopes, state, reason_code, reason, last_refreshed_at,
              updated_at) on oauth_tokens to sdpmcp_instance;
grant insert (user_id, access_token_sealed, minted_at, expires_at), update (access_token_sealed, minted_at, expires_at)
   on oauth_access_tokens to sdpmcp_instance;

-- Whose rows a login may change: an instance's own, which it cannot choose; `about` counts only for other logins (a person
-- who runs an instance alone, as the owner of the database).
create function token_owner(about uuid) returns uuid
  language sql stable security definer set search_path = pg_catalog, public, pg_temp as $$
  select id from users
   where id = about and (session_user not like 'sdpmcp\_u\_%' or session_user = 'sdpmcp_u_' || replace(id::text, '-', ''))
$$;
revoke execute on function token_owner(uuid) from public;

-- Counts a call of the token endpoint; what is too old to count goes.
create function record_mint(about uuid) returns void
  language sql security definer set search_path = pg_catalog, public, pg_temp as $$
  delete from oauth_token_mints where user_id = token_owner(about) and minted_at < now() - interval '1 hour';
  insert into oauth_token_mints (user_id, minted_at) values (token_owner(about), clock_timestamp());
$$;
revoke execute on function record_mint(uuid) from public;
grant execute on function record_mint(uuid) to sdpmcp_instance;

create function forget_access_token(about uuid) returns void
  language sql security definer set search_path = pg_catalog, public, pg_temp as $$
  delete from oauth_access_tokens where user_id = token_owner(about);
$$;
revoke execute on function forget_access_token(uuid) from public;
grant execute on function forget_access_token(uuid) to sdpmcp_instance;

-- A role can lift every time limit of its own session, and hold the locks of a transaction as long as it likes. So the
-- leading control plane ends transactions of instances that are older than any of theirs can be.
create function end_instance_transactions(older_than_seconds integer)
  returns table (user_id uuid, seconds integer, state text)
  language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
  found record;
begin
  -- a loop, because within one statement the planner may end a session before it has looked whose it is
  for found in
    select a.pid, u.id, extract(epoch from clock_timestamp() - a.xact_start)::integer as age, a.state as doing
      from pg_stat_activity a join users u on a.usename = 'sdpmcp_u_' || replace(u.id::text, '-', '')
     where a.datname = current_database() and a.xact_start < clock_timestamp() - make_interval(secs => older_than_seconds)
  loop
    if pg_terminate_backend(found.pid) then
      user_id := found.id;
      seconds := found.age;
      state := found.doing;
      return next;
    end if;
  end loop;
end $$;
revoke execute on function end_instance_transactions(integer) from public;

-- A view that everybody may UPDATE, so that everybody may LOCK it, and with it whoever reads settings (pg_dump does).
do $$ begin
  revoke update on pg_catalog.pg_settings from public;
exception when insufficient_privilege then
  raise warning 'update on pg_settings stays granted to public';
end $$;
