//! TLS on a worker's connections: handshakes, records in and out, the keys that the supervisor sends.
//!
//! Records are opened in the receive buffer and sealed in the output buffer. Everything kept back while
//! a connection is frozen or paused is kept as it came, so that it can move.
//!
//! Must not know: what the plaintext means, where keys come from.

use std::os::fd::OwnedFd;

use crate::config::TlsConfig;
use crate::conn::{Environment, Progress, ReceiveEnd, Transport};
use crate::credentials::{Credentials, TicketRing};
use crate::proto::tls::{End, Error, Handshake, Hello, Server, Step, TicketKey, Tickets};
use crate::sys;

use super::Worker;
use super::entry::Moving;

/// What a worker needs for TLS.
pub struct WorkerTls {
    server: Server,
    tickets: Tickets,
    /// The same keys, for a later supervisor.
    ring: TicketRing,
    /// Records under one key.
    rekey_after: u64,
}

impl WorkerTls {
    /// From what came with the configuration.
    ///
    /// # Errors
    /// What is wrong with it, in words for the supervisor's log.
    pub fn new(config: &TlsConfig, http2: bool, credentials: &Credentials) -> Result<Self, String> {
        #[cfg(feature = "fault-points")]
        write_down_nonces();
        let tickets = Tickets::new(sys::wall_clock_s, || sys::random_bytes().ok());
        let mut tls = Self {
            server: credentials.server(config, http2, &tickets)?,
            tickets,
            ring: TicketRing::with(Vec::new()),
            rekey_after: config.rekey_after_records,
        };
        tls.set_ticket_keys(credentials);
        Ok(tls)
    }

    fn set_ticket_keys(&mut self, credentials: &Credentials) {
        self.ring = TicketRing::with(credentials.ticket_keys.clone());
        let keys =
            self.ring.keys().iter().map(|key| TicketKey { name: key.name, secret: key.secret });
        // The first is the next one: known everywhere before anybody uses it.
        self.tickets.set(keys.collect(), 1);
    }
}

/// For the test that proves over all processes that no nonce is used twice: each one is written to the file
/// that `ZDT_NONCES` names before it is used.
#[cfg(feature = "fault-points")]
fn write_down_nonces() {
    use std::io::Write as _;
    let Some(path) = std::env::var_os("ZDT_NONCES").filter(|path| !path.is_empty()) else { return };
    let file = std::fs::File::options().append(true).open(path).expect("the record of nonces");
    let pid = std::process::id();
    crate::proto::tls::nonces::observe(Box::new(move |key, sequence| {
        let line = format!("{key:016x} {sequence} {pid}\n");
        (&file).write_all(line.as_bytes()).expect("the record of nonces");
    }));
}

impl Worker {
    /// What lies on a connection that was just accepted at an address.
    pub(super) fn new_transport(&self, address: std::net::SocketAddr) -> Transport {
        match &self.configure.config.tls {
            Some(config) if config.speaks_tls(address) => Transport::Hello(Hello::default()),
            _ => Transport::Plain,
        }
    }

    /// Bytes of a connection with TLS, or none, if some were kept that can be worked on now.
    pub(super) fn take_in_sealed(&mut self, key: usize, bytes: &mut [u8]) {
        let entry = &mut self.entries[key];
        if entry.connection.is_ending() {
            return; // whatever still comes is dropped
        }
        if entry.moving == Moving::Freezing || entry.paused {
            return entry.transport.keep(bytes);
        }
        match std::mem::replace(&mut entry.transport, Transport::Failed) {
            Transport::Hello(hello) => self.hear_hello(key, hello, bytes),
            Transport::Handshake(handshake) => self.shake_hands(key, handshake, bytes),
            transport => {
                entry.transport = transport;
                self.open_records(key, bytes);
            }
        }
    }

    /// A handshake begins with the whole first message: what has been answered cannot move.
    fn hear_hello(&mut self, key: usize, mut hello: Hello, bytes: &[u8]) {
        hello.keep(bytes);
        if !hello.is_due() {
            self.entries[key].transport = Transport::Hello(hello);
            return self.settle(key);
        }
        match self.tls.as_ref().and_then(|tls| tls.server.handshake()) {
            Some(handshake) => self.shake_hands(key, handshake, hello.bytes()),
            None => {
                let error = Error::Handshake("there are no certificates for it".to_owned());
                self.fail_transport(key, &error);
            }
        }
    }

    fn shake_hands(&mut self, key: usize, handshake: Box<Handshake>, bytes: &[u8]) {
        let mut wire = self.buffers.take();
        match handshake.handle_input(bytes, &mut wire) {
            Step::GoesOn(handshake) => {
                self.entries[key].transport = Transport::Handshake(handshake);
                self.queue_wire(key, wire);
                self.settle(key);
            }
            Step::Done(tls) => {
                self.entries[key].transport = Transport::Tls(tls);
                self.queue_wire(key, wire);
                self.on_hands_shaken(key);
            }
            Step::Failed(error) => {
                self.queue_wire(key, wire);
                self.fail_transport(key, &error);
            }
        }
    }

