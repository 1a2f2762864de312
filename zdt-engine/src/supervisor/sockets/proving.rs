//! The proof of a new worker: a connection of the supervisor's own, sent to one slot by the probe
//! map, that the worker must report.
//!
//! There is one probe map with one entry, so workers are proven one listener after the other.
//!
//! Must not know: what a proof is good for.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::{TcpSocket, TcpStream};

use super::listeners::{ListenerId, Role, connect_address};
use crate::control::ToWorker;
use crate::supervisor::WorkerId;
use crate::supervisor::core::Core;
use crate::supervisor::reload::Event;

/// A probe that was not seen is tried again: its SYN may have been dropped.
const RETRY: Duration = Duration::from_millis(500);

/// The proofs that are to be done, and the one that is going on.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct Proving {
    wanted: VecDeque<(WorkerId, ListenerId)>,
    running: Option<Probe>,
    next_nonce: u64,
}

#[derive(Debug)]
struct Probe {
    worker: WorkerId,
    listener: ListenerId,
    nonce: u64,
    until: Instant,
    connecting: tokio::task::JoinHandle<()>,
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.connecting.abort();
    }
}

impl Proving {
    pub fn deadline(&self) -> Option<Instant> {
        self.running.as_ref().map(|probe| probe.until)
    }

    pub fn forget_worker(&mut self, worker: WorkerId) {
        self.wanted.retain(|&(of, _)| of != worker);
        if self.running.as_ref().is_some_and(|probe| probe.worker == worker) {
            // At once the next one's turn.
            if let Some(probe) = &mut self.running {
                probe.until = Instant::now();
            }
        }
    }

    pub fn clear(&mut self) {
        self.wanted.clear();
        self.running = None;
    }
}

impl Core {
    /// Begins the proof of a green worker.
    pub fn prove(&mut self, worker: WorkerId) {
        let Some((generation, index)) = self.place_of(worker) else { return };
        let mut listeners = self.listeners.with_role(Role::Own { generation, index });
        listeners.extend(self.listeners.with_role(Role::Proof { generation, index }));
        self.proving.wanted.extend(listeners.into_iter().map(|listener| (worker, listener)));
        if self.proving.running.is_none() {
            self.next_probe();
        }
    }

    fn next_probe(&mut self) {
        self.proving.running = None;
        let Some(&(worker, listener)) = self.proving.wanted.front() else {
            self.steer.clear_probe();
            return;
        };
        if let Err(message) = self.start_probe(worker, listener) {
            self.machine_events.push_back(Event::Failed { message });
            self.proving.clear();
        }
    }

    fn start_probe(&mut self, worker: WorkerId, listener: ListenerId) -> Result<(), String> {
        let (Some(slot), Some(listening)) = (
            self.workers.get(&worker).map(|worker| worker.identity.slot),
            self.listeners.find(listener).map(|listener| listener.address),
        ) else {
            return Err(format!("worker {worker} or its listener is gone"));
        };
        let to = connect_address(listening);
        let (socket, peer) = bind_source(to)
            .map_err(|error| format!("cannot make a connection that proves {to}: {error}"))?;
        self.steer
            .set_probe(peer.port(), listening, slot)
            .map_err(|error| format!("cannot steer the proof of {to}: {error}"))?;
        self.proving.next_nonce += 1;
        let nonce = self.proving.next_nonce;
        self.send(worker, &ToWorker::Probe { nonce, peer });
        let connecting = tokio::task::spawn_local(async move {
            match socket.connect(to).await {
                Ok(stream) => hold(stream).await,
                Err(error) => tracing::debug!(%to, %error, "the proving connection failed"),
            }
        });
        let until = Instant::now() + RETRY;
        self.proving.running = Some(Probe { worker, listener, nonce, until, connecting });
        Ok(())
    }

    pub fn on_probe_seen(&mut self, worker: WorkerId, nonce: u64) {
        let seen = self
            .proving
            .running
            .as_ref()
            .is_some_and(|probe| probe.worker == worker && probe.nonce == nonce);
        if !seen {
            return;
        }
        self.proving.wanted.pop_front();
        let left: BTreeSet<WorkerId> = self.proving.wanted.iter().map(|&(of, _)| of).collect();
        if !left.contains(&worker) {
            self.machine_events.push_back(Event::Proven { worker });
        }
        self.next_probe();
    }

    pub fn prove_on_time(&mut self, now: Instant) {
        let Some(probe) = &self.proving.running else { return };
        if now >= probe.until {
            tracing::debug!(worker = probe.worker, listener = probe.listener, "proof not seen");
            self.next_probe();
        }
    }
}

/// A socket with a source port of its own, not connected yet, so that the map can be told first.
fn bind_source(to: SocketAddr) -> io::Result<(TcpSocket, SocketAddr)> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    let mut from = to;
    from.set_port(0);
    socket.bind(from)?;
    let peer = socket.local_addr()?;
    Ok((socket, peer))
}

/// Keeps the connection open until the worker closes it, or the proof is over.
async fn hold(stream: TcpStream) {
    let mut byte = [0];
    let _ = stream.readable().await;
    let _ = stream.try_read(&mut byte);
    std::future::pending::<()>().await;
}
