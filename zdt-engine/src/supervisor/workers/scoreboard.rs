//! The scoreboard from the supervisor's side: what workers count, read at any time.
//!
//! Must not know: what the figures lead to.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::shm::Scoreboard;
use crate::supervisor::handle::Counters;

/// One worker's figures, as they stood at some moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Open connections.
    pub connections: u64,
    /// Accepted from a listener.
    pub accepted: u64,
    /// Handed to other workers.
    pub moved_out: u64,
    /// Adopted from other workers.
    pub adopted_in: u64,
    /// When the worker's loop last came round; 0 before the first time.
    pub heartbeat_ms: u64,
}

/// The memory, and the descriptor that every worker gets.
#[derive(Debug)]
pub struct Board {
    memory: OwnedFd,
    map: Scoreboard,
    has_totals: bool,
}

impl AsFd for Board {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

impl Board {
    /// Makes a new one.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn create(slots: u32) -> Result<Board, String> {
        let memory = Scoreboard::create_with_totals(slots as usize)
            .map_err(|error| format!("cannot make the scoreboard: {error}"))?;
        Self::adopt(memory, true)
    }

    /// Takes over the one that workers have already.
    ///
    /// # Errors
    /// If it is none.
    pub fn adopt(memory: OwnedFd, has_totals: bool) -> Result<Board, String> {
        let map = match has_totals {
            true => Scoreboard::map_with_totals(memory.as_fd()),
            false => Scoreboard::map_all(memory.as_fd()),
        };
        let map = map.map_err(|error| format!("cannot map the scoreboard: {error}"))?;
        Ok(Board { memory, map, has_totals })
    }

    /// Whether workers find room for their totals in it.
    pub fn has_totals(&self) -> bool {
        self.has_totals
    }

    /// All that the worker of a slot has counted.
    pub fn counters(&self, slot: u32) -> Counters {
        let load = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let mut counters = Counters::default();
        if let Some(figures) = self.map.slot(slot as usize) {
            counters.accepted = load(&figures.accepted);
            counters.adopted = load(&figures.adopted_in);
            counters.moved = load(&figures.moved_out);
        }
        if let Some(totals) = self.map.totals(slot as usize) {
            counters.rejected = load(&totals.rejected);
            counters.requests = load(&totals.requests);
            counters.messages_received = load(&totals.messages_received);
            counters.messages_sent = load(&totals.messages_sent);
            counters.bytes_received = load(&totals.bytes_received);
            counters.bytes_sent = load(&totals.bytes_sent);
            counters.held_requests = load(&totals.held);
            counters.replayed_requests = load(&totals.replayed);
            counters.unheld_requests = load(&totals.not_held);
            counters.displaced_requests = load(&totals.displaced);
            counters.expired_requests = load(&totals.expired);
            counters.abandoned_requests = load(&totals.abandoned);
            counters.squeezed = load(&totals.squeezed);
            counters.shed = load(&totals.shed);
            counters.spilled_requests = load(&totals.spilled);
            counters.unspilled_requests = load(&totals.unspilled);
        }
        counters
    }

    /// The figures of a slot.
    pub fn figures(&self, slot: u32) -> Figures {
        let Some(figures) = self.map.slot(slot as usize) else { return Figures::default() };
        let load = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        Figures {
            connections: load(&figures.connections),
            accepted: load(&figures.accepted),
            moved_out: load(&figures.moved_out),
            adopted_in: load(&figures.adopted_in),
            heartbeat_ms: load(&figures.heartbeat_ms),
        }
    }

    /// A new worker begins in the slot.
    pub fn clear(&self, slot: u32) {
        if let Some(figures) = self.map.slot(slot as usize) {
            figures.clear();
        }
        if let Some(totals) = self.map.totals(slot as usize) {
            totals.clear();
        }
    }
}
