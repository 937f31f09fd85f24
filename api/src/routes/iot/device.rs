//! `/v1/devices`.

use access::api_keys::Drawn as Secret;
use access::devices::{claim_code, claim_digest};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use commands::authorize::authorize;
use commands::{Key, Request};
use domain::iot::device::{
    self as rules, AcceptDevice, AcknowledgeCommand, AssignGroup, ClaimDevice, DecommissionDevice, Device, DisableDevice, EnableDevice,
    Model, PreregisterDevice, QuarantineDevice, ReconsiderDevice, RejectDevice, ReportState, RevokeCredential, SendCommand, Serial,
    SetDesiredState, Status, TagDevice, UntagDevice, UpdateMetadata,
};
use domain::json::JsonObject;
use domain::text::{SearchText, TokenText};
use domain::{Actor, StreamId};
use futures::StreamExt as _;
use projections::iot::device::{self, Devices, SeenDevice};
use projections::iot::device_command::{self, CommandStatus, Commands};
use projections::iot::device_timeline::{self, Timeline};
use projections::iot::device_twin::{self, Twins};
use projections::{QueryError, Read, ReadModel as _};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::app::App;
use crate::extract::{
    After, Body, Caller, Drawn, Id, ListBody, Listed, Listing, Params, Query, Repeat, Shown, Sought, Write, WrittenBody, paging,
    unless_empty, unless_final,
};
use crate::problem::Problem;
use crate::routes::Refusals;
use crate::routes::secret;

/// The most devices that are expected by one request.
const MAX_EXPECTED: usize = 1_000;
/// How many of them are written at a time.
const AT_A_TIME: usize = 64;

pub(crate) fn routes() -> OpenApiRouter<App> {
    commands()
        .routes(routes!(preregister_devices))
        .routes(routes!(register_device))
        .routes(routes!(claim_device))
        .routes(routes!(rotate_credential))
        .routes(routes!(send_heartbeat))
        .routes(routes!(list_devices))
        .routes(routes!(get_device))
        .routes(routes!(get_device_twin))
        .routes(routes!(list_device_commands))
        .routes(routes!(list_device_timeline))
}

crate::commands! { Device, "devices", Caller::stream:
    accept_device(AcceptDevice) post "/v1/devices/{id}/accept" "application/json";
    reject_device(RejectDevice) post "/v1/devices/{id}/reject" "application/json";
    reconsider_device(ReconsiderDevice) post "/v1/devices/{id}/reconsider" "application/json";
    enable_device(EnableDevice) post "/v1/devices/{id}/enable" "application/json";
    disable_device(DisableDevice) post "/v1/devices/{id}/disable" "application/json";
    quarantine_device(QuarantineDevice) post "/v1/devices/{id}/quarantine" "application/json";
    decommission_device(DecommissionDevice) post "/v1/devices/{id}/decommission" "application/json";
    update_metadata(UpdateMetadata) patch "/v1/devices/{id}/metadata" "application/merge-patch+json";
    tag_device(TagDevice) post "/v1/devices/{id}/tag" "application/json";
    untag_device(UntagDevice) post "/v1/devices/{id}/untag" "application/json";
    assign_group(AssignGroup) post "/v1/devices/{id}/assign-group" "application/json";
    revoke_credential(RevokeCredential) post "/v1/devices/{id}/revoke-credential" "application/json";
    set_desired_state(SetDesiredState) patch "/v1/devices/{id}/desired-state" "application/merge-patch+json";
    report_state(ReportState) post "/v1/devices/{id}/report-state" "application/json";
    send_command(SendCommand) post "/v1/devices/{id}/commands" "application/json";
    acknowledge_command(AcknowledgeCommand) post "/v1/devices/{id}/acknowledge-command" "application/json";
}

/// Devices that are expected.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"devices": [{"serial": "TH-2041-78", "model": "thermo-2", "metadata": {"batch": 7}}]}))]
struct PreregisterDevices {
    /// 1 to 1 000.
    devices: Vec<RegisterDevice>,
}

