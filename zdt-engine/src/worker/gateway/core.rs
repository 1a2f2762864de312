//! Requests in progress, their upstream connections, and those that are held.
//!
//! An exchange is one client's request from its head to the end of its answer, or of its tunnel; a link
//! is one upstream connection. An exchange has at most one link, a link at most one exchange.
//!
//! Must not know: sockets' operations, the client's protocol.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use slab::Slab;

use super::exchange::{Exchange, Leaving, Link, LinkStage, NONE, Refusal, Stage, Todo, Tunnel};
use super::head::{self, Framing};
use super::spill::Spills;
use super::table::Table;
use crate::config::{GatewayConfig, GatewayOptions};
use crate::control::GatewayStatus;
use crate::queue::{self, Priority, RequestQueue};
use crate::service::{Context, Request};
use crate::sys;

/// Bytes on their way to an upstream beyond which the client is not listened to.
pub const WINDOW_BYTES: usize = 64 << 10;

/// What is kept of a request so that it can be sent again.
pub const MAX_KEPT_BYTES: usize = 64 << 10;

/// How often time-outs are looked for.
pub const SWEEP_MS: u64 = 100;

/// See the module.
pub struct Core {
    pub options: GatewayOptions,
    pub table: Table,
    pub links: Slab<Link>,
    pub exchanges: Slab<Exchange>,
    pub queue: RequestQueue,
    pub spills: Spills,
    pub todo: VecDeque<Todo>,
    pub now_ms: u64,
    /// Exchanges that `Service::restore` has made and that have not got their sockets.
    pub restored: Vec<usize>,
    /// For each connection of the worker its first exchange.
    pub by_key: Vec<u32>,
    /// Tunnels that are to leave their upstream, and when.
    pub leaving: VecDeque<(u64, usize, u64, Leaving)>,
    pub(super) next_serial: u64,
    /// Requests from the queue that have not been answered yet, nor taken long.
    pub(super) replaying: u32,
    /// Since when, and which: the longest first.
    pub(super) replays: VecDeque<(u64, usize, u64)>,
    pub(super) next_sweep_ms: u64,
    spare: Vec<Vec<u8>>,
    pub status: GatewayStatus,
}

impl Core {
    /// `spill_dir`: where bodies of held requests go, if they do.
    pub fn new(config: &GatewayConfig, spill_dir: Option<OwnedFd>, now_ms: u64) -> Self {
        let share = |total: u64| (total / u64::from(config.workers.max(1))).max(1) as usize;
        let hold = &config.options.hold;
        let mut queue = RequestQueue::new(queue::Settings {
            max_bytes: share(hold.bytes),
            max_requests_per_buffer: share(u64::from(hold.requests)),
            max_age_ms: hold.time_ms,
            overflow: hold.overflow,
            priority_headers: hold.priority_headers.clone(),
        });
        let mut table = Table::default();
        table.apply(&config.routes);
        for route in 0..table.routes.len() {
            queue.start_upstream_buffering(route as u64);
        }
        Self {
            options: config.options.clone(),
            table,
            links: Slab::new(),
            exchanges: Slab::new(),
            queue,
            spills: Spills::new(hold, spill_dir, share),
            todo: VecDeque::new(),
            now_ms,
            restored: Vec::new(),
            by_key: Vec::new(),
            leaving: VecDeque::new(),
            next_serial: 0,
            replaying: 0,
            replays: VecDeque::new(),
            next_sweep_ms: now_ms + SWEEP_MS,
            spare: Vec::new(),
            status: GatewayStatus::default(),
        }
    }

    /// An empty vector.
    pub fn buffer(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_else(|| Vec::with_capacity(1 << 10))
    }

    /// Gives one back.
    pub fn recycle(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() > 0 && buffer.capacity() <= MAX_KEPT_BYTES && self.spare.len() < 256 {
            buffer.clear();
            self.spare.push(buffer);
        }
    }

    // ---- From the client.

