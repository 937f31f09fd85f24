//! Helping people: tickets.

pub mod ticket;
