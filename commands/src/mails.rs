//! The ceiling of mails that people can cause per tenant and day. Without one, a tenant could have strangers written to without end, in the name of the installation.
//!
//! A mail is counted before the event that leads to it is appended, and taken back when nothing was appended: commands that come at once cannot exceed the ceiling together.

use chrono::{DateTime, Days, NaiveDate, NaiveTime, Utc};
use domain::aggregate::MailCause;
use domain::{Actor, TenantId};
use sqlx::PgPool;

use crate::error::CommandError;

/// Mails of each cause that a tenant may have sent in a day (UTC), unless something else is said.
pub const DAILY: u32 = 300;

/// Mails that were counted.
pub(crate) struct Counted {
    tenant: TenantId,
    day: NaiveDate,
    cause: MailCause,
    mails: i32,
}

/// Whether mails of this cause count when this actor causes them: those of the platform do not, nor those of Tenure's own policies.
pub(crate) fn counts(cause: MailCause, actor: &Actor) -> bool {
    match (cause, actor) {
        (MailCause::Anybody, _) => true,
        (MailCause::Members, Actor::System { .. }) => false,
        (MailCause::Members, Actor::User { .. } | Actor::Service { .. } | Actor::Device { .. }) => actor.tenant() != Some(TenantId::SYSTEM),
    }
}

/// Counts mails, unless that would exceed the ceiling.
pub(crate) async fn count(
    pool: &PgPool,
    tenant: TenantId,
    cause: MailCause,
    mails: i32,
    ceiling: u32,
    now: DateTime<Utc>,
) -> Result<Counted, CommandError> {
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
    .fetch_optional(pool)
    .await
    .map_err(unavailable)?;
    if counted.is_some() {
        return Ok(Counted { tenant, day, cause, mails });
    }
    let next = day.checked_add_days(Days::new(1)).unwrap_or(day).and_time(NaiveTime::MIN).and_utc();
    Err(CommandError::MailLimit { ceiling, retry_after: u32::try_from((next - now).num_seconds().max(1)).unwrap_or(1) })
}

/// Takes back what was counted for mails that are not sent after all.
pub(crate) async fn take_back(pool: &PgPool, Counted { tenant, day, cause, mails }: Counted) {
    let taken_back =
        sqlx::query("update ops.mails_caused set mails = greatest(mails - $4, 0) where tenant_id = $1 and day = $2 and cause = $3")
            .bind(tenant.0)
            .bind(day)
            .bind(cause.as_str())
            .bind(mails)
            .execute(pool)
            .await;
    if let Err(error) = taken_back {
        tracing::warn!(%error, "mails that are not sent after all count until the end of the day");
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the signature of map_err")]
fn unavailable(error: sqlx::Error) -> CommandError {
    tracing::warn!(%error, "mails cannot be counted");
    CommandError::Unavailable
}