    /// A request has arrived.
    pub fn begin(
        &mut self,
        request: &Request<'_>,
        context: &mut Context<'_>,
    ) -> Result<usize, Refusal> {
        let refuse = |status, reason: &str| Err(Refusal { status, reason: reason.to_owned() });
        let host = request.header("host").unwrap_or_default();
        let Some(route) = self.table.find(host, request.path) else {
            return refuse(404, "no route is for this host and path");
        };
        // HTTP/2 has no handshake of a WebSocket's own: the gateway does it in the client's place.
        let is_stream_tunnel = request.is_websocket && context.stream() != 0;
        let key = match is_stream_tunnel.then(sys::random_bytes::<16>).transpose() {
            Ok(bytes) => bytes.map(|bytes| BASE64.encode(bytes)),
            Err(error) => return refuse(503, &format!("no randomness for a WebSocket: {error}")),
        };
        self.status.requests += 1;
        let mut out = self.buffer();
        let authority = match self.options.preserve_host {
            true => None,
            false => self.table.routes[route].upstreams.first().copied(),
        };
        let framing = head::write_request(
            &mut out,
            request,
            head::Options {
                host: authority.map(|upstream| self.table.upstreams[upstream].authority.as_str()),
                forwarded: self.options.forwarded,
                websocket_key: key.as_deref(),
                connection: context.connection(),
                stream: context.stream(),
            },
        );
        let names = &self.options.hold.priority_headers;
        let priority = names
            .iter()
            .filter_map(|name| request.header(name))
            .map(Priority::of_value)
            .max()
            .unwrap_or_default();
        let tunnel = request
            .is_websocket
            .then(|| Box::new(Tunnel { head: out.clone(), ..Tunnel::default() }));
        let exchange = self.insert(Exchange {
            serial: 0,
            key: context.place(),
            connection: context.connection(),
            stream: context.stream(),
            route,
            upstream: None,
            link: None,
            stage: Stage::Failed,
            out,
            sent: Vec::new(),
            is_kept: true,
            framing,
            body_done: framing == Framing::None,
            is_head: request.method == "HEAD",
            is_repeatable: head::is_idempotent(head::method(request))
                || request.header("idempotency-key").is_some(),
            may_have_been_sent: false,
            wants_websocket: request.is_websocket,
            input_held: is_stream_tunnel,
            is_replay: false,
            attempts: 0,
            met_stale: false,
            failed_at: None,
            priority,
            active_ms: self.now_ms,
            held_ms: 0,
            is_adopted: false,
            spill: None,
            trailers: Vec::new(),
            half_closed: false,
            frozen: false,
            is_answered: false,
            failure: None,
            next_of_client: NONE,
            tunnel,
        });
        self.join_client(exchange);
        self.dispatch(exchange, false);
        Ok(exchange)
    }

    /// Adds an exchange.
    pub fn insert(&mut self, mut exchange: Exchange) -> usize {
        self.next_serial += 1;
        exchange.serial = self.next_serial;
        self.exchanges.insert(exchange)
    }

    /// Notes which client's it is.
    pub fn join_client(&mut self, index: usize) {
        let key = self.exchanges[index].key;
        if key >= self.by_key.len() {
            self.by_key.resize(key + 1, NONE);
        }
        self.exchanges[index].next_of_client = self.by_key[key];
        self.by_key[key] = index as u32;
    }

    fn leave_client(&mut self, index: usize) {
        let Exchange { key, next_of_client, .. } = self.exchanges[index];
        let Some(first) = self.by_key.get_mut(key) else { return };
        if *first == index as u32 {
            *first = next_of_client;
            return;
        }
        let mut at = *first;
        while at != NONE {
            let exchange = &mut self.exchanges[at as usize];
            if exchange.next_of_client == index as u32 {
                exchange.next_of_client = next_of_client;
                return;
            }
            at = exchange.next_of_client;
        }
    }

    /// A piece of its body, or of a tunnel.
    pub fn on_body(&mut self, index: usize, bytes: &[u8]) {
        let exchange = &mut self.exchanges[index];
        exchange.active_ms = self.now_ms;
        match (exchange.stage, exchange.framing) {
            (Stage::Failed, _) => return,
            (Stage::Reconnecting, _) => {
                // The next application might take it for another request, until it has agreed.
                if let Some(tunnel) = &mut exchange.tunnel {
                    tunnel.early.extend_from_slice(bytes);
                }
                return;
            }
            (Stage::Tunnel, _) => {
                if let Some(tunnel) = &mut exchange.tunnel {
                    tunnel.unanswered |= tunnel.up.feed(bytes);
                }
                exchange.out.extend_from_slice(bytes);
                if exchange.tunnel.as_ref().is_some_and(|tunnel| tunnel.leaving != Leaving::No) {
                    let serial = exchange.serial;
                    self.todo.push_back(Todo::Leave { exchange: index, serial });
                }
            }
            (_, Framing::Chunked | Framing::Sized) => {
                if !self.put_body(index, Some(bytes)) {
                    return;
                }
            }
            // Without a body there is nothing that could be passed on.
            (_, Framing::None) if !exchange.awaits_tunnel() => return,
            (_, Framing::None) => {
                if let Some(tunnel) = &mut exchange.tunnel {
                    tunnel.early.extend_from_slice(bytes);
                }
                return;
            }
        }
        self.after_input(index);
    }

    /// Its body is complete.
    pub fn on_body_end(&mut self, index: usize) {
        let exchange = &mut self.exchanges[index];
        if exchange.awaits_tunnel() {
            return self.on_half_close(index);
        }
        let is_failed = exchange.stage == Stage::Failed;
        if !exchange.body_done && !is_failed && !self.put_body(index, None) {
            return;
        }
        self.exchanges[index].body_done = true;
        self.after_input(index);
    }

