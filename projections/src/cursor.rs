//! Cursors: where a list goes on, opaque to the client and signed, so that nobody can make one up.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, Mac as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::Sha256;

use crate::query::QueryError;

/// Signs cursors. All processes of an installation need the same one.
#[derive(Clone)]
pub struct CursorKey(pub [u8; 32]);

/// How many bytes of the signature a cursor carries.
const TAG: usize = 16;

impl CursorKey {
    /// A cursor of the list `list` (its name, sort and filters) that goes on after `place`.
    pub fn sign(&self, list: &str, place: &impl Serialize) -> String {
        let body = serde_json::to_vec(place).unwrap_or_default();
        let mut cursor = self.tag(list, &body).to_vec();
        cursor.extend(body);
        BASE64.encode(cursor)
    }

    /// The place in the list `list`; an error when the cursor was made for another list, or not by us.
    pub fn open<T: DeserializeOwned>(&self, list: &str, cursor: &str) -> Result<T, QueryError> {
        let bytes = BASE64.decode(cursor).map_err(|_| QueryError::BadCursor)?;
        let (tag, body) = bytes.split_at_checked(TAG).ok_or(QueryError::BadCursor)?;
        self.mac(list, body).verify_truncated_left(tag).map_err(|_| QueryError::BadCursor)?;
        serde_json::from_slice(body).map_err(|_| QueryError::BadCursor)
    }

    fn tag(&self, list: &str, body: &[u8]) -> [u8; TAG] {
        let mut tag = [0; TAG];
        tag.copy_from_slice(&self.mac(list, body).finalize().into_bytes()[..TAG]);
        tag
    }

    fn mac(&self, list: &str, body: &[u8]) -> Hmac<Sha256> {
        let Ok(mac) = <Hmac<Sha256> as hmac::Mac>::new_from_slice(&self.0) else { unreachable!("HMAC takes keys of any length") };
        mac.chain_update((list.len() as u64).to_be_bytes()).chain_update(list).chain_update(body)
    }
}
