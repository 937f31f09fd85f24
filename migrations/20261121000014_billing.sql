-- Plans, subscriptions, what is entitled to by them, domains; and the policies that follow them.

-- What happens from here on is answered, whichever process comes first.
insert into ops.policies (name, position, log_hash, epoch)
select name, position, log_hash, 0 from log_head, unnest(array['provisioning', 'tenancy', 'payments']) as name;

-- Commands of policies that the rules refused.
create table ops.policy_refusals (
  policy      text        not null,
  position    bigint      not null,              -- the event that was to be answered
  step        int         not null,              -- the command's place in the answer
  tenant_id   uuid        not null,
  command     text        not null,
  reason      text        not null,              -- nothing personal
  recorded_at timestamptz not null,
  primary key (policy, position, step)
);

-- What payment providers have told. Their bodies may name people: they are encrypted, and forgotten after a while.
create table ops.provider_events (
  provider    text        not null,
  event_id    text        not null,              -- the provider's own: each is taken in once
  event_type  text        not null,
  occurred_at timestamptz not null,
  received_at timestamptz not null,
  customer    text,                              -- what the provider calls whoever pays
  tenant_id   uuid,                              -- null: whose it is was not known when it came
  subscription_id uuid,
  outcome     text        not null check (outcome in ('applied', 'refused', 'kept', 'waiting')),
  body        bytea,
  primary key (provider, event_id)
);
create index on ops.provider_events (provider, customer) where outcome = 'waiting';
create index on ops.provider_events (received_at) where body is not null;
create index on ops.provider_events (tenant_id, received_at);

-- What is told of one subject in order finds what is before it.
create index deliveries_pending on ops.deliveries (kind, subject_id, position) where state = 'pending';

grant select, insert, update, delete on ops.policy_refusals, ops.provider_events to tenure_writer;

create table read.plans_v1_g1 (
  tenant_id    uuid        not null,
  id           uuid        not null,
  version      bigint      not null,
  code         text        not null,
  name         text        not null,
  plan_version bigint      not null,
  price        jsonb       not null,
  interval     text        not null,
  trial_days   int         not null,
  entitlements jsonb       not null,
  retired      boolean     not null,
  versions     jsonb       not null,
  created_at   timestamptz not null,
  updated_at   timestamptz not null,
  primary key (tenant_id, id)
);
select read.register('plans_v1');

create table read.subscriptions_v1_g1 (
  tenant_id         uuid        not null,
  id                uuid        not null,
  version           bigint      not null,
  status            text        not null,
  plan              text        not null,
  plan_version      bigint      not null,
  price             jsonb       not null,
  interval          text        not null,
  quantity          bigint      not null,
  billing           text        not null,
  time_zone         text        not null,
  trial_ends_at     timestamptz,
  period_start      timestamptz,
  period_end        timestamptz,
  pause_reason      text,
  upcoming          text,
  upcoming_plan     text,
  upcoming_at       timestamptz,
  over_limit        text[]      not null,
  payable           boolean     not null,
  provider          text,
  started_at        timestamptz not null,
  ended_at          timestamptz,
  updated_at        timestamptz not null,
  primary key (tenant_id, id)
);
create index on read.subscriptions_v1_g1 (started_at, id);
create index on read.subscriptions_v1_g1 (upcoming_at, id) where upcoming is not null;
create index on read.subscriptions_v1_g1 (trial_ends_at, id) where status = 'trialing';
select read.register('subscriptions_v1');

create table read.subscription_timeline_v1_g1 (
  tenant_id       uuid        not null,
  position        bigint      not null,
  subscription_id uuid        not null,
  event           text        not null,
  detail          jsonb       not null,
  actor           jsonb       not null,
  occurred_at     timestamptz not null,
  primary key (tenant_id, position)
);
create index on read.subscription_timeline_v1_g1 (tenant_id, subscription_id, position);
select read.register('subscription_timeline_v1');

create table read.entitlements_v1_g1 (
  tenant_id       uuid        not null,
  meter           text        not null,
  subscription_id uuid,
  plan            text,
  plan_version    bigint,
  quantity        bigint,
  unit_quota      bigint,
  hard_percent    int,
  overage         jsonb,
  quota           bigint,
  hard_limit      bigint,
  override_limit  bigint,
  override_until  timestamptz,
  effective_limit bigint,
  updated_at      timestamptz not null,
  primary key (tenant_id, meter)
);
select read.register('entitlements_v1');

create table read.domains_v1_g1 (
  tenant_id   uuid        not null,
  domain      text        not null,
  record_name text        not null,
  record_value text       not null,
  verified_at timestamptz,
  added_at    timestamptz not null,
  primary key (tenant_id, domain)
);
create index on read.domains_v1_g1 (domain) where verified_at is not null;
select read.register('domains_v1');
