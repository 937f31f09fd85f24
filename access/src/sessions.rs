//! Sessions: beginning one with a password, going on with a refresh token, ending it.
//!
//! A refresh token is the session, a generation and an authentication code over both; the table holds the generation that is good and nothing else. Using a token makes the
//! next generation. A client whose answer was lost may ask again for a moment, and gets the same tokens; an older one proves that two parties have it, and ends the session
//! (RFC 9700 section 4.14.2).

use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use chrono::{DateTime, TimeDelta, Utc};
use commands::{CommandError, Request, lookup};
use domain::actor::Grants;
use domain::identity::access_record::{Action, NoteAccess, Outcome};
use domain::identity::user::{Details, EMAIL, RecordLogin, RecordLoginFailure, Status, User, fold_email};
use domain::{Actor, StreamId, TenantId, UserId};
use serde::Serialize;
use uuid::Uuid;

use crate::attempts::{Account, Attempt, Origin};
use crate::entry::Entry;
use crate::passwords::{Checked, Party, Password};
use crate::source::Source;
use crate::token::{Claims, TokenError};
use crate::{ACCESS_TTL, Access, AccessError, SESSION_TTL, api_keys, devices, same};

/// How long after a refresh the token before it is answered the same again.
pub const RETRY: TimeDelta = TimeDelta::seconds(10);
/// What refresh tokens begin with.
pub const REFRESH: &str = "trt_";
/// What opaque access tokens begin with.
pub const OPAQUE: &str = "tat_";
/// How much of what a browser says of itself is kept.
const USER_AGENT: usize = 200;

/// What whoever logs in gets.
#[derive(Clone, Serialize, utoipa::ToSchema)]
pub struct Tokens {
    /// For `Authorization: Bearer`.
    #[schema(example = "eyJ0eXAiOiJKV1QiLCJhbGciOiJFZERTQSJ9…")]
    pub access_token: String,
    /// Always `Bearer`.
    #[schema(example = "Bearer")]
    pub token_type: &'static str,
    /// For how many seconds the access token is good.
    #[schema(example = 600)]
    pub expires_in: i64,
    /// For the next access token; good once.
    #[schema(example = "trt_AaH8TVi…")]
    pub refresh_token: String,
    /// The session.
    pub session_id: Uuid,
    /// The tenant.
    pub tenant_id: TenantId,
    /// The user.
    pub user_id: UserId,
    /// For the header `Tenure-Device` of the next login on this device, which is then not held up by wrong passwords that are tried elsewhere. Good for 180 days. Only a login
    /// with a password is answered with one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "tkd_AaH8TVi…")]
    pub device_token: Option<String>,
}

/// A session as its user sees it.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct Session {
    /// Which.
    pub id: Uuid,
    /// What the program said of itself that began it.
    #[schema(example = "curl/8.5.0")]
    pub user_agent: Option<String>,
    /// When it began.
    pub created_at: DateTime<Utc>,
    /// When it was last refreshed.
    pub last_used_at: DateTime<Utc>,
    /// When it ends at the latest.
    pub expires_at: DateTime<Utc>,
}

/// What a login says besides the password.
#[derive(Clone, Debug)]
pub struct Login<'a> {
    /// The tenant's id or slug, or `system`.
    pub tenant: &'a str,
    /// The user's address.
    pub email: &'a str,
    /// Whether the access tokens are to be opaque, rather than JWTs.
    pub opaque: bool,
    /// What the program says of itself.
    pub user_agent: Option<&'a str>,
    /// The network address that it comes from.
    pub source: Source,
    /// The token of the device, if somebody has logged in on it before.
    pub device: Option<&'a str>,
}

#[derive(sqlx::FromRow)]
struct Row {
    tenant_id: Uuid,
    user_id: Uuid,
    epoch: i64,
    generation: i64,
    rotated_at: DateTime<Utc>,
    opaque: bool,
    expires_at: DateTime<Utc>,
    ended_at: Option<DateTime<Utc>>,
    parent: Option<Uuid>,
}

