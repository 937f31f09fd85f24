//! The tools. This file only lists them.

pub(crate) mod audit;
pub(crate) mod bus;
pub(crate) mod events;
pub(crate) mod projections;
pub(crate) mod token;
