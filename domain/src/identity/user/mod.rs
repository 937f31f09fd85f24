//! The user: a person in a tenant.
//!
//! `invited → active ⇄ suspended`; `active → locked → active` by command and timer; `active | locked | suspended → deactivated → active`; any live one `→ deleted`; `Erase` destroys the
//! key of the person's data. Being locked keeps everybody out who logs in; sessions that have begun go on, and a tenant's work with them.

mod command;
mod event;
mod rules;
#[cfg(test)]
mod tests;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use command::*;
pub use event::{Event, ProfileField};

use crate::actor::Role;
use crate::aggregate::{EventKind, Issued, Lookup, MailCause};
use crate::billing::meter::Meter;
use crate::effect::{Claim, CounterName, Effect, Refusal, Scope};
use crate::ids::RoleId;
use crate::personal::Personal;

/// Wrong passwords that are looked at from one origin (a network address, a known device, a session) within [`LOCK`].
pub const MAX_FAILURES: u32 = 10;
/// How long a lock lasts, and how long wrong passwords count.
pub const LOCK: TimeDelta = TimeDelta::minutes(15);
/// The pause after a user was told that wrong passwords are tried: the mails are caused by strangers.
pub const NOTICE_PAUSE: TimeDelta = TimeDelta::hours(24);
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
/// Held, by the user's id, by everybody who can act and looks after what the tenant pays.
pub const PAYERS: Claim = Claim { namespace: "payers", scope: Scope::Tenant, personal: false };
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
#[schema(as = UserStatus)]
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

/// What a link in a mail is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To answer an invitation.
    Invitation,
    /// To show that an address is one's own.
    Verification,
    /// To set another password.
    Reset,
}

/// What is known of a user.
#[expect(clippy::struct_excessive_bools, reason = "each says one thing of a person")]
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
    /// Whether that came with their account.
    pub welcome: bool,
    /// For how many hours the links of the invitation are good.
    hours: u32,
    /// Where the hash of their password is.
    pub credential: Option<Uuid>,
    /// Whether they chose it themselves.
    chosen: bool,
    failures: u32,
    /// When they were last told that wrong passwords are tried.
    #[serde(default)]
    noticed_at: Option<DateTime<Utc>>,
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
    payer: bool,
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
        let Self::Known(user) = self else {
            return Footprint { live: false, seat: false, admin: false, staff: false, payer: false, role: None };
        };
        let live = user.status != Status::Deleted;
        Footprint {
            live,
            seat: user.has_seat(),
            admin: user.status.can_act() && user.role.is_admin(),
            staff: user.status.can_act() && user.role.may_work(),
            payer: user.status.can_act() && matches!(user.role, Role::OrgAdmin | Role::BillingAdmin),
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
                welcome: false,
                hours,
                credential: None,
                chosen: false,
                failures: 0,
                noticed_at: None,
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
            Event::InvitationResent { token, expires_at } => {
                self.invitation = Some(Link { token, expires_at });
            }
            Event::InvitationAccepted { name } => {
                self.status = Status::Active;
                self.name = Some(name);
                self.email_verified = true;
                self.invitation = None;
            }
            Event::InvitationDeclined | Event::InvitationRevoked | Event::InvitationExpired | Event::Deleted { .. } => {
                self.status = Status::Deleted;
                self.credential = None;
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
                self.end_links();
            }
            Event::ProfileUpdated { name, locale, time_zone, removed } => {
                self.name = name.or(self.name.take());
                self.locale = locale.or(self.locale.take());
                self.time_zone = time_zone.or(self.time_zone.take());
                for field in removed {
                    match field {
                        ProfileField::Locale => self.locale = None,
                        ProfileField::TimeZone => self.time_zone = None,
                    }
                }
            }
            Event::RoleChanged { from: _, to } => self.role = to,
            Event::PasswordSet { credential, keeps, by_owner } => {
                // The first password ends no session, and the link that shows the address to be theirs may still be on its way.
                let verification = self.verification.filter(|_| self.credential.is_none());
                self.credential = Some(credential);
                self.chosen = by_owner;
                self.failures = 0;
                self.end_sessions(keeps);
                self.verification = verification;
            }
            Event::PasswordResetRequested { token, expires_at, welcome } => {
                self.reset = Some(Link { token, expires_at });
                self.welcome = welcome;
            }
            Event::LoggedIn { by_password: true, .. } => self.failures = 0,
            Event::LoginFailed { failures } => self.failures = failures,
            Event::LoginAttemptsLimited { until } => self.noticed_at = Some(until - LOCK),
            Event::Locked { until: _ } => self.status = Status::Locked,
            Event::Suspended { reason: _ } => {
                self.status = Status::Suspended;
                self.end_sessions(None);
            }
            Event::Deactivated => {
                self.status = Status::Deactivated;
                self.end_sessions(None);
            }
            Event::Unlocked | Event::Reactivated { .. } => {
                self.status = Status::Active;
                self.failures = 0;
            }
            Event::Erased { subject: _ } => {
                self.erased = true;
                self.end_links();
            }
        }
    }

    /// Ends all sessions but one, and with them every link that was sent before.
    fn end_sessions(&mut self, keeps: Option<Uuid>) {
        self.epoch += 1;
        self.keeps = keeps;
        self.end_links();
    }

    fn end_links(&mut self) {
        (self.invitation, self.verification, self.reset) = (None, None, None);
    }

    /// The link of a mail that is good at present, by what it is for.
    pub fn link(&self, purpose: Purpose) -> Option<Link> {
        match purpose {
            Purpose::Invitation => self.invitation,
            Purpose::Verification => self.verification,
            Purpose::Reset => self.reset,
        }
    }

    /// Whether one of the tenant's seats is theirs.
    fn has_seat(&self) -> bool {
        self.status.can_act() || self.status == Status::Suspended
    }

    /// How it ends for somebody who is, or for somebody who was only asked to be.
    fn ended(&self) -> Event {
        if self.status == Status::Invited { Event::InvitationRevoked } else { Event::Deleted { seats: -i64::from(self.has_seat()) } }
    }

    /// Their address, if it is shown to be theirs and nobody else set the password: then whoever is in is the owner of that address, in other tenants too.
    pub fn proven_email(&self) -> Option<&String> {
        self.email.known().filter(|_| self.email_verified && self.chosen)
    }

    /// Whether a session that began in this epoch goes on, as far as the user is concerned.
    pub fn continues(&self, session: Uuid, epoch: i64) -> bool {
        self.status.can_act() && (epoch == self.epoch || self.keeps == Some(session))
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
        Event::Deleted { .. } => vec![cancel(INVITATION_TIMER), cancel(LOCK_TIMER)],
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
        | Event::LoginAttemptsLimited { .. }
        | Event::Reactivated { .. } => vec![],
    }
}

