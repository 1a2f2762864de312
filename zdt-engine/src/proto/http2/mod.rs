//! HTTP/2, the server's side of one connection (RFC 9113, RFC 8441), as a sans-IO machine.
//!
//! [`Http2::next_event`] takes frames from an [`Input`](super::Input) and answers by itself what no
//! service wants to see: settings, pings, window updates, malformed requests. The response functions
//! append frames to a `Vec<u8>` as far as both windows allow, and keep the rest for
//! [`Http2::flush`]. Streams are named by *slots*: small numbers that are used again.
//!
//! The order of things, for the caller:
//! - Call `next_event` until it returns `None`. [`Event::Data`] says how much of a body comes next in
//!   the input: take some or all of it, and tell by [`Http2::took`].
//! - [`Event::Reset`] ends a stream. An exchange also ends when its response is finished, whatever is left
//!   of the request; the stream lingers then until its client has ended it, or is reset.
//! - Call [`Http2::flush`] when windows or the socket may have let something out.
//! - An [`Error`] ends the connection; GOAWAY has been written.
//!
//! What a peer may make the machine hold or do is bounded: one frame of input, one header block,
//! [`Options::stream_buffer_bytes`] for each stream beyond what its own window lets in (much less once many
//! streams wait, see [`Http2::buffer_bound`]), and leaky buckets for frames that are of no use (see `guard.rs`). Priorities are parsed and ignored.
//!
//! Must not know: I/O, clocks (time is an argument), randomness, what a service does, WebSocket.

mod control;
mod data;
mod frame;
mod guard;
mod headers;
mod persist;
mod receive;
mod request;
mod send;
mod settings;
mod stream;
mod syntax;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use super::hpack;
use guard::Guard;
use settings::{Local, Peer};
use stream::{Outgoing, Stream, Streams};

pub use super::BodyLength;
pub use frame::ErrorCode;
pub use persist::{Http2Head, Http2State, RestoreError, StreamHead, StreamState};
pub use request::{Parts, Request};
pub use send::ResponseError;

/// What a client says first (RFC 9113 §3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Largest window (§6.9.1).
const MAX_WINDOW: u32 = (1 << 31) - 1;

/// Streams that were reset by us and are remembered, because frames for them may be on their way.
const MAX_REMEMBERED: usize = 64;

/// Frames of one header block behind its HEADERS.
const MAX_CONTINUATIONS: u16 = 64;

/// Most settings of ours that may wait for their acknowledgement.
const MAX_PENDING_SETTINGS: usize = 4;

/// Streams of one connection that may have full buffers at a time.
const FULL_BUFFERS: usize = 4;

/// Bounds for what a client may send, for each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Header list (431), as §10.5.1 counts it. A block on the wire that is far longer ends the
    /// connection.
    pub max_head_bytes: u32,
    /// Path with query (414).
    pub max_target_bytes: u32,
    /// Fields (431).
    pub max_header_count: u16,
    /// Body (413).
    pub max_body_bytes: u64,
}

impl Limits {
    /// For tests and fuzzing: bounds that are soon reached.
    #[doc(hidden)]
    pub const SMALL: Self = Self {
        max_head_bytes: 4 << 10,
        max_target_bytes: 1 << 10,
        max_header_count: 30,
        max_body_bytes: 100_000,
    };
}

/// What is agreed with, or asked of, each connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Streams that a client may have open.
    pub max_streams: u32,
    /// What a client may send on a stream before we have taken any of it.
    pub stream_window_bytes: u32,
    /// The same for all streams together.
    pub connection_window_bytes: u32,
    /// Bytes waiting for a stream's window above which the service is asked to wait, and the client too.
    pub stream_buffer_bytes: u32,
    /// Useless streams that a client may make at once, and how many more in each second.
    pub reset_burst: u32,
    /// See `reset_burst`.
    pub resets_per_second: u32,
    /// Frames without use that a client may send at once, and how many more in each second.
    pub control_burst: u32,
    /// See `control_burst`.
    pub control_per_second: u32,
}

impl Options {
    /// For tests and fuzzing, as [`Limits::SMALL`].
    #[doc(hidden)]
    pub const SMALL: Self = Self {
        max_streams: 8,
        stream_window_bytes: 65_535,
        connection_window_bytes: 100_000,
        stream_buffer_bytes: 4 << 10,
        reset_burst: 50,
        resets_per_second: 10,
        control_burst: 100,
        control_per_second: 10,
    };
}

