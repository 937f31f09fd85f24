//! Delivering to the world outside: decided by a policy, queued in Postgres, attempted until it is acknowledged.
//!
//! * [`policy`]: which events are answered by a delivery. It queues deliveries in the transaction that moves its checkpoint, so that each intent is queued once, whatever is
//!   killed, and a replay of the log queues nothing again;
//! * [`queue`]: what is due, who attempts it, what came of it, dead letters;
//! * [`worker`]: attempts with backoff and jitter, by a channel for each kind of delivery;
//! * [`mail`]: mails over SMTP, or into [`files`];
//! * [`erasure`]: forgetting what stands beside the log of people who were erased;
//! * [`dns`]: no delivery, but of the world outside, too: what stands in the DNS.
//!
//! Every message has the id of its delivery, the same at each attempt. What was acknowledged and recorded is never sent again. Between the acknowledgement and its record
//! lies a moment in which a crash leads to a second message with the same id: no protocol can close it, and receivers can tell by the id.

pub mod dns;
pub mod erasure;
pub mod files;
pub mod mail;
pub mod policy;
pub mod queue;
pub mod worker;
