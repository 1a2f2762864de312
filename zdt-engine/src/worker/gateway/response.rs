//! From an upstream's bytes to the client: heads, bodies, trailers, tunnels.
//!
//! Must not know: sockets.

use super::agreement;
use super::core::Core;
use super::exchange::{Leaving, Stage};
use super::head;
use crate::proto::Input;
use crate::proto::http1::BodyKind;
use crate::proto::http1::client::{ClientEvent, ClientLimits, Response};
use crate::service::{BodyLength, Context};

/// Trailer fields of one response.
const MAX_TRAILERS: usize = 64;

/// What becomes of the link.
#[derive(Debug)]
pub enum Passed {
    /// It goes on.
    More,
    /// The response is complete.
    Complete,
    /// The client has no room: the rest of the input waits.
    Full,
    /// The upstream has broken the protocol.
    Broken(String),
}

impl Core {
    /// Passes on what can be passed on. The link has an exchange, and `context` is its client's.
    pub fn pass_on(
        &mut self,
        link: usize,
        input: &mut Input<'_>,
        context: &mut Context<'_>,
    ) -> Passed {
        let Some(index) = self.links[link].exchange else { return Passed::More };
        loop {
            // The end of a response is an event without bytes: nothing would bring it up again.
            if !input.is_empty() && context.room() == 0 {
                self.links[link].paused = true;
                context.want_room();
                self.end_begun_replay(index);
                return Passed::Full;
            }
            if self.exchanges[index].stage == Stage::Tunnel {
                self.exchanges[index].active_ms = self.now_ms;
                self.pass_through(index, input, context);
                return Passed::More;
            }
            if self.exchanges[index].stage == Stage::Failed {
                input.take_all();
                return Passed::More;
            }
            let event = self.links[link].machine.next_event(input, &ClientLimits::default());
            if matches!(event, Ok(Some(_))) {
                // A part of a head, or of a chunk's line, is none.
                self.exchanges[index].active_ms = self.now_ms;
            }
            match event {
                Ok(None) => {
                    self.end_begun_replay(index);
                    return Passed::More;
                }
                Ok(Some(ClientEvent::Interim(response))) => {
                    self.exchanges[index].never_repeat();
                    // The client has had its 100 from the gateway.
                    if response.status != 100 && self.exchanges[index].stage == Stage::Sent {
                        let Some(fields) = head::response_fields(&response) else { continue };
                        let allowed = |name: &str| !name.eq_ignore_ascii_case("keep-alive");
                        if fields.iter().all(|(name, _)| allowed(name)) {
                            context.inform(response.status, &fields);
                        }
                    }
                }
                Ok(Some(ClientEvent::Response(response))) => {
                    if let Err(why) = self.pass_head(index, &response, context) {
                        return Passed::Broken(why);
                    }
                }
                Ok(Some(ClientEvent::Body(bytes))) => context.write_body(bytes),
                Ok(Some(ClientEvent::Trailer(name, value))) => {
                    let trailers = &mut self.exchanges[index].trailers;
                    let is_framing =
                        ["content-length", "transfer-encoding", "keep-alive", "connection"]
                            .iter()
                            .any(|one| name.eq_ignore_ascii_case(one));
                    if trailers.len() < MAX_TRAILERS && !is_framing {
                        trailers.push((name.to_owned(), value.to_vec()));
                    }
                }
                Ok(Some(ClientEvent::End)) => {
                    if !input.is_empty() {
                        // More than was announced: the answer stands, the connection does not.
                        self.links[link].ended = true;
                        input.take_all();
                    }
                    self.finish(index, context);
                    return Passed::Complete;
                }
                Err(error) => return Passed::Broken(format!("broke the protocol: {error}")),
            }
        }
    }

    /// The upstream's end is the end of the response, too.
    pub fn finish(&mut self, index: usize, context: &mut Context<'_>) {
        let trailers = std::mem::take(&mut self.exchanges[index].trailers);
        context.hold_input(false);
        if trailers.is_empty() {
            return context.finish_response();
        }
        let trailers: Vec<(&str, &[u8])> =
            trailers.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
        context.finish_response_with(&trailers);
    }

