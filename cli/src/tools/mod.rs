//! The tools. This file only lists them.

pub(crate) mod admin;
pub(crate) mod audit;
pub(crate) mod bus;
pub(crate) mod deliveries;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod export;
pub(crate) mod import;
pub(crate) mod keys;
pub(crate) mod log;
pub(crate) mod policies;
pub(crate) mod privacy;
pub(crate) mod projections;
pub(crate) mod reconcile;
pub(crate) mod replay;
pub(crate) mod seed;
pub(crate) mod token;