/// What came of one of them.
#[derive(Serialize, ToSchema)]
struct Preregistered {
    /// What its maker calls it.
    #[schema(example = "TH-2041-78")]
    serial: String,
    /// Whether it is expected now.
    #[schema(example = true)]
    registered: bool,
    /// Its id.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Uuid>,
    /// The code that it shows to claim itself. It is shown in this answer alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "7G2KD-M9TQ4-0XWJ1-ZB5RV")]
    claim_code: Option<String>,
    /// Where in the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 42)]
    position: Option<i64>,
    /// Why it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Problem>,
}

/// What came of them, in their order.
#[derive(Serialize, ToSchema)]
struct PreregisteredDevices {
    /// Each.
    data: Vec<Preregistered>,
}

/// Has devices expected, up to 1 000, each for itself. The code that a device will show is in the answer alone; repeated with the same `Idempotency-Key`, the request
/// gets the same answer. Sent again without, those that are expected already are refused by their serial numbers.
#[utoipa::path(
    post, path = "/v1/devices/preregister", tag = "devices", request_body = PreregisterDevices,
    responses((status = 200, description = "Answered one by one.", body = PreregisteredDevices), Refusals)
)]
async fn preregister_devices(
    State(app): State<App>,
    caller: Caller,
    repeat: Repeat,
    body: Body<PreregisterDevices>,
) -> Result<Response, Problem> {
    caller.require("device:register")?;
    let (asked, devices) = (body.asked(), body.command.devices);
    if !(1..=MAX_EXPECTED).contains(&devices.len()) {
        return Err(Problem::invalid("/devices".into(), "must be 1 to 1000 devices".into()));
    }
    let store = app.executor.store();
    let draw = async { Ok(devices.iter().map(|device| (device.id.unwrap_or_else(|| store.fresh_id()), claim_code())).collect()) };
    let run = |Drawn { value, keys, .. }: Drawn<Vec<(Uuid, String)>>| {
        let one = |(n, (device, (id, code))): (usize, (RegisterDevice, (Uuid, String)))| {
            preregister(app.clone(), caller.clone(), keys.nth(n), device, id, code)
        };
        let each: Vec<_> = devices.clone().into_iter().zip(value).enumerate().map(one).collect();
        async move {
            let data: Vec<Preregistered> = futures::stream::iter(each).buffered(AT_A_TIME).collect().await;
            let problems: Vec<Problem> = data.iter().filter_map(|device| device.problem.clone()).collect();
            Ok(unless_final(Json(PreregisteredDevices { data }).into_response(), &problems))
        }
    };
    repeat.once(&asked, draw, run).await
}

async fn preregister(app: App, caller: Caller, keys: Vec<Key>, device: RegisterDevice, id: Uuid, code: String) -> Preregistered {
    let RegisterDevice { id: _, serial: number, model, metadata } = device;
    let serial = number.as_str().to_owned();
    let expected = PreregisterDevice { serial: number, model, metadata, claim_digest: claim_digest(&code) };
    let mut request = Request::<Device>::new(Caller::stream(id, &caller), expected, caller.actor, app.executor.store().fresh_id());
    request.begins = true;
    request.keys = keys;
    match app.executor.execute(request).await {
        Ok(outcome) => Preregistered {
            serial,
            registered: true,
            id: Some(outcome.id),
            claim_code: Some(code),
            position: Some(outcome.position),
            problem: None,
        },
        Err(error) => Preregistered { serial, registered: false, id: None, claim_code: None, position: None, problem: Some(error.into()) },
    }
}

/// Makes a device.
#[derive(Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"id": "01900000-0000-7000-8000-000000000003", "serial": "TH-2041-77", "model": "thermo-2", "metadata": {"room": "3.14"}}))]
struct RegisterDevice {
    /// Its id, if the client chooses one.
    id: Option<Uuid>,
    /// What its maker calls it.
    serial: Serial,
    /// What kind of device it is.
    model: Model,
    /// Whatever else is known of it.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    metadata: JsonObject,
}

/// The answer to what makes a credential.
#[derive(Serialize, ToSchema)]
struct WithCredential {
    #[serde(flatten)]
    written: WrittenBody,
    /// The credential that the device authenticates with, once it is accepted. It is shown in this answer alone, and again to a request that repeats this one with the same `Idempotency-Key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "tnd_s7Qd0wJxTnOl….Yk3…")]
    credential: Option<String>,
}

