//! Reading the log.

use chrono::{DateTime, Utc};
use domain::{StreamId, TenantId, UserId};
use sqlx::{PgConnection, QueryBuilder};
use uuid::Uuid;

use crate::event::{COLUMNS, Metadata, RawEvent};
use crate::{Hash, Head, Store};

/// How something that was made from the log disagrees with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Disagreement {
    /// It has come further than the log.
    #[error(
        "position {position} is beyond the head of the log at {head}: the log was restored to an earlier state, or this was made from another log"
    )]
    Ahead {
        /// Its position.
        position: i64,
        /// The end of the log.
        head: i64,
    },
    /// It was made from another event at its position.
    #[error("position {} has hash {}, and {hash} in the log: the log was restored to an earlier state, or this was made from another log", .claimed.position, .claimed.log_hash)]
    Differs {
        /// Its position and hash.
        claimed: Head,
        /// The hash that the log has there.
        hash: Hash,
    },
}

/// Which events a listing shows; all that is given must hold.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of this tenant.
    pub tenant: Option<Uuid>,
    /// Of this type: an aggregate's (`tenant`) or an event's (`tenant.renamed`).
    pub kind: Option<String>,
    /// Of the aggregate with this id.
    pub id: Option<Uuid>,
    /// Caused by this actor: a token's subject, or the name of a part of Tenure.
    pub actor: Option<String>,
    /// Set off by the same request as others with this correlation id.
    pub correlation: Option<Uuid>,
    /// Not beyond this position.
    pub to: Option<i64>,
    /// Recorded at or after.
    pub since: Option<DateTime<Utc>>,
    /// Recorded before.
    pub until: Option<DateTime<Utc>>,
}

impl Filter {
    /// Whether an event passes, as [`Store::list`] decides it.
    pub fn passes(&self, event: &RawEvent) -> bool {
        let metadata = || serde_json::from_str::<Metadata>(&event.metadata).ok();
        let actor = |metadata: Metadata| metadata.actor.name();
        self.tenant.is_none_or(|tenant| tenant == event.tenant_id)
            && self
                .kind
                .as_ref()
                .is_none_or(|kind| *kind == if kind.contains('.') { event.event_type.clone() } else { event.aggregate_type.clone() })
            && self.id.is_none_or(|id| event.aggregate_id.ends_with(&format!("/{id}")))
            && self.actor.as_ref().is_none_or(|wanted| metadata().map(actor).as_ref() == Some(wanted))
            && self.correlation.is_none_or(|id| metadata().is_some_and(|metadata| metadata.correlation_id == id))
            && self.to.is_none_or(|to| event.position <= to)
            && self.since.is_none_or(|since| event.recorded_at >= since)
            && self.until.is_none_or(|until| event.recorded_at < until)
    }
}

impl Store {
    /// Up to `limit` events after `position`, in order. Few enough at a time that no transaction lasts.
    pub async fn read_from(&self, position: i64, limit: i64) -> Result<Vec<RawEvent>, sqlx::Error> {
        self.list(position, limit, &Filter::default()).await
    }

    /// Where the last event of a stream is; `None` where there is no such stream.
    pub async fn last_position(&self, aggregate: &str, stream: StreamId) -> Result<Option<i64>, sqlx::Error> {
        let last = sqlx::query_scalar(
            "select position from events where aggregate_type = $1 and aggregate_id = $2 and position <= (select position from log_head) order by sequence desc limit 1",
        );
        last.bind(aggregate).bind(stream.to_string()).fetch_optional(self.pool()).await
    }

    /// The streams of a tenant in which one of these events has ever named a user in this field of its payload, up to a position; each with its aggregate type, the newest
    /// first, `limit` of them.
    pub async fn streams_naming(
        &self,
        tenant: TenantId,
        user: UserId,
        events: &[(&str, &str)],
        position: i64,
        limit: i64,
    ) -> Result<Vec<(String, StreamId)>, sqlx::Error> {
        let (types, fields): (Vec<&str>, Vec<&str>) = events.iter().copied().unzip();
        let named: Vec<(String, String)> = sqlx::query_as(
            "select aggregate_type, aggregate_id from events
             where tenant_id = $1 and position <= $2 and event_type = any($3) and payload ->> ($4::text[])[array_position($3, event_type)] = $5
             group by aggregate_type, aggregate_id order by max(position) desc limit $6",
        )
        .bind(tenant.0)
        .bind(position)
        .bind(types)
        .bind(fields)
        .bind(user.to_string())
        .bind(limit)
        .fetch_all(self.pool())
        .await?;
        Ok(named.into_iter().filter_map(|(aggregate, stream)| Some((aggregate, stream.parse().ok()?))).collect())
    }

    /// Up to `limit` events after `position` that pass the filter, in order. Rows beyond the head are no events yet: an import that is under way, or was cut off, left them.
    pub async fn list(&self, position: i64, limit: i64, filter: &Filter) -> Result<Vec<RawEvent>, sqlx::Error> {
        let mut query = paged(position, filter);
        query.push(" and position <= (select position from log_head) order by position limit ").push_bind(limit);
        query.build_query_as().fetch_all(&self.inner.pool).await
    }

    /// All events of a stream, in order.
    pub async fn stream(&self, aggregate_type: &str, aggregate_id: &str) -> Result<Vec<RawEvent>, sqlx::Error> {
        sqlx::query_as(&format!("select {COLUMNS} from events where aggregate_type = $1 and aggregate_id = $2 order by sequence"))
            .bind(aggregate_type)
            .bind(aggregate_id)
            .fetch_all(&self.inner.pool)
            .await
    }

