//! Every rule about users: what follows from a command, for somebody who is not there yet and for somebody who is.

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::{
    Command, Details, Error, Event, LOCK, Link, MAIL_PAUSE, NOTICE_PAUSE, ProfileField, RESET_WINDOW, Status, VERIFICATION_WINDOW,
};
use crate::actor::{Actor, Role};
use crate::aggregate::{Ask as _, Context, Found, Issued, changed};
use crate::ids::{SubjectId, TenantId, UserId};
use crate::personal::Personal;

impl Details {
    /// The rules of a user who exists.
    #[expect(clippy::too_many_lines, reason = "one arm for each command")]
    pub(super) fn decide(&self, Issued { command, ctx }: Issued<Command>) -> Result<Vec<Event>, Error> {
        let not_now = Error::NotWhile { command: command.name(), status: self.status };
        let at = |window| ctx.now + window;
        match command {
            Command::Register(_) | Command::Invite(_) => Err(Error::AlreadyExists),
            Command::Erase(_) => {
                self.managed_by(&ctx)?;
                let gone = self.status == Status::Deleted;
                let deleted = (!gone).then(|| self.ended());
                Ok(deleted.into_iter().chain(changed(!self.erased, || Event::Erased { subject: subject(&ctx) })).collect())
            }
            Command::Delete(_) if self.status == Status::Deleted => Ok(vec![]),
            // A link may be used twice by somebody who clicks twice, and is as good as any old one then.
            Command::AcceptInvitation(_) | Command::DeclineInvitation(_) | Command::VerifyEmail(_) | Command::ResetPassword(_)
                if self.status == Status::Deleted =>
            {
                Err(Error::LinkNotGood)
            }
            Command::ExpireInvitation(_) if self.status != Status::Invited => Err(not_now),
            _ if self.status == Status::Deleted => Err(Error::NotFound),
            Command::Delete(_) => {
                self.managed_by(&ctx)?;
                Ok(vec![self.ended()])
            }
            Command::AcceptInvitation(c) => {
                good(self.invitation, c.token, ctx.now)?;
                let name = c.name.map(|name| personal(&ctx, name.into())).or_else(|| self.name.clone()).ok_or(Error::NameNeeded)?;
                Ok(vec![Event::InvitationAccepted { name }, Event::PasswordSet { credential: c.credential, keeps: None, by_owner: true }])
            }
            Command::DeclineInvitation(c) => {
                good(self.invitation, c.token, ctx.now)?;
                Ok(vec![Event::InvitationDeclined])
            }
            Command::RevokeInvitation(_) if self.status == Status::Invited => {
                self.managed_by(&ctx)?;
                Ok(vec![Event::InvitationRevoked])
            }
            Command::ExpireInvitation(_) => match self.invitation {
                Some(link) if link.expires_at <= ctx.now => Ok(vec![Event::InvitationExpired]),
                Some(_) | None => Err(not_now),
            },
            Command::ResendInvitation(_) if self.status == Status::Invited => {
                self.managed_by(&ctx)?;
                Ok(vec![Event::InvitationResent { token: ctx.fresh_id, expires_at: at(TimeDelta::hours(self.hours.into())) }])
            }
            Command::RequestEmailVerification(_) => {
                self.self_or_managed(&ctx)?;
                if self.email_verified || recent(self.verification, VERIFICATION_WINDOW, ctx.now) {
                    return Ok(vec![]);
                }
                self.needs(self.status.can_act(), not_now)?;
                Ok(vec![Event::EmailVerificationRequested { token: ctx.fresh_id, expires_at: at(VERIFICATION_WINDOW) }])
            }
            Command::VerifyEmail(c) => {
                good(self.verification, c.token, ctx.now)?;
                Ok(vec![Event::EmailVerified])
            }
            Command::ChangeEmail(c) => {
                self.proven_or_managed(&ctx, c.proven)?;
                let email = String::from(c.email);
                if self.email.known() == Some(&email) {
                    return Ok(vec![]);
                }
                self.needs(self.status != Status::Invited, not_now)?;
                Ok(vec![
                    Event::EmailChanged { email: personal(&ctx, email) },
                    Event::EmailVerificationRequested { token: ctx.fresh_id, expires_at: at(VERIFICATION_WINDOW) },
                ])
            }
            Command::UpdateProfile(c) => {
                self.self_or_managed(&ctx)?;
                let name = c.name.map(String::from).filter(|name| self.name.as_ref().and_then(Personal::known) != Some(name));
                let name = name.map(|name| personal(&ctx, name));
                let gone = [
                    (c.locale == Some(None) && self.locale.is_some(), ProfileField::Locale),
                    (c.time_zone == Some(None) && self.time_zone.is_some(), ProfileField::TimeZone),
                ];
                let removed: Vec<_> = gone.into_iter().filter_map(|(gone, field)| gone.then_some(field)).collect();
                let other = |text: &String, known: Option<&Personal<String>>| known.and_then(Personal::known) != Some(text);
                let locale = c.locale.flatten().map(String::from).filter(|locale| other(locale, self.locale.as_ref()));
                let locale = locale.map(|locale| personal(&ctx, locale));
                let time_zone = c.time_zone.flatten().map(String::from).filter(|zone| other(zone, self.time_zone.as_ref()));
                let time_zone = time_zone.map(|zone| personal(&ctx, zone));
                let differs = name.is_some() || locale.is_some() || time_zone.is_some() || !removed.is_empty();
                Ok(changed(differs, || Event::ProfileUpdated { name, locale, time_zone, removed }))
            }
            Command::ChangeRole(c) => {
                self.managed_by(&ctx)?;
                may_give(c.role, &ctx)?;
                Ok(changed(self.role != c.role, || Event::RoleChanged { from: self.role, to: c.role }))
            }
            Command::SetPassword(c) => {
                self.proven_or_managed(&ctx, c.proven)?;
                self.needs(self.status.can_act(), not_now)?;
                Ok(vec![Event::PasswordSet { credential: c.credential, keeps: c.keeps, by_owner: c.proven && self.chosen }])
            }
            Command::RequestPasswordReset(_) => {
                self.needs(self.status.can_act(), not_now)?;
                // One that came with the account is good for longer, and was sent some time ago.
                let recent = !self.welcome && recent(self.reset, RESET_WINDOW, ctx.now);
                Ok(changed(!recent, || Event::PasswordResetRequested { token: ctx.fresh_id, expires_at: at(RESET_WINDOW), welcome: false }))
            }
            Command::ResetPassword(c) => {
                good(self.reset, c.token, ctx.now)?;
                self.needs(self.status.can_act(), not_now)?;
                // Whoever reads the mail has shown the address to be theirs, and needs no lock against guessing.
                let unlocked = (self.status == Status::Locked).then_some(Event::Unlocked);
                let verified = (!self.email_verified).then_some(Event::EmailVerified);
                let set = Event::PasswordSet { credential: c.credential, keeps: None, by_owner: true };
                Ok([Some(set), unlocked, verified].into_iter().flatten().collect())
            }
            Command::RecordLogin(c) if self.status == Status::Active => {
                self.needs(c.credential.is_none() || self.credential == c.credential, Error::PasswordChanged)?;
                Ok(vec![Event::LoggedIn { session: c.session, by_password: c.credential.is_some() }])
            }
            Command::ResendInvitation(_) | Command::RevokeInvitation(_) | Command::RecordLogin(_) => Err(not_now),
            Command::RecordLoginFailure(c) if self.status == Status::Active => {
                let failed = Event::LoginFailed { failures: self.failures.saturating_add(1) };
                let told = self.noticed_at.is_some_and(|noticed| ctx.now < noticed + NOTICE_PAUSE);
                let limited = (c.limited && !told).then(|| Event::LoginAttemptsLimited { until: at(LOCK) });
                Ok([failed].into_iter().chain(limited).collect())
            }
            Command::RecordLoginFailure(_) => Ok(vec![]),
            Command::Lock(_) => {
                self.managed_by(&ctx)?;
                self.needs(self.status.can_act(), not_now)?;
                Ok(changed(self.status != Status::Locked, || Event::Locked { until: at(LOCK) }))
            }
            Command::Unlock(_) => {
                self.managed_by(&ctx)?;
                Ok(changed(self.status == Status::Locked, || Event::Unlocked))
            }
            Command::Suspend(c) => {
                self.managed_by(&ctx)?;
                self.needs(self.status.can_act() || self.status == Status::Suspended, not_now)?;
                Ok(changed(self.status != Status::Suspended, || Event::Suspended { reason: personal(&ctx, c.reason.into()) }))
            }
            Command::Reactivate(_) => {
                self.managed_by(&ctx)?;
                self.needs(self.status != Status::Invited, not_now)?;
                Ok(changed(!self.status.can_act(), || Event::Reactivated { seats: i64::from(!self.has_seat()) }))
            }
            Command::Deactivate(_) => {
                self.managed_by(&ctx)?;
                self.needs(self.status != Status::Invited, not_now)?;
                Ok(changed(self.status != Status::Deactivated, || Event::Deactivated))
            }
        }
    }

