//! Requests on their way to an upstream, and what becomes of them when it fails.
//!
//! Must not know: sockets' operations.

use super::core::{Core, MAX_KEPT_BYTES};
use super::exchange::{Exchange, Link, LinkStage, Stage, Todo};
use crate::config::UpstreamAddress;
use crate::proto::http1::client::Http1Client;
use crate::queue::Scope;

/// Times that a request is sent, at most. The end of a kept connection, which its upstream may have closed before
/// it saw the request, does not count; it can come once.
const MAX_ATTEMPTS: u8 = 3;

impl Core {
    /// Sends a request on its way: over a link that is there, over a new one, or into the queue.
    /// `is_replay`: it comes from the queue, so nobody is before it.
    pub fn dispatch(&mut self, index: usize, is_replay: bool) {
        let route = self.exchanges[index].route;
        let waits = !is_replay && self.queue.count(Scope::Upstream(route as u64)) > 0;
        let chosen = match waits || self.table.routes[route].held {
            true => None,
            false => self.table.choose(route, self.exchanges[index].failed_at),
        };
        let Some(upstream) = chosen else { return self.hold(index) };
        self.table.upstreams[upstream].outstanding += 1;
        let exchange = &mut self.exchanges[index];
        exchange.upstream = Some(upstream);
        exchange.active_ms = self.now_ms;
        let takes_kept = !exchange.met_stale;
        while takes_kept && let Some(link) = self.table.upstreams[upstream].idle.pop() {
            let known = &self.links[link];
            // An upstream that is about to close it may have done so.
            let is_fresh =
                self.now_ms.saturating_sub(known.since_ms) < self.options.idle_timeout_ms;
            if is_fresh && !known.closing && !known.ended {
                self.exchanges[index].link = Some(link);
                self.links[link].exchange = Some(index);
                return self.start(link);
            }
            self.close(link);
        }
        let link = self.open(upstream, Some(index));
        let exchange = &mut self.exchanges[index];
        exchange.link = Some(link);
        if exchange.stage != Stage::Reconnecting {
            exchange.stage = Stage::Opening;
        }
    }

    pub(super) fn open(&mut self, upstream: usize, exchange: Option<usize>) -> usize {
        let link = self.links.insert(Link {
            socket: None,
            upstream,
            stage: LinkStage::Making,
            machine: Http1Client::new(),
            exchange,
            pending: Vec::new(),
            sending: None,
            busy: true,
            receiving: false,
            paused: false,
            closing: false,
            ended: false,
            reset: false,
            frozen: false,
            end_seen: false,
            failure: None,
            send_is_shut: false,
            since_ms: self.now_ms,
            is_reused: false,
            send_due: false,
        });
        self.todo.push_back(Todo::Open(link));
        link
    }

    /// The link's exchange is sent over it.
    pub fn start(&mut self, link: usize) {
        let Some(index) = self.links[link].exchange else { return };
        let exchange = &mut self.exchanges[index];
        self.links[link].machine.begin(exchange.is_head, exchange.wants_websocket);
        if exchange.stage != Stage::Reconnecting {
            exchange.stage = Stage::Sent;
        }
        exchange.active_ms = self.now_ms;
        self.send_later(index);
        self.spill_later(index);
    }

    /// A link is connected.
    pub fn on_connected(&mut self, index: usize) {
        let link = &mut self.links[index];
        link.stage = LinkStage::Ready;
        link.since_ms = self.now_ms;
        let upstream = link.upstream;
        self.todo.push_back(Todo::Receive(index));
        let known = &mut self.table.upstreams[upstream];
        known.on_connected();
        if link.exchange.is_some() {
            return self.start(index);
        }
        known.probing = false;
        known.idle.push(index);
        self.replay();
    }

    /// Bytes that were sent. They are kept until the answer begins, if they are not too many.
    pub fn on_sent(&mut self, index: usize, bytes: Vec<u8>, count: usize) {
        let Some(exchange) = self.links[index].exchange else { return self.recycle(bytes) };
        let exchange = &mut self.exchanges[exchange];
        if count > 0 {
            exchange.may_have_been_sent = true;
            exchange.active_ms = self.now_ms;
        }
        let keeps = matches!(exchange.stage, Stage::Sent | Stage::Reconnecting)
            && exchange.is_kept
            && exchange.sent.len() + count <= MAX_KEPT_BYTES;
        if exchange.is_kept && !keeps {
            exchange.is_kept = false;
            exchange.sent = Vec::new();
        }
        if keeps && count == bytes.len() && exchange.sent.is_empty() {
            exchange.sent = bytes;
            return;
        }
        if keeps {
            exchange.sent.extend_from_slice(&bytes[..count]);
        }
        if count < bytes.len() {
            exchange.out.splice(..0, bytes[count..].iter().copied());
        }
        self.recycle(bytes);
    }

