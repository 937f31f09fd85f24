//! The user: a person in a tenant.
//!
//! `invited → active ⇄ suspended`; `active → locked → active` by timer; `active | locked | suspended → deactivated → active`; any live one `→ deleted`; `Erase` destroys the
//! key of the person's data. Being locked keeps everybody out who logs in; sessions that have begun go on, and a tenant's work with them.

mod command;
mod event;
#[cfg(test)]
mod tests;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use command::*;
pub use event::Event;

use crate::actor::{Actor, Role};
use crate::aggregate::{Ask as _, Context, EventKind, Found, Issued, Lookup, changed};
use crate::effect::{Claim, CounterName, Effect, Refusal, Scope};
use crate::ids::{RoleId, SubjectId, TenantId, UserId};
use crate::personal::Personal;

/// How often in a row a wrong password may be given before nobody can log in for a while.
pub const MAX_FAILURES: u32 = 10;
/// For how long.
pub const LOCK: TimeDelta = TimeDelta::minutes(15);
/// How long the link of a password reset is good.
pub const RESET_WINDOW: TimeDelta = TimeDelta::hours(1);
/// How long the link that shows an address to be somebody's is good.
pub const VERIFICATION_WINDOW: TimeDelta = TimeDelta::days(3);
/// How long after a link was sent no other is: nobody's mail box is flooded, and nobody makes a link useless that was just sent.
pub const MAIL_PAUSE: TimeDelta = TimeDelta::minutes(10);

/// The address of a live user: unique in the tenant.
pub const EMAIL: Claim = Claim { namespace: "user_email", scope: Scope::Tenant, personal: true };
/// Held, by the user's id, by everybody who can act and may be among those who work.
pub const STAFF: Claim = Claim { namespace: "staff", scope: Scope::Tenant, personal: false };
/// How many users hold a seat. Its ceiling comes with a subscription; until then there is none.
pub const SEATS: &str = "users";
/// How many run the tenant. Never less than one, once there was one.
pub const ADMINS: &str = "active_org_admins";
/// How many users have a role that the tenant has defined, of each.
pub const ROLE_USERS: &str = "role_users";

const INVITATION_TIMER: &str = "invitation";
const LOCK_TIMER: &str = "lock";

/// Where a user stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Asked, and has not answered.
    Invited,
    /// Can do what the role allows.
    Active,
    /// The same, but nobody can log in for a while.
    Locked,
    /// Can do nothing for the time being.
    Suspended,
    /// Has left.
    Deactivated,
    /// Is gone, or never came.
    Deleted,
}

impl Status {
    /// As stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invited => "invited",
            Self::Active => "active",
            Self::Locked => "locked",
            Self::Suspended => "suspended",
            Self::Deactivated => "deactivated",
            Self::Deleted => "deleted",
        }
    }

    /// Whether they can do anything at all.
    pub fn can_act(self) -> bool {
        matches!(self, Self::Active | Self::Locked)
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An address as it is compared: its case does not matter.
pub fn fold_email(email: &str) -> String {
    email.trim().to_lowercase()
}

/// A user as their events tell it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum User {
    /// Nothing has happened yet.
    #[default]
    Absent,
    /// There is one, or was.
    Known(Box<Details>),
}

/// What a link in a mail is good for, and until when.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Link {
    /// What it is made of.
    pub token: Uuid,
    /// Until when.
    pub expires_at: DateTime<Utc>,
}

/// What is known of a user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Details {
    /// Where they stand.
    pub status: Status,
    /// Where to write to them.
    pub email: Personal<String>,
    /// Whether that is known to be theirs.
    pub email_verified: bool,
    /// What to call them.
    pub name: Option<Personal<String>>,
    /// The language they read.
    pub locale: Option<Personal<String>>,
    time_zone: Option<Personal<String>>,
    /// What they may.
    pub role: Role,
    /// What they were asked with.
    pub invitation: Option<Link>,
    /// What is to show that the address is theirs.
    pub verification: Option<Link>,
    /// What they may set another password with.
    pub reset: Option<Link>,
    /// For how many hours the links of the invitation are good.
    hours: u32,
    /// Where the hash of their password is.
    pub credential: Option<Uuid>,
    /// Whether they chose it themselves.
    chosen: bool,
    failures: u32,
    /// Sessions begun in an earlier one have ended, but for `keeps`.
    pub epoch: i64,
    /// The session that goes on.
    pub keeps: Option<Uuid>,
    erased: bool,
}

