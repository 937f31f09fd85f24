-- Writes a batch that was decided without reading anything: upon what the last one left behind, and upon assumptions (at which version a stream is, that keys are new), which
-- are checked here under the head's lock. 0: the head has moved; 1: written; 2: an assumption does not hold. Only 1 changes anything.
create function append_assuming(
  a_type text[], a_id text[], a_sequence bigint[], expected_hash bytea,
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
  perform append_batch(expected, new_position, new_log_hash, e_event_id, e_tenant, e_type, e_id, e_sequence, e_event_type, e_event_version, e_payload, e_metadata, e_recorded_at,
    e_digest, e_tenant_hash, e_log_hash, t_tenant, t_position, t_hash, t_gate, k_tenant, k_scope, k_key, k_fingerprint, k_id, k_version, k_position, k_created, k_recorded_at, guards);
  return 1;
end $$;
revoke execute on function append_assuming from public;
grant execute on function append_assuming to tenure_writer;
