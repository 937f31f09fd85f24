//! Bounds of the mails that people can cause: a pause between two mails to one address, and a ceiling per tenant and day. Without them, a tenant could have strangers written to
//! without end, in the name of the installation.
//!
//! A mail is counted before the event that leads to it is appended, and taken back when nothing was appended: commands that come at once cannot exceed the bounds together.

use chrono::{DateTime, Days, NaiveDate, NaiveTime, TimeDelta, Utc};
use domain::aggregate::MailCause;
use domain::{Actor, TenantId};
use store::Store;

use crate::error::CommandError;

/// Mails of each cause that a tenant may have sent in a day (UTC), unless the operator allows another number.
pub const DAILY: u32 = 300;
/// The pause after the first mail to an address. Each further one doubles it, up to [`LONGEST_PAUSE`].
pub const PAUSE: TimeDelta = TimeDelta::seconds(60);
/// The longest pause between two mails to an address. After so long without a mail, the next one counts as the first.
pub const LONGEST_PAUSE: TimeDelta = TimeDelta::hours(24);

/// Mails that were counted.
pub(crate) struct Counted {
    tenant: TenantId,
    day: NaiveDate,
    cause: MailCause,
    mails: i32,
}

/// Whether mails of this cause count when this actor causes them: those of the platform do not, nor those of Tenure's own policies.
pub(crate) fn counts(cause: &MailCause, actor: &Actor) -> bool {
    match (cause, actor) {
        (MailCause::Anybody, _) => true,
        (MailCause::Members { .. }, Actor::System { .. }) => false,
        (MailCause::Members { .. }, Actor::User { .. } | Actor::Service { .. } | Actor::Device { .. }) => {
            actor.tenant() != Some(TenantId::SYSTEM)
        }
    }
}

/// Counts mails, unless that would exceed the ceiling, or the address of the first one had a mail a moment ago.
pub(crate) async fn count(store: &Store, tenant: TenantId, cause: MailCause, mails: i32, ceiling: u32) -> Result<Counted, CommandError> {
    let now = store.clock().now();
    pause(store, tenant, &cause, now).await?;
    let day = now.date_naive();
    let counted: Option<i32> = sqlx::query_scalar(
        "insert into ops.mails_caused (tenant_id, day, cause, mails) select $1, $2, $3, $4 where $4 <= $5
         on conflict (tenant_id, day, cause) do update set mails = mails_caused.mails + excluded.mails
         where mails_caused.mails + excluded.mails <= $5 returning mails",
    )
    .bind(tenant.0)
    .bind(day)
    .bind(cause.as_str())
    .bind(mails)
    .bind(i32::try_from(ceiling).unwrap_or(i32::MAX))
    .fetch_optional(store.pool())
    .await
    .map_err(unavailable)?;
    if counted.is_some() {
        return Ok(Counted { tenant, day, cause, mails });
    }
    end_pause(store, tenant, &cause).await;
    let next = day.checked_add_days(Days::new(1)).unwrap_or(day).and_time(NaiveTime::MIN).and_utc();
    Err(CommandError::MailLimit { ceiling, retry_after: seconds(next - now).max(1) })
}

/// Takes back what was counted for mails that are not sent after all.
pub(crate) async fn take_back(store: &Store, Counted { tenant, day, cause, mails }: Counted) {
    end_pause(store, tenant, &cause).await;
    let taken_back =
        sqlx::query("update ops.mails_caused set mails = greatest(mails - $4, 0) where tenant_id = $1 and day = $2 and cause = $3")
            .bind(tenant.0)
            .bind(day)
            .bind(cause.as_str())
            .bind(mails)
            .execute(store.pool())
            .await;
    if let Err(error) = taken_back {
        tracing::warn!(%error, "mails that are not sent after all count until the end of the day");
    }
}

/// Begins the pause after a mail to the address, unless the one before has not ended.
async fn pause(store: &Store, tenant: TenantId, cause: &MailCause, now: DateTime<Utc>) -> Result<(), CommandError> {
    let Some(address) = hash(store, tenant, cause) else { return Ok(()) };
    // The row that is there is given back where it still pauses: nothing is set then.
    let (began, until): (bool, DateTime<Utc>) = sqlx::query_as(
        "with begun as (
           insert into ops.mail_pauses as p (tenant_id, address, mails, until) values ($1, $2, 1, $3 + $4 * interval '1 second')
           on conflict (tenant_id, address) do update
           set mails = case when p.until + $5 * interval '1 second' < $3 then 1 else p.mails + 1 end,
               until = $3 + case when p.until + $5 * interval '1 second' < $3 then $4 else least($4 * 2 ^ least(p.mails, 30), $5) end * interval '1 second'
           where p.until <= $3
           returning until)
         select true, until from begun union all select false, until from ops.mail_pauses where tenant_id = $1 and address = $2 and not exists (select from begun)",
    )
    .bind(tenant.0)
    .bind(address.as_slice())
    .bind(now)
    .bind(f64::from(u32::try_from(PAUSE.num_seconds()).unwrap_or(u32::MAX)))
    .bind(f64::from(u32::try_from(LONGEST_PAUSE.num_seconds()).unwrap_or(u32::MAX)))
    .fetch_optional(store.pool())
    .await
    .map_err(unavailable)?
    // Another request began one at this moment, which this statement does not see.
    .unwrap_or((false, now + PAUSE));
    if began { Ok(()) } else { Err(CommandError::MailPause { retry_after: seconds(until - now).max(1) }) }
}

/// Ends the pause after a mail that is not sent after all.
async fn end_pause(store: &Store, tenant: TenantId, cause: &MailCause) {
    let Some(address) = hash(store, tenant, cause) else { return };
    let ended = sqlx::query("update ops.mail_pauses set mails = mails - 1, until = $3 where tenant_id = $1 and address = $2 and mails > 0")
        .bind(tenant.0)
        .bind(address.as_slice())
        .bind(store.clock().now())
        .execute(store.pool())
        .await;
    if let Err(error) = ended {
        tracing::warn!(%error, "an address has a pause after a mail that was not sent");
    }
}

fn hash(store: &Store, tenant: TenantId, cause: &MailCause) -> Option<[u8; 32]> {
    match cause {
        MailCause::Members { address } => {
            address.as_ref().map(|address| store.mac("mail pause", &[tenant.0.as_bytes(), address.as_bytes()]))
        }
        MailCause::Anybody => None,
    }
}

/// Whole seconds, rounded up.
fn seconds(time: TimeDelta) -> u32 {
    u32::try_from(time.num_milliseconds().max(0).unsigned_abs().div_ceil(1000)).unwrap_or(u32::MAX)
}

#[expect(clippy::needless_pass_by_value, reason = "the signature of map_err")]
fn unavailable(error: sqlx::Error) -> CommandError {
    tracing::warn!(%error, "mails cannot be counted");
    CommandError::Unavailable
}
