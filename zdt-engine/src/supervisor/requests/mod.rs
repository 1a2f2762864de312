//! Requests to the supervisor: where they come in, and those whose answer has to be put together.
//!
//! Must not know: what a reload does, beyond asking for one.

pub mod control_socket;
mod preview;
pub mod reception;
pub mod rehearsals;
pub mod statuses;
