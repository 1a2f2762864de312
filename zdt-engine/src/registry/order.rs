//! In which order connections move: active ones first.
//!
//! Must not know: what a connection is.

use std::collections::VecDeque;

use super::Mark;

/// A queue with two lanes.
#[derive(Debug)]
pub struct Order<K> {
    active: VecDeque<K>,
    others: VecDeque<K>,
}

impl<K> Default for Order<K> {
    fn default() -> Self {
        Self { active: VecDeque::new(), others: VecDeque::new() }
    }
}

impl<K> Order<K> {
    /// Adds one behind those of its lane; one that is closing is not taken.
    pub fn push(&mut self, key: K, mark: Mark) {
        match mark {
            Mark::Active => self.active.push_back(key),
            Mark::Idle => self.others.push_back(key),
            Mark::Closing => {}
        }
    }

    /// The one that is next.
    pub fn front(&self) -> Option<&K> {
        self.active.front().or_else(|| self.others.front())
    }

    /// Takes the one that is next.
    pub fn pop(&mut self) -> Option<K> {
        self.active.pop_front().or_else(|| self.others.pop_front())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.active.len() + self.others.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
