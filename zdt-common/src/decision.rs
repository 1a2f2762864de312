//! The decision: which slot gets a connection.
//!
//! Written for two compilers and the kernel's verifier: no recursion, every loop bounded by a
//! constant, no panics, nothing on the heap. The program and the tests give it their own
//! [`Environment`].
//!
//! Must not know: where ready bits and loads come from.

use crate::{BANKS, BITMAP_WORDS, MAX_WORKERS, Policy, Route, slot};

/// What the decision reads and does. Banks, words and workers are in range.
pub trait Environment {
    /// Sixty-four ready bits of a bank.
    fn ready(&self, bank: u32, word: u32) -> u64;
    /// Sixty-four bits of the workers of a bank that have a socket, ready or not.
    fn present(&self, bank: u32, word: u32) -> u64;
    /// What the worker in this slot last said about its load.
    fn load(&self, slot: u32) -> u32;
    /// The next ticket of the round robin.
    fn next_turn(&mut self) -> u32;
    /// A random number.
    fn random(&mut self) -> u32;
    /// Tries to give the connection to the slot's socket; false if there is none (any more).
    fn select(&mut self, slot: u32) -> bool;
    /// Calls [`Search::step`] with 0, 1, … until it returns true or `steps` are done. The kernel has a
    /// helper for this, so that the verifier looks at the body once.
    fn run(&mut self, search: &mut Search, steps: u32);
}

/// How an [`Outcome`] came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tally {
    /// The first choice took it.
    FirstChoice,
    /// Another slot took it.
    Fallback,
    /// Nobody could.
    Dropped,
}

/// The end of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether a slot took it.
    pub tally: Tally,
    /// The slot that took it, or that it was meant for; `None` if no worker was ready at all.
    pub slot: Option<u32>,
}

/// Chooses a slot for a connection and selects it.
///
/// The route says which bank, the policy which of its ready workers. Where that slot has no socket,
/// any ready worker is tried: of the same bank, of the other bank of the route, of the others. When
/// no worker of the group is ready, the connection waits in the accept queue of a worker that still
/// has a socket in the map: one that is starting, or that is being restarted.
#[inline(always)]
pub fn steer<E: Environment>(
    environment: &mut E,
    route: Route,
    policy: Policy,
    max_workers: u32,
    hash: u32,
) -> Outcome {
    let bank = bank_of(route, hash);
    let wanted = match worker_of(environment, policy, bank, max_workers, hash) {
        Some(worker) => {
            let wanted = slot(bank, worker, max_workers);
            if environment.select(wanted) {
                return Outcome { tally: Tally::FirstChoice, slot: Some(wanted) };
            }
            Some(wanted)
        }
        None => None,
    };
    let mut search = Search {
        bank,
        other: if bank == route.blue() { route.green() } else { route.blue() },
        max_workers,
        // Any start will do that differs from one connection to the next.
        start: scale(mix(hash), max_workers),
        found: None,
    };
    let steps = search.steps();
    environment.run(&mut search, steps);
    match search.found {
        Some(taken) => Outcome { tally: Tally::Fallback, slot: Some(taken) },
        None => Outcome { tally: Tally::Dropped, slot: wanted },
    }
}

/// The search for any slot that takes a connection, one candidate a step: the ready workers of the
/// bank, of the other bank of the route, of all banks; then in the same order those that merely have a
/// socket. Some candidates come twice, which costs little in a case that is rare.
pub struct Search {
    bank: u32,
    other: u32,
    max_workers: u32,
    start: u32,
    found: Option<u32>,
}

impl Search {
    const PLACES: u32 = 2 + BANKS;

    /// How many steps there are.
    #[inline(always)]
    fn steps(&self) -> u32 {
        2 * Self::PLACES * self.max_workers
    }