/// What the machine is lent for each call.
#[derive(Debug, Clone, Copy)]
pub struct Environment<'a> {
    /// Bounds.
    pub limits: Limits,
    /// Options.
    pub options: Options,
    /// Now, in milliseconds of any monotonic clock.
    pub now_ms: u64,
    /// Value of the Date field, formatted, or empty.
    pub date: &'a [u8],
}

/// What has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A request begins; its fields are in the list that was lent.
    Request {
        /// The new stream.
        slot: usize,
        /// For [`Request::new`].
        parts: Parts,
    },
    /// The next so many bytes of the input, at least 1, are of a request's body, or of a tunnel.
    Data {
        /// The stream.
        slot: usize,
        /// How many.
        bytes: usize,
    },
    /// The client's direction is complete.
    End {
        /// The stream.
        slot: usize,
    },
    /// The stream is gone before its end, by a reset of either side.
    Reset {
        /// Where it is, or was: it may be vacant by now.
        slot: usize,
    },
}

/// The client broke the protocol, or a limit: the connection is over, and GOAWAY has been written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason} ({code:?})")]
pub struct Error {
    /// What GOAWAY says.
    pub code: ErrorCode,
    /// For people, and in GOAWAY's debug data.
    pub reason: &'static str,
}

impl Error {
    const fn protocol(reason: &'static str) -> Self {
        Self { code: ErrorCode::Protocol, reason }
    }

    const fn frame_size(reason: &'static str) -> Self {
        Self { code: ErrorCode::FrameSize, reason }
    }

    const fn too_much(reason: &'static str) -> Self {
        Self { code: ErrorCode::EnhanceYourCalm, reason }
    }
}

/// Where the input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Incoming {
    /// So many bytes into the preface.
    Preface(u8),
    /// At a frame header.
    Frame,
    /// In the payload of DATA, behind its padding's length. `stream` is 0 where nobody wants it.
    Data { stream: u32, left: u32, padding: u8, end_stream: bool },
    /// The end of a request is due: it takes no input.
    End { stream: u32 },
    /// Nothing more is read.
    Failed,
}

/// A header block whose last frame has not arrived (§6.10).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Block {
    stream: u32,
    end_stream: bool,
    continuations: u16,
    bytes: Vec<u8>,
}

/// How far a graceful end has come (§6.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Farewell {
    No,
    /// GOAWAY without a last stream has been said, and a PING whose answer shows that it was heard.
    Announced,
    /// GOAWAY has named the last stream; later ones are ignored.
    Said {
        last_stream: u32,
    },
}

/// See the [module](self).
pub struct Http2 {
    incoming: Incoming,
    /// The first frame must be SETTINGS (§3.4).
    has_settings: bool,
    block: Option<Box<Block>>,
    decoder: hpack::Decoder,
    encoder: hpack::Encoder,
    peer: Peer,
    local: Local,
    /// Settings of ours that the peer has not acknowledged, the oldest first.
    pending_settings: VecDeque<Local>,
    /// Since when the oldest of them waits.
    settings_since_ms: u64,
    send_window: i32,
    receive_window: i32,
    receive_credit: u32,
    streams: Streams,
    /// Highest id that the client has used.
    last_stream: u32,
    /// Reset by us, the latest last.
    remembered: VecDeque<u32>,
    farewell: Farewell,
    guard: Guard,
    /// The stream that is framed first at the next flush, for fairness.
    next_flush: u32,
    /// A frame, or a header block, was completed since somebody asked.
    has_progress: bool,
    /// A stream began to linger since somebody asked.
    has_lingerer: bool,
}

/// Payload of the PING behind the first GOAWAY.
const FAREWELL_PING: [u8; 8] = *b"farewell";
/// Payload of the PINGs that ask for a sign of life.
const ALIVE_PING: [u8; 8] = *b"alive?\0\0";

impl Http2 {
    /// The machine of a connection on which nothing has been received.
    pub fn new() -> Self {
        Self {
            incoming: Incoming::Preface(0),
            has_settings: false,
            block: None,
            decoder: hpack::Decoder::new(),
            encoder: hpack::Encoder::new(),
            peer: Peer::INITIAL,
            local: Local::INITIAL,
            pending_settings: VecDeque::new(),
            settings_since_ms: 0,
            send_window: 65_535,
            receive_window: 65_535,
            receive_credit: 0,
            streams: Streams::default(),
            last_stream: 0,
            remembered: VecDeque::new(),
            farewell: Farewell::No,
            guard: Guard::default(),
            next_flush: 0,
            has_progress: false,
            has_lingerer: false,
        }
    }

