//! Upstream sockets in the worker's ring: made, connected, sent to, received from, closed.
//!
//! At most one send is in flight on a link. A link is removed when it is closing and no operation
//! names its socket; its index is not used again before.
//!
//! Must not know: what is passed on.

use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use super::core::Core;
use super::exchange::{LinkStage, Stage, Todo};
use super::response::Passed;
use super::{Shared, session};
use crate::config::UpstreamAddress;
use crate::conn::Slot;
use crate::proto::Input;
use crate::service::Context;
use crate::sys;
use crate::uring::{Operation, RecvBuffer, SendBuffer};
use crate::worker::Worker;
use crate::worker::tokens::Token;

fn receive_operation(index: usize) -> Operation {
    Operation::receive(Token::LinkReceive(index).pack())
}

/// In words, for whoever reads the 502.
fn described(errno: i32) -> String {
    let error = std::io::Error::from_raw_os_error(errno);
    match errno {
        libc::ECONNREFUSED => "refuses connections".to_owned(),
        libc::ECONNRESET | libc::EPIPE => "reset the connection".to_owned(),
        libc::ENOENT => "is not there: its socket does not exist".to_owned(),
        _ => format!("cannot be reached: {error}"),
    }
}

impl Worker {
    /// Works off what the core wants done.
    pub(in crate::worker) fn run_gateway(&mut self) {
        let Some(core) = &self.gateway else { return };
        if core.borrow().todo.is_empty() {
            return;
        }
        let core = Rc::clone(core);
        loop {
            let Some(todo) = core.borrow_mut().todo.pop_front() else { return };
            match todo {
                Todo::Open(link) => self.open_link(&core, link),
                Todo::Send(link) => self.send_link(&core, link),
                Todo::Receive(link) => self.receive_link(&core, link),
                Todo::Close(link) => self.close_link(&core, link),
                Todo::Fail { exchange, serial, status, reason } => {
                    let is_begun = match core.borrow().same(exchange, serial) {
                        Some(exchange) => exchange.is_answered,
                        None => continue,
                    };
                    self.with_exchange(&core, exchange, serial, |context| {
                        context.hold_input(false);
                        if is_begun {
                            context.abort();
                        } else {
                            session::answer(context, status, &reason);
                        }
                    });
                }
                Todo::Input { exchange, serial, held } => {
                    self.with_exchange(&core, exchange, serial, |context| context.hold_input(held));
                }
                Todo::Spill(place) => self.run_spill(&core, place),
                Todo::Over { exchange, serial } => {
                    self.with_exchange(&core, exchange, serial, |context| context.finish_tunnel());
                }
                Todo::Idle { url } => self.tell(&crate::control::FromWorker::UpstreamIdle { url }),
                Todo::Leave { exchange, serial } => {
                    let shared = Rc::clone(&core);
                    self.with_exchange(&core, exchange, serial, |context| {
                        shared.borrow_mut().try_leave(exchange, context);
                    });
                }
            }
        }
    }

    /// The gateway's turn in the loop.
    pub(in crate::worker) fn advance_gateway(&mut self) {
        if let Some(core) = &self.gateway {
            core.borrow_mut().on_time(self.now_ms);
            self.run_gateway();
        }
    }

    /// When it needs one.
    pub(in crate::worker) fn gateway_due_ms(&self) -> Option<u64> {
        self.gateway.as_ref()?.borrow().due_ms()
    }

