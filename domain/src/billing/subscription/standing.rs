//! What a payment provider's messages come to, in whatever order they arrive.
//!
//! Of each kind of message only the newest counts, and the standing follows from those alone. So it is the same for every order of the same messages, and one that is older
//! than what was heard since changes nothing. Where two are of the same second (providers tell no finer time), being paid prevails.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// How a provider's own subscription stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It is paid for.
    Active,
    /// A payment failed; the provider goes on trying.
    PastDue,
    /// The provider has given up trying.
    Unpaid,
    /// It has ended there; nothing follows that.
    Ended,
}

/// How many removed payment methods are remembered.
const REMOVED: usize = 20;

/// The newest message of each kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Marks {
    /// When it was last in order, because something was paid or because the provider says so.
    paid: Option<DateTime<Utc>>,
    /// When something was last paid.
    pub(super) payment: Option<DateTime<Utc>>,
    failed: Option<DateTime<Utc>>,
    unpaid: Option<DateTime<Utc>>,
    /// Whether it has ended.
    pub(super) ended: bool,
    /// When the payment method was last set, and which; of two at the same time the greater reference counts.
    method: Option<(DateTime<Utc>, String)>,
    /// Which were removed, and when; the last few.
    removed: Vec<(String, DateTime<Utc>)>,
}

impl Marks {
    pub(super) fn note(&mut self, standing: Standing, at: DateTime<Utc>) {
        let newest = |mark: &mut Option<DateTime<Utc>>| *mark = (*mark).max(Some(at));
        match standing {
            Standing::Active => newest(&mut self.paid),
            Standing::PastDue => newest(&mut self.failed),
            Standing::Unpaid => newest(&mut self.unpaid),
            Standing::Ended => self.ended = true,
        }
    }

    pub(super) fn note_payment(&mut self, at: DateTime<Utc>) {
        self.payment = self.payment.max(Some(at));
        self.note(Standing::Active, at);
    }

    /// Whether the method was set later than the one that is known.
    pub(super) fn is_newer(&self, at: DateTime<Utc>, reference: &String) -> bool {
        self.method.as_ref().is_none_or(|known| (at, reference) > (known.0, &known.1))
    }

    /// Not before the method that is known was set.
    pub(super) fn not_before(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        self.method.as_ref().map_or(now, |(at, _)| now.max(*at))
    }

    /// Whether it was heard that the method was removed then, or later.
    pub(super) fn is_removed(&self, reference: &str, at: DateTime<Utc>) -> bool {
        self.removed.iter().any(|(removed, then)| removed == reference && *then >= at)
    }

    pub(super) fn set_method(&mut self, reference: String, at: DateTime<Utc>) {
        self.method = Some((at, reference));
    }

    pub(super) fn remove_method(&mut self, reference: String, at: DateTime<Utc>) {
        self.removed.retain(|(removed, _)| *removed != reference);
        if self.removed.len() == REMOVED {
            self.removed.remove(0);
        }
        self.removed.push((reference, at));
    }

    /// The method that was set last, unless it was removed.
    pub(super) fn method(&self) -> Option<&String> {
        self.method.as_ref().filter(|(at, reference)| !self.is_removed(reference, *at)).map(|(_, reference)| reference)
    }

    /// What they come to.
    pub(super) fn standing(&self) -> Standing {
        if self.ended {
            Standing::Ended
        } else if self.unpaid > self.paid {
            Standing::Unpaid
        } else if self.failed > self.paid {
            Standing::PastDue
        } else {
            Standing::Active
        }
    }
}