/// What a user takes up in the guards.
#[expect(clippy::struct_excessive_bools, reason = "one for each guard")]
struct Footprint {
    live: bool,
    seat: bool,
    admin: bool,
    staff: bool,
    role: Option<RoleId>,
}

impl User {
    /// What is known, if there is or was one.
    pub fn details(&self) -> Option<&Details> {
        match self {
            Self::Absent => None,
            Self::Known(details) => Some(details),
        }
    }

    fn footprint(&self) -> Footprint {
        let Self::Known(user) = self else { return Footprint { live: false, seat: false, admin: false, staff: false, role: None } };
        let live = user.status != Status::Deleted;
        Footprint {
            live,
            seat: user.status.can_act() || user.status == Status::Suspended,
            admin: user.status.can_act() && user.role.is_admin(),
            staff: user.status.can_act() && user.role.may_work(),
            role: user.role.custom().filter(|_| live),
        }
    }

    fn evolve(&mut self, event: Event) {
        let begin = |status, email, name, role, email_verified, invitation, hours| {
            Self::Known(Box::new(Details {
                status,
                email,
                email_verified,
                name,
                locale: None,
                time_zone: None,
                role,
                invitation,
                verification: None,
                reset: None,
                hours,
                credential: None,
                chosen: false,
                failures: 0,
                epoch: 0,
                keeps: None,
                erased: false,
            }))
        };
        match (self, event) {
            (this, Event::Registered { email, email_verified, name, role }) => {
                *this = begin(Status::Active, email, Some(name), role, email_verified, None, 0);
            }
            (this, Event::Invited { email, name, role, token, expires_at, hours, invited_by: _ }) => {
                *this = begin(Status::Invited, email, name, role, false, Some(Link { token, expires_at }), hours);
            }
            (Self::Known(user), event) => user.evolve(event),
            (Self::Absent, _) => {}
        }
    }
}

impl Details {
    fn evolve(&mut self, event: Event) {
        match event {
            Event::Registered { .. } | Event::Invited { .. } | Event::LoggedIn { by_password: false, .. } => {}
            Event::InvitationResent { token, expires_at } => self.invitation = Some(Link { token, expires_at }),
            Event::InvitationAccepted { name } => {
                self.status = Status::Active;
                self.name = Some(name);
                self.email_verified = true;
                self.invitation = None;
            }
            Event::InvitationDeclined | Event::InvitationRevoked | Event::InvitationExpired | Event::Deleted => {
                self.status = Status::Deleted;
                (self.invitation, self.verification, self.reset, self.credential) = (None, None, None, None);
                self.end_sessions(None);
            }
            Event::EmailVerificationRequested { token, expires_at } => self.verification = Some(Link { token, expires_at }),
            Event::EmailVerified => {
                self.email_verified = true;
                self.verification = None;
            }
            Event::EmailChanged { email } => {
                self.email = email;
                self.email_verified = false;
                // Whoever shows the new address to be theirs has to choose the password, too, before they are its owner in other tenants.
                self.chosen = false;
                // Whoever reads the old mail box must not get in by it.
                (self.verification, self.reset) = (None, None);
            }
            Event::ProfileUpdated { name, locale, time_zone } => {
                self.name = name.or(self.name.take());
                self.locale = locale.or(self.locale.take());
                self.time_zone = time_zone.or(self.time_zone.take());
            }
            Event::RoleChanged { from: _, to } => self.role = to,
            Event::PasswordSet { credential, keeps, by_owner } => {
                self.credential = Some(credential);
                self.chosen = by_owner;
                self.reset = None;
                self.failures = 0;
                self.end_sessions(keeps);
            }
            Event::PasswordResetRequested { token, expires_at } => self.reset = Some(Link { token, expires_at }),
            Event::LoggedIn { by_password: true, .. } => self.failures = 0,
            Event::LoginFailed { failures } => self.failures = failures,
            Event::Locked { until: _ } => self.status = Status::Locked,
            Event::Suspended { reason: _ } => {
                self.status = Status::Suspended;
                self.end_sessions(None);
            }
            Event::Deactivated => {
                self.status = Status::Deactivated;
                self.end_sessions(None);
            }
            Event::Unlocked | Event::Reactivated => {
                self.status = Status::Active;
                self.failures = 0;
            }
            Event::Erased { subject: _ } => self.erased = true,
        }
    }

