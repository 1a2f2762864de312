//! What the service does to one stream of a connection.
//!
//! HTTP/1.1 has one stream, and does not look at the slot.
//!
//! Must not know: the service.

use super::http2::SERVICE_AT_FAULT;
use super::{Connection, Environment, Slot, Stage, Upgrade, is_responding};
use crate::proto::BodyLength;
use crate::proto::http1::ResponseState;
use crate::proto::http2::ErrorCode;
use crate::proto::websocket::{MessageKind, WebSocket};

/// One stream of a connection, to be answered on. What a service does there returns `false` where it makes
/// no sense at that stage.
pub struct Answers<'a> {
    connection: &'a mut Connection,
    slot: Slot,
    environment: &'a Environment<'a>,
    out: &'a mut Vec<u8>,
}

impl Connection {
    /// To answer on a stream: what must be sent is appended to `out`.
    pub fn answers<'a>(
        &'a mut self,
        slot: Slot,
        environment: &'a Environment<'_>,
        out: &'a mut Vec<u8>,
    ) -> Answers<'a> {
        Answers { connection: self, slot, environment, out }
    }

    /// The protocol's own number of a stream; 0 in HTTP/1.1.
    pub fn stream_id(&self, slot: Slot) -> u64 {
        match &self.stage {
            Stage::Http2(stack) => u64::from(stack.machine.stream_id(slot.index())),
            _ => 0,
        }
    }

    /// Where the stream of that number is, while it lives.
    pub fn slot_of(&self, stream_id: u64) -> Option<Slot> {
        match &self.stage {
            Stage::Http2(stack) => {
                let id = u32::try_from(stream_id).ok()?;
                stack.machine.slot_of(id).map(Slot::new)
            }
            _ => (stream_id == 0).then_some(Slot::ONLY),
        }
    }

    /// Bytes that a stream may still queue, where its connection may queue `free`.
    pub fn room(&self, slot: Slot, environment: &Environment<'_>, free: usize) -> usize {
        match &self.stage {
            Stage::Http2(stack) => {
                let most = stack.machine.buffer_bound(environment.http2.stream_buffer_bytes);
                free.min(most.saturating_sub(stack.machine.buffered(slot.index())))
            }
            _ => free,
        }
    }

    /// True if at least half of what a stream may queue is free.
    pub fn has_room(&self, slot: Slot, environment: &Environment<'_>) -> bool {
        match &self.stage {
            Stage::Http2(stack) => {
                let most = stack.machine.buffer_bound(environment.http2.stream_buffer_bytes);
                stack.machine.buffered(slot.index()) <= most / 2
            }
            _ => true,
        }
    }

    /// True when the response is finished, so that its session can go.
    pub fn is_exchange_over(&self, slot: Slot) -> bool {
        match &self.stage {
            Stage::Http1(machine) => !is_responding(machine),
            Stage::Http2(stack) => stack.machine.is_exchange_over(slot.index()),
            Stage::WebSocket(_) | Stage::Tunnel { .. } => false,
            Stage::Ending => true,
        }
    }

    /// True while the service owes the head of a response.
    pub fn is_response_due(&self, slot: Slot) -> bool {
        match &self.stage {
            Stage::Http1(machine) => machine.response_state() == ResponseState::Pending,
            Stage::Http2(stack) => stack.machine.is_response_due(slot.index()),
            _ => false,
        }
    }

    fn after_response(&mut self) {
        if let Stage::Http1(machine) = &self.stage
            && !is_responding(machine)
            && !machine.keep_alive()
        {
            self.end();
        }
    }

    /// To be called when the input has been worked through, or a session has been called: after the
    /// peer's FIN nothing follows the last response, and after a farewell nothing the last stream.
    pub fn after_input(&mut self) {
        self.after_input_but(false);
    }

    /// Like [`Connection::after_input`]; `has_more`: input that was taken out may yet yield something.
    pub fn after_input_but(&mut self, has_more: bool) {
        let is_over = match &self.stage {
            Stage::Http1(machine) => {
                // Pipelined requests that came before the FIN are answered, too.
                self.is_end_reached
                    && !is_responding(machine)
                    && self.pending.is_empty()
                    && !has_more
            }
            Stage::Http2(stack) => stack.machine.is_done(),
            Stage::WebSocket(_) | Stage::Tunnel { .. } | Stage::Ending => false,
        };
        if is_over {
            self.end();
        }
    }
}

