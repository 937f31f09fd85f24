-- How long no other mail goes to an address, per tenant. By the address and not by the user: a user can be deleted and invited again, or change the address back and forth.
create table ops.mail_pauses (
  tenant_id uuid        not null,
  address   bytea       not null,                -- a keyed hash
  mails     int         not null,                -- sent in a row; each pause is twice as long as the one before
  until     timestamptz not null,
  primary key (tenant_id, address)
);
create index on ops.mail_pauses (until);

grant select, insert, update, delete on ops.mail_pauses to tenure_writer;

-- Everything of a tenant that is gone.
create or replace function ops.forget_tenant(tenant uuid) returns void language plpgsql as $$
begin
  delete from ops.sessions where tenant_id = tenant;
  delete from ops.credentials where tenant_id = tenant;
  delete from ops.api_key_use where tenant_id = tenant;
  delete from ops.device_heartbeats where tenant_id = tenant;
  delete from ops.deliveries where tenant_id = tenant;
  delete from ops.policy_refusals where tenant_id = tenant;
  delete from ops.login_attempts where tenant_id = tenant;
  delete from ops.mails_caused where tenant_id = tenant;
  delete from ops.mail_pauses where tenant_id = tenant;
  delete from ops.kept_answers where tenant_id = tenant;
  -- That a message was taken in stays known, so that it is not taken in again.
  update ops.provider_events set body = null, customer = null where tenant_id = tenant;
  delete from ops.timer_leases where starts_with(aggregate_id, tenant::text || '/');
end $$;
