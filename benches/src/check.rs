//! Verdicts over what came back: nothing lost, doubled, reordered, mixed up or changed.
//!
//! Must not know: sockets, framing, time.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::payload::{Plan, name_of};

/// Counts of all that was wrong, and of what was right.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Messages that came back as they should.
    pub messages: u64,
    /// HTTP answers that were as they should be.
    pub requests: u64,
    /// Connections that ended although the client had not ended them.
    pub dropped: u64,
    /// Messages or answers with wrong contents, or where none was expected.
    pub corrupted: u64,
    /// Messages that never came back.
    pub lost: u64,
    /// Messages that came back again.
    pub doubled: u64,
    /// Messages that came back after a later one.
    pub reordered: u64,
    /// Counter or clock values that skip or repeat.
    pub wrong_counts: u64,
    /// Requests without an answer, with an error status, or refused connections.
    pub failed_requests: u64,
    /// Requests that got the answer of another.
    pub mixed_up: u64,
    /// The first few, in words.
    pub problems: Vec<String>,
}

impl Tally {
    /// Whether nothing at all was wrong.
    pub fn is_clean(&self) -> bool {
        let Self { dropped, corrupted, lost, doubled, reordered, .. } = self;
        dropped + corrupted + lost + doubled + reordered == 0
            && self.wrong_counts + self.failed_requests + self.mixed_up == 0
    }

    /// Remembers a problem in words, if it is one of the first.
    pub fn problem(&mut self, text: impl FnOnce() -> String) {
        if self.problems.len() < 20 {
            self.problems.push(text());
        }
    }
}

/// Echoed messages of one connection: each must come back once, unchanged, in order.
#[derive(Debug, Default)]
pub struct EchoCheck {
    outstanding: VecDeque<(Plan, u64)>,
    missing: Vec<Plan>,
    recent: VecDeque<Plan>,
}

const RECENT: usize = 16;

impl EchoCheck {
    /// Notes a message that is sent; `tag` is given back when it returns.
    pub fn sent(&mut self, plan: Plan, tag: u64) {
        self.outstanding.push_back((plan, tag));
    }

    /// Messages that have not come back.
    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// Judges a message that came back; the tag of the message that it is, if it is the next one.
    pub fn received(&mut self, bytes: &[u8], text: bool, tally: &mut Tally) -> Option<u64> {
        let is = |plan: &Plan| plan.text == text && plan.matches(bytes);
        let at = self.outstanding.iter().position(|(plan, _)| is(plan));
        if let Some(skipped) = at {
            for (plan, _) in self.outstanding.drain(..skipped) {
                tally.lost += 1;
                tally.problem(|| format!("lost: {plan:?}"));
                self.missing.push(plan);
            }
            let (plan, tag) = self.outstanding.pop_front()?;
            tally.messages += 1;
            self.remember(plan);
            return Some(tag);
        }
        if let Some(at) = self.missing.iter().position(is) {
            let plan = self.missing.swap_remove(at);
            tally.lost -= 1;
            tally.reordered += 1;
            tally.problem(|| format!("reordered: {plan:?}"));
            self.remember(plan);
        } else if let Some(plan) = self.recent.iter().find(|plan| is(plan)) {
            tally.doubled += 1;
            tally.problem(|| format!("doubled: {plan:?}"));
        } else {
            tally.corrupted += 1;
            tally.problem(|| {
                format!(
                    "corrupted: expected {:?}, got {} bytes (text: {text}) that name {:?}",
                    self.outstanding.front().map(|(plan, _)| plan),
                    bytes.len(),
                    name_of(bytes),
                )
            });
            // What it should have been is not lost as well.
            let named = name_of(bytes).and_then(|(_, sequence)| {
                let is =
                    |plan: &Plan| plan.sequence == sequence && plan.length as usize == bytes.len();
                self.outstanding.iter().position(|(plan, _)| is(plan))
            });
            let _ = self.outstanding.remove(named.unwrap_or(0));
        }
        None
    }

    fn remember(&mut self, plan: Plan) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(plan);
    }

    /// At the end of the run, or of the connection: all that is outstanding is lost.
    pub fn finish(&mut self, tally: &mut Tally) {
        for (plan, _) in self.outstanding.drain(..) {
            tally.lost += 1;
            tally.problem(|| format!("lost: {plan:?}"));
        }
    }
}

/// An answer of `/ws/counter`, or a push of `/ws/clock`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct Count {
    /// The number.
    pub n: u64,
    /// Process that answered.
    #[serde(default)]
    pub worker: u32,
    /// Its generation.
    #[serde(default)]
    pub generation: u32,
}

/// A count that must go up by one each time.
#[derive(Debug, Default)]
pub struct CountCheck {
    last: Option<u64>,
    asked: VecDeque<u64>,
    generation: u32,
    generations: u32,
}

impl CountCheck {
    /// For a counter: the first value is 1.
    pub fn from_one() -> Self {
        Self { last: Some(0), ..Self::default() }
    }

    /// Notes that a value was asked for; `tag` is given back with it.
    pub fn asked(&mut self, tag: u64) {
        self.asked.push_back(tag);
    }

    /// Questions without an answer.
    pub fn outstanding(&self) -> usize {
        self.asked.len()
    }

    /// Times that the generation changed.
    pub fn generation_changes(&self) -> u32 {
        self.generations.saturating_sub(1)
    }

