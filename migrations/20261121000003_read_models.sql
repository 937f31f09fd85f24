-- What every read model has: generations, a checkpoint for each, a view over the serving one.

create table read.generations (
  name       text   not null,                    -- the read model, versioned: 'tenants_v1'
  generation int    not null,
  state      text   not null check (state in ('building', 'serving', 'retired')),
  position   bigint not null default 0,          -- the checkpoint: all events up to here are in the rows
  log_hash   bytea  not null default decode(repeat('00', 32), 'hex'),
  epoch      bigint not null default 0,          -- of the lease of whoever moved it last
  primary key (name, generation)
) with (fillfactor = 50);
create unique index generations_serving on read.generations (name) where state = 'serving';
grant select, update on read.generations to tenure_projector;
grant select on read.generations to tenure_reader, tenure_platform_reader;

-- Puts row-level security and rights on a generation's table. The tenant-scoped reader sees the rows of `app.current_tenant_id`, and none without it.
create function read.secure(tbl regclass) returns void language plpgsql as $$
begin
  execute format('alter table %s enable row level security', tbl);
  execute format('create policy tenant on %s for select to tenure_reader using (tenant_id = nullif(current_setting(''app.current_tenant_id'', true), '''')::uuid)', tbl);
  execute format('create policy platform on %s for select to tenure_platform_reader using (true)', tbl);
  execute format('create policy projector on %s to tenure_projector using (true) with check (true)', tbl);
  execute format('grant select on %s to tenure_reader, tenure_platform_reader', tbl);
  execute format('grant select, insert, update, delete on %s to tenure_projector', tbl);
end $$;

-- Makes a generation serve: its rows are what the view shows from the commit on. The one that served until now stays for a way back; older ones are dropped.
create function read.serve(model text, gen int) returns void language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  old record;
begin
  for old in select generation from read.generations where name = model and state = 'retired' and generation <> gen loop
    execute format('drop table read.%I', model || '_g' || old.generation);
    delete from read.generations where name = model and generation = old.generation;
  end loop;
  update read.generations set state = 'retired' where name = model and state = 'serving' and generation <> gen;
  update read.generations set state = 'serving' where name = model and generation = gen;
  execute format('create or replace view read.%I with (security_invoker = true) as select * from read.%I', model, model || '_g' || gen);
  execute format('grant select on read.%I to tenure_reader, tenure_platform_reader, tenure_projector', model);
end $$;

-- Registers a read model whose first table, `<name>_g1`, has just been created.
create function read.register(model text) returns void language plpgsql as $$
begin
  perform read.secure(format('read.%I', model || '_g1')::regclass);
  insert into read.generations (name, generation, state) values (model, 1, 'building');
  perform read.serve(model, 1);
end $$;

-- Makes an empty table like the serving one for a rebuild, and answers its generation. Left-overs of a rebuild that was killed are dropped first.
create function read.new_generation(model text) returns int language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  gen int;
  old record;
begin
  for old in select generation from read.generations where name = model and state = 'building' loop
    execute format('drop table if exists read.%I', model || '_g' || old.generation);
    delete from read.generations where name = model and generation = old.generation;
  end loop;
  select max(generation) + 1 into gen from read.generations where name = model;
  if gen is null then
    raise exception 'there is no read model %', model;
  end if;
  execute format('create table read.%I (like read.%I including all)', model || '_g' || gen, model || '_g' || (select generation from read.generations where name = model and state = 'serving'));
  perform read.secure(format('read.%I', model || '_g' || gen)::regclass);
  insert into read.generations (name, generation, state) values (model, gen, 'building');
  return gen;
end $$;

-- Drops a retired or half-built generation.
create function read.drop_generation(model text, gen int) returns void language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  delete from read.generations where name = model and generation = gen and state <> 'serving';
  if not found then
    raise exception 'generation % of % is serving or does not exist', gen, model;
  end if;
  execute format('drop table read.%I', model || '_g' || gen);
end $$;

revoke execute on function read.serve, read.new_generation, read.drop_generation from public;
grant execute on function read.serve, read.new_generation, read.drop_generation to tenure_projector;
