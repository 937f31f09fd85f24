-- Usage, quotas, outlets and devices.

-- What happens from here on is answered, whichever process comes first.
insert into ops.policies (name, position, log_hash, epoch) select 'quotas', position, log_hash, 0 from log_head;

-- What a tenant is entitled to, and was at some time, is told by few of its events.
create index events_entitling on events (tenant_id, position) where aggregate_type in ('tenant', 'subscription');

create table read.usage_v1_g1 (
  tenant_id   uuid        not null,
  meter       text        not null,
  period      text        not null,
  used        bigint      not null,
  adjustments bigint      not null,
  held        bigint      not null,
  thresholds  jsonb       not null,
  quota       bigint,
  overage     bigint,
  amount      jsonb,
  closed_at   timestamptz,
  updated_at  timestamptz not null,
  primary key (tenant_id, meter, period)
);
create index on read.usage_v1_g1 (tenant_id, period, meter);
select read.register('usage_v1');

create table read.usage_daily_v1_g1 (
  tenant_id uuid   not null,
  meter     text   not null,
  day       date   not null,
  used      bigint not null,
  items     bigint not null,
  primary key (tenant_id, meter, day)
);
create index on read.usage_daily_v1_g1 (tenant_id, day, meter);
select read.register('usage_daily_v1');

create table read.outlets_v1_g1 (
  tenant_id  uuid        not null,
  id         uuid        not null,
  version    bigint      not null,
  name       text        not null,
  phone      text,
  whatsapp   jsonb,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  primary key (tenant_id, id)
);
create index on read.outlets_v1_g1 (tenant_id, created_at, id);
select read.register('outlets_v1');

create table read.devices_v1_g1 (
  tenant_id    uuid        not null,
  id           uuid        not null,
  version      bigint      not null,
  serial       text        not null,
  model        text        not null,
  status       text        not null,
  reason       text,
  device_group text,
  tags         text[]      not null,
  metadata     jsonb       not null,
  created_at   timestamptz not null,
  updated_at   timestamptz not null,
  primary key (tenant_id, id)
);
create index on read.devices_v1_g1 (tenant_id, created_at, id);
create index on read.devices_v1_g1 (tenant_id, device_group);
select read.register('devices_v1');

create table read.device_twins_v1_g1 (
  tenant_id       uuid        not null,
  id              uuid        not null,
  version         bigint      not null,
  desired         jsonb       not null,
  desired_version bigint      not null,
  reported        jsonb       not null,
  reported_seq    bigint      not null,
  difference      jsonb       not null,
  reported_at     timestamptz,
  updated_at      timestamptz not null,
  primary key (tenant_id, id)
);
select read.register('device_twins_v1');

create table read.device_commands_v1_g1 (
  tenant_id  uuid        not null,
  device_id  uuid        not null,
  id         uuid        not null,
  method     text        not null,
  params     jsonb       not null,
  status     text        not null,
  result     jsonb,
  sent_at    timestamptz not null,
  expires_at timestamptz not null,
  settled_at timestamptz,
  primary key (tenant_id, device_id, id)
);
create index on read.device_commands_v1_g1 (tenant_id, device_id, sent_at);
select read.register('device_commands_v1');

create table read.device_timeline_v1_g1 (
  tenant_id   uuid        not null,
  position    bigint      not null,
  device_id   uuid        not null,
  event       text        not null,
  detail      jsonb       not null,
  actor       jsonb       not null,
  occurred_at timestamptz not null,
  primary key (tenant_id, position)
);
create index on read.device_timeline_v1_g1 (tenant_id, device_id, position);
select read.register('device_timeline_v1');

-- When devices were last heard of. Queries show it beside what the log says of them.
create table ops.device_heartbeats (
  tenant_id    uuid        not null,
  device_id    uuid        not null,
  last_seen_at timestamptz not null,
  primary key (tenant_id, device_id)
);
grant select, insert, update, delete on ops.device_heartbeats to tenure_writer;
grant usage on schema ops to tenure_reader, tenure_platform_reader;
grant select on ops.device_heartbeats to tenure_reader, tenure_platform_reader;
alter table ops.device_heartbeats enable row level security;
create policy tenant on ops.device_heartbeats for select to tenure_reader using (tenant_id = nullif(current_setting('app.current_tenant_id', true), '')::uuid);
create policy platform on ops.device_heartbeats for select to tenure_platform_reader using (true);
create policy writer on ops.device_heartbeats to tenure_writer using (true) with check (true);

-- Tenants are looked for by any part of their names, however many there are. What is written goes into the index at once: a list of what is still to be written there would
-- be searched row by row, and keep the index from being used. A read model may serve from any generation.
create extension if not exists pg_trgm;
do $$
declare
  gen record;
begin
  for gen in select generation from read.generations where name = 'tenants_v1' loop
    execute format('create index on read.%I using gin (lower(name) gin_trgm_ops) with (fastupdate = off)', 'tenants_v1_g' || gen.generation);
    execute format('create index on read.%I using gin (slug gin_trgm_ops) with (fastupdate = off)', 'tenants_v1_g' || gen.generation);
  end loop;
end $$;

-- Ids are the clients' own: a secret belongs to an id of a type. Of those that older processes keep nobody knows which, until they are replaced.
alter table ops.credentials add column owner_type text;
