//! Folding a whole batch at once: the touched rows are loaded by key, folded in memory and written in bulk.

use std::collections::HashMap;

use cqrs_es::Aggregate as _;
use serde_json::Value;
use sqlx::PgConnection;
use sqlx::types::Json;
use store::load::LoadError;
use store::{RawEvent, Store};

use crate::model::ReadModel;

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
}

/// Folds `events` into the table `read.<table>`.
pub(crate) async fn fold<M: ReadModel>(
    store: &Store,
    connection: &mut PgConnection,
    table: &str,
    events: &[&RawEvent],
) -> Result<(), FoldError> {
    let mine: Vec<&RawEvent> = events.iter().copied().filter(|e| e.aggregate_type == M::Aggregate::TYPE).collect();
    if mine.is_empty() {
        return Ok(());
    }
    let events = store.typed::<M::Aggregate>(&mine).await?;
    let mut rows: HashMap<M::Key, Option<M::Row>> = events.iter().flat_map(M::keys).map(|key| (key, None)).collect();
    let before = load::<M>(connection, table, &mut rows).await?;
    for event in &events {
        for key in M::keys(event) {
            let row = rows.remove(&key).flatten();
            let row = M::apply(&key, row, event);
            rows.insert(key, row);
        }
    }
    write::<M>(connection, table, &before, rows).await
}

/// Loads the rows of all the keys, and answers them as they were.
async fn load<M: ReadModel>(
    connection: &mut PgConnection,
    table: &str,
    rows: &mut HashMap<M::Key, Option<M::Row>>,
) -> Result<HashMap<M::Key, M::Row>, FoldError> {
    let keys: Vec<M::Key> = rows.keys().cloned().collect();
    let documents = keys.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>()?;
    let on =
        documents.first().map(|key| columns(key).map(|c| format!("t.{c} = k.{c}")).collect::<Vec<_>>().join(" and ")).unwrap_or_default();
    // The ordinal ties each row to its key, which need not be computable from the row.
    let sql = format!(
        "select o.ordinality, to_json(t) from json_array_elements($1::json) with ordinality o, json_populate_record(null::read.{table}, o.value) k join read.{table} t on {on}"
    );
    let found: Vec<(i64, Json<M::Row>)> = sqlx::query_as(&sql).bind(Json(documents)).fetch_all(connection).await?;
    let mut before = HashMap::with_capacity(found.len());
    for (ordinal, Json(row)) in found {
        if let Some(key) = usize::try_from(ordinal - 1).ok().and_then(|n| keys.get(n)) {
            before.insert(key.clone(), row.clone());
            rows.insert(key.clone(), Some(row));
        }
    }
    Ok(before)
}

/// Writes what has changed.
async fn write<M: ReadModel>(
    connection: &mut PgConnection,
    table: &str,
    before: &HashMap<M::Key, M::Row>,
    rows: HashMap<M::Key, Option<M::Row>>,
) -> Result<(), FoldError> {
    let (mut gone, mut changed, mut key_columns) = (Vec::new(), Vec::new(), Vec::new());
    for (key, row) in rows {
        let document = serde_json::to_value(&key)?;
        if key_columns.is_empty() {
            key_columns = columns(&document).map(str::to_owned).collect();
        }
        match row {
            None if before.contains_key(&key) => gone.push(document),
            Some(row) if before.get(&key) != Some(&row) => changed.push(serde_json::to_value(&row)?),
            None | Some(_) => {}
        }
    }
    if !gone.is_empty() {
        let on = key_columns.iter().map(|c| format!("t.{c} = k.{c}")).collect::<Vec<_>>().join(" and ");
        let sql = format!("delete from read.{table} t using json_populate_recordset(null::read.{table}, $1::json) k where {on}");
        sqlx::query(&sql).bind(Json(gone)).execute(&mut *connection).await?;
    }
    if let Some(row) = changed.first() {
        let set = columns(row)
            .filter(|c| !key_columns.iter().any(|k| k == c))
            .map(|c| format!("{c} = excluded.{c}"))
            .collect::<Vec<_>>()
            .join(", ");
        let action = if set.is_empty() { "do nothing".to_owned() } else { format!("do update set {set}") };
        let sql = format!(
            "insert into read.{table} select * from json_populate_recordset(null::read.{table}, $1::json) on conflict ({}) {action}",
            key_columns.join(", ")
        );
        sqlx::query(&sql).bind(Json(changed)).execute(connection).await?;
    }
    Ok(())
}

/// The columns of a row or a key: its field names, which are identifiers of this program and never input.
fn columns(document: &Value) -> impl Iterator<Item = &str> {
    document.as_object().into_iter().flat_map(|map| map.keys().map(String::as_str))
}
