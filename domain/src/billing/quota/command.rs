//! What is asked of quotas, by Tenure itself only, and why it may be refused.

use serde::{Deserialize, Serialize};

use crate::billing::meter::Meter;
use crate::billing::period::Month;

/// Looks at how much of a quota is used, and says so where somebody should know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AssessQuota {
    /// Of which meter.
    pub meter: Meter,
    /// In which month.
    pub period: Month,
}

crate::bare_commands! {
    /// Closes a month: what was used in it is final.
    ClosePeriod
}

crate::commands! { "quota":
    Assess(AssessQuota) "assess", "assess";
    Close(ClosePeriod) "close_period", "close";
}

crate::errors! {
    /// Why a quota refuses.
    Error {
        /// Nothing was used in that month.
        NotOpened: NotFound "quota.not_opened", "nothing was used in this month";
        /// Its time has not come.
        NotDue: Conflict "quota.not_due", "the month takes in what was used in it still";
    }
}
