//! Lists: a whitelist of orders, pages by keyset, so that rows inserted meanwhile neither repeat nor hide others, and signed cursors.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cursor::CursorKey;
use crate::query::{Found, QueryError, Read};
use crate::row::{COLUMNS, Doc};
use crate::sql::Sql;

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
    pub rows: Vec<Doc<T>>,
    /// Where the next one begins, if there is one.
    pub next: Option<String>,
}

impl<T: DeserializeOwned> Page<T> {
    /// The same page, its rows seen otherwise.
    pub fn map<U: Serialize>(self, mut see: impl FnMut(T) -> U) -> Result<Page<U>, QueryError> {
        let rows = self.rows.iter().map(|row| Doc::of(&see(row.read()?))).collect::<Result<_, QueryError>>()?;
        Ok(Page { rows, next: self.next })
    }
}

/// The bytes of a page's rows as JSON at which it ends, however many rows were asked for. One row always fits.
pub const PAGE_BYTES: usize = 1024 * 1024;
/// The statement that a list's filters are appended to, each as ` and …`. The rows are chosen first, and what is selected of them only then.
pub(crate) fn select(model: &str, paging: &Paging) -> Sql {
    select_beside(model, paging, "null")
}

/// The same with something of each row `t` beside it, as an SQL expression of JSON text.
pub(crate) fn select_beside(model: &str, paging: &Paging, beside: &str) -> Sql {
    let (column, tie) = (paging.sort.column.sql, paging.sort.tie.0);
    Sql::new(&format!("select {COLUMNS}, ({column})::text, ({tie})::text, {beside} from (select * from read.{model} t where true"))
}

/// The pattern of `like` for what contains this text.
pub(crate) fn containing(text: &str) -> String {
    format!("%{}%", text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_"))
}

/// One page of what the statement selects. `identity` says of which list, filters included: a cursor fits no other.
pub(crate) async fn page<T: Serialize + DeserializeOwned>(
    read: &mut Read,
    cursors: &CursorKey,
    sql: Sql,
    identity: &str,
    paging: &Paging,
) -> Result<Page<T>, QueryError> {
    let (found, next) = page_beside(read, cursors, sql, identity, paging).await?;
    Ok(Page { rows: found.into_iter().map(|found| found.row).collect(), next })
}

/// The rows of one page with what was selected beside them, and where the next page begins.
pub(crate) async fn page_beside<T: Serialize + DeserializeOwned>(
    read: &mut Read,
    cursors: &CursorKey,
    mut sql: Sql,
    identity: &str,
    paging: &Paging,
) -> Result<(Vec<Found<T>>, Option<String>), QueryError> {
    let Paging { sort: Sort { column, tie, descending }, limit, cursor } = paging;
    let identity = format!("{identity} {} {descending}", column.name);
    let place: Option<(String, String)> = cursor.as_ref().map(|cursor| cursors.open(&identity, cursor)).transpose()?;
    let (beyond, direction) = if *descending { ("<", "desc") } else { (">", "asc") };
    if let Some((value, id)) = place {
        sql.push(&format!(" and ({}, {}) {beyond} (", column.sql, tie.0)).bind_as(value, column.kind).push(", ");
        sql.bind_as(id, tie.1).push(")");
    }
    let most = *limit as usize;
    sql.push(&format!(" order by {} {direction}, {} {direction} limit {}) t", column.sql, tie.0, most + 1));
    let (found, more) = read.ask::<T>(&sql, most, PAGE_BYTES).await?;
    let next = found.last().filter(|_| more).map(|last| cursors.sign(&identity, &last.place));
    Ok((found, next))
}
