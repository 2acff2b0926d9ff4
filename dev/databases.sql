-- Revokes what Postgres grants to PUBLIC in every database of a server, `postgres` and `template1` among them: to
-- connect, and temporary tables. For a server that is Inkwell's alone: what else connects to it as neither a superuser nor
-- the owner of the database needs a grant from then on. An administrator runs it, again when a database was made.
do $$
declare
  name text;
begin
  for name in select datname from pg_database loop
    execute format('revoke connect, temporary on database %I from public', name);
  end loop;
end
$$;
