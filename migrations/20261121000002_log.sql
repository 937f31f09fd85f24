-- The event log, and the guards that an append checks under the log's lock.

create table events (
  position       bigint      not null unique,   -- dense, = JetStream sequence
  event_id       uuid        not null,
  tenant_id      uuid        not null,
  aggregate_type text        not null,
  aggregate_id   text        not null,          -- '<tenant uuid>/<id>'
  sequence       bigint      not null check (sequence > 0),
  event_type     text        not null,
  event_version  text        not null,
  payload        json        not null,          -- json, not jsonb: the digest covers the exact bytes
  metadata       json        not null,
  recorded_at    timestamptz not null,
  digest         bytea       not null,
  tenant_hash    bytea       not null,
  log_hash       bytea       not null,
  primary key (aggregate_type, aggregate_id, sequence)
);
create index events_tenant_position on events (tenant_id, position);

create function refuse_change() returns trigger language plpgsql as $$
begin
  raise exception 'the event log is append-only: % refused', tg_op using errcode = 'insufficient_privilege';
end $$;
create trigger events_append_only before update or delete on events for each row execute function refuse_change();
create trigger events_no_truncate before truncate on events for each statement execute function refuse_change();

-- One row. Whoever holds its lock is the only one who appends, so positions are dense and in commit order.
create table log_head (
  one             boolean primary key default true check (one),
  position        bigint  not null default 0,
  log_hash        bytea   not null default decode(repeat('00', 32), 'hex'),
  installation_id uuid    not null default gen_random_uuid()
) with (fillfactor = 10);
insert into log_head default values;

create table tenant_heads (
  tenant_id   uuid   primary key,
  position    bigint not null,
  tenant_hash bytea  not null,
  gate        text                               -- null: not a tenant that others could belong to; 'open'; else the status that closes it
) with (fillfactor = 50);

create table claims (
  scope          uuid not null,                  -- the tenant among whose streams the value is unique; the nil uuid: the whole installation
  namespace      text not null,
  value          text not null,                  -- a keyed hash when the values are personal data
  tenant_id      uuid not null,
  aggregate_type text not null,
  aggregate_id   text not null,
  label          text not null,
  primary key (scope, namespace, value),
  unique (aggregate_type, aggregate_id, namespace, label)
);
create index claims_tenant on claims (tenant_id);

create table counters (
  tenant_id uuid   not null,
  name      text   not null,
  value     bigint not null,
  floor     bigint,
  ceiling   bigint,
  primary key (tenant_id, name)
) with (fillfactor = 50);

create table allocations (
  tenant_id uuid   not null,
  name      text   not null,
  last      bigint not null,
  primary key (tenant_id, name)
) with (fillfactor = 50);

create table timers (
  aggregate_type text        not null,
  aggregate_id   text        not null,
  name           text        not null,
  tenant_id      uuid        not null,
  due_at         timestamptz not null,
  primary key (aggregate_type, aggregate_id, name)
);
create index timers_due on timers (due_at);
create index timers_tenant on timers (tenant_id);

-- Keys of data subjects, wrapped by the master key. An erased subject keeps its row without a key, so that nothing is ever sealed for it again.
create table ops.subject_keys (
  tenant_id   uuid  not null,
  subject_id  uuid  not null,
  wrapped_key bytea,
  primary key (tenant_id, subject_id)
);

-- The first answer to every keyed command.
create table ops.idempotency_keys (
  tenant_id    uuid        not null,
  scope        text        not null,             -- the route
  key          text        not null,
  fingerprint  bytea       not null,
  aggregate_id text        not null,
  version      bigint      not null,
  position     bigint      not null,
  created      boolean     not null,
  recorded_at  timestamptz not null,
  primary key (tenant_id, scope, key)
);
create index idempotency_keys_recorded on ops.idempotency_keys (recorded_at);

-- One owner at a time for a relay or a projection; the epoch fences a former owner that has not noticed.
create table ops.leases (
  name  text        primary key,
  owner uuid        not null,
  epoch bigint      not null,
  until timestamptz not null
);

-- Which process is firing which timer. Apart from the timers themselves, so that the poller never touches a row that an append locks.
create table ops.timer_leases (
  aggregate_type text        not null,
  aggregate_id   text        not null,
  name           text        not null,
  due_at         timestamptz not null,
  owner          uuid        not null,
  until          timestamptz not null,
  primary key (aggregate_type, aggregate_id, name)
);

-- Which master key this installation was made with, without telling what it is.
create table ops.master_key (
  one       boolean primary key default true check (one),
  key_check bytea not null
);

grant select, insert on events to tenure_writer;
grant select, update on log_head to tenure_writer;
grant select, insert, update on tenant_heads, counters, allocations to tenure_writer;
grant delete on counters, allocations to tenure_writer;
grant select, insert, delete on claims, timers to tenure_writer;
grant select, insert, update on ops.subject_keys to tenure_writer;
grant select, insert on ops.master_key to tenure_writer;
grant select, insert, delete on ops.idempotency_keys to tenure_writer;
grant select, insert, update on ops.leases to tenure_writer, tenure_projector;
grant select, insert, update, delete on ops.timer_leases to tenure_writer;

