//! What happens to roles. Stored for ever: append only, a golden file per version under `domain/tests/golden/role/`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Something that has happened to a role.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// It exists.
    Defined {
        /// What it is called.
        name: String,
        /// What somebody in it may.
        permissions: BTreeSet<String>,
    },
    /// It is called something else.
    Renamed {
        /// What.
        name: String,
    },
    /// Those in it may something else.
    PermissionsChanged {
        /// What they may.
        permissions: BTreeSet<String>,
    },
    /// It is gone.
    Deleted,
}

crate::event_kinds!(Event:
    Defined => "role.defined" "1",
    Renamed => "role.renamed" "1",
    PermissionsChanged => "role.permissions_changed" "1",
    Deleted => "role.deleted" "1",
);
