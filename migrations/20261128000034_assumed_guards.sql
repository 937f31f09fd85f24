-- Batches that are decided from memory may take and release claims, set and fire timers, refer to other streams, and contain the first event of a tenant. append_assuming checks their
-- assumptions under the head's lock.

drop function append_assuming;
create function append_assuming(
  a_type text[], a_id text[], a_sequence bigint[], assumed jsonb, expected_hash bytea,
  expected bigint, new_position bigint, new_log_hash bytea,
  e_event_id uuid[], e_tenant uuid[], e_type text[], e_id text[], e_sequence bigint[], e_event_type text[], e_event_version text[],
  e_payload text[], e_metadata text[], e_recorded_at timestamptz[], e_digest bytea[], e_tenant_hash bytea[], e_log_hash bytea[],
  t_tenant uuid[], t_position bigint[], t_hash bytea[], t_gate text[],
  k_tenant uuid[], k_scope text[], k_key text[], k_fingerprint bytea[], k_id text[], k_version bigint[], k_position bigint[], k_created boolean[], k_recorded_at timestamptz[],
  guards jsonb
) returns int language plpgsql as $$
begin
  -- What is remembered may be old, so the hash has to be the same as well as the position.
  if (select (position, log_hash) <> (expected, expected_hash) from log_head for update) then
    return 0;
  end if;
  if exists (
    select from unnest(a_type, a_id, a_sequence) as a (t, i, s)
    where a.s <> coalesce((select e.sequence from events e where e.aggregate_type = a.t and e.aggregate_id = a.i order by e.sequence desc limit 1), 0)
  ) or exists (
    select from unnest(k_tenant, k_scope, k_key) as k (t, s, k)
    where exists (select from ops.idempotency_keys i where i.tenant_id = k.t and i.scope = k.s and i.key = k.k)
  ) then
    return 2;
  end if;
  if assumed is not null then
    if exists (
      select from jsonb_to_recordset(assumed -> 'free') as a (scope uuid, namespace text, value text)
      where exists (select from claims c where c.scope = a.scope and c.namespace = a.namespace and c.value = a.value)
    ) or exists (
      select from jsonb_to_recordset(assumed -> 'timers') as a (aggregate_type text, aggregate_id text, name text, due_at timestamptz)
      where not exists (select from timers t where t.aggregate_type = a.aggregate_type and t.aggregate_id = a.aggregate_id and t.name = a.name and t.due_at = a.due_at)
    ) or exists (
      select from jsonb_to_recordset(assumed -> 'existing') as a (aggregate_type text, aggregate_id text)
      where not exists (select from events e where e.aggregate_type = a.aggregate_type and e.aggregate_id = a.aggregate_id)
    ) or exists (
      select from jsonb_array_elements_text(assumed -> 'new_tenants') as a (id)
      where exists (select from tenant_heads t where t.tenant_id = a.id::uuid)
    ) then
      return 2;
    end if;
  end if;
  perform append_batch(expected, new_position, new_log_hash, e_event_id, e_tenant, e_type, e_id, e_sequence, e_event_type, e_event_version, e_payload, e_metadata, e_recorded_at,
    e_digest, e_tenant_hash, e_log_hash, t_tenant, t_position, t_hash, t_gate, k_tenant, k_scope, k_key, k_fingerprint, k_id, k_version, k_position, k_created, k_recorded_at, guards);
  return 1;
end $$;
revoke execute on function append_assuming from public;
grant execute on function append_assuming to tenure_writer;

create or replace function append_batch(
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
    -- Claims are deleted by holder: the value of a claim that was not read is not known.
    if jsonb_array_length(guards -> 'holders_gone') > 0 then
      delete from claims c using jsonb_to_recordset(guards -> 'holders_gone') as g (aggregate_type text, aggregate_id text, namespace text, label text)
      where (c.aggregate_type, c.aggregate_id, c.namespace, c.label) = (g.aggregate_type, g.aggregate_id, g.namespace, g.label);
    end if;
    -- Processes of earlier versions name the values.
    if jsonb_array_length(guards -> 'claims_gone') > 0 then
      delete from claims c using jsonb_to_recordset(guards -> 'claims_gone') as g (scope uuid, namespace text, value text)
      where (c.scope, c.namespace, c.value) = (g.scope, g.namespace, g.value);
    end if;
    if jsonb_array_length(guards -> 'claims') > 0 then
      insert into claims
      select scope, namespace, value, tenant_id, aggregate_type, aggregate_id, label
      from jsonb_populate_recordset(null::claims, guards -> 'claims');
    end if;
    if jsonb_array_length(guards -> 'counters') > 0 then
      insert into counters
      select * from jsonb_populate_recordset(null::counters, guards -> 'counters')
      on conflict (tenant_id, name) do update set value = excluded.value, floor = excluded.floor, ceiling = excluded.ceiling;
    end if;
    if jsonb_array_length(guards -> 'allocations') > 0 then
      insert into allocations
      select * from jsonb_populate_recordset(null::allocations, guards -> 'allocations')
      on conflict (tenant_id, name) do update set last = excluded.last;
    end if;
    if jsonb_array_length(guards -> 'timers_gone') > 0 then
      delete from timers t using jsonb_to_recordset(guards -> 'timers_gone') as g (aggregate_type text, aggregate_id text, name text)
      where (t.aggregate_type, t.aggregate_id, t.name) = (g.aggregate_type, g.aggregate_id, g.name);
    end if;
    if jsonb_array_length(guards -> 'timers') > 0 then
      insert into timers
      select aggregate_type, aggregate_id, name, tenant_id, due_at from jsonb_populate_recordset(null::timers, guards -> 'timers');
    end if;
    if jsonb_array_length(guards -> 'erased') > 0 then
      insert into ops.subject_keys (tenant_id, subject_id)
      select tenant_id, subject_id from jsonb_to_recordset(guards -> 'erased') as g (tenant_id uuid, subject_id uuid)
      on conflict (tenant_id, subject_id) do update set wrapped_key = null;
    end if;
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
