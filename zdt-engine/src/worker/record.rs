//! One connection as a state record: protocol stack, session, what is still to be sent.
//!
//! Must not know: how a record travels, who reads it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytemuck::{Pod, Zeroable};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zeroize::Zeroize;

use crate::conn::{
    self, Connection, Environment, Slot, TAG_TLS, TAG_TLS_HELLO, TAG_TLS_INCOMING, Transport,
};
use crate::proto::tls::TlsHead;
use crate::service::{Busy, ParkId, SavedSession, Service, Session};
use crate::state::json::{JsonCodec, Parts, head_from_json, head_to_json};
use crate::state::{self, FreezeInstant, Integrity, Record, Section, StateError, Writer};
use crate::sys;

use super::access_log::{LogEntry, TAG_LOG, TAG_STREAM_LOGS};
use super::entry::Entry;
use super::parking::Ticket;
use super::places::Place;
use super::preface::{Preface, TAG_PREFACE};

#[cfg(test)]
mod tests;

/// Identity, peer, timer.
const TAG_ENTRY: u16 = 16;
/// Bytes that were produced and not taken by the socket (tail only).
const TAG_UNSENT: u16 = 17;
/// The session: kind, then what it saved.
const TAG_SESSION: u16 = 18;
/// Under which name the session is kept if its client goes away; optional.
const TAG_TICKET: u16 = 19;

/// The session of one stream of HTTP/2: kind, then what it saved.
const TAG_STREAM_SESSION: u16 = 20;
/// The tickets of HTTP/2's sessions (tail only); optional.
const TAG_STREAM_TICKETS: u16 = 43;

const KNOWN_SECTIONS: [u16; 17] = {
    let [a, b, c, d, e, f, g, h] = conn::KNOWN_SECTIONS;
    [
        a,
        b,
        c,
        d,
        e,
        f,
        g,
        h,
        TAG_TLS,
        TAG_TLS_INCOMING,
        TAG_TLS_HELLO,
        TAG_ENTRY,
        TAG_UNSENT,
        TAG_SESSION,
        TAG_STREAM_SESSION,
        TAG_PREFACE,
        TAG_LOG,
    ]
};

/// Most unsent bytes of a connection that are taken over.
const MAX_UNSENT_BYTES: usize = 48 << 20;

const FLAG_IPV6: u16 = 1;
const FLAG_TIMER: u16 = 2;
const FLAG_WANTS_ROOM: u16 = 4;

/// Fixed part of [`TAG_ENTRY`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable, Serialize, Deserialize)]
struct EntryHead {
    id: u64,
    /// Until the session's timer is due.
    timer_remaining_ms: u64,
    peer_address: [u8; 16],
    peer_scope: u32,
    peer_port: u16,
    flags: u16,
}

const _: () = assert!(size_of::<EntryHead>() == 40);

/// Fixed part of [`TAG_SESSION`]; the tail is the kind and what the session saved.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct SessionHead {
    kind_bytes: u16,
    version: u16,
}

/// Fixed part of [`TAG_STREAM_SESSION`]; the tail is that of [`TAG_SESSION`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct StreamSessionHead {
    stream: u64,
    /// Until the session's timer is due.
    timer_remaining_ms: u64,
    kind_bytes: u16,
    version: u16,
    flags: u16,
    padding: u16,
}

const _: () = assert!(size_of::<StreamSessionHead>() == 24);
/// [`TAG_TICKET`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable, Serialize, Deserialize)]
struct TicketHead {
    id: [u8; 16],
    expires_unix_s: u64,
}

/// One of the tail of [`TAG_STREAM_TICKETS`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct StreamTicket {
    stream: u64,
    ticket: TicketHead,
}

const _: () = assert!(size_of::<StreamTicket>() == 32);

/// [`TAG_SESSION`] in JSON; what the session saved is its own business.
#[derive(Serialize, Deserialize)]
struct SessionJson {
    kind: String,
    version: u16,
    saved: String,
}

/// How the sections of a connection's record are shown in JSON; the others as bytes.
pub const JSON_CODECS: [JsonCodec; 6] = {
    let [connection, http1, websocket] = conn::JSON_CODECS;
    let entry = JsonCodec {
        tag: TAG_ENTRY,
        name: "entry",
        to_json: head_to_json::<EntryHead>,
        from_json: head_from_json::<EntryHead>,
    };
    let session = JsonCodec {
        tag: TAG_SESSION,
        name: "session",
        to_json: session_to_json,
        from_json: session_from_json,
    };
    let ticket = JsonCodec {
        tag: TAG_TICKET,
        name: "ticket",
        to_json: head_to_json::<TicketHead>,
        from_json: head_from_json::<TicketHead>,
    };
    [connection, http1, websocket, entry, session, ticket]
};