    #[expect(clippy::unused_self, reason = "reads as a sentence beside the others")]
    fn needs(&self, so: bool, error: Error) -> Result<(), Error> {
        if so { Ok(()) } else { Err(error) }
    }

    /// Whether the actor has all that this user has.
    fn managed_by(&self, ctx: &Context) -> Result<(), Error> {
        // A role that is gone allows nothing.
        let nothing = crate::actor::Permissions::default();
        self.needs(ctx.actor.covers(self.role, custom(self.role, &ctx.found).or(Some(&nothing))), Error::BeyondYou)
    }

    /// What gives somebody the whole account: one's own by whoever has just shown that they know the password, others' by those who manage them.
    fn proven_or_managed(&self, ctx: &Context, proven: bool) -> Result<(), Error> {
        if actor_is(&ctx.actor, ctx) {
            return self.needs(proven && is_self(&ctx.actor, ctx), Error::PasswordNeeded);
        }
        self.self_or_managed(ctx)
    }

    fn self_or_managed(&self, ctx: &Context) -> Result<(), Error> {
        if is_self(&ctx.actor, ctx) {
            return Ok(());
        }
        self.needs(ctx.actor.may("user:manage"), Error::NotYourself)?;
        self.managed_by(ctx)
    }
}

/// Whether somebody acts on their own account, and not by a key: that may no more than it says.
fn is_self(actor: &Actor, ctx: &Context) -> bool {
    matches!(actor, Actor::User { key: None, .. }) && actor_is(actor, ctx)
}