    /// Says hello (§3.4): to be called once, first of all.
    pub fn begin(&mut self, out: &mut Vec<u8>, environment: &Environment<'_>) {
        self.announce(out, environment);
        let wanted = environment.options.connection_window_bytes.min(MAX_WINDOW) as i32;
        if wanted > self.receive_window {
            frame::write_window_update(out, 0, (wanted - self.receive_window) as u32);
            self.receive_window = wanted;
        }
    }

    /// True once [`Http2::begin`] has been called, here or before a handoff.
    pub fn has_begun(&self) -> bool {
        !self.pending_settings.is_empty() || self.local != Local::INITIAL
    }

    /// Tells the client our settings if they differ from what it was told last; they hold once it has
    /// acknowledged them.
    pub fn announce(&mut self, out: &mut Vec<u8>, environment: &Environment<'_>) {
        let Environment { options, limits, now_ms, .. } = environment;
        let wanted = Local {
            max_streams: options.max_streams,
            initial_window: options.stream_window_bytes.min(MAX_WINDOW),
            max_list_bytes: limits.max_head_bytes,
        };
        let told = self.pending_settings.back().unwrap_or(&self.local);
        if *told != wanted && self.pending_settings.len() < MAX_PENDING_SETTINGS {
            wanted.write(out);
            if self.pending_settings.is_empty() {
                self.settings_since_ms = *now_ms;
            }
            self.pending_settings.push_back(wanted);
        }
    }

    /// Since when the client owes the acknowledgement of settings (§6.5.3), if it does.
    pub fn settings_since_ms(&self) -> Option<u64> {
        (!self.pending_settings.is_empty()).then_some(self.settings_since_ms)
    }

    /// Streams that live.
    pub fn stream_count(&self) -> usize {
        self.streams.len()
    }

    /// Upper bound of the slots that may be in use.
    pub fn slot_count(&self) -> usize {
        self.streams.slot_count()
    }

    /// Slots of all streams that live, in the order of their ids.
    pub fn slots(&self) -> impl Iterator<Item = usize> {
        self.streams.iter().map(|(slot, _)| slot)
    }

    /// The number of the stream in that slot; 0 if it is vacant.
    pub fn stream_id(&self, slot: usize) -> u32 {
        self.streams.get(slot).map_or(0, |stream| stream.id)
    }

    /// Where a stream is.
    pub fn slot_of(&self, id: u32) -> Option<usize> {
        self.streams.slot_of(id)
    }

    /// True for a stream that was accepted as a tunnel, and that neither side has ended.
    pub fn is_tunnel(&self, id: u32) -> bool {
        self.streams.slot_of(id).and_then(|slot| self.streams.get(slot)).is_some_and(|stream| {
            stream.is_tunnel && stream.outgoing == Outgoing::Open && stream.is_receiving
        })
    }

    /// True for a tunnel of which we have not ended our direction.
    pub fn is_open_tunnel(&self, slot: usize) -> bool {
        self.streams
            .get(slot)
            .is_some_and(|stream| stream.is_tunnel && stream.outgoing == Outgoing::Open)
    }

    /// True for a tunnel that the caller has not ended: also for one that is half-closed.
    pub fn is_live_tunnel(&self, slot: usize) -> bool {
        self.streams.get(slot).is_some_and(|stream| {
            stream.is_tunnel && (stream.outgoing == Outgoing::Open || stream.is_half_closed)
        })
    }

    /// True while the service owes the head of a response.
    pub fn is_response_due(&self, slot: usize) -> bool {
        self.streams.get(slot).is_some_and(|stream| stream.outgoing == Outgoing::Pending)
    }

    /// True once a response is finished, or its stream gone: the session can go.
    pub fn is_exchange_over(&self, slot: usize) -> bool {
        self.streams.get(slot).is_none_or(Stream::is_over)
    }

    /// Bytes of a stream that wait for its windows.
    pub fn buffered(&self, slot: usize) -> usize {
        self.streams.get(slot).map_or(0, Stream::buffered)
    }

