//! All routes. This file only lists them.

pub mod billing;
mod delivery;
mod examples;
mod headers;
pub mod identity;
pub mod iot;
mod secret;
pub mod support;

use std::collections::BTreeMap;
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, RefOr};

use utoipa::{IntoResponses, Modify as _, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use headers::UNREPEATABLE;

use crate::app::App;
use crate::health;

/// The description of the interface, before the routes add themselves.
#[derive(OpenApi)]
#[openapi(
    info(title = "Tenure", description = "Tenants, users, subscriptions, tickets and devices for multi-tenant SaaS products, event-sourced.", license(name = "Apache-2.0", identifier = "Apache-2.0")),
    modifiers(&Bearer),
    components(schemas(crate::Problem)),
    security(("bearer" = []))
)]
struct Description;

struct Bearer;

impl utoipa::Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
        openapi.components.get_or_insert_default().add_security_scheme("bearer", SecurityScheme::Http(scheme));
    }
}

/// Everything under `/v1`.
pub(crate) fn all() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Description::openapi())
        .merge(identity::session::routes())
        .merge(identity::me::routes())
        .merge(identity::tenant::routes())
        .merge(identity::user::routes())
        .merge(identity::role::routes())
        .merge(identity::api_key::routes())
        .merge(identity::access_record::routes())
        .merge(billing::plan::routes())
        .merge(billing::subscription::routes())
        .merge(billing::entitlement::routes())
        .merge(billing::provider::routes())
        .merge(billing::quota::routes())
        .merge(billing::outlet::routes())
        .merge(delivery::routes())
        .merge(support::ticket::routes())
        .merge(iot::device::routes())
}

/// What operators ask; never refused for load.
pub(crate) fn operations() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(health::readyz)).routes(routes!(health::health)).routes(routes!(health::metrics))
}

/// What tells that the process runs; asked for wherever it serves.
pub(crate) fn liveness() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(health::livez))
}

/// The description of the whole interface, and of `more` routes.
pub(crate) fn described(more: OpenApiRouter<App>) -> utoipa::openapi::OpenApi {
    let mut openapi = all().into_openapi();
    openapi.merge(liveness().into_openapi());
    openapi.merge(operations().into_openapi());
    openapi.merge(more.into_openapi());
    headers::Headers.modify(&mut openapi);
    examples::Examples.modify(&mut openapi);
    openapi
}

/// The description of the whole interface.
pub fn openapi() -> utoipa::openapi::OpenApi {
    described(OpenApiRouter::new())
}

/// What every operation may answer instead.
pub struct Refusals;

impl IntoResponses for Refusals {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let problem = || ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
        let response = |what: &str| ResponseBuilder::new().description(what).content("application/problem+json", problem()).build().into();
        BTreeMap::from([("4XX".to_owned(), response("Refused.")), ("5XX".to_owned(), response("Not now."))])
    }
}

/// Declares the routes of an aggregate's commands, and `commands()` that answers them all: first the creating one, `create name(Body) "path";`, then those on an existing
/// aggregate, `name(Body) METHOD "path" "media type";`. One that is made otherwise has no creating one. `$stream` says which stream an id is, for a caller.
#[macro_export]
macro_rules! commands {
    ($aggregate:ty, $tag:tt, $stream:path: $($name:ident($body:ident) $method:tt $path:tt $media:tt;)*) => {
        fn commands() -> utoipa_axum::router::OpenApiRouter<$crate::App> {
            utoipa_axum::router::OpenApiRouter::new()$(.routes(utoipa_axum::routes!($name)))*
        }

        $($crate::commands! { @on $aggregate, $tag, $stream: $name($body) $method $path $media })*
    };
    ($aggregate:ty, $tag:tt, $stream:path: create $create:ident($made:ident) $at:tt; $($name:ident($body:ident) $method:tt $path:tt $media:tt;)*) => {
        fn commands() -> utoipa_axum::router::OpenApiRouter<$crate::App> {
            utoipa_axum::router::OpenApiRouter::new().routes(utoipa_axum::routes!($create))$(.routes(utoipa_axum::routes!($name)))*
        }

        #[doc = concat!("See [`", stringify!($made), "`].")]
        #[utoipa::path(
            post, path = $at, tag = $tag, operation_id = stringify!($create),
            request_body = $made,
            responses((status = 201, description = "Made.", body = $crate::extract::WrittenBody), $crate::routes::Refusals)
        )]
        async fn $create(write: $crate::extract::Write<$aggregate>, body: $crate::extract::Body<$made>) -> Result<$crate::extract::Written, $crate::Problem> {
            let stream = $stream(write.id_for(body.command.id), write.caller());
            write.create(stream, body).await
        }

        $($crate::commands! { @on $aggregate, $tag, $stream: $name($body) $method $path $media })*
    };
    (@on $aggregate:ty, $tag:tt, $stream:path: $name:ident($body:ident) $method:tt $path:tt $media:tt) => {
        #[doc = concat!("See [`", stringify!($body), "`].")]
        #[utoipa::path(
            $method, path = $path, tag = $tag, operation_id = stringify!($name),
            params(("id" = uuid::Uuid, Path, description = "Which one.")),
            request_body(content = $body, content_type = $media),
            responses((status = 200, description = "Done, or already so.", body = $crate::extract::WrittenBody), $crate::routes::Refusals)
        )]
        async fn $name(write: $crate::extract::Write<$aggregate>, $crate::extract::Id(id): $crate::extract::Id, body: $crate::extract::Body<$body>) -> Result<$crate::extract::Written, $crate::Problem> {
            let stream = $stream(id, write.caller());
            write.execute(stream, body).await
        }
    };
}
