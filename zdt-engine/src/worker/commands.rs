//! Control messages: from the supervisor, and to it.
//!
//! The supervisor may die at any moment. The worker then serves on, finishes what has begun, starts
//! nothing, and waits for a later supervisor on its own listening socket.
//!
//! Must not know: what the supervisor wants to achieve.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::control::{
    Adopted, FromWorker, Hello, MAX_MESSAGE_BYTES, OpenChannel, PROTOCOL_VERSIONS, ToWorker,
};
use zeroize::Zeroize;

use crate::handoff::{Channel, Descriptors};
use crate::shm::channel::ChannelMemory;
use crate::shm::read_sealed;
use crate::uring::Operation;
use crate::{fdpass, state, sys};

use super::Worker;
use super::gateway::{self, Leaving};
use super::tokens::Token;

/// Messages that may wait for a supervisor that does not read; older progress is worth nothing.
const MAX_BACKLOG: usize = 1_024;

/// A connection to a supervisor.
pub struct ControlLink {
    pub number: usize,
    pub socket: OwnedFd,
    /// True for the supervisor that is obeyed.
    pub active: bool,
    backlog: VecDeque<Vec<u8>>,
}

impl ControlLink {
    pub fn new(number: usize, socket: OwnedFd, active: bool) -> Self {
        Self { number, socket, active, backlog: VecDeque::new() }
    }

    fn send(&mut self, message: &FromWorker, descriptors: &[BorrowedFd<'_>]) {
        let bytes = encode(message);
        if !descriptors.is_empty() {
            // Never delayed: a supervisor that takes over reads its socket.
            if let Err(error) =
                fdpass::send(self.socket.as_fd(), &[IoSlice::new(&bytes)], descriptors)
            {
                tracing::error!("control socket: {error}");
            }
            return;
        }
        if self.backlog.len() < MAX_BACKLOG {
            self.backlog.push_back(bytes);
        }
        self.flush();
    }

    fn flush(&mut self) {
        while let Some(bytes) = self.backlog.front() {
            match fdpass::send(self.socket.as_fd(), &[IoSlice::new(bytes)], &[]) {
                Ok(_) => drop(self.backlog.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.backlog.clear(), // its end shows at the next receive
            }
        }
    }
}

/// JSON of a message.
pub fn encode(message: &FromWorker) -> Vec<u8> {
    serde_json::to_vec(message).expect("messages have string keys only")
}

/// This build's greeting.
pub fn hello() -> Hello {
    Hello {
        protocol: PROTOCOL_VERSIONS,
        state_reads: state::FORMAT_READS,
        state_writes: state::FORMAT_WRITES,
        build: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
    }
}

impl Worker {
    /// Tells the supervisor, if there is one.
    pub(super) fn tell(&mut self, message: &FromWorker) {
        if let Some(link) = self.links.iter_mut().find(|link| link.active) {
            link.send(message, &[]);
        }
    }

    /// Tells the supervisor something that has a descriptor, now or not at all.
    pub(super) fn try_tell(&mut self, message: &FromWorker, descriptor: OwnedFd) -> bool {
        let Some(link) = self.links.iter().find(|link| link.active) else { return false };
        let bytes = encode(message);
        fdpass::send(link.socket.as_fd(), &[IoSlice::new(&bytes)], &[descriptor.as_fd()]).is_ok()
    }

    /// Waits until the supervisor may be told something again. False: there is none.
    pub(super) fn wait_for_supervisor(&mut self) -> bool {
        let Some(link) = self.links.iter().find(|link| link.active) else { return false };
        let mut polled = [PollFd::new(link.socket.as_fd(), PollFlags::POLLOUT)];
        let outcome = poll(&mut polled, PollTimeout::from(100u16));
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
        outcome.is_ok() && !polled[0].revents().is_some_and(|events| events.intersects(gone))
    }

    /// Sends what a slow supervisor had no room for.
    pub(super) fn flush_control(&mut self) {
        for link in &mut self.links {
            link.flush();
        }
    }

    /// Listens to a control connection.
    pub(super) fn add_link(&mut self, socket: OwnedFd, active: bool) {
        let number = self.next_link;
        self.next_link += 1;
        self.ring.poll_multishot(socket.as_fd(), Token::Control(number).pack());
        self.links.push(ControlLink::new(number, socket, active));
    }

    fn drop_link(&mut self, number: usize) {
        if let Some(index) = self.links.iter().position(|link| link.number == number) {
            let link = self.links.swap_remove(index);
            self.ring.cancel(Operation::poll(Token::Control(number).pack()));
            self.ring.close(link.socket);
            if link.active {
                tracing::warn!("the supervisor is gone; serving on until another one connects");
            }
        }
    }

    /// A control connection is readable.
    pub(super) fn on_control(&mut self, number: usize, more: bool) {
        let mut bytes = vec![0; MAX_MESSAGE_BYTES];
        loop {
            let Some(link) = self.links.iter().find(|link| link.number == number) else { return };
            let mut descriptors = Vec::new();
            match fdpass::receive(link.socket.as_fd(), &mut bytes, &mut descriptors) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::error!("control socket: {error}");
                    return self.drop_link(number);
                }
                Ok(received) if received.bytes == 0 => return self.drop_link(number),
                Ok(received) if received.truncated => {
                    tracing::error!("a control message was cut off");
                    return self.drop_link(number);
                }
                Ok(received) => {
                    if received.control_truncated {
                        // The command says how many it needs, and fails by itself. Nobody would
                        // find this worker again if it hung up on its supervisor.
                        tracing::error!("out of descriptors: some of a control message got lost");
                    }
                    let message = serde_json::from_slice(&bytes[..received.bytes]);
                    bytes[..received.bytes].zeroize(); // it may have held a key
                    match message {
                        Ok(message) => self.on_command(number, message, descriptors),
                        // A later build may know commands that this one does not.
                        Err(error) => {
                            tracing::error!("a control message is not understood: {error}")
                        }
                    }
                }
            }
        }
        if let Some(link) = self.links.iter().find(|link| link.number == number)
            && !more
        {
            self.ring.poll_multishot(link.socket.as_fd(), Token::Control(number).pack());
        }
    }