/// How a session begins.
struct Begun<'a> {
    /// The credential that was checked, if one was.
    credential: Option<Uuid>,
    opaque: bool,
    user_agent: Option<&'a str>,
    /// The session that it belongs to, and when that ends.
    parent: Option<(Uuid, DateTime<Utc>)>,
}

impl Row {
    fn stream(&self) -> StreamId {
        StreamId::new(TenantId(self.tenant_id), self.user_id)
    }
}

impl Access {
    /// Begins a session for whoever knows the password. That somebody does not exist is told by nothing, nor by how long it takes.
    pub async fn login(&self, login: Login<'_>, password: Password) -> Result<Tokens, AccessError> {
        let began = Instant::now();
        let answer = self.attempt(login, password).await;
        if matches!(answer, Err(AccessError::InvalidCredentials)) {
            self.at_a_fixed_moment(began).await;
        }
        answer
    }

    async fn attempt(&self, login: Login<'_>, password: Password) -> Result<Tokens, AccessError> {
        let mut tenant = self.tenant(login.tenant).await?;
        // A tenant that does not exist has no records either.
        if let Some(named) = tenant
            && !self.admits_tenant(named).await?
        {
            tenant = None;
        }
        let stream = match tenant {
            Some(tenant) => self.store().holder(&EMAIL, tenant, &fold_email(login.email)).await?,
            None => None,
        };
        // A stream that nobody holds is as quickly read as one of somebody.
        let asked = stream.unwrap_or_else(|| StreamId::new(tenant.unwrap_or(TenantId::SYSTEM), self.store().fresh_id()));
        let loaded = self.store().current::<User>(asked).await?;
        let user = loaded.state.details().filter(|_| stream.is_some());
        let stored = self.hash_of(asked.tenant, user.and_then(|user| user.credential)).await?;
        // A tenant that does not exist has accounts of its own, so that guesses there count against nobody's.
        let account = self.account(tenant.unwrap_or(TenantId(Uuid::max())), login.email);
        let device = login.device.and_then(|token| self.known_device(asked, token)).filter(|_| user.is_some());
        let (origin, party) = match device {
            Some(device) => (Origin::Device(device), Party::User(asked)),
            None => (Origin::Source(login.source), Party::Source(login.source)),
        };
        let Some((attempt, checked)) = self.try_password(account, origin, party, password, stored).await? else {
            return Err(AccessError::InvalidCredentials);
        };
        match (checked, user) {
            (Checked::Right { better }, Some(user)) => {
                self.make_good(&attempt).await;
                let tokens = self.entered(asked, user, better, &login).await?;
                let device = device.unwrap_or_else(|| self.store().fresh_id());
                Ok(Tokens { device_token: Some(self.device_token(asked, device)), ..tokens })
            }
            (Checked::Wrong, Some(_)) => {
                self.failed(asked, attempt.is_last).await;
                Err(AccessError::InvalidCredentials)
            }
            (_, None) => {
                let note = NoteAccess::new(Action::Login, Outcome::Refused, None, None, None);
                // Of a tenant that does not exist the platform keeps the record.
                if let Err(error) = self.note(tenant.unwrap_or(TenantId::SYSTEM), note, login.source).await {
                    tracing::warn!(%error, "a login of nobody could not be recorded");
                }
                Err(AccessError::InvalidCredentials)
            }
        }
    }

