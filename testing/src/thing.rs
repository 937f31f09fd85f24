//! The smallest aggregate that uses what tenants do not: it is gated, draws a number, erases, and has an event that once had another shape. All that an aggregate of the
//! product has in its rooms stands in this one file: rules, read model, table, route.

use std::collections::HashSet;
use std::sync::Mutex;

use api::App;
use api::extract::{After, Caller, Id, Params, Query, Shown, Sought};
use api::problem::Problem;
use api::routes::Refusals;
use domain::aggregate::Upcaster;
use domain::{Aggregate, Effect, EventKind, Issued, Personal, StreamId, SubjectId, TenantId};
use projections::model::StreamKey;
use projections::row::Doc;
use projections::sql::Sql;
use projections::{QueryError, Read, ReadModel};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgPool;
use store::Recorded;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

// What domain/src/<context>/<noun>/ has.

/// Makes a thing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Make {
    /// Its id, if the client chooses one.
    #[serde(default)]
    pub id: Option<Uuid>,
    /// Whom it is about.
    pub subject: SubjectId,
    /// What it says.
    pub words: String,
}

/// Has a thing say more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Say {
    /// What.
    pub words: String,
}

domain::bare_commands! {
    /// Forgets whom it is about.
    Forget
}

domain::commands! { "thing":
    Make(Make) "make", "make";
    Say(Say) "say", "say";
    Forget(Forget) "forget", "forget";
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// It was made. Version 1 had a `text` in clear and no number.
    Made {
        /// The tenant's next number; drawn under the lock.
        number: Option<i64>,
        /// What it says.
        words: Personal<String>,
    },
    /// It said more.
    Said {
        /// What.
        words: Personal<String>,
    },
    /// Whom it was about was erased.
    Forgotten {
        /// Whom.
        subject: SubjectId,
    },
}

domain::event_kinds!(Event: Made => "thing.made" "2", Said => "thing.said" "1", Forgotten => "thing.forgotten" "1");

domain::errors! {
    /// Why it may be refused.
    Error {
        /// It is there.
        Exists: Conflict "thing.exists", "it exists";
        /// It is not there.
        NotFound: NotFound "thing.not_found", "there is no such thing";
    }
}

/// Its state: what the first event said.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Thing(pub Option<Event>);

impl Thing {
    fn evolve(&mut self, event: Event) {
        self.0.get_or_insert(event);
    }
}

domain::aggregate!(Thing, "thing", Command, Event, Error);

impl Aggregate for Thing {
    type Ask = Command;

    const EVENTS: &'static [EventKind] = Event::KINDS;

    const UPCASTERS: &'static [Upcaster] = &[Upcaster {
        event: "thing.made",
        from: "1",
        to: "2",
        upcast: |old| json!({"type": "made", "number": null, "words": Personal::new(SubjectId(Uuid::nil()), old["text"].as_str().unwrap_or_default())}),
    }];

    fn decide(&self, Issued { command, .. }: Issued<Command>) -> Result<Vec<Event>, Error> {
        match (&self.0, command) {
            (None, Command::Make(c)) => Ok(vec![Event::Made { number: None, words: Personal::new(c.subject, c.words) }]),
            (Some(_), Command::Make(_)) => Err(Error::Exists),
            (Some(Event::Made { words, .. }), Command::Say(c)) => Ok(vec![Event::Said { words: Personal::new(words.subject(), c.words) }]),
            (Some(Event::Made { words, .. }), Command::Forget(_)) => Ok(vec![Event::Forgotten { subject: words.subject() }]),
            (_, Command::Say(_) | Command::Forget(_)) => Err(Error::NotFound),
        }
    }

    fn effects(&self, event: &Event) -> Vec<Effect> {
        match event {
            Event::Made { .. } => vec![Effect::Allocate { sequence: "thing_number", pointer: "/number" }],
            Event::Said { .. } => vec![],
            Event::Forgotten { subject } => vec![Effect::Erase(*subject)],
        }
    }
}

