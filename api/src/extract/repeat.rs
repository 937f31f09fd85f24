//! Requests that are repeated, where the answer is not that of one command of one aggregate, or carries a secret.
//!
//! What is drawn for a request (ids, secrets) is kept, sealed, before anything is done with it; the answer when there is one. The same request with the same key gets the
//! first answer; one that was cut off in between goes on with what was drawn, so that a secret is never lost that counts.

use axum::body::to_bytes;
use axum::extract::{FromRequestParts, MatchedPath};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, ETAG, LOCATION};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use commands::{CommandError, Executor, KeepError, Key};
use domain::TenantId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::write::{IDEMPOTENT_REPLAYED, idempotency_key, original};
use super::{Caller, TENURE_POSITION};
use crate::app::App;
use crate::problem::{Problem, code};

/// The headers that are kept with an answer.
const KEPT: [HeaderName; 5] = [CONTENT_TYPE, CACHE_CONTROL, ETAG, LOCATION, TENURE_POSITION];

/// The idempotency key of a request, with what it is unique within.
pub struct Repeat {
    executor: Executor,
    tenant: TenantId,
    /// Whose request it is: somebody else's with the same words is another one.
    by: String,
    /// Whether nobody has said who they are: then the key stands for the same words only.
    anonymous: bool,
    route: String,
    path: String,
    key: Option<String>,
}

impl FromRequestParts<App> for Repeat {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let key = idempotency_key(&parts.headers)?;
        // Where no key was sent it does not matter who asks; the route says whether somebody has to.
        let known = key.is_some() && parts.headers.contains_key(AUTHORIZATION);
        let caller = if known { Caller::from_request_parts(parts, app).await.ok() } else { None };
        let route = parts.extensions.get::<MatchedPath>().map_or_else(|| parts.uri.path(), MatchedPath::as_str);
        let uri = original(parts);
        Ok(Self {
            executor: app.executor.clone(),
            tenant: caller.as_ref().map_or(TenantId::SYSTEM, |caller| caller.tenant),
            by: caller.as_ref().map(|caller| caller.actor.name()).unwrap_or_default(),
            anonymous: caller.is_none(),
            route: format!("{} {route}", parts.method),
            path: uri.path_and_query().map_or_else(|| uri.path(), |path| path.as_str()).to_owned(),
            key,
        })
    }
}

/// Marks an answer of which some items failed for a reason that may pass: it is not kept.
#[derive(Clone, Copy, Debug)]
pub struct Unfinished;

/// Marks an answer as [`Unfinished`] where one of these problems is no refusal.
pub(crate) fn unless_final<'a>(mut response: Response, problems: impl IntoIterator<Item = &'a Problem>) -> Response {
    if problems.into_iter().any(|problem| !problem.is_refusal()) {
        response.extensions_mut().insert(Unfinished);
    }
    response
}

/// Where nothing is drawn.
pub(crate) async fn nothing() -> Result<(), Problem> {
    Ok(())
}

/// What was drawn for a request.
pub struct Drawn<D> {
    /// That.
    pub value: D,
    /// What makes its commands repeatable, one by one.
    pub keys: ItemKeys,
}

/// The idempotency keys of a request's commands.
#[derive(Clone)]
pub struct ItemKeys(Option<Key>);

impl ItemKeys {
    /// The key of one of the commands.
    pub fn nth(&self, n: usize) -> Vec<Key> {
        self.0.iter().map(|key| Key { key: format!("{} {n}", key.key), ..key.clone() }).collect()
    }
}

#[derive(Serialize, Deserialize)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Answer {
    async fn of(response: Response) -> Result<(Self, Response), Problem> {
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.map_err(internal)?;
        let value = |name: &HeaderName| Some((name.to_string(), parts.headers.get(name)?.to_str().ok()?.to_owned()));
        let answer = Self {
            status: parts.status.as_u16(),
            headers: KEPT.iter().filter_map(value).collect(),
            body: String::from_utf8_lossy(&body).into_owned(),
        };
        Ok((answer, Response::from_parts(parts, body.into())))
    }

    fn again(self) -> Result<Response, Problem> {
        let mut response = (StatusCode::from_u16(self.status).map_err(internal)?, self.body).into_response();
        response.headers_mut().remove(CONTENT_TYPE);
        for (name, value) in self.headers {
            response.headers_mut().insert(HeaderName::try_from(name).map_err(internal)?, HeaderValue::try_from(value).map_err(internal)?);
        }
        response.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
        Ok(response)
    }
}

fn internal(error: impl std::fmt::Display) -> Problem {
    Problem::new(code::INTERNAL, error.to_string())
}

fn unkept(error: KeepError) -> Problem {
    match error {
        KeepError::KeyReused => CommandError::KeyReused.into(),
        KeepError::Unreadable => internal(error),
        KeepError::Unavailable(_) => CommandError::Unavailable.into(),
    }
}

impl Repeat {
    fn key(&self, asked: &str) -> Option<Key> {
        let key = self.key.clone()?;
        let parts = [self.path.as_str(), &self.by, asked];
        let hash = parts.iter().fold(Sha256::new(), |hash, part| hash.chain_update(part).chain_update([0]));
        let fingerprint: [u8; 32] = hash.finalize().into();
        // Strangers share no key: whoever does not know all that was asked takes nobody's.
        let key = if self.anonymous {
            format!("{key} {}", hex::encode(self.executor.store().mac("anonymous request", &[&fingerprint])))
        } else {
            key
        };
        Some(Key { tenant: self.tenant, scope: self.route.clone(), key, fingerprint })
    }

    /// Answers a request, whose body is `asked`: the first time with what `run` makes of what `draw` draws, then with the same answer.
    pub async fn once<D, F>(
        &self,
        asked: &str,
        draw: impl Future<Output = Result<D, Problem>>,
        run: impl FnOnce(Drawn<D>) -> F,
    ) -> Result<Response, Problem>
    where
        D: Serialize + DeserializeOwned,
        F: Future<Output = Result<Response, Problem>>,
    {
        let Some(key) = self.key(asked) else { return run(Drawn { value: draw.await?, keys: ItemKeys(None) }).await };
        let kept = if let Some(kept) = self.executor.store().kept(&key).await.map_err(unkept)? {
            kept
        } else {
            let drawn = serde_json::to_vec(&draw.await?).map_err(internal)?;
            self.executor.store().keep_drawn(&key, &drawn).await.map_err(unkept)?
        };
        if let Some(answer) = kept.answer {
            return serde_json::from_slice::<Answer>(&answer).map_err(internal)?.again();
        }
        let value = serde_json::from_slice(&kept.drawn).map_err(internal)?;
        match run(Drawn { value, keys: ItemKeys(Some(key.clone())) }).await {
            // What may yet be done is done when the request comes again, with the same that was drawn.
            Ok(response) if response.extensions().get::<Unfinished>().is_some() => Ok(response),
            Ok(response) => {
                let (answer, response) = Answer::of(response).await?;
                let answer = serde_json::to_vec(&answer).map_err(internal)?;
                self.executor.store().keep_answer(&key, &answer).await.map_err(unkept)?;
                Ok(response)
            }
            Err(problem) => {
                // Where nobody knows whether it was done, what was drawn may count.
                if problem.is_refusal() {
                    self.executor.store().forget_drawn(&key).await.map_err(unkept)?;
                }
                Err(problem)
            }
        }
    }
}
