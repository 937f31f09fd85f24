-- What could not be folded: see projections/src/parking.rs.

-- Partitions that wait, per generation: they are part of what its rows say.
create table read.parked (
  name       text        not null,
  generation int         not null,
  partition  text        not null,               -- '<tenant>/<id>', or '<tenant>' where rows gather what many streams say
  tenant_id  uuid        not null,
  position   bigint      not null,               -- the event that could not be folded
  reason     text        not null,
  parked_at  timestamptz not null,
  primary key (name, generation, partition),
  foreign key (name, generation) references read.generations on delete cascade
);
create index on read.parked (tenant_id);
select read.secure('read.parked');

-- Their events, in order, the failing one first.
create table read.parked_events (
  name       text   not null,
  generation int    not null,
  partition  text   not null,
  position   bigint not null,
  primary key (name, generation, position),
  foreign key (name, generation, partition) references read.parked on delete cascade
);
create index on read.parked_events (name, generation, partition, position);
grant select, insert, delete on read.parked_events to tenure_projector;

-- Events that a read model leaves out, now and in every rebuild. Never forgotten.
create table read.discarded (
  name         text        not null,
  position     bigint      not null,
  partition    text        not null,
  tenant_id    uuid        not null,
  failure      text        not null,
  reason       text        not null,
  discarded_at timestamptz not null,
  primary key (name, position)
);
grant select, insert, update on read.discarded to tenure_projector;

-- A generation's number is never used again: whoever still builds one that was dropped finds nothing, instead of somebody else's table.
create table read.generation_numbers (
  name text primary key,
  last int  not null
);
create or replace function read.new_generation(model text) returns int language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  gen int;
  old record;
begin
  for old in select generation from read.generations where name = model and state = 'building' loop
    execute format('drop table if exists read.%I', model || '_g' || old.generation);
    delete from read.generations where name = model and generation = old.generation;
  end loop;
  insert into read.generation_numbers as n (name, last) select model, max(generation) + 1 from read.generations where name = model having count(*) > 0
  on conflict (name) do update set last = n.last + 1
  returning last into gen;
  if gen is null then
    raise exception 'there is no read model %', model;
  end if;
  execute format('create table read.%I (like read.%I including all)', model || '_g' || gen, model || '_g' || (select generation from read.generations where name = model and state = 'serving'));
  perform read.secure(format('read.%I', model || '_g' || gen)::regclass);
  insert into read.generations (name, generation, state) values (model, gen, 'building');
  return gen;
end $$;
