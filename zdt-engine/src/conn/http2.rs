//! HTTP/2 with its WebSockets: frames become events of streams, and what the service does becomes
//! frames.
//!
//! Must not know: I/O, the clock, sessions.

use super::request::{self, Head, Upgrade};
use super::tunnel::{Fed, Tunnel};
use super::{Environment, Event, Slot};
use crate::proto::Input;
use crate::proto::hpack::Fields;
use crate::proto::http2::{self, ErrorCode, Http2, Request};
use crate::proto::websocket::{MessageKind, WebSocket};

/// Why a WebSocket is closed with 1011.
pub(super) const SERVICE_AT_FAULT: &str = "the service is at fault";

/// How long a stream that we have ended waits for the client's end.
const LINGER_MS: u64 = 2_000;

/// RFC 9110 §15.5.9.
const TIMED_OUT: u16 = 408;

/// See the module.
pub(super) struct Http2Stack {
    pub(super) machine: Http2,
    /// WebSockets by slot.
    pub(super) tunnels: Vec<Option<Box<Tunnel>>>,
    /// When the streams are looked at next: none of them is overdue before.
    pub(super) check_due_ms: u64,
    /// A WebSocket has inflated enough for one call; more of its bytes are in the input.
    pub(super) is_sliced: bool,
    /// To be told that it may open no further streams, as soon as it has been greeted.
    pub(super) is_last: bool,
}

impl Environment<'_> {
    pub(super) fn http2_limits(&self) -> http2::Limits {
        http2::Limits {
            max_head_bytes: self.limits.max_head_bytes,
            max_target_bytes: self.limits.max_target_bytes,
            max_header_count: self.limits.max_header_count,
            max_body_bytes: self.limits.max_body_bytes,
        }
    }

    pub(super) fn http2(&self) -> http2::Environment<'_> {
        let options = self.http2;
        http2::Environment {
            limits: self.http2_limits(),
            options: http2::Options {
                max_streams: options.max_concurrent_streams,
                stream_window_bytes: options.stream_window_bytes,
                connection_window_bytes: options.connection_window_bytes,
                stream_buffer_bytes: options.stream_buffer_bytes,
                reset_burst: options.reset_burst,
                resets_per_second: options.resets_per_second,
                control_burst: options.control_burst,
                control_per_second: options.control_per_second,
            },
            now_ms: self.now_ms,
            date: self.date,
        }
    }
}

impl Http2Stack {
    /// See [`super::Connection::held_bytes`].
    pub(super) fn held_bytes(&self) -> usize {
        let tunnels: usize = self
            .open_tunnels()
            .map(|(_, tunnel)| tunnel.kept.len() + tunnel.socket.held_bytes())
            .sum();
        self.machine.heap_bytes() + tunnels
    }

    /// `is_last`: the worker drains, so that what the client sends at once is the last.
    pub(super) fn new(is_last: bool) -> Self {
        Self {
            machine: Http2::new(),
            tunnels: Vec::new(),
            check_due_ms: u64::MAX,
            is_last,
            is_sliced: false,
        }
    }

    fn tunnel(&mut self, slot: usize) -> Option<&mut Tunnel> {
        self.tunnels.get_mut(slot)?.as_deref_mut()
    }

    fn remove_tunnel(&mut self, slot: usize) {
        if let Some(place) = self.tunnels.get_mut(slot) {
            *place = None;
        }
    }

    /// WebSockets that are open.
    pub(super) fn open_tunnels(&self) -> impl Iterator<Item = (usize, &Tunnel)> {
        self.tunnels
            .iter()
            .enumerate()
            .filter_map(|(slot, tunnel)| tunnel.as_deref().map(|tunnel| (slot, tunnel)))
    }

