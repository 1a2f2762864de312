//! One connection as a state record: protocol stack, session, what is still to be sent.
//!
//! Must not know: how a record travels, who reads it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use bytemuck::{Pod, Zeroable};
use zeroize::Zeroize;

use crate::conn::{self, Connection, Environment, Slot, TAG_TLS, TAG_TLS_INCOMING, Transport};
use crate::proto::tls::TlsHead;
use crate::service::{Busy, SavedSession, Service};
use crate::state::{self, FreezeInstant, Integrity, Record, StateError, Writer};
use crate::sys;

use super::access_log::{LogEntry, TAG_LOG};
use super::entry::Entry;
use super::preface::{Preface, TAG_PREFACE};

/// Identity, peer, timer.
const TAG_ENTRY: u16 = 16;
/// Bytes that were produced and not taken by the socket (tail only).
const TAG_UNSENT: u16 = 17;
/// The session: kind, then what it saved.
const TAG_SESSION: u16 = 18;

const KNOWN_SECTIONS: [u16; 11] = {
    let [a, b, c, d] = conn::KNOWN_SECTIONS;
    [
        a,
        b,
        c,
        d,
        TAG_TLS,
        TAG_TLS_INCOMING,
        TAG_ENTRY,
        TAG_UNSENT,
        TAG_SESSION,
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
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
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
    if variable_bytes(entry) > MAX_VARIABLE_BYTES {
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
    let only = entry.places.only();
    let has_timer = only.timer_due_ms != u64::MAX;
    let head = EntryHead {
        id: entry.id,
        timer_remaining_ms: if has_timer { only.timer_due_ms.saturating_sub(now_ms) } else { 0 },
        peer_address,
        peer_scope: scope,
        peer_port: entry.peer.port(),
        flags: is_ipv6
            | if has_timer { FLAG_TIMER } else { 0 }
            | if only.wants_room { FLAG_WANTS_ROOM } else { 0 },
    };
    writer.section(TAG_ENTRY, 1, false, &head, &[]);
    if let Some(preface) = &entry.preface {
        preface.save(now_ms, &mut writer);
    }
    if let Some(log) = &entry.places.only().log {
        log.save(now_ms, &mut writer);
    }
    if !entry.unsent.is_empty() {
        writer.section(TAG_UNSENT, 1, false, &[0u8; 0], &[&entry.unsent]);
    }
    if let Some(session) = &only.session {
        let mut saved = Vec::new();
        session.save(&mut saved)?;
        if variable_bytes(entry) + saved.len() > MAX_VARIABLE_BYTES {
            return Err(Busy("record-too-large"));
        }
        let kind = session.kind();
        let head = SessionHead { kind_bytes: kind.len() as u16, version: session.version() };
        writer.section(TAG_SESSION, 1, false, &head, &[kind.as_bytes(), &saved]);
    }
    writer.finish_unchecked(format);
    Ok(())
}

/// Overwrites the secrets of a plain record: they are in its first section.
pub fn wipe(bytes: &mut [u8]) {
    let front = state::ENVELOPE_BYTES + state::SECTION_HEADER_BYTES + size_of::<TlsHead>();
    bytes.iter_mut().take(front).for_each(Zeroize::zeroize);
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

    /// What [`save`] writes of it.
    pub fn save(&self, format: u16, now_ms: u64, bytes: &mut Vec<u8>) -> Result<(), Busy> {
        save(&self.0, format, now_ms, bytes)
    }
}

/// Rebuilds a connection, without its socket.
pub fn restore(
    bytes: &[u8],
    integrity: Integrity,
    environment: &Environment<'_>,
    service: &mut dyn Service,
) -> Result<Restored, RestoreError> {
    restore_at(bytes, integrity, environment, service, sys::boottime_ns())
}

/// Like [`restore`] at that instant (CLOCK_BOOTTIME).
pub fn restore_at(
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
    let only = entry.places.at(Slot::ONLY);
    if head.flags & FLAG_TIMER != 0 {
        let remaining_ms = head.timer_remaining_ms.saturating_sub(transit_ms);
        only.timer_due_ms = environment.now_ms.saturating_add(remaining_ms);
    }
    only.wants_room = head.flags & FLAG_WANTS_ROOM != 0;
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
        let (kind, bytes) = section
            .tail()
            .split_at_checked(usize::from(head.kind_bytes))
            .ok_or(RestoreError::OutOfRange("the session's kind"))?;
        let kind = std::str::from_utf8(kind)
            .map_err(|_| RestoreError::OutOfRange("the session's kind"))?;
        let saved = SavedSession { kind, version: head.version, bytes };
        entry.places.at(Slot::ONLY).session = Some(service.restore(&saved)?);
    }
    entry.frozen_ns = record.freeze().boottime_ns;
    Ok(Restored(entry))
}

/// For the bench: one idle WebSocket with that many buffered bytes.
pub struct RoundTrip {
    connection: Restored,
    service: crate::service::demo::Demo,
    config: crate::config::WorkerConfig,
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
    }
}

impl RoundTrip {
    /// Restores any bytes; true if they were a valid record, which is kept then.
    pub fn try_restore(&mut self, bytes: &[u8]) -> bool {
        let environment = Environment {
            limits: &self.config.limits,
            websocket: &self.config.websocket,
            now_ms: 0,
            date: &[],
        };
        match restore(bytes, Integrity::Unknown, &environment, &mut self.service) {
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
        let environment = Environment {
            limits: &self.config.limits,
            websocket: &self.config.websocket,
            now_ms: 0,
            date: &[],
        };
        let restored = restore(record, Integrity::Unknown, &environment, &mut self.service);
        self.connection = restored.expect("a record of its own");
        record.len()
    }
}
