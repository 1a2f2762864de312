//! The protocol stack of one client connection: HTTP/1.1, then perhaps WebSocket; or HTTP/2, whose
//! streams are requests and WebSockets.
//!
//! A [`Connection`] takes received bytes, yields [`Event`]s for the service and appends what must be
//! sent to a vector of the caller's. It answers by itself what no service wants to see: pings,
//! close frames, malformed requests, time-outs. It holds the bytes that no machine could use yet.
//!
//! The caller (the worker) owns the socket, the send queue, the clock and the session.
//!
//! Must not know: I/O, the clock (time is an argument, in milliseconds of any monotonic clock),
//! randomness, the service.

mod answers;
mod deadline;
mod http2;
mod persist;
mod persist_http2;
mod receive;
mod request;
mod slot;
mod transport;
mod tunnel;

use crate::config::{Http2Options, Limits, WebSocketOptions, WorkerConfig};
use crate::proto::Payload;
use crate::proto::http1::{self, Http1, ResponseState};
use crate::proto::websocket::{MessageKind, WebSocket};

pub use answers::Answers;
pub use deadline::{Overdue, Progress};
pub use persist::{JSON_CODECS, KNOWN_SECTIONS, RestoreError};
pub use request::{Head, Upgrade};
pub use slot::Slot;
pub use transport::{TAG_TLS, TAG_TLS_HELLO, TAG_TLS_INCOMING, Transport};

use deadline::Waiting;
use http2::Http2Stack;

/// What a connection needs to know about its surroundings, lent for each call.
#[derive(Clone, Copy)]
pub struct Environment<'a> {
    /// Bounds.
    pub limits: &'a Limits,
    /// WebSocket options.
    pub websocket: &'a WebSocketOptions,
    /// HTTP/2 options.
    pub http2: &'a Http2Options,
    /// Now.
    pub now_ms: u64,
    /// The Date header's value (RFC 9110 §6.6.1).
    pub date: &'a [u8],
}

impl<'a> Environment<'a> {
    /// Lends a worker's configuration.
    pub fn new(config: &'a WorkerConfig, now_ms: u64, date: &'a [u8]) -> Self {
        let WorkerConfig { limits, websocket, http2, .. } = config;
        Self { limits, websocket, http2, now_ms, date }
    }

    fn http1_limits(&self) -> http1::Limits {
        http1::Limits {
            max_head_bytes: self.limits.max_head_bytes,
            max_target_bytes: self.limits.max_target_bytes,
            max_header_count: self.limits.max_header_count,
            max_body_bytes: self.limits.max_body_bytes,
        }
    }
}

