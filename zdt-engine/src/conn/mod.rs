//! The protocol stack of one client connection: HTTP/1.1, then perhaps WebSocket.
//!
//! A [`Connection`] takes received bytes, yields [`Event`]s for the service and appends what must be
//! sent to a vector of the caller's. It answers by itself what no service wants to see: pings,
//! close frames, malformed requests, time-outs. It holds the bytes that no machine could use yet.
//!
//! The caller (the worker) owns the socket, the send queue, the clock and the session.
//!
//! Must not know: I/O, the clock (time is an argument, in milliseconds of any monotonic clock),
//! randomness, the service.

mod deadline;
mod persist;
mod request;
mod slot;
mod transport;

use crate::config::{Limits, WebSocketOptions};
use crate::proto::http1::{self, Http1, ResponseState};
use crate::proto::websocket::{self, MessageKind, WebSocket};
use crate::proto::{Input, Payload};

pub use deadline::{Overdue, Progress};
pub use persist::{KNOWN_SECTIONS, RestoreError};
pub use request::{Head, Upgrade};
pub use slot::Slot;
pub use transport::{TAG_TLS, TAG_TLS_INCOMING, Transport};

use deadline::Waiting;

/// What a connection needs to know about its surroundings, lent for each call.
#[derive(Clone, Copy)]
pub struct Environment<'a> {
    /// Bounds.
    pub limits: &'a Limits,
    /// WebSocket options.
    pub websocket: &'a WebSocketOptions,
    /// Now.
    pub now_ms: u64,
    /// The Date header's value (RFC 9110 §6.6.1).
    pub date: &'a [u8],
}

impl Environment<'_> {
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
    /// Nothing more will come for the service: a close handshake or an error. The connection ends
    /// by itself once its output is flushed.
    Ended,
}

