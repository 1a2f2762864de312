//! Who accepts from which socket: the listeners, the steering in front of them, and both while a reload
//! goes on.
//!
//! Must not know: in which order a reload proceeds, what is said over a connection.

mod flipping;
pub mod listeners;
pub mod mending;
pub mod plan;
pub mod proving;
pub mod steer;
