//! Answers with a secret that is shown this once.

use access::api_keys::Drawn;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::app::App;
use crate::extract::{Written, WrittenBody};
use crate::problem::Problem;

/// What came of a command for which a secret was drawn.
pub(crate) struct Made {
    written: Written,
    /// What the secret is called in the answer.
    called: &'static str,
    secret: String,
}

impl Made {
    /// What came of it; a secret that no event names is forgotten.
    pub(crate) async fn of(app: &App, written: Result<Written, Problem>, called: &'static str, drawn: Drawn) -> Result<Self, Problem> {
        // Where nobody knows whether it was done, the secret may have been named.
        let unnamed = match &written {
            Ok(written) => written.outcome.replayed,
            Err(problem) => problem.is_refusal(),
        };
        if unnamed {
            app.access.discard(drawn.tenant, drawn.credential).await?;
        }
        Ok(Self { written: written?, called, secret: drawn.key })
    }
}

impl IntoResponse for Made {
    fn into_response(self) -> Response {
        let outcome = self.written.outcome;
        let mut body = json!(WrittenBody::of(&outcome));
        // A repeated request gets none: it was drawn anew, and opens nothing.
        if let (false, Value::Object(fields)) = (outcome.replayed, &mut body) {
            fields.insert(self.called.to_owned(), Value::String(self.secret));
        }
        let (plain, _) = self.written.into_response().into_parts();
        let mut response = (plain.status, axum::Json(body)).into_response();
        let own = std::mem::replace(response.headers_mut(), plain.headers);
        response.headers_mut().extend(own);
        response
    }
}
