//! A safe face on one io_uring: multishot accept, receive and poll, sends, cancels, closes.
//!
//! One [`Ring`] belongs to one thread (`SINGLE_ISSUER`, `DEFER_TASKRUN`): the kernel runs all its
//! work inside [`Ring::enter`], so nothing here is atomic, locked or hashed. Memory that the kernel
//! may touch is owned by the ring until the last completion of the operation: send buffers sit in a
//! slab and come back in the completion, receive buffers come from a pool that outlives the ring
//! for as long as a [`RecvBuffer`] lives. Nothing is allocated per operation once the slab and the
//! batch of completions have grown to their working size.
//!
//! Linux 6.1 is the oldest kernel that has all of this; [`SetupError`] says what is missing.
//!
//! Must not know: protocols, connections, what a token means.
#![allow(unsafe_code)]

mod buffers;
mod inflight;
mod ring;
mod setup;

#[cfg(test)]
mod tests;

pub use buffers::{RecvBuffer, SendBuffer};
pub use ring::{Completion, CompletionPayload, Operation, RECEIVE_LIMIT, Ring};
pub use setup::{NEEDED_OPCODES, SetupError, probe};
