//! What people do with their accounts and with links from mails: where a command needs a secret besides.

use std::time::Instant;

use commands::{CommandError, Outcome, Request};
use domain::identity::user::{
    AcceptInvitation, ChangeEmail, DeclineInvitation, Details, EMAIL, Error, RequestPasswordReset, ResetPassword, SetPassword, User,
    VerifyEmail, fold_email,
};
use domain::text::{DisplayName, Email};
use domain::{Actor, StreamId, TenantId};
use uuid::Uuid;

use crate::entry::Entry;
use crate::links::{self, Purpose};
use crate::passwords::{Party, Password, weakness};
use crate::{Access, AccessError};

fn link_not_good() -> AccessError {
    AccessError::Command(CommandError::rule(&Error::LinkNotGood))
}

impl Access {
    async fn system_request(&self, stream: StreamId, command: impl Into<<User as domain::Aggregate>::Ask>) -> Result<Outcome, AccessError> {
        self.request(stream, command, Self::system()).await
    }

    /// Hashes a password that will do for this user; it counts once an event names what is answered.
    pub async fn credential(&self, user: StreamId, password: Password, name: Option<&str>) -> Result<Uuid, AccessError> {
        let loaded = self.store().load::<User>(user).await?;
        let known = loaded.state.details().map(|user| [user.email.known(), user.name.as_ref().and_then(|name| name.known())]);
        let known: Vec<&str> = known.into_iter().flatten().flatten().map(String::as_str).chain(name).collect();
        if let Some(weakness) = weakness(&password, &known) {
            return Err(AccessError::WeakPassword(weakness));
        }
        let (_, lane) = user.id.as_u64_pair();
        let hash = self.inner.hasher.hash(password, Party::Tenant(user.tenant), lane).await?;
        self.keep(user, hash).await
    }

    /// What is known of a user; `None` where there is none.
    pub async fn details(&self, user: StreamId) -> Result<Option<Details>, AccessError> {
        Ok(self.store().current::<User>(user).await?.state.details().cloned())
    }

    async fn request(
        &self,
        user: StreamId,
        command: impl Into<<User as domain::Aggregate>::Ask>,
        actor: Actor,
    ) -> Result<Outcome, AccessError> {
        Ok(self.inner.executor.execute(Request::<User>::new(user, command, actor, self.store().fresh_id())).await?)
    }

    /// Gives a user a password.
    pub async fn set_password(&self, user: StreamId, password: Password, actor: Actor) -> Result<Outcome, AccessError> {
        let credential = self.credential(user, password, None).await?;
        self.request(user, SetPassword { credential, keeps: None, proven: false }, actor).await
    }

    /// Changes somebody's own password, which they have just shown to know. `keeps` names the session that goes on.
    pub async fn change_password(
        &self,
        user: StreamId,
        password: Password,
        keeps: Option<Uuid>,
        actor: Actor,
    ) -> Result<Outcome, AccessError> {
        let credential = self.credential(user, password, None).await?;
        self.request(user, SetPassword { credential, keeps, proven: true }, actor).await
    }

    /// Changes somebody's own address, who has just shown to know the password.
    pub async fn change_email(&self, user: StreamId, email: Email, actor: Actor) -> Result<Outcome, AccessError> {
        self.request(user, ChangeEmail { email, proven: true }, actor).await
    }

    /// Makes whoever has the link a user.
    pub async fn accept_invitation(&self, token: &str, name: Option<DisplayName>, password: Password) -> Result<Outcome, AccessError> {
        let (user, token) = self.link(Purpose::Invitation, token).await?;
        let credential = self.credential(user, password, name.as_ref().map(DisplayName::as_str)).await?;
        self.system_request(user, AcceptInvitation { token, name, credential }).await
    }

    /// Declines for whoever has the link.
    pub async fn decline_invitation(&self, token: &str) -> Result<Outcome, AccessError> {
        let (user, token) = self.link(Purpose::Invitation, token).await?;
        self.system_request(user, DeclineInvitation { token }).await
    }

    /// Shows that an address is somebody's who has the link.
    pub async fn verify_email(&self, token: &str) -> Result<Outcome, AccessError> {
        let (user, token) = self.link(Purpose::Verification, token).await?;
        self.system_request(user, VerifyEmail { token }).await
    }

    /// Has a link sent to whoever has this address in this tenant, if anybody does. Nobody is told whether, nor by how long it takes.
    pub async fn request_password_reset(&self, tenant: &str, email: &str) -> Result<(), AccessError> {
        let began = Instant::now();
        let answer = self.begin_reset(tenant, email).await;
        self.at_a_fixed_moment(began).await;
        answer
    }

    async fn begin_reset(&self, tenant: &str, email: &str) -> Result<(), AccessError> {
        let tenant = self.tenant(tenant).await?;
        // Of a tenant that does not exist as much is asked as of one that does.
        let user = self.store().holder(&EMAIL, tenant.unwrap_or(TenantId::SYSTEM), &fold_email(email)).await?;
        let (Some(_), Some(user)) = (tenant, user) else { return Ok(()) };
        // More than a few at a time are not wanted by people who have forgotten something.
        let Ok(permit) = self.inner.resets.clone().try_acquire_owned() else { return Ok(()) };
        let access = self.clone();
        tokio::spawn(async move {
            let _held = permit;
            let sent = match access.admit(user, Entry::ResetRequest).await {
                Ok(Some(_)) => access.system_request(user, RequestPasswordReset {}).await.map(drop),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = sent {
                tracing::debug!(%error, "no link was sent to set another password");
            }
        });
        Ok(())
    }

    /// Sets another password for whoever has the link, and ends all sessions.
    pub async fn reset_password(&self, token: &str, password: Password) -> Result<Outcome, AccessError> {
        let (user, token) = self.link(Purpose::Reset, token).await?;
        let credential = self.credential(user, password, None).await?;
        let outcome = self.system_request(user, ResetPassword { token, credential }).await?;
        if let Some(email) = self.details(user).await?.as_ref().and_then(|user| user.email.known()) {
            self.forget_attempts(self.account(user.tenant, email)).await?;
        }
        Ok(outcome)
    }

    /// Whose link it is and what it was made of; refused unless it is good now, before a password is hashed for it.
    async fn link(&self, purpose: Purpose, text: &str) -> Result<(StreamId, Uuid), AccessError> {
        let (user, token) = links::read(self.store(), purpose, text).ok_or_else(link_not_good)?;
        match self.admit(user, Entry::Link { purpose, token }).await? {
            Some(_) => Ok((user, token)),
            None => Err(link_not_good()),
        }
    }
}
