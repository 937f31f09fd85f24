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
