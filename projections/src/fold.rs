//! Folding a whole batch at once: the touched rows are loaded by key, folded in memory and written in bulk.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::Value;
use sqlx::PgConnection;
use sqlx::types::Json;
use store::load::LoadError;
use store::{Erases, RawEvent, Store};
use uuid::Uuid;

use crate::kept::{Known, Rows};
use crate::model::{ReadModel, Source as _};

/// Why a batch was not folded.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    /// An event could not be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The rows could not be read or written.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    /// A row or a key has no JSON form.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// The fold itself gave up.
    #[error("the fold panicked: {0}")]
    Panicked(String),
    /// What had to be forgotten could not be. Nothing goes on before it is.
    #[error("what position {position} erases could not be erased: {error}")]
    Erasure {
        /// The event.
        position: i64,
        /// Why.
        error: Box<FoldError>,
    },
}

impl FoldError {
    /// Whether trying again without a change of the program or of the rows must fail again: it lies in what the event or the row says, not in the weather.
    pub(crate) fn is_poison(&self) -> bool {
        match self {
            Self::Load(LoadError::Corrupt { .. })
            | Self::Json(_)
            | Self::Panicked(_)
            | Self::Database(sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_)) => true,
            // SQLSTATE classes: 21 cardinality, 22 data, 23 constraint, 54 program limit.
            Self::Database(sqlx::Error::Database(error)) => {
                error.code().is_some_and(|code| ["21", "22", "23", "54"].iter().any(|class| code.starts_with(class)))
            }
            Self::Load(LoadError::Unavailable(_) | LoadError::UnknownEvent { .. }) | Self::Database(_) | Self::Erasure { .. } => false,
        }
    }

    /// What may be kept for ever: the messages of others quote values, which may be somebody's personal data.
    pub(crate) fn without_values(&self) -> String {
        match self {
            Self::Load(LoadError::Corrupt { event_type, .. }) => format!("the payload of {event_type} cannot be read"),
            Self::Database(sqlx::Error::Database(error)) => {
                let on = error.table().map(|table| format!(" on {table}")).unwrap_or_default();
                let by = error.constraint().map(|constraint| format!(" by {constraint}")).unwrap_or_default();
                format!("the table refuses the row: SQLSTATE {}{on}{by}", error.code().unwrap_or_default())
            }
            Self::Database(_) | Self::Json(_) => "a row cannot be read or written".to_owned(),
            Self::Panicked(_) => "the fold panicked; the log of the projector says more".to_owned(),
            Self::Load(_) | Self::Erasure { .. } => self.to_string(),
        }
    }
}

/// The text of a row `t`; of one that was written before rows had a text, its columns as JSON.
const TEXT: &str = "coalesce(t.doc, to_json(t)::text)";

/// The table of a generation, without its schema.
pub(crate) fn table<M: ReadModel>(generation: i32) -> String {
    format!("{}_g{generation}", M::NAME)
}

/// Folds `events` into a generation, but for those at the positions `held`. What an event erases is erased all the same, and in the generations `copies` too.
pub(crate) async fn fold<M: ReadModel>(
    store: &Store,
    connection: &mut PgConnection,
    generation: i32,
    copies: &[i32],
    events: &[&RawEvent],
    held: &HashSet<i64>,
    rows: &mut Rows<M>,
) -> Result<(), FoldError> {
    let own = table::<M>(generation);
    let mut mine: Vec<&RawEvent> = Vec::with_capacity(events.len());
    for event in events {
        if M::Events::concerns(event) && !held.contains(&event.position) {
            mine.push(event);
        }
        if let Some(column) = M::SUBJECT
            && let Some(erases) = event.erases()?
        {
            fold_rows::<M>(store, connection, &own, &mine, rows).await?;
            mine.clear();
            rows.forget();
            // What this process could still unseal, it must not after this.
            store.forget_unsealed();
            for generation in copies.iter().chain([&generation]) {
                let erased = erase::<M>(connection, *generation, column, event.tenant_id, &erases).await;
                erased.map_err(|error| FoldError::Erasure { position: event.position, error: Box::new(error) })?;
            }
        }
    }
    fold_rows::<M>(store, connection, &own, &mine, rows).await
}

/// Forgets what the rows of a generation say about data subjects.
async fn erase<M: ReadModel>(
    connection: &mut PgConnection,
    generation: i32,
    column: &str,
    tenant: Uuid,
    erases: &Erases,
) -> Result<(), FoldError> {
    let table = table::<M>(generation);
    match erases {
        Erases::Tenant => {
            // What waits of it would bring rows back.
            sqlx::query("delete from read.parked where name = $1 and generation = $2 and tenant_id = $3")
                .bind(M::NAME)
                .bind(generation)
                .bind(tenant)
                .execute(&mut *connection)
                .await?;
            sqlx::query(&format!("delete from read.{table} where tenant_id = $1")).bind(tenant).execute(connection).await?;
        }
        Erases::Subjects(subjects) => {
            let subjects: Vec<Uuid> = subjects.iter().map(|subject| subject.0).collect();
            let rows: Vec<String> =
                sqlx::query_scalar(&format!("select {TEXT} from read.{table} t where tenant_id = $1 and {column} = any($2) for update"))
                    .bind(tenant)
                    .bind(subjects)
                    .fetch_all(&mut *connection)
                    .await?;
            let rows = rows.iter().map(|row| serde_json::from_str(row)).collect::<Result<Vec<M::Row>, _>>()?;
            let rows = guarded(|| rows.into_iter().map(M::erased).collect::<Vec<_>>())?;
            let texts = rows.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
            upsert(connection, &table, &texts).await?;
        }
    }
    Ok(())
}

