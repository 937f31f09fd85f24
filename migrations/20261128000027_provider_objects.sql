-- Why a provider's message had no effect, and the invoice, the charge and the payment that it names: what is heard of a charge later names nothing else.
alter table ops.provider_events add column reason text, add column names text[] not null default '{}';
create index provider_events_names on ops.provider_events using gin (names);
-- A tenant's subscriptions, whose customers at a payment provider are told of it.
create index events_subscription_started on events (tenant_id) where event_type = 'subscription.started';

-- Everything of a tenant that is gone.
create or replace function ops.forget_tenant(tenant uuid) returns void language plpgsql as $$
begin
  delete from ops.sessions where tenant_id = tenant;
  delete from ops.credentials where tenant_id = tenant;
  delete from ops.api_key_use where tenant_id = tenant;
  delete from ops.device_heartbeats where tenant_id = tenant;
  -- A payment provider still has to be told that the tenant is gone; such a delivery names nothing but ids.
  delete from ops.deliveries where tenant_id = tenant and not (kind = 'payment' and state = 'pending');
  delete from ops.policy_refusals where tenant_id = tenant;
  delete from ops.login_attempts where tenant_id = tenant;
  delete from ops.mails_caused where tenant_id = tenant;
  delete from ops.mail_pauses where tenant_id = tenant;
  delete from ops.kept_answers where tenant_id = tenant;
  -- That a message was taken in stays known, so that it is not taken in again.
  update ops.provider_events set body = null, customer = null, names = '{}' where tenant_id = tenant;
  delete from ops.timer_leases where starts_with(aggregate_id, tenant::text || '/');
end $$;
