-- Answers that are kept for requests that are repeated: of those that carry secrets, which stand nowhere else, and of those that are no one command of one aggregate. Sealed
-- under the master key. What was drawn for the request is kept before anything is done with it, so that a request that was cut off in between goes on with the same.
create table ops.kept_answers (
  tenant_id   uuid        not null,
  scope       text        not null,             -- the route
  key         text        not null,
  fingerprint bytea       not null,             -- a keyed hash of what was asked
  drawn       bytea       not null,
  answer      bytea,                            -- null until the request was answered
  recorded_at timestamptz not null,
  primary key (tenant_id, scope, key)
);
create index kept_answers_recorded on ops.kept_answers (recorded_at);
grant select, insert, update, delete on ops.kept_answers to tenure_writer;
