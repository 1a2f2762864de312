//! What clients make this worker hold: counted for each connection, bounded for all of them together.
//!
//! From three quarters of the bound on the worker stops receiving from whoever holds more than a fair share. The
//! share shrinks as the bound comes nearer, so that what honest clients send, however unevenly, stays below it.
//! As clients take what waits for them that is over by itself. What cannot be used before more of it comes, like
//! the half of a message, goes by no such way: while it stays so, the connection that holds most of those that
//! have neither given nor taken anything for a while is given up (close code 1013 where it can still be told), and
//! then one a second. Where the bound itself is reached, as by messages that inflate to a multiple of it, the biggest
//! goes at once.
//!
//! Not counted: what sessions keep for themselves, the contexts of compression, the kernel's buffers.
//!
//! Must not know: why a connection holds what it holds.

use crate::config::Limits;
use crate::conn::ReceiveEnd;

use super::Worker;
use super::entry::Entry;

/// Between two looks for one to give up.
const NEXT_MS: u64 = 1_000;
/// WebSocket: try again later (IANA's registry of close codes).
const TRY_AGAIN_LATER: u16 = 1013;

/// The count of one worker.
#[derive(Debug)]
pub struct Budget {
    /// No more than this; `u64::MAX` is no bound.
    most: u64,
    /// So long is waited for a client to take what is its own.
    patience_ms: u64,
    total: u64,
    /// Connections that hold anything.
    holders: u64,
    is_tight: bool,
    /// When one is looked for that can be given up; `u64::MAX` while it is not tight.
    look_ms: u64,
}

/// What has become due.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    Nothing,
    /// Whoever was not received from is again.
    Over,
    /// The biggest of those that have not moved since then is given up.
    GiveUp {
        silent_since_ms: u64,
    },
}