    async fn entered(&self, stream: StreamId, user: &Details, better: Option<String>, login: &Login<'_>) -> Result<Tokens, AccessError> {
        match user.status {
            Status::Active => {}
            // Locked by somebody who manages users. A guesser learns nothing of it.
            Status::Locked => return Err(AccessError::InvalidCredentials),
            Status::Invited | Status::Suspended | Status::Deactivated | Status::Deleted => return Err(AccessError::NotActive),
        }
        if let (Some(hash), Some(credential)) = (better, user.credential) {
            sqlx::query("update ops.credentials set hash = $3 where tenant_id = $1 and id = $2")
                .bind(stream.tenant.0)
                .bind(credential)
                .bind(hash)
                .execute(self.store().pool())
                .await?;
        }
        let begun = Begun { credential: user.credential, opaque: login.opaque, user_agent: login.user_agent, parent: None };
        self.begin(stream, user, begun).await
    }

    async fn hash_of(&self, tenant: TenantId, credential: Option<Uuid>) -> Result<Option<String>, AccessError> {
        Ok(sqlx::query_scalar("select hash from ops.credentials where tenant_id = $1 and id = $2")
            .bind(tenant.0)
            .bind(credential)
            .fetch_optional(self.store().pool())
            .await?)
    }

    /// Checks a password, unless too many others were tried from there; an attempt that was not looked at does not count.
    async fn try_password(
        &self,
        account: Account,
        origin: Origin,
        party: Party,
        password: Password,
        stored: Option<String>,
    ) -> Result<Option<(Attempt, Checked)>, AccessError> {
        let Some(attempt) = self.attempt_from(account, origin).await? else { return Ok(None) };
        match self.inner.hasher.check(password, stored, party, account.lane()).await {
            Ok(checked) => Ok(Some((attempt, checked))),
            Err(error) => {
                self.take_back(&attempt, false).await?;
                Err(error)
            }
        }
    }

    /// Records a wrong password. That it could not be recorded is told nobody, since it could be for somebody only.
    async fn failed(&self, user: StreamId, limited: bool) {
        let record = async |limited| {
            let request = Request::<User>::new(user, RecordLoginFailure { limited }, Self::system(), self.store().fresh_id());
            self.inner.executor.execute(request).await
        };
        let recorded = match record(limited).await {
            // The owner of the account cannot be told today; the failure is recorded all the same.
            Err(CommandError::MailLimit { .. }) => record(false).await,
            other => other,
        };
        if let Err(error) = recorded {
            tracing::warn!(%error, "a wrong password could not be recorded");
        }
    }

    /// Whether somebody who is in knows the password; wrong ones are bounded by session, as they are by address at a login.
    pub async fn knows(&self, stream: StreamId, session: Option<Uuid>, password: Password) -> Result<bool, AccessError> {
        let Some(user) = self.details(stream).await? else { return Ok(false) };
        let stored = self.hash_of(stream.tenant, user.credential).await?;
        let account = user.email.known().map_or_else(|| self.account_of(stream), |email| self.account(stream.tenant, email));
        let (origin, party) = (Origin::Session(session.unwrap_or_default()), Party::Tenant(stream.tenant));
        let Some((attempt, checked)) = self.try_password(account, origin, party, password, stored).await? else { return Ok(false) };
        let right = checked != Checked::Wrong;
        if right {
            self.make_good(&attempt).await;
        } else {
            self.failed(stream, attempt.is_last).await;
        }
        // As it is now: others may have guessed meanwhile.
        let now = self.admit(stream, Entry::PresentPassword).await?;
        Ok(right && now.is_some_and(|now| now.details.credential == user.credential))
    }