fn session_to_json(section: &Section<'_>) -> Option<Value> {
    let head: SessionHead = section.head();
    let (kind, saved) = section.tail().split_at_checked(usize::from(head.kind_bytes))?;
    let kind = std::str::from_utf8(kind).ok()?.to_owned();
    let saved = STANDARD.encode(saved);
    serde_json::to_value(SessionJson { kind, version: head.version, saved }).ok()
}

fn session_from_json(value: &Value) -> Option<Parts> {
    let SessionJson { kind, version, saved } = serde_json::from_value(value.clone()).ok()?;
    let head = SessionHead { kind_bytes: u16::try_from(kind.len()).ok()?, version };
    let mut tail = kind.into_bytes();
    tail.extend_from_slice(&STANDARD.decode(saved).ok()?);
    Some((bytemuck::bytes_of(&head).to_vec(), tail))
}

/// Why a record is refused.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The record itself.
    #[error(transparent)]
    State(#[from] StateError),
    /// The protocol stack.
    #[error(transparent)]
    Connection(#[from] conn::RestoreError),
    /// The session.
    #[error("session: {0}")]
    Session(#[from] crate::service::RestoreError),
    /// A field that no build writes.
    #[error("{0} is out of range")]
    OutOfRange(&'static str),
    /// It was saved before the machine was started anew.
    #[error("the record is from another boot")]
    AnotherBoot,
}

impl RestoreError {
    /// A short code for reports.
    pub fn code(&self) -> &'static str {
        match self {
            RestoreError::State(_) => "record",
            RestoreError::Connection(_) => "protocol-state",
            RestoreError::Session(_) => "session",
            RestoreError::OutOfRange(_) => "out-of-range",
            RestoreError::AnotherBoot => "another-boot",
        }
    }
}

fn boot_hash() -> u64 {
    static HASH: OnceLock<u64> = OnceLock::new();
    // A machine that does not tell its boot id has one boot, as far as anybody can know.
    *HASH.get_or_init(|| sys::boot_id().map_or(0, state::boot_hash))
}

/// Writes the record of a connection that was frozen at `entry.frozen_ns`, plain and without a
/// checksum: whoever sends it completes it.
pub fn save(entry: &Entry, format: u16, now_ms: u64, bytes: &mut Vec<u8>) -> Result<(), Busy> {
    let mut bytes_in_all = variable_bytes(entry);
    if bytes_in_all > MAX_VARIABLE_BYTES {
        return Err(Busy("record-too-large"));
    }
    if entry.transport.is_shaking_hands() {
        return Err(Busy("tls-handshake")); // there is nothing that could be saved of it
    }
    let freeze = FreezeInstant { boot_hash: boot_hash(), boottime_ns: entry.frozen_ns };
    let mut writer = Writer::new(bytes, freeze);
    entry.transport.save(&mut writer);
    entry.connection.save(now_ms, &mut writer);

    let (peer_address, scope, is_ipv6) = match entry.peer {
        SocketAddr::V4(peer) => (peer.ip().to_ipv6_mapped().octets(), 0, 0),
        SocketAddr::V6(peer) => (peer.ip().octets(), peer.scope_id(), FLAG_IPV6),
    };
    // The sessions of HTTP/2 have sections of their own.
    let only = if entry.connection.is_multiplexed() { &Place::EMPTY } else { entry.places.only() };
    let (timer_remaining_ms, waits) = wishes(only, now_ms);
    let head = EntryHead {
        id: entry.id,
        timer_remaining_ms,
        peer_address,
        peer_scope: scope,
        peer_port: entry.peer.port(),
        flags: is_ipv6 | waits,
    };
    writer.section(TAG_ENTRY, 1, false, &head, &[]);
    if let Some(preface) = &entry.preface {
        preface.save(now_ms, &mut writer);
    }
    if let Some(log) = &only.log {
        log.save(now_ms, &mut writer);
    }
    if !entry.unsent.is_empty() {
        writer.section(TAG_UNSENT, 1, false, &[0u8; 0], &[&entry.unsent]);
    }
    if entry.connection.is_multiplexed() {
        // By their streams' ids: slots are given anew where the connection is restored.
        let (mut tickets, mut logs) = (Vec::new(), Vec::new());
        for slot in entry.connection.slots() {
            let Some(place) = entry.places.get(slot) else { continue };
            let stream = entry.connection.stream_id(slot);
            if let Some(ticket) = &place.ticket {
                let ticket = StreamTicket { stream, ticket: TicketHead::new(ticket) };
                tickets.extend_from_slice(bytemuck::bytes_of(&ticket));
            }
            if let Some(log) = &place.log {
                log.append(stream, now_ms, &mut logs);
            }
            let (timer_remaining_ms, flags) = wishes(place, now_ms);
            write_session(place, &mut bytes_in_all, |kind, version, saved| {
                let head = StreamSessionHead {
                    stream,
                    timer_remaining_ms,
                    kind_bytes: kind.len() as u16,
                    version,
                    flags,
                    padding: 0,
                };
                writer.section(TAG_STREAM_SESSION, 1, false, &head, &[kind.as_bytes(), saved]);
            })?;
        }
        if bytes_in_all + tickets.len() + logs.len() > MAX_VARIABLE_BYTES {
            return Err(Busy("record-too-large"));
        }
        for (tag, tail) in [(TAG_STREAM_TICKETS, tickets), (TAG_STREAM_LOGS, logs)] {
            if !tail.is_empty() {
                writer.section(tag, 1, true, &[0u8; 0], &[&tail]);
            }
        }
    } else {
        write_session(only, &mut bytes_in_all, |kind, version, saved| {
            let head = SessionHead { kind_bytes: kind.len() as u16, version };
            writer.section(TAG_SESSION, 1, false, &head, &[kind.as_bytes(), saved]);
        })?;
        if let Some(ticket) = &only.ticket {
            writer.section(TAG_TICKET, 1, true, &TicketHead::new(ticket), &[]);
        }
    }
    writer.finish_unchecked(format);
    Ok(())
}

/// Overwrites the secrets of a plain record: they are in its first section.
pub fn wipe(bytes: &mut [u8]) {
    let front = state::ENVELOPE_BYTES + state::SECTION_HEADER_BYTES + size_of::<TlsHead>();
    bytes.iter_mut().take(front).for_each(Zeroize::zeroize);
}

/// What a session waits for: until its timer is due, and flags.
fn wishes(place: &Place, now_ms: u64) -> (u64, u16) {
    let has_timer = place.timer_due_ms != u64::MAX;
    let remaining_ms = if has_timer { place.timer_due_ms.saturating_sub(now_ms) } else { 0 };
    let timer = if has_timer { FLAG_TIMER } else { 0 };
    (remaining_ms, timer | if place.wants_room { FLAG_WANTS_ROOM } else { 0 })
}

/// Saves the session of a place, if it has one, unless the record becomes too large by it.
fn write_session(
    place: &Place,
    bytes_in_all: &mut usize,
    write: impl FnOnce(&'static str, u16, &[u8]),
) -> Result<(), Busy> {
    let Some(session) = &place.session else { return Ok(()) };
    let mut saved = Vec::new();
    session.save(&mut saved)?;
    *bytes_in_all += saved.len();
    if *bytes_in_all > MAX_VARIABLE_BYTES {
        return Err(Busy("record-too-large"));
    }
    write(session.kind(), session.version(), &saved);
    Ok(())
}

/// What a record may have beside its fixed parts; a reader refuses more than
/// [`state::MAX_RECORD_BYTES`] in all.
const MAX_VARIABLE_BYTES: usize = state::MAX_RECORD_BYTES - (64 << 10);

fn variable_bytes(entry: &Entry) -> usize {
    entry.queued() + entry.transport.saved_bytes() + entry.connection.saved_bytes()
}

/// About as many bytes as the connection's record will have, a session's own state aside.
pub fn estimate(entry: &Entry) -> usize {
    const FIXED: usize = 512;
    let bytes = FIXED + variable_bytes(entry);
    // A larger one travels beside the ring.
    if bytes > crate::handoff::MAX_INLINE_RECORD { FIXED } else { bytes }
}

/// A connection that was rebuilt and is not served: it can neither receive, nor send, nor seal anything
/// before it is adopted. All that can be done with it is to save it again.
pub struct Restored(Entry);

impl Restored {
    /// From now on it is served, here and nowhere else.
    pub fn adopt(self, socket: OwnedFd) -> Entry {
        let mut entry = Entry { socket: Some(socket), fresh: true, ..self.0 };
        entry.transport.start();
        entry
    }

    /// True if its record has secrets in it.
    pub fn is_secret(&self) -> bool {
        self.0.transport.is_secret()
    }

    /// True if a handshake has still to begin on it.
    pub fn awaits_handshake(&self) -> bool {
        self.0.transport.awaits_handshake()
    }

    /// What [`save`] writes of it.
    pub fn save(&self, format: u16, now_ms: u64, bytes: &mut Vec<u8>) -> Result<(), Busy> {
        save(&self.0, format, now_ms, bytes)
    }
}

/// Rebuilds a connection, without its socket, at that instant (CLOCK_BOOTTIME): whoever restores many
/// looks at the clock once.
pub fn restore(
    bytes: &[u8],
    integrity: Integrity,
    environment: &Environment<'_>,
    service: &mut dyn Service,
    boottime_ns: u64,
) -> Result<Restored, RestoreError> {
    let record = Record::parse_checked(bytes, integrity)?;
    record.refuse_unknown(&KNOWN_SECTIONS)?;
    let now = FreezeInstant { boot_hash: boot_hash(), boottime_ns };
    let transit = record.freeze().elapsed(now).ok_or(RestoreError::AnotherBoot)?;
    let transit_ms = transit.as_millis() as u64;
    let connection = Connection::restore(&record, environment, transit_ms)?;
    let head: EntryHead = record.required(TAG_ENTRY)?.head();
    let address = Ipv6Addr::from(head.peer_address);
    let peer = if head.flags & FLAG_IPV6 != 0 {
        SocketAddr::V6(SocketAddrV6::new(address, head.peer_port, 0, head.peer_scope))
    } else {
        let address = address.to_ipv4_mapped().ok_or(RestoreError::OutOfRange("the peer"))?;
        SocketAddr::new(IpAddr::V4(address), head.peer_port)
    };
    let mut entry = Entry::new(None, head.id, peer, connection, environment.now_ms);
    entry.transport = Transport::restore(&record)?;
    let since = Since { now_ms: environment.now_ms, transit_ms };
    entry.places.at(Slot::ONLY).restore_wishes(head.timer_remaining_ms, head.flags, &since);
    entry.places.at(Slot::ONLY).log = LogEntry::restore(&record, environment.now_ms, transit_ms)?;
    entry.preface = Preface::restore(&record, environment.now_ms, transit_ms)?.map(Box::new);
    if let Some(section) = record.section(TAG_UNSENT) {
        if section.tail().len() > MAX_UNSENT_BYTES {
            return Err(RestoreError::OutOfRange("the unsent output"));
        }
        entry.unsent = section.tail().to_vec();
    }
    if let Some(section) = record.section(TAG_SESSION) {
        let head: SessionHead = section.head();
        let session = restore_session(section.tail(), head.kind_bytes, head.version, service)?;
        entry.places.at(Slot::ONLY).session = Some(session);
    }
    for section in record.sections().filter(|section| section.tag() == TAG_STREAM_SESSION) {
        let head: StreamSessionHead = section.head();
        let session = restore_session(section.tail(), head.kind_bytes, head.version, service)?;
        let place = place_of(&mut entry, head.stream, "the stream of a session")?;
        place.session = Some(session);
        place.restore_wishes(head.timer_remaining_ms, head.flags, &since);
    }
    if let Some(section) = record.section(TAG_TICKET) {
        entry.places.at(Slot::ONLY).ticket = Some(section.head::<TicketHead>().ticket());
    }
    if let Some(section) = record.section(TAG_STREAM_TICKETS) {
        for ticket in section.tail().chunks(size_of::<StreamTicket>()) {
            let StreamTicket { stream, ticket } = bytemuck::try_pod_read_unaligned(ticket)
                .map_err(|_| RestoreError::OutOfRange("the tickets"))?;
            place_of(&mut entry, stream, "the stream of a ticket")?.ticket = Some(ticket.ticket());
        }
    }
    if let Some(section) = record.section(TAG_STREAM_LOGS) {
        let mut tail = section.tail();
        while !tail.is_empty() {
            let (stream, log) = LogEntry::take(&mut tail, environment.now_ms, transit_ms)
                .ok_or(RestoreError::OutOfRange("an entry of the access log"))?;
            place_of(&mut entry, stream, "the stream of the access log")?.log = Some(log);
        }
    }
    entry.frozen_ns = record.freeze().boottime_ns;
    Ok(Restored(entry))
}

/// The place of a stream whose exchange goes on.
fn place_of<'a>(
    entry: &'a mut Entry,
    stream: u64,
    what: &'static str,
) -> Result<&'a mut Place, RestoreError> {
    let slot = entry
        .connection
        .slot_of(stream)
        .filter(|slot| !entry.connection.is_exchange_over(*slot))
        .ok_or(RestoreError::OutOfRange(what))?;
    Ok(entry.places.at(slot))
}

impl TicketHead {
    fn new(ticket: &Ticket) -> Self {
        Self { id: ticket.id.0, expires_unix_s: ticket.expires_unix_s }
    }

    fn ticket(self) -> Box<Ticket> {
        Box::new(Ticket { id: ParkId(self.id), expires_unix_s: self.expires_unix_s })
    }
}

/// How old a record is.
struct Since {
    now_ms: u64,
    transit_ms: u64,
}

impl Place {
    fn restore_wishes(&mut self, timer_remaining_ms: u64, flags: u16, since: &Since) {
        if flags & FLAG_TIMER != 0 {
            let remaining_ms = timer_remaining_ms.saturating_sub(since.transit_ms);
            self.timer_due_ms = since.now_ms.saturating_add(remaining_ms);
        }
        self.wants_room = flags & FLAG_WANTS_ROOM != 0;
    }
}

fn restore_session(
    tail: &[u8],
    kind_bytes: u16,
    version: u16,
    service: &mut dyn Service,
) -> Result<Box<dyn Session>, RestoreError> {
    let (kind, bytes) = tail
        .split_at_checked(usize::from(kind_bytes))
        .ok_or(RestoreError::OutOfRange("the session's kind"))?;
    let kind =
        std::str::from_utf8(kind).map_err(|_| RestoreError::OutOfRange("the session's kind"))?;
    Ok(service.restore(&SavedSession { kind, version, bytes })?)
}

/// For the bench: one idle WebSocket with that many buffered bytes.
pub struct RoundTrip {
    connection: Restored,
    service: crate::service::demo::Demo,
    config: crate::config::WorkerConfig,
    boottime_ns: u64,
}

/// Makes what `bench state` measures. It is a `RoundTrip`.
pub fn bench_roundtrip(buffered_bytes: usize) -> RoundTrip {
    use crate::service::SavedSession;
    let mut service = crate::service::demo::Demo;
    let saved = SavedSession { kind: "demo.ws.echo", version: 1, bytes: &[] };
    let session = service.restore(&saved).expect("a session of the demo");
    let peer = SocketAddr::from(([127, 0, 0, 1], 40_000));
    let mut entry = Entry::new(None, 1, peer, Connection::new_websocket(0), 0);
    entry.places.at(Slot::ONLY).session = Some(session);
    entry.unsent = vec![0x5a; buffered_bytes];
    RoundTrip {
        connection: Restored(entry),
        service,
        config: crate::config::WorkerConfig::default(),
        boottime_ns: sys::boottime_ns(),
    }
}

impl RoundTrip {
    /// Restores any bytes; true if they were a valid record, which is kept then.
    pub fn try_restore(&mut self, bytes: &[u8]) -> bool {
        let environment = Environment::new(&self.config, 0, &[]);
        let now_ns = self.boottime_ns;
        match restore(bytes, Integrity::Unknown, &environment, &mut self.service, now_ns) {
            Ok(connection) => {
                self.connection = connection;
                true
            }
            Err(_) => false,
        }
    }

    /// Saves through `record`, restores, keeps the restored connection for the next turn. Returns the
    /// record's size.
    pub fn run(&mut self, record: &mut Vec<u8>) -> usize {
        record.clear();
        self.connection.save(state::FORMAT_WRITES.newest, 0, record).expect("never busy");
        state::set_checksum(record);
        let environment = Environment::new(&self.config, 0, &[]);
        let now_ns = self.boottime_ns;
        let restored = restore(record, Integrity::Unknown, &environment, &mut self.service, now_ns);
        self.connection = restored.expect("a record of its own");
        record.len()
    }
}