    /// Somebody connects to the worker's own socket.
    pub(super) fn on_reattach(&mut self, more: bool) {
        while let Ok(Some(socket)) = sys::unix::accept_unix(self.reattach.as_fd()) {
            match sys::socket::peer_credentials(socket.as_fd()) {
                Ok(peer) if peer.uid == self.configure.supervisor_uid || peer.uid == 0 => {
                    let greeting = encode(&FromWorker::Hello(hello()));
                    let _ = fdpass::send(socket.as_fd(), &[IoSlice::new(&greeting)], &[]);
                    self.add_link(socket, false);
                }
                Ok(peer) => tracing::warn!(uid = peer.uid, "refused a control connection"),
                Err(error) => tracing::warn!("peer credentials: {error}"),
            }
        }
        if !more {
            self.ring.poll_multishot(self.reattach.as_fd(), Token::Reattach.pack());
        }
    }

    fn on_command(&mut self, number: usize, command: ToWorker, descriptors: Vec<OwnedFd>) {
        let active = self.links.iter().any(|link| link.number == number && link.active);
        match command {
            ToWorker::Hello(hello) => {
                if PROTOCOL_VERSIONS.newest_common(hello.protocol).is_none() {
                    tracing::error!(theirs = ?hello.protocol, ours = ?PROTOCOL_VERSIONS,
                        "no common control protocol with the supervisor");
                    self.drop_link(number);
                }
            }
            ToWorker::Adopt => self.on_adopt(number),
            _ if !active => {
                tracing::error!("a command from a supervisor that has not taken over; ignored");
            }
            ToWorker::Configure(_) => tracing::error!("configured twice; ignored"),
            ToWorker::Listen { listeners } => self.on_listen(listeners, descriptors),
            ToWorker::Probe { nonce, peer } => self.on_probe(nonce, peer),
            ToWorker::OpenChannel(info) => self.on_open_channel(info, descriptors),
            ToWorker::Handoff { reload } => self.begin_handoff(reload),
            ToWorker::StopAccepting { reload } => self.begin_emptying(reload),
            ToWorker::CancelHandoff { reload } => self.cancel_handoff(reload),
            ToWorker::ResumeAccepting => {
                self.end_handoff();
                self.resume_accepting();
            }
            ToWorker::ForgetListeners { ids } => self.retire_listeners(&ids),
            ToWorker::Commit { reload, drain_ms } => self.commit(reload, drain_ms),
            ToWorker::TicketKeys => self.on_ticket_keys(&descriptors),
            ToWorker::Drain { timeout_ms } => self.begin_drain(timeout_ms, true),
            ToWorker::Revive => self.end_drain(),
            ToWorker::Rehearse { request } => self.begin_rehearsal(request),
            ToWorker::Routes { routes, leaving } => {
                self.with_gateway(|core| core.apply(&routes, &leaving));
            }
            ToWorker::FlushQueue { route } => {
                self.with_gateway(|core| core.flush(route.as_deref()));
            }
            ToWorker::LeaveUpstream { url, reconnect, over_ms } => {
                let how = if reconnect { Leaving::Reconnect } else { Leaving::Close };
                self.with_gateway(|core| core.leave(&url, how, over_ms));
            }
            ToWorker::Exit => {
                self.park_everything();
                self.exit = true;
            }
            ToWorker::Unparked { request, found } => {
                let record = descriptors
                    .first()
                    .filter(|_| found)
                    .and_then(|memfd| read_sealed(memfd.as_fd(), state::MAX_RECORD_BYTES).ok());
                self.on_unparked(request, record);
            }
            ToWorker::Status { request } => {
                let status = Box::new(self.full_status());
                self.tell(&FromWorker::Status { request, status });
            }
        }
    }

