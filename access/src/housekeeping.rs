//! Forgetting what stands beside the log and counts no more.

use chrono::{DateTime, TimeDelta, Utc};
use domain::identity::api_key::ApiKey;
use domain::identity::user::{LOCK, User};
use domain::iot::device::Device;
use domain::{StreamId, TenantId};
use uuid::Uuid;

use crate::{Access, AccessError};

impl Access {
    /// Forgets sessions and signing keys that have ended, and credentials that count no more, some time ago; those of people who are gone at once. Bounded: there may be more.
    pub async fn housekeep(&self) -> Result<(), AccessError> {
        let store = self.store();
        let now = store.clock().now();
        let long_ago = now - TimeDelta::days(1);
        let ended = "delete from ops.sessions where id in (select id from ops.sessions where expires_at < $1 or ended_at < $1 limit 10000)";
        sqlx::query(ended).bind(long_ago).execute(store.pool()).await?;
        sqlx::query("delete from ops.signing_keys where verifies_until < $1").bind(long_ago).execute(store.pool()).await?;
        sqlx::query("delete from ops.login_attempts where since < $1").bind(now - LOCK).execute(store.pool()).await?;
        sqlx::query("delete from ops.mail_pauses where until < $1").bind(long_ago).execute(store.pool()).await?;
        sqlx::query("delete from ops.mails_caused where day < $1").bind(long_ago.date_naive()).execute(store.pool()).await?;
        // By the type of what is gone too: ids are the clients' own, and somebody else's thing may have the same.
        let gone = "with gone as (
               select tenant_id, aggregate_type, split_part(aggregate_id, '/', 2)::uuid as id from events
               where event_type in ('user.deleted', 'api_key.revoked', 'device.decommissioned')
             ), sessions as (delete from ops.sessions s using gone g where g.aggregate_type = 'user' and s.tenant_id = g.tenant_id and s.user_id = g.id),
             used as (delete from ops.api_key_use u using gone g where g.aggregate_type = 'api_key' and u.tenant_id = g.tenant_id and u.key_id = g.id),
             heard as (delete from ops.device_heartbeats h using gone g where g.aggregate_type = 'device' and h.tenant_id = g.tenant_id and h.device_id = g.id)
             delete from ops.credentials c using gone g
             where c.tenant_id = g.tenant_id and c.owner_id = g.id and c.created_at < $1
               and (c.owner_type = g.aggregate_type or (c.owner_type is null and g.aggregate_type <> 'device'))";
        // One that was kept a moment ago may belong to somebody else with the same id.
        sqlx::query(gone).bind(now - TimeDelta::minutes(5)).execute(store.pool()).await?;
        let closed = "delete from ops.credentials c using tenant_heads h where h.tenant_id = c.tenant_id and h.gate = 'deleted'";
        sqlx::query(closed).execute(store.pool()).await?;
        let silent = "delete from ops.device_heartbeats b using tenant_heads h where h.tenant_id = b.tenant_id and h.gate = 'deleted'";
        sqlx::query(silent).execute(store.pool()).await?;
        let replaced: Vec<(Uuid, Uuid)> = sqlx::query_as(
            "select tenant_id, owner_id from ops.credentials group by 1, 2 having count(*) > 1 and min(created_at) < $1 limit 1000",
        )
        .bind(long_ago)
        .fetch_all(store.pool())
        .await?;
        for (tenant, owner) in replaced {
            if let Err(error) = self.forget_replaced(StreamId::new(TenantId(tenant), owner), long_ago).await {
                tracing::warn!(%error, %owner, "what somebody signed in with before cannot be forgotten");
            }
        }
        Ok(())
    }

    async fn forget_replaced(&self, owner: StreamId, before: DateTime<Utc>) -> Result<(), AccessError> {
        let store = self.store();
        let (user, key) = (store.current::<User>(owner).await?.state, store.current::<ApiKey>(owner).await?.state);
        let device = store.current::<Device>(owner).await?.state;
        let mut counts: Vec<Uuid> = user.details().and_then(|user| user.credential).into_iter().collect();
        counts.extend(key.details().map(|key| key.secrets(store.clock().now())).unwrap_or_default());
        counts.extend(device.details().map(|device| device.secrets(store.clock().now())).unwrap_or_default());
        sqlx::query("delete from ops.credentials where tenant_id = $1 and owner_id = $2 and created_at < $3 and id <> all($4)")
            .bind(owner.tenant.0)
            .bind(owner.id)
            .bind(before)
            .bind(counts)
            .execute(store.pool())
            .await?;
        Ok(())
    }
}
