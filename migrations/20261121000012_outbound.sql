-- What leaves the installation for somebody else: mails now. Queued in the transaction that moves the checkpoint of the policy that decided it, so each intent is queued once.

create table ops.policies (
  name     text   primary key,
  position bigint not null,                      -- everything up to here was decided upon
  log_hash bytea  not null,
  epoch    bigint not null
);

-- What happens from here on is answered, whichever process comes first.
insert into ops.policies (name, position, log_hash, epoch) select 'mail', position, log_hash, 0 from log_head;

create table ops.deliveries (
  id              uuid        primary key,       -- made from what it answers; also what the receiver sees as the message's id
  tenant_id       uuid        not null,
  kind            text        not null,          -- 'mail'
  subject_id      uuid        not null,          -- the user whom it is for; where to write to them is looked up when it is sent
  template        text        not null,
  intent          uuid        not null,          -- what its link is made of
  position        bigint      not null,          -- the event that it answers
  state           text        not null default 'pending' check (state in ('pending', 'delivered', 'dropped', 'dead')),
  attempts        int         not null default 0,
  next_attempt_at timestamptz not null,
  leased_by       uuid,
  leased_until    timestamptz,
  created_at      timestamptz not null,
  ended_at        timestamptz,
  reason          text                           -- why it was dropped or is dead; nothing personal
);
create index deliveries_due on ops.deliveries (next_attempt_at) where state = 'pending';
create index on ops.deliveries (tenant_id, created_at, id);
create index on ops.deliveries (ended_at) where state in ('delivered', 'dropped');
create index on ops.deliveries (id) where state = 'dead';

create table ops.delivery_attempts (
  delivery_id uuid        not null references ops.deliveries on delete cascade,
  attempt     int         not null,
  began_at    timestamptz not null,
  ended_at    timestamptz not null,
  outcome     text        not null check (outcome in ('delivered', 'failed', 'refused')),
  reason      text,                              -- a code of the protocol or of the network; nothing personal
  primary key (delivery_id, attempt)
);

grant select, insert, update, delete on ops.policies, ops.deliveries, ops.delivery_attempts to tenure_writer;
