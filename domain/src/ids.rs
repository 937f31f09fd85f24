//! Typed identifiers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.fmt(f) }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> { text.parse().map(Self) }
        }
    )* };
}

ids! {
    /// A tenant; also the first part of every stream id of that tenant.
    TenantId,
    /// A person in a tenant.
    UserId,
    /// A role that a tenant has defined.
    RoleId,
    /// A data subject: the person whom a sealed value is about. Destroying the subject's key erases all of them.
    SubjectId,
}

impl From<UserId> for SubjectId {
    /// A user's personal data is sealed for the user.
    fn from(user: UserId) -> Self {
        Self(user.0)
    }
}

impl TenantId {
    /// The platform itself: the tenant of super admins, plans and everything else that belongs to no customer.
    pub const SYSTEM: Self = Self(Uuid::nil());
}

/// The identity of a stream within its aggregate type: `<tenant uuid>/<id>`. A wrong tenant therefore names a stream that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StreamId {
    /// The owner.
    pub tenant: TenantId,
    /// The aggregate's own id.
    pub id: Uuid,
}

impl StreamId {
    /// The stream `id` of `tenant`.
    pub fn new(tenant: TenantId, id: Uuid) -> Self {
        Self { tenant, id }
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.id)
    }
}

/// The text was not `<tenant uuid>/<uuid>`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a stream id is <tenant uuid>/<uuid>")]
pub struct StreamIdError;

impl FromStr for StreamId {
    type Err = StreamIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (tenant, id) = text.split_once('/').ok_or(StreamIdError)?;
        Ok(Self { tenant: tenant.parse().map_err(|_| StreamIdError)?, id: id.parse().map_err(|_| StreamIdError)? })
    }
}