    fn after_input(&mut self, index: usize) {
        self.send_later(index);
        let exchange = &self.exchanges[index];
        // What is held is in the queue; the rest waits with the client, or goes to the disk.
        let is_held = matches!(exchange.stage, Stage::Held(_));
        let behind = exchange.spill.map_or(0, |spill| self.spills.files[spill].tail.len());
        let is_full = exchange.out.len().max(behind) > WINDOW_BYTES;
        let is_full =
            if self.takes_body(index) { behind > WINDOW_BYTES } else { is_full || is_held };
        if is_full && !exchange.input_held {
            self.hold_input(index, true);
        }
    }

    pub(super) fn send_later(&mut self, index: usize) {
        if let Some(link) = self.exchanges[index].link
            && !std::mem::replace(&mut self.links[link].send_due, true)
        {
            self.todo.push_back(Todo::Send(link));
        }
    }

    /// The client's input is taken, or not.
    pub fn hold_input(&mut self, index: usize, held: bool) {
        let exchange = &mut self.exchanges[index];
        exchange.input_held = held;
        let serial = exchange.serial;
        self.todo.push_back(Todo::Input { exchange: index, serial, held });
    }

    /// The client is listened to again, if there is room for what it sends, and somebody to send it to.
    pub fn release_input(&mut self, index: usize) {
        let exchange = &self.exchanges[index];
        if exchange.input_held
            && exchange.out.len() <= WINDOW_BYTES / 2
            && exchange.spill.is_none()
            && !matches!(exchange.stage, Stage::Held(_) | Stage::Reconnecting)
            && !exchange.awaits_tunnel()
        {
            self.hold_input(index, false);
        }
    }

    /// The client sends nothing more.
    pub fn on_half_close(&mut self, index: usize) {
        let exchange = &mut self.exchanges[index];
        // In HTTP/1.1 there may be more behind the handshake; in a tunnel its end comes in its turn.
        exchange.half_closed =
            exchange.stream != 0 || matches!(exchange.stage, Stage::Tunnel | Stage::Reconnecting);
        match exchange.stage {
            Stage::Held(_) => {
                self.status.abandoned += 1;
                self.fail(index, 503, "the client went away while its request was held");
            }
            Stage::Tunnel => self.send_later(index),
            _ => {}
        }
    }

    /// The client's side is over: an answer is complete, or nobody waits for it.
    pub fn release(&mut self, index: usize) {
        self.leave_client(index);
        self.unhold(index);
        let has_spill = self.exchanges[index].spill.is_some();
        self.drop_spill(index);
        let exchange = self.exchanges.remove(index);
        self.restored.retain(|&one| one != index);
        if let Stage::Held(id) = exchange.stage {
            self.queue.cancel(id);
        }
        if exchange.is_replay {
            self.replaying -= 1;
        }
        let is_sent = exchange.out.is_empty() && exchange.body_done && !has_spill;
        if let Some(link) = exchange.link {
            self.unbind(link, is_sent);
        }
        if let Some(upstream) = exchange.upstream {
            self.table.upstreams[upstream].outstanding -= 1;
            self.report_idle(upstream);
        }
        self.recycle(exchange.out);
        self.recycle(exchange.sent);
        self.replay();
    }

    /// A link has lost its exchange: it waits for another one, or goes.
    pub(super) fn unbind(&mut self, index: usize, is_sent: bool) {
        let link = &mut self.links[index];
        link.exchange = None;
        link.frozen = false;
        if link.socket.is_none() && link.is_quiet() {
            self.links.remove(index); // it has moved
            return;
        }
        let upstream = &mut self.table.upstreams[link.upstream];
        let is_reusable = is_sent
            && link.stage == LinkStage::Ready
            && link.machine.is_idle()
            && link.sending.is_none()
            && !link.closing
            && !link.ended
            && link.pending.is_empty()
            && !upstream.retired
            && upstream.idle.len() < self.options.idle_connections as usize;
        if is_reusable {
            link.since_ms = self.now_ms;
            link.paused = false;
            link.is_reused = true;
            upstream.idle.push(index);
            self.todo.push_back(Todo::Receive(index));
        } else {
            self.close(index);
        }
    }

    /// Closes a link.
    pub fn close(&mut self, index: usize) {
        let link = &mut self.links[index];
        if !std::mem::replace(&mut link.closing, true) {
            self.table.upstreams[link.upstream].idle.retain(|&one| one != index);
            self.todo.push_back(Todo::Close(index));
        }
    }

    /// The exchange of that index, if it still is the same.
    pub fn same(&self, index: usize, serial: u64) -> Option<&Exchange> {
        self.exchanges.get(index).filter(|exchange| exchange.serial == serial)
    }
}
