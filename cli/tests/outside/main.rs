//! Tests that need programs from outside: `make test-cluster` and `make test-ecosystem`. They share the kit of the other tests.
#![expect(clippy::unwrap_used, reason = "tests may")]
#![expect(dead_code, reason = "not all of the kit is needed here")]

#[path = "../it/faults/chaos.rs"]
mod chaos;
mod cluster;
mod ecosystem;
#[path = "../it/faults/load.rs"]
mod load;
#[path = "../it/process.rs"]
mod process;
#[path = "../it/site.rs"]
mod site;
mod stripe;

/// A program that the make target names.
fn program(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: run this with make"))
}
