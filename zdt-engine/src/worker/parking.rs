//! Sessions whose clients are away: kept when a connection breaks or the service stops, given back to
//! the client that shows its token.
//!
//! The supervisor keeps them, since the client may come back to any worker, in any generation. A
//! worker collects what it parks during a turn of its loop and sends it as one sealed memfd; it asks
//! for a session by its id, and the client's messages are held until the answer is there.
//!
//! Must not know: how long the supervisor keeps what, where it writes it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use crate::config::ParkingOptions;
use crate::conn::Slot;
use crate::control::FromWorker;
use crate::service::{Busy, Context, Message, ParkId, SavedSession, Session};
use crate::shm::sealed_copy;
use crate::state::parked::{
    MAX_PARKED_BYTES, Parked, ParkedHead, ParkedSessionHead, TAG_PARKED, TAG_PARKED_SESSION,
};
use crate::state::{self, FORMAT_WRAPPED, FreezeInstant, Integrity, Unpacker, Writer};
use crate::sys;

use super::Worker;
use super::resume_token::TokenKey;

/// What may wait for a supervisor that does not read, or is not there.
const MAX_OUTBOX_BYTES: usize = 8 << 20;
/// Messages of a client whose session has been asked for.
const MAX_HELD_BYTES: usize = 64 << 10;
/// Without an answer by then the client begins anew.
const ANSWER_TIMEOUT_MS: u64 = 2_000;
/// Parked sessions are compressed above this.
const COMPRESS_ABOVE_BYTES: usize = 512;

/// Under which name a stream's session is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    pub id: ParkId,
    /// When the client's token is not good any more.
    pub expires_unix_s: u64,
}

/// What a worker needs for parking.
#[derive(Default)]
pub struct Parking {
    /// `None`: nothing is parked.
    tokens: Option<TokenKey>,
    ttl_s: u64,
    token_ttl_s: u64,
    /// Records one after the other.
    outbox: Vec<u8>,
    in_outbox: u32,
    next_request: u64,
    /// To be asked for at the end of this turn.
    questions: Vec<(u64, ParkId)>,
    waiting: HashMap<u64, Waiting>,
}

/// A client that wants its session back.
struct Waiting {
    key: usize,
    connection: u64,
    slot: Slot,
    held: Rc<RefCell<Held>>,
    deadline_ms: u64,
}

/// What is kept for the session that is on its way.
struct Held {
    otherwise: Option<Box<dyn Session>>,
    messages: Vec<(bool, Vec<u8>)>,
    bytes: usize,
}

/// Stands in for a session that has been asked for.
struct StandIn(Rc<RefCell<Held>>);

impl Session for StandIn {
    fn on_message(&mut self, message: Message<'_>, context: &mut Context<'_>) {
        let mut held = self.0.borrow_mut();
        let bytes = message.as_bytes();
        if held.bytes + bytes.len() > MAX_HELD_BYTES {
            return context.close_websocket(1013, "too much before the session is back");
        }
        held.bytes += bytes.len();
        held.messages.push((message.as_text().is_some(), bytes.to_vec()));
    }

    fn on_close(&mut self) {
        if let Some(mut otherwise) = self.0.borrow_mut().otherwise.take() {
            otherwise.on_close();
        }
    }

    fn kind(&self) -> &'static str {
        "zdt.resuming"
    }

    fn save(&self, _bytes: &mut Vec<u8>) -> Result<(), Busy> {
        Err(Busy("resuming"))
    }
}

impl Parking {
    /// With the key that all workers of this supervisor share.
    pub fn new(tokens: Option<TokenKey>, options: &ParkingOptions) -> Self {
        let seconds = |ms: u64| ms.div_ceil(1_000);
        let (ttl_s, token_ttl_s) = (seconds(options.ttl_ms), seconds(options.token_ttl_ms));
        Self { tokens, ttl_s, token_ttl_s, ..Self::default() }
    }

    /// A new name for a session, and the token that the client is to show.
    pub fn ticket(&self) -> Option<(Ticket, String)> {
        let tokens = self.tokens.as_ref()?;
        let id = ParkId(sys::random_bytes().ok()?);
        let expires_unix_s = sys::wall_clock_s().saturating_add(self.token_ttl_s);
        Some((Ticket { id, expires_unix_s }, tokens.sign(id, expires_unix_s)))
    }

