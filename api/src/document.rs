//! What is the same for everybody: rendered once, compressed once, and told apart by a strong `ETag` (RFC 9110 section 8.8.3).

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::sync::{Arc, LazyLock, OnceLock};

use axum::http::header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use parking_lot::RwLock;
use sha2::{Digest as _, Sha256};
use utoipa_swagger_ui::Config;

use crate::problem::{Problem, explanation};

/// One form of a document.
struct Form {
    body: Bytes,
    etag: HeaderValue,
}

impl Form {
    fn new(body: Bytes, suffix: &str) -> Self {
        let digest = hex::encode(&Sha256::digest(&body)[..12]);
        let etag = HeaderValue::from_str(&format!("\"{digest}{suffix}\"")).unwrap_or_else(|_| HeaderValue::from_static("\"\""));
        Self { body, etag }
    }
}

/// A document in the forms that it is sent in.
pub(crate) struct Document {
    content_type: HeaderValue,
    plain: Form,
    gzip: Option<Form>,
}

impl Document {
    fn new(content_type: &str, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        let gzip = encoder.write_all(&body).and_then(|()| encoder.finish()).ok();
        Self {
            content_type: HeaderValue::from_str(content_type).unwrap_or_else(|_| HeaderValue::from_static("application/octet-stream")),
            plain: Form::new(body, ""),
            gzip: gzip.map(|gzip| Form::new(gzip.into(), "-gzip")),
        }
    }

    /// The answer to a request with these headers: the document, or that the client has it already.
    pub(crate) fn answer(&self, headers: &HeaderMap) -> Response {
        let gzip = self.gzip.as_ref().filter(|_| takes_gzip(headers));
        let form = gzip.unwrap_or(&self.plain);
        let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
        let is_known = |tag: &str| tag == "*" || tag.trim_start_matches("W/").as_bytes() == form.etag.as_bytes();
        let mut response = if known.map(str::trim).any(is_known) {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            let mut response = form.body.clone().into_response();
            response.headers_mut().insert(CONTENT_TYPE, self.content_type.clone());
            if gzip.is_some() {
                response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            }
            response
        };
        let told = response.headers_mut();
        told.insert(ETAG, form.etag.clone());
        told.insert(VARY, HeaderValue::from_static("accept-encoding"));
        told.insert(CACHE_CONTROL, HeaderValue::from_static("public, no-cache"));
        response
    }
}

/// Whether a client takes gzip: named, or as any, and not with the weight 0 (RFC 9110 section 12.5.3).
fn takes_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let mut weights = HashMap::new();
    for coding in values.flat_map(|value| value.split(',')) {
        let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = parameters.split_once('=').map_or(1.0, |(_, weight)| weight.trim().parse().unwrap_or(0.0));
        weights.insert(name.trim().to_ascii_lowercase(), weight);
    }
    weights.get("gzip").or_else(|| weights.get("*")).is_some_and(|weight: &f32| *weight > 0.0)
}

/// The description of the interface, rendered when it is first asked for.
#[derive(Clone)]
pub(crate) struct Description(Arc<(utoipa::openapi::OpenApi, OnceLock<Document>)>);

impl Description {
    pub(crate) fn new(openapi: utoipa::openapi::OpenApi) -> Self {
        Self(Arc::new((openapi, OnceLock::new())))
    }

    pub(crate) fn answer(&self, headers: &HeaderMap) -> Response {
        let (openapi, document) = &*self.0;
        document.get_or_init(|| Document::new("application/json", openapi.to_json().unwrap_or_default())).answer(headers)
    }
}

/// Documents by name, made when they are first asked for. Only what exists is kept, so there are never more than there are files.
struct Shelf {
    made: RwLock<HashMap<String, Arc<Document>>>,
    make: fn(&str) -> Option<Document>,
}

impl Shelf {
    fn new(make: fn(&str) -> Option<Document>) -> Self {
        Self { made: RwLock::default(), make }
    }

    fn answer(&self, name: &str, headers: &HeaderMap) -> Result<Response, Problem> {
        if let Some(document) = self.made.read().get(name) {
            return Ok(document.answer(headers));
        }
        let document = Arc::new((self.make)(name).ok_or_else(Problem::not_found)?);
        self.made.write().insert(name.to_owned(), document.clone());
        Ok(document.answer(headers))
    }
}

/// One of the pages that explain problems.
pub(crate) fn error_page(name: &str, headers: &HeaderMap) -> Result<Response, Problem> {
    static PAGES: LazyLock<Shelf> =
        LazyLock::new(|| Shelf::new(|name| Some(Document::new("text/markdown; charset=utf-8", explanation(name)?))));
    PAGES.answer(name, headers)
}

/// One of the files that show the description of the interface to people.
pub(crate) fn docs_file(name: &str, headers: &HeaderMap) -> Result<Response, Problem> {
    static FILES: LazyLock<Shelf> = LazyLock::new(|| {
        Shelf::new(|name| {
            let file = utoipa_swagger_ui::serve(name, Arc::new(Config::from("/openapi.json"))).ok().flatten()?;
            let mut plain = Vec::new();
            if file.gzpipped {
                GzDecoder::new(&*file.bytes).read_to_end(&mut plain).ok()?;
            } else {
                plain.extend_from_slice(&file.bytes);
            }
            Some(Document::new(&file.content_type, plain))
        })
    });
    FILES.answer(name, headers)
}