/// Makes a device, which waits to be accepted. Its credential is shown in the answer alone.
#[utoipa::path(
    post, path = "/v1/devices", tag = "devices", request_body = RegisterDevice,
    responses((status = 201, description = "Made.", body = WithCredential), Refusals)
)]
async fn register_device(
    State(app): State<App>,
    write: Write<Device>,
    repeat: Repeat,
    body: Body<RegisterDevice>,
) -> Result<Response, Problem> {
    write.caller().require("device:register")?;
    let (stream, asked) = (Caller::stream(write.id_for(body.command.id), write.caller()), body.asked());
    let draw = async { Ok((stream, app.access.draw_credential(stream).await?)) };
    let register = |stream: StreamId, drawn: &Secret| {
        let credential = drawn.credential;
        let complete = |RegisterDevice { id: _, serial, model, metadata }| rules::RegisterDevice { serial, model, metadata, credential };
        write.create(stream, body.map(complete))
    };
    secret::once((&app, &repeat, &asked), "credential", draw, register).await
}

/// A device shows its code.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Claim {
    /// The code that it was expected with.
    #[schema(value_type = String, example = "7G2KD-M9TQ4-0XWJ1-ZB5RV", max_length = 100)]
    claim_code: TokenText,
}

/// The answer to a device that has shown its code.
#[derive(Serialize, ToSchema)]
struct Claimed {
    /// Its id.
    id: Uuid,
    /// Its version now.
    #[schema(example = 2)]
    version: i64,
    /// What it authenticates with, once it is accepted. It is shown in this answer alone.
    #[schema(example = "tnd_s7Qd0wJxTnOl….Yk3…")]
    credential: String,
}

/// A device that is expected shows its code, gets its credential, and waits to be accepted. Needs no token. Repeated with the same
/// `Idempotency-Key`, the request gets the same answer.
#[utoipa::path(
    post, path = "/v1/devices/claim", tag = "devices", request_body = Claim, security(()),
    responses((status = 200, description = "It waits to be accepted.", body = Claimed), Refusals)
)]
async fn claim_device(State(app): State<App>, repeat: Repeat, body: Body<Claim>) -> Result<Response, Problem> {
    if body.command.claim_code.len() > 100 {
        return Err(Problem::invalid("/claim_code".into(), "must not be longer than 100 characters".into()));
    }
    let (asked, claim_digest) = (body.asked(), claim_digest(&body.command.claim_code));
    let draw = async {
        let unknown = || Problem::from(commands::CommandError::rule(&rules::Error::NoSuchClaim));
        let device: StreamId = app.access.expected(&claim_digest).await?.ok_or_else(unknown)?;
        Ok((device, app.access.draw_credential(device).await?))
    };
    let run = |Drawn { value: (device, drawn), keys, .. }: Drawn<(StreamId, Secret)>| {
        let (app, claim_digest) = (app.clone(), claim_digest.clone());
        async move {
            let command = ClaimDevice { claim_digest, credential: drawn.credential };
            let actor = Actor::Device { id: device.id, tenant: device.tenant };
            let mut request = Request::<Device>::new(device, command, actor, app.executor.store().fresh_id());
            request.keys = keys.nth(0);
            match app.executor.execute(request).await {
                Ok(outcome) => Ok(Json(Claimed { id: outcome.id, version: outcome.version, credential: drawn.key }).into_response()),
                Err(error) => {
                    let problem = Problem::from(error);
                    if problem.is_refusal() && !app.access.counts(device, drawn.credential).await? {
                        app.access.discard(device.tenant, drawn.credential).await?;
                    }
                    Err(problem)
                }
            }
        }
    };
    repeat.once(&asked, draw, run).await
}

/// Gives a device another credential.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RotateCredential {
    /// For how many seconds the old one is good beside the new one.
    #[serde(default = "hour")]
    #[schema(default = 3600, minimum = 0, maximum = 604_800)]
    grace_seconds: u32,
}

fn hour() -> u32 {
    3600
}

