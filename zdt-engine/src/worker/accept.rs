//! Listeners: accepting, limits, the supervisor's probes, and stopping without losing a connection.
//!
//! Must not know: what is spoken on a connection.

use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::conn::Connection;
use crate::control::{FromWorker, ListenerInfo};
use crate::shm::scoreboard::SlotFigures;
use crate::sys;
use crate::uring::Operation;

use super::Worker;
use super::entry::Entry;
use super::tokens::Token;

/// Pause after an accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listener whose accepts fail says so this often: it tries ten times a second.
const WARNING_INTERVAL_MS: u64 = 10_000;

/// How often the accept queues are looked into without a wake-up; the loop's heartbeat.
const SWEEP_INTERVAL_MS: u64 = 1_000;

/// A listening socket in this worker.
pub struct Listener {
    pub info: ListenerInfo,
    pub socket: OwnedFd,
    /// An accept whose last completion is outstanding.
    pub armed: bool,
    /// Accept again at this time.
    pub retry_ms: u64,
    /// Pauses that were not logged, and when the next one is.
    unsaid_pauses: u32,
    next_warning_ms: u64,
    /// To be closed once the accept has ended.
    pub retired: bool,
}

/// A connection that the supervisor announced.
pub struct Probe {
    nonce: u64,
    peer: SocketAddr,
}

impl Worker {
    /// Takes listeners over and accepts from them.
    pub(super) fn add_listeners(&mut self, infos: Vec<ListenerInfo>, sockets: Vec<OwnedFd>) {
        for (info, socket) in infos.into_iter().zip(sockets) {
            let listener = Listener {
                info,
                socket,
                armed: false,
                retry_ms: 0,
                unsaid_pauses: 0,
                next_warning_ms: 0,
                retired: false,
            };
            let index = self.listeners.insert(listener);
            if self.accepting {
                self.arm_accept(index);
            }
        }
    }

    fn arm_accept(&mut self, index: usize) {
        let listener = &mut self.listeners[index];
        if !listener.armed && !listener.retired {
            listener.armed = true;
            self.ring.accept_multishot(listener.socket.as_fd(), Token::Accept(index).pack());
            // Since 5.14, and until early 2026, the kernel does not wake a poller for established
            // connections that migrate here from a closed listener: look once.
            self.sweep(index);
        }
    }

    /// Accepts on all listeners (again).
    pub(super) fn resume_accepting(&mut self) {
        self.accepting = true;
        let indices: Vec<usize> = self.listeners.iter().map(|(index, _)| index).collect();
        for index in indices {
            self.arm_accept(index);
        }
    }

    /// Cancels all accepts; [`Worker::accepts_are_over`] tells when the last one has ended.
    pub(super) fn stop_accepting(&mut self) {
        self.accepting = false;
        for (index, listener) in &self.listeners {
            if listener.armed {
                self.ring.cancel(Operation::accept(Token::Accept(index).pack()));
            }
        }
    }

    /// True once no accept is armed.
    pub(super) fn accepts_are_over(&self) -> bool {
        self.listeners.iter().all(|(_, listener)| !listener.armed)
    }

    /// Accepts without waiting until nothing is queued on any listener.
    pub(super) fn sweep_all(&mut self) {
        let indices: Vec<usize> = self.listeners.iter().map(|(index, _)| index).collect();
        for index in indices {
            self.sweep(index);
        }
    }

    /// Once in a while looks into the accept queues unasked. An accept waits exclusively, so that one
    /// connection wakes one worker: if that is one whose process has just been killed, and whose ring the
    /// kernel has not taken down yet, the wake-up is lost, and the connection would wait for the next
    /// one on the same listener.
    pub(super) fn sweep_overlooked(&mut self) {
        if self.accepting && self.now_ms >= self.next_sweep_ms {
            self.next_sweep_ms = self.now_ms + SWEEP_INTERVAL_MS;
            self.sweep_all();
        }
    }

