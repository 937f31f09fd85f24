-- A twin's version is that of its device, which every event of the device moves: what a reader has seen is what `If-Match` wants.
create table read.device_twins_v2_g1 (
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
select read.register('device_twins_v2');

-- Nothing reads the first one any more.
drop view read.device_twins_v1;
do $$
declare old record;
begin
  for old in select generation from read.generations where name = 'device_twins_v1' loop
    execute format('drop table read.%I', 'device_twins_v1_g' || old.generation);
  end loop;
  delete from read.generations where name = 'device_twins_v1';
end $$;

-- Tickets let go of users who are gone. What happens from here on is answered, whichever process comes first.
insert into ops.policies (name, position, log_hash, epoch) select 'references', position, log_hash, 0 from log_head;

-- Which tickets ever named a user is asked when one is gone.
create index events_naming_users on events (tenant_id, position) where event_type in ('ticket.assigned', 'ticket.follower_added');
