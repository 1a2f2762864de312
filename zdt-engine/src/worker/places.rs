//! The sessions of one connection: a place for each stream, the first one without an allocation.
//!
//! HTTP/1.1 uses only the first place; in HTTP/2 a stream's [`Slot`] names it. A place is used again
//! when its stream has ended, so whoever keeps a slot across calls must know that its stream lives.
//!
//! Must not know: what a stream is.

use crate::conn::Slot;
use crate::service::Session;

use super::access_log::LogEntry;
use super::parking::Ticket;

/// What a worker keeps for one stream.
pub struct Place {
    /// The exchange or WebSocket in progress.
    pub session: Option<Box<dyn Session>>,
    /// When the session's timer is due; `u64::MAX` is never.
    pub timer_due_ms: u64,
    /// The session waits for room in the send queue.
    pub wants_room: bool,
    /// What the access log will say of the exchange.
    pub log: Option<Box<LogEntry>>,
    /// Under which name the session is kept if its client goes away.
    pub ticket: Option<Box<Ticket>>,
}

impl Place {
    /// Nobody is there.
    pub const EMPTY: Self =
        Self { session: None, timer_due_ms: u64::MAX, wants_room: false, log: None, ticket: None };

    /// The stream has ended: nothing is kept, nothing is waited for.
    pub fn clear(&mut self) -> Option<Box<dyn Session>> {
        std::mem::replace(self, Self::EMPTY).session
    }
}

/// See the module.
pub struct Places {
    first: Place,
    more: Vec<Place>,
}

impl Default for Places {
    fn default() -> Self {
        Self { first: Place::EMPTY, more: Vec::new() }
    }
}

impl Places {
    /// The place of a stream, made if it is not there.
    #[inline]
    pub fn at(&mut self, slot: Slot) -> &mut Place {
        let Some(index) = slot.index().checked_sub(1) else { return &mut self.first };
        if index >= self.more.len() {
            self.more.resize_with(index + 1, || Place::EMPTY);
        }
        &mut self.more[index]
    }

    /// The place of a stream, if it has been made.
    pub fn get(&self, slot: Slot) -> Option<&Place> {
        match slot.index().checked_sub(1) {
            None => Some(&self.first),
            Some(index) => self.more.get(index),
        }
    }

    /// The place of the only stream of HTTP/1.1.
    pub fn only(&self) -> &Place {
        &self.first
    }

    fn find(&self, from: Slot, wanted: impl Fn(&Place) -> bool) -> Option<Slot> {
        if from == Slot::ONLY && wanted(&self.first) {
            return Some(Slot::ONLY);
        }
        let start = from.index().max(1);
        let more = self.more.get(start - 1..)?;
        more.iter().position(wanted).map(|index| Slot::new(start + index))
    }

    /// The next one with a session, from that slot on.
    pub fn with_session(&self, from: Slot) -> Option<Slot> {
        self.find(from, |place| place.session.is_some())
    }

    /// The next one whose session is kept if its client goes away, from that slot on.
    pub fn with_ticket(&self, from: Slot) -> Option<Slot> {
        self.find(from, |place| place.ticket.is_some() && place.session.is_some())
    }

    /// The next one whose session waits for room, from that slot on.
    pub fn wanting_room(&self, from: Slot) -> Option<Slot> {
        self.find(from, |place| place.wants_room)
    }

    /// When the first session's timer is due; `u64::MAX` is never.
    pub fn timer_due_ms(&self) -> u64 {
        self.more.iter().fold(self.first.timer_due_ms, |due, place| due.min(place.timer_due_ms))
    }

    /// One whose timer is due.
    pub fn due(&self, now_ms: u64) -> Option<Slot> {
        self.find(Slot::ONLY, |place| place.timer_due_ms <= now_ms)
    }

    /// What the access log will say of all of them.
    pub fn take_logs(&mut self) -> impl Iterator<Item = Box<LogEntry>> {
        std::iter::once(&mut self.first).chain(&mut self.more).filter_map(|place| place.log.take())
    }

    /// All streams have ended: their sessions.
    pub fn clear_all(&mut self) -> impl Iterator<Item = Box<dyn Session>> {
        let more = std::mem::take(&mut self.more);
        self.first.clear().into_iter().chain(more.into_iter().filter_map(|place| place.session))
    }
}
