//! The keys of session tickets, made by the supervisor and shared by all workers of all generations.
//!
//! There is always one key more than is used: the next one is known everywhere before the first ticket
//! is made with it, so that no worker meets a ticket that it cannot read yet.
//!
//! Must not know: tickets, the clock; its owner says when a key changes.

use std::time::Duration;

use zeroize::Zeroize;

use crate::sys;

/// One key.
#[derive(Clone, PartialEq, Eq)]
pub struct TicketKeyBytes {
    /// In clear at the front of each ticket.
    pub name: [u8; 16],
    /// For AES-256-GCM.
    pub secret: [u8; 32],
}

impl std::fmt::Debug for TicketKeyBytes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("TicketKeyBytes(..)")
    }
}

impl Drop for TicketKeyBytes {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl TicketKeyBytes {
    fn random() -> Self {
        let random = "the kernel gives random bytes";
        Self {
            name: sys::random_bytes().expect(random),
            secret: sys::random_bytes().expect(random),
        }
    }
}

/// The keys, the next one first, then the current one, then those whose tickets are still good.
#[derive(Debug)]
pub struct TicketRing {
    keys: Vec<TicketKeyBytes>,
}

impl Default for TicketRing {
    fn default() -> Self {
        Self::new()
    }
}

impl TicketRing {
    /// With a key for now and one for later.
    pub fn new() -> Self {
        Self { keys: vec![TicketKeyBytes::random(), TicketKeyBytes::random()] }
    }

    /// With the keys that workers have had from an earlier supervisor.
    pub fn with(keys: Vec<TicketKeyBytes>) -> Self {
        if keys.len() < 2 { Self::new() } else { Self { keys } }
    }

    /// All keys, in their order.
    pub fn keys(&self) -> &[TicketKeyBytes] {
        &self.keys
    }

    /// The next key becomes the current one; those under which no ticket can be good any more go.
    pub fn rotate(&mut self, lifetime: Duration, rotation: Duration) {
        self.keys.insert(0, TicketKeyBytes::random());
        let earlier = lifetime.as_millis().div_ceil(rotation.as_millis().max(1)) as usize;
        self.keys.truncate(2 + earlier.min(MAX_EARLIER_KEYS));
    }
}

/// Most keys that are kept for tickets of earlier rotations.
const MAX_EARLIER_KEYS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_before_and_after_it_is_used() {
        let hours = |hours: u64| Duration::from_secs(3_600 * hours);
        let mut ring = TicketRing::new();
        let (next, current) = (ring.keys()[0].clone(), ring.keys()[1].clone());
        assert!(next != current);
        ring.rotate(hours(12), hours(5));
        assert!(ring.keys()[1] == next && ring.keys()[2] == current);
        ring.rotate(hours(12), hours(5));
        ring.rotate(hours(12), hours(5));
        assert!(ring.keys().contains(&current), "its last ticket is ten hours old");
        ring.rotate(hours(12), hours(5));
        assert!(!ring.keys().contains(&current) && ring.keys().contains(&next));
        assert_eq!(ring.keys().len(), 5);
    }

    #[test]
    fn a_later_supervisor_goes_on_with_what_workers_have() {
        let ring = TicketRing::new();
        assert_eq!(TicketRing::with(ring.keys().to_vec()).keys(), ring.keys());
        assert_eq!(TicketRing::with(Vec::new()).keys().len(), 2);
    }
}
