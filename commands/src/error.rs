//! Why a command was not executed, whatever aggregate it was for.

use std::borrow::Cow;

use domain::billing::meter::Exceeded;
use domain::billing::period::Month;
use domain::{Aggregate, DomainError, Kind, Refusal};
use store::AppendError;
use store::load::LoadError;

/// Why a command was not executed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommandError {
    /// A rule or a guard said no.
    #[error("{detail}")]
    Rejected {
        /// What kind of no.
        kind: Kind,
        /// A stable code for programs.
        code: Cow<'static, str>,
        /// The page under `docs/errors` that explains it.
        page: &'static str,
        /// For people.
        detail: String,
        /// In how many seconds the same command is fine, where that is known.
        retry_after: Option<u32>,
    },
    /// As many mails as a tenant may cause in a day were caused.
    #[error("the tenant may cause {ceiling} mails a day, and has; the next day begins at 00:00 UTC")]
    MailLimit {
        /// How many a day.
        ceiling: u32,
        /// In how many seconds the next day begins.
        retry_after: u32,
    },
    /// A mail was sent to this address a moment ago.
    #[error("a mail was sent to this address just now; the next one can be sent in {retry_after} s")]
    MailPause {
        /// In how many seconds the next one can be sent.
        retry_after: u32,
    },
    /// A meter's limit does not let so much through.
    #[error("{0}")]
    QuotaExceeded(Exceeded),
    /// What was used in this month is final; it can count in the present one only.
    #[error("{0} is closed")]
    PeriodClosed(Month),
    /// A counter is not where the caller has said.
    #[error("a counter has moved")]
    Moved,
    /// Some of several idempotency keys are known.
    #[error("some of the idempotency keys are known already")]
    KeysKnown,
    /// The caller's role lacks a permission.
    #[error("this needs the permission {permission}")]
    Forbidden {
        /// Which.
        permission: &'static str,
    },
    /// The version that the caller has seen is not the current one.
    #[error("the current version is {current}")]
    VersionMismatch {
        /// The current version.
        current: i64,
    },
    /// The idempotency key was used for another request.
    #[error("the idempotency key was used for another request")]
    KeyReused,
    /// Others kept changing the stream.
    #[error("the stream kept changing; try again")]
    Contended,
    /// Too much is waiting; nothing was done.
    #[error("too many requests are waiting; try again shortly")]
    Overloaded,
    /// The log cannot be reached; the command may or may not have been executed.
    #[error("the log cannot be reached; try again with the same idempotency key")]
    Unavailable,
    /// Something is wrong on our side.
    #[error("{0}")]
    Internal(String),
}

impl CommandError {
    /// A rule's own word.
    pub fn rule(error: &impl DomainError) -> Self {
        Self::Rejected {
            kind: error.kind(),
            code: error.code(),
            page: error.page(),
            detail: error.to_string(),
            retry_after: error.retry_after(),
        }
    }

    /// A refusal by the guards, in the aggregate's own words if it has any.
    pub(crate) fn refused<A: Aggregate>(refusal: &Refusal) -> Self {
        match A::refused(refusal) {
            Some(error) => Self::rule(&error),
            None => Self::rule(refusal),
        }
    }

    pub(crate) fn append<A: Aggregate>(error: AppendError) -> Self {
        match error {
            AppendError::Refused(refusal) => Self::refused::<A>(&refusal),
            AppendError::Conflict { .. } => Self::Contended,
            AppendError::KeyReused => Self::KeyReused,
            AppendError::KeysKnown => Self::KeysKnown,
            AppendError::Overloaded => Self::Overloaded,
            AppendError::Unavailable => Self::Unavailable,
            AppendError::Failed(reason) => Self::Internal(reason),
        }
    }
}

impl From<LoadError> for CommandError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Unavailable(source) => {
                tracing::warn!(error = %source, "the log cannot be reached");
                Self::Unavailable
            }
            LoadError::UnknownEvent { .. } | LoadError::Corrupt { .. } => Self::Internal(error.to_string()),
        }
    }
}
