//! Devices on which somebody has logged in before: a token that a login is answered with, and that the next login of the same user on that device shows.
//!
//! The method is that of device cookies (OWASP, "Slow Down Online Guessing Attacks with Device Cookies"). A known device has its own count of wrong passwords, so that
//! strangers who guess keep nobody out who has been in before. The token opens nothing, and nothing of it is stored: it is a user, a random id, a time, and an
//! authentication code over them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use chrono::{DateTime, TimeDelta};
use domain::{StreamId, TenantId};
use uuid::Uuid;

use crate::{Access, same};

/// What tokens of devices begin with.
pub const PREFIX: &str = "tkd_";
/// How long a device is known after its last login.
pub const KNOWN: TimeDelta = TimeDelta::days(180);
/// How many bytes a token says.
const SAID: usize = 56;

impl Access {
    /// The token of a device on which a user has just logged in.
    pub(crate) fn device_token(&self, user: StreamId, device: Uuid) -> String {
        let mut bytes = [user.tenant.0, user.id, device].map(Uuid::into_bytes).concat();
        bytes.extend(self.store().clock().now().timestamp().to_be_bytes());
        let code = self.store().mac(PREFIX, &[&bytes]);
        bytes.extend(code);
        format!("{PREFIX}{}", BASE64.encode(bytes))
    }

    /// The device whose token this is, if a user has logged in on it before, and not too long ago.
    pub(crate) fn known_device(&self, user: StreamId, token: &str) -> Option<Uuid> {
        let bytes = BASE64.decode(token.trim().strip_prefix(PREFIX)?).ok()?;
        let (said, code) = bytes.split_at_checked(SAID)?;
        if !same(&self.store().mac(PREFIX, &[said]), code) {
            return None;
        }
        let id = |at: usize| Uuid::from_slice(&said[at..at + 16]).ok();
        let since = DateTime::from_timestamp(i64::from_be_bytes(said[48..].try_into().ok()?), 0)?;
        let is_theirs = StreamId::new(TenantId(id(0)?), id(16)?) == user;
        id(32).filter(|_| is_theirs && self.store().clock().now() < since + KNOWN)
    }
}