    fn end_sessions(&mut self, keeps: Option<Uuid>) {
        self.epoch += 1;
        self.keeps = keeps;
    }

    /// How it ends for somebody who is, or for somebody who was only asked to be.
    fn ended(&self) -> Event {
        if self.status == Status::Invited { Event::InvitationRevoked } else { Event::Deleted }
    }

    /// Their address, if it is shown to be theirs and nobody else set the password: then whoever is in is the owner of that address, in other tenants too.
    pub fn proven_email(&self) -> Option<&String> {
        self.email.known().filter(|_| self.email_verified && self.chosen)
    }

    /// Whether a session that began in this epoch goes on, as far as the user is concerned.
    pub fn continues(&self, session: Uuid, epoch: i64) -> bool {
        self.status.can_act() && (epoch == self.epoch || self.keeps == Some(session))
    }

    /// The rules of a user who exists.
    #[expect(clippy::too_many_lines, reason = "one arm for each command")]
    fn decide(&self, Issued { command, ctx }: Issued<Command>) -> Result<Vec<Event>, Error> {
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
                let other = |text: &String, known: Option<&Personal<String>>| known.and_then(Personal::known) != Some(text);
                let locale = c.locale.map(String::from).filter(|locale| other(locale, self.locale.as_ref()));
                let locale = locale.map(|locale| personal(&ctx, locale));
                let time_zone = c.time_zone.map(String::from).filter(|zone| other(zone, self.time_zone.as_ref()));
                let time_zone = time_zone.map(|zone| personal(&ctx, zone));
                Ok(changed(name.is_some() || locale.is_some() || time_zone.is_some(), || Event::ProfileUpdated { name, locale, time_zone }))
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
                Ok(changed(!recent(self.reset, RESET_WINDOW, ctx.now), || Event::PasswordResetRequested {
                    token: ctx.fresh_id,
                    expires_at: at(RESET_WINDOW),
                }))
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
            Command::RecordLoginFailure(_) if self.status == Status::Active => {
                let failures = self.failures + 1;
                let locked = (failures >= MAX_FAILURES).then(|| Event::Locked { until: at(LOCK) });
                Ok([Event::LoginFailed { failures }].into_iter().chain(locked).collect())
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
                Ok(changed(!self.status.can_act(), || Event::Reactivated))
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

fn begin(command: Command, ctx: &Context) -> Result<Vec<Event>, Error> {
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
            let verification = (!email_verified)
                .then(|| Event::EmailVerificationRequested { token: ctx.fresh_id, expires_at: ctx.now + VERIFICATION_WINDOW });
            Ok([registered].into_iter().chain(verification).collect())
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

/// What an event does to the timers, and to the key of the user's data.
fn timers(event: &Event) -> Vec<Effect> {
    let set = |name: &str, due: &DateTime<Utc>| Effect::SetTimer { name: name.into(), due: *due };
    let cancel = |name: &str| Effect::CancelTimer { name: name.into() };
    match event {
        Event::Invited { expires_at, .. } | Event::InvitationResent { expires_at, .. } => vec![set(INVITATION_TIMER, expires_at)],
        Event::InvitationAccepted { .. } | Event::InvitationDeclined | Event::InvitationRevoked | Event::InvitationExpired => {
            vec![cancel(INVITATION_TIMER)]
        }
        Event::Locked { until } => vec![set(LOCK_TIMER, until)],
        Event::Unlocked | Event::Suspended { .. } | Event::Deactivated => vec![cancel(LOCK_TIMER)],
        Event::Deleted => vec![cancel(INVITATION_TIMER), cancel(LOCK_TIMER)],
        Event::Erased { subject } => vec![Effect::Erase(*subject)],
        Event::Registered { .. }
        | Event::EmailVerificationRequested { .. }
        | Event::EmailVerified
        | Event::EmailChanged { .. }
        | Event::ProfileUpdated { .. }
        | Event::RoleChanged { .. }
        | Event::PasswordSet { .. }
        | Event::PasswordResetRequested { .. }
        | Event::LoggedIn { .. }
        | Event::LoginFailed { .. }
        | Event::Reactivated => vec![],
    }
}

crate::aggregate!(User, "user", Command, Event, Error);

impl crate::Aggregate for User {
    type Ask = Command;

    const EVENTS: &'static [EventKind] = Event::KINDS;

    /// People get in and out of a closed tenant, and time passes in it, or nobody could bring it back.
    fn gated(command: &Command) -> bool {
        !matches!(
            command,
            Command::RecordLogin(_)
                | Command::RecordLoginFailure(_)
                | Command::RequestPasswordReset(_)
                | Command::ResetPassword(_)
                | Command::Unlock(_)
                | Command::ExpireInvitation(_)
                | Command::Erase(_)
        )
    }

    fn looks_up(&self, command: &Command) -> Vec<Lookup> {
        let mut roles: Vec<Role> = self.details().map(|user| user.role).into_iter().collect();
        if let Command::Register(RegisterUser { role, .. })
        | Command::Invite(InviteUser { role, .. })
        | Command::ChangeRole(ChangeRole { role }) = command
        {
            roles.push(*role);
        }
        roles.into_iter().filter_map(Role::custom).map(Lookup::Role).collect()
    }

    fn decide(&self, issued: Issued<Command>) -> Result<Vec<Event>, Error> {
        match self {
            Self::Absent => begin(issued.command, &issued.ctx),
            Self::Known(user) => user.decide(issued),
        }
    }

    fn effects(&self, event: &Event) -> Vec<Effect> {
        let mut after = self.clone();
        after.evolve(event.clone());
        let (was, is) = (self.footprint(), after.footprint());
        let mut effects = Vec::new();
        let mut count = |counter: CounterName, was: bool, is: bool| {
            if was != is {
                effects.push(Effect::Count { counter, delta: i64::from(is) - i64::from(was) });
            }
        };
        count(SEATS.into(), was.seat, is.seat);
        count(ADMINS.into(), was.admin, is.admin);
        if was.role != is.role {
            was.role.into_iter().for_each(|role| count(CounterName::of(ROLE_USERS, role.0), true, false));
            is.role.into_iter().for_each(|role| count(CounterName::of(ROLE_USERS, role.0), false, true));
        }
        if is.admin && !was.admin {
            effects.push(Effect::Bound { counter: ADMINS.into(), floor: Some(1), ceiling: None });
        }
        let id = after.details().map(|user| user.email.subject().0);
        match (was.staff, is.staff) {
            (false, true) => {
                effects.push(Effect::TakeClaim { claim: STAFF, label: "staff".into(), value: id.map(|id| id.to_string()) });
            }
            (true, false) => effects.push(Effect::ReleaseClaim { claim: STAFF, label: "staff".into() }),
            (true, true) | (false, false) => {}
        }
        if let Event::Registered { email, .. } | Event::Invited { email, .. } | Event::EmailChanged { email } = event {
            let value = email.known().map(|email| fold_email(email));
            effects.push(Effect::TakeClaim { claim: EMAIL, label: "email".into(), value });
        } else if was.live && !is.live {
            effects.push(Effect::ReleaseClaim { claim: EMAIL, label: "email".into() });
        }
        effects.extend(timers(event));
        effects
    }

    fn timer(name: &str) -> Option<Command> {
        match name {
            INVITATION_TIMER => Some(ExpireInvitation {}.into()),
            LOCK_TIMER => Some(UnlockUser {}.into()),
            _ => None,
        }
    }

    fn refused(refusal: &Refusal) -> Option<Error> {
        if let Refusal::ClaimTaken { namespace } = refusal {
            return (namespace == EMAIL.namespace).then_some(Error::EmailTaken);
        }
        let Refusal::CounterOutOfBounds { counter, .. } = refusal else { return None };
        [(ADMINS, Error::LastAdmin), (SEATS, Error::SeatsExhausted)].into_iter().find(|(name, _)| counter == name).map(|(_, error)| error)
    }
}
