//! Reading the log.

use sqlx::{PgConnection, QueryBuilder};
use uuid::Uuid;

use crate::Store;
use crate::event::{COLUMNS, RawEvent};

/// Which events a listing shows; all that is given must hold.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of this tenant.
    pub tenant: Option<Uuid>,
    /// Of this type: an aggregate's (`tenant`) or an event's (`tenant.renamed`).
    pub kind: Option<String>,
}

impl Store {
    /// Up to `limit` events after `position`, in order. Few enough at a time that no transaction lasts.
    pub async fn read_from(&self, position: i64, limit: i64) -> Result<Vec<RawEvent>, sqlx::Error> {
        let mut connection = self.inner.pool.acquire().await?;
        page(&mut connection, position, limit, &Filter::default()).await
    }

    /// Up to `limit` events after `position` that pass the filter, in order.
    pub async fn list(&self, position: i64, limit: i64, filter: &Filter) -> Result<Vec<RawEvent>, sqlx::Error> {
        let mut connection = self.inner.pool.acquire().await?;
        page(&mut connection, position, limit, filter).await
    }

    /// The events at these positions, in order.
    pub async fn at_all(&self, positions: &[i64]) -> Result<Vec<RawEvent>, sqlx::Error> {
        sqlx::query_as(&format!("select {COLUMNS} from events where position = any($1) order by position"))
            .bind(positions)
            .fetch_all(&self.inner.pool)
            .await
    }

    /// The event at a position.
    pub async fn at(&self, position: i64) -> Result<Option<RawEvent>, sqlx::Error> {
        sqlx::query_as(&format!("select {COLUMNS} from events where position = $1")).bind(position).fetch_optional(&self.inner.pool).await
    }
}

pub(crate) async fn page(connection: &mut PgConnection, after: i64, limit: i64, filter: &Filter) -> Result<Vec<RawEvent>, sqlx::Error> {
    let mut query = QueryBuilder::new(format!("select {COLUMNS} from events where position > "));
    query.push_bind(after);
    if let Some(tenant) = filter.tenant {
        query.push(" and tenant_id = ").push_bind(tenant);
    }
    if let Some(kind) = &filter.kind {
        query.push(if kind.contains('.') { " and event_type = " } else { " and aggregate_type = " }).push_bind(kind);
    }
    query.push(" order by position limit ").push_bind(limit);
    query.build_query_as().fetch_all(connection).await
}
