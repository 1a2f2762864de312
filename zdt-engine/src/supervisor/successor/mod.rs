//! The replacement of the supervisor itself: a new build takes over from a running one.
//!
//! The running supervisor starts its successor (`replacing`), which finds in its environment who
//! started it, connects to the handoff socket, and inherits (`inheriting`):
//!
//! ```text
//! running supervisor                         successor
//!   start it, listen            spawned
//!                               <- Hello     started
//!   Hello ->                    greeted
//!                               <- Prepared  its configuration is sound
//!   (stops acting) Estate ->    estate_sent  everything that cannot be found on disk
//!                               <- Proven    it has all, and every worker greets it
//!   TakeOver ->                 taken_over   from here on the successor is the supervisor
//!                               <- Done      workers, lock and sockets are its own
//!   Client… NoMoreClients ->    passed_on    whoever waits for an answer
//!                               <- Settled   the workers have followed
//!   exits
//! ```
//!
//! Until `TakeOver` nothing has changed, and the running supervisor carries on as soon as its
//! successor dies, hangs or refuses; it is killed first, so that there is never a second one. After
//! it, the successor takes the workers over exactly as if its predecessor had been killed, and if
//! itself dies before it has settled, its predecessor, which waits for that, takes them back in the
//! same way. Whoever hangs or is alone learns from a pidfd, and from nothing else, that the other is
//! dead.
//!
//! Must not know: how workers are taken over, what a reload does.

mod channel;
mod estate;
mod inheriting;
mod message;
mod replacing;
mod standby;

pub(super) use channel::Channel;
pub(super) use estate::{Estate, ago};
pub use inheriting::decline;
pub(super) use inheriting::{Claim, Heir, PREDECESSOR, Predecessor, is_successor};
pub(super) use message::{FromSuccessor, ToSuccessor};
pub(super) use replacing::{Event, Replacement, not_replaced};
pub(super) use standby::Standby;

/// The running supervisor's end.
pub(super) type ToHeir = Channel<ToSuccessor, FromSuccessor>;
