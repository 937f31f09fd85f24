//! Helping people.

pub mod ticket;