enum Stage {
    Http1(Http1),
    WebSocket(WebSocket),
    /// Bytes are passed on both ways, whatever they mean.
    Tunnel,
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
    /// How the receiving direction ended.
    pub receive_end: ReceiveEnd,
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
            receive_end: ReceiveEnd::Open,
            send_is_shut: false,
        }
    }

    /// An idle WebSocket without compression, for benches and tests of what is above.
    pub fn new_websocket(now_ms: u64) -> Self {
        Self {
            stage: Stage::WebSocket(WebSocket::new(None)),
            waiting: Waiting::SignOfLife,
            ..Self::new(now_ms)
        }
    }

    /// Name of the protocol that is spoken, for status and metrics.
    pub fn protocol(&self) -> &'static str {
        match &self.stage {
            Stage::Http1(_) | Stage::Ending => "http1",
            Stage::WebSocket(_) => "websocket",
            Stage::Tunnel => "tunnel",
        }
    }

    /// True once nothing but the flush of the output is left to do.
    pub fn is_ending(&self) -> bool {
        matches!(self.stage, Stage::Ending)
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
            Stage::WebSocket(_) | Stage::Tunnel | Stage::Ending => true,
        }
    }

    /// Takes no further input, or takes it again: for a service that has no room for a body.
    pub fn hold_input(&mut self, is_held: bool) {
        self.is_input_held = is_held;
    }

    /// See [`Connection::hold_input`].
    pub fn is_input_held(&self) -> bool {
        self.is_input_held && !self.is_ending()
    }

    /// True if [`Connection::next_event`] may yield something without further bytes from the peer: the
    /// end of a request is an event of its own, also where its last byte has been consumed.
    pub fn has_events_due(&self) -> bool {
        self.is_end_due() || !self.pending.is_empty()
    }

    fn is_end_due(&self) -> bool {
        matches!(&self.stage, Stage::Http1(machine) if machine.is_end_due())
    }

    /// True unless what is pending must wait for the response in progress.
    pub fn can_go_on(&self) -> bool {
        self.pending.is_empty() || self.is_end_due() || self.wants_input()
    }

    /// Consumes input up to the next event. `None`: what is left needs more bytes, or must wait for
    /// the response in progress.
    pub fn next_event<'b>(
        &mut self,
        input: &mut Input<'b>,
        environment: &Environment<'_>,
        out: &mut Vec<u8>,
    ) -> Option<(Slot, Event<'b>)> {
        if self.is_input_held() {
            return None;
        }
        let event = match &mut self.stage {
            Stage::Http1(_) => self.next_http1(input, environment, out),
            Stage::WebSocket(_) => self.next_websocket(input, environment, out),
            Stage::Tunnel if input.is_empty() => None,
            Stage::Tunnel => Some(Event::Tunnel(input.take_all())),
            Stage::Ending => {
                input.take_all();
                None
            }
        };
        event.map(|event| (Slot::ONLY, event))
    }

    fn next_http1<'b>(
        &mut self,
        input: &mut Input<'b>,
        environment: &Environment<'_>,
        out: &mut Vec<u8>,
    ) -> Option<Event<'b>> {
        let Stage::Http1(machine) = &mut self.stage else { unreachable!("checked by the caller") };
        match machine.next_event(input, &environment.http1_limits()) {
            Ok(None) => None,
            Ok(Some(http1::Event::Body(bytes))) => Some(Event::Body(bytes)),
            Ok(Some(http1::Event::End)) => Some(Event::BodyEnd),
            Ok(Some(http1::Event::Request(request))) => {
                match request::wanted_upgrade(&request, environment.websocket) {
                    Ok(upgrade) => Some(Event::Request(Head::Http1(request), upgrade)),
                    Err(refusal) => {
                        let body = format!("{}: {}\n", refusal.status, refusal.reason);
                        machine.close_after_response();
                        let _ = machine.respond(
                            out,
                            refusal.status,
                            refusal.headers,
                            body.as_bytes(),
                            environment.date,
                        );
                        self.end();
                        Some(Event::Ended)
                    }
                }
            }
            Err(error) => {
                machine.error_response(out, &error, environment.date);
                self.end();
                Some(Event::Ended)
            }
        }
    }

    fn next_websocket<'b>(
        &mut self,
        input: &mut Input<'b>,
        environment: &Environment<'_>,
        out: &mut Vec<u8>,
    ) -> Option<Event<'b>> {
        let Stage::WebSocket(machine) = &mut self.stage else { unreachable!("checked by caller") };
        let limits = websocket::Limits { max_message_bytes: environment.limits.max_message_bytes };
        loop {
            match machine.next_event(input, &limits) {
                Ok(None) => return None,
                Ok(Some(websocket::Event::Message { kind, payload })) => {
                    if machine.close_sent() {
                        continue; // RFC 6455 §1.4: after our close nobody waits for data
                    }
                    return Some(Event::Message { kind, payload });
                }
                Ok(Some(websocket::Event::Ping(payload))) => machine.write_pong(out, &payload),
                Ok(Some(websocket::Event::Pong(_))) => {}
                Ok(Some(websocket::Event::Close { code, .. })) => {
                    if !machine.close_sent() {
                        machine.write_close(out, code, "");
                    }
                    self.end();
                    return Some(Event::Ended);
                }
                Err(error) => {
                    if !machine.close_sent() {
                        machine.write_close(out, Some(error.close_code), error.reason);
                    }
                    self.end();
                    return Some(Event::Ended);
                }
            }
        }
    }

    /// The peer has ended its direction. True: the service must be told that this is the end.
    ///
    /// In HTTP/1.1 a client may send FIN behind its request and still read the response (RFC 9112
    /// §9.6); a WebSocket without a close frame is over (RFC 6455 §7.1.1).
    pub fn on_receive_end(&mut self, end: ReceiveEnd) -> bool {
        self.receive_end = end;
        let goes_on = match (&self.stage, end) {
            (Stage::Http1(machine), ReceiveEnd::Fin) => is_responding(machine),
            // A tunnel's directions end one by one.
            (Stage::Tunnel, ReceiveEnd::Fin) => true,
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
        self.receive_end == ReceiveEnd::Fin
            && !self.is_input_held
            && matches!(&self.stage, Stage::Http1(machine)
                if is_responding(machine) && machine.wants_input())
    }

    /// For a graceful stop: the response in progress, or the next one, is the last.
    pub fn close_after_response(&mut self) {
        if let Stage::Http1(machine) = &mut self.stage {
            machine.close_after_response();
        }
    }

    /// From now on: flush, shut down, wait for the peer's end, close.
    pub fn end(&mut self) {
        self.stage = Stage::Ending;
        self.pending = Vec::new();
    }

    // ---- Streams. HTTP/1.1 has one, and does not look at the slot.

    /// The protocol's own number of a stream; 0 in HTTP/1.1.
    pub fn stream_id(&self, _slot: Slot) -> u64 {
        0
    }

    /// Where the stream of that number is, while it lives.
    pub fn slot_of(&self, stream_id: u64) -> Option<Slot> {
        (stream_id == 0).then_some(Slot::ONLY)
    }

    /// Bytes that a stream may still queue, where its connection may queue `free`.
    pub fn room(&self, _slot: Slot, free: usize) -> usize {
        free
    }

    // ---- What the service does. `None`/`false` where it makes no sense in this stage.

    /// A whole response.
    pub fn respond(
        &mut self,
        _slot: Slot,
        environment: &Environment<'_>,
        out: &mut Vec<u8>,
        status: u16,
        headers: &[(&str, &[u8])],
        body: &[u8],
    ) -> bool {
        let Stage::Http1(machine) = &mut self.stage else { return false };
        let done = machine.respond(out, status, headers, body, environment.date).is_ok();
        self.after_response();
        done
    }

    /// Head of a response.
    pub fn start_response(
        &mut self,
        _slot: Slot,
        environment: &Environment<'_>,
        out: &mut Vec<u8>,
        status: u16,
        headers: &[(&str, &[u8])],
        length: http1::BodyLength,
    ) -> bool {
        let Stage::Http1(machine) = &mut self.stage else { return false };
        machine.start_response(out, status, headers, length, environment.date).is_ok()
    }

    /// A piece of the response body.
    pub fn write_body(&mut self, _slot: Slot, out: &mut Vec<u8>, bytes: &[u8]) -> bool {
        let Stage::Http1(machine) = &mut self.stage else { return false };
        machine.write_body(out, bytes).is_ok()
    }

    /// End of the response body.
    pub fn finish_response(&mut self, _slot: Slot, out: &mut Vec<u8>) -> bool {
        let Stage::Http1(machine) = &mut self.stage else { return false };
        let finished = machine.finish_response(out).is_ok();
        self.after_response();
        finished
    }

    /// An interim response (RFC 9110 §15.2).
    pub fn inform(
        &mut self,
        _slot: Slot,
        out: &mut Vec<u8>,
        status: u16,
        headers: &[(&str, &[u8])],
    ) -> bool {
        let Stage::Http1(machine) = &mut self.stage else { return false };
        machine.inform(out, status, headers).is_ok()
    }

    /// End of the response body, with fields behind it where its framing allows that.
    pub fn finish_response_with(
        &mut self,
        _slot: Slot,
        out: &mut Vec<u8>,
        trailers: &[(&str, &[u8])],
    ) -> bool {
        let Stage::Http1(machine) = &mut self.stage else { return false };
        let finished = machine.finish_response_with(out, trailers).is_ok();
        self.after_response();
        finished
    }

    /// Switches to a protocol that the service speaks by itself: [`Event::Tunnel`] and
    /// [`Connection::write_tunnel`] from now on.
    pub fn tunnel(
        &mut self,
        _slot: Slot,
        out: &mut Vec<u8>,
        protocol: &str,
        headers: &[(&str, &[u8])],
    ) -> bool {
        let Stage::Http1(machine) = &mut self.stage else { return false };
        if machine.upgrade(out, protocol, headers).is_err() {
            return false;
        }
        self.stage = Stage::Tunnel;
        true
    }

    /// Bytes of a tunnel.
    pub fn write_tunnel(&mut self, _slot: Slot, out: &mut Vec<u8>, bytes: &[u8]) -> bool {
        let is_tunnel = matches!(self.stage, Stage::Tunnel);
        if is_tunnel {
            out.extend_from_slice(bytes);
        }
        is_tunnel
    }

    /// The rest of the response, or of the tunnel, will not come: what was sent is flushed, and the end
    /// of the connection tells the peer.
    pub fn abort(&mut self, _slot: Slot) {
        self.end();
    }

    /// Asks the client for the body that it announced with Expect: 100-continue (RFC 9110 §10.1.1).
    pub fn send_continue(&mut self, _slot: Slot, out: &mut Vec<u8>) {
        if let Stage::Http1(machine) = &mut self.stage {
            machine.send_continue(out);
        }
    }

    /// True when the exchange is over in both directions, so that its session can go.
    pub fn is_exchange_over(&self, _slot: Slot) -> bool {
        match &self.stage {
            Stage::Http1(machine) => !is_responding(machine),
            Stage::WebSocket(_) | Stage::Tunnel => false,
            Stage::Ending => true,
        }
    }

    /// True while the service owes the head of a response.
    pub fn is_response_due(&self, _slot: Slot) -> bool {
        matches!(&self.stage, Stage::Http1(machine)
            if machine.response_state() == ResponseState::Pending)
    }

    fn after_response(&mut self) {
        if let Stage::Http1(machine) = &self.stage
            && !is_responding(machine)
            && !machine.keep_alive()
        {
            self.end();
        }
    }

    /// To be called when the input has been worked through: after the peer's FIN nothing follows the
    /// last response.
    pub fn after_input(&mut self) {
        if let Stage::Http1(machine) = &self.stage
            && self.receive_end != ReceiveEnd::Open
            && !is_responding(machine)
            // Pipelined requests that came before the FIN are answered, too.
            && self.pending.is_empty()
        {
            self.end();
        }
    }

    /// Switches to WebSocket.
    pub fn accept_websocket(
        &mut self,
        _slot: Slot,
        out: &mut Vec<u8>,
        upgrade: Upgrade,
        subprotocol: Option<&str>,
    ) -> bool {
        let Stage::Http1(machine) = &mut self.stage else { return false };
        if upgrade.write_response(machine, out, subprotocol).is_err() {
            return false;
        }
        self.stage = Stage::WebSocket(WebSocket::new(upgrade.deflate()));
        true
    }

    /// A WebSocket message.
    pub fn send_message(
        &mut self,
        _slot: Slot,
        environment: &Environment<'_>,
        out: &mut Vec<u8>,
        kind: MessageKind,
        payload: &[u8],
    ) -> bool {
        let Stage::WebSocket(machine) = &mut self.stage else { return false };
        if machine.close_sent() {
            return false;
        }
        machine.write_message(out, kind, payload, environment.websocket.deflate_threshold_bytes);
        true
    }

    /// Starts the close handshake; the peer's answer, or a deadline, ends the connection.
    pub fn close_websocket(
        &mut self,
        _slot: Slot,
        out: &mut Vec<u8>,
        code: u16,
        reason: &str,
    ) -> bool {
        let Stage::WebSocket(machine) = &mut self.stage else { return false };
        if !machine.close_sent() {
            machine.write_close(out, Some(code), reason);
        }
        true
    }

    /// The service broke its exchange: the client gets a 500 where that is still possible.
    pub fn fail_exchange(&mut self, slot: Slot, environment: &Environment<'_>, out: &mut Vec<u8>) {
        if self.is_response_due(slot) {
            self.respond(slot, environment, out, 500, &[], b"500: the service is at fault\n");
        }
        self.close_websocket(slot, out, 1011, "the service is at fault");
        self.end();
    }
}
