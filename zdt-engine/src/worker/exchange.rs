//! What a service does to its connection: [`Actions`] for one stream.
//!
//! Must not know: the ring.

use std::sync::Arc;

use crate::conn::{Answers, Connection, Environment, Slot, Upgrade};
use crate::proto::{self, websocket::MessageKind};
use crate::service::{Actions, BodyLength, ConnectionId, ParkId, PushSink, StreamId, WorkerInfo};

use super::inbox::Inbox;
use super::parking::{Parking, Ticket};

/// Parts of an entry that a service may change, during one call.
pub struct Exchange<'a> {
    pub connection: &'a mut Connection,
    /// The stream.
    pub slot: Slot,
    pub environment: Environment<'a>,
    /// Output of this call.
    pub out: &'a mut Vec<u8>,
    /// Bytes queued before this call.
    pub queued: usize,
    pub timer_due_ms: &'a mut u64,
    pub wants_room: &'a mut bool,
    /// Present during `on_request` of a request that asks for a WebSocket.
    pub upgrade: Option<Box<Upgrade>>,
    /// The client waits for 100 (Continue) before it sends the body.
    pub expects_continue: bool,
    /// Index of the entry.
    pub key: usize,
    pub id: ConnectionId,
    pub worker: WorkerInfo,
    pub inbox: &'a Arc<Inbox>,
    pub ticket: &'a mut Option<Box<Ticket>>,
    pub parking: &'a mut Parking,
    /// Set when the service asked for a [`crate::service::Pusher`].
    pub is_pushable: bool,
    /// Messages sent in this call, for the counters.
    pub messages_sent: u64,
    /// The service says that it has failed: 500 and above, or 1011.
    pub has_failed: bool,
    /// The status that it answered with in this call, for the access log.
    pub status: Option<u16>,
    /// Bytes of body and of messages that it sent in this call.
    pub body_bytes: u64,
    /// What the service did that makes no sense.
    pub misuse: Option<&'static str>,
}

impl Exchange<'_> {
    /// To answer on the stream.
    pub fn answers(&mut self) -> Answers<'_> {
        self.connection.answers(self.slot, &self.environment, self.out)
    }

    fn check(&mut self, done: bool, misuse: &'static str) {
        if !done && !self.connection.is_ending() {
            self.misuse = Some(misuse);
        }
    }
}

impl Actions for Exchange<'_> {
    fn respond(&mut self, status: u16, headers: &[(&str, &[u8])], body: &[u8]) {
        self.has_failed |= status >= 500;
        self.status = Some(status);
        self.body_bytes += body.len() as u64;
        let done = self.answers().respond(status, headers, body);
        self.check(done, "a response where none is due");
    }

    fn start_response(&mut self, status: u16, headers: &[(&str, &[u8])], length: BodyLength) {
        self.has_failed |= status >= 500;
        self.status = Some(status);
        if std::mem::take(&mut self.expects_continue) && status < 300 {
            // The service will stream: it wants the body now, and 100 must precede the final head.
            self.answers().send_continue();
        }
        let length = match length {
            BodyLength::Known(bytes) => proto::BodyLength::Known(bytes),
            BodyLength::Unknown => proto::BodyLength::Unknown,
        };
        let done = self.answers().start_response(status, headers, length);
        self.check(done, "a response where none is due");
    }

    fn write_body(&mut self, bytes: &[u8]) {
        self.body_bytes += bytes.len() as u64;
        let done = self.answers().write_body(bytes);
        self.check(done, "body bytes outside a response, or more than announced");
    }

    fn finish_response(&mut self, trailers: &[(&str, &[u8])]) {
        let done = self.answers().finish_response(trailers);
        self.check(done, "the end of a response that has not begun, or too early");
    }

    fn inform(&mut self, status: u16, headers: &[(&str, &[u8])]) {
        let done = self.answers().inform(status, headers);
        self.check(done, "an interim response where none is due");
    }

    fn tunnel(&mut self, protocol: &str, headers: &[(&str, &[u8])]) {
        self.status = Some(101);
        let done = self.answers().tunnel(protocol, headers);
        self.check(done, "a switch of protocols that nobody asked for");
    }

    fn write_tunnel(&mut self, bytes: &[u8]) {
        self.body_bytes += bytes.len() as u64;
        let done = self.answers().write_tunnel(bytes);
        self.check(done, "bytes for a tunnel where there is none");
    }

    fn finish_tunnel(&mut self) {
        let done = self.answers().finish_tunnel();
        self.check(done, "the end of a tunnel where there is none");
    }

    fn half_close_tunnel(&mut self) {
        let done = self.answers().half_close_tunnel();
        self.check(done, "the end of a tunnel where there is none");
    }

    fn abort(&mut self) {
        self.answers().abort();
    }

    fn hold_input(&mut self, is_held: bool) {
        self.answers().hold_input(is_held);
    }

    fn accept_websocket(&mut self, subprotocol: Option<&str>) {
        self.status = Some(101);
        let done = match self.upgrade.take() {
            Some(upgrade) => self.answers().accept_websocket(&upgrade, subprotocol),
            None => false,
        };
        self.check(done, "a WebSocket accepted that nobody asked for");
    }

    fn add_header(&mut self, name: &str, value: &[u8]) {
        match &mut self.upgrade {
            Some(upgrade) => upgrade.add_header(name, value),
            None => self.check(false, "a header field for a WebSocket that nobody asked for"),
        }
    }

    fn park(&mut self) -> Option<String> {
        let (ticket, token) = self.parking.ticket()?;
        *self.ticket = Some(Box::new(ticket));
        Some(token)
    }

    fn parked(&mut self, token: &[u8]) -> Option<ParkId> {
        self.parking.check(token)
    }

    fn send_message(&mut self, text: bool, payload: &[u8]) {
        let kind = if text { MessageKind::Text } else { MessageKind::Binary };
        // A message after the close handshake began is dropped: the service could not know.
        if self.answers().send_message(kind, payload) {
            self.messages_sent += 1;
            self.body_bytes += payload.len() as u64;
        }
    }

    fn close_websocket(&mut self, code: u16, reason: &str) {
        self.has_failed |= code == 1011;
        let done = self.answers().close_websocket(code, reason);
        self.check(done, "a WebSocket closed where there is none");
    }

    fn set_timer(&mut self, after_ms: Option<u64>) {
        *self.timer_due_ms =
            after_ms.map_or(u64::MAX, |after_ms| self.environment.now_ms.saturating_add(after_ms));
    }

    fn room(&self) -> usize {
        let bound = self.environment.limits.send_queue_bytes as usize;
        self.connection.room(
            self.slot,
            &self.environment,
            bound.saturating_sub(self.queued + self.out.len()),
        )
    }

    fn want_room(&mut self) {
        *self.wants_room = true;
    }

    fn push_sink(&mut self) -> Arc<dyn PushSink> {
        self.is_pushable = true;
        Arc::clone(self.inbox) as Arc<dyn PushSink>
    }

    fn place(&self) -> usize {
        self.key
    }

    fn connection(&self) -> ConnectionId {
        self.id
    }

    fn stream(&self) -> StreamId {
        self.connection.stream_id(self.slot)
    }

    fn worker(&self) -> WorkerInfo {
        self.worker
    }
}
