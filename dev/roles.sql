-- Inkwell's roles, able to log in, in a database that the migrator owns. The migrations say what each service may do.
-- An administrator runs it in the database, again after changing a password. Passwords without a space or a backslash
-- come with PGOPTIONS='-c inkwell.migrator_password=… -c inkwell.worker_password=… -c inkwell.gateway_password=…'.
-- A role whose password does not come keeps the one that it has: elsewhere somebody else sets them.
do $$
declare
  role text;
  password text;
  relation regclass;
begin
  foreach role in array array['migrator', 'worker', 'gateway'] loop
    if not exists (select from pg_roles where rolname = 'inkwell_' || role) then
      execute format('create role %I', 'inkwell_' || role);
    end if;
    password := current_setting(format('inkwell.%s_password', role), true);
    if password <> '' then
      execute format('alter role %I login password %L', 'inkwell_' || role, password);
    end if;
  end loop;

  execute format('alter database %I owner to inkwell_migrator', current_database());
  execute format('revoke all on database %I from public', current_database());
  execute format('grant connect on database %I to inkwell_worker, inkwell_gateway', current_database());
  revoke create on schema public from public;
  revoke execute on function lo_creat(integer), lo_create(oid), lo_from_bytea(oid, bytea) from public;

  -- What an administrator made before there was a migrator; the tables' sequences go with them.
  for relation in
    select oid from pg_class
    where relnamespace = 'public'::regnamespace and relkind = 'r' and relowner <> 'inkwell_migrator'::regrole
  loop
    execute format('alter table %s owner to inkwell_migrator', relation);
  end loop;
end
$$;
