//! How rules refuse.

use std::borrow::Cow;
use std::convert::Infallible;

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
    /// Too soon after the last time; the same command is fine later (429).
    Throttled,
}

/// A reason for refusing a command. Made by [`crate::errors!`].
pub trait DomainError: std::error::Error + Send + Sync + 'static {
    /// The pages under `docs/errors` that explain these errors, with their kinds.
    const PAGES: &'static [(&'static str, Kind)];

    /// Its kind.
    fn kind(&self) -> Kind;

    /// The page that explains it; a family of codes may share one.
    fn page(&self) -> &'static str;

    /// A stable code for programs, `<aggregate>.<reason>`: the page's name unless it says more.
    fn code(&self) -> Cow<'static, str>;

    /// In how many seconds the same command is fine, where that is known.
    fn retry_after(&self) -> Option<u32> {
        None
    }
}

/// For what nothing refuses.
impl DomainError for Infallible {
    const PAGES: &'static [(&'static str, Kind)] = &[];

    fn kind(&self) -> Kind {
        match *self {}
    }

    fn page(&self) -> &'static str {
        match *self {}
    }

    fn code(&self) -> Cow<'static, str> {
        match *self {}
    }
}

/// Declares an enum of errors: each with its kind, the name of the page that explains it (which is its code, unless `code` says otherwise) and its text.
#[macro_export]
macro_rules! errors {
    (
        $(#[$doc:meta])* $name:ident { $(
            $(#[$about:meta])*
            $variant:ident $({ $($(#[$field_doc:meta])* $field:ident: $type:ty),* $(,)? })?: $kind:ident $page:literal, $text:literal;
        )* }
        $(code $pattern:pat => $code:expr;)*
        $(retry $late:pat => $seconds:expr;)*
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
        pub enum $name { $($(#[$about])* #[error($text)] $variant $({ $($(#[$field_doc])* $field: $type),* })?,)* }

        impl $crate::DomainError for $name {
            const PAGES: &'static [(&'static str, $crate::Kind)] = &[$(($page, $crate::Kind::$kind)),*];

            fn kind(&self) -> $crate::Kind {
                match self { $(Self::$variant { .. } => $crate::Kind::$kind,)* }
            }

            fn page(&self) -> &'static str {
                match self { $(Self::$variant { .. } => $page,)* }
            }

            fn code(&self) -> std::borrow::Cow<'static, str> {
                $(if let $pattern = self { return $code.into(); })*
                self.page().into()
            }

            fn retry_after(&self) -> Option<u32> {
                $(if let $late = self { return Some($seconds); })*
                None
            }
        }
    };
}
