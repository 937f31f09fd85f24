-- Signing in. Nothing of this is a fold of the log: who may sign in, and with what right, the log says; here are the secrets that it only names, and what happens too often
-- to be an event. No role that answers queries reads any of it.

-- Hashes of passwords (PHC strings) and of the secrets of API keys. A row counts only as long as an event names it, so it is written before the event is.
create table ops.credentials (
  id         uuid        primary key,
  tenant_id  uuid        not null,
  owner_id   uuid        not null,               -- the user, or the key
  hash       text        not null,
  created_at timestamptz not null
);
create index on ops.credentials (tenant_id, owner_id);

create table ops.sessions (
  id           uuid        primary key,
  tenant_id    uuid        not null,
  user_id      uuid        not null,
  epoch        bigint      not null,             -- the user's, when it began: theirs has to be the same still
  generation   bigint      not null default 0,   -- of the refresh token that is good
  rotated_at   timestamptz not null,
  opaque       boolean     not null,
  user_agent   text,
  created_at   timestamptz not null,
  last_used_at timestamptz not null,
  expires_at   timestamptz not null,
  ended_at     timestamptz,
  parent       uuid                              -- the session that it was begun from, in another tenant, and ends with
);
create index on ops.sessions (tenant_id, user_id, created_at);
create index on ops.sessions (expires_at);
create index on ops.sessions (ended_at) where ended_at is not null;

-- Who is gone for good, for whatever stands beside the log of them.
create index events_gone on events (tenant_id, aggregate_id) where event_type in ('user.deleted', 'api_key.revoked');

-- Keys that sign access tokens; the private part is encrypted under the master key.
create table ops.signing_keys (
  kid            text        primary key,
  wrapped_key    bytea       not null,
  created_at     timestamptz not null,
  signs_from     timestamptz not null,           -- published before it signs, so that whoever keeps the published keys for a while knows it by then
  verifies_until timestamptz                     -- null: until it is rotated out
);

create table ops.api_key_use (
  key_id       uuid        primary key,
  tenant_id    uuid        not null,
  last_used_at timestamptz not null
);

grant select, insert, update, delete on ops.credentials, ops.sessions, ops.signing_keys, ops.api_key_use to tenure_writer;