    fn sweep(&mut self, index: usize) {
        // Bounded by the backlog; more that arrive meanwhile are for the next turn of the loop.
        for _ in 0..65_536 {
            match sys::socket::accept(self.listeners[index].socket.as_fd()) {
                Ok(Some((socket, peer))) => self.on_connection(index, socket, Some(peer)),
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!("accept: {error}");
                    return;
                }
            }
        }
    }

    /// An accept has completed.
    pub(super) fn on_accepted(
        &mut self,
        index: usize,
        result: i32,
        more: bool,
        socket: Option<OwnedFd>,
    ) {
        if let Some(socket) = socket {
            self.on_connection(index, socket, None);
        }
        let now_ms = self.now_ms;
        let accepting = self.accepting;
        let Some(listener) = self.listeners.get_mut(index) else { return };
        if more {
            return;
        }
        listener.armed = false;
        if listener.retired {
            return self.close_retired(index);
        }
        if !accepting {
            return;
        }
        if result < 0 && ![libc::ECANCELED, libc::ECONNABORTED, libc::EINTR].contains(&-result) {
            // EMFILE, ENFILE, ENOMEM: the connection waits in the queue.
            let error = std::io::Error::from_raw_os_error(-result);
            if now_ms >= listener.next_warning_ms {
                let (address, again) = (listener.info.address, listener.unsaid_pauses);
                tracing::warn!(%address, again, "accept: {error}; pausing");
                listener.next_warning_ms = now_ms + WARNING_INTERVAL_MS;
                listener.unsaid_pauses = 0;
            } else {
                listener.unsaid_pauses += 1;
            }
            listener.retry_ms = now_ms + ACCEPT_PAUSE.as_millis() as u64;
        } else {
            self.arm_accept(index);
        }
    }

    /// Arms the accepts whose pause is over; returns when the next one is.
    pub(super) fn retry_accepts(&mut self) -> Option<u64> {
        if !self.accepting {
            return None;
        }
        let waiting: Vec<(usize, u64)> = self
            .listeners
            .iter()
            .filter(|(_, listener)| !listener.armed && listener.retry_ms > 0)
            .map(|(index, listener)| (index, listener.retry_ms))
            .collect();
        let mut next = None;
        for (index, due_ms) in waiting {
            if due_ms <= self.now_ms {
                self.listeners[index].retry_ms = 0;
                self.arm_accept(index);
            } else {
                next = Some(next.unwrap_or(u64::MAX).min(due_ms));
            }
        }
        next
    }

    fn on_connection(&mut self, listener: usize, socket: OwnedFd, peer: Option<SocketAddr>) {
        self.status.accepted += 1;
        let peer = peer.or_else(|| sys::socket::peer_address(socket.as_fd()).ok());
        let Some(peer) = peer else { return }; // the client is gone already
        if let Some(index) = self.probes.iter().position(|probe| probe.peer == peer) {
            let probe = self.probes.swap_remove(index);
            let _ = sys::socket::shutdown(socket.as_fd(), Shutdown::Both);
            return self.tell(&FromWorker::ProbeSeen { nonce: probe.nonce });
        }
        let proxied = self.wants_preface(self.listeners[listener].info.address, peer);
        // The proxies' own addresses are not counted.
        let over = match proxied {
            None => {
                self.note_refused(peer);
                true
            }
            Some(true) => self.is_full(),
            Some(false) => self.is_full() || self.is_over_limit(peer.ip()),
        };
        if over {
            self.status.rejected += 1;
            let _ = sys::socket::shutdown(socket.as_fd(), Shutdown::Both);
            return;
        }
        self.next_connection += 1;
        let id = u64::from(self.configure.identity.worker) << 40 | self.next_connection;
        let connection = Connection::new(self.now_ms);
        let mut entry = Entry::new(Some(socket), id, peer, connection, self.now_ms);
        entry.preface = proxied.unwrap_or(false).then(|| self.new_preface());
        if let Some(listener) = self.listeners.get(listener) {
            entry.transport = self.new_transport(listener.info.address);
        }
        let key = self.insert(entry);
        if self.drain.is_some() {
            // It was queued before the listener closed: one answer, then goodbye.
            self.entries[key].connection.close_after_response(&mut Vec::new());
        }
        self.arm_receive(key);
        self.schedule(key);
        if let Some(job) = &mut self.job {
            job.add_newcomer(key);
        }
    }

    /// Enters a connection into every table.
    pub(super) fn insert(&mut self, entry: Entry) -> usize {
        if entry.preface.is_none() {
            self.join_address(entry.peer.ip());
        }
        let key = self.entries.insert(entry);
        self.publish_load();
        key
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= self.configure.config.limits.max_connections as usize
    }

    /// Whether one more connection of that address is one too many.
    pub(super) fn is_over_limit(&self, address: IpAddr) -> bool {
        let most = self.configure.config.limits.max_connections_per_address;
        most > 0 && self.by_address.get(&address).copied().unwrap_or(0) >= most
    }

    pub(super) fn join_address(&mut self, address: IpAddr) {
        if self.configure.config.limits.max_connections_per_address > 0 {
            *self.by_address.entry(address).or_insert(0) += 1;
        }
    }

    pub(super) fn leave_address(&mut self, address: IpAddr) {
        if let Some(count) = self.by_address.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(&address);
            }
        }
    }

    /// A connection from that address is, or was, the supervisor's probe.
    pub(super) fn on_probe(&mut self, nonce: u64, peer: SocketAddr) {
        let seen = self.entries.iter().find(|(_, entry)| entry.peer == peer).map(|(key, _)| key);
        match seen {
            Some(key) => {
                self.drop_connection(key);
                self.tell(&FromWorker::ProbeSeen { nonce });
            }
            None if self.was_refused(peer) => self.tell(&FromWorker::ProbeSeen { nonce }),
            None => self.probes.push(Probe { nonce, peer }),
        }
    }

    /// Tells the steering program and the supervisor how many connections are here.
    pub(super) fn publish_load(&self) {
        let count = self.entries.len();
        if let Some(load_map) = &self.load_map {
            load_map.store(self.configure.identity.slot as usize, count as u32);
        }
        let slot = self.scoreboard_slot();
        slot.connections.store(count as u64, Ordering::Relaxed);
    }

    /// What has been counted outlives this process.
    pub(super) fn publish_totals(&self) {
        use std::sync::atomic::Ordering::Relaxed;
        let slot = self.configure.identity.slot as usize;
        let Some(totals) = self.scoreboard.totals(slot) else { return };
        totals.rejected.store(self.status.rejected, Relaxed);
        totals.requests.store(self.status.requests, Relaxed);
        totals.messages_received.store(self.status.messages_received, Relaxed);
        totals.messages_sent.store(self.status.messages_sent, Relaxed);
        totals.bytes_received.store(self.status.bytes_received, Relaxed);
        totals.bytes_sent.store(self.status.bytes_sent, Relaxed);
        if let Some(gateway) = &self.gateway {
            gateway.borrow().publish(totals);
        }
        totals.squeezed.store(self.status.squeezed, Relaxed);
        totals.shed.store(self.status.shed, Relaxed);
    }

    /// The worker's own figures.
    pub(super) fn scoreboard_slot(&self) -> &SlotFigures {
        // The supervisor sizes the scoreboard; a slot outside it would be its mistake, and costs
        // figures only.
        let slot = self.configure.identity.slot as usize;
        self.scoreboard.slot(slot).unwrap_or(&self.spare_figures)
    }

    /// Stop accepting from these, accept what is queued, close them.
    pub(super) fn retire_listeners(&mut self, ids: &[u64]) {
        let retired: Vec<usize> = self
            .listeners
            .iter()
            .filter(|(_, listener)| ids.contains(&listener.info.id))
            .map(|(index, _)| index)
            .collect();
        for index in retired {
            let listener = &mut self.listeners[index];
            listener.retired = true;
            if listener.armed {
                self.ring.cancel(Operation::accept(Token::Accept(index).pack()));
            } else {
                self.close_retired(index);
            }
        }
    }

    /// Closes the listeners that are not armed without looking at what is queued there: the other
    /// generation accepts from the same ones, and what this one took would only be in its way.
    pub(super) fn leave_listeners(&mut self) {
        let idle: Vec<usize> = self
            .listeners
            .iter()
            .filter(|(_, listener)| !listener.armed)
            .map(|(index, _)| index)
            .collect();
        for index in idle {
            let listener = self.listeners.remove(index);
            self.ring.close(listener.socket);
        }
    }

    fn close_retired(&mut self, index: usize) {
        // While draining nobody else takes what is queued, unless the listener lives elsewhere too.
        self.sweep(index);
        let listener = self.listeners.remove(index);
        self.ring.close(listener.socket);
    }
}