crate::aggregate!(User, "user", Command, Event, Error);

impl crate::Aggregate for User {
    type Ask = Command;

    const EVENTS: &'static [EventKind] = Event::KINDS;

    const METERED: &'static [(&'static str, Meter)] = &[
        ("user.registered", Meter::Users),
        ("user.invitation_accepted", Meter::Users),
        ("user.reactivated", Meter::Users),
        ("user.deactivated", Meter::Users),
        ("user.deleted", Meter::Users),
    ];

    fn metered(event: &Event) -> i64 {
        if let Event::Reactivated { seats } | Event::Deleted { seats } = event {
            *seats
        } else if matches!(event, Event::Deactivated) {
            -1
        } else {
            i64::from(matches!(event, Event::Registered { .. } | Event::InvitationAccepted { .. }))
        }
    }

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

    /// Nothing leads into a tenant that is gone.
    fn needs_tenant(command: &Command) -> bool {
        matches!(
            command,
            Command::RecordLogin(_) | Command::RecordLoginFailure(_) | Command::RequestPasswordReset(_) | Command::ResetPassword(_)
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
            Self::Absent => rules::begin(issued.command, &issued.ctx),
            Self::Known(user) => user.decide(issued),
        }
    }

    /// A welcome belongs to the making of a tenant, which is the platform's.
    fn mails(&self, event: &Event) -> Option<MailCause> {
        let to = |email: &Personal<String>| Some(MailCause::Members { address: email.known().map(|email| fold_email(email)) });
        match event {
            Event::Invited { email, .. } => to(email),
            Event::InvitationResent { .. } | Event::EmailVerificationRequested { .. } => match self {
                Self::Known(user) => to(&user.email),
                Self::Absent => None,
            },
            Event::PasswordResetRequested { welcome: false, .. } => Some(MailCause::Anybody),
            // Once a day at most: strangers must not be able to use up the warning of a victim.
            Event::LoginAttemptsLimited { .. }
            | Event::PasswordResetRequested { welcome: true, .. }
            | Event::Registered { .. }
            | Event::InvitationAccepted { .. }
            | Event::InvitationDeclined
            | Event::InvitationRevoked
            | Event::InvitationExpired
            | Event::EmailVerified
            | Event::EmailChanged { .. }
            | Event::ProfileUpdated { .. }
            | Event::RoleChanged { .. }
            | Event::PasswordSet { .. }
            | Event::LoggedIn { .. }
            | Event::LoginFailed { .. }
            | Event::Locked { .. }
            | Event::Unlocked
            | Event::Suspended { .. }
            | Event::Reactivated { .. }
            | Event::Deactivated
            | Event::Deleted { .. }
            | Event::Erased { .. } => None,
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
        for (claim, label, was, is) in [(STAFF, "staff", was.staff, is.staff), (PAYERS, "payers", was.payer, is.payer)] {
            match (was, is) {
                (false, true) => effects.push(Effect::TakeClaim { claim, label: label.into(), value: id.map(|id| id.to_string()) }),
                (true, false) => effects.push(Effect::ReleaseClaim { claim, label: label.into() }),
                (true, true) | (false, false) => {}
            }
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
        (counter == ADMINS).then_some(Error::LastAdmin)
    }
}
