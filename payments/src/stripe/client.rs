//! Requests to Stripe, and why they fail.

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::Stripe;
use crate::provider::ProviderError;

/// The version of Stripe's interface that is spoken, whatever the account's own is.
const VERSION: &str = "2024-06-20";
pub(super) type Form = Vec<(String, String)>;

#[expect(clippy::needless_pass_by_value, reason = "numbers and texts alike, as they come")]
pub(super) fn field(name: &str, value: impl ToString) -> (String, String) {
    (name.to_owned(), value.to_string())
}

impl Stripe {
    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}/v1/{path}", self.base)).bearer_auth(&self.key).header("Stripe-Version", VERSION)
    }

    pub(super) async fn post(&self, path: &str, idempotency_key: Option<&str>, form: &Form) -> Result<Value, Refused> {
        let request = self.request(Method::POST, path).form(form);
        send(if let Some(key) = idempotency_key { request.header("Idempotency-Key", key) } else { request }).await
    }
}

/// What Stripe refused, and whether it may do it later.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) status: Option<StatusCode>,
    pub(super) code: Option<String>,
    pub(super) later: bool,
}

impl From<Refused> for ProviderError {
    /// The message is left out: it may quote what was sent.
    fn from(refused: Refused) -> Self {
        let what = match (refused.status, refused.code) {
            (Some(status), Some(code)) => format!("Stripe answered {} {code}", status.as_u16()),
            (Some(status), None) => format!("Stripe answered {}", status.as_u16()),
            (None, Some(why)) => why,
            (None, None) => "no answer from Stripe".to_owned(),
        };
        match refused.status {
            _ if refused.later => Self::Later(what),
            Some(StatusCode::PAYMENT_REQUIRED) => Self::Declined(what),
            Some(_) | None => Self::Never(what),
        }
    }
}

pub(super) async fn send(request: RequestBuilder) -> Result<Value, Refused> {
    let no_answer = |_| Refused { status: None, code: None, later: true };
    let response = request.send().await.map_err(no_answer)?;
    let status = response.status();
    let should_retry = response.headers().get("Stripe-Should-Retry").and_then(|value| value.to_str().ok()).map(|value| value == "true");
    let body: Value = serde_json::from_slice(&response.bytes().await.map_err(no_answer)?).unwrap_or_default();
    if status.is_success() {
        return Ok(body);
    }
    let code = body["error"]["code"].as_str().or_else(|| body["error"]["type"].as_str()).map(str::to_owned);
    // A key that is no good, or may not, is put right by whoever runs this, and then all of it is to be done.
    let by_status = status.is_server_error()
        || matches!(
            status,
            StatusCode::CONFLICT
                | StatusCode::TOO_MANY_REQUESTS
                | StatusCode::UNAUTHORIZED
                | StatusCode::FORBIDDEN
                | StatusCode::FAILED_DEPENDENCY
        );
    Err(Refused { status: Some(status), code, later: should_retry.unwrap_or(false) || by_status })
}

pub(super) fn id_of(object: &Value) -> Result<String, Refused> {
    let id = object["id"].as_str().map(str::to_owned);
    id.ok_or_else(|| Refused { status: None, code: Some("Stripe's answer has no id".into()), later: true })
}

/// What a form says, in few letters.
pub(super) fn digest(form: &Form) -> String {
    let add =
        |hash: Sha256, (name, value): &(String, String)| hash.chain_update(name).chain_update([0]).chain_update(value).chain_update([0]);
    hex::encode(&form.iter().fold(Sha256::new(), add).finalize()[..12])
}
