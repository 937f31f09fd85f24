//! The tokens in the links of mails: which user, what it is for, and an authentication code over both. Nothing of them is stored, so nothing can be stolen from a table; that
//! each is good once, and for how long, the user's own events say.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
pub use domain::identity::user::Purpose;
use domain::{StreamId, TenantId};
use store::Store;
use uuid::Uuid;

/// What codes of links for a purpose are made over.
fn domain_of(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Invitation => "invitation link",
        Purpose::Verification => "verification link",
        Purpose::Reset => "reset link",
    }
}

/// How many bytes of the code a token carries.
const CODE: usize = 16;

/// The token of a link that the user's event named.
pub fn write(store: &Store, purpose: Purpose, user: StreamId, token: Uuid) -> String {
    let mut bytes = [user.tenant.0, user.id, token].map(Uuid::into_bytes).concat();
    let code = store.mac(domain_of(purpose), &[&bytes]);
    bytes.extend(&code[..CODE]);
    BASE64.encode(bytes)
}

/// Whose link it is, and what the user's event named; `None` when nobody of us wrote it for this purpose.
pub fn read(store: &Store, purpose: Purpose, text: &str) -> Option<(StreamId, Uuid)> {
    let bytes = BASE64.decode(text.trim()).ok()?;
    let (said, code) = bytes.split_at_checked(48)?;
    let expected = store.mac(domain_of(purpose), &[said]);
    if !crate::same(&expected[..CODE], code) {
        return None;
    }
    let id = |at: usize| Uuid::from_slice(&said[at..at + 16]).ok();
    Some((StreamId::new(TenantId(id(0)?), id(16)?), id(32)?))
}