    fn on_hands_shaken(&mut self, key: usize) {
        self.status.tls_handshakes += 1;
        if let Some(job) = &mut self.job {
            job.add_newcomer(key);
        }
        self.open_records(key, &mut []);
        if self.entries.contains(key) {
            self.settle(key);
        }
    }

    fn open_records(&mut self, key: usize, mut bytes: &mut [u8]) {
        loop {
            let Some(entry) = self.entries.get_mut(key) else { return };
            if entry.closing || entry.connection.is_ending() {
                return;
            }
            let served = entry.is_served() && !entry.paused;
            let Transport::Tls(tls) = &mut entry.transport else { return };
            if !served {
                return tls.keep(bytes);
            }
            let taken = tls.complete(bytes);
            bytes = &mut std::mem::take(&mut bytes)[taken..];
            if tls.has_whole_record() {
                let mut kept = tls.take_incoming();
                let mut wire = self.buffers.take();
                let opened = tls.open(&mut kept, &mut wire);
                tls.keep(&kept[opened.consumed..]);
                self.queue_wire(key, wire);
                self.deliver(key, &mut kept[opened.plaintext], opened.end);
            } else if !tls.incoming().is_empty() || bytes.is_empty() {
                break;
            } else {
                let mut wire = self.buffers.take();
                let opened = tls.open(bytes, &mut wire);
                tls.keep(&bytes[opened.consumed..]);
                self.queue_wire(key, wire);
                self.deliver(key, &mut bytes[opened.plaintext], opened.end);
                break;
            }
        }
        // The peer's FIN may have come while records were kept back.
        if self.entries.get(key).is_some_and(|entry| entry.end_waits && !entry.paused) {
            self.settle(key);
        }
    }

    fn deliver(&mut self, key: usize, plaintext: &mut [u8], end: Option<End>) {
        if !plaintext.is_empty() {
            self.on_bytes(key, plaintext);
        }
        if self.entries.get(key).is_none_or(|entry| entry.closing) {
            return;
        }
        match end {
            Some(End::Closed) => self.on_receive_end(key, ReceiveEnd::Fin),
            Some(End::Failed(error)) => self.fail_transport(key, &error),
            None if plaintext.is_empty() => self.settle(key),
            None => {}
        }
    }

    /// TLS has failed: the alert goes out, then the connection ends.
    fn fail_transport(&mut self, key: usize, error: &Error) {
        let entry = &mut self.entries[key];
        tracing::debug!(connection = entry.id, peer = %entry.peer, "TLS: {error}");
        *self.status.tls_failures.entry(error.code().to_owned()).or_insert(0) += 1;
        entry.connection.end();
        self.end_sessions(key);
        let entry = &mut self.entries[key];
        let environment = Environment::new(&self.configure.config, self.now_ms, b"");
        entry.connection.on_progress(&environment, Progress::None, entry.queued() > 0);
        self.settle(key);
    }

    /// Makes wire bytes of output.
    pub(super) fn seal_output(&mut self, key: usize, out: &mut Vec<u8>) {
        let rekey_after = self.tls.as_ref().map_or(u64::MAX, |tls| tls.rekey_after);
        let entry = &mut self.entries[key];
        if entry.connection.send_is_shut {
            return out.clear();
        }
        if let Err(error) = entry.transport.seal(out, rekey_after) {
            tracing::debug!(connection = entry.id, "TLS: {error}");
            entry.connection.end();
            self.end_sessions(key);
        }
        let entry = &mut self.entries[key];
        if entry.connection.is_ending() {
            entry.transport.close(out);
        }
    }

    /// Queues close_notify, if that is due; true if there is something to be sent.
    pub(super) fn say_goodbye(&mut self, key: usize) -> bool {
        let entry = &mut self.entries[key];
        if entry.transport.is_plain() {
            return false;
        }
        let mut wire = self.buffers.take();
        entry.transport.close(&mut wire);
        let is_due = !wire.is_empty();
        self.queue_wire(key, wire);
        is_due
    }

    /// The keys of session tickets in a sealed memory, for a later supervisor.
    pub(super) fn ticket_keys(&self) -> Option<OwnedFd> {
        Credentials::default().seal(&self.tls.as_ref()?.ring).ok()
    }

    /// The supervisor has changed the keys of session tickets.
    pub(super) fn on_ticket_keys(&mut self, descriptors: &[OwnedFd]) {
        let Some(tls) = &mut self.tls else { return };
        match descriptors.first().map(Credentials::receive) {
            Some(Ok(credentials)) => tls.set_ticket_keys(&credentials),
            Some(Err(error)) => tracing::error!("ticket keys: {error}"),
            None => tracing::error!("ticket keys were announced and did not come"),
        }
    }
}