    /// Tries the candidate of one step (0, 1, …); true when the search is over.
    #[inline(always)]
    pub fn step<E: Environment>(&mut self, environment: &mut E, step: u32) -> bool {
        // Never 0; but only this tells the compiler, whose panic the kernel would not take.
        let max_workers = self.max_workers.max(1);
        let (round, offset) = (step / max_workers, step % max_workers);
        let bank = match round % Self::PLACES {
            0 => self.bank,
            1 => self.other,
            place => place - 2,
        };
        let sum = self.start + offset;
        let worker = if sum >= self.max_workers { sum - self.max_workers } else { sum };
        let bits = if round < Self::PLACES {
            environment.ready(bank, worker / 64)
        } else {
            environment.present(bank, worker / 64)
        };
        if bits >> (worker % 64) & 1 == 0 {
            return false;
        }
        let candidate = slot(bank, worker, self.max_workers);
        let taken = environment.select(candidate);
        if taken {
            self.found = Some(candidate);
        }
        taken
    }
}

/// The bank that a new connection belongs to.
#[inline(always)]
pub fn bank_of(route: Route, hash: u32) -> u32 {
    let permille = route.canary_permille();
    if permille == 0 {
        return route.blue();
    }
    // Mixed again and salted: the draw must not depend on the bits that choose the worker.
    let draw = scale(mix(hash ^ route.epoch().wrapping_mul(0x9e37_79b9)), 1000);
    if draw < permille { route.green() } else { route.blue() }
}

/// The policy's choice among the ready workers of a bank.
#[inline(always)]
fn worker_of<E: Environment>(
    environment: &mut E,
    policy: Policy,
    bank: u32,
    max_workers: u32,
    hash: u32,
) -> Option<u32> {
    let mut words = [0u64; BITMAP_WORDS];
    let mut count = 0;
    let mut word = 0;
    while word < BITMAP_WORDS {
        // A bank of up to 64 workers has but one word.
        if word as u32 * 64 < max_workers {
            words[word] = environment.ready(bank, word as u32);
            count += words[word].count_ones();
        }
        word += 1;
    }
    match count {
        0 => return None,
        1 => return Some(nth_of(&words, 0)),
        _ => {}
    }
    let draw = match policy {
        Policy::Hash => scale(hash, count),
        Policy::RoundRobin => environment.next_turn() % count,
        Policy::LeastLoaded => scale(environment.random(), count),
    };
    let first = nth_of(&words, draw);
    if policy != Policy::LeastLoaded {
        return Some(first);
    }
    // Any other than the first, each as likely.
    let sum = draw + 1 + scale(environment.random(), count - 1);
    let second = nth_of(&words, if sum >= count { sum - count } else { sum });
    let load_of_first = environment.load(slot(bank, first, max_workers));
    let load_of_second = environment.load(slot(bank, second, max_workers));
    Some(if load_of_second < load_of_first { second } else { first })
}

/// The `n`-th member (from 0) of a bitmap over workers; `n` is below the number of members.
#[inline(always)]
fn nth_of(words: &[u64; BITMAP_WORDS], mut n: u32) -> u32 {
    let mut word = 0;
    while word < BITMAP_WORDS {
        let ones = words[word].count_ones();
        if n < ones {
            return word as u32 * 64 + nth_bit(words[word], n);
        }
        n -= ones;
        word += 1;
    }
    MAX_WORKERS - 1
}

/// The position of the `n`-th set bit (from 0) of a word; `n` is below the number of set bits.
#[inline(always)]
pub fn nth_bit(word: u64, mut n: u32) -> u32 {
    let mut rest = word;
    let mut position = 0;
    let mut width = 32;
    while width > 0 {
        let ones = (rest & ((1u64 << width) - 1)).count_ones();
        if n >= ones {
            n -= ones;
            rest >>= width;
            position += width;
        }
        width /= 2;
    }
    position
}

/// A number below `bound`, evenly, from 32 even bits; without a division.
#[inline(always)]
fn scale(bits: u32, bound: u32) -> u32 {
    ((bits as u64 * bound as u64) >> 32) as u32
}

/// MurmurHash3's finalizer.
#[inline(always)]
fn mix(mut bits: u32) -> u32 {
    bits ^= bits >> 16;
    bits = bits.wrapping_mul(0x85eb_ca6b);
    bits ^= bits >> 13;
    bits = bits.wrapping_mul(0xc2b2_ae35);
    bits ^ bits >> 16
}
