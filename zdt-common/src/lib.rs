//! What the eBPF steering program and its user side share: plain-old-data of the maps, and the
//! decision itself as a pure function, so that it can be tested without a kernel.
//!
//! A *slot* is `bank × max_workers + worker`; a generation of workers owns the bank
//! `generation % BANKS`. A *group* is one listening address with all the sockets that share it.
//!
//! Every value that the user side changes while the program reads it is made of parts that are each
//! valid in any mixture: banks and ready bits. So a decision in the very moment of a write picks a
//! worker of the old state or of the new one, never a third.
//!
//! Must not know: aya-ebpf, sockets, processes.
#![no_std]

mod decision;
mod map;

pub use decision::{Environment, Outcome, Search, Tally, bank_of, nth_bit, steer};
pub use map::{Counters, Group, Policy, Probe, Route, WorkerBits};

/// Generations that can be steered to at the same time.
pub const BANKS: u32 = 4;

/// Most workers of one generation.
pub const MAX_WORKERS: u32 = 256;

/// Most groups, which is most listening addresses. Each has an entry point of its own in the
/// program, so that a decision need not find out which group it is for.
pub const MAX_GROUPS: u32 = 32;

/// 64-bit words of a bitmap over the workers of one bank.
pub const BITMAP_WORDS: usize = (MAX_WORKERS / 64) as usize;

/// Changes with the layout or the meaning of any map, so that a supervisor does not adopt the maps of
/// a build that it does not understand. Kept in every [`Group`].
pub const LAYOUT_VERSION: u32 = 1;

/// Key of a slot in the maps that have an entry per group and slot.
pub const fn group_key(group: u32, slot: u32, max_workers: u32) -> u32 {
    group * BANKS * max_workers + slot
}

/// Entries of a map that has one per group and slot.
pub const fn group_entries(max_workers: u32) -> u32 {
    MAX_GROUPS * BANKS * max_workers
}

/// The slot of a worker in a bank.
pub const fn slot(bank: u32, worker: u32, max_workers: u32) -> u32 {
    bank * max_workers + worker
}
