-- What PostgreSQL grants to everybody by default is too much for the role of an instance that was taken over.
-- Only a superuser can take the rights on built-in functions away, as the owner in our compose file is; another owner of the
-- database gets warnings here, and README.md beside this file says what is left to do.

do $$
declare
  routine regprocedure;
begin
  for routine in
    select oid::regprocedure from pg_proc
     where pronamespace = 'pg_catalog'::regnamespace
       -- advisory locks are how control planes take turns, under names that are no secret: a holder would stop them all;
       -- large objects outlive the session and fill the disk
       and (proname ~ '^pg_(try_)?advisory_' or proname in ('lo_creat', 'lo_create', 'lo_from_bytea', 'lo_put', 'lowrite'))
  loop
    begin
      execute format('grant execute on function %s to current_user', routine);
      execute format('revoke execute on function %s from public', routine);
    exception when insufficient_privilege then
      raise warning 'execute on % stays granted to public', routine;
    end;
  end loop;
  -- temporary tables fill the disk, too; the owner of the database needs them no more than the instances
  execute format('revoke temporary on database %I from public', current_database());
end $$;