    /// A tunnel whose upstream has ended its direction is over when ours has ended, too.
    pub fn end_if_over(&mut self, index: usize) {
        let link = &self.links[index];
        let Some(exchange) = link.exchange.filter(|_| link.end_seen && link.send_is_shut) else {
            return;
        };
        let Exchange { stage, serial, .. } = self.exchanges[exchange];
        if stage == Stage::Tunnel && !link.frozen {
            self.todo.push_back(Todo::Over { exchange, serial });
        }
    }

    /// There is room on the way to the upstream again.
    pub fn after_sent(&mut self, index: usize) {
        let Some(exchange) = self.links[index].exchange else { return };
        let known = &self.exchanges[exchange];
        if !known.out.is_empty() || known.half_closed {
            self.send_later(exchange);
        }
        self.spill_later(exchange);
        self.release_input(exchange);
    }

    /// A link cannot be used any more. Its request goes elsewhere, or its client is told.
    /// `refused`: there was no connection at all.
    pub fn on_link_failure(&mut self, index: usize, why: &str, refused: bool) {
        let link = &mut self.links[index];
        let exchange = link.exchange.take();
        let (upstream, is_reused) = (link.upstream, link.is_reused);
        self.close(index);
        let known = &mut self.table.upstreams[upstream];
        let Some(index) = exchange else {
            if std::mem::take(&mut known.probing) {
                known.on_failure(self.now_ms, true);
            }
            return; // an idle one
        };
        known.outstanding -= 1;
        let url = known.url.clone();
        let exchange = &mut self.exchanges[index];
        exchange.link = None;
        exchange.upstream = None;
        exchange.failed_at = Some(upstream);
        let is_repeated = match exchange.stage {
            Stage::Opening => true,
            Stage::Reconnecting if refused => true,
            Stage::Sent | Stage::Reconnecting => exchange.may_be_repeated(),
            _ => false,
        };
        if is_repeated && is_reused && !exchange.met_stale {
            // It says nothing about the upstream, but much about its other kept connections.
            exchange.met_stale = true;
            for link in std::mem::take(&mut known.idle) {
                self.close(link);
            }
        } else {
            known.on_failure(self.now_ms, refused);
            exchange.attempts += u8::from(!refused);
        }
        self.report_idle(upstream);
        if refused {
            self.status.upstream_failures += 1;
        }
        let exchange = &mut self.exchanges[index];
        if !is_repeated {
            return self.fail(index, 502, &format!("the upstream {url} {why}"));
        }
        if exchange.attempts >= MAX_ATTEMPTS {
            return self.fail(index, 502, &format!("the upstream {url} {why}, again"));
        }
        let sent = std::mem::take(&mut exchange.sent);
        if !sent.is_empty() {
            let rest = std::mem::replace(&mut exchange.out, sent);
            exchange.out.extend_from_slice(&rest);
        }
        let is_replay = exchange.is_replay || exchange.stage == Stage::Reconnecting;
        self.status.retries += u64::from(!refused);
        self.dispatch(index, is_replay);
    }

    /// The client is told, if that is possible, and its exchange is over.
    pub fn fail(&mut self, index: usize, status: u16, reason: &str) {
        self.unhold(index);
        self.drop_spill(index);
        let exchange = &mut self.exchanges[index];
        if let Stage::Held(id) = exchange.stage {
            self.queue.cancel(id);
        }
        exchange.stage = Stage::Failed;
        exchange.failure = Some((status, reason.to_owned()));
        let (serial, reason) = (exchange.serial, reason.to_owned());
        self.todo.push_back(Todo::Fail { exchange: index, serial, status, reason });
    }

    /// Address of a link's upstream.
    pub fn address(&self, link: usize) -> &UpstreamAddress {
        &self.table.upstreams[self.links[link].upstream].address
    }
}