    /// What had happened to a tenant and its subscriptions by a time, in order. Of a tenant with many events these are few, which have an index of their own.
    pub async fn entitling(&self, tenant: TenantId, until: DateTime<Utc>) -> Result<Vec<RawEvent>, sqlx::Error> {
        sqlx::query_as(&format!(
            "select {COLUMNS} from events where tenant_id = $1 and aggregate_type in ('tenant', 'subscription') and recorded_at <= $2 order by position"
        ))
        .bind(tenant.0)
        .bind(until)
        .fetch_all(&self.inner.pool)
        .await
    }

    /// A position before which nothing was recorded at `time` or later, as near to it as clocks allow. Positions are dense and times follow them, so it is found by halving.
    pub async fn position_before(&self, time: DateTime<Utc>) -> Result<i64, sqlx::Error> {
        let (mut before, mut after) = (0, self.head().await?.position + 1);
        while after - before > 1 {
            let middle = before + (after - before) / 2;
            let recorded: Option<DateTime<Utc>> =
                sqlx::query_scalar("select recorded_at from events where position = $1").bind(middle).fetch_optional(self.pool()).await?;
            if recorded.is_some_and(|at| at < time) { before = middle } else { after = middle }
        }
        Ok(before)
    }

    /// The tenant's chain as it was before `position`.
    pub async fn tenant_hash_before(&self, tenant: Uuid, position: i64) -> Result<Hash, sqlx::Error> {
        let hash: Option<[u8; 32]> =
            sqlx::query_scalar("select tenant_hash from events where tenant_id = $1 and position < $2 order by position desc limit 1")
                .bind(tenant)
                .bind(position)
                .fetch_optional(&self.inner.pool)
                .await?;
        Ok(hash.map_or(Hash::ZERO, Hash))
    }

    /// The events at these positions, in order.
    pub async fn at_all(&self, positions: &[i64]) -> Result<Vec<RawEvent>, sqlx::Error> {
        sqlx::query_as(&format!("select {COLUMNS} from events where position = any($1) order by position"))
            .bind(positions)
            .fetch_all(&self.inner.pool)
            .await
    }

    /// The chain hash of the log at a position; `None` beyond the head that is committed. Position 0 has [`Hash::ZERO`].
    pub async fn hash_at(&self, position: i64) -> Result<Option<Hash>, sqlx::Error> {
        if position == 0 {
            return Ok(Some(Hash::ZERO));
        }
        let hash: Option<[u8; 32]> =
            sqlx::query_scalar("select log_hash from events where position = $1 and position <= (select position from log_head)")
                .bind(position)
                .fetch_optional(&self.inner.pool)
                .await?;
        Ok(hash.map(Hash))
    }

    /// Whether the log confirms that it once ended as `claimed` says: that position is not beyond its head, and has that hash. A checkpoint that the log does not confirm
    /// was made from another log, or from one that was restored to an earlier state since.
    pub async fn confirm(&self, claimed: Head) -> Result<Result<(), Disagreement>, sqlx::Error> {
        Ok(match self.hash_at(claimed.position).await? {
            Some(hash) if hash == claimed.log_hash => Ok(()),
            Some(hash) => Err(Disagreement::Differs { claimed, hash }),
            None => Err(Disagreement::Ahead { position: claimed.position, head: self.head().await?.position }),
        })
    }

    /// The event at a position.
    pub async fn at(&self, position: i64) -> Result<Option<RawEvent>, sqlx::Error> {
        sqlx::query_as(&format!("select {COLUMNS} from events where position = $1")).bind(position).fetch_optional(&self.inner.pool).await
    }
}

/// Up to `limit` rows after a position, also beyond the head: for an audit.
pub(crate) async fn page(connection: &mut PgConnection, after: i64, limit: i64, filter: &Filter) -> Result<Vec<RawEvent>, sqlx::Error> {
    let mut query = paged(after, filter);
    query.push(" order by position limit ").push_bind(limit);
    query.build_query_as().fetch_all(connection).await
}

/// The rows after a position that pass a filter, without their order.
fn paged(after: i64, filter: &Filter) -> QueryBuilder<'_, sqlx::Postgres> {
    let mut query = QueryBuilder::new(format!("select {COLUMNS} from events where position > "));
    query.push_bind(after);
    if let Some(tenant) = filter.tenant {
        query.push(" and tenant_id = ").push_bind(tenant);
    }
    if let Some(kind) = &filter.kind {
        query.push(if kind.contains('.') { " and event_type = " } else { " and aggregate_type = " }).push_bind(kind);
    }
    if let Some(id) = filter.id {
        query.push(" and split_part(aggregate_id, '/', 2) = ").push_bind(id.to_string());
    }
    if let Some(actor) = &filter.actor {
        query
            .push(" and coalesce(metadata -> 'actor' ->> 'id', metadata -> 'actor' ->> 'key', metadata -> 'actor' ->> 'name') = ")
            .push_bind(actor);
    }
    if let Some(correlation) = filter.correlation {
        query.push(" and metadata ->> 'correlation_id' = ").push_bind(correlation.to_string());
    }
    if let Some(to) = filter.to {
        query.push(" and position <= ").push_bind(to);
    }
    if let Some(since) = filter.since {
        query.push(" and recorded_at >= ").push_bind(since);
    }
    if let Some(until) = filter.until {
        query.push(" and recorded_at < ").push_bind(until);
    }
    query
}
