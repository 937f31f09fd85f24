-- What bounds the parties that use the installation: guesses at passwords, and mails that people cause. Counted beside the log, since most of it is nobody's history.

-- Guesses at a password that were not followed by the right one. An attempt is counted before the password is looked at, so that no crowd of them comes through at once.
create table ops.login_attempts (
  tenant_id uuid        not null,
  account   bytea       not null,                -- a keyed hash of the address, whether or not there is such a user
  origin    bytea       not null,                -- a keyed hash of a network address, a known device or a session; empty: all network addresses together
  failures  int         not null,
  since     timestamptz not null,                -- they count from then on, for a while
  primary key (tenant_id, account, origin)
);
create index on ops.login_attempts (since);

-- Mails that people have caused, per tenant and day (UTC).
create table ops.mails_caused (
  tenant_id uuid not null,
  day       date not null,
  cause     text not null,                       -- 'members' of the tenant by commands, or 'anybody' without being signed in
  mails     int  not null,
  primary key (tenant_id, day, cause)
);

grant select, insert, update, delete on ops.login_attempts, ops.mails_caused to tenure_writer;
