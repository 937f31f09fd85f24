-- Lists of many rows: an index for each order and for each filter, so that a page is read and not searched for. See docs/PERFORMANCE.md, "Lists at size".

-- Runs a statement, in which %1$I is the table, for all generations of a read model.
create function read.for_generations(model text, statement text) returns void language plpgsql as $$
declare
  gen int;
begin
  for gen in select generation from read.generations where name = model loop
    execute format(statement, model || '_g' || gen);
  end loop;
  -- The view shows columns that are new.
  select generation into gen from read.generations where name = model and state = 'serving';
  execute format('create or replace view read.%I with (security_invoker = true) as select * from read.%I', model, model || '_g' || gen);
end $$;
revoke execute on function read.for_generations from public;

-- Orders that were expressions are columns: a condition on an expression is not passed through row-level security to an index.
select read.for_generations('users_v1', 'alter table read.%1$I add column name_key text not null generated always as (lower(coalesce(name, ''''))) stored, add column email_key text not null generated always as (lower(coalesce(email, ''''))) stored');
select read.for_generations('users_v1', '
  create index on read.%1$I (tenant_id, name_key, id);
  create index on read.%1$I (tenant_id, email_key, id);
  create index on read.%1$I (tenant_id, status, created_at, id);
  create index on read.%1$I (tenant_id, role, created_at, id);
  create index on read.%1$I using gin (name_key gin_trgm_ops, email_key gin_trgm_ops) with (fastupdate = off)');
select read.for_generations('devices_v1', '
  create index on read.%1$I (tenant_id, updated_at, id);
  create index on read.%1$I (tenant_id, serial, id);
  create index on read.%1$I (tenant_id, status, created_at, id);
  create index on read.%1$I (tenant_id, model, created_at, id);
  create index on read.%1$I (tenant_id, device_group, created_at, id);
  create index on read.%1$I using gin (tags) with (fastupdate = off);
  create index on read.%1$I using gin (serial gin_trgm_ops) with (fastupdate = off)');

-- Conditions that are not leakproof (what a text contains, which tags there are) cannot use an index under row-level security. So the rows are found by functions that run as the owner and name
-- the tenant themselves, where they are few; where they are many, the list is read in its order until a page is full. The planner's statistics tell which it is.
create function read.estimate(statement text, variadic given text[]) returns bigint language plpgsql as $$
declare
  plan json;
begin
  execute 'explain (format json) ' || statement into plan using given;
  return (plan -> 0 -> 'Plan' ->> 'Plan Rows')::numeric;
end $$;
revoke execute on function read.estimate from public;

create function read.few_devices_tagged(tag text) returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  return read.estimate('select from read.devices_v1 where tags @> array[$1[1]]', tag) < 3000;
end $$;
create function read.devices_tagged(tag text) returns setof uuid language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select t.id from read.devices_v1 t where t.tags @> array[tag] and t.tenant_id = nullif(current_setting('app.current_tenant_id', true), '')::uuid
$$;

create function read.few_devices_like(pattern text) returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  return read.estimate('select from read.devices_v1 where serial ilike $1[1]', pattern) < 3000;
end $$;
create function read.devices_like(pattern text) returns setof uuid language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  return query select t.id from read.devices_v1 t where t.serial ilike pattern and t.tenant_id = nullif(current_setting('app.current_tenant_id', true), '')::uuid;
end $$;

create function read.few_users_like(pattern text) returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  return read.estimate('select from read.users_v1 where name_key like $1[1] or email_key like $1[1]', lower(pattern)) < 3000;
end $$;
create function read.users_like(pattern text) returns setof uuid language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  return query
    select t.id from read.users_v1 t
     where (t.name_key like lower(pattern) or t.email_key like lower(pattern)) and t.tenant_id = nullif(current_setting('app.current_tenant_id', true), '')::uuid;
end $$;

revoke execute on function read.few_devices_tagged, read.devices_tagged, read.few_devices_like, read.devices_like, read.few_users_like, read.users_like from public;
grant execute on function read.few_devices_tagged, read.devices_tagged, read.few_devices_like, read.devices_like, read.few_users_like, read.users_like to tenure_reader;

-- Begins a query of a tenant, or of the platform, in its transaction: row-level security sees the tenant from here on. Answers where the read models stand, and the first event of the tenant that
-- waits. Stable, so that within one statement both this and the rows are of one snapshot: never rows that are older than this says.
create function read.enter(tenant uuid, models text[], out reached bigint, out parked bigint, out diverged boolean) language plpgsql stable as $$
begin
  if tenant is not null then
    perform set_config('app.current_tenant_id', tenant::text, true);
  end if;
  select min(g.position), min((select min(p.position) from read.parked p where (p.name, p.generation) = (g.name, g.generation))), bool_or(g.fault is not null)
    into reached, parked, diverged from read.generations g where g.name = any(models) and g.state = 'serving';
end $$;
revoke execute on function read.enter from public;
grant execute on function read.enter to tenure_reader, tenure_platform_reader;

-- Asks read models: the first row says where they stand, the others are those that `statement` selects (doc, columns, sorted_by, tied_by, beside) with `given` as its only parameter. Row-level
-- security sees the tenant for as long as this lasts; without a tenant only the platform's reader sees anything. Rows end after `most`, or where they come to more than `bytes`,
-- and one without a document then says that there are more. Where the read models stand is looked up before the rows are, which are therefore never older. Where a `probe` is
-- named and finds few rows for its parameter, `few` is the statement.
create function read.ask(tenant uuid, models text[], after bigint, statement text, given text[], most bigint, bytes bigint, probe text, probed text, few text)
returns table (reached bigint, parked bigint, diverged boolean, doc text, columns text, sorted_by text, tied_by text, beside text) language plpgsql as $$
declare
  rows bigint := 0;
  size bigint := 0;
  found_few boolean;
begin
  select e.reached, e.parked, e.diverged into reached, parked, diverged from read.enter(tenant, models) e;
  return next;
  if diverged or reached < after or statement = '' then
    return;
  end if;
  if probe is not null then
    execute format('select read.%I($1)', probe) into found_few using probed;
    if found_few then
      statement := few;
    end if;
  end if;
  for doc, columns, sorted_by, tied_by, beside in execute statement using given loop
    rows := rows + 1;
    size := size + octet_length(coalesce(doc, columns));
    if rows > most or (size > bytes and rows > 1) then
      doc := null;
      columns := null;
      return next;
      exit;
    end if;
    return next;
  end loop;
end $$;
revoke execute on function read.ask from public;
grant execute on function read.ask to tenure_reader, tenure_platform_reader;