-- Writes one decided batch. The decision was made from what the log looked like at position `expected`; the head's lock is taken here, and if the log has moved on nothing
-- is written and the answer is false. One statement, so the lock is never held across the network.
create function append_batch(
  expected bigint, new_position bigint, new_log_hash bytea,
  e_event_id uuid[], e_tenant uuid[], e_type text[], e_id text[], e_sequence bigint[], e_event_type text[], e_event_version text[],
  e_payload text[], e_metadata text[], e_recorded_at timestamptz[], e_digest bytea[], e_tenant_hash bytea[], e_log_hash bytea[],
  t_tenant uuid[], t_position bigint[], t_hash bytea[], t_gate text[],
  k_tenant uuid[], k_scope text[], k_key text[], k_fingerprint bytea[], k_id text[], k_version bigint[], k_position bigint[], k_created boolean[], k_recorded_at timestamptz[],
  guards jsonb
) returns boolean language plpgsql as $$
begin
  if (select position from log_head for update) <> expected then
    return false;
  end if;
  if cardinality(e_event_id) > 0 then
    insert into events
    select expected + o, id, t, ty, ag, sq, et, ev, pl::json, md::json, ra, dg, th, lh
    from unnest(e_event_id, e_tenant, e_type, e_id, e_sequence, e_event_type, e_event_version, e_payload, e_metadata, e_recorded_at, e_digest, e_tenant_hash, e_log_hash)
      with ordinality as e (id, t, ty, ag, sq, et, ev, pl, md, ra, dg, th, lh, o);
    update log_head set position = new_position, log_hash = new_log_hash;
    insert into tenant_heads as h (tenant_id, position, tenant_hash, gate)
    select * from unnest(t_tenant, t_position, t_hash, t_gate)
    on conflict (tenant_id) do update set position = excluded.position, tenant_hash = excluded.tenant_hash, gate = excluded.gate;
  end if;
  if cardinality(k_key) > 0 then
    insert into ops.idempotency_keys (tenant_id, scope, key, fingerprint, aggregate_id, version, position, created, recorded_at)
    select * from unnest(k_tenant, k_scope, k_key, k_fingerprint, k_id, k_version, k_position, k_created, k_recorded_at);
  end if;
  -- Guards change far more seldom than events are written; one document keeps the common path short.
  if guards is not null then
    delete from claims c using jsonb_to_recordset(guards -> 'claims_gone') as g (scope uuid, namespace text, value text)
    where (c.scope, c.namespace, c.value) = (g.scope, g.namespace, g.value);
    insert into claims
    select scope, namespace, value, tenant_id, aggregate_type, aggregate_id, label
    from jsonb_populate_recordset(null::claims, guards -> 'claims');
    insert into counters
    select * from jsonb_populate_recordset(null::counters, guards -> 'counters')
    on conflict (tenant_id, name) do update set value = excluded.value, floor = excluded.floor, ceiling = excluded.ceiling;
    insert into allocations
    select * from jsonb_populate_recordset(null::allocations, guards -> 'allocations')
    on conflict (tenant_id, name) do update set last = excluded.last;
    delete from timers t using jsonb_to_recordset(guards -> 'timers_gone') as g (aggregate_type text, aggregate_id text, name text)
    where (t.aggregate_type, t.aggregate_id, t.name) = (g.aggregate_type, g.aggregate_id, g.name);
    insert into timers
    select aggregate_type, aggregate_id, name, tenant_id, due_at from jsonb_populate_recordset(null::timers, guards -> 'timers');
    insert into ops.subject_keys (tenant_id, subject_id)
    select tenant_id, subject_id from jsonb_to_recordset(guards -> 'erased') as g (tenant_id uuid, subject_id uuid)
    on conflict (tenant_id, subject_id) do update set wrapped_key = null;
    -- The end of a tenant.
    if jsonb_array_length(guards -> 'ended') > 0 then
      delete from claims where tenant_id in (select jsonb_array_elements_text(guards -> 'ended')::uuid);
      delete from timers where tenant_id in (select jsonb_array_elements_text(guards -> 'ended')::uuid);
      delete from counters where tenant_id in (select jsonb_array_elements_text(guards -> 'ended')::uuid);
      delete from allocations where tenant_id in (select jsonb_array_elements_text(guards -> 'ended')::uuid);
      update ops.subject_keys set wrapped_key = null where tenant_id in (select jsonb_array_elements_text(guards -> 'ended')::uuid);
    end if;
  end if;
  return true;
end $$;

-- What the guards named in `wanted` hold now, in one document and one snapshot with whatever statement calls it.
create function guards_now(wanted jsonb) returns jsonb language sql stable as $$
  select jsonb_build_object(
    'claims', (select coalesce(jsonb_agg(to_jsonb(u)), '[]') from (
      select c.* from jsonb_to_recordset(wanted -> 'claims') as w (scope uuid, namespace text, value text) join claims c using (scope, namespace, value)
      union
      select c.* from jsonb_to_recordset(wanted -> 'labels') as w (aggregate_type text, aggregate_id text, namespace text, label text)
        join claims c using (aggregate_type, aggregate_id, namespace, label)) u),
    'counters', (select coalesce(jsonb_agg(to_jsonb(c)), '[]') from jsonb_to_recordset(wanted -> 'counters') as w (tenant_id uuid, name text) join counters c using (tenant_id, name)),
    'allocations', (select coalesce(jsonb_agg(to_jsonb(a)), '[]') from jsonb_to_recordset(wanted -> 'allocations') as w (tenant_id uuid, name text) join allocations a using (tenant_id, name)),
    'timers', (select coalesce(jsonb_agg(to_jsonb(t)), '[]') from jsonb_to_recordset(wanted -> 'timers') as w (aggregate_type text, aggregate_id text, name text)
      join timers t using (aggregate_type, aggregate_id, name)))
$$;

revoke execute on function append_batch, guards_now from public;
grant execute on function append_batch, guards_now to tenure_writer;