/// Whether it is the account of a person themselves, or of a key's owner.
fn actor_is(actor: &Actor, ctx: &Context) -> bool {
    matches!(actor, Actor::User { .. }) && actor.user() == Some(UserId(ctx.stream.id)) && actor.tenant() == Some(ctx.stream.tenant)
}

fn custom(role: Role, found: &Found) -> Option<&crate::actor::Permissions> {
    role.custom().and_then(|id| found.roles.get(&id))
}

/// Whether the actor may let somebody of this tenant have the role.
fn may_give(role: Role, ctx: &Context) -> Result<(), Error> {
    if (role == Role::SuperAdmin) != (ctx.stream.tenant == TenantId::SYSTEM) {
        return Err(Error::WrongTenant);
    }
    let custom = custom(role, &ctx.found);
    if matches!(role, Role::Custom(_)) && custom.is_none() {
        return Err(Error::NoSuchRole);
    }
    if ctx.actor.covers(role, custom) { Ok(()) } else { Err(Error::BeyondYou) }
}

fn subject(ctx: &Context) -> SubjectId {
    UserId(ctx.stream.id).into()
}

fn personal(ctx: &Context, text: String) -> Personal<String> {
    Personal::new(subject(ctx), text)
}

/// Whether a link is the one that was sent last, and in time.
fn good(link: Option<Link>, token: Uuid, now: DateTime<Utc>) -> Result<(), Error> {
    match link {
        Some(link) if link.token == token && now < link.expires_at => Ok(()),
        Some(_) | None => Err(Error::LinkNotGood),
    }
}

/// Whether a link was sent just now.
fn recent(link: Option<Link>, window: TimeDelta, now: DateTime<Utc>) -> bool {
    link.is_some_and(|link| now < link.expires_at - window + MAIL_PAUSE)
}

/// The rules of a user who is not there yet.
pub(super) fn begin(command: Command, ctx: &Context) -> Result<Vec<Event>, Error> {
    match command {
        Command::Register(c) => {
            may_give(c.role, ctx)?;
            let email_verified = c.email_verified && matches!(ctx.actor, Actor::System { .. });
            let registered = Event::Registered {
                email: personal(ctx, c.email.into()),
                email_verified,
                name: personal(ctx, c.name.into()),
                role: c.role,
            };
            let (token, expires_at) = (ctx.fresh_id, ctx.now + VERIFICATION_WINDOW);
            let link = match (c.welcome, email_verified) {
                (true, _) => Some(Event::PasswordResetRequested { token, expires_at, welcome: true }),
                (false, false) => Some(Event::EmailVerificationRequested { token, expires_at }),
                (false, true) => None,
            };
            Ok([registered].into_iter().chain(link).collect())
        }
        Command::Invite(c) => {
            may_give(c.role, ctx)?;
            if !(1..=720).contains(&c.expires_in_hours) {
                return Err(Error::BadExpiry);
            }
            Ok(vec![Event::Invited {
                email: personal(ctx, c.email.into()),
                name: c.name.map(|name| personal(ctx, name.into())),
                role: c.role,
                token: ctx.fresh_id,
                expires_at: ctx.now + TimeDelta::hours(c.expires_in_hours.into()),
                hours: c.expires_in_hours,
                invited_by: ctx.actor.user(),
            }])
        }
        Command::AcceptInvitation(_) | Command::DeclineInvitation(_) | Command::VerifyEmail(_) | Command::ResetPassword(_) => {
            Err(Error::LinkNotGood)
        }
        Command::ResendInvitation(_)
        | Command::RevokeInvitation(_)
        | Command::ExpireInvitation(_)
        | Command::RequestEmailVerification(_)
        | Command::ChangeEmail(_)
        | Command::UpdateProfile(_)
        | Command::ChangeRole(_)
        | Command::SetPassword(_)
        | Command::RequestPasswordReset(_)
        | Command::RecordLogin(_)
        | Command::RecordLoginFailure(_)
        | Command::Lock(_)
        | Command::Unlock(_)
        | Command::Suspend(_)
        | Command::Reactivate(_)
        | Command::Deactivate(_)
        | Command::Delete(_)
        | Command::Erase(_) => Err(Error::NotFound),
    }
}
