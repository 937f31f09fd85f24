-- Users, invitations, roles, API keys, and who tried what. Addresses and names are the user's personal data.
create table read.users_v1_g1 (
  tenant_id      uuid        not null,
  id             uuid        not null,
  version        bigint      not null,
  email          text,
  email_verified boolean     not null,
  name           text,
  locale         text,
  time_zone      text,
  status         text        not null,
  status_reason  text,
  role           text        not null,
  locked_until   timestamptz,
  last_login_at  timestamptz,
  created_at     timestamptz not null,
  updated_at     timestamptz not null,
  primary key (tenant_id, id)
);
create index on read.users_v1_g1 (tenant_id, created_at, id);
create index on read.users_v1_g1 (lower(email));
select read.register('users_v1');

create table read.invitations_v1_g1 (
  tenant_id   uuid        not null,
  id          uuid        not null,
  email       text,
  role        text        not null,
  answer      text        not null,
  invited_by  uuid,
  expires_at  timestamptz not null,
  sent        bigint      not null,
  created_at  timestamptz not null,
  answered_at timestamptz,
  primary key (tenant_id, id)
);
create index on read.invitations_v1_g1 (tenant_id, created_at, id);
select read.register('invitations_v1');

create table read.roles_v1_g1 (
  tenant_id   uuid        not null,
  id          uuid        not null,
  version     bigint      not null,
  name        text        not null,
  permissions text[]      not null,
  created_at  timestamptz not null,
  updated_at  timestamptz not null,
  primary key (tenant_id, id)
);
select read.register('roles_v1');

create table read.api_keys_v1_g1 (
  tenant_id      uuid        not null,
  id             uuid        not null,
  version        bigint      not null,
  name           text        not null,
  prefix         text        not null,
  kind           text        not null,
  owner_id       uuid,
  scopes         text[]      not null,
  expires_at     timestamptz,
  previous_until timestamptz,
  revoked_at     timestamptz,
  created_at     timestamptz not null,
  updated_at     timestamptz not null,
  primary key (tenant_id, id)
);
create index on read.api_keys_v1_g1 (tenant_id, created_at, id);
select read.register('api_keys_v1');

create table read.access_records_v1_g1 (
  tenant_id   uuid        not null,
  position    bigint      not null,
  action      text        not null,
  actor       text,
  target      text,
  outcome     text        not null,
  detail      jsonb       not null,
  occurred_at timestamptz not null,
  primary key (tenant_id, position)
);
create index on read.access_records_v1_g1 (tenant_id, actor, position);
create index on read.access_records_v1_g1 (tenant_id, target, position);
create index on read.access_records_v1_g1 (tenant_id, action, position);
create index on read.access_records_v1_g1 (tenant_id, occurred_at);
select read.register('access_records_v1');
