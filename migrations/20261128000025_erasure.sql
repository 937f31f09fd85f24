-- What operational tables say of a person goes with the person's key, in the transaction that destroys it, whichever way leads there. See docs/adr/0035.

create index deliveries_subject on ops.deliveries (tenant_id, subject_id);
-- Which personal API keys a person has made.
create index events_api_key_created on events (tenant_id) where event_type = 'api_key.created';

-- `changed` has the rows of the statement: one deletion for each table, also when a tenant with many people ends.
create function ops.forget_subjects() returns trigger language plpgsql as $$
begin
  if not exists (select from changed where wrapped_key is null) then
    return null;
  end if;
  delete from ops.sessions s using changed k where k.wrapped_key is null and s.tenant_id = k.tenant_id and s.user_id = k.subject_id;
  delete from ops.credentials c using changed k
  where k.wrapped_key is null and c.tenant_id = k.tenant_id and c.owner_id = k.subject_id and coalesce(c.owner_type, 'user') = 'user';
  delete from ops.deliveries d using changed k where k.wrapped_key is null and d.tenant_id = k.tenant_id and d.subject_id = k.subject_id and d.kind = 'mail';
  -- Whom a payment provider's message names cannot be told without reading it. One that waits is still needed.
  update ops.provider_events p set body = null from (select distinct tenant_id from changed where wrapped_key is null) k
  where p.tenant_id = k.tenant_id and p.body is not null and p.outcome <> 'waiting';
  return null;
end $$;
create trigger subject_keys_made after insert on ops.subject_keys referencing new table as changed for each statement execute function ops.forget_subjects();
create trigger subject_keys_changed after update on ops.subject_keys referencing new table as changed for each statement execute function ops.forget_subjects();

-- What a policy forgets, soon after the erasing command: the secrets and the use of a person's API keys, which only the log knows to be theirs.
create function ops.forget_keys_of(tenant uuid, subjects uuid[]) returns void language plpgsql as $$
declare
  keys uuid[];
begin
  select array_agg(split_part(e.aggregate_id, '/', 2)::uuid) into keys from events e
  where e.tenant_id = tenant and e.event_type = 'api_key.created' and e.payload ->> 'kind' = 'personal' and (e.payload ->> 'owner')::uuid = any(subjects);
  delete from ops.credentials c where c.tenant_id = tenant and c.owner_id = any(keys) and c.owner_type = 'api_key';
  delete from ops.api_key_use u where u.tenant_id = tenant and u.key_id = any(keys);
end $$;

-- Everything of a tenant that is gone.
create function ops.forget_tenant(tenant uuid) returns void language plpgsql as $$
begin
  delete from ops.sessions where tenant_id = tenant;
  delete from ops.credentials where tenant_id = tenant;
  delete from ops.api_key_use where tenant_id = tenant;
  delete from ops.device_heartbeats where tenant_id = tenant;
  delete from ops.deliveries where tenant_id = tenant;
  delete from ops.policy_refusals where tenant_id = tenant;
  delete from ops.login_attempts where tenant_id = tenant;
  delete from ops.mails_caused where tenant_id = tenant;
  delete from ops.kept_answers where tenant_id = tenant;
  -- That a message was taken in stays known, so that it is not taken in again.
  update ops.provider_events set body = null, customer = null where tenant_id = tenant;
  delete from ops.timer_leases where starts_with(aggregate_id, tenant::text || '/');
end $$;
revoke execute on function ops.forget_subjects, ops.forget_keys_of, ops.forget_tenant from public;
grant execute on function ops.forget_subjects, ops.forget_keys_of, ops.forget_tenant to tenure_writer;

-- Erasures from here on are answered by the policy; earlier ones here.
insert into ops.policies (name, position, log_hash, epoch) select 'erasure', position, log_hash, 0 from log_head;
update ops.subject_keys set wrapped_key = null where wrapped_key is null;
select ops.forget_keys_of(tenant_id, array_agg(subject_id)) from ops.subject_keys where wrapped_key is null group by tenant_id;
select ops.forget_tenant(tenant_id) from tenant_heads where gate = 'deleted';