/// Gives a device another credential; the old one is good for a while. The new one is shown in the answer alone.
#[utoipa::path(
    post, path = "/v1/devices/{id}/rotate-credential", tag = "devices", request_body = RotateCredential,
    params(("id" = Uuid, Path, description = "Which one.")),
    responses((status = 200, description = "Done.", body = WithCredential), Refusals)
)]
async fn rotate_credential(
    State(app): State<App>,
    write: Write<Device>,
    repeat: Repeat,
    Id(id): Id,
    body: Body<RotateCredential>,
) -> Result<Response, Problem> {
    write.caller().require("device:manage_credential")?;
    let (stream, asked) = (Caller::stream(id, write.caller()), body.asked());
    let draw = async { Ok((stream, app.access.draw_credential(stream).await?)) };
    let rotate = |stream: StreamId, drawn: &Secret| {
        let credential = drawn.credential;
        write.execute(stream, body.map(|c| rules::RotateCredential { credential, grace_seconds: c.grace_seconds }))
    };
    secret::once((&app, &repeat, &asked), "credential", draw, rotate).await
}

/// A device says that it is there. Nothing of it stands in the log.
#[utoipa::path(
    post, path = "/v1/devices/{id}/heartbeat", tag = "devices",
    params(("id" = Uuid, Path, description = "Which one.")),
    responses((status = 204, description = "It was heard."), Refusals)
)]
async fn send_heartbeat(State(app): State<App>, caller: Caller, Id(id): Id) -> Result<StatusCode, Problem> {
    let device = Caller::stream(id, &caller);
    match caller.actor {
        Actor::Device { id: own, .. } if own == id => {}
        Actor::Device { .. } => return Err(Problem::not_found()),
        Actor::User { .. } | Actor::Service { .. } | Actor::System { .. } => {
            return Err(commands::CommandError::rule(&rules::Error::DeviceOnly).into());
        }
    }
    app.access.heard_of(device).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A device sees itself; others need the permission.
fn may_see(caller: &Caller, id: Uuid) -> Result<(), Problem> {
    match &caller.actor {
        Actor::Device { id: own, .. } if *own == id => Ok(()),
        Actor::Device { .. } => Err(Problem::not_found()),
        Actor::User { .. } | Actor::Service { .. } | Actor::System { .. } => Ok(authorize(&caller.actor, "device:read")?),
    }
}

/// One device, and whether it is heard of.
#[utoipa::path(
    get, path = "/v1/devices/{id}", tag = "devices",
    params(("id" = Uuid, Path, description = "Which one."), After),
    responses((status = 200, body = SeenDevice), (status = 304, description = "It has not changed."), Refusals)
)]
async fn get_device(State(app): State<App>, query: Query, Id(id): Id, Params(p): Params<After>) -> Result<Shown, Problem> {
    may_see(&query.caller, id)?;
    let now = app.executor.store().clock().now();
    let sought = Sought::new(Caller::stream(id, &query.caller), &[Devices::NAME], p.after);
    query.one::<Device, _, _, _>(sought, |mut read| async move { device::by_id(&mut read, id, now).await.map(|row| (read, row)) }).await
}

/// How a device should be, how it is, and what is between. A device asks for its own.
#[utoipa::path(
    get, path = "/v1/devices/{id}/twin", tag = "devices",
    params(("id" = Uuid, Path, description = "Which one."), After),
    responses((status = 200, body = device_twin::Row), (status = 304, description = "It has not changed."), Refusals)
)]
async fn get_device_twin(query: Query, Id(id): Id, Params(p): Params<After>) -> Result<Shown, Problem> {
    may_see(&query.caller, id)?;
    let sought = Sought::new(Caller::stream(id, &query.caller), &[Twins::NAME], p.after);
    query.one::<Device, _, _, _>(sought, |mut read| async move { device_twin::by_id(&mut read, id).await.map(|row| (read, row)) }).await
}

/// Which devices, in which order.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListDevices {
    /// In this status. Decommissioned ones are shown only when asked for.
    status: Option<Status>,
    /// Of this model.
    #[param(value_type = Option<String>)]
    model: Option<SearchText>,
    /// In this group.
    #[param(value_type = Option<String>)]
    group: Option<SearchText>,
    /// Found under this word.
    #[param(value_type = Option<String>)]
    tag: Option<SearchText>,
    /// Heard of within the last two minutes, or not.
    online: Option<bool>,
    /// Whose serial number contains this.
    #[param(value_type = Option<String>, max_length = 200)]
    q: Option<SearchText>,
    /// `-created_at` (the default), `created_at`, and so on for `updated_at` and `serial`.
    #[param(value_type = Option<String>)]
    sort: Option<SearchText>,
    /// How many rows at most.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// Where to go on: the `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    cursor: Option<TokenText>,
    /// Wait up to 2 s until the answer reflects this position; 504 if it takes longer.
    #[param(minimum = 0)]
    after: Option<i64>,
}

