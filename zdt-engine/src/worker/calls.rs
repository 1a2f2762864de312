//! Events to the service and to sessions, and what follows from their answers.
//!
//! Every call goes the same way: the stream's session is taken from its place, lent an [`Exchange`]
//! with what it may do, and put back unless its exchange is over.
//!
//! Must not know: sockets, sends in flight, timers' order.

use std::collections::HashMap;
use std::sync::Arc;

use crate::conn::{Connection, Environment, Event, Head, Progress, Slot, Upgrade};
use crate::control::{SERVICE_TIME_BUCKETS, WorkerStatus};
use crate::proto::websocket::MessageKind;
use crate::proto::{Input, Payload};
use crate::service::{self, Context, Headers, Message, Outcome, Service, Session, WorkerInfo};
use crate::sys;

use super::Worker;
use super::access_log::{AccessLog, LogEntry};
use super::entry::Entry;
use super::exchange::Exchange;
use super::inbox::Inbox;
use super::parking::Parking;
use super::work::{EVENT_WORK, REQUEST_WORK, TURN_WORK};

/// What calls need of the worker, apart from the connection.
struct Calls<'a> {
    environment: Environment<'a>,
    worker: WorkerInfo,
    inbox: &'a Arc<Inbox>,
    status: &'a mut WorkerStatus,
    pushable: &'a mut HashMap<u64, usize>,
    log: Option<&'a mut AccessLog>,
    parking: &'a mut Parking,
    /// What has been done for the connection in this turn.
    work: u32,
}

/// A stream that is called, and what its answer is added to.
struct Target<'a> {
    key: usize,
    entry: &'a mut Entry,
    slot: Slot,
    out: &'a mut Vec<u8>,
}

