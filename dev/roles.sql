-- Inkwell's roles, able to log in, in a database that the migrator owns. The migrations say what each service may do.
-- An administrator runs it in the database, again after changing a password, and after an upgrade that says so. Passwords
-- without a space or a backslash come with
-- PGOPTIONS='-c inkwell.migrator_password=… -c inkwell.worker_password=… -c inkwell.gateway_password=…'.
-- A role whose password is not given keeps the one that it has, which something else may have set.
-- `-c inkwell.gateway_connections=…` is how many sessions all gateways may have together; else six in ten of the server's.
do $$
declare
  role text;
  password text;
  relation regclass;
  routine regprocedure;
begin
  foreach role in array array['migrator', 'worker', 'gateway'] loop
    if not exists (select from pg_roles where rolname = 'inkwell_' || role) then
      execute format('create role %I', 'inkwell_' || role);
    end if;
    password := current_setting(format('inkwell.%s_password', role), true);
    if password <> '' then
      execute format('alter role %I login password %L', 'inkwell_' || role, password);
    end if;
    -- An attacker with the role's password can have changed the settings of its future sessions.
    execute format('alter role %I reset all', 'inkwell_' || role);
    execute format('alter role %I in database %I reset all', 'inkwell_' || role, current_database());
  end loop;

  execute format('alter database %I owner to inkwell_migrator', current_database());
  execute format('revoke all on database %I from public', current_database());
  execute format('grant connect on database %I to inkwell_worker, inkwell_gateway', current_database());
  revoke create on schema public from public;

  -- The gateway is exposed to strangers: an attacker who takes it over must leave sessions and disk to the others.
  execute format('alter role inkwell_gateway connection limit %s', coalesce(
    nullif(current_setting('inkwell.gateway_connections', true), '')::int,
    current_setting('max_connections')::int * 6 / 10
  ));
  begin
    alter role inkwell_gateway set temp_file_limit = '256MB'; -- of a session; the role cannot change it
  exception when insufficient_privilege then
    raise warning 'only a superuser can limit the temporary files of inkwell_gateway';
  end;

  -- Functions that Postgres grants to PUBLIC: large objects, the log and snapshots fill the disk, workers and the migration
  -- rely on advisory locks, and no role has to end another's statements.
  for routine in
    select oid from pg_proc
    where pronamespace = 'pg_catalog'::regnamespace and proname similar to
      '(lo_creat|lo_create|lo_from_bytea|pg_logical_emit_message|pg_export_snapshot|pg_cancel_backend|pg_terminate_backend'
      '|pg_(try_)?advisory_%)'
  loop
    execute format('revoke execute on function %s from public', routine);
  end loop;
  for routine in
    select oid from pg_proc
    where pronamespace = 'pg_catalog'::regnamespace and proname similar to 'pg_(try_)?advisory_%'
  loop
    execute format('grant execute on function %s to inkwell_worker, inkwell_migrator', routine);
  end loop;

  -- What an administrator made before there was a migrator; the tables' sequences go with them.
  for relation in
    select oid from pg_class
    where relnamespace = 'public'::regnamespace and relkind = 'r' and relowner <> 'inkwell_migrator'::regrole
  loop
    execute format('alter table %s owner to inkwell_migrator', relation);
  end loop;
end
$$;
