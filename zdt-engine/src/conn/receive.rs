//! From received bytes to events, whatever protocol they are in.
//!
//! Must not know: the service, the send queue.

use super::deadline::Waiting;
use super::http2::Http2Stack;
use super::request::{self, Head};
use super::{Connection, Environment, Event, Slot, Stage};
use crate::proto::Input;
use crate::proto::hpack::Fields;
use crate::proto::{http1, http2, websocket};

impl Connection {
    /// Consumes input up to the next event. `None`: what is left needs more bytes, or must wait for
    /// the response in progress, or for another call ([`Connection::is_sliced`]). `fields` is memory that HTTP/2 uses again for each request.
    pub fn next_event<'e, 'b: 'e>(
        &mut self,
        input: &mut Input<'b>,
        environment: &Environment<'_>,
        out: &mut Vec<u8>,
        fields: &'e mut Fields,
    ) -> Option<(Slot, Event<'e>)> {
        self.is_sliced = false;
        if self.is_input_held() {
            return None;
        }
        if self.is_fresh && environment.http2.enabled && !self.detect(input) {
            return None;
        }
        match &mut self.stage {
            Stage::Http1(_) => {
                self.next_http1(input, environment, out).map(|event| (Slot::ONLY, event))
            }
            Stage::WebSocket(_) => {
                self.next_websocket(input, environment, out).map(|event| (Slot::ONLY, event))
            }
            Stage::Http2(stack) => match stack.next_event(input, environment, out, fields) {
                Ok(event) => {
                    self.is_sliced = event.is_none() && stack.is_sliced;
                    event
                }
                Err(_) => {
                    // GOAWAY says why.
                    self.end();
                    Some((Slot::ONLY, Event::AllEnded))
                }
            },
            // Behind all that came before it.
            Stage::Tunnel { end_told, .. } if input.is_empty() => {
                let is_due = self.is_end_reached && !*end_told;
                *end_told |= is_due;
                is_due.then_some((Slot::ONLY, Event::TunnelEnd))
            }
            Stage::Tunnel { .. } => Some((Slot::ONLY, Event::Tunnel(input.take_all()))),
            Stage::Ending => {
                input.take_all();
                None
            }
        }
    }

    /// Before the first request: is this HTTP/2 by prior knowledge (RFC 9113 §3.3)? False: what has
    /// arrived may yet become its preface.
    fn detect(&mut self, input: &Input<'_>) -> bool {
        let Stage::Http1(machine) = &self.stage else { return true };
        let received = input.peek();
        let bytes = received.len().min(http2::PREFACE.len());
        if received[..bytes] != http2::PREFACE[..bytes] {
            self.is_fresh = false;
        } else if bytes < http2::PREFACE.len() {
            return false;
        } else {
            let is_last = !machine.keep_alive();
            self.is_fresh = false;
            self.stage = Stage::Http2(Box::new(Http2Stack::new(is_last)));
        }
        true
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
            Err(http1::Error::NotHttp)
                if environment.http2.enabled && self.waiting == Waiting::FirstHead =>
            {
                // RFC 9113 §3.4: an invalid preface may be answered by the end alone, and whoever sent it
                // speaks neither version.
                self.end();
                Some(Event::Ended)
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
                Ok(None) => {
                    self.is_sliced = machine.is_sliced(input);
                    return None;
                }
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
}
