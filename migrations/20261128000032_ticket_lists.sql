-- Lists of many tickets: see the migration before this one.

select read.for_generations('tickets_v1', 'alter table read.%1$I add column priority_rank int not null generated always as (case priority when ''low'' then 1 when ''normal'' then 2 when ''high'' then 3 else 4 end) stored');

select read.for_generations('tickets_v1', '
  create index on read.%1$I (tenant_id, public_updated_at, id);
  create index on read.%1$I (tenant_id, priority_rank, id);
  create index on read.%1$I (tenant_id, status, created_at, id);
  create index on read.%1$I (tenant_id, assignee_id, created_at, id);
  create index on read.%1$I using gin (tags) with (fastupdate = off)');

create function read.few_tickets_tagged(tag text) returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  return read.estimate('select from read.tickets_v1 where tags @> array[$1[1]]', tag) < 3000;
end $$;
create function read.tickets_tagged(tag text) returns setof uuid language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select t.id from read.tickets_v1 t where t.tags @> array[tag] and t.tenant_id = nullif(current_setting('app.current_tenant_id', true), '')::uuid
$$;

-- To look into the messages of one ticket costs more than to compare a column, so more tickets are found at once.
create function read.few_tickets_saying(said text) returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  return read.estimate('select from read.tickets_v1 t where read.words(t.tenant_id, t.subject) @@ read.wanted($1[1])', said)
       + read.estimate('select from read.ticket_thread_v1 e where read.words(e.tenant_id, e.body) @@ read.wanted($1[1])', said) < 10000;
end $$;
-- Whether somebody says this (read.wanted) in a ticket of the transaction's tenant: read.tickets_saying, for one ticket.
create function read.ticket_says(ticket uuid, subject text, wanted tsquery, internal boolean) returns boolean language plpgsql stable security definer cost 1000 set search_path = pg_catalog, pg_temp as $$
declare
  tenant uuid := nullif(current_setting('app.current_tenant_id', true), '')::uuid;
begin
  if tenant is null or numnode(wanted) = 0 then
    return false;
  end if;
  return read.words(tenant, subject) @@ wanted
      or exists (select from read.ticket_thread_v1 e
                  where e.tenant_id = tenant and e.ticket_id = ticket and (internal or e.visibility = 'public') and read.words(e.tenant_id, e.body) @@ wanted);
end $$;
revoke execute on function read.few_tickets_tagged, read.tickets_tagged, read.few_tickets_saying, read.ticket_says from public;
grant execute on function read.few_tickets_tagged, read.tickets_tagged, read.few_tickets_saying, read.ticket_says to tenure_reader;
