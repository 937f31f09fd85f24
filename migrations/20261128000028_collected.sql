-- What was collected; what is in force while a change waits for its payment; the parts of a month; days by the tenant's calendar.

create table read.payments_v1_g1 (
  tenant_id         uuid        not null,
  position          bigint      not null,
  subscription_id   uuid        not null,
  kind              text        not null,
  amount            jsonb,
  overage           jsonb       not null,
  invoice           text,
  provider_event_id text        not null,
  occurred_at       timestamptz not null,
  recorded_at       timestamptz not null,
  primary key (tenant_id, position)
);
create index on read.payments_v1_g1 (tenant_id, subscription_id, position);
create index on read.payments_v1_g1 (position);
select read.register('payments_v1');

create table read.entitlements_v2_g1 (
  tenant_id       uuid        not null,
  meter           text        not null,
  subscription_id uuid,
  plan            text,
  plan_version    bigint,
  quantity        bigint,
  unit_quota      bigint,
  hard_percent    int,
  overage         jsonb,
  held_quota      bigint,
  held_limit      bigint,
  quota           bigint,
  hard_limit      bigint,
  override_limit  bigint,
  override_until  timestamptz,
  effective_limit bigint,
  updated_at      timestamptz not null,
  primary key (tenant_id, meter)
);
select read.register('entitlements_v2');

create table read.usage_v2_g1 (
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
  segments    jsonb       not null,
  closed_at   timestamptz,
  updated_at  timestamptz not null,
  primary key (tenant_id, meter, period)
);
create index on read.usage_v2_g1 (tenant_id, period, meter);
select read.register('usage_v2');

create table read.usage_daily_v2_g1 (
  tenant_id uuid   not null,
  meter     text   not null,
  day       date   not null,
  used      bigint not null,
  items     bigint not null,
  primary key (tenant_id, meter, day)
);
create index on read.usage_daily_v2_g1 (tenant_id, day, meter);
select read.register('usage_daily_v2');

-- Nothing reads the earlier ones any more.
do $$
declare old record;
begin
  for old in select name, generation from read.generations where name in ('entitlements_v1', 'usage_v1', 'usage_daily_v1') loop
    execute format('drop view if exists read.%I', old.name);
    execute format('drop table read.%I', old.name || '_g' || old.generation);
  end loop;
  delete from read.generations where name in ('entitlements_v1', 'usage_v1', 'usage_daily_v1');
end $$;
