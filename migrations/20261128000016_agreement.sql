-- Nothing that was made from another log than this one is served, continued or delivered.

-- Why a read model or a policy has stopped: its checkpoint is not confirmed by the log. Null while all is well. A read model with a fault answers no queries.
alter table read.generations add column fault text;
alter table ops.policies add column fault text;

-- The event that a delivery answers, a refusal was met at and a discard is about: positions mean nothing once a log was restored to an earlier state.
alter table ops.deliveries add column event_id uuid;
alter table ops.policy_refusals add column event_id uuid;
alter table read.discarded add column event_id uuid;
update ops.deliveries d set event_id = e.event_id from events e where e.position = d.position;
update ops.policy_refusals r set event_id = e.event_id from events e where e.position = r.position;
update read.discarded d set event_id = e.event_id from events e where e.position = d.position;

-- One row that the health check rewrites, to learn whether the database takes writes while no event is appended.
create table ops.write_probe (
  one        boolean     primary key default true check (one),
  written_at timestamptz not null default now()
) with (fillfactor = 10);
insert into ops.write_probe default values;
grant select, update on ops.write_probe to tenure_writer;

-- `tenure log reconcile` forgets discards of events that are not in the log.
grant delete on read.discarded to tenure_projector;
