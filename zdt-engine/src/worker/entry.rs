//! One connection in a worker: socket, protocol stack, session, send queue, and where it stands in a
//! handoff.
//!
//! Must not know: the ring, the service.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use crate::conn::{Connection, ReceiveEnd, Transport};
use crate::service::ConnectionId;
use crate::uring::Operation;

use super::places::Places;
use super::preface::Preface;
use super::work::Worked;

/// A send in flight.
#[derive(Debug, Clone, Copy)]
pub struct Sending {
    /// For a cancel.
    pub operation: Operation,
    /// Bytes of its buffer that earlier sends have got rid of.
    pub gone: u32,
    /// Bytes of its buffer behind them, of which it may have been asked to send a part only.
    pub len: u32,
}

/// Where a connection stands in a handoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moving {
    /// Served here.
    No,
    /// Its operations are being ended; nothing is processed.
    Freezing,
    /// Its socket is on offer on that channel.
    Offered {
        /// Index of the channel.
        channel: usize,
    },
    /// Served here, and not to be offered again in this reload.
    Stays,
}

/// See the module.
pub struct Entry {
    /// `None` while on offer.
    pub socket: Option<OwnedFd>,
    /// The same in every process.
    pub id: ConnectionId,
    /// The client.
    pub peer: SocketAddr,
    /// What is between the socket and the protocol stack.
    pub transport: Transport,
    /// Protocol stack.
    pub connection: Connection,
    /// The exchanges and WebSockets in progress.
    pub places: Places,
    /// Place of the earliest entry in the timers; `u64::MAX` is none.
    pub scheduled_ms: u64,
    /// Last time that bytes came or went.
    pub active_ms: u64,
    /// Bytes behind the send in flight.
    pub unsent: Vec<u8>,
    /// The send in flight.
    pub sending: Option<Sending>,
    /// A receive whose last completion is outstanding.
    pub receiving: bool,
    /// The receive has been cancelled for back-pressure.
    pub paused: bool,
    /// It waits for its turn to be received from (`feeding.rs`).
    pub is_waiting: bool,
    /// It has had its turn's work, and goes on in a later one (`work.rs`).
    pub is_put_off: bool,
    /// The peer's end has come behind what has not been looked at yet, and counts after that.
    pub end_waits: bool,
    /// What it has had of this turn.
    pub worked: Worked,
    /// Bytes that it was last seen to hold (`budget.rs`).
    pub held: u32,
    /// The connection is being given up; it goes once nothing names its socket.
    pub closing: bool,
    /// Restored, and its first receive has not come back empty: no deadline fires.
    pub fresh: bool,
    /// See [`Moving`].
    pub moving: Moving,
    /// The header of a proxy in front, as long as it has not come whole.
    pub preface: Option<Box<Preface>>,
    /// CLOCK_BOOTTIME when its freeze began.
    pub frozen_ns: u64,
}

impl Entry {
    /// A connection that is served from now on.
    pub fn new(
        socket: Option<OwnedFd>,
        id: ConnectionId,
        peer: SocketAddr,
        connection: Connection,
        now_ms: u64,
    ) -> Self {
        Self {
            socket,
            id,
            peer,
            transport: Transport::Plain,
            connection,
            places: Places::default(),
            scheduled_ms: u64::MAX,
            active_ms: now_ms,
            unsent: Vec::new(),
            sending: None,
            receiving: false,
            paused: false,
            is_waiting: false,
            is_put_off: false,
            end_waits: false,
            worked: Worked::default(),
            held: 0,
            closing: false,
            fresh: false,
            moving: Moving::No,
            preface: None,
            frozen_ns: 0,
        }
    }

    /// Distinguishes this connection from an earlier one at the same index.
    pub fn tag(&self) -> u32 {
        self.id as u32
    }

    /// Bytes that are queued or in flight.
    pub fn queued(&self) -> usize {
        self.unsent.len() + self.sending.map_or(0, |sending| sending.len as usize)
    }

    /// What the client makes this connection hold: what waits to be sent, and what has arrived and cannot be
    /// used yet, inflated or not. Sessions answer for their own.
    pub fn held_bytes(&self) -> usize {
        self.queued()
            + self.transport.held_bytes()
            + self.connection.held_bytes()
            + self.preface.as_ref().map_or(0, |preface| preface.bytes.len())
    }

    /// True if it may be received from now, and is not.
    pub fn wants_receive(&self) -> bool {
        self.is_served()
            && !self.receiving
            && !self.paused
            && !self.is_waiting
            && self.connection.receive_end == ReceiveEnd::Open
    }

    /// True while nothing is received for want of room or of a turn: the peer may have sent what it owes.
    pub fn is_unread(&self) -> bool {
        (self.paused || self.is_waiting) && self.connection.receive_end == ReceiveEnd::Open
    }

    /// True if something has arrived that has not been looked at, or waits for what is before it.
    pub fn has_unread(&self) -> bool {
        !self.connection.pending().is_empty() || self.transport.has_work()
    }

    /// True while no operation names the socket.
    pub fn is_quiet(&self) -> bool {
        !self.receiving && self.sending.is_none()
    }

    /// True while events may be processed.
    pub fn is_served(&self) -> bool {
        !self.closing && matches!(self.moving, Moving::No | Moving::Stays)
    }
}

/// Vectors for output that is sent at once.
#[derive(Debug, Default)]
pub struct BufferPool {
    free: Vec<Vec<u8>>,
}

impl BufferPool {
    /// Vectors kept.
    const MOST: usize = 64;
    /// Largest capacity kept.
    const MOST_BYTES: usize = 64 << 10;

    /// An empty vector.
    pub fn take(&mut self) -> Vec<u8> {
        self.free.pop().unwrap_or_else(|| Vec::with_capacity(4 << 10))
    }

    /// Gives one back.
    pub fn give(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() <= Self::MOST_BYTES && self.free.len() < Self::MOST {
            buffer.clear();
            self.free.push(buffer);
        }
    }
}

const _: () = assert!(size_of::<Entry>() <= 416, "an idle connection must stay small");
