-- What could not be folded: see projections/src/parking.rs.

-- Partitions that wait, per generation: they are part of what its rows say.
create table read.parked (
  name       text        not null,
  generation int         not null,
  partition  text        not null,               -- '<tenant>/<id>', or '<tenant>' where rows gather what many streams say
  tenant_id  uuid        not null,
  position   bigint      not null,               -- the event that could not be folded
  reason     text        not null,
  parked_at  timestamptz not null,
  primary key (name, generation, partition),
  foreign key (name, generation) references read.generations on delete cascade
);
select read.secure('read.parked');

-- Their events, in order, the failing one first.
create table read.parked_events (
  name       text   not null,
  generation int    not null,
  partition  text   not null,
  position   bigint not null,
  primary key (name, generation, position),
  foreign key (name, generation, partition) references read.parked on delete cascade
);
create index on read.parked_events (name, generation, partition, position);
grant select, insert, delete on read.parked_events to tenure_projector;

-- Events that a read model leaves out, now and in every rebuild. Never forgotten.
create table read.discarded (
  name         text        not null,
  position     bigint      not null,
  partition    text        not null,
  tenant_id    uuid        not null,
  failure      text        not null,
  reason       text        not null,
  discarded_at timestamptz not null,
  primary key (name, position)
);
grant select, insert, update on read.discarded to tenure_projector;
