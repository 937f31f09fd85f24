-- Tickets, what is said in them, and how many there were per day. Subjects, texts and file names are the requester's personal data.
create table read.tickets_v1_g1 (
  tenant_id         uuid        not null,
  id                uuid        not null,
  version           bigint      not null,
  number            bigint      not null,
  subject           text,
  status            text        not null,
  priority          text        not null,
  channel           text        not null,
  requester_id      uuid        not null,
  assignee_id       uuid,
  tags              text[]      not null,
  followers         uuid[]      not null,
  links             jsonb       not null,
  attachments       jsonb       not null,
  public_comments   bigint      not null,
  internal_comments bigint      not null,
  first_response_at timestamptz,
  resolved_at       timestamptz,
  created_at        timestamptz not null,
  updated_at        timestamptz not null,
  public_updated_at timestamptz not null,
  primary key (tenant_id, id)
);
create index on read.tickets_v1_g1 (tenant_id, created_at, id);
create index on read.tickets_v1_g1 (tenant_id, updated_at, id);
create index on read.tickets_v1_g1 (tenant_id, number);
create index on read.tickets_v1_g1 (tenant_id, requester_id, created_at, id);

create table read.ticket_thread_v1_g1 (
  tenant_id    uuid        not null,
  ticket_id    uuid        not null,
  id           uuid        not null,
  position     bigint      not null,
  body         text,
  visibility   text        not null,
  requester_id uuid        not null,
  author_id    uuid,
  by_agent     boolean     not null,
  created_at   timestamptz not null,
  redacted_at  timestamptz,
  primary key (tenant_id, ticket_id, id)
);
create index on read.ticket_thread_v1_g1 (tenant_id, requester_id);

create table read.ticket_statistics_v1_g1 (
  tenant_id         uuid   not null,
  day               date   not null,
  opened            bigint not null,
  first_responses   bigint not null,
  resolved          bigint not null,
  reopened          bigint not null,
  closed            bigint not null,
  deleted           bigint not null,
  public_comments   bigint not null,
  internal_comments bigint not null,
  primary key (tenant_id, day)
);

-- The words of a text, and the tenant as one more word, so that one index finds the words of one tenant. No stemming: texts are in any language.
create function read.words(tenant uuid, said text) returns tsvector language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
  select array_to_tsvector(array[tenant::text]) || to_tsvector('simple', coalesce(said, ''))
$$;
create index on read.tickets_v1_g1 using gin (read.words(tenant_id, subject));
create index on read.ticket_thread_v1_g1 using gin (read.words(tenant_id, body));

select read.register('tickets_v1');
select read.register('ticket_thread_v1');
select read.register('ticket_statistics_v1');

-- The tickets of the transaction's tenant in which somebody says this (in the syntax of websearch_to_tsquery). Matching text is not leakproof, so under row-level security
-- it would be done row by row after the policy, without the index; so this runs as the owner and names the tenant itself.
create function read.tickets_saying(said text, internal boolean) returns setof uuid language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  tenant uuid := nullif(current_setting('app.current_tenant_id', true), '')::uuid;
  wanted tsquery := websearch_to_tsquery('simple', said);
begin
  if tenant is null or numnode(wanted) = 0 then
    return;
  end if;
  wanted := quote_literal(tenant::text)::tsquery && wanted;
  return query
    select t.id from read.tickets_v1 t where read.words(t.tenant_id, t.subject) @@ wanted and t.tenant_id = tenant
    union
    select e.ticket_id from read.ticket_thread_v1 e where read.words(e.tenant_id, e.body) @@ wanted and e.tenant_id = tenant and (internal or e.visibility = 'public');
end $$;
revoke execute on function read.tickets_saying from public;
grant execute on function read.tickets_saying to tenure_reader;