    /// Consumes input up to the next event. An error is the end of the connection.
    pub(super) fn next_event<'e, 'b: 'e>(
        &mut self,
        input: &mut Input<'b>,
        environment: &Environment<'_>,
        out: &mut Vec<u8>,
        fields: &'e mut Fields,
    ) -> Result<Option<(Slot, Event<'e>)>, http2::Error> {
        let lent = environment.http2();
        self.is_sliced = false;
        if !self.machine.has_begun() {
            self.machine.begin(out, &lent);
            if self.is_last {
                self.machine.say_farewell(out);
            }
        }
        loop {
            let event = match self.machine.next_event(input, out, fields, &lent)? {
                None => return Ok(None),
                Some(http2::Event::Request { slot, parts }) => {
                    match request::wanted_tunnel(
                        &Request::new(fields, parts),
                        environment.websocket,
                    ) {
                        Ok(upgrade) => {
                            let head = Head::Http2(Request::new(fields, parts));
                            return Ok(Some((Slot::new(slot), Event::Request(head, upgrade))));
                        }
                        Err(refusal) => {
                            let body = format!("{}: {}\n", refusal.status, refusal.reason);
                            let (status, headers) = (refusal.status, refusal.headers);
                            let body = body.as_bytes();
                            let _ = self.machine.respond(slot, out, status, headers, body, &lent);
                        }
                    }
                    continue;
                }
                Some(http2::Event::Data { slot, bytes }) => {
                    if self.tunnel(slot).is_none() {
                        let body = input.take(bytes);
                        self.machine.took(bytes, out, &lent);
                        let is_passage = self.machine.is_live_tunnel(slot);
                        let event =
                            if is_passage { Event::Tunnel(body) } else { Event::Body(body) };
                        return Ok(Some((Slot::new(slot), event)));
                    }
                    match self.feed(slot, bytes, input, environment, out) {
                        Some(event) => event,
                        None if self.is_sliced => return Ok(None),
                        None => continue,
                    }
                }
                Some(http2::Event::End { slot }) if self.tunnel(slot).is_some() => {
                    // RFC 6455 §7.1.1: without a close frame it is over, too.
                    self.remove_tunnel(slot);
                    let _ = self.machine.finish_response(slot, out);
                    (Slot::new(slot), Event::Ended)
                }
                Some(http2::Event::End { slot }) if self.machine.is_live_tunnel(slot) => {
                    (Slot::new(slot), Event::TunnelEnd)
                }
                Some(http2::Event::End { slot }) => (Slot::new(slot), Event::BodyEnd),
                Some(http2::Event::Reset { slot }) => {
                    self.remove_tunnel(slot);
                    (Slot::new(slot), Event::Ended)
                }
            };
            return Ok(Some(event));
        }
    }

    /// Gives a WebSocket what comes next, and answers what needs no service.
    fn feed<'b>(
        &mut self,
        slot: usize,
        bytes: usize,
        input: &mut Input<'b>,
        environment: &Environment<'_>,
        out: &mut Vec<u8>,
    ) -> Option<(Slot, Event<'b>)> {
        let lent = environment.http2();
        let tunnel = self.tunnels.get_mut(slot)?.as_deref_mut()?;
        let (taken, fed) = tunnel.feed(input, bytes, environment.limits.max_message_bytes);
        self.machine.took(taken, out, &lent);
        match fed {
            Fed::Nothing => {
                // What there is of its frame would have been taken else.
                self.is_sliced =
                    taken < bytes && tunnel.kept.is_empty() && tunnel.socket.is_inside();
                None
            }
            Fed::Message { kind, payload } => {
                Some((Slot::new(slot), Event::Message { kind, payload }))
            }
            Fed::Ping(payload) => {
                self.write(slot, out, environment.now_ms, |socket, out| {
                    socket.write_pong(out, &payload);
                });
                None
            }
            Fed::Over { code, reason } => {
                self.write(slot, out, environment.now_ms, |socket, out| {
                    if !socket.close_sent() {
                        socket.write_close(out, code, reason);
                    }
                });
                self.remove_tunnel(slot);
                self.machine.end_tunnel(slot, out, environment.now_ms);
                Some((Slot::new(slot), Event::Ended))
            }
        }
    }

    /// Lets a WebSocket write straight into a frame.
    fn write(
        &mut self,
        slot: usize,
        out: &mut Vec<u8>,
        now_ms: u64,
        write: impl FnOnce(&mut WebSocket, &mut Vec<u8>),
    ) {
        let start = self.machine.begin_data(out);
        if let Some(tunnel) = self.tunnels.get_mut(slot).and_then(|tunnel| tunnel.as_deref_mut()) {
            write(&mut tunnel.socket, out);
        }
        self.machine.end_data(slot, out, start, now_ms);
    }

    // ---- What the service does.

    pub(super) fn accept_websocket(
        &mut self,
        slot: Slot,
        environment: &Environment<'_>,
        out: &mut Vec<u8>,
        upgrade: &Upgrade,
        subprotocol: Option<&str>,
    ) -> bool {
        let index = slot.index();
        let headers = upgrade.headers(subprotocol);
        if self.machine.accept_tunnel(index, out, &headers, &environment.http2()).is_err() {
            return false;
        }
        self.put_tunnel(slot, Tunnel::new(upgrade.deflate()));
        true
    }

    /// True for a stream whose extended CONNECT was accepted and that has not ended, if no WebSocket of ours
    /// is on it: its bytes are passed on as they are.
    pub(super) fn is_passage(&self, slot: Slot) -> bool {
        self.machine.is_live_tunnel(slot.index())
            && !matches!(self.tunnels.get(slot.index()), Some(Some(_)))
    }

    /// True for such a stream whose client can still be sent something.
    pub(super) fn is_open_passage(&self, slot: Slot) -> bool {
        self.is_passage(slot) && self.machine.is_open_tunnel(slot.index())
    }

    /// Ends our direction of a passage.
    pub(super) fn half_close(
        &mut self,
        slot: Slot,
        environment: &Environment<'_>,
        out: &mut Vec<u8>,
    ) {
        self.machine.half_close_tunnel(slot.index(), out, environment.now_ms);
        // From now on its client is waited for.
        let due_ms = environment.now_ms.saturating_add(environment.limits.stall_timeout_ms);
        self.check_due_ms = self.check_due_ms.min(due_ms);
    }

    /// The streams of which that is true.
    pub(super) fn passages(&self) -> impl Iterator<Item = Slot> {
        self.machine.slots().map(Slot::new).filter(|slot| self.is_passage(*slot))
    }

    pub(super) fn put_tunnel(&mut self, slot: Slot, tunnel: Tunnel) {
        if self.tunnels.len() <= slot.index() {
            self.tunnels.resize_with(slot.index() + 1, || None);
        }
        self.tunnels[slot.index()] = Some(Box::new(tunnel));
    }

    pub(super) fn send_message(
        &mut self,
        slot: Slot,
        environment: &Environment<'_>,
        out: &mut Vec<u8>,
        kind: MessageKind,
        payload: &[u8],
    ) -> bool {
        if self.tunnel(slot.index()).is_none_or(|tunnel| tunnel.socket.close_sent()) {
            return false;
        }
        let threshold = environment.websocket.deflate_threshold_bytes;
        self.write(slot.index(), out, environment.now_ms, |socket, out| {
            socket.write_message(out, kind, payload, threshold);
        });
        true
    }

    pub(super) fn close_websocket(
        &mut self,
        slot: Slot,
        now_ms: u64,
        out: &mut Vec<u8>,
        code: u16,
        reason: &str,
    ) -> bool {
        let Some(tunnel) = self.tunnel(slot.index()) else { return false };
        if !tunnel.socket.close_sent() {
            self.write(slot.index(), out, now_ms, |socket, out| {
                socket.write_close(out, Some(code), reason);
            });
            self.machine.touch(slot.index(), now_ms);
            // It is waited for less long than others.
            self.check_due_ms = now_ms;
        }
        true
    }

    /// Lets every stream that is not held send as much again as has been taken from it.
    pub(super) fn open_windows(&mut self, environment: &Environment<'_>, out: &mut Vec<u8>) {
        self.machine.open_windows(out, &environment.http2());
    }

    /// The service broke its exchange, and it is too late for a status.
    pub(super) fn fail(&mut self, slot: Slot, environment: &Environment<'_>, out: &mut Vec<u8>) {
        let index = slot.index();
        if self.close_websocket(slot, environment.now_ms, out, 1011, SERVICE_AT_FAULT) {
            self.remove_tunnel(index);
            self.machine.end_tunnel(index, out, environment.now_ms);
        } else if !self.machine.is_exchange_over(index) {
            self.machine.reset_stream(index, ErrorCode::Internal, out);
        }
    }

    /// Frames what the windows have let out.
    pub(super) fn flush(&mut self, out: &mut Vec<u8>, room: usize, environment: &Environment<'_>) {
        self.machine.flush(out, room, &environment.http2());
    }

    /// Tells the client our settings if they are others than those of whoever had the connection before.
    pub(super) fn announce(&mut self, out: &mut Vec<u8>, environment: &Environment<'_>) {
        if self.machine.has_begun() {
            self.machine.announce(out, &environment.http2());
        }
    }

    // ---- Deadlines.

    /// When the client must have acknowledged our settings.
    fn settings_due_ms(&self, environment: &Environment<'_>) -> u64 {
        let timeout_ms = environment.http2.settings_timeout_ms;
        self.machine
            .settings_since_ms()
            .map_or(u64::MAX, |since_ms| since_ms.saturating_add(timeout_ms))
    }

    /// When the streams or the settings have to be looked at; `u64::MAX` is never.
    pub(super) fn due_ms(&self, environment: &Environment<'_>) -> u64 {
        self.check_due_ms.min(self.settings_due_ms(environment))
    }

    /// A client that has not acknowledged our settings in time is told so (RFC 9113 §6.5.3). True: it was
    /// the end.
    pub(super) fn end_for_settings(
        &mut self,
        environment: &Environment<'_>,
        out: &mut Vec<u8>,
    ) -> bool {
        let is_overdue = self.settings_due_ms(environment) <= environment.now_ms;
        if is_overdue {
            let reason = "SETTINGS were not acknowledged in time";
            self.machine.end(out, ErrorCode::SettingsTimeout, reason);
        }
        is_overdue
    }

    /// When this stream's client must have done something.
    fn stream_due_ms(&self, slot: usize, environment: &Environment<'_>) -> Option<u64> {
        let tunnel = self.tunnels.get(slot).and_then(|tunnel| tunnel.as_deref());
        let (since_ms, after_ms) = match self.machine.waits_since(slot) {
            Some((since_ms, true)) => (since_ms, LINGER_MS),
            _ if tunnel.is_some_and(|tunnel| tunnel.socket.close_sent()) => {
                (self.machine.since_ms(slot), environment.websocket.pong_timeout_ms)
            }
            Some((since_ms, false)) => (since_ms, environment.limits.stall_timeout_ms),
            None => return None,
        };
        Some(since_ms.saturating_add(after_ms))
    }

    /// Makes sure that the streams are looked at in time.
    pub(super) fn arm_check(&mut self, environment: &Environment<'_>) {
        if self.machine.take_lingerer() {
            // It is waited for less long than all others.
            self.check_due_ms = self.check_due_ms.min(environment.now_ms + LINGER_MS);
        }
        if self.check_due_ms == u64::MAX && self.machine.stream_count() > 0 {
            let due = self.machine.slots().filter_map(|slot| self.stream_due_ms(slot, environment));
            self.check_due_ms = due.min().unwrap_or(u64::MAX);
        }
    }

    /// A stream whose client has done nothing for too long, or has given no more than a trickle: it is
    /// reset.
    pub(super) fn overdue_stream(
        &mut self,
        environment: &Environment<'_>,
        out: &mut Vec<u8>,
    ) -> Option<(Slot, Option<u16>)> {
        if self.check_due_ms > environment.now_ms {
            return None;
        }
        let is_overdue = |slot: &usize| {
            self.stream_due_ms(*slot, environment).is_some_and(|due| due <= environment.now_ms)
        };
        let overdue = self.machine.slots().find(is_overdue);
        match overdue {
            Some(slot) => {
                if self.refuse_overdue(slot, environment, out) {
                    return Some((Slot::new(slot), Some(TIMED_OUT)));
                }
                let lingers = matches!(self.machine.waits_since(slot), Some((_, true)));
                let code = if lingers { ErrorCode::NoError } else { ErrorCode::Cancel };
                self.remove_tunnel(slot);
                self.machine.reset_stream(slot, code, out);
                Some((Slot::new(slot), None))
            }
            None => {
                self.check_due_ms = u64::MAX;
                self.arm_check(environment);
                None
            }
        }
    }

    /// The rest of a body has not come: 408, if nothing has been answered, and the stream lingers.
    fn refuse_overdue(
        &mut self,
        slot: usize,
        environment: &Environment<'_>,
        out: &mut Vec<u8>,
    ) -> bool {
        if !self.machine.is_response_due(slot) {
            return false;
        }
        self.machine.touch(slot, environment.now_ms);
        let headers: [(&str, &[u8]); 1] = [("content-type", b"text/plain")];
        let body = b"408 Request Timeout: the request did not arrive in time\n";
        self.machine.respond(slot, out, TIMED_OUT, &headers, body, &environment.http2()).is_ok()
    }

    /// Nothing has happened for a while: what can be made again is freed.
    pub(super) fn release_memory(&mut self) {
        for tunnel in self.tunnels.iter_mut().flatten() {
            tunnel.socket.release_contexts();
        }
        let used = self.tunnels.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        self.tunnels.truncate(used);
        self.tunnels.shrink_to_fit();
        self.machine.shrink();
    }
}
