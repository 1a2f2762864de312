//! Session tickets (RFC 8446 §4.6.1, RFC 5077) under keys that all workers of all generations share, so that a
//! session begun in one is resumed in another.
//!
//! A ticket is a key's name, a nonce, and under AES-256-GCM the time of its making and what rustls has
//! to remember. It is also bound to the rules for client certificates: who was let in under other
//! rules has to show its certificate again.
//!
//! Must not know: who makes keys, when they change, the clock and the source of nonces (both are lent).

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ring::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::server::ProducesTickets;
use zeroize::Zeroize;

const NAME_BYTES: usize = 16;
const NONCE_BYTES: usize = 12;
const AEAD_TAG_BYTES: usize = 16;
const TIME_BYTES: usize = 8;

/// Longest ticket that is looked at: with a chain of client certificates in it.
const MAX_TICKET_BYTES: usize = 32 << 10;

/// A key for tickets.
#[derive(Clone)]
pub struct TicketKey {
    /// In clear at the front of each ticket.
    pub name: [u8; NAME_BYTES],
    /// For AES-256-GCM.
    pub secret: [u8; 32],
}

impl Drop for TicketKey {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("TicketKey(..)")
    }
}

#[derive(Default)]
struct Ring {
    keys: Vec<TicketKey>,
    /// Tickets are made with this one; all are accepted.
    current: usize,
}

/// The keys of one process. Clones share them, so that they can change under a running server.
#[derive(Clone)]
pub struct Tickets {
    ring: Arc<Mutex<Ring>>,
    now_s: fn() -> u64,
    nonce: fn() -> Option<[u8; NONCE_BYTES]>,
}

impl Default for Tickets {
    /// None, and none to come.
    fn default() -> Self {
        Self::new(|| 0, || None)
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Tickets(..)")
    }
}

impl Tickets {
    /// Without keys yet. `now_s`: seconds since 1970; `nonce`: random bytes.
    pub fn new(now_s: fn() -> u64, nonce: fn() -> Option<[u8; NONCE_BYTES]>) -> Self {
        Self { ring: Arc::default(), now_s, nonce }
    }

    /// Replaces the keys. Tickets are made with the one at `current` and accepted under any; without
    /// keys there are no tickets.
    pub fn set(&self, keys: Vec<TicketKey>, current: usize) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        *ring = Ring { current: current.min(keys.len().saturating_sub(1)), keys };
    }

    fn key(&self, name: Option<&[u8]>) -> Option<TicketKey> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        match name {
            None => ring.keys.get(ring.current).cloned(),
            Some(name) => ring.keys.iter().find(|key| key.name[..] == *name).cloned(),
        }
    }

    /// For a server with these rules for client certificates.
    pub(super) fn producer(&self, lifetime: Duration, rules: [u8; 32]) -> Producer {
        Producer { tickets: self.clone(), lifetime, rules }
    }
}

/// What rustls asks for tickets.
#[derive(Debug)]
pub(super) struct Producer {
    tickets: Tickets,
    lifetime: Duration,
    rules: [u8; 32],
}

fn aead(key: &TicketKey) -> Option<LessSafeKey> {
    UnboundKey::new(&aead::AES_256_GCM, &key.secret).ok().map(LessSafeKey::new)
}

impl Producer {
    fn additional(&self, name: &[u8]) -> Aad<[u8; NAME_BYTES + 32]> {
        let mut additional = [0; NAME_BYTES + 32];
        additional[..NAME_BYTES].copy_from_slice(name);
        additional[NAME_BYTES..].copy_from_slice(&self.rules);
        Aad::from(additional)
    }

