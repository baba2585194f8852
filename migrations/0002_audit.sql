-- The audit becomes append-only, and tells of tool calls and of every change of a connection.

create index audit_events_at on audit_events (at, id);
create index audit_events_username_at on audit_events (username, at, id);
create index audit_events_action_at on audit_events (action, at, id);
drop index audit_events_user;
create index audit_events_user_id on audit_events (user_id, id);

-- Whoever owns a table may do everything to it, so for the owner this is a guard against accidents. A control plane that
-- logs in with a role of its own (docs/security.md) has no right to change or delete rows in the first place.
create function audit_events_stay() returns trigger language plpgsql as $$
begin
  if tg_op = 'DELETE' and current_setting('sdp_mcp.audit_retention', true) = 'on' then
    return old;
  end if;
  raise exception 'audit_events is append-only: % is refused', lower(tg_op)
    using errcode = 'insufficient_privilege', hint = 'Old events go with select audit_forget(<days to keep>).';
end $$;
create trigger audit_events_stay before update or delete on audit_events
  for each row execute function audit_events_stay();
create trigger audit_events_stay_whole before truncate on audit_events
  for each statement execute function audit_events_stay();

-- The only way old events leave: whole batches, oldest first, never younger than 30 days, and never without a trace.
-- Returns how many went; fewer than `most` means that nothing older is left.
create function audit_forget(days_to_keep integer, most integer default 5000) returns integer
  language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
  horizon timestamptz;
  gone integer;
begin
  if days_to_keep is null or days_to_keep < 30 then
    raise exception 'audit events are kept for at least 30 days, not %', days_to_keep using errcode = 'check_violation';
  end if;
  horizon := now() - make_interval(days => days_to_keep);
  perform set_config('sdp_mcp.audit_retention', 'on', true);
  delete from audit_events where id in (select id from audit_events where at < horizon order by at, id limit most);
  get diagnostics gone = row_count;
  perform set_config('sdp_mcp.audit_retention', 'off', true);
  if gone > 0 then
    insert into audit_events (actor, action, detail) values
      ('system', 'audit.forgotten', jsonb_build_object('events', gone, 'daysToKeep', days_to_keep, 'before', horizon));
  end if;
  return gone;
end $$;
revoke execute on function audit_forget(integer, integer) from public;

-- How an instance records what its user did. It has no right on audit_events at all: the function takes the user from the
-- login, which the instance cannot choose, and only what a tool call consists of. `about` counts only for other logins (a
-- person who runs an instance alone, as the owner of the database).
create function record_tool_calls(calls jsonb, about uuid default null) returns integer
  language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
  who record;
  added integer;
begin
  if session_user like 'sdpmcp\_u\_%' then
    select id, username into who from users where session_user = 'sdpmcp_u_' || replace(id::text, '-', '');
  else
    select id, username into who from users where id = about;
  end if;
  if who.id is null then
    raise exception 'no user belongs to %', session_user using errcode = 'insufficient_privilege';
  end if;
  if jsonb_typeof(calls) <> 'array' or jsonb_array_length(calls) > 1000 then
    raise exception 'calls must be a list of at most 1000' using errcode = 'check_violation';
  end if;
  insert into audit_events (at, actor, action, username, user_id, detail)
  select greatest(least(coalesce(to_timestamp(call.at / 1000), now()), now()), now() - interval '1 day'),
         'user:' || who.username,
         case when call.lost is null then 'tool.called' else 'tool.calls-lost' end,
         who.username, who.id,
         case when call.lost is null then jsonb_strip_nulls(jsonb_build_object(
           'tool', left(call.tool, 100), 'target', left(call.target, 100), 'outcome', left(call.outcome, 60),
           'durationMs', call."durationMs", 'sdpCalls', call."sdpCalls", 'requestId', left(call."requestId", 60)))
         else jsonb_build_object('calls', call.lost) end
    from jsonb_to_recordset(calls) as call
      (at double precision, tool text, target text, outcome text, "durationMs" integer, "sdpCalls" integer,
       "requestId" text, lost integer);
  get diagnostics added = row_count;
  return added;
end $$;
revoke execute on function record_tool_calls(jsonb, uuid) from public;
grant execute on function record_tool_calls(jsonb, uuid) to sdpmcp_instance;

-- Whoever changes a connection, the control plane or an instance, in whatever way: the event is in the same transaction.
create function audit_connection_state() returns trigger
  language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
begin
  insert into audit_events (actor, action, username, user_id, detail)
  select case when session_user like 'sdpmcp\_u\_%' then 'instance:' || u.username else 'system' end,
         'connection.state-changed', u.username, u.id,
         jsonb_strip_nulls(jsonb_build_object('from', old.state, 'to', new.state, 'reasonCode', new.reason_code, 'clientId', new.client_id))
    from users u where u.id = new.user_id;
  return null;
end $$;
create trigger audit_connection_state after update of state on oauth_tokens
  for each row when (old.state is distinct from new.state) execute function audit_connection_state();
