//! How rules refuse.

use std::borrow::Cow;

/// What kind of refusal an error is; each kind has one HTTP status, decided in the `api` crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request makes no sense whatever the state (422).
    Invalid,
    /// The caller may not (403).
    Forbidden,
    /// There is no such thing, or none that the caller may see (404).
    NotFound,
    /// The state does not allow it now (409).
    Conflict,
    /// A limit of the plan is used up (403).
    Exhausted,
}

/// An aggregate's reason for refusing a command.
pub trait DomainError: std::error::Error + Send + Sync + 'static {
    /// Its kind.
    fn kind(&self) -> Kind;

    /// A stable code for programs, `<aggregate>.<reason>`.
    fn code(&self) -> Cow<'static, str>;

    /// The name of the page under `docs/errors` that explains it; a family of codes may share one.
    fn page(&self) -> Cow<'static, str> {
        self.code()
    }
}
