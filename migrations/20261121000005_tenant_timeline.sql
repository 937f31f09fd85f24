-- What has happened to each tenant, for the people who run it. Without personal data, so nothing here has to be erased.
create table read.tenant_timeline_v1_g1 (
  tenant_id   uuid        not null,
  position    bigint      not null,
  event       text        not null,
  detail      jsonb       not null,
  actor       jsonb       not null,
  occurred_at timestamptz not null,
  primary key (tenant_id, position)
);
select read.register('tenant_timeline_v1');
