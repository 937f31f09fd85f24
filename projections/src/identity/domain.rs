//! The domains of tenants, and what has to stand in the DNS of each to show whose it is.

use chrono::{DateTime, Utc};
use domain::TenantId;
use domain::identity::tenant::{Event, Tenant, proof};
use serde::{Deserialize, Serialize};
use serde_json::json;
use store::Recorded;
use utoipa::ToSchema;

use crate::cursor::CursorKey;
use crate::list::{self, Column, Orders, Page, Paging};
use crate::model::ReadModel;
use crate::query::{QueryError, Read};

/// The read model.
pub struct Domains;

/// The key of a domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Key {
    tenant_id: TenantId,
    domain: String,
}

/// A domain as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Domain)]
pub struct Row {
    /// Whose it is said to be.
    pub tenant_id: TenantId,
    /// Which.
    #[schema(example = "acme.example")]
    pub domain: String,
    /// The TXT record that has to stand in its DNS: its name …
    #[schema(example = "_tenure.acme.example")]
    pub record_name: String,
    /// … and its value.
    #[schema(example = "tenure-verification=01900000-0000-7000-8000-000000000001")]
    pub record_value: String,
    /// When it was found there; until then the domain does not count.
    pub verified_at: Option<DateTime<Utc>>,
    /// When it was added.
    pub added_at: DateTime<Utc>,
}

impl ReadModel for Domains {
    const NAME: &'static str = "domains_v1";
    type Events = Tenant;
    type Key = Key;
    type Row = Row;

    fn keys(event: &Recorded<Event>) -> Vec<Key> {
        let (Event::DomainAdded { domain, .. } | Event::DomainVerified { domain } | Event::DomainRemoved { domain }) = &event.event else {
            return vec![];
        };
        vec![Key { tenant_id: event.stream.tenant, domain: domain.clone() }]
    }

    fn apply(key: &Key, row: Option<Row>, event: &Recorded<Event>) -> Option<Row> {
        match (&event.event, row) {
            (Event::DomainAdded { domain, token }, _) => {
                let (record_name, record_value) = proof(domain, *token);
                let (tenant_id, domain, added_at) = (key.tenant_id, domain.clone(), event.recorded_at);
                Some(Row { tenant_id, domain, record_name, record_value, verified_at: None, added_at })
            }
            (Event::DomainVerified { .. }, Some(row)) => Some(Row { verified_at: Some(event.recorded_at), ..row }),
            (Event::DomainRemoved { .. }, _) => None,
            (_, row) => row,
        }
    }
}

/// In which order.
pub const ORDERS: Orders =
    Orders { columns: &[Column { name: "added_at", sql: "added_at", kind: "timestamptz" }], tie: ("domain", "text") };

/// One page of a tenant's domains.
pub async fn list(read: &mut Read, cursors: &CursorKey, tenant: TenantId, paging: &Paging) -> Result<Page<Row>, QueryError> {
    let mut query = list::select(Domains::NAME, paging);
    query.push(" and tenant_id = ").bind(tenant.0);
    list::page(read, cursors, query, &json!([Domains::NAME, tenant]).to_string(), paging).await
}