impl Answers<'_> {
    /// A whole response.
    pub fn respond(&mut self, status: u16, headers: &[(&str, &[u8])], body: &[u8]) -> bool {
        let (slot, out) = (self.slot.index(), &mut *self.out);
        match &mut self.connection.stage {
            Stage::Http1(machine) => {
                let done = machine.respond(out, status, headers, body, self.environment.date);
                self.connection.after_response();
                done.is_ok()
            }
            Stage::Http2(stack) => {
                let lent = self.environment.http2();
                stack.machine.respond(slot, out, status, headers, body, &lent).is_ok()
            }
            _ => false,
        }
    }

    /// Head of a response.
    pub fn start_response(
        &mut self,
        status: u16,
        headers: &[(&str, &[u8])],
        length: BodyLength,
    ) -> bool {
        let (slot, out) = (self.slot.index(), &mut *self.out);
        match &mut self.connection.stage {
            Stage::Http1(machine) => {
                let date = self.environment.date;
                machine.start_response(out, status, headers, length, date).is_ok()
            }
            Stage::Http2(stack) => {
                let lent = self.environment.http2();
                stack.machine.start_response(slot, out, status, headers, length, &lent).is_ok()
            }
            _ => false,
        }
    }

    /// A piece of the response body.
    pub fn write_body(&mut self, bytes: &[u8]) -> bool {
        match &mut self.connection.stage {
            Stage::Http1(machine) => machine.write_body(self.out, bytes).is_ok(),
            Stage::Http2(stack) => {
                let (slot, now_ms) = (self.slot.index(), self.environment.now_ms);
                stack.machine.write_body(slot, self.out, bytes, now_ms).is_ok()
            }
            _ => false,
        }
    }

    /// End of the response body, with fields behind it where there are any and its framing allows that.
    pub fn finish_response(&mut self, trailers: &[(&str, &[u8])]) -> bool {
        match &mut self.connection.stage {
            Stage::Http1(machine) => {
                let done = machine.finish_response_with(self.out, trailers);
                self.connection.after_response();
                done.is_ok()
            }
            Stage::Http2(stack) => {
                let slot = self.slot.index();
                stack.machine.finish_response_with(slot, self.out, trailers).is_ok()
            }
            _ => false,
        }
    }

    /// An interim response (RFC 9110 §15.2).
    pub fn inform(&mut self, status: u16, headers: &[(&str, &[u8])]) -> bool {
        match &mut self.connection.stage {
            Stage::Http1(machine) => machine.inform(self.out, status, headers).is_ok(),
            Stage::Http2(stack) => {
                stack.machine.inform(self.slot.index(), self.out, status, headers).is_ok()
            }
            _ => false,
        }
    }

    /// Asks the client for the body that it announced with Expect: 100-continue (RFC 9110 §10.1.1).
    pub fn send_continue(&mut self) {
        match &mut self.connection.stage {
            Stage::Http1(machine) => machine.send_continue(self.out),
            Stage::Http2(stack) => stack.machine.send_continue(self.slot.index(), self.out),
            _ => {}
        }
    }

    /// Switches to a protocol that the service speaks by itself: [`super::Event::Tunnel`] and
    /// [`Answers::write_tunnel`] from now on. HTTP/2 switches one stream, on which an extended CONNECT
    /// has asked for that protocol.
    pub fn tunnel(&mut self, protocol: &str, headers: &[(&str, &[u8])]) -> bool {
        match &mut self.connection.stage {
            Stage::Http1(machine) => {
                let done = machine.upgrade(self.out, protocol, headers).is_ok();
                if done {
                    self.connection.stage = Stage::Tunnel { half_closed: false, end_told: false };
                }
                done
            }
            Stage::Http2(stack) => {
                let (slot, lent) = (self.slot.index(), self.environment.http2());
                stack.machine.accept_tunnel(slot, self.out, headers, &lent).is_ok()
            }
            _ => false,
        }
    }

    /// Bytes of a tunnel.
    pub fn write_tunnel(&mut self, bytes: &[u8]) -> bool {
        match &mut self.connection.stage {
            Stage::Tunnel { half_closed: false, .. } => self.out.extend_from_slice(bytes),
            Stage::Http2(stack) if stack.is_open_passage(self.slot) => {
                return self.write_body(bytes);
            }
            _ => return false,
        }
        true
    }

    /// A tunnel ends in good order: behind what was written comes the end of the connection, or of the
    /// stream.
    pub fn finish_tunnel(&mut self) -> bool {
        match &mut self.connection.stage {
            Stage::Tunnel { .. } => self.connection.end(),
            Stage::Http2(stack) if stack.is_passage(self.slot) => {
                stack.machine.end_tunnel(self.slot.index(), self.out, self.environment.now_ms);
            }
            _ => return false,
        }
        true
    }

    /// Our direction of a tunnel ends behind what was written; the client's goes on until
    /// [`Answers::finish_tunnel`]. To say so twice changes nothing.
    pub fn half_close_tunnel(&mut self) -> bool {
        match &mut self.connection.stage {
            Stage::Tunnel { half_closed, .. } => *half_closed = true,
            Stage::Http2(stack) if stack.is_passage(self.slot) => {
                stack.half_close(self.slot, self.environment, self.out);
            }
            _ => return false,
        }
        true
    }

    /// The rest of the response, or of the tunnel, will not come: what was sent is flushed, and the end
    /// of the connection tells the peer; in HTTP/2 that of the stream.
    pub fn abort(&mut self) {
        match &mut self.connection.stage {
            Stage::Http2(stack) => {
                // RFC 8441 §5: what a reset is to a connection.
                let is_passage = stack.is_passage(self.slot);
                let code = if is_passage { ErrorCode::Cancel } else { ErrorCode::Internal };
                stack.machine.reset_stream(self.slot.index(), code, self.out);
            }
            _ => self.connection.end(),
        }
    }

    /// Takes no further input, or takes it again: for a service that has no room for a body. A stream of
    /// HTTP/2 is held by its window, and still gets what that lets in.
    pub fn hold_input(&mut self, is_held: bool) {
        match &mut self.connection.stage {
            Stage::Http2(stack) => {
                let lent = self.environment.http2();
                stack.machine.hold(self.slot.index(), is_held, self.out, &lent);
            }
            _ => self.connection.is_input_held = is_held,
        }
    }

    /// Switches to WebSocket.
    pub fn accept_websocket(&mut self, upgrade: &Upgrade, subprotocol: Option<&str>) -> bool {
        match &mut self.connection.stage {
            Stage::Http1(machine) => {
                if upgrade.write_response(machine, self.out, subprotocol).is_err() {
                    return false;
                }
                self.connection.stage = Stage::WebSocket(WebSocket::new(upgrade.deflate()));
                true
            }
            Stage::Http2(stack) => {
                stack.accept_websocket(self.slot, self.environment, self.out, upgrade, subprotocol)
            }
            _ => false,
        }
    }

    /// A WebSocket message.
    pub fn send_message(&mut self, kind: MessageKind, payload: &[u8]) -> bool {
        match &mut self.connection.stage {
            Stage::WebSocket(machine) if !machine.close_sent() => {
                let threshold = self.environment.websocket.deflate_threshold_bytes;
                machine.write_message(self.out, kind, payload, threshold);
                true
            }
            Stage::Http2(stack) => {
                stack.send_message(self.slot, self.environment, self.out, kind, payload)
            }
            _ => false,
        }
    }

    /// Starts the close handshake; the peer's answer, or a deadline, ends the WebSocket.
    pub fn close_websocket(&mut self, code: u16, reason: &str) -> bool {
        match &mut self.connection.stage {
            Stage::WebSocket(machine) => {
                if !machine.close_sent() {
                    machine.write_close(self.out, Some(code), reason);
                }
                true
            }
            Stage::Http2(stack) => {
                stack.close_websocket(self.slot, self.environment.now_ms, self.out, code, reason)
            }
            _ => false,
        }
    }

    /// The service broke its exchange: the client gets a 500 where that is still possible, a WebSocket 1011.
    /// HTTP/2 loses one stream by it, HTTP/1.1 the connection.
    pub fn fail(&mut self) {
        let is_told = self.connection.is_response_due(self.slot)
            && self.respond(500, &[], b"500: the service is at fault\n");
        match &mut self.connection.stage {
            Stage::Http2(_) if is_told => {}
            Stage::Http2(stack) => stack.fail(self.slot, self.environment, self.out),
            _ => {
                self.close_websocket(1011, SERVICE_AT_FAULT);
                self.connection.end();
            }
        }
    }
}
