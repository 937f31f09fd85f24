//! A client that costs as little as it can: a connection for each request under way, kept open, and requests that are put together once.

use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// Connections that no request uses.
type Idle = Arc<Mutex<Vec<SendRequest<Full<Bytes>>>>>;

/// A client of a server.
#[derive(Clone)]
pub(crate) struct Client {
    address: Arc<str>,
    authorization: Arc<str>,
    idle: Idle,
}

/// An answer that was read to its end.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) position: i64,
    body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Of what was made.
    pub(crate) fn id(&self) -> anyhow::Result<String> {
        Ok(self.json()["id"].as_str().context("an id")?.to_owned())
    }

    /// The number at `"name":` in the body, found without parsing all of the JSON.
    pub(crate) fn number(&self, name: &str) -> Option<i64> {
        let body = std::str::from_utf8(&self.body).ok()?;
        let rest = body.split_once(&format!("\"{name}\":"))?.1;
        rest[..rest.find([',', '}'])?].trim().parse().ok()
    }
}

impl Client {
    pub(crate) fn new(address: &str, token: &str) -> Self {
        Self { address: address.into(), authorization: format!("Bearer {token}").into(), idle: Arc::default() }
    }

    /// A client of the same server with another token.
    pub(crate) fn acting(&self, token: &str) -> Self {
        Self { authorization: format!("Bearer {token}").into(), ..self.clone() }
    }

    /// The same client with connections of its own.
    pub(crate) fn alone(&self) -> Self {
        Self { idle: Arc::default(), ..self.clone() }
    }

    /// Sends a request and reads the answer, whatever it is.
    pub(crate) async fn try_send(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Answer> {
        let mut request =
            Request::builder().method(method).uri(path).header(HOST, &*self.address).header(AUTHORIZATION, &*self.authorization);
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body.map(|body| body.to_string().into()).unwrap_or_default()))?;
        let mut connection = self.connection().await?;
        let answer = connection.send_request(request).await?;
        let (parts, body) = answer.into_parts();
        let body = body.collect().await?.to_bytes();
        self.idle.lock().expect("no panic while locked").push(connection);
        let position = parts.headers.get("tenure-position").and_then(|position| position.to_str().ok()?.parse().ok());
        Ok(Answer { status: parts.status, position: position.unwrap_or(0), body })
    }

    async fn connection(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        loop {
            let idle = self.idle.lock().expect("no panic while locked").pop();
            match idle {
                Some(mut connection) => {
                    if connection.ready().await.is_ok() {
                        return Ok(connection);
                    }
                }
                None => break,
            }
        }
        let stream = TcpStream::connect(&*self.address).await?;
        stream.set_nodelay(true)?;
        let (connection, driver) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(driver);
        Ok(connection)
    }

    async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        let answer = self.try_send(method, path, body).await.expect("an answer");
        assert!(answer.status.is_success(), "{path}: {} {}", answer.status, String::from_utf8_lossy(&answer.body));
        answer
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::POST, path, Some(body)).await
    }

    /// Whether a list reflects a position by now.
    pub(crate) async fn shows(&self, list: &str, position: i64) -> anyhow::Result<bool> {
        Ok(self.try_send(Method::GET, &format!("{list}&after={position}"), None).await?.status.is_success())
    }
}