    /// What a client's token names.
    pub fn check(&self, token: &[u8]) -> Option<ParkId> {
        self.tokens.as_ref()?.check(token, sys::wall_clock_s())
    }

    /// Asks for a parked session; what this returns stands in for it until the answer is there.
    pub fn ask(
        &mut self,
        parked: ParkId,
        otherwise: Box<dyn Session>,
        (key, connection, slot): (usize, u64, Slot),
        now_ms: u64,
    ) -> Box<dyn Session> {
        let held = Held { otherwise: Some(otherwise), messages: Vec::new(), bytes: 0 };
        let held = Rc::new(RefCell::new(held));
        self.next_request += 1;
        let deadline_ms = now_ms + ANSWER_TIMEOUT_MS;
        let waiting = Waiting { key, connection, slot, held: Rc::clone(&held), deadline_ms };
        self.waiting.insert(self.next_request, waiting);
        self.questions.push((self.next_request, parked));
        Box::new(StandIn(held))
    }

    fn add(&mut self, record: &[u8]) -> bool {
        let fits = self.outbox.len() + record.len() <= MAX_OUTBOX_BYTES;
        if fits {
            self.outbox.extend_from_slice(record);
            self.in_outbox += 1;
        }
        fits
    }

    /// When the loop has to look, although nothing completes.
    pub fn due_ms(&self) -> Option<u64> {
        self.waiting.values().map(|waiting| waiting.deadline_ms).min()
    }

    /// True once the supervisor has everything.
    fn is_flushed(&self) -> bool {
        self.outbox.is_empty()
    }
}

impl Worker {
    /// Keeps the session of a stream whose client is away, if it has a ticket. The place is empty
    /// then; otherwise it is as it was.
    pub(super) fn park(&mut self, key: usize, slot: Slot) {
        let now_ms = self.now_ms;
        let Some(entry) = self.entries.get_mut(key) else { return };
        if entry.places.get(slot).is_none_or(|place| place.ticket.is_none()) {
            return;
        }
        let place = entry.places.at(slot);
        let timer_due_ms = place.timer_due_ms;
        let Some(ticket) = place.ticket.take() else { return };
        let Some(session) = &place.session else { return };
        let mut bytes = Vec::new();
        if let Err(Busy(reason)) = session.save(&mut bytes) {
            tracing::warn!(connection = entry.id, reason, "a session could not be parked");
            return;
        }
        let kind = session.kind();
        if bytes.len() + kind.len() > MAX_PARKED_BYTES {
            tracing::warn!(connection = entry.id, bytes = bytes.len(), "too large to be parked");
            return;
        }
        let timer_remaining_ms = match timer_due_ms {
            u64::MAX => 0,
            due_ms => due_ms.saturating_sub(now_ms).saturating_add(1),
        };
        let Ticket { id, expires_unix_s } = *ticket;
        let expires_unix_s =
            expires_unix_s.min(sys::wall_clock_s().saturating_add(self.parking.ttl_s));
        let head = ParkedHead { id: id.0, expires_unix_s, timer_remaining_ms };
        let session_head =
            ParkedSessionHead { kind_bytes: kind.len() as u16, version: session.version() };
        let freeze = FreezeInstant { boot_hash: 0, boottime_ns: 0 };
        let mut record = Vec::new();
        let mut writer = Writer::new(&mut record, freeze);
        writer.section(TAG_PARKED, 1, false, &head, &[]);
        writer.section(TAG_PARKED_SESSION, 1, false, &session_head, &[kind.as_bytes(), &bytes]);
        writer.finish_unchecked(FORMAT_WRAPPED); // whatever build the supervisor is
        if self.configure.config.state.compression {
            self.packer.pack(&mut record, COMPRESS_ABOVE_BYTES);
        }
        state::set_checksum(&mut record);
        if let Some(mut session) = place.clear() {
            session.on_close();
        }
        self.status.parked += 1;
        if !self.parking.add(&record) {
            tracing::warn!("a session is lost: too many wait for the supervisor to park them");
        }
    }

    /// Parks every session of a connection that has a ticket.
    pub(super) fn park_sessions(&mut self, key: usize) {
        let mut from = Slot::ONLY;
        while let Some(slot) =
            self.entries.get(key).and_then(|entry| entry.places.with_ticket(from))
        {
            self.park(key, slot);
            from = slot.next();
        }
    }