    /// Calls back with the client of an exchange, if it is served here and now.
    fn with_exchange(
        &mut self,
        core: &Shared,
        index: usize,
        serial: u64,
        call: impl FnOnce(&mut Context<'_>),
    ) {
        let place = core
            .borrow()
            .same(index, serial)
            .map(|exchange| (exchange.key, exchange.connection, exchange.stream));
        let Some((key, connection, stream)) = place else { return };
        if let Some(slot) = self.client_slot(key, connection, stream) {
            self.with_session(key, slot, |_, context| call(context));
        }
    }

    /// The stream of a client's connection, if it is the one and is served.
    fn client_slot(&self, key: usize, connection: u64, stream: u64) -> Option<Slot> {
        let entry = self.entries.get(key)?;
        (entry.id == connection && entry.is_served()).then(|| entry.connection.slot_of(stream))?
    }

    fn open_link(&mut self, core: &Shared, index: usize) {
        let mut core = core.borrow_mut();
        if core.links[index].closing {
            core.links[index].busy = false;
            return self.reap_link(&mut core, index);
        }
        let family = match core.address(index) {
            UpstreamAddress::Tcp(address) if address.is_ipv4() => libc::AF_INET,
            UpstreamAddress::Tcp(_) => libc::AF_INET6,
            UpstreamAddress::Unix(_) => libc::AF_UNIX,
        };
        self.ring.socket(family, Token::LinkSocket(index).pack());
    }

    /// A socket was made.
    pub(in crate::worker) fn on_link_socket(
        &mut self,
        index: usize,
        result: i32,
        socket: Option<OwnedFd>,
    ) {
        let Some(core) = self.gateway.clone() else { return };
        let mut core = core.borrow_mut();
        let link = &mut core.links[index];
        link.busy = false;
        let Some(socket) = socket else {
            if link.closing {
                return self.reap_link(&mut core, index);
            }
            return core.on_link_failure(index, &described(-result), true);
        };
        if link.closing {
            drop(socket);
            return self.reap_link(&mut core, index);
        }
        link.stage = LinkStage::Connecting;
        link.busy = true;
        let address = match core.address(index) {
            UpstreamAddress::Tcp(address) => {
                // Small requests would otherwise wait for the acknowledgement of those before.
                let _ = sys::socket::set_nodelay(socket.as_fd());
                sys::socket::encode_address(*address)
            }
            UpstreamAddress::Unix(path) => sys::socket::encode_unix_address(path),
        };
        self.ring.connect(socket.as_fd(), Token::LinkConnect(index).pack(), address);
        core.links[index].socket = Some(socket);
    }

    /// A connect has ended.
    pub(in crate::worker) fn on_link_connected(&mut self, index: usize, result: i32) {
        let Some(core) = self.gateway.clone() else { return };
        let mut core = core.borrow_mut();
        let link = &mut core.links[index];
        link.busy = false;
        if link.closing {
            return self.reap_link(&mut core, index);
        }
        if result < 0 {
            core.on_link_failure(index, &described(-result), true);
        } else {
            core.on_connected(index);
        }
    }

    fn send_link(&mut self, core: &Shared, index: usize) {
        let mut core = core.borrow_mut();
        let Core { links, exchanges, .. } = &mut *core;
        let Some(link) = links.get_mut(index) else { return };
        if !std::mem::take(&mut link.send_due)
            || link.closing
            || link.frozen
            || link.stage != LinkStage::Ready
            || link.sending.is_some()
        {
            return;
        }
        let (Some(exchange), Some(socket)) = (link.exchange, &link.socket) else { return };
        let exchange = &mut exchanges[exchange];
        if link.send_is_shut {
            // Nobody reads it any more; but without an answer, another upstream may have to.
            if exchange.stage != Stage::Sent {
                exchange.out.clear();
            }
        } else if !exchange.out.is_empty() {
            fault_point!("gateway.send");
            let bytes = SendBuffer::Owned(std::mem::take(&mut exchange.out));
            let token = Token::LinkSend(index).pack();
            link.sending = Some(self.ring.send(socket.as_fd(), token, bytes, 0, false));
        } else if exchange.half_closed && exchange.stage == Stage::Tunnel {
            link.send_is_shut = true;
            let _ = sys::socket::shutdown(socket.as_fd(), Shutdown::Write);
            core.end_if_over(index);
        }
    }

    /// A send has completed.
    pub(in crate::worker) fn on_link_sent(
        &mut self,
        index: usize,
        result: i32,
        buffer: SendBuffer,
    ) {
        let Some(shared) = self.gateway.clone() else { return };
        let mut core = shared.borrow_mut();
        let SendBuffer::Owned(bytes) = buffer else { return };
        core.links[index].sending = None;
        core.on_sent(index, bytes, result.max(0) as usize);
        let link = &mut core.links[index];
        if link.closing {
            return self.reap_link(&mut core, index);
        }
        let harmless = [libc::ECANCELED, libc::EINTR, libc::EAGAIN, libc::ENOBUFS];
        if result < 0 && !harmless.contains(&-result) {
            // What it has sent before may still be there to be received; that end decides.
            link.send_is_shut = true;
            core.end_if_over(index);
        }
        let link = &core.links[index];
        if link.frozen {
            let key = link.exchange.map(|exchange| core.exchanges[exchange].key);
            drop(core);
            return key.into_iter().for_each(|key| self.try_offer(key));
        }
        if let Some(why) = core.links[index].failure.take() {
            return core.on_link_failure(index, &why, false);
        }
        core.after_sent(index);
    }

    fn receive_link(&mut self, shared: &Shared, index: usize) {
        let mut core = shared.borrow_mut();
        let Some(link) = core.links.get_mut(index) else { return };
        if link.closing || link.frozen || link.paused || link.stage != LinkStage::Ready {
            return;
        }
        if !link.pending.is_empty() {
            let mut bytes = std::mem::take(&mut link.pending);
            drop(core);
            self.link_bytes(shared, index, &mut bytes);
            core = shared.borrow_mut();
        }
        let Some(link) = core.links.get_mut(index) else { return };
        if link.closing || link.frozen || link.paused {
            return;
        }
        if link.ended {
            drop(core);
            return self.link_end(shared, index, None);
        }
        if let (false, Some(socket)) = (link.receiving, &link.socket) {
            self.ring.recv_multishot(socket.as_fd(), Token::LinkReceive(index).pack());
            link.receiving = true;
        }
    }

    /// A receive has completed.
    pub(in crate::worker) fn on_link_received(
        &mut self,
        index: usize,
        result: i32,
        more: bool,
        buffer: Option<RecvBuffer>,
    ) {
        let Some(shared) = self.gateway.clone() else { return };
        let mut core = shared.borrow_mut();
        let link = &mut core.links[index];
        if !more {
            link.receiving = false;
        }
        if link.closing {
            drop(buffer);
            return self.reap_link(&mut core, index);
        }
        let frozen = link.frozen;
        match (result, buffer) {
            (1.., Some(mut bytes)) => {
                if frozen || link.paused {
                    link.pending.extend_from_slice(&bytes);
                } else if !link.pending.is_empty() {
                    // The rest of a head, or of a line, perhaps.
                    link.pending.extend_from_slice(&bytes);
                    core.todo.push_back(Todo::Receive(index));
                } else {
                    drop(core);
                    self.link_bytes(&shared, index, &mut bytes);
                    core = shared.borrow_mut();
                }
            }
            (result, _) if result == -libc::ENOBUFS || result == -libc::ECANCELED => {}
            (result, _) if result == -libc::EINTR || result == -libc::EAGAIN => {}
            (result, _) => {
                link.ended = true;
                link.reset = result < 0;
                if !frozen && !link.paused && link.pending.is_empty() {
                    drop(core);
                    self.link_end(&shared, index, (result < 0).then_some(-result));
                    core = shared.borrow_mut();
                }
            }
        }
        if frozen {
            let exchange = core.links.get(index).and_then(|link| link.exchange);
            let key = exchange.map(|exchange| core.exchanges[exchange].key);
            drop(core);
            key.into_iter().for_each(|key| self.try_offer(key));
        } else if !more {
            core.todo.push_back(Todo::Receive(index));
        }
    }

    /// Bytes of an upstream, in one piece.
    fn link_bytes(&mut self, shared: &Shared, index: usize, bytes: &mut [u8]) {
        let mut core = shared.borrow_mut();
        let Some(exchange) = core.links[index].exchange else {
            return core.close(index); // they answer nothing
        };
        let known = &core.exchanges[exchange];
        let (key, connection, stream) = (known.key, known.connection, known.stream);
        let Some(slot) = self.client_slot(key, connection, stream) else {
            core.links[index].pending.extend_from_slice(bytes);
            return;
        };
        drop(core);
        let mut input = Input::new(bytes);
        let mut passed = Passed::More;
        self.with_session(key, slot, |_, context| {
            passed = shared.borrow_mut().pass_on(index, &mut input, context);
        });
        let mut core = shared.borrow_mut();
        let Some(link) = core.links.get_mut(index) else { return };
        if !input.is_empty() && link.exchange.is_some() {
            link.pending.extend_from_slice(input.peek());
        }
        match passed {
            Passed::Full if link.receiving => self.ring.cancel(receive_operation(index)),
            Passed::Full | Passed::More | Passed::Complete => {}
            Passed::Broken(why) => self.fail_link(&mut core, index, why),
        }
    }

    /// An upstream has ended its direction, and all that came before has been passed on.
    fn link_end(&mut self, shared: &Shared, index: usize, errno: Option<i32>) {
        let mut core = shared.borrow_mut();
        let link = &mut core.links[index];
        if std::mem::replace(&mut link.end_seen, true) {
            return;
        }
        let Some(exchange) = link.exchange else { return core.close(index) };
        let answer_bytes_came = !link.pending.is_empty();
        let (is_reset, is_shut) = (link.reset, link.send_is_shut);
        let ended = link.machine.on_receive_end(is_reset);
        let known = &mut core.exchanges[exchange];
        let serial = known.serial;
        if known.stage == Stage::Tunnel {
            drop(core);
            // The client gets what is there, and then the end, of the same kind where it can tell. Its own
            // direction goes on, if it has not ended.
            return self.with_exchange(shared, exchange, serial, |context| {
                match (is_reset, is_shut) {
                    (true, _) => context.abort(),
                    (false, true) => context.finish_tunnel(),
                    (false, false) => context.half_close_tunnel(),
                }
            });
        }
        match ended {
            Ok(true) => {
                drop(core);
                let core = Rc::clone(shared);
                self.with_exchange(shared, exchange, serial, |context| {
                    core.borrow_mut().finish(exchange, context);
                });
            }
            Ok(false) | Err(_) => {
                if answer_bytes_came {
                    known.never_repeat();
                }
                let why = match (errno, known.stage) {
                    (Some(errno), _) if !known.is_answered => described(errno),
                    (_, Stage::Responding) => "ended in the middle of its answer".to_owned(),
                    _ => "closed the connection before it answered".to_owned(),
                };
                self.fail_link_with(&mut core, index, why);
            }
        }
    }

    /// A link whose upstream broke the rules: its request is not sent again.
    fn fail_link(&mut self, core: &mut Core, index: usize, why: String) {
        if let Some(exchange) = core.links[index].exchange {
            core.exchanges[exchange].never_repeat();
        }
        self.fail_link_with(core, index, why);
    }

    fn fail_link_with(&mut self, core: &mut Core, index: usize, why: String) {
        let link = &mut core.links[index];
        if link.sending.is_some() {
            // How much of the request has left is known only then.
            link.failure = Some(why);
            if let Some(socket) = &link.socket {
                let _ = sys::socket::shutdown(socket.as_fd(), Shutdown::Both);
            }
            return;
        }
        core.on_link_failure(index, &why, false);
    }

    fn close_link(&mut self, shared: &Shared, index: usize) {
        let mut core = shared.borrow_mut();
        let Some(link) = core.links.get(index).filter(|link| link.closing) else { return };
        if let Some(socket) = &link.socket
            && link.stage == LinkStage::Ready
        {
            // Also ends the operations in flight.
            let _ = sys::socket::shutdown(socket.as_fd(), Shutdown::Both);
        }
        if link.receiving {
            self.ring.cancel(receive_operation(index));
        }
        if let Some(sending) = link.sending {
            self.ring.cancel(sending);
        }
        if link.busy && link.stage == LinkStage::Connecting {
            self.ring.cancel(Operation::connect(Token::LinkConnect(index).pack()));
        }
        self.reap_link(&mut core, index);
    }

    fn reap_link(&mut self, core: &mut Core, index: usize) {
        let link = &core.links[index];
        if link.closing && link.is_quiet() {
            let link = core.links.remove(index);
            if let Some(socket) = link.socket {
                self.ring.close(socket);
            }
        }
    }
}