    /// Judges a value.
    pub fn received(&mut self, bytes: &[u8], tally: &mut Tally) -> Option<u64> {
        let tag = self.asked.pop_front();
        let Ok(count) = serde_json::from_slice::<Count>(bytes) else {
            tally.corrupted += 1;
            tally.problem(|| format!("not a count: {:?}", String::from_utf8_lossy(bytes)));
            return tag;
        };
        match self.last {
            Some(last) if count.n != last + 1 => {
                tally.wrong_counts += 1;
                tally.problem(|| format!("count: {} follows {last}", count.n));
            }
            _ => tally.messages += 1,
        }
        self.last = Some(count.n);
        if self.generation != count.generation || self.generations == 0 {
            self.generation = count.generation;
            self.generations += 1;
        }
        tag
    }

    /// At the end: all that was asked and not answered is lost.
    pub fn finish(&mut self, tally: &mut Tally) {
        let missing = self.asked.len() as u64;
        if missing > 0 {
            tally.lost += missing;
            tally.problem(|| format!("lost: {missing} counter answers after {:?}", self.last));
        }
        self.asked.clear();
    }
}

/// Compares a body that arrives in pieces with what it should be.
#[derive(Debug)]
pub struct BodyCheck<'a> {
    expected: &'a [u8],
    at: &'a mut usize,
}

impl<'a> BodyCheck<'a> {
    /// Goes on at `*at`, and moves it.
    pub fn new(expected: &'a [u8], at: &'a mut usize) -> Self {
        Self { expected, at }
    }

    /// Whether the next bytes are as expected.
    pub fn piece(&mut self, bytes: &[u8]) -> bool {
        let rest = self.expected.get(*self.at..).unwrap_or_default();
        *self.at += bytes.len();
        rest.starts_with(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(sequence: u32) -> Plan {
        Plan { connection: 3, sequence, length: 40 + sequence, text: sequence.is_multiple_of(2) }
    }

    /// Sends messages 0..6 and feeds back those of `order`, through `change`.
    fn run(order: &[u32], change: impl Fn(u32, &mut Vec<u8>)) -> Tally {
        let (mut check, mut tally) = (EchoCheck::default(), Tally::default());
        (0..6).for_each(|sequence| check.sent(plan(sequence), u64::from(sequence)));
        for &sequence in order {
            let mut bytes = plan(sequence).bytes();
            change(sequence, &mut bytes);
            check.received(&bytes, plan(sequence).text, &mut tally);
        }
        check.finish(&mut tally);
        tally
    }

    #[test]
    fn a_faithful_echo_is_clean() {
        let tally = run(&[0, 1, 2, 3, 4, 5], |_, _| {});
        assert!(tally.is_clean());
        assert_eq!(tally.messages, 6);
    }

    #[test]
    fn losses_are_seen() {
        let tally = run(&[0, 1, 3, 4], |_, _| {});
        assert_eq!((tally.lost, tally.messages, tally.is_clean()), (2, 4, false));
    }

    #[test]
    fn doubles_are_seen() {
        let tally = run(&[0, 1, 1, 2, 3, 4, 5, 3], |_, _| {});
        assert_eq!((tally.doubled, tally.lost, tally.corrupted, tally.messages), (2, 0, 0, 6));
    }

    #[test]
    fn a_changed_order_is_seen() {
        let tally = run(&[0, 2, 1, 3, 4, 5], |_, _| {});
        assert_eq!((tally.reordered, tally.lost, tally.corrupted), (1, 0, 0));
    }

    #[test]
    fn any_flipped_bit_is_seen() {
        for bit in 0..42 * 8 {
            let tally = run(&[0, 1, 2, 3, 4, 5], |sequence, bytes| {
                if sequence == 2 {
                    bytes[bit / 8] ^= 1 << (bit % 8);
                }
            });
            assert_eq!((tally.corrupted, tally.lost, tally.doubled), (1, 0, 0), "bit {bit}");
        }
    }

    #[test]
    fn a_cut_message_and_a_strange_one_are_seen() {
        let tally = run(&[0, 1, 2, 3, 4, 5], |sequence, bytes| {
            if sequence == 4 {
                bytes.pop();
            }
        });
        assert_eq!((tally.corrupted, tally.lost), (1, 0));
        let (mut check, mut tally) = (EchoCheck::default(), Tally::default());
        check.received(b"who are you", true, &mut tally);
        assert_eq!(tally.corrupted, 1);
    }

    #[test]
    fn text_that_returns_as_binary_is_seen() {
        let (mut check, mut tally) = (EchoCheck::default(), Tally::default());
        check.sent(plan(0), 0);
        check.received(&plan(0).bytes(), false, &mut tally);
        assert_eq!(tally.corrupted, 1);
    }

    fn count(values: &[u64], mut check: CountCheck) -> Tally {
        let mut tally = Tally::default();
        for n in values {
            check.asked(0);
            check.received(format!("{{\"n\":{n},\"worker\":1}}").as_bytes(), &mut tally);
        }
        check.finish(&mut tally);
        tally
    }

    #[test]
    fn counts_that_skip_repeat_or_restart_are_seen() {
        assert!(count(&[1, 2, 3], CountCheck::from_one()).is_clean());
        assert!(count(&[40, 41], CountCheck::default()).is_clean());
        for wrong in [&[1, 3, 4][..], &[1, 1, 2], &[2, 3], &[1, 2, 1]] {
            assert_eq!(count(wrong, CountCheck::from_one()).wrong_counts, 1, "{wrong:?}");
        }
        let (mut check, mut tally) = (CountCheck::from_one(), Tally::default());
        check.asked(0);
        check.finish(&mut tally);
        assert_eq!(tally.lost, 1);
    }

    #[test]
    fn bodies_are_compared_in_pieces() {
        let mut at = 0;
        let mut check = BodyCheck::new(b"abcdef", &mut at);
        assert!(
            check.piece(b"abc") && check.piece(b"d") && !check.piece(b"x") && !check.piece(b"g")
        );
    }
}