impl Calls<'_> {
    /// Calls the service about a new request, which may leave a session.
    fn request(
        &mut self,
        target: Target<'_>,
        head: &Head<'_>,
        upgrade: Option<Box<Upgrade>>,
        service: &mut dyn Service,
    ) {
        self.status.requests += 1;
        // A name and a certificate are rare, and belong to the entry, which the call needs as a whole.
        let about = target.entry.transport.about();
        let tls = target.entry.transport.version().map(|version| service::TlsInfo {
            version,
            server_name: about.as_ref().and_then(|about| about.server_name.as_deref()),
            client_certificate: about
                .as_ref()
                .and_then(|about| about.client_certificate.as_deref()),
        });
        let seen = service::Request {
            method: head.method(),
            path: head.path(),
            query: head.query(),
            headers: &HttpHeaders(head),
            is_websocket: upgrade.is_some(),
            has_body: head.has_body(),
            peer: target.entry.peer,
            tls,
        };
        if self.log.is_some() {
            target.entry.places.at(target.slot).log = Some(LogEntry::new(head));
        }
        let expects_continue = head.expects_continue();
        let key = target.key;
        self.call(target, |_, exchange| {
            exchange.upgrade = upgrade;
            exchange.expects_continue = expects_continue;
            if fault_point!("request.fail") {
                exchange.misuse = Some("fault point");
                return None;
            }
            if fault_point!("request.slow") {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            match service.on_request(&seen, &mut Context::new(exchange)) {
                Outcome::Done => {
                    if exchange.connection.is_response_due(exchange.slot) {
                        exchange.misuse = Some("a request left without an answer");
                    }
                    None
                }
                Outcome::Session(session) => {
                    if exchange.expects_continue
                        && exchange.connection.is_response_due(exchange.slot)
                    {
                        exchange.answers().send_continue();
                    }
                    Some(session)
                }
                Outcome::Resume { parked, otherwise } => {
                    let at = (key, exchange.id, exchange.slot);
                    let now_ms = exchange.environment.now_ms;
                    Some(exchange.parking.ask(parked, otherwise, at, now_ms))
                }
            }
        });
    }

    /// Calls a stream's session, if it has one.
    fn session(
        &mut self,
        target: Target<'_>,
        call: impl FnOnce(&mut dyn Session, &mut Context<'_>),
    ) {
        if target.entry.places.get(target.slot).is_none_or(|place| place.session.is_none()) {
            return;
        }
        self.call(target, |session, exchange| {
            let mut session = session?;
            call(session.as_mut(), &mut Context::new(exchange));
            Some(session)
        });
    }

    fn call(
        &mut self,
        target: Target<'_>,
        call: impl FnOnce(Option<Box<dyn Session>>, &mut Exchange<'_>) -> Option<Box<dyn Session>>,
    ) {
        let Target { key, entry, slot, out } = target;
        let queued = entry.queued();
        let place = entry.places.at(slot);
        let session = place.session.take();
        let mut exchange = Exchange {
            connection: &mut entry.connection,
            slot,
            environment: self.environment,
            out,
            queued,
            timer_due_ms: &mut place.timer_due_ms,
            wants_room: &mut place.wants_room,
            upgrade: None,
            expects_continue: false,
            key,
            id: entry.id,
            worker: self.worker,
            inbox: self.inbox,
            ticket: &mut place.ticket,
            parking: &mut *self.parking,
            is_pushable: false,
            messages_sent: 0,
            has_failed: false,
            status: None,
            body_bytes: 0,
            misuse: None,
        };
        let began_ns = is_timed(self.status).then(sys::monotonic_ns);
        place.session = call(session, &mut exchange);
        if let Some(began_ns) = began_ns {
            note_service_time(self.status, sys::monotonic_ns().saturating_sub(began_ns));
        }
        self.status.errors += u64::from(exchange.has_failed || exchange.misuse.is_some());
        self.status.messages_sent += exchange.messages_sent;
        // Compressing costs by the bytes that go in.
        self.work =
            self.work.saturating_add(u32::try_from(exchange.body_bytes).unwrap_or(u32::MAX));
        if exchange.is_pushable {
            self.pushable.insert(entry.id, key);
        }
        if let Some(log) = &mut place.log {
            log.note(exchange.status, exchange.body_bytes);
        }
        if let Some(misuse) = exchange.misuse {
            tracing::error!(connection = entry.id, "the service is at fault: {misuse}");
            if let Some(log) = &mut place.log {
                log.note(Some(500), 0);
            }
            self.log_ended(entry, slot);
            let session = entry.places.at(slot).clear();
            if let Some(mut session) = session {
                session.on_close();
            }
            entry.connection.answers(slot, &self.environment, out).fail();
        } else if place.session.is_none() || entry.connection.is_exchange_over(slot) {
            self.log_ended(entry, slot);
            entry.places.at(slot).clear();
        }
    }

    /// The access log gets the exchange of a stream.
    fn log_ended(&mut self, entry: &mut Entry, slot: Slot) {
        if let Some(log) = &mut self.log
            && let Some(logged) = entry.places.at(slot).log.take()
        {
            log.add(&logged, entry.peer, entry.id, self.environment.now_ms);
        }
    }
}

/// The first ones, so that a canary with few requests can be judged, and then every sixteenth: the
/// clock is not free.
fn is_timed(status: &WorkerStatus) -> bool {
    let count = status.requests + status.messages_received;
    count < 1_024 || count.is_multiple_of(16)
}

fn note_service_time(status: &mut WorkerStatus, took_ns: u64) {
    let took_us = took_ns / 1_000;
    let bucket = (u64::BITS - took_us.leading_zeros()) as usize;
    status.service_us.resize(SERVICE_TIME_BUCKETS, 0);
    status.service_us[bucket.min(SERVICE_TIME_BUCKETS - 1)] += 1;
}

impl Worker {
    /// Parses input and calls the service and the sessions about it, as long as there is room for
    /// their answers, and for so much work in one turn. False: it has come to the end of that.
    pub(super) fn run_events(
        &mut self,
        key: usize,
        input: &mut Input<'_>,
        out: &mut Vec<u8>,
    ) -> bool {
        let Self {
            entries,
            service,
            configure,
            date,
            now_ms,
            info,
            status,
            inbox,
            pushable,
            access_log,
            fields,
            parking,
            turn,
            ..
        } = self;
        let entry = &mut entries[key];
        let config = &configure.config;
        let environment = Environment::new(config, *now_ms, date.value());
        let mut calls = Calls {
            environment,
            worker: *info,
            inbox,
            status,
            pushable,
            parking,
            log: access_log.as_mut(),
            work: entry.worked.in_turn(*turn),
        };
        let queued = entry.queued();
        let (mut is_enough, mut needs_bytes) = (false, false);
        while out.len() + queued <= config.limits.send_queue_bytes as usize {
            is_enough = calls.work >= TURN_WORK;
            if is_enough {
                break;
            }
            let made_before = out.len();
            let Some((slot, event)) = entry.connection.next_event(input, &environment, out, fields)
            else {
                is_enough = entry.connection.is_sliced();
                needs_bytes = !is_enough;
                break;
            };
            calls.work = calls.work.saturating_add(EVENT_WORK);
            let target = Target { key, entry: &mut *entry, slot, out: &mut *out };
            match event {
                Event::Message { kind, payload } => {
                    calls.status.messages_received += 1;
                    if let Payload::Owned(inflated) = &payload {
                        calls.work = calls.work.saturating_add(inflated.len() as u32);
                    }
                    let message = match kind {
                        MessageKind::Binary => Message::Binary(&payload),
                        // The machine has validated it; a second look costs little for short texts.
                        MessageKind::Text => match simdutf8::basic::from_utf8(&payload) {
                            Ok(text) => Message::Text(text),
                            Err(_) => unreachable!("the machine yields valid UTF-8 only"),
                        },
                    };
                    calls.session(target, |session, context| session.on_message(message, context));
                }
                Event::Body(bytes) => {
                    calls.session(target, |session, context| session.on_body(bytes, context));
                }
                Event::Tunnel(bytes) => {
                    calls.session(target, |session, context| session.on_tunnel(bytes, context));
                }
                Event::TunnelEnd => {
                    calls.session(target, |session, context| session.on_half_close(context));
                }
                Event::BodyEnd => {
                    calls.session(target, |session, context| session.on_body_end(context));
                }
                Event::Request(head, upgrade) => {
                    calls.work = calls.work.saturating_add(REQUEST_WORK);
                    calls.request(target, &head, upgrade, service.as_mut());
                }
                Event::AllEnded => {
                    for mut session in entry.places.clear_all() {
                        session.on_close();
                    }
                }
                Event::Ended => {
                    calls.log_ended(entry, slot);
                    if let Some(mut session) = entry.places.at(slot).clear() {
                        session.on_close();
                    }
                }
            }
            let made = out.len().saturating_sub(made_before);
            calls.work = calls.work.saturating_add(made as u32);
        }
        entry.worked.set(*turn, calls.work);
        if entry.connection.has_buffered() {
            let room = config.limits.send_queue_bytes as usize;
            let room = room.saturating_sub(out.len() + queued);
            entry.connection.flush(&environment, out, room);
        }
        entry.connection.after_input_but(!needs_bytes && !input.is_empty());
        !is_enough
    }

    /// Calls a stream's session outside of any input.
    pub(super) fn with_session(
        &mut self,
        key: usize,
        slot: Slot,
        call: impl FnOnce(&mut dyn Session, &mut Context<'_>),
    ) {
        let Self {
            entries,
            configure,
            date,
            now_ms,
            info,
            status,
            inbox,
            pushable,
            parking,
            access_log,
            ..
        } = self;
        let entry = &mut entries[key];
        if entry.places.get(slot).is_none_or(|place| place.session.is_none()) {
            return;
        }
        let mut out = self.buffers.take();
        let queued = entry.queued();
        let was_blocked = !entry.connection.wants_input();
        let environment = Environment::new(&configure.config, *now_ms, date.value());
        let mut calls = Calls {
            environment,
            worker: *info,
            inbox,
            status,
            pushable,
            parking,
            log: access_log.as_mut(),
            work: 0,
        };
        calls.session(Target { key, entry: &mut *entry, slot, out: &mut out }, call);
        entry.connection.after_input();
        entry.connection.on_progress(&environment, Progress::None, !out.is_empty() || queued > 0);
        let goes_on = was_blocked
            && !entry.paused
            && entry.connection.wants_input()
            && entry.connection.has_events_due();
        self.queue_output(key, out);
        if goes_on {
            // The response before them is finished: pipelined requests go on.
            self.process_pending(key, false);
        } else {
            self.settle(key);
        }
    }

    /// Does something to a connection outside of any input and of any session.
    pub(super) fn with_connection(
        &mut self,
        key: usize,
        call: impl FnOnce(&mut Connection, &Environment<'_>, &mut Vec<u8>),
    ) {
        let mut out = self.buffers.take();
        let entry = &mut self.entries[key];
        let environment = Environment::new(&self.configure.config, self.now_ms, self.date.value());
        call(&mut entry.connection, &environment, &mut out);
        entry.connection.after_input();
        let has_unsent = !out.is_empty() || entry.queued() > 0;
        entry.connection.on_progress(&environment, Progress::None, has_unsent);
        self.send_output(key, out);
    }

    /// Calls every session of a connection.
    pub(super) fn with_every_session(
        &mut self,
        key: usize,
        mut call: impl FnMut(&mut dyn Session, &mut Context<'_>),
    ) {
        let mut from = Slot::ONLY;
        while let Some(entry) = self.entries.get(key)
            && let Some(slot) = entry.places.with_session(from)
        {
            from = slot.next();
            self.with_session(key, slot, &mut call);
        }
    }
}

struct HttpHeaders<'a, 'b>(&'a Head<'b>);

impl Headers for HttpHeaders<'_, '_> {
    fn first(&self, name: &str) -> Option<&[u8]> {
        self.0.header(name)
    }

    fn each(&self, visit: &mut dyn FnMut(&str, &[u8])) {
        self.0.each_header(visit);
    }
}