    /// For a stop without a drain.
    pub(super) fn park_everything(&mut self) {
        let keys: Vec<usize> = self.entries.iter().map(|(key, _)| key).collect();
        for key in keys {
            if self.entries[key].is_served() {
                self.park_sessions(key);
            }
        }
    }

    /// Sends what was parked, asks what is asked, gives up on answers that are overdue.
    pub(super) fn advance_parking(&mut self) {
        for (request, id) in std::mem::take(&mut self.parking.questions) {
            let id = crate::control::hex(&id.0);
            self.tell(&FromWorker::Unpark { request, id });
        }
        if self.parking.waiting.values().any(|waiting| waiting.deadline_ms <= self.now_ms) {
            let now_ms = self.now_ms;
            let overdue = |(&request, waiting): (&u64, &Waiting)| {
                (waiting.deadline_ms <= now_ms).then_some(request)
            };
            let overdue: Vec<u64> = self.parking.waiting.iter().filter_map(overdue).collect();
            for request in overdue {
                tracing::warn!("no answer about a parked session: its client begins anew");
                self.on_unparked(request, None);
            }
        }
        if !self.parking.is_flushed() {
            self.send_parked();
        }
    }

    /// True once nothing is left to be sent, or nobody is there to take it.
    fn send_parked(&mut self) -> bool {
        let count = self.parking.in_outbox;
        let Ok(memfd) = sealed_copy("zdt-parked", &[&self.parking.outbox]) else { return false };
        let sent = self.try_tell(&FromWorker::Parked { count }, memfd);
        if sent {
            self.parking.outbox = Vec::new();
            self.parking.in_outbox = 0;
        }
        sent
    }

    /// The process is about to end: waits a moment for a supervisor that does not read.
    pub(super) fn flush_parking(&mut self) {
        let deadline_ns = sys::monotonic_ns() + 1_000_000_000;
        while !self.parking.is_flushed() && !self.send_parked() {
            if !self.wait_for_supervisor() || sys::monotonic_ns() > deadline_ns {
                let lost = self.parking.in_outbox;
                return tracing::error!(lost, "the supervisor does not take parked sessions");
            }
        }
    }

    /// The supervisor's answer: the record, if it had one.
    pub(super) fn on_unparked(&mut self, request: u64, record: Option<Vec<u8>>) {
        let waiting = self.parking.waiting.remove(&request);
        let found = waiting.and_then(|waiting| {
            let entry = self.entries.get(waiting.key)?;
            let place = entry.places.get(waiting.slot)?;
            let is_there = entry.id == waiting.connection
                && place.session.as_ref().is_some_and(|session| session.kind() == "zdt.resuming");
            is_there.then_some(waiting)
        });
        let Some(Waiting { key, slot, held, .. }) = found else {
            // The client did not wait. Its token may still be shown once.
            if let Some(record) = record {
                self.parking.add(&record);
            }
            return;
        };
        let mut held = held.borrow_mut();
        let mut timer_remaining_ms = 0;
        let restored = record.and_then(|mut record| {
            let parked = Parked::read(&mut record, Integrity::Unknown, &mut Unpacker::default())
                .map_err(|error| tracing::error!("a parked session: {error}"))
                .ok()?;
            timer_remaining_ms = parked.head.timer_remaining_ms;
            let Parked { kind, version, bytes, .. } = parked;
            self.service
                .restore(&SavedSession { kind, version, bytes })
                .map_err(|error| tracing::warn!(kind, "a parked session: {error}"))
                .ok()
        });
        let is_back = restored.is_some();
        let messages = std::mem::take(&mut held.messages);
        let Some(session) = restored.or_else(|| held.otherwise.take()) else { return };
        drop(held);
        let place = self.entries[key].places.at(slot);
        place.session = Some(session);
        if is_back {
            self.status.resumed += 1;
            if timer_remaining_ms > 0 {
                place.timer_due_ms = self.now_ms.saturating_add(timer_remaining_ms - 1);
            }
            self.with_session(key, slot, |session, context| session.on_resume(context));
        }
        for (is_text, bytes) in messages {
            if !self.entries.get(key).is_some_and(|entry| entry.is_served()) {
                return;
            }
            let text = if is_text { std::str::from_utf8(&bytes).ok() } else { None };
            let message = text.map_or(Message::Binary(&bytes), Message::Text);
            self.with_session(key, slot, |session, context| session.on_message(message, context));
        }
        self.schedule(key);
    }
}
