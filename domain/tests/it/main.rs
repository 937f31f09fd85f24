//! The stored form of every event, for ever. A golden file is written once, when its event (or a new version of it) is; `UPDATE_GOLDEN=1` writes the missing ones.

mod billing;
mod identity;
mod periods;
mod tenant;
mod ticket;
mod usage;
mod values;

use std::path::PathBuf;

use cqrs_es::DomainEvent;
use domain::EventKind;

/// Every event type has its golden file, which loads into what it was made from and is written again byte for byte.
pub fn check<E: DomainEvent>(aggregate: &str, kinds: &[EventKind], samples: &[E]) {
    for kind in kinds {
        let mut of_kind = samples.iter().filter(|sample| sample.event_type() == kind.name).peekable();
        assert!(of_kind.peek().is_some(), "no sample of {}", kind.name);
        for sample in of_kind {
            let event = kind.name.split_once('.').expect("<aggregate>.<event>").1;
            let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{aggregate}/{event}.v{}.json", kind.version));
            let json = serde_json::to_string_pretty(sample).expect("JSON") + "\n";
            if !path.exists() && std::env::var_os("UPDATE_GOLDEN").is_some() {
                std::fs::write(&path, &json).expect("a golden file");
            }
            let golden = std::fs::read_to_string(&path)
                .unwrap_or_else(|_| panic!("{} is missing: run with UPDATE_GOLDEN=1 and commit it", path.display()));
            assert_eq!(golden, json, "{}: a stored event cannot change; add a version and an upcaster", path.display());
            assert_eq!(&serde_json::from_str::<E>(&golden).expect("loads"), sample);
        }
    }
}
