//! Memory shared between processes: rings of records, ownership words, load and figures.
//!
//! The other process is not trusted. Every index, length and state read from shared memory is
//! checked before it is used, bytes are copied out before they are looked at, and no reference to
//! bytes in shared memory is ever made (only to atomics). A peer that breaks the rules causes an
//! error, never undefined behaviour, a panic or unbounded work. The memory itself cannot be cut off
//! under a mapping: it must be a memfd sealed against shrinking.
//!
//! Must not know: what the records say, who owns a connection, sockets.
#![allow(unsafe_code)]

pub mod channel;
pub mod memory;
pub mod ownership;
pub mod ring;
pub mod scoreboard;

pub use channel::{ChannelEnd, ChannelMemory};
pub use memory::{MapError, SharedMemory, read_sealed, sealed_copy};
pub use scoreboard::{LoadMap, Scoreboard, SlotTotals};
