//! The offering side of a channel: what has been offered, and what became of it.
//!
//! While a connection is on offer its socket belongs to the [`Offer`], so that nobody in this process
//! can do I/O on it; the answer gives it back or closes it.
//!
//! Must not know: the socketpair, what is in a record.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use crate::shm::ownership::{State, Table};

/// One connection on offer.
#[derive(Debug)]
pub struct Offer {
    /// The caller's name for the connection.
    pub key: u64,
    /// Ties record, descriptors and ownership word together.
    pub sequence: u64,
    /// The client's socket.
    pub socket: OwnedFd,
    /// Its upstreams' sockets.
    pub upstreams: Vec<OwnedFd>,
    /// The record, where it was too large for the ring.
    pub record: Option<OwnedFd>,
    /// When it was made, for the answer's deadline.
    pub offered_ms: u64,
}

/// What became of an offer.
#[derive(Debug)]
pub enum Answer {
    /// The peer does I/O on it now; the own descriptor is closed.
    Started {
        /// The caller's name.
        key: u64,
    },
    /// It is ours again.
    TakenBack {
        /// The caller's name.
        key: u64,
        /// The client's socket.
        socket: OwnedFd,
        /// Its upstreams' sockets.
        upstreams: Vec<OwnedFd>,
        /// True when the peer refused it, false when it was reclaimed.
        refused: bool,
    },
}

/// Why a connection could not be offered now. The sockets come back.
#[derive(Debug)]
pub enum OfferError {
    /// No room until the peer answers.
    Full(OwnedFd, Vec<OwnedFd>),
    /// The channel does not take offers (any more).
    Closed(OwnedFd, Vec<OwnedFd>),
}

/// See the module.
#[derive(Debug)]
pub struct Outgoing {
    next_sequence: u64,
    /// In order of their sequence. The last `unsent` have not sent their descriptors yet.
    offers: VecDeque<Offer>,
    unsent: usize,
}

impl Outgoing {
    /// Nothing on offer.
    pub fn new() -> Self {
        Self { next_sequence: 1, offers: VecDeque::new(), unsent: 0 }
    }

    /// A sequence for the next offer. It is never given out again, also if nothing comes of it: it
    /// is the nonce of the record's seal.
    pub fn take_sequence(&mut self) -> u64 {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        sequence
    }

    /// Offers without an answer.
    pub fn open(&self) -> usize {
        self.offers.len()
    }

    /// Takes the offer in; its record is in the ring and its word says OFFERED.
    pub fn push(&mut self, offer: Offer) {
        debug_assert!(offer.sequence < self.next_sequence);
        self.offers.push_back(offer);
        self.unsent += 1;
    }

    /// Offers whose descriptors have not been sent, oldest first.
    pub fn unsent(&self) -> impl Iterator<Item = &Offer> {
        self.offers.range(self.offers.len() - self.unsent..)
    }

    /// How many those are.
    pub fn unsent_count(&self) -> usize {
        self.unsent
    }

    /// The descriptors of the `count` oldest unsent offers are on their way.
    pub fn mark_sent(&mut self, count: usize) {
        self.unsent -= count;
    }

    /// Collects what the peer decided, and takes back what is overdue.
    ///
    /// `overdue_before_ms` reclaims offers that were made before it and that nobody adopted;
    /// `peer_is_dead` (its pidfd said so) reclaims what it adopted and did not start as well.
    pub fn collect(
        &mut self,
        table: &Table,
        overdue_before_ms: Option<u64>,
        peer_is_dead: bool,
        answers: &mut Vec<Answer>,
    ) {
        let mut index = 0;
        while index < self.offers.len() {
            let offer = &self.offers[index];
            let sequence = offer.sequence;
            let overdue = overdue_before_ms.is_some_and(|limit| offer.offered_ms < limit);
            // Each attempt is one compare-and-swap; whoever was faster shows in the state after it.
            if overdue || peer_is_dead {
                table.reclaim_offered(sequence);
            }
            if peer_is_dead {
                table.reclaim_adopted_from_dead(sequence);
            }
            let state = table.state(sequence);
            let decided = match state {
                Some(State::Started | State::Refused | State::Reclaimed) => state,
                // A word that no longer names this offer was scribbled on by the peer. It cannot
                // have become the owner by the rules; nor can we be sure that it does not think so.
                // Only its death settles that.
                None | Some(State::Free) if peer_is_dead => Some(State::Reclaimed),
                _ => None,
            };
            let Some(decided) = decided else {
                index += 1;
                continue;
            };
            if index >= self.offers.len() - self.unsent {
                self.unsent -= 1;
            }
            table.release(sequence);
            let offer = self.offers.remove(index).expect("index is in bounds");
            answers.push(match decided {
                State::Started => Answer::Started { key: offer.key },
                state => Answer::TakenBack {
                    key: offer.key,
                    socket: offer.socket,
                    upstreams: offer.upstreams,
                    refused: state == State::Refused,
                },
            });
        }
    }

    /// When the oldest offer was made.
    pub fn oldest_ms(&self) -> Option<u64> {
        self.offers.front().map(|offer| offer.offered_ms)
    }
}
