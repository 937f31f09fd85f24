//! Guesses at passwords: counted by account and by where they come from, so that guessing slows down the guesser and nobody else.
//!
//! Ten wrong passwords in a quarter of an hour from one network address end what that address may try on that account, until the quarter of an hour has passed. All network
//! addresses together have a hundred, against those who have many. A device on which somebody has logged in before ([`crate::known_devices`]) and a session have counts of
//! their own: no guess from elsewhere counts against them.

use chrono::{DateTime, Utc};
use domain::identity::user::{LOCK, MAX_FAILURES, fold_email};
use domain::{StreamId, TenantId};
use uuid::Uuid;

use crate::source::Source;
use crate::{Access, AccessError};

/// Wrong passwords for one account from all network addresses together.
pub const MAX_FAILURES_OF_ALL: u32 = 10 * MAX_FAILURES;
/// What is common to all network addresses.
const ALL: &[u8] = &[];
/// How much of a keyed hash tells accounts and origins apart.
const DIGEST: usize = 16;

/// The account that somebody tries to get into, whether or not there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Account {
    pub(crate) tenant: TenantId,
    digest: [u8; DIGEST],
}

impl Account {
    /// A number for the account's lane in queues.
    pub(crate) fn lane(&self) -> u64 {
        self.digest.iter().take(8).fold(0, |lane, byte| lane << 8 | u64::from(*byte))
    }
}

/// Where an attempt comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    /// A network address.
    Source(Source),
    /// A device on which the account's owner has logged in before.
    Device(Uuid),
    /// A session of the account's owner.
    Session(Uuid),
}

/// An attempt that was counted.
pub(crate) struct Attempt {
    account: Account,
    origin: Vec<u8>,
    is_source: bool,
    /// Whether it is the last one that is looked at.
    pub(crate) is_last: bool,
}

impl Access {
    /// The account of an address in a tenant.
    pub(crate) fn account(&self, tenant: TenantId, email: &str) -> Account {
        Account { tenant, digest: self.digest("login account", &[tenant.0.as_bytes(), fold_email(email).as_bytes()]) }
    }

    /// The account of a user whose address is not known any more.
    pub(crate) fn account_of(&self, user: StreamId) -> Account {
        Account { tenant: user.tenant, digest: self.digest("login account", &[user.tenant.0.as_bytes(), user.id.as_bytes()]) }
    }

    fn digest(&self, domain: &'static str, parts: &[&[u8]]) -> [u8; DIGEST] {
        let code = self.store().mac(domain, parts);
        std::array::from_fn(|at| code[at])
    }

    fn origin(&self, origin: Origin) -> Vec<u8> {
        match origin {
            Origin::Source(source) => self.digest("login from an address", &[&source.bytes()]).to_vec(),
            Origin::Device(device) => self.digest("login from a device", &[device.as_bytes()]).to_vec(),
            Origin::Session(session) => self.digest("login from a session", &[session.as_bytes()]).to_vec(),
        }
    }

    /// Counts an attempt before its password is looked at; `None` where no more are looked at for a while.
    pub(crate) async fn attempt_from(&self, account: Account, origin: Origin) -> Result<Option<Attempt>, AccessError> {
        let now = self.store().clock().now();
        let (is_source, origin) = (matches!(origin, Origin::Source(_)), self.origin(origin));
        let mut counted: Vec<&[u8]> = if is_source { vec![ALL] } else { vec![] };
        counted.push(&origin);
        // A guesser who goes on costs the database nothing.
        if counted.iter().any(|origin| self.inner.shut.get(&(account, origin.to_vec())).is_some_and(|until| now < until)) {
            return Ok(None);
        }
        let counts: Vec<(Vec<u8>, i32, DateTime<Utc>)> = sqlx::query_as(
            "insert into ops.login_attempts (tenant_id, account, origin, failures, since) select $1, $2, origin, 1, $4 from unnest($3::bytea[]) origin
             on conflict (tenant_id, account, origin) do update set
               failures = case when login_attempts.since > $5 then least(login_attempts.failures + 1, 1000000) else 1 end,
               since = case when login_attempts.since > $5 then login_attempts.since else $4 end
             returning origin, failures, since",
        )
        .bind(account.tenant.0)
        .bind(account.digest.as_slice())
        .bind(&counted)
        .bind(now)
        .bind(now - LOCK)
        .fetch_all(self.store().pool())
        .await?;
        let (mut is_last, mut refused) = (false, false);
        for (origin, failures, since) in counts {
            let (failures, most) = (u32::try_from(failures).unwrap_or(0), if origin == ALL { MAX_FAILURES_OF_ALL } else { MAX_FAILURES });
            is_last |= failures == most;
            if failures > most {
                refused = true;
                self.inner.shut.insert((account, origin), since + LOCK);
            }
        }
        let attempt = Attempt { account, origin, is_source, is_last };
        if refused {
            // One that is not looked at counts nowhere.
            self.take_back(&attempt, false).await?;
            return Ok(None);
        }
        Ok(Some(attempt))
    }

    /// Takes an attempt back: its password was right, which makes good those before it from there; or it was not looked at.
    pub(crate) async fn take_back(&self, attempt: &Attempt, was_right: bool) -> Result<(), AccessError> {
        if was_right {
            self.inner.shut.remove(&(attempt.account, attempt.origin.clone()));
        }
        let all: &[u8] = if attempt.is_source { ALL } else { &attempt.origin };
        sqlx::query(
            "update ops.login_attempts set failures = case when origin = $3 and $5 then 0 else greatest(failures - 1, 0) end
             where tenant_id = $1 and account = $2 and origin in ($3, $4)",
        )
        .bind(attempt.account.tenant.0)
        .bind(attempt.account.digest.as_slice())
        .bind(&attempt.origin)
        .bind(all)
        .bind(was_right)
        .execute(self.store().pool())
        .await?;
        Ok(())
    }

    /// [`Access::take_back`] for a right password. Whoever knows it is let in, also where the count cannot be corrected.
    pub(crate) async fn make_good(&self, attempt: &Attempt) {
        if let Err(error) = self.take_back(attempt, true).await {
            tracing::warn!(%error, "attempts before a right password cannot be taken back");
        }
    }

    /// Begins all counts of an account again: its owner has shown to be who they are by other means.
    pub(crate) async fn forget_attempts(&self, account: Account) -> Result<(), AccessError> {
        let gone: Vec<Vec<u8>> =
            sqlx::query_scalar("delete from ops.login_attempts where tenant_id = $1 and account = $2 returning origin")
                .bind(account.tenant.0)
                .bind(account.digest.as_slice())
                .fetch_all(self.store().pool())
                .await?;
        gone.into_iter().for_each(|origin| drop(self.inner.shut.remove(&(account, origin))));
        Ok(())
    }
}