    /// How much a stream may have waiting for the windows. All of [`Options::stream_buffer_bytes`] while the
    /// streams together have no more than four times that, and a sixteenth beyond: a client that opens many
    /// and takes nothing must not have as many full buffers, and those that it does read must go on.
    pub fn buffer_bound(&self, stream_buffer_bytes: u32) -> usize {
        let each = stream_buffer_bytes as usize;
        if self.streams.len() <= FULL_BUFFERS {
            return each;
        }
        let all: usize = self.streams.iter().map(|(_, stream)| stream.buffered()).sum();
        if all < each * FULL_BUFFERS { each } else { (each / 16).max(1) }
    }

    /// True if a stream has bytes that wait for the windows.
    pub fn has_buffered(&self) -> bool {
        self.streams.iter().any(|(_, stream)| stream.buffered() > 0)
    }

    /// True in the middle of the preface or of a header block; the bytes that the caller keeps are not
    /// known here.
    pub fn is_inside(&self) -> bool {
        self.block.is_some() || matches!(self.incoming, Incoming::Preface(_))
    }

    /// True before the client has sent its preface and its first SETTINGS.
    pub fn is_greeting(&self) -> bool {
        !self.has_settings
    }

    /// True if the end of a request is due, which takes no input.
    pub fn is_end_due(&self) -> bool {
        matches!(self.incoming, Incoming::End { .. })
    }

    /// True if a frame, or a header block, was completed since the last call.
    pub fn take_progress(&mut self) -> bool {
        std::mem::take(&mut self.has_progress)
    }

    /// True if a stream began to linger since the last call: see [`Http2::waits_since`].
    pub fn take_lingerer(&mut self) -> bool {
        std::mem::take(&mut self.has_lingerer)
    }

    /// Since when a stream has waited for its client: for bytes of its body, for room in a window, or
    /// for the end of what we have ended (`true`). `None`: it does not wait.
    pub fn waits_since(&self, slot: usize) -> Option<(u64, bool)> {
        let stream = self.streams.get(slot)?;
        let waits = stream.buffered() > 0
            || stream.is_lingering
            // The client cannot be blamed for what the service has no room for.
            || (stream.is_receiving
                && !stream.is_held
                && (!stream.is_tunnel || stream.is_half_closed));
        waits.then_some((stream.since_ms, stream.is_lingering))
    }

    /// When something last happened on a stream.
    pub fn since_ms(&self, slot: usize) -> u64 {
        self.streams.get(slot).map_or(0, |stream| stream.since_ms)
    }

    /// The client did something for a stream that only the caller can judge.
    pub fn touch(&mut self, slot: usize, now_ms: u64) {
        if let Some(stream) = self.streams.get_mut(slot) {
            stream.since_ms = now_ms;
        }
    }

    /// True after a graceful end was announced and no stream is left.
    pub fn is_done(&self) -> bool {
        matches!(self.farewell, Farewell::Said { .. }) && self.streams.len() == 0
    }

    /// Begins a graceful end: no new streams once the client has heard of it (§6.8).
    pub fn say_farewell(&mut self, out: &mut Vec<u8>) {
        if self.farewell == Farewell::No {
            frame::write_goaway(out, MAX_WINDOW, ErrorCode::NoError, "");
            frame::write(out, frame::PING, 0, 0, &FAREWELL_PING);
            self.farewell = Farewell::Announced;
        }
    }

    /// Ends at once, whatever streams there are; the caller closes when `out` is sent.
    pub fn end(&mut self, out: &mut Vec<u8>, code: ErrorCode, reason: &str) {
        if self.incoming != Incoming::Failed {
            frame::write_goaway(out, self.last_stream, code, reason);
            self.incoming = Incoming::Failed;
        }
    }

    /// Asks the client for a sign of life.
    pub fn write_ping(&self, out: &mut Vec<u8>) {
        frame::write(out, frame::PING, 0, 0, &ALIVE_PING);
    }

    /// Gives memory back that a burst of streams has left behind.
    pub fn shrink(&mut self) {
        self.streams.shrink();
        self.remembered.shrink_to_fit();
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.streams.heap_bytes()
            + self.decoder.heap_bytes()
            + self.block.as_ref().map_or(0, |block| size_of::<Block>() + block.bytes.capacity())
            + self.pending_settings.capacity() * size_of::<Local>()
            + self.remembered.capacity() * size_of::<u32>()
    }
}

impl Default for Http2 {
    fn default() -> Self {
        Self::new()
    }
}
