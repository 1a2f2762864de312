//! The handoff protocol between one blue and one green worker: offer, own, release.
//!
//! A [`Channel`] is symmetric: each end can offer connections (`outgoing`) and take them in
//! (`incoming`); a rollback is the same protocol in the other direction. A connection is, here, a
//! key that the caller chose, a state record and a socket. Who owns it is decided by one 64-bit word
//! in shared memory (see [`crate::shm::ownership`]); messages are mere wake-ups, and all that comes
//! from the peer, its memory included, is checked before it is believed.
//!
//! ```text
//!            blue                                        green
//!   freeze, save                                            .
//!   record into the ring        ── shared memory ──>        .
//!   word: OFFERED                                           .
//!   descriptors                 ── SCM_RIGHTS ──>     read record, restore
//!      .                                              word: ADOPTED (or REFUSED)
//!      .                                              word: STARTED, then first I/O
//!   close own descriptor        <── eventfd ──              .
//! ```
//!
//! Must not know: protocols, io_uring operations, what is in a record.

mod channel;
mod incoming;
mod message;
mod outgoing;
#[cfg(test)]
mod tests;

pub use channel::{Channel, ChannelError, Descriptors, MAX_INLINE_RECORD, Phase, Received, Room};
pub use incoming::Arrival;
pub use message::{BatchEntry, Decoded, MAX_UPSTREAMS, PeerHello, Role, decode};
pub use outgoing::{Answer, OfferError};
