//! Personal data in events.
//!
//! In Rust and in rules a [`Personal`] is a value or `Erased`. As JSON it is an object with one of three reserved keys, so that the store can find it in any event
//! without knowing its type:
//!
//! * `{"$personal": {"subject": …, "value": …}}` in memory only: the store seals it before an event is hashed, and refuses to write one that is not sealed;
//! * `{"$sealed": {"subject": …, "data": …}}` in the log, on the bus and in exports;
//! * `{"$erased": {"subject": …}}` what folds meet after the subject's key was destroyed.
//!
//! Free-form JSON from outside may therefore not contain keys that begin with `$` (see [`crate::json::JsonObject`]).

use serde::{Deserialize, Serialize};

use crate::ids::SubjectId;

/// The reserved key of a value in clear.
pub const PERSONAL: &str = "$personal";
/// The reserved key of a sealed value.
pub const SEALED: &str = "$sealed";
/// The reserved key of a value whose subject was erased.
pub const ERASED: &str = "$erased";

/// A value that is about a person and can be erased.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Personal<T> {
    /// The value.
    #[serde(rename = "$personal")]
    Known {
        /// Whom it is about.
        subject: SubjectId,
        /// What it says.
        value: T,
    },
    /// Its subject's key was destroyed.
    #[serde(rename = "$erased")]
    Erased {
        /// Whom it was about.
        subject: SubjectId,
    },
}

impl<T> Personal<T> {
    /// A value about `subject`.
    pub fn new(subject: SubjectId, value: T) -> Self {
        Self::Known { subject, value }
    }

    /// The value, unless erased.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known { value, .. } => Some(value),
            Self::Erased { .. } => None,
        }
    }

    /// Whom it is or was about.
    pub fn subject(&self) -> SubjectId {
        match self {
            Self::Known { subject, .. } | Self::Erased { subject } => *subject,
        }
    }
}
