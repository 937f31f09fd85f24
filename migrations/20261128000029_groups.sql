-- Read models and policies go through the log in groups: see bus/src/group.

-- Rises whenever somebody other than the projector has written rows of a generation: what the projector remembers of them is not true any more.
alter table read.generations add column revision bigint not null default 0;

-- Moves the checkpoints of serving generations from one position to another, and answers which have moved. A checkpoint does not move if it is at another position, if a later epoch has
-- written it, or if its generation does not serve any more; nor if it is locked (by a switch, a comparison or a retry), unless `wait` is set. Without `wait`, statements of the
-- transaction end after `patience`. `holds`: some events of the read model are parked or discarded, which is looked up once the checkpoints are locked.
create function read.advance(names text[], generations int[], epochs bigint[], from_position bigint, to_position bigint, hash bytea, wait boolean, patience text)
returns table (model text, revision bigint, holds boolean) language plpgsql as $$
declare
  moved text[];
  numbers int[];
  revisions bigint[];
begin
  if wait then
    perform from read.generations g where g.name = any(names) and g.state = 'serving' for update;
  else
    perform set_config('statement_timeout', patience, true);
  end if;
  with free as (
    select g.name, g.generation, m.epoch
      from unnest(names, generations, epochs) m (name, generation, epoch)
      join read.generations g on (g.name, g.generation) = (m.name, m.generation)
     where g.state = 'serving' and g.position = from_position and g.epoch <= m.epoch
       for update of g skip locked
  ), changed as (
    update read.generations g set position = to_position, log_hash = hash, epoch = free.epoch
      from free where (g.name, g.generation) = (free.name, free.generation)
    returning g.name, g.generation, g.revision
  )
  select array_agg(c.name), array_agg(c.generation), array_agg(c.revision) into moved, numbers, revisions from changed c;
  return query
    select m.name, m.revision,
           exists (select from read.parked p where (p.name, p.generation) = (m.name, m.generation)) or exists (select from read.discarded d where d.name = m.name)
      from unnest(moved, numbers, revisions) m (name, generation, revision);
end $$;
revoke execute on function read.advance from public;
grant execute on function read.advance to tenure_projector;

-- A generation that serves again may have been written meanwhile by whoever built it.
create or replace function read.serve(model text, gen int) returns void language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  old record;
begin
  for old in select generation from read.generations where name = model and state = 'retired' and generation <> gen loop
    execute format('drop table read.%I', model || '_g' || old.generation);
    delete from read.generations where name = model and generation = old.generation;
  end loop;
  update read.generations set state = 'retired' where name = model and state = 'serving' and generation <> gen;
  update read.generations set state = 'serving', revision = revision + 1 where name = model and generation = gen;
  execute format('create or replace view read.%I with (security_invoker = true) as select * from read.%I', model, model || '_g' || gen);
  execute format('grant select on read.%I to tenure_reader, tenure_platform_reader, tenure_projector', model);
end $$;

-- Processes that keep read models or policies say so by leases of their own, which are forgotten when they have ended.
grant delete on ops.leases to tenure_writer, tenure_projector;