/// Runs what a read model declares; a panic in it is an error.
fn guarded<T>(declared: impl FnOnce() -> T) -> Result<T, FoldError> {
    catch_unwind(AssertUnwindSafe(declared)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        FoldError::Panicked(text.unwrap_or("without a word").to_owned())
    })
}

async fn fold_rows<M: ReadModel>(
    store: &Store,
    connection: &mut PgConnection,
    table: &str,
    events: &[&RawEvent],
    rows: &mut Rows<M>,
) -> Result<(), FoldError> {
    if events.is_empty() {
        return Ok(());
    }
    let events = M::Events::typed(store, events).await?;
    let keys: HashSet<M::Key> = guarded(|| events.iter().flat_map(M::keys).collect())?;
    if keys.is_empty() {
        return Ok(());
    }
    let (mut before, mut unknown) = (HashMap::with_capacity(keys.len()), Vec::new());
    for key in keys {
        match rows.get(&key) {
            Known::Row(row) => drop(before.insert(key, Some(row))),
            Known::Nothing => drop(before.insert(key, None)),
            Known::Unknown => unknown.push(key),
        }
    }
    load::<M>(connection, table, unknown, &mut before).await?;
    let after = guarded(|| {
        let mut after = before.clone();
        for event in &events {
            for key in M::keys(event) {
                let row = after.remove(&key).flatten();
                let row = M::apply(&key, row, event);
                after.insert(key, row);
            }
        }
        after
    })?;
    write::<M>(connection, table, &before, after, rows).await
}

/// Loads the rows of keys.
async fn load<M: ReadModel>(
    connection: &mut PgConnection,
    table: &str,
    keys: Vec<M::Key>,
    rows: &mut HashMap<M::Key, Option<M::Row>>,
) -> Result<(), FoldError> {
    let documents = keys.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>()?;
    let Some(first) = documents.first() else { return Ok(()) };
    let on = columns(first).map(|c| format!("t.{c} = k.{c}")).collect::<Vec<_>>().join(" and ");
    // The ordinal ties each row to its key, which need not be computable from the row.
    let sql = format!(
        "select o.ordinality, {TEXT} from json_array_elements($1::json) with ordinality o, json_populate_record(null::read.{table}, o.value) k join read.{table} t on {on}"
    );
    let found: Vec<(i64, String)> = sqlx::query_as(&sql).bind(Json(&documents)).fetch_all(connection).await?;
    let mut found = found
        .into_iter()
        .map(|(ordinal, row)| Ok((ordinal, serde_json::from_str(&row)?)))
        .collect::<Result<HashMap<i64, M::Row>, FoldError>>()?;
    rows.extend((1..).zip(keys).map(|(ordinal, key)| (key, found.remove(&ordinal))));
    Ok(())
}

/// Writes what has changed.
async fn write<M: ReadModel>(
    connection: &mut PgConnection,
    table: &str,
    before: &HashMap<M::Key, Option<M::Row>>,
    after: HashMap<M::Key, Option<M::Row>>,
    rows: &mut Rows<M>,
) -> Result<(), FoldError> {
    let (mut gone, mut changed) = (Vec::new(), Vec::new());
    for (key, row) in after {
        let was = before.get(&key).and_then(Option::as_ref);
        match row {
            None if was.is_some() => {
                gone.push(serde_json::to_value(&key)?);
                rows.set(key, None);
            }
            Some(row) if was != Some(&row) => {
                let text = serde_json::to_string(&row)?;
                rows.set(key, Some((row, text.len())));
                changed.push(text);
            }
            None | Some(_) => {}
        }
    }
    if let Some(key) = gone.first() {
        let on = columns(key).map(|c| format!("t.{c} = k.{c}")).collect::<Vec<_>>().join(" and ");
        let sql = format!("delete from read.{table} t using json_populate_recordset(null::read.{table}, $1::json) k where {on}");
        sqlx::query(&sql).bind(Json(gone)).execute(&mut *connection).await?;
    }
    upsert(connection, table, &changed).await
}

/// Writes rows, which are given as JSON: new ones or others in their place.
async fn upsert(connection: &mut PgConnection, table: &str, rows: &[String]) -> Result<(), FoldError> {
    let Some(row) = rows.first() else { return Ok(()) };
    let row: Value = serde_json::from_str(row)?;
    let columns: Vec<&str> = columns(&row).collect();
    let set = columns.iter().map(|c| format!("{c} = excluded.{c}")).collect::<Vec<_>>().join(", ");
    let columns = columns.join(", ");
    let sql = format!(
        "insert into read.{table} ({columns}, doc) select {columns}, d.text from unnest($1::text[]) d (text), json_populate_record(null::read.{table}, d.text::json) r
         on conflict on constraint {table}_pkey do update set {set}, doc = excluded.doc"
    );
    sqlx::query(&sql).bind(rows).execute(connection).await?;
    Ok(())
}

/// The columns of a row or a key: its field names, which are identifiers of this program and never input.
fn columns(document: &Value) -> impl Iterator<Item = &str> {
    document.as_object().into_iter().flat_map(|map| map.keys().map(String::as_str))
}
