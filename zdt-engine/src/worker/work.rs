//! How much one connection may have done for it in one turn of the loop.
//!
//! A few kilobytes can ask for much: messages that inflate a thousandfold, thousands of small requests. What goes
//! beyond a turn's work stays where received bytes wait anyway, the connection is not received from, and goes on
//! in a later turn, behind those that waited longer. So nobody waits for all that somebody else has sent, and a
//! connection can be frozen between any two pieces of work.
//!
//! Must not know: what the work is.

use std::collections::VecDeque;

use super::Worker;

/// Work of one connection in one turn: about as many bytes made, by inflating or as output.
pub const TURN_WORK: u32 = 1 << 20;
/// What an event costs beside its bytes, and a request: some parsing, and a call of the service.
pub const EVENT_WORK: u32 = 256;
pub const REQUEST_WORK: u32 = 4_096;

/// So many go on in one turn.
const RESUMED_A_TURN: usize = 8;

/// Connections that were put off, the longest wait first: key and tag.
#[derive(Debug, Default)]
pub struct PutOff(VecDeque<(usize, u32)>);

/// What a connection has had of a turn.
#[derive(Debug, Clone, Copy, Default)]
pub struct Worked {
    turn: u32,
    work: u32,
}

impl Worked {
    /// In that turn so far.
    #[inline]
    pub fn in_turn(self, turn: u32) -> u32 {
        if self.turn == turn { self.work } else { 0 }
    }

    /// Sets what that turn has come to.
    #[inline]
    pub fn set(&mut self, turn: u32, work: u32) {
        *self = Self { turn, work };
    }
}

impl Worker {
    /// A connection has had its turn's work, and more of it waits among what it has received.
    pub(super) fn put_off(&mut self, key: usize) {
        let entry = &mut self.entries[key];
        if !std::mem::replace(&mut entry.is_put_off, true) {
            self.put_off.0.push_back((key, entry.tag()));
        }
    }

    /// A turn begins; returns how many wait from earlier ones.
    pub(super) fn begin_work(&mut self) -> usize {
        self.turn = self.turn.wrapping_add(1);
        self.put_off.0.len()
    }

    /// Lets some of those go on that were put off in earlier turns, behind all that was ready in this one.
    pub(super) fn resume_work(&mut self, waiting: usize) {
        for _ in 0..waiting.min(RESUMED_A_TURN) {
            fault_point!("work.resume");
            let Some((key, tag)) = self.put_off.0.pop_front() else { return };
            if let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.tag() == tag) {
                entry.is_put_off = false;
                self.settle(key); // what is frozen meanwhile goes on when it is served again
                self.run_gateway();
                self.keep_budget();
            }
        }
    }

    /// Without delay while somebody was put off.
    pub(super) fn work_due_ms(&self) -> Option<u64> {
        (!self.put_off.0.is_empty()).then_some(self.now_ms)
    }
}
