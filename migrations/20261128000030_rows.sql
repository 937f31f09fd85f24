-- Rows as they are shown: see projections/src/row.rs.

-- The row as JSON text, as the projector wrote it. Rows from before this migration have none until they are next written.
do $$
declare
  old record;
begin
  for old in select name, generation, state from read.generations loop
    execute format('alter table read.%I add column doc text', old.name || '_g' || old.generation);
    if old.state = 'serving' then
      execute format('create or replace view read.%I with (security_invoker = true) as select * from read.%I', old.name, old.name || '_g' || old.generation);
    end if;
  end loop;
end $$;

create or replace function read.register(model text) returns void language plpgsql as $$
begin
  execute format('alter table read.%I add column doc text', model || '_g1');
  perform read.secure(format('read.%I', model || '_g1')::regclass);
  insert into read.generations (name, generation, state) values (model, 1, 'building');
  perform read.serve(model, 1);
end $$;