impl Budget {
    /// As the configuration says.
    pub fn new(limits: &Limits) -> Self {
        let most = match limits.worker_buffer_bytes {
            0 => u64::MAX,
            most => most,
        };
        let patience_ms = limits.buffer_patience_ms;
        Self { most, patience_ms, total: 0, holders: 0, is_tight: false, look_ms: u64::MAX }
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

    /// What each connection may hold while it is tight: the same part of three quarters at their mark; little
    /// from seven eighths on, and ever less, so that newcomers do not reach the bound either.
    fn share(&self) -> u64 {
        let falling = (self.most / 8 * 7).saturating_sub(self.total).saturating_mul(6);
        let rest = self.most.saturating_sub(self.total) / 4;
        falling.clamp(rest, self.tight_from()) / self.holders.max(1)
    }

    /// True if whoever holds that much is not received from.
    #[inline]
    pub fn is_too_much(&self, held: u32) -> bool {
        self.is_tight && u64::from(held) > self.share()
    }

    #[inline]
    fn is_over(&self) -> bool {
        self.total > self.most
    }

    fn advance(&mut self, now_ms: u64) -> Due {
        if !self.is_tight {
            return Due::Nothing;
        }
        if self.total <= self.tight_until() {
            self.is_tight = false;
            self.look_ms = u64::MAX;
            return Due::Over;
        }
        if self.look_ms == u64::MAX {
            self.look_ms = now_ms.saturating_add(self.patience_ms);
        } else if self.look_ms <= now_ms {
            self.look_ms = now_ms + NEXT_MS;
            return Due::GiveUp { silent_since_ms: now_ms.saturating_sub(self.patience_ms) };
        }
        Due::Nothing
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
        while self.budget.is_over() && self.give_biggest_up(u64::MAX) {}
    }

    /// Once a turn: is it over, or does it take too long?
    pub(super) fn advance_budget(&mut self) {
        match self.budget.advance(self.now_ms) {
            Due::Nothing => {}
            Due::Over => {
                let paused = self.entries.iter().filter(|(_, entry)| entry.paused);
                let paused: Vec<usize> = paused.map(|(key, _)| key).collect();
                paused.into_iter().for_each(|key| self.settle(key));
            }
            Due::GiveUp { silent_since_ms } => {
                self.give_biggest_up(silent_since_ms);
            }
        }
    }

    /// When somebody may have to be given up.
    pub(super) fn budget_due_ms(&self) -> Option<u64> {
        self.budget.is_tight.then(|| self.budget.look_ms.max(self.now_ms))
    }

    /// Gives up the connection that holds most of those on which no byte has moved since then, if there is
    /// one that holds anything.
    fn give_biggest_up(&mut self, silent_since_ms: u64) -> bool {
        let candidates = self.entries.iter().filter(|(_, entry)| {
            entry.is_served() && entry.held > 0 && entry.active_ms <= silent_since_ms
        });
        let Some((key, _)) = candidates.max_by_key(|(_, entry)| entry.held) else { return false };
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

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u64 = 8 << 20;

    fn budget() -> Budget {
        Budget::new(&Limits { worker_buffer_bytes: MOST, ..Limits::default() })
    }

    /// Lets them receive as long as they may, one after the other, in pieces; what they hold.
    fn fill(budget: &mut Budget, clients: usize, piece: u32, most_of_one: u32) -> Vec<u32> {
        let mut held = vec![0; clients];
        for one in &mut held {
            while !budget.is_too_much(*one) && *one < most_of_one {
                budget.change(*one, *one + piece);
                *one += piece;
            }
        }
        held
    }

    /// However unevenly they come: nobody is given up for the bound.
    #[test]
    fn those_that_wait_to_be_read_do_not_reach_the_bound() {
        for clients in [1, 2, 4, 100, 1_000] {
            for most_of_one in [64 << 10, 1 << 20, 4 << 20, u32::MAX] {
                let mut budget = budget();
                fill(&mut budget, clients, 64, most_of_one);
                let total = budget.total();
                assert!(total <= MOST, "{total} by {clients} with {most_of_one} each");
                assert!(budget.is_tight || total <= budget.tight_from());
            }
        }
    }

    #[test]
    fn shares_are_fair_and_shrink() {
        let mut budget = budget();
        assert!(!budget.is_too_much(u32::MAX));
        budget.change(0, 4 << 20);
        budget.change(0, (2 << 20) + 1);
        assert!(budget.is_tight);
        assert!(budget.is_too_much(4 << 20) && !budget.is_too_much((3 << 20) - 6));
        let before = budget.share();
        budget.change(0, 1 << 20);
        assert!(budget.share() < before / 4, "{}", budget.share());
        assert!(!budget.is_too_much(1_000), "a small one goes on");
    }

    #[test]
    fn without_a_bound_nothing_is_tight() {
        let mut budget = Budget::new(&Limits { worker_buffer_bytes: 0, ..Limits::default() });
        budget.change(0, u32::MAX);
        assert!(!budget.is_too_much(u32::MAX));
        assert_eq!(budget.advance(u64::MAX), Due::Nothing);
    }

    #[test]
    fn who_is_silent_is_given_up_one_by_one() {
        let patience_ms = Limits::default().buffer_patience_ms;
        let mut budget = budget();
        budget.change(0, 7 << 20);
        assert_eq!(budget.advance(100), Due::Nothing);
        assert_eq!(budget.advance(99 + patience_ms), Due::Nothing);
        let now_ms = 100 + patience_ms;
        assert_eq!(budget.advance(now_ms), Due::GiveUp { silent_since_ms: 100 });
        assert_eq!(budget.advance(now_ms), Due::Nothing);
        let next = Due::GiveUp { silent_since_ms: 100 + NEXT_MS };
        assert_eq!(budget.advance(now_ms + NEXT_MS), next);
        budget.change(7 << 20, 6 << 20);
        assert_eq!(
            budget.advance(now_ms + NEXT_MS),
            Due::Nothing,
            "below one mark, above the other"
        );
        budget.change(6 << 20, 5 << 20);
        assert_eq!(budget.advance(now_ms + NEXT_MS), Due::Over);
        assert_eq!(budget.advance(now_ms + 10 * NEXT_MS), Due::Nothing);
    }
}