/// The tenant's devices, and whether they are heard of.
#[utoipa::path(get, path = "/v1/devices", tag = "devices", params(ListDevices), responses((status = 200, body = ListBody<SeenDevice>), Refusals))]
async fn list_devices(State(app): State<App>, query: Query, Params(p): Params<ListDevices>) -> Result<Listed<SeenDevice>, Problem> {
    query.require("device:read")?;
    let paging = paging(&device::ORDERS, p.sort.as_deref(), p.limit, p.cursor)?;
    let filter = device::Filter {
        status: p.status,
        model: p.model.map(Into::into),
        group: p.group.map(Into::into),
        tag: p.tag.map(Into::into),
        online: p.online,
        q: p.q.map(Into::into),
    };
    let mut read = query.open(&[Devices::NAME], p.after).await?;
    let page = device::list(&mut read, query.cursors(), &filter, app.executor.store().clock().now(), &paging).await?;
    Ok(query.page(&read, page))
}

/// Which commands.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListDeviceCommands {
    /// Of which this has become; a device asks for `pending`.
    status: Option<CommandStatus>,
    /// `-sent_at` (the default) or `sent_at`.
    #[param(value_type = Option<String>)]
    sort: Option<SearchText>,
    /// How many rows at most.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// Where to go on: the `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    cursor: Option<TokenText>,
    /// Wait up to 2 s until the answer reflects this position; 504 if it takes longer.
    #[param(minimum = 0)]
    after: Option<i64>,
}

/// What a device was asked to do, and what became of it. A device asks for its own.
#[utoipa::path(
    get, path = "/v1/devices/{id}/commands", tag = "devices",
    params(("id" = Uuid, Path, description = "Which one."), ListDeviceCommands),
    responses((status = 200, body = ListBody<device_command::Row>), Refusals)
)]
async fn list_device_commands(
    query: Query,
    Id(id): Id,
    Params(p): Params<ListDeviceCommands>,
) -> Result<Listed<device_command::Row>, Problem> {
    may_see(&query.caller, id)?;
    let paging = paging(&device_command::ORDERS, p.sort.as_deref(), p.limit, p.cursor)?;
    let cursors = query.cursors().clone();
    let sought = Sought::new(Caller::stream(id, &query.caller), &[Devices::NAME, Commands::NAME], p.after);
    let (cursors, paging) = (&cursors, &paging);
    let fetch = |mut read: Read| async move {
        let there = device::exists(&mut read, id).await?;
        let page = if there { Some(device_command::list(&mut read, cursors, id, p.status, paging).await?) } else { None };
        Ok::<_, QueryError>((read, page))
    };
    query.of_one::<Device, _, _, _>(sought, fetch).await
}

/// What has happened to a device, newest first.
#[utoipa::path(
    get, path = "/v1/devices/{id}/timeline", tag = "devices",
    params(("id" = Uuid, Path, description = "Which one."), Listing),
    responses((status = 200, body = ListBody<device_timeline::Row>), Refusals)
)]
async fn list_device_timeline(query: Query, Id(id): Id, Params(p): Params<Listing>) -> Result<Listed<device_timeline::Row>, Problem> {
    query.require("device:read")?;
    let paging = paging(&device_timeline::ORDERS, p.sort.as_deref(), p.limit, p.cursor)?;
    let (stream, cursors) = (Caller::stream(id, &query.caller), query.cursors().clone());
    let sought = Sought::new(stream, &[Timeline::NAME], p.after);
    let (cursors, paging) = (&cursors, &paging);
    let fetch = |mut read: Read| async move {
        let page = device_timeline::list(&mut read, cursors, stream, paging).await?;
        Ok::<_, QueryError>((read, unless_empty(page, paging)))
    };
    query.of_one::<Device, _, _, _>(sought, fetch).await
}