    fn pass_head(
        &mut self,
        index: usize,
        response: &Response<'_>,
        context: &mut Context<'_>,
    ) -> Result<(), String> {
        let exchange = &mut self.exchanges[index];
        let sent = std::mem::take(&mut exchange.sent);
        exchange.is_kept = false;
        let is_reconnecting = exchange.stage == Stage::Reconnecting;
        if let Some(upstream) = exchange.upstream {
            self.table.upstreams[upstream].on_success();
        }
        self.recycle(sent);
        let exchange = &mut self.exchanges[index];
        let opening = exchange.tunnel.as_deref().map_or(&[][..], |tunnel| &tunnel.head);
        // Where the handshake is the client's own, the client checks it.
        let is_ours = is_reconnecting || exchange.stream != 0;
        if response.status == 101 && is_ours && !head::is_accepted(opening, response) {
            return Err("switched protocols, but its answer does not fit the handshake".to_owned());
        }
        if is_reconnecting {
            if response.status != 101 {
                return Err(format!(
                    "refused the WebSocket that was to go on there: {}",
                    response.status
                ));
            }
            let opening = exchange.tunnel.as_ref().map_or(&[][..], |tunnel| &tunnel.head);
            agreement::check(opening, response)?;
            exchange.stage = Stage::Tunnel;
            exchange.send_early();
            self.status.reconnected += 1;
            self.hold_input(index, false);
            self.send_later(index);
            self.end_replay(index);
            return Ok(());
        }
        let mut fields = head::response_fields(response).ok_or("has sent too many fields")?;
        if response.status == 101 {
            exchange.stage = Stage::Tunnel;
            exchange.is_answered = true;
            exchange.send_early();
            self.status.tunnels += 1;
            let agreed = agreement::Agreed::of(response, self.options.app.websockets);
            if let Some(tunnel) = &mut exchange.tunnel {
                agreed.put_into(&mut tunnel.head);
            }
            if exchange.stream != 0 {
                // RFC 8441 §5.
                let is_left_out = |name: &str| name.eq_ignore_ascii_case("sec-websocket-accept");
                fields.retain(|(name, _)| !is_left_out(name));
            }
            context.tunnel("websocket", &agreed.told(&fields));
            self.send_later(index);
            self.release_input(index);
            self.end_replay(index);
            return Ok(());
        }
        if !(200..600).contains(&response.status) {
            return Err(format!("answered with the status {}", response.status));
        }
        if exchange.awaits_tunnel() && response.status < 300 {
            // In HTTP/2 it would mean that there is a tunnel now.
            return Err(format!(
                "answered {} to a request for a WebSocket, instead of switching protocols",
                response.status
            ));
        }
        exchange.stage = Stage::Responding;
        exchange.is_answered = true;
        // An upgrade that is refused is an ordinary answer.
        exchange.tunnel = None;
        let length = match (response.body, response.announced) {
            (BodyKind::Known(bytes), _) | (BodyKind::None, Some(bytes)) => BodyLength::Known(bytes),
            (BodyKind::None, None) if matches!(response.status, 204 | 205 | 304) => {
                BodyLength::Known(0)
            }
            _ => BodyLength::Unknown,
        };
        context.start_response(response.status, &fields, length);
        Ok(())
    }

    fn pass_through(&mut self, index: usize, input: &mut Input<'_>, context: &mut Context<'_>) {
        if input.is_empty() {
            return;
        }
        let bytes = input.take_all();
        context.write_tunnel(bytes);
        let Some(tunnel) = &mut self.exchanges[index].tunnel else { return };
        tunnel.unanswered &= !tunnel.down.feed(bytes);
        if tunnel.leaving != Leaving::No {
            self.try_leave(index, context);
        }
    }

    /// A tunnel whose application is to end: closed with 1012, or taken to another one, where no frame
    /// is cut.
    pub fn try_leave(&mut self, index: usize, context: &mut Context<'_>) {
        let exchange = &mut self.exchanges[index];
        let has_ended = exchange.link.is_some_and(|link| self.links[link].end_seen);
        let Some(tunnel) = &mut exchange.tunnel else { return };
        match tunnel.leaving {
            // Its client has been told already.
            Leaving::Close if has_ended && exchange.stage == Stage::Tunnel => {
                exchange.stage = Stage::Failed;
                context.finish_tunnel();
            }
            // It ends by itself.
            _ if has_ended => {}
            Leaving::Close if tunnel.down.at_boundary() => {
                // RFC 6455 §5.5.1, status 1012: service restart.
                context.write_tunnel(&[0x88, 2, 0x03, 0xf4]);
                exchange.stage = Stage::Failed;
                context.finish_tunnel();
            }
            Leaving::Reconnect | Leaving::ReconnectNow
                if (tunnel.leaving == Leaving::ReconnectNow || !tunnel.unanswered)
                    && tunnel.down.between_messages()
                    && tunnel.up.between_messages()
                    && exchange.out.is_empty() =>
            {
                (tunnel.leaving, tunnel.unanswered) = (Leaving::No, false);
                let end = tunnel.head.len() - 2;
                let mut out = tunnel.head[..end].to_vec();
                out.extend_from_slice(b"X-Zdt-Resume: ");
                let name = head::connection_name(exchange.connection, exchange.stream);
                out.extend_from_slice(name.as_bytes());
                out.extend_from_slice(b"\r\n\r\n");
                exchange.out = out;
                (tunnel.up, tunnel.down) = Default::default();
                exchange.stage = Stage::Reconnecting;
                exchange.wants_websocket = true;
                // To open it a second time does no harm.
                (exchange.is_kept, exchange.may_have_been_sent) = (true, false);
                (exchange.attempts, exchange.met_stale, exchange.failed_at) = (0, false, None);
                let upstream = exchange.upstream.take();
                let link = exchange.link.take();
                if let Some(upstream) = upstream {
                    self.table.upstreams[upstream].outstanding -= 1;
                    self.report_idle(upstream);
                }
                if let Some(link) = link {
                    self.links[link].exchange = None;
                    self.close(link);
                }
                self.hold_input(index, true);
                self.dispatch(index, true);
            }
            _ => {}
        }
    }
}