    fn with_gateway<T>(&mut self, call: impl FnOnce(&mut gateway::Core) -> T) {
        match &self.gateway {
            Some(core) => drop(call(&mut core.borrow_mut())),
            None => tracing::error!("a command for a gateway, which this worker is not; ignored"),
        }
    }

    fn on_listen(&mut self, infos: Vec<crate::control::ListenerInfo>, sockets: Vec<OwnedFd>) {
        if infos.len() != sockets.len() {
            let message =
                format!("{} listeners announced, {} received", infos.len(), sockets.len());
            return self.tell(&FromWorker::Failed { message });
        }
        if fault_point!("worker.before_ready") {
            return self.tell(&FromWorker::Failed { message: "fault point".to_owned() });
        }
        self.add_listeners(infos, sockets);
        match self.service.ready() {
            Ok(()) => self.tell(&FromWorker::Ready),
            Err(reason) => {
                let message = format!("the service is not ready: {reason}");
                self.tell(&FromWorker::Failed { message });
            }
        }
    }

    fn on_open_channel(&mut self, info: OpenChannel, descriptors: Vec<OwnedFd>) {
        let (reload, channel) = (info.reload, info.channel);
        if let Err(reason) = self.open_channel(info, descriptors) {
            tracing::error!(reload, channel, "channel: {reason}");
            self.tell(&FromWorker::ChannelFailed { reload, channel, reason });
        }
    }

    fn open_channel(&mut self, info: OpenChannel, fds: Vec<OwnedFd>) -> Result<(), String> {
        let [memory, socket, wake, wake_peer, peer_pidfd] = <[OwnedFd; 5]>::try_from(fds)
            .map_err(|fds| format!("5 descriptors expected, {} received", fds.len()))?;
        let memory =
            ChannelMemory::map(memory.as_fd()).map_err(|error| format!("memory: {error}"))?;
        let end = memory.split(info.is_blue);
        let (wake, wake_peer) = (wake.into(), wake_peer.into());
        let descriptors = Descriptors { socket, wake, wake_peer, peer_pidfd };
        let window = self.configure.config.handoff.window as usize;
        let channel = Channel::open(info, end, descriptors, window).map_err(|e| e.to_string())?;
        let index = self.channels.insert(channel);
        let channel = &self.channels[index];
        self.ring.poll_multishot(channel.socket(), Token::ChannelSocket(index).pack());
        self.ring.poll_multishot(channel.wake(), Token::ChannelWake(index).pack());
        self.ring.poll_multishot(channel.peer_pidfd(), Token::ChannelPeer(index).pack());
        Ok(())
    }

    /// A later supervisor takes over: it gets everything that the earlier one had.
    fn on_adopt(&mut self, number: usize) {
        let earlier: Vec<usize> = self
            .links
            .iter()
            .filter(|link| link.active && link.number != number)
            .map(|link| link.number)
            .collect();
        for earlier in earlier {
            // It has not ended; it is not the supervisor any more.
            if let Some(link) = self.links.iter_mut().find(|link| link.number == earlier) {
                link.active = false;
            }
            self.drop_link(earlier);
        }
        let status = self.full_status();
        let ticket_keys = self.ticket_keys();
        let adopted = Adopted {
            configure: self.configure.clone(),
            listeners: self.listeners.iter().map(|(_, l)| l.info.clone()).collect(),
            accepting: self.accepting,
            draining: self.drain.is_some(),
            channels: self.channels.iter().map(|(_, channel)| channel.info.clone()).collect(),
            has_ticket_keys: ticket_keys.is_some(),
            status,
        };
        let descriptors: Vec<BorrowedFd<'_>> = self
            .listeners
            .iter()
            .map(|(_, listener)| listener.socket.as_fd())
            .chain(self.shared_descriptors.iter().map(AsFd::as_fd))
            .chain(ticket_keys.iter().map(AsFd::as_fd))
            .collect();
        if let Some(link) = self.links.iter_mut().find(|link| link.number == number) {
            link.active = true;
            link.send(&FromWorker::Adopted(Box::new(adopted)), &descriptors);
            tracing::info!("adopted by a new supervisor");
        }
    }

    /// The counters, with what has to be counted now.
    fn full_status(&self) -> crate::control::WorkerStatus {
        let mut status = self.status.clone();
        status.pid = std::process::id();
        status.connections = self.entries.len() as u64;
        status.gateway = self.gateway.as_ref().map(|core| Box::new(core.borrow().full_status()));
        status.buffered_bytes = self.budget.total();
        for (_, entry) in &self.entries {
            *status.by_transport.entry(entry.transport.name().to_owned()).or_insert(0) += 1;
            *status.by_protocol.entry(entry.connection.protocol().to_owned()).or_insert(0) += 1;
        }
        status
    }
}
