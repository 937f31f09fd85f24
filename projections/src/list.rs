//! Lists: a whitelist of orders, pages by keyset, so that rows inserted meanwhile neither repeat nor hide others, and signed cursors.

use serde::de::DeserializeOwned;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{Postgres, QueryBuilder, Row as _};

use crate::cursor::CursorKey;
use crate::query::{QueryError, Read};

/// Something that a list can be ordered by, ascending as `name`, descending as `-name`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// What a request calls it.
    pub name: &'static str,
    /// The SQL expression; never null.
    pub sql: &'static str,
    /// Its SQL type.
    pub kind: &'static str,
}

/// The orders that a list knows.
#[derive(Clone, Copy, Debug)]
pub struct Orders {
    /// What it can be ordered by; the first, descending, if nothing else is asked.
    pub columns: &'static [Column],
    /// What tells apart rows that are equal in that: an SQL expression and its type. Unique among the rows of a list.
    pub tie: (&'static str, &'static str),
}

/// One of a list's orders.
#[derive(Clone, Copy, Debug)]
pub struct Sort {
    column: Column,
    tie: (&'static str, &'static str),
    descending: bool,
}

impl Orders {
    /// The order of this name; the names there are when there is none such.
    pub fn parse(&self, name: Option<&str>) -> Result<Sort, Vec<String>> {
        let descending = name.is_none_or(|name| name.starts_with('-'));
        let bare = name.map(|name| name.trim_start_matches('-'));
        let column = self.columns.iter().find(|column| bare.is_none_or(|name| name == column.name));
        column.map(|column| Sort { column: *column, tie: self.tie, descending }).ok_or_else(|| self.names())
    }

    /// The names of all orders, the default first.
    pub fn names(&self) -> Vec<String> {
        self.columns.iter().flat_map(|column| [format!("-{}", column.name), column.name.to_owned()]).collect()
    }
}

/// Which part of a list is wanted.
#[derive(Clone, Debug)]
pub struct Paging {
    /// In which order.
    pub sort: Sort,
    /// How many rows at most.
    pub limit: u32,
    /// Where to go on.
    pub cursor: Option<String>,
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// Its rows.
    pub rows: Vec<T>,
    /// Where the next one begins, if there is one.
    pub next: Option<String>,
}

impl<T> Page<T> {
    /// The same page, its rows seen otherwise.
    pub fn map<U>(self, see: impl FnMut(T) -> U) -> Page<U> {
        Page { rows: self.rows.into_iter().map(see).collect(), next: self.next }
    }
}

/// The bytes of a page's rows as JSON at which it ends, however many rows were asked for. One row always fits.
pub const PAGE_BYTES: usize = 1024 * 1024;
/// Rows that are read before it is known how large they are.
const FIRST: usize = 16;

/// The statement that a list's filters are appended to, each as ` and …`. The rows are chosen first and written as JSON one by one as they are fetched: PostgreSQL would otherwise
/// write all of a tenant's rows as JSON and sort them with it.
pub(crate) fn select<'q>(model: &str, paging: &Paging) -> QueryBuilder<'q, Postgres> {
    QueryBuilder::new(format!(
        "declare page no scroll cursor for select to_json(t), ({})::text as sorted_by, ({})::text as tied_by from (select * from read.{model} t where true",
        paging.sort.column.sql, paging.sort.tie.0
    ))
}

/// The pattern of `like` for what contains this text.
pub(crate) fn containing(text: &str) -> String {
    format!("%{}%", text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_"))
}

/// One page of what the statement selects. `identity` says of which list, filters included: a cursor fits no other.
pub(crate) async fn page<T: DeserializeOwned + Send + Unpin + 'static>(
    read: &mut Read,
    cursors: &CursorKey,
    mut query: QueryBuilder<'_, Postgres>,
    identity: &str,
    paging: &Paging,
) -> Result<Page<T>, QueryError> {
    let Paging { sort: Sort { column, tie, descending }, limit, cursor } = paging;
    let identity = format!("{identity} {} {descending}", column.name);
    let place: Option<(String, String)> = cursor.as_ref().map(|cursor| cursors.open(&identity, cursor)).transpose()?;
    let (beyond, direction) = if *descending { ("<", "desc") } else { (">", "asc") };
    if let Some((value, id)) = place {
        query.push(format!(" and ({}, {}) {beyond} (", column.sql, tie.0)).push_bind(value).push(format!("::{}, ", column.kind));
        query.push_bind(id).push(format!("::{})", tie.1));
    }
    query.push(format!(" order by {} {direction}, {} {direction} limit ", column.sql, tie.0)).push_bind(i64::from(*limit) + 1).push(") t");
    query.build().execute(read.connection()).await?;
    let (rows, more) = bounded(read, *limit as usize).await?;
    let next = match rows.last().filter(|_| more) {
        Some(row) => Some(cursors.sign(&identity, &(row.try_get::<&str, _>(1)?, row.try_get::<&str, _>(2)?))),
        None => None,
    };
    let mut decoded = Vec::with_capacity(rows.len());
    for row in &rows {
        let Json(row) = row.try_get::<Json<T>, _>(0)?;
        decoded.push(row);
        // A page of the most bytes takes milliseconds, in which others would wait.
        tokio::task::yield_now().await;
    }
    Ok(Page { rows: decoded, next })
}

/// The rows of the cursor that fit into a page, `limit` at most, and whether there are more. What does not fit is not even made.
async fn bounded(read: &mut Read, limit: usize) -> Result<(Vec<PgRow>, bool), QueryError> {
    let (mut rows, mut bytes, mut wanted) = (Vec::<PgRow>::new(), 0, (limit + 1).min(FIRST));
    let more = 'page: loop {
        let fetch = format!("fetch forward {wanted} from page");
        let fetched = sqlx::query(&fetch).persistent(false).fetch_all(read.connection()).await?;
        let last = fetched.len() < wanted;
        for row in fetched {
            let size = row.try_get_raw(0)?.as_bytes().map_or(0, <[u8]>::len);
            if rows.len() == limit || (bytes + size > PAGE_BYTES && !rows.is_empty()) {
                break 'page true;
            }
            bytes += size;
            rows.push(row);
        }
        if last {
            break false;
        }
        // As many as would fit if they are as large as those before.
        let fitting = (PAGE_BYTES - bytes.min(PAGE_BYTES)) / (bytes / rows.len().max(1)).max(1) + 1;
        wanted = fitting.min(limit + 1 - rows.len());
    };
    sqlx::query("close page").execute(read.connection()).await?;
    Ok((rows, more))
}
