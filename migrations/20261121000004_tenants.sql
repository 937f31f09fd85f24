-- Tenants by id, slug, status and name, newest first.
create table read.tenants_v1_g1 (
  tenant_id       uuid        not null,
  id              uuid        not null,
  version         bigint      not null,
  slug            text        not null,
  aliases         text[]      not null,
  name            text        not null,
  status          text        not null,
  status_reason   text,
  plan            text,
  settings        jsonb       not null,
  llm             jsonb,
  branding        jsonb,
  created_at      timestamptz not null,
  updated_at      timestamptz not null,
  primary key (tenant_id, id)
);
-- `including all` names the copies' indexes after their table, so none is named here.
create index on read.tenants_v1_g1 (created_at, id);
create index on read.tenants_v1_g1 (lower(name), id);
create index on read.tenants_v1_g1 (slug);
create index on read.tenants_v1_g1 using gin (aliases);
select read.register('tenants_v1');
