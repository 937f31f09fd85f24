-- Every operational key begins with the tenant. Clients choose the ids of their users, keys and devices, so the same id may exist in two tenants, and neither may see, change or
-- hide what is the other's.

alter table ops.api_key_use drop constraint api_key_use_pkey, add primary key (tenant_id, key_id);
alter table ops.credentials drop constraint credentials_pkey, add primary key (tenant_id, id);
alter table ops.policy_refusals drop constraint policy_refusals_pkey, add primary key (tenant_id, policy, position, step);

alter table ops.delivery_attempts add column tenant_id uuid;
update ops.delivery_attempts a set tenant_id = d.tenant_id from ops.deliveries d where d.id = a.delivery_id;
alter table ops.delivery_attempts
  alter column tenant_id set not null,
  drop constraint delivery_attempts_delivery_id_fkey,
  drop constraint delivery_attempts_pkey;
alter table ops.deliveries drop constraint deliveries_pkey, add primary key (tenant_id, id);
alter table ops.delivery_attempts
  add primary key (tenant_id, delivery_id, attempt),
  add foreign key (tenant_id, delivery_id) references ops.deliveries on delete cascade;

-- Deliveries of one kind about one subject of a tenant, in order.
drop index ops.deliveries_pending;
create index deliveries_pending on ops.deliveries (tenant_id, kind, subject_id, position) where state = 'pending';

-- The events of a stream as the repository of postgres-es reads them, with the id of each as its metadata: what is sealed in an event is bound to its id.
create view event_streams as
select aggregate_type, aggregate_id, sequence, event_type, event_version, payload, json_build_object('event_id', event_id) as metadata from events;
grant select on event_streams to tenure_writer;
