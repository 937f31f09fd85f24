//! Subscriptions: by id, listed by status and plan, what is going to happen to them, trials that end.

use chrono::{DateTime, Utc};
use domain::billing::meter::Meter;
use domain::billing::money::Money;
use domain::billing::period::{Billing, Interval, Period};
use domain::billing::subscription::{Event, PauseReason, Pinned, Status, Subscription};
use domain::{StreamId, TenantId};
use serde::{Deserialize, Serialize};
use serde_json::json;
use store::Recorded;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::cursor::CursorKey;
use crate::list::{self, Column, Orders, Page, Paging};
use crate::model::{ReadModel, StreamKey};
use crate::query::{QueryError, Read};
use crate::row::Doc;
use crate::sql::Sql;

/// The read model.
pub struct Subscriptions;

/// What is going to happen to a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Upcoming {
    /// It gets another plan.
    PlanChange,
    /// It ends.
    Cancellation,
}

/// A subscription as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Subscription)]
pub struct Row {
    /// Whose.
    pub tenant_id: TenantId,
    /// Its id.
    pub id: Uuid,
    /// Its version, as in the `ETag`.
    #[schema(example = 2)]
    pub version: i64,
    /// Where it stands.
    pub status: Status,
    /// To what: the plan's code …
    #[schema(example = "growth")]
    pub plan: String,
    /// … and its version.
    #[schema(example = 1)]
    pub plan_version: u32,
    /// What one of it costs for a period.
    pub price: Money,
    /// How long a period is.
    pub interval: Interval,
    /// How many times.
    #[schema(example = 1)]
    pub quantity: u32,
    /// Where its periods begin.
    pub billing: Billing,
    /// By whose calendar and clock.
    #[schema(example = "UTC")]
    pub time_zone: String,
    /// When its trial ends or ended, if it had one.
    pub trial_ends_at: Option<DateTime<Utc>>,
    /// When its present period began.
    pub period_start: Option<DateTime<Utc>>,
    /// When its present period ends.
    pub period_end: Option<DateTime<Utc>>,
    /// Why it is paused, if it is.
    pub pause_reason: Option<PauseReason>,
    /// What is going to happen to it, if that is known.
    pub upcoming: Option<Upcoming>,
    /// The plan that it is going to have.
    #[schema(example = "growth")]
    pub upcoming_plan: Option<String>,
    /// When that happens.
    pub upcoming_at: Option<DateTime<Utc>>,
    /// The meters of which more was used than its plan gives, or will give, when that was decided.
    pub over_limit: Vec<Meter>,
    /// Whether there is something to pay with.
    pub payable: bool,
    /// The payment provider, if one collects the payments.
    #[schema(example = "stripe")]
    pub provider: Option<String>,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

impl Row {
    fn pin(&mut self, pinned: &Pinned) {
        self.plan.clone_from(&pinned.code);
        self.plan_version = pinned.version;
        self.price = pinned.terms.price;
        self.interval = pinned.terms.interval;
    }

    fn enter(&mut self, period: Option<Period>) {
        if let Some(period) = period {
            (self.period_start, self.period_end) = (Some(period.start), Some(period.end));
        }
    }

    fn expect(&mut self, upcoming: Option<(Upcoming, Option<&str>, DateTime<Utc>)>) {
        self.upcoming = upcoming.map(|(what, ..)| what);
        self.upcoming_plan = upcoming.and_then(|(_, plan, _)| plan.map(str::to_owned));
        self.upcoming_at = upcoming.map(|(.., at)| at);
    }

    fn become_(&mut self, status: Status) {
        self.status = status;
        self.pause_reason = None;
    }

