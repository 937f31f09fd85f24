//! Answers with a secret that is shown to whoever asked for it, and to nobody else.

use access::api_keys::Drawn as Secret;
use axum::response::{IntoResponse, Response};
use domain::StreamId;
use serde_json::{Value, json};

use crate::app::App;
use crate::extract::{Drawn, Repeat, Written, WrittenBody};
use crate::problem::Problem;

/// Answers a request for which a secret is drawn. It is shown under this name; a repeated request is shown the same one, as long as answers are kept.
pub(crate) async fn once<F>(
    (app, repeat, asked): (&App, &Repeat, &str),
    called: &'static str,
    draw: impl Future<Output = Result<(StreamId, Secret), Problem>>,
    write: impl FnOnce(StreamId, &Secret) -> F,
) -> Result<Response, Problem>
where
    F: Future<Output = Result<Written, Problem>>,
{
    let run = |Drawn { value: (stream, secret), .. }: Drawn<(StreamId, Secret)>| async move {
        let written = write(stream, &secret).await;
        // Drawn for a request whose answer is known already, but no longer kept, or that was refused: then no event names it. Of two that were sent at once each finds what
        // the other has done.
        let doubtful = match &written {
            Ok(written) => written.outcome.replayed,
            Err(problem) => problem.is_refusal(),
        };
        let unnamed = doubtful && !app.access.counts(stream, secret.credential).await?;
        if unnamed {
            app.access.discard(stream.tenant, secret.credential).await?;
        }
        let written = written?;
        let mut body = json!(WrittenBody::of(&written.outcome));
        if let (false, Value::Object(fields)) = (unnamed, &mut body) {
            fields.insert(called.to_owned(), Value::String(secret.key));
        }
        let (plain, _) = written.into_response().into_parts();
        let mut response = (plain.status, axum::Json(body)).into_response();
        let own = std::mem::replace(response.headers_mut(), plain.headers);
        response.headers_mut().extend(own);
        Ok(response)
    };
    repeat.once(asked, draw, run).await
}
