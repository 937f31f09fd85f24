//! Helping people.

pub mod ticket;
pub mod ticket_statistics;
pub mod ticket_thread;