/// What happened on a stream of the connection.
#[derive(Debug)]
pub enum Event<'b> {
    /// A request head, and its correct wish for a WebSocket if it has one.
    Request(Head<'b>, Option<Box<Upgrade>>),
    /// A piece of the request body.
    Body(&'b [u8]),
    /// The request is complete.
    BodyEnd,
    /// A whole WebSocket message; text is valid UTF-8.
    Message {
        /// Text or binary.
        kind: MessageKind,
        /// The payload.
        payload: Payload<'b>,
    },
    /// Bytes of whatever is spoken after a switch of protocols.
    Tunnel(&'b [u8]),
    /// The client will send nothing more into the tunnel, and may go on receiving.
    TunnelEnd,
    /// Nothing more will come for the stream's session: a close handshake, a reset or an error.
    Ended,
    /// The connection ends by an error, and every stream with it.
    AllEnded,
}

enum Stage {
    Http1(Http1),
    WebSocket(WebSocket),
    /// Bytes are passed on both ways, whatever they mean.
    Tunnel {
        /// Our direction ends behind what is queued; the peer's goes on.
        half_closed: bool,
        /// The service knows that the peer's has ended.
        end_told: bool,
    },
    Http2(Box<Http2Stack>),
    /// Output is flushed, then the sending direction is shut down, then the peer's end is awaited;
    /// whatever it still sends is dropped.
    Ending,
}

/// How the receiving direction ended, once it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReceiveEnd {
    /// It has not.
    Open,
    /// The peer sent FIN.
    Fin,
    /// The socket reported this error number; it does so only once.
    Error(i32),
}

/// True while a request waits for its response, or for the rest of it.
fn is_responding(machine: &Http1) -> bool {
    matches!(machine.response_state(), ResponseState::Pending | ResponseState::Streaming)
}

/// One connection. See the module.
pub struct Connection {
    stage: Stage,
    /// Received and not consumed.
    pending: Vec<u8>,
    /// What the deadline is for, and since when it runs.
    waiting: Waiting,
    since_ms: u64,
    /// A WebSocket's last sign of life, or when it was pinged for want of one.
    alive_ms: u64,
    is_pinged: bool,
    /// The service takes no input for now.
    is_input_held: bool,
    /// The last call of [`Connection::next_event`] stopped because it had done enough.
    is_sliced: bool,
    /// Nothing has been received: which version of HTTP it is shows with the first bytes.
    is_fresh: bool,
    /// How the receiving direction ended, as its socket said it.
    pub receive_end: ReceiveEnd,
    /// Nothing is left between that end and what is pending here: it counts. Not saved: whoever goes on says so again.
    is_end_reached: bool,
    /// True once shutdown(SHUT_WR) was called.
    pub send_is_shut: bool,
}

impl Connection {
    /// A connection that was just accepted.
    pub fn new(now_ms: u64) -> Self {
        Self {
            stage: Stage::Http1(Http1::new()),
            pending: Vec::new(),
            waiting: Waiting::FirstHead,
            since_ms: now_ms,
            alive_ms: now_ms,
            is_pinged: false,
            is_input_held: false,
            is_sliced: false,
            is_fresh: true,
            receive_end: ReceiveEnd::Open,
            is_end_reached: false,
            send_is_shut: false,
        }
    }

    /// An idle WebSocket without compression, for benches and tests of what is above.
    pub fn new_websocket(now_ms: u64) -> Self {
        Self {
            stage: Stage::WebSocket(WebSocket::new(None)),
            waiting: Waiting::SignOfLife,
            is_fresh: false,
            ..Self::new(now_ms)
        }
    }

    /// Name of the protocol that is spoken, for status and metrics.
    pub fn protocol(&self) -> &'static str {
        match &self.stage {
            Stage::Http1(_) | Stage::Ending => "http1",
            Stage::WebSocket(_) => "websocket",
            Stage::Tunnel { .. } => "tunnel",
            Stage::Http2(stack) if stack.open_tunnels().next().is_some() => "http2-websocket",
            Stage::Http2(stack) if stack.passages().next().is_some() => "http2-tunnel",
            Stage::Http2(_) => "http2",
        }
    }

    /// True once nothing but the flush of the output is left to do.
    pub fn is_ending(&self) -> bool {
        matches!(self.stage, Stage::Ending)
    }

    /// True if our direction is to be shut down once the output is flushed.
    pub fn is_send_ending(&self) -> bool {
        matches!(self.stage, Stage::Ending | Stage::Tunnel { half_closed: true, .. })
    }

    /// True for an HTTP connection between two requests: a graceful stop may close it at once. Not
    /// before the first one: it may be on its way, and its client cannot know to ask again.
    pub fn is_idle_http(&self) -> bool {
        matches!(&self.stage, Stage::Http1(machine) if machine.is_idle())
            && self.pending.is_empty()
            && !matches!(self.waiting, Waiting::FirstHead)
    }

    /// Bytes that were received and wait for the response before them, or for what follows.
    pub fn pending(&self) -> &[u8] {
        &self.pending
    }

    /// What has arrived and cannot be used yet, inflated or not, and what waits for an HTTP/2 client's
    /// windows. The contexts of compression are not among it.
    pub fn held_bytes(&self) -> usize {
        let machine = match &self.stage {
            Stage::WebSocket(machine) => machine.held_bytes(),
            Stage::Http2(stack) => stack.held_bytes(),
            Stage::Http1(_) | Stage::Tunnel { .. } | Stage::Ending => 0,
        };
        self.pending.len() + machine
    }

    /// Keeps received bytes without looking at them.
    pub fn keep(&mut self, bytes: &[u8]) {
        if !self.is_ending() {
            self.pending.extend_from_slice(bytes);
        }
    }

    /// Takes the kept bytes, to be offered to [`Connection::next_event`] again; what that leaves goes
    /// back by [`Connection::put_back`].
    pub fn take_pending(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.pending)
    }

    /// Returns the buffer of [`Connection::take_pending`], of which the first `consumed` bytes are
    /// used up.
    pub fn put_back(&mut self, mut buffer: Vec<u8>, consumed: usize) {
        debug_assert!(self.pending.is_empty());
        if self.is_ending() || consumed == buffer.len() {
            return; // an empty vector holds no memory
        }
        buffer.drain(..consumed);
        if buffer.capacity() > 4 * buffer.len().max(64) {
            buffer.shrink_to_fit();
        }
        self.pending = buffer;
    }

    /// False while received bytes would only pile up: the worker then stops receiving.
    pub fn wants_input(&self) -> bool {
        match &self.stage {
            _ if self.is_input_held => false,
            Stage::Http1(machine) => machine.wants_input(),
            Stage::WebSocket(_) | Stage::Http2(_) | Stage::Tunnel { .. } | Stage::Ending => true,
        }
    }

    /// See [`Answers::hold_input`].
    pub fn is_input_held(&self) -> bool {
        self.is_input_held && !self.is_ending()
    }

    /// True if [`Connection::next_event`] yielded nothing because it had inflated enough for one call: the
    /// next one goes on. The input that it left is as if it had not arrived, so it may be frozen there.
    pub fn is_sliced(&self) -> bool {
        self.is_sliced
    }

    /// True if [`Connection::next_event`] may yield something without further bytes from the peer: the
    /// end of a request is an event of its own, also where its last byte has been consumed.
    pub fn has_events_due(&self) -> bool {
        self.is_end_due() || !self.pending.is_empty()
    }

    fn is_end_due(&self) -> bool {
        match &self.stage {
            Stage::Http1(machine) => machine.is_end_due(),
            Stage::Http2(stack) => stack.machine.is_end_due(),
            Stage::Tunnel { end_told, .. } => {
                self.is_end_reached && !end_told && self.pending.is_empty()
            }
            Stage::WebSocket(_) | Stage::Ending => false,
        }
    }

    /// True unless what is pending must wait for the response in progress.
    pub fn can_go_on(&self) -> bool {
        self.pending.is_empty() || self.is_end_due() || self.wants_input()
    }

    /// The peer has ended its direction, and all that came before is here. True: the service must be told that
    /// this is the end.
    ///
    /// In HTTP/1.1 a client may send FIN behind its request and still read the response (RFC 9112
    /// §9.6); a WebSocket without a close frame is over (RFC 6455 §7.1.1).
    pub fn on_receive_end(&mut self, end: ReceiveEnd) -> bool {
        (self.receive_end, self.is_end_reached) = (end, true);
        let goes_on = match (&self.stage, end) {
            (Stage::Http1(machine), ReceiveEnd::Fin) => is_responding(machine),
            // A tunnel's directions end one by one.
            (Stage::Tunnel { .. }, ReceiveEnd::Fin) => true,
            _ => false,
        };
        if !goes_on && !self.is_ending() {
            self.end();
            return true;
        }
        false
    }

    /// True if the request in progress lacks a part that cannot come any more (RFC 9112 §8). What is
    /// pending must have been offered to [`Connection::next_event`] before.
    pub fn is_cut_off(&self) -> bool {
        self.is_end_reached
            && self.receive_end == ReceiveEnd::Fin
            && !self.is_input_held
            && matches!(&self.stage, Stage::Http1(machine)
                if is_responding(machine) && machine.wants_input())
    }

    /// For a graceful stop: the response in progress, or the next one, is the last. In HTTP/2 the client
    /// is told to open no more streams; the connection ends with the last of them.
    pub fn close_after_response(&mut self, out: &mut Vec<u8>) {
        match &mut self.stage {
            Stage::Http1(machine) => machine.close_after_response(),
            Stage::Http2(stack) => stack.machine.say_farewell(out),
            Stage::WebSocket(_) | Stage::Tunnel { .. } | Stage::Ending => {}
        }
    }

    /// The streams that carry WebSockets.
    pub fn websockets(&self) -> Vec<Slot> {
        match &self.stage {
            Stage::WebSocket(_) => vec![Slot::ONLY],
            Stage::Http2(stack) => stack.open_tunnels().map(|(slot, _)| Slot::new(slot)).collect(),
            Stage::Http1(_) | Stage::Tunnel { .. } | Stage::Ending => Vec::new(),
        }
    }

    /// The streams whose bytes are passed on, whatever they mean.
    pub fn tunnels(&self) -> Vec<Slot> {
        match &self.stage {
            Stage::Tunnel { .. } => vec![Slot::ONLY],
            Stage::Http2(stack) => stack.passages().collect(),
            Stage::Http1(_) | Stage::WebSocket(_) | Stage::Ending => Vec::new(),
        }
    }

    /// True if that stream is one of [`Connection::tunnels`].
    pub fn is_tunnel(&self, slot: Slot) -> bool {
        match &self.stage {
            Stage::Tunnel { .. } => true,
            Stage::Http2(stack) => stack.is_passage(slot),
            Stage::Http1(_) | Stage::WebSocket(_) | Stage::Ending => false,
        }
    }

    /// The streams of HTTP/2, in the order of their ids.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        let stack = match &self.stage {
            Stage::Http2(stack) => Some(stack),
            _ => None,
        };
        stack.into_iter().flat_map(|stack| stack.machine.slots().map(Slot::new))
    }

    /// True for a connection that may carry more than one stream.
    pub fn is_multiplexed(&self) -> bool {
        matches!(&self.stage, Stage::Http2(_))
    }

    /// True if bytes of a stream wait for the client's windows, or for room in the send queue.
    pub fn has_buffered(&self) -> bool {
        matches!(&self.stage, Stage::Http2(stack) if stack.machine.has_buffered())
    }

    /// Adds as much of them as may go now, at most about `room` bytes.
    pub fn flush(&mut self, environment: &Environment<'_>, out: &mut Vec<u8>, room: usize) {
        if let Stage::Http2(stack) = &mut self.stage {
            stack.flush(out, room, environment);
        }
    }

    /// The connection goes on after a handoff, perhaps with other settings than before.
    pub fn on_resume(&mut self, environment: &Environment<'_>, out: &mut Vec<u8>) {
        if let Stage::Http2(stack) = &mut self.stage {
            stack.announce(out, environment);
        }
    }

    /// Streams that nobody holds may send as much again as has been taken from them: after a handoff no
    /// data may come that would bring it about.
    pub fn open_windows(&mut self, environment: &Environment<'_>, out: &mut Vec<u8>) {
        if let Stage::Http2(stack) = &mut self.stage {
            stack.open_windows(environment, out);
        }
    }

    /// From now on: flush, shut down, wait for the peer's end, close.
    pub fn end(&mut self) {
        self.stage = Stage::Ending;
        self.pending = Vec::new();
    }
}
