//! What clients make this worker hold: counted for each connection, bounded for all of them together.
//!
//! From three quarters of the bound on the worker stops receiving from whoever holds more than a fair
//! share. As clients take what waits for them that is over by itself. What cannot be used before more of
//! it comes, like the half of a message, goes by no such way: if it stays so for a while, or where the
//! bound itself is reached, the connection that holds most is given up (close code 1013 where it can
//! still be told), until it helps.
//!
//! Not counted: what sessions keep for themselves, the contexts of compression, the kernel's buffers.
//!
//! Must not know: why a connection holds what it holds.

use crate::config::Limits;
use crate::conn::ReceiveEnd;

use super::Worker;
use super::entry::Entry;

/// So long is waited for clients to take what is theirs, and then between two connections given up.
const PATIENCE_MS: u64 = 5_000;
const NEXT_MS: u64 = 1_000;
/// WebSocket: try again later (IANA's registry of close codes).
const TRY_AGAIN_LATER: u16 = 1013;

/// The count of one worker.
#[derive(Debug)]
pub struct Budget {
    /// No more than this; `u64::MAX` is no bound.
    most: u64,
    total: u64,
    /// Connections that hold anything.
    holders: u64,
    is_tight: bool,
    /// When a connection is given up, unless the total falls below this until then; `u64::MAX` while it is
    /// not tight.
    give_up_ms: u64,
    total_before: u64,
}

impl Budget {
    /// As the configuration says.
    pub fn new(limits: &Limits) -> Self {
        let most = match limits.worker_buffer_bytes {
            0 => u64::MAX,
            most => most,
        };
        let (give_up_ms, total_before) = (u64::MAX, 0);
        Self { most, total: 0, holders: 0, is_tight: false, give_up_ms, total_before }
    }

    /// Bytes that all connections hold.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// One connection holds `held` where it held `was`.
    #[inline]
    fn change(&mut self, was: u32, held: u32) {
        self.total = self.total + u64::from(held) - u64::from(was);
        self.holders = self.holders + u64::from(held > 0) - u64::from(was > 0);
        self.is_tight |= self.total > self.tight_from();
    }

    fn tight_from(&self) -> u64 {
        self.most / 4 * 3
    }

    /// Below the other mark, so that they do not take turns.
    fn tight_until(&self) -> u64 {
        self.most / 8 * 5
    }

    /// True if whoever holds that much is not received from.
    #[inline]
    pub fn is_too_much(&self, held: u32) -> bool {
        self.is_tight && u64::from(held) > self.tight_from() / self.holders.max(1)
    }

    #[inline]
    fn is_over(&self) -> bool {
        self.total > self.most
    }
}

impl Worker {
    /// Counts what a connection holds now.
    #[inline]
    pub(super) fn count_held(&mut self, key: usize) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let held = u32::try_from(entry.held_bytes()).unwrap_or(u32::MAX);
        self.budget.change(entry.held, held);
        entry.held = held;
    }

    /// A connection goes, and what it holds.
    pub(super) fn count_gone(&mut self, entry: &Entry) {
        self.budget.change(entry.held, 0);
    }

    /// After each completion: the bound holds.
    #[inline]
    pub(super) fn keep_budget(&mut self) {
        if self.budget.is_over() {
            self.relieve();
        }
    }

    #[cold]
    fn relieve(&mut self) {
        while self.budget.is_over() && self.give_biggest_up() {}
    }

    /// Once a turn: is it over, or does it take too long?
    pub(super) fn advance_budget(&mut self) {
        let budget = &mut self.budget;
        if !budget.is_tight {
            return;
        }
        if budget.total <= budget.tight_until() {
            budget.is_tight = false;
            budget.give_up_ms = u64::MAX;
            let paused = self.entries.iter().filter(|(_, entry)| entry.paused);
            let paused: Vec<usize> = paused.map(|(key, _)| key).collect();
            paused.into_iter().for_each(|key| self.settle(key));
        } else if budget.give_up_ms == u64::MAX {
            (budget.give_up_ms, budget.total_before) = (self.now_ms + PATIENCE_MS, budget.total);
        } else if budget.give_up_ms <= self.now_ms {
            let helps = budget.total < budget.total_before;
            (budget.give_up_ms, budget.total_before) = (self.now_ms + NEXT_MS, budget.total);
            if !helps {
                self.give_biggest_up();
            }
        }
    }

    /// When a connection is given up, if nothing changes.
    pub(super) fn budget_due_ms(&self) -> Option<u64> {
        self.budget.is_tight.then(|| self.budget.give_up_ms.max(self.now_ms))
    }

    /// Gives up the connection that holds most, if it holds anything.
    fn give_biggest_up(&mut self) -> bool {
        let served = self.entries.iter().filter(|(_, entry)| entry.is_served() && entry.held > 0);
        let Some((key, _)) = served.max_by_key(|(_, entry)| entry.held) else { return false };
        let entry = &self.entries[key];
        let (connection, peer, held) = (entry.id, entry.peer, entry.held);
        tracing::warn!(connection, %peer, held, "given up: limits.worker_buffer_bytes is used up");
        self.status.shed += 1;
        let can_be_told = entry.queued() == 0 && entry.connection.receive_end == ReceiveEnd::Open;
        let websockets = if can_be_told { entry.connection.websockets() } else { Vec::new() };
        if websockets.is_empty() {
            self.drop_connection(key);
        } else {
            self.end_sessions(key);
            self.with_connection(key, |connection, environment, out| {
                for slot in websockets {
                    let mut answers = connection.answers(slot, environment, out);
                    answers.close_websocket(TRY_AGAIN_LATER, "too much is buffered");
                }
                connection.end();
            });
        }
        if let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.closing) {
            // It waits for its operations to end, and counts no more.
            entry.unsent = Vec::new();
            self.budget.change(entry.held, 0);
            entry.held = 0;
        } else {
            self.count_held(key);
        }
        true
    }
}