    fn end(&mut self, status: Status, at: DateTime<Utc>) {
        self.become_(status);
        self.expect(None);
        self.ended_at = Some(at);
    }
}

fn begun(key: &StreamKey, event: &Recorded<Event>) -> Option<Row> {
    let Event::Started { pinned, quantity, billing, time_zone, trial, period } = &event.event else { return None };
    Some(Row {
        tenant_id: key.tenant_id,
        id: key.id,
        version: 0,
        status: if trial.is_some() { Status::Trialing } else { Status::Active },
        plan: pinned.code.clone(),
        plan_version: pinned.version,
        price: pinned.terms.price,
        interval: pinned.terms.interval,
        quantity: *quantity,
        billing: *billing,
        time_zone: time_zone.to_string(),
        trial_ends_at: trial.map(|trial| trial.ends_at),
        period_start: period.map(|period| period.start),
        period_end: period.map(|period| period.end),
        pause_reason: None,
        upcoming: None,
        upcoming_plan: None,
        upcoming_at: None,
        over_limit: vec![],
        payable: false,
        provider: None,
        started_at: event.recorded_at,
        ended_at: None,
        updated_at: event.recorded_at,
    })
}

fn evolve(row: &mut Row, event: &Event) {
    match event {
        Event::Started { .. }
        | Event::TrialEnding { .. }
        | Event::PaymentSucceeded { .. }
        | Event::PaymentFailed { .. }
        | Event::StandingReported { .. }
        | Event::PaymentRefunded { .. }
        | Event::PaymentDisputed { .. }
        | Event::DisputeClosed { .. }
        | Event::LimitsHeld { .. }
        | Event::LimitsReleased { .. }
        | Event::CustomerLinked { .. } => {}
        Event::TrialExtended { trial } => row.trial_ends_at = Some(trial.ends_at),
        Event::TrialConverted { period } | Event::Resumed { period } => {
            row.become_(Status::Active);
            row.enter(Some(*period));
        }
        Event::Activated { period } => {
            row.become_(Status::Active);
            row.enter(*period);
        }
        Event::Paused { reason, at: _ } => {
            row.become_(Status::Paused);
            row.pause_reason = Some(*reason);
            row.expect(None);
            row.over_limit.clear();
        }
        Event::PlanChanged { from: _, pinned, proration: _, period, over_limit } => {
            row.pin(pinned);
            row.enter(*period);
            row.over_limit.clone_from(over_limit);
            row.expect(None);
        }
        Event::PlanChangeScheduled { pinned, at, over_limit } => {
            row.expect(Some((Upcoming::PlanChange, Some(&pinned.code), *at)));
            row.over_limit.clone_from(over_limit);
        }
        Event::ScheduledChangeCancelled => {
            row.expect(None);
            row.over_limit.clear();
        }
        Event::QuantityChanged { to, .. } => row.quantity = *to,
        Event::ChangeDeclined { pinned, quantity, period } => {
            row.pin(pinned);
            row.quantity = *quantity;
            row.enter(*period);
        }
        Event::PeriodRenewed { period } => row.enter(Some(*period)),
        Event::CancelScheduled { at } => {
            row.become_(Status::CancelScheduled);
            row.expect(Some((Upcoming::Cancellation, None, *at)));
        }
        Event::Uncancelled => {
            row.become_(Status::Active);
            row.expect(None);
        }
        Event::Cancelled { at } => row.end(Status::Cancelled, *at),
        Event::Expired { at } => row.end(Status::Expired, *at),
        Event::BecamePastDue => row.become_(Status::PastDue),
        Event::MarkedUnpaid { .. } => row.become_(Status::Unpaid),
        Event::PaymentMethodSet { in_use, .. } | Event::PaymentMethodRemoved { in_use, .. } => row.payable = in_use.is_some(),
        Event::ProviderLinked { provider, subscription: _ } => row.provider = Some(provider.clone()),
    }
}

impl ReadModel for Subscriptions {
    const NAME: &'static str = "subscriptions_v1";
    type Events = Subscription;
    type Key = StreamKey;
    type Row = Row;

    fn keys(event: &Recorded<Event>) -> Vec<StreamKey> {
        StreamKey::of(event)
    }

    fn apply(key: &StreamKey, row: Option<Row>, event: &Recorded<Event>) -> Option<Row> {
        let mut row = begun(key, event).or(row)?;
        evolve(&mut row, &event.event);
        Some(Row { version: event.version, updated_at: event.recorded_at, ..row })
    }
}

/// Which subscriptions a list shows; all that is given must hold.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Filter {
    /// In this status.
    pub status: Option<Status>,
    /// To this plan.
    pub plan: Option<String>,
}

/// In which order.
pub const ORDERS: Orders =
    Orders { columns: &[Column { name: "started_at", sql: "started_at", kind: "timestamptz" }], tie: ("id", "uuid") };
/// In which order what is going to happen is listed.
pub const UPCOMING: Orders =
    Orders { columns: &[Column { name: "upcoming_at", sql: "upcoming_at", kind: "timestamptz" }], tie: ("id", "uuid") };
/// In which order trials are listed.
pub const TRIALS: Orders =
    Orders { columns: &[Column { name: "trial_ends_at", sql: "trial_ends_at", kind: "timestamptz" }], tie: ("id", "uuid") };

/// One subscription, if it exists and the view may see it.
pub async fn by_id(read: &mut Read, stream: StreamId) -> Result<Option<Doc<Row>>, QueryError> {
    read.one(Sql::rows(Subscriptions::NAME).push(" and tenant_id = ").bind(stream.tenant).push(" and id = ").bind(stream.id)).await
}

/// One page of the subscriptions that the view may see and the filter lets pass.
pub async fn list(read: &mut Read, cursors: &CursorKey, filter: &Filter, paging: &Paging) -> Result<Page<Row>, QueryError> {
    let mut query = list::select(Subscriptions::NAME, paging);
    if let Some(status) = filter.status {
        query.push(" and status = ").bind(status.as_str());
    }
    if let Some(plan) = &filter.plan {
        query.push(" and plan = ").bind(plan);
    }
    list::page(read, cursors, query, &json!([Subscriptions::NAME, filter]).to_string(), paging).await
}

/// One page of those to which something is going to happen before a time.
pub async fn upcoming(
    read: &mut Read,
    cursors: &CursorKey,
    before: Option<DateTime<Utc>>,
    paging: &Paging,
) -> Result<Page<Row>, QueryError> {
    let mut query = list::select(Subscriptions::NAME, paging);
    query.push(" and upcoming is not null");
    if let Some(before) = before {
        query.push(" and upcoming_at < ").bind(before);
    }
    list::page(read, cursors, query, &json!([Subscriptions::NAME, "upcoming", before]).to_string(), paging).await
}

/// One page of the trials that end before a time.
pub async fn trials(read: &mut Read, cursors: &CursorKey, before: Option<DateTime<Utc>>, paging: &Paging) -> Result<Page<Row>, QueryError> {
    let mut query = list::select(Subscriptions::NAME, paging);
    query.push(" and status = 'trialing'");
    if let Some(before) = before {
        query.push(" and trial_ends_at < ").bind(before);
    }
    list::page(read, cursors, query, &json!([Subscriptions::NAME, "trials", before]).to_string(), paging).await
}
