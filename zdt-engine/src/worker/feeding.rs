//! Who is received from next.
//!
//! A receive that finds no buffer ends. Armed again at once it would find none either, as long as there are
//! more busy connections than buffers: the worker would be busy with arming. So those who went away empty
//! come by turns, never more at a time than there is something for.
//!
//! Must not know: what was received.

use std::collections::VecDeque;
use std::os::fd::AsFd;

use super::Worker;
use super::tokens::Token;

/// Who waits for a turn: key and tag, the longest wait first.
#[derive(Debug, Default)]
pub struct Waiting(VecDeque<(usize, u32)>);

/// So many buffers there must be for each turn: as many as one receive may fill.
const BUFFERS_A_TURN: usize = 8;

impl Worker {
    /// Starts to receive, unless there is a reason not to.
    pub(super) fn arm_receive(&mut self, key: usize) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        if let (true, Some(socket)) = (entry.wants_receive(), &entry.socket) {
            self.ring.recv_multishot(socket.as_fd(), Token::Receive(key).pack());
            entry.receiving = true;
        }
    }

    /// A receive has found no buffer.
    pub(super) fn wait_for_turn(&mut self, key: usize) {
        let entry = &mut self.entries[key];
        if !std::mem::replace(&mut entry.is_waiting, true) {
            self.waiting.0.push_back((key, entry.tag()));
        }
    }

    /// Gives as many turns as there are buffers for.
    pub(super) fn give_turns(&mut self) {
        let turns = (self.ring.buffers_free() / BUFFERS_A_TURN).max(1);
        for _ in 0..turns {
            let Some((key, tag)) = self.waiting.0.pop_front() else { return };
            if let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.tag() == tag) {
                entry.is_waiting = false;
                // What is frozen meanwhile is armed when it is served again.
                self.arm_receive(key);
            }
        }
    }

    /// Without delay while somebody waits for a turn.
    pub(super) fn turn_due_ms(&self) -> Option<u64> {
        (!self.waiting.0.is_empty()).then_some(self.now_ms)
    }
}