    /// Begins a session. Its row comes first: a login that is not recorded opens nothing.
    async fn begin(&self, stream: StreamId, user: &Details, begun: Begun<'_>) -> Result<Tokens, AccessError> {
        let Begun { credential, opaque, user_agent, parent } = begun;
        let store = self.store();
        let (session, now) = (store.fresh_id(), store.clock().now());
        let expires_at = parent.map_or(now + SESSION_TTL, |(_, until)| until);
        let agent = user_agent.map(|text| text.chars().filter(|c| !c.is_control()).take(USER_AGENT).collect::<String>());
        sqlx::query(
            "insert into ops.sessions (id, tenant_id, user_id, epoch, rotated_at, opaque, user_agent, created_at, last_used_at, expires_at, parent) values ($1, $2, $3, $4, $5, $6, $7, $5, $5, $8, $9)",
        )
        .bind(session)
        .bind(stream.tenant.0)
        .bind(stream.id)
        .bind(user.epoch)
        .bind(now)
        .bind(opaque)
        .bind(agent)
        .bind(expires_at)
        .bind(parent.map(|(parent, _)| parent))
        .execute(store.pool())
        .await?;
        let recorded = Request::<User>::new(stream, RecordLogin { session, credential }, Self::system(), store.fresh_id());
        if let Err(error) = self.inner.executor.execute(recorded).await {
            sqlx::query("delete from ops.sessions where id = $1").bind(session).execute(store.pool()).await?;
            // The password or the status changed in this very moment.
            let changed = matches!(error, CommandError::Rejected { .. });
            return Err(if changed { AccessError::InvalidCredentials } else { error.into() });
        }
        self.issue(session, stream, user, 0, opaque, expires_at).await
    }

    async fn issue(
        &self,
        session: Uuid,
        stream: StreamId,
        user: &Details,
        generation: i64,
        opaque: bool,
        session_end: DateTime<Utc>,
    ) -> Result<Tokens, AccessError> {
        let now = self.store().clock().now();
        let ttl = ACCESS_TTL.min(session_end - now);
        let access_token = if opaque {
            self.coded(OPAQUE, session, (now + ttl).timestamp())
        } else {
            let claims = Claims::new(&stream.id.to_string(), stream.tenant, user.role, Some(session), now, ttl);
            self.inner.keys.sign(&claims).await?
        };
        Ok(Tokens {
            access_token,
            token_type: "Bearer",
            expires_in: ttl.num_seconds(),
            refresh_token: self.coded(REFRESH, session, generation),
            session_id: session,
            tenant_id: stream.tenant,
            user_id: UserId(stream.id),
            device_token: None,
        })
    }

    /// A token that is a session, a number and a code over both.
    fn coded(&self, prefix: &'static str, session: Uuid, number: i64) -> String {
        let mut bytes = session.as_bytes().to_vec();
        bytes.extend(number.to_be_bytes());
        let code = self.store().mac(prefix, &[&bytes]);
        bytes.extend(code);
        format!("{prefix}{}", BASE64.encode(bytes))
    }

    /// What such a token says, if we wrote it.
    pub(crate) fn decoded(&self, prefix: &'static str, text: &str) -> Option<(Uuid, i64)> {
        let bytes = BASE64.decode(text.strip_prefix(prefix)?).ok()?;
        let (said, code) = bytes.split_at_checked(24)?;
        let number = i64::from_be_bytes(said[16..].try_into().ok()?);
        same(&self.store().mac(prefix, &[said]), code).then_some((Uuid::from_slice(&said[..16]).ok()?, number))
    }

    /// The next tokens of a session.
    pub async fn refresh(&self, token: &str) -> Result<Tokens, AccessError> {
        let (session, generation) = self.decoded(REFRESH, token).ok_or(AccessError::Invalid)?;
        let store = self.store();
        let now = store.clock().now();
        let rotated: Option<Row> = sqlx::query_as(
            "update ops.sessions set generation = generation + 1, rotated_at = $3, last_used_at = $3
             where id = $1 and generation = $2 and ended_at is null and expires_at > $3 returning *",
        )
        .bind(session)
        .bind(generation)
        .bind(now)
        .fetch_optional(store.pool())
        .await?;
        let row = match rotated {
            Some(row) => row,
            None => self.asked_again(session, generation, now).await?,
        };
        let stream = row.stream();
        match self.admit(stream, Entry::Session { session, epoch: row.epoch }).await? {
            Some(user) if self.goes_on(row.parent).await? => {
                self.issue(session, stream, &user.details, row.generation, row.opaque, row.expires_at).await
            }
            Some(_) | None => Err(AccessError::Invalid),
        }
    }

