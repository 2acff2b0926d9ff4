-- The two services' own roles, able to log in. The first migration says what each may do.
-- The passwords are for development: change them where anybody else can reach the database.
do $$
declare role text;
begin
  foreach role in array array['inkwell_gateway', 'inkwell_worker'] loop
    begin
      execute format('create role %I login password %L', role, role);
    exception when duplicate_object then
      execute format('alter role %I login password %L', role, role);
    end;
  end loop;
end
$$;