// What projections/src/<context>/<noun>.rs has.

/// The read model.
pub struct Things;

/// A thing as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Thing)]
pub struct Row {
    /// Whose.
    pub tenant_id: TenantId,
    /// Its id.
    pub id: Uuid,
    /// Its version.
    pub version: i64,
    /// Its number.
    pub number: Option<i64>,
    /// Whom it is about.
    pub subject_id: SubjectId,
    /// What it says, as far as that was not erased.
    pub words: Vec<String>,
}

/// Words that begin with `poison` cannot be folded, unless they are in here.
static CURED: Mutex<Option<HashSet<String>>> = Mutex::new(None);

/// Mends the fold: these words can be folded from now on.
pub fn cure(words: &str) {
    CURED.lock().expect("no panic while locked").get_or_insert_default().insert(words.to_owned());
}

fn folded(words: &Personal<String>) -> Option<String> {
    let words = words.known()?;
    let cured = CURED.lock().expect("no panic while locked").as_ref().is_some_and(|cured| cured.contains(words));
    assert!(cured || !words.starts_with("poison"), "cannot fold this");
    Some(words.clone())
}

impl ReadModel for Things {
    const NAME: &'static str = "things_v1";
    const SUBJECT: Option<&'static str> = Some("subject_id");
    type Events = Thing;
    type Key = StreamKey;
    type Row = Row;

    fn keys(event: &Recorded<Event>) -> Vec<StreamKey> {
        StreamKey::of(event)
    }

    fn apply(key: &StreamKey, row: Option<Row>, event: &Recorded<Event>) -> Option<Row> {
        let mut row = match (&event.event, row) {
            (Event::Made { number, words }, _) => {
                Row { tenant_id: key.tenant_id, id: key.id, version: 0, number: *number, subject_id: words.subject(), words: vec![] }
            }
            (_, row) => row?,
        };
        if let Event::Made { words, .. } | Event::Said { words } = &event.event {
            row.words.extend(folded(words));
        }
        Some(Row { version: event.version, ..row })
    }

    fn erased(row: Row) -> Row {
        Row { words: vec![], ..row }
    }
}

/// One thing.
pub async fn by_id(read: &mut Read, id: Uuid) -> Result<Option<Doc<Row>>, QueryError> {
    read.one(Sql::rows(Things::NAME).push(" and id = ").bind(id)).await
}

// What migrations/…_<noun>s.sql has.

/// Makes its read table.
pub async fn migrate(owner: &PgPool) {
    let table = "create table read.things_v1_g1 (
          tenant_id uuid not null, id uuid not null, version bigint not null, number bigint, subject_id uuid not null, words text[] not null,
          primary key (tenant_id, id)
        );
        create index on read.things_v1_g1 (tenant_id, subject_id);
        select read.register('things_v1');";
    sqlx::raw_sql(table).execute(owner).await.expect("a table");
}

// What api/src/routes/<context>/<noun>.rs has.

/// `/v1/things`.
pub fn routes() -> OpenApiRouter<App> {
    commands().routes(routes!(get_thing))
}

fn stream(id: Uuid, caller: &Caller) -> StreamId {
    StreamId::new(caller.tenant, id)
}

api::commands! { Thing, "things", stream:
    create make_thing(Make) "/v1/things";
    say(Say) post "/v1/things/{id}/say" "application/json";
    forget(Forget) post "/v1/things/{id}/forget" "application/json";
}

/// One thing.
#[utoipa::path(get, path = "/v1/things/{id}", tag = "things", params(("id" = Uuid, Path), After), responses((status = 200, body = Row), Refusals))]
async fn get_thing(query: Query, Id(id): Id, Params(p): Params<After>) -> Result<Shown, Problem> {
    query.require("thing:read")?;
    let sought = Sought::new(stream(id, &query.caller), &[Things::NAME], p.after);
    query.one::<Thing, _, _, _>(sought, |mut read| async move { by_id(&mut read, id).await.map(|row| (read, row)) }).await
}