    /// Whether the session goes on that another one belongs to, if it belongs to one.
    async fn goes_on(&self, parent: Option<Uuid>) -> Result<bool, AccessError> {
        match parent {
            None => Ok(true),
            Some(parent) => Ok(self.standing(parent).await?.is_some()),
        }
    }

    /// A token that is not the newest: of somebody whose answer was lost, or of a thief, or of somebody who was robbed.
    async fn asked_again(&self, session: Uuid, generation: i64, now: DateTime<Utc>) -> Result<Row, AccessError> {
        let row: Option<Row> =
            sqlx::query_as("select * from ops.sessions where id = $1").bind(session).fetch_optional(self.store().pool()).await?;
        let row = row.filter(|row| row.ended_at.is_none() && row.expires_at > now).ok_or(AccessError::Invalid)?;
        if row.generation == generation + 1 && now <= row.rotated_at + RETRY {
            return Ok(row);
        }
        let tenant = TenantId(row.tenant_id);
        let (user, of) = (row.user_id.to_string(), session.to_string());
        let note = NoteAccess::new(Action::RefreshTokenReuse, Outcome::Refused, Some(&user), Some(&of), None);
        // Recorded first, since a session that has ended shows no reuse any more; and ended, recorded or not.
        let noted = self.note_always(tenant, note).await;
        self.end(row.stream(), Some(session), None).await?;
        noted?;
        Err(AccessError::Invalid)
    }

    async fn end(&self, user: StreamId, which: Option<Uuid>, but: Option<Uuid>) -> Result<u64, AccessError> {
        let ended: Vec<Uuid> = sqlx::query_scalar(
            "update ops.sessions set ended_at = $5 where tenant_id = $1 and user_id = $2 and ($3::uuid is null or id = $3) and ($4::uuid is null or id <> $4)
             and ended_at is null returning id",
        )
        .bind(user.tenant.0)
        .bind(user.id)
        .bind(which)
        .bind(but)
        .bind(self.store().clock().now())
        .fetch_all(self.store().pool())
        .await?;
        // This process knows at once, the others when they look again.
        ended.iter().for_each(|session| drop(self.inner.sessions.remove(session)));
        Ok(ended.len() as u64)
    }

    /// Ends the session of a token, access or refresh; a token that is nobody's ends nothing (RFC 7009 section 2.2). One of a type that has no session is refused, whether it
    /// is good or not (section 2.2.1): whoever asked must not believe that it opens nothing any more.
    pub async fn revoke(&self, token: &str) -> Result<(), AccessError> {
        let operator = || {
            self.inner
                .operator
                .as_ref()
                .is_some_and(|key| !matches!(key.verify(token, self.store().clock().now()), Err(TokenError::Invalid)))
        };
        if token.starts_with(api_keys::PREFIX) || token.starts_with(devices::PREFIX) || operator() {
            return Err(AccessError::UnsupportedTokenType);
        }
        let session = match self.decoded(REFRESH, token).or_else(|| self.decoded(OPAQUE, token)) {
            Some((session, _)) => Some(session),
            None => self.inner.keys.verify(token).await?.and_then(Result::ok).and_then(|claims| claims.sid),
        };
        let whose: Option<(Uuid, Uuid)> = sqlx::query_as("select tenant_id, user_id from ops.sessions where id = $1")
            .bind(session)
            .fetch_optional(self.store().pool())
            .await?;
        if let Some((tenant, user)) = whose {
            self.end_sessions(StreamId::new(TenantId(tenant), user), session, None, &user.to_string()).await?;
        }
        Ok(())
    }