    fn encrypt_at(&self, plain: &[u8], now_s: u64) -> Option<Vec<u8>> {
        let key = self.tickets.key(None)?;
        let nonce = (self.tickets.nonce)()?;
        let bytes = NAME_BYTES + NONCE_BYTES + TIME_BYTES + plain.len() + AEAD_TAG_BYTES;
        if bytes > MAX_TICKET_BYTES {
            return None;
        }
        let mut ticket = Vec::with_capacity(bytes);
        ticket.extend_from_slice(&key.name);
        ticket.extend_from_slice(&nonce);
        ticket.extend_from_slice(&now_s.to_be_bytes());
        ticket.extend_from_slice(plain);
        let sealed = &mut ticket[NAME_BYTES + NONCE_BYTES..];
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = aead(&key)?
            .seal_in_place_separate_tag(nonce, self.additional(&key.name), sealed)
            .ok()?;
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    fn decrypt_at(&self, ticket: &[u8], now_s: u64) -> Option<Vec<u8>> {
        if ticket.len() > MAX_TICKET_BYTES {
            return None;
        }
        let (name, rest) = ticket.split_at_checked(NAME_BYTES)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_BYTES>()?;
        let key = self.tickets.key(Some(name))?;
        let mut opened = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = aead(&key)?.open_in_place(nonce, self.additional(name), &mut opened).ok()?;
        let (made_s, plain) = plain.split_first_chunk::<TIME_BYTES>()?;
        let age_s = now_s.saturating_sub(u64::from_be_bytes(*made_s));
        let plain = (age_s <= self.lifetime.as_secs()).then(|| plain.to_vec());
        opened.zeroize();
        plain
    }
}

impl ProducesTickets for Producer {
    fn enabled(&self) -> bool {
        !self.lifetime.is_zero() && self.tickets.key(None).is_some()
    }

    fn lifetime(&self) -> u32 {
        // RFC 8446 §4.6.1: seven days at most.
        u32::try_from(self.lifetime.as_secs()).unwrap_or(u32::MAX).min(604_800)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.encrypt_at(plain, (self.tickets.now_s)())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.decrypt_at(cipher, (self.tickets.now_s)())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> TicketKey {
        TicketKey { name: [number; NAME_BYTES], secret: [number; 32] }
    }

    fn producer(keys: Vec<TicketKey>, current: usize, rules: [u8; 32]) -> Producer {
        let tickets = Tickets::new(|| 0, || Some([9; NONCE_BYTES]));
        tickets.set(keys, current);
        tickets.producer(Duration::from_secs(100), rules)
    }

    #[test]
    fn a_process_that_never_made_a_ticket_takes_those_of_others() {
        let one = producer(vec![key(1), key(2)], 0, [0; 32]);
        let other = producer(vec![key(2), key(1)], 0, [0; 32]);
        let ticket = one.encrypt(b"state").unwrap();
        assert_eq!(other.decrypt(&ticket).unwrap(), b"state");
    }

    #[test]
    fn keys_can_change_under_a_running_server() {
        let producer = producer(vec![key(1)], 0, [0; 32]);
        let old = producer.encrypt(b"state").unwrap();
        producer.tickets.set(vec![key(2), key(1)], 0);
        let new = producer.encrypt(b"state").unwrap();
        assert_eq!(new[..NAME_BYTES], [2; NAME_BYTES]);
        assert!(producer.decrypt(&old).is_some() && producer.decrypt(&new).is_some());
        producer.tickets.set(vec![key(3), key(2)], 0);
        assert!(producer.decrypt(&old).is_none(), "its key is gone");
        producer.tickets.set(Vec::new(), 0);
        assert!(!producer.enabled() && producer.encrypt(b"").is_none());
    }

    #[test]
    fn tickets_end() {
        let producer = producer(vec![key(1)], 0, [0; 32]);
        let ticket = producer.encrypt_at(b"state", 1_000).unwrap();
        assert!(producer.decrypt_at(&ticket, 1_100).is_some());
        assert!(producer.decrypt_at(&ticket, 1_101).is_none());
        assert!(producer.decrypt_at(&ticket, 900).is_some(), "another clock is a little behind");
    }

    #[test]
    fn other_rules_for_client_certificates_void_tickets() {
        let ticket = producer(vec![key(1)], 0, [0; 32]).encrypt(b"state").unwrap();
        assert!(producer(vec![key(1)], 0, [1; 32]).decrypt(&ticket).is_none());
    }

    #[test]
    fn whatever_was_changed_is_refused() {
        let producer = producer(vec![key(1)], 0, [0; 32]);
        let ticket = producer.encrypt(b"state").unwrap();
        for at in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[at] ^= 1;
            assert!(producer.decrypt(&changed).is_none(), "byte {at}");
            assert!(producer.decrypt(&ticket[..at]).is_none(), "cut at {at}");
        }
        assert!(producer.decrypt(&vec![1; MAX_TICKET_BYTES + 1]).is_none());
    }
}
