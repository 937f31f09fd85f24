//! The one place that says whether credentials are still given and accepted. Every way in asks here: passwords, sessions of either kind of token, tenants that are
//! switched to, links in mails, keys of people and of services, credentials of devices, and operators who name a user.
//!
//! A tenant that is deleted admits nobody, whatever its users' own events say. One that is closed for another reason still does, or its people could not bring it back; its
//! gate refuses their changes. What is asked here is asked once more at the append of whatever begins a session or sets a password
//! ([`Aggregate::needs_tenant`](domain::Aggregate::needs_tenant)).

use commands::lookup;
use domain::aggregate::Person;
use domain::identity::user::{Details, Purpose, Status};
use domain::{StreamId, TenantId, UserId};
use uuid::Uuid;

use crate::{Access, AccessError};

/// A way by which a user gets credentials, or uses some.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Entry {
    /// A session, by the epoch in which it began.
    Session { session: Uuid, epoch: i64 },
    /// A session that belongs to one in another tenant.
    OtherTenant,
    /// A link in a mail, by what it was made of.
    Link { purpose: Purpose, token: Uuid },
    /// Asking for a link to set another password.
    ResetRequest,
    /// The present password, within a session.
    PresentPassword,
    /// A personal API key, or an operator who acts as the user.
    OnBehalf,
}

/// A user who is admitted, with what they may.
pub(crate) struct Admitted {
    pub(crate) details: Details,
    pub(crate) person: Person,
}

impl Entry {
    /// Whether it leads in, as far as the user is concerned.
    fn admits(self, user: &Details) -> bool {
        match self {
            Self::Session { session, epoch } => user.continues(session, epoch),
            Self::OtherTenant => user.status == Status::Active && user.email_verified,
            Self::Link { purpose, token } => user.link(purpose).is_some_and(|link| link.token == token),
            Self::ResetRequest | Self::OnBehalf => user.status.can_act(),
            Self::PresentPassword => user.status == Status::Active,
        }
    }
}

impl Access {
    /// Whether credentials of a tenant are still given and accepted: it exists and was not deleted.
    pub(crate) async fn admits_tenant(&self, tenant: TenantId) -> Result<bool, AccessError> {
        Ok(self.store().gate(tenant).await?.is_some_and(|gate| gate != "deleted"))
    }

    /// The user, if this way still leads in for them.
    pub(crate) async fn admit(&self, user: StreamId, entry: Entry) -> Result<Option<Admitted>, AccessError> {
        if !self.admits_tenant(user.tenant).await? {
            return Ok(None);
        }
        let (found, _) = lookup::user(self.store(), user.tenant, UserId(user.id)).await?;
        Ok(found.filter(|(details, _)| entry.admits(details)).map(|(details, person)| Admitted { details, person }))
    }
}