    /// Ends a user's session, or all of them but one. How many that were.
    pub async fn end_sessions(&self, user: StreamId, which: Option<Uuid>, but: Option<Uuid>, by: &str) -> Result<u64, AccessError> {
        let ended = self.end(user, which, but).await?;
        if ended > 0 {
            let target = which.map_or_else(|| user.id.to_string(), |session| session.to_string());
            let note = NoteAccess::new(Action::EndSession, Outcome::Done, Some(by), Some(&target), None);
            self.note_always(user.tenant, note).await?;
        }
        Ok(ended)
    }

    /// Whether somebody may act on a user's sessions: they have to have all that the user has.
    pub async fn covers(&self, actor: &Actor, user: StreamId) -> Result<bool, AccessError> {
        let (found, _) = lookup::user(self.store(), user.tenant, UserId(user.id)).await?;
        Ok(found.is_none_or(|(_, person)| match &person.grants {
            Grants::Only(permissions) => actor.covers(person.role, Some(permissions)),
            Grants::OfRole => actor.covers(person.role, None),
        }))
    }

    /// The sessions of a user that go on, the newest first.
    pub async fn sessions(&self, user: StreamId) -> Result<Vec<Session>, AccessError> {
        let loaded = self.store().current::<User>(user).await?;
        let Some(details) = loaded.state.details().filter(|details| details.status.can_act()) else { return Ok(vec![]) };
        let sessions = sqlx::query_as(
            "select id, user_agent, created_at, last_used_at, expires_at from ops.sessions
             where tenant_id = $1 and user_id = $2 and ended_at is null and expires_at > $3 and (epoch = $4 or id = $5) order by created_at desc, id desc limit 200",
        );
        let (epoch, keeps, now) = (details.epoch, details.keeps, self.store().clock().now());
        Ok(sessions.bind(user.tenant.0).bind(user.id).bind(now).bind(epoch).bind(keeps).fetch_all(self.store().pool()).await?)
    }

    /// Begins a session in another tenant for somebody who has a user there too: with the same address, shown to be theirs on both sides. Here they have set their password
    /// themselves, so that nobody who runs this tenant can be them in another. Whether the other tenant exists is told by nothing.
    pub async fn switch_tenant(
        &self,
        from: StreamId,
        session: Uuid,
        to: &str,
        opaque: bool,
        user_agent: Option<&str>,
    ) -> Result<Tokens, AccessError> {
        let began = Instant::now();
        let answer = self.switched(from, session, to, opaque, user_agent).await;
        if matches!(answer, Err(AccessError::InvalidCredentials)) {
            self.at_a_fixed_moment(began).await;
        }
        answer
    }

    async fn switched(
        &self,
        from: StreamId,
        session: Uuid,
        to: &str,
        opaque: bool,
        user_agent: Option<&str>,
    ) -> Result<Tokens, AccessError> {
        if self.standing(session).await?.is_none() {
            return Err(AccessError::Invalid);
        }
        let here = self.details(from).await?;
        let email = here.and_then(|user| user.proven_email().cloned());
        let (Some(email), Some(tenant)) = (email, self.tenant(to).await?) else { return Err(AccessError::InvalidCredentials) };
        let Some(there) = self.store().holder(&EMAIL, tenant, &fold_email(&email)).await? else {
            return Err(AccessError::InvalidCredentials);
        };
        // It ends with the one that somebody logged in to, and is no way to prolong it.
        let parent: Option<(Uuid, DateTime<Utc>)> =
            sqlx::query_as("select coalesce(parent, id), expires_at from ops.sessions where id = $1")
                .bind(session)
                .fetch_optional(self.store().pool())
                .await?;
        if there.tenant == from.tenant || parent.is_none() {
            return Err(AccessError::InvalidCredentials);
        }
        match self.admit(there, Entry::OtherTenant).await? {
            Some(user) => self.begin(there, &user.details, Begun { credential: None, opaque, user_agent, parent }).await,
            None => Err(AccessError::InvalidCredentials),
        }
    }
}
