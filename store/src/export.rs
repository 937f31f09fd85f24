//! Exports: a tenant's events, or a contiguous part of them, in a form that anybody can check without the database.
//!
//! What an export proves: no event in it was changed, none between its first and its last was left out, and it goes on from the tenant's chain as it was before. That it
//! is the tenant's whole history shows in `previous_hash` (zeros: from the beginning) and by comparing `last_hash` with the running installation.

use domain::TenantId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::audit::Finding;
use crate::event::RawEvent;
use crate::hash::{Hash, tenant_link};

/// What an export says about itself, in a file beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Of which installation.
    pub installation: Uuid,
    /// Whose events.
    pub tenant: TenantId,
    /// `jsonl` or `csv`.
    pub format: String,
    /// How many.
    pub events: u64,
    /// The position of the first; 0 when there is none.
    pub first_position: i64,
    /// The position of the last; 0 when there is none.
    pub last_position: i64,
    /// The tenant's chain before the first.
    #[serde(with = "crate::hash::as_text")]
    pub previous_hash: Hash,
    /// The tenant's chain at the first.
    #[serde(with = "crate::hash::as_text")]
    pub first_hash: Hash,
    /// The tenant's chain at the last.
    #[serde(with = "crate::hash::as_text")]
    pub last_hash: Hash,
    /// Over the file's bytes.
    #[serde(with = "crate::hash::as_text")]
    pub sha256: Hash,
}

/// Follows a tenant's chain from event to event.
#[derive(Clone, Debug)]
pub struct Chain {
    tenant: TenantId,
    previous: Hash,
    last: Hash,
    first: Option<(i64, Hash)>,
    position: i64,
    events: u64,
}

impl Chain {
    /// The chain of `tenant` after `previous`.
    pub fn new(tenant: TenantId, previous: Hash) -> Self {
        Self { tenant, previous, last: previous, first: None, position: 0, events: 0 }
    }

    /// Takes the next event; says what is wrong with it.
    pub fn link(&mut self, event: &RawEvent) -> Result<(), Finding> {
        let wrong = |what: &str| Err(Finding { position: Some(event.position), what: what.to_owned() });
        if event.tenant_id != self.tenant.0 {
            return wrong("the event is another tenant's");
        }
        if event.position <= self.position {
            return wrong("the positions do not rise");
        }
        if event.computed_digest() != event.digest {
            return wrong("the digest is not that of the event: it was changed");
        }
        if tenant_link(self.last, event.digest) != event.tenant_hash {
            return wrong("the tenant's chain is broken: an event before this one is missing, or was put in");
        }
        self.last = event.tenant_hash;
        self.position = event.position;
        self.first.get_or_insert((event.position, event.tenant_hash));
        self.events += 1;
        Ok(())
    }

    /// The manifest of what was taken.
    pub fn manifest(&self, installation: Uuid, format: &str, sha256: Hash) -> Manifest {
        let (first_position, first_hash) = self.first.unwrap_or((0, self.previous));
        Manifest {
            installation,
            tenant: self.tenant,
            format: format.to_owned(),
            events: self.events,
            first_position,
            last_position: self.position,
            previous_hash: self.previous,
            first_hash,
            last_hash: self.last,
            sha256,
        }
    }
}
