//! The credentials of devices: `tnd_<which>.<secret>`, kept as API keys are; the codes that expected devices show; and when devices were last heard of.

use std::time::Instant;

use cqrs_es::Aggregate as _;
use domain::iot::device::{CLAIM_CODE, Device, Status};
use domain::{Actor, StreamId, TenantId};
use sha2::{Digest as _, Sha256};

use crate::api_keys::Drawn;
use crate::authenticate::Authenticated;
use crate::{Access, AccessError, FRESH, secret};

/// What credentials of devices begin with.
pub const PREFIX: &str = "tnd_";

/// The letters of claim codes: those of Crockford's Base32, of which none looks like another.
const LETTERS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// A code for a device that is expected, to be shown once: 100 random bits in groups of five letters.
pub fn claim_code() -> String {
    let letters: Vec<u8> = secret::<20>().iter().map(|byte| LETTERS[usize::from(*byte % 32)]).collect();
    letters.chunks(5).map(String::from_utf8_lossy).collect::<Vec<_>>().join("-")
}

/// What is kept of a code. Case and hyphens do not matter, nor letters that look like digits.
pub fn claim_digest(code: &str) -> domain::text::Sha256 {
    let plain = code.chars().filter(char::is_ascii_alphanumeric).map(|letter| match letter.to_ascii_uppercase() {
        'O' => '0',
        'I' | 'L' => '1',
        other => other,
    });
    <[u8; 32]>::from(Sha256::digest(plain.collect::<String>())).into()
}

impl Access {
    /// Draws a credential for a device. It opens nothing until an event names it.
    pub async fn draw_credential(&self, device: StreamId) -> Result<Drawn, AccessError> {
        self.draw_for(Device::TYPE, PREFIX, device).await
    }

    /// The device that is expected with a code, if one is.
    pub async fn expected(&self, claim_digest: &str) -> Result<Option<StreamId>, AccessError> {
        match self.store().holder(&CLAIM_CODE, TenantId::SYSTEM, claim_digest).await? {
            Some(device) if self.admits_tenant(device.tenant).await? => Ok(Some(device)),
            Some(_) | None => Ok(None),
        }
    }

    /// Which device acts; none does that was not accepted, or does not work.
    pub(crate) async fn with_credential(&self, bearer: &str) -> Result<Authenticated, AccessError> {
        let name: [u8; 32] = Sha256::digest(bearer).into();
        let actor = match self.inner.devices.get(&name) {
            Some((actor, since)) if since.elapsed() < FRESH => actor,
            Some(_) | None => {
                let since = Instant::now();
                let actor = self.device_of(bearer).await?;
                self.inner.devices.insert(name, (actor.clone(), since));
                actor
            }
        };
        Ok(Authenticated { actor: actor.ok_or(AccessError::Invalid)?, session: None, key: None, expires_at: None })
    }

    async fn device_of(&self, bearer: &str) -> Result<Option<Actor>, AccessError> {
        let Some((device, credential)) = self.named(Device::TYPE, PREFIX, bearer).await? else { return Ok(None) };
        let loaded = self.store().current::<Device>(device).await?;
        let now = self.store().clock().now();
        let Some(details) = loaded.state.details().filter(|details| details.secrets(now).contains(&credential)) else { return Ok(None) };
        if !self.admits_tenant(device.tenant).await? {
            return Ok(None);
        }
        if details.status != Status::Active {
            return Err(AccessError::NotActive);
        }
        Ok(Some(Actor::Device { id: device.id, tenant: device.tenant }))
    }

    /// Notes that a device is heard of.
    pub async fn heard_of(&self, device: StreamId) -> Result<(), AccessError> {
        sqlx::query(
            "insert into ops.device_heartbeats (tenant_id, device_id, last_seen_at) values ($1, $2, $3)
             on conflict (tenant_id, device_id) do update set last_seen_at = greatest(device_heartbeats.last_seen_at, excluded.last_seen_at)",
        )
        .bind(device.tenant.0)
        .bind(device.id)
        .bind(self.store().clock().now())
        .execute(self.store().pool())
        .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_read_whatever_its_case_and_however_its_letters_are_mistaken() {
        let code = claim_code();
        assert_eq!((code.len(), code.split('-').count()), (23, 4), "{code}");
        assert_ne!(claim_digest(&code), claim_digest(&claim_code()));
        assert_eq!(claim_digest("ABCD0-1"), claim_digest("abcdo l"));
    }
}
