//! TLS 1.3 (RFC 8446) and 1.2 (RFC 5246): the server's end of one connection, movable between any two
//! bytes.
//!
//! The handshake is rustls's ([`Handshake`]); it gets exactly one record at a time, so that when it is
//! over no byte of what follows has entered it. Then its secrets are taken out and a record layer of
//! our own goes on: [`Tls`]. That one can be saved and restored, which no TLS library offers.
//!
//! | file | what it does |
//! |---|---|
//! | `suite`, `keys` | versions, cipher suites; secrets, and the keys made from them |
//! | `record` | one direction: opens and seals records in place |
//! | `hello` | what has come before anything is answered: bytes, which can move |
//! | `handshake` | rustls, one record at a time, and the proof that secrets and keys belong together |
//! | `server` | certificates by name, client certificates, what a handshake needs |
//! | `tickets` | session tickets under keys that all workers share |
//! | `persist` | the saved form |
//! | `error` | what can be wrong, as alerts |
//!
//! Must not know: I/O, clocks of connections, what the plaintext means. (The handshake library draws its own
//! randomness, and reads the wall clock to judge certificates.)

mod error;
mod handshake;
mod hello;
mod keys;
#[cfg(any(test, feature = "fault-points"))]
pub mod nonces;
mod persist;
mod record;
mod server;
mod suite;
mod tickets;

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::rc::Rc;

pub use error::Error;
pub use handshake::{Handshake, Step};
pub use hello::Hello;
pub use persist::{RestoreError, TlsHead, TlsState};
pub use record::MAX_RECORD_BYTES;
pub use server::{CertificateAndKey, ClientCertificates, Server, ServerError, ServerOptions};
pub use suite::{Suite, Version};
pub use tickets::{TicketKey, Tickets};

use error::alert;
use record::{Direction, HEADER_BYTES, content, record_bytes};

/// Key updates that a peer may send between two records with data (RFC 8446 has no limit).
const MAX_KEY_UPDATES: u8 = 32;
/// Empty records that a peer may send in a row.
const MAX_EMPTY_RECORDS: u8 = 32;
/// Warnings that a peer may send in all.
const MAX_WARNINGS: u8 = 4;

/// RFC 8446 §5.5, rounded down: records under one AES-GCM key.
const MOST_GCM_RECORDS: u64 = 1 << 24;
/// TLS 1.2 cannot change its key; it stops so far before that limit that all output of one turn, and
/// the alert behind it, still fit.
const GCM_RESERVE: u64 = 1 << 14;

const KEY_UPDATE: u8 = 24;
const CLIENT_HELLO: u8 = 1;

/// What was agreed in the handshake besides keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct About {
    /// The name that the client asked for.
    pub server_name: Option<Box<str>>,
    /// The application protocol.
    pub protocol: Option<Protocol>,
    /// The client's certificate (DER), whose chain was verified.
    pub client_certificate: Option<Box<[u8]>>,
}

/// An application protocol (RFC 7301).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `http/1.1`
    Http11,
    /// `h2`
    H2,
}

impl Protocol {
    /// Its name in ALPN.
    pub fn name(self) -> &'static [u8] {
        match self {
            Protocol::Http11 => b"http/1.1",
            Protocol::H2 => b"h2",
        }
    }
}

/// What [`Tls::open`] has done with a buffer.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened {
    /// Bytes of the buffer that are used up; the rest is the beginning of a record.
    pub consumed: usize,
    /// Where the plaintext is, in one piece.
    pub plaintext: Range<usize>,
    /// Set if nothing comes after it.
    pub end: Option<End>,
}

/// How the receiving direction ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// close_notify: in good order.
    Closed,
    /// By an error; its alert has been written.
    Failed(Error),
}

/// One connection after its handshake. See the module.
#[derive(Debug)]
pub struct Tls {
    receive: Direction,
    send: Direction,
    /// Received and not opened.
    incoming: Vec<u8>,
    /// The beginning of a handshake message whose end is in a later record.
    fragment: [u8; 4],
    fragment_bytes: u8,
    /// Bytes of a refused ClientHello that are still to come.
    skip_bytes: u32,
    key_updates: u8,
    empty_records: u8,
    warnings: u8,
    has_refused_renegotiation: bool,
    close_received: bool,
    /// An error was found: nothing is opened any more.
    failed: bool,
    /// close_notify or an alert was sent: nothing is sealed any more.
    close_sent: bool,
    /// False from its restoration until the process owns the connection: nothing may be sealed.
    started: bool,
    about: Option<Rc<About>>,
}

impl Tls {
    /// After a handshake.
    fn new(receive: Direction, send: Direction, about: About, incoming: Vec<u8>) -> Self {
        Self {
            receive,
            send,
            incoming,
            fragment: [0; 4],
            fragment_bytes: 0,
            skip_bytes: 0,
            key_updates: 0,
            empty_records: 0,
            warnings: 0,
            has_refused_renegotiation: false,
            close_received: false,
            failed: false,
            close_sent: false,
            started: true,
            about: (about != About::default()).then(|| Rc::new(about)),
        }
    }

    /// The protocol version.
    pub fn version(&self) -> Version {
        self.receive.version
    }

    /// The cipher suite.
    pub fn suite(&self) -> Suite {
        self.receive.suite
    }

    /// What was agreed besides keys; `None` if nothing was.
    pub fn about(&self) -> Option<Rc<About>> {
        self.about.clone()
    }

    /// Bytes that were received and not opened.
    pub fn incoming(&self) -> &[u8] {
        &self.incoming
    }

    /// Keeps received bytes without looking at them.
    pub fn keep(&mut self, bytes: &[u8]) {
        if !self.is_deaf() {
            self.incoming.extend_from_slice(bytes);
        }
    }

    /// Takes the kept bytes, to be opened; what that leaves goes back by [`Tls::keep`].
    pub fn take_incoming(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.incoming)
    }

    /// Completes the record whose beginning is kept with the front of `bytes`; returns how many were
    /// taken. Without anything kept it takes nothing: records are opened where they arrived.
    pub fn complete(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while !self.incoming.is_empty() {
            // An impossible header is found again, and reported, when it is opened.
            let wanted = match record_bytes(&self.incoming) {
                Ok(Some(total)) => total,
                Ok(None) => HEADER_BYTES,
                Err(_) => break,
            };
            let missing = wanted.saturating_sub(self.incoming.len()).min(bytes.len() - taken);
            if missing == 0 {
                break;
            }
            self.incoming.reserve_exact(missing);
            self.incoming.extend_from_slice(&bytes[taken..taken + missing]);
            taken += missing;
        }
        taken
    }

    /// True if what is kept has at least one whole record, or something that can never become one.
    pub fn has_whole_record(&self) -> bool {
        match record_bytes(&self.incoming) {
            Ok(Some(total)) => self.incoming.len() >= total,
            Ok(None) => false,
            Err(_) => true,
        }
    }

    /// True once nothing that arrives is looked at any more.
    pub fn is_deaf(&self) -> bool {
        self.close_received || self.failed
    }

    /// True once nothing can be sent any more.
    pub fn is_mute(&self) -> bool {
        self.close_sent
    }

    /// From now on records may be sealed: the connection belongs to this process.
    pub fn start(&mut self) {
        self.started = true;
    }

    /// Opens all whole records of `buffer`. What has to be answered at once is sealed to `output`.
    pub fn open(&mut self, buffer: &mut [u8], output: &mut Vec<u8>) -> Opened {
        let mut opened = Opened { consumed: 0, plaintext: 0..0, end: None };
        loop {
            if self.is_deaf() {
                opened.consumed = buffer.len(); // RFC 8446 §6.1
                return opened;
            }
            match self.open_one(buffer, &mut opened, output) {
                Ok(true) => {}
                Ok(false) => return opened,
                Err(error) => {
                    self.failed = true;
                    self.fail(&error, output);
                    opened.end = Some(End::Failed(error));
                }
            }
        }
    }

    fn open_one(
        &mut self,
        buffer: &mut [u8],
        opened: &mut Opened,
        output: &mut Vec<u8>,
    ) -> Result<bool, Error> {
        let at = opened.consumed;
        let total = match record_bytes(&buffer[at..])? {
            Some(total) if total <= buffer.len() - at => total,
            _ => return Ok(false),
        };
        let target = (!opened.plaintext.is_empty()).then_some(opened.plaintext.end);
        let (kind, plain) = self.receive.open(buffer, at..at + total, target)?;
        opened.consumed = at + total;
        if self.fragment_bytes > 0 && kind != content::HANDSHAKE {
            return Err(Error::Unexpected("a record between the parts of a handshake message"));
        }
        match kind {
            content::APPLICATION_DATA if plain.is_empty() => {
                self.empty_records += 1;
                if self.empty_records > MAX_EMPTY_RECORDS {
                    return Err(Error::Flood("empty records"));
                }
            }
            content::APPLICATION_DATA => {
                self.empty_records = 0;
                self.key_updates = 0;
                if opened.plaintext.is_empty() {
                    opened.plaintext = plain;
                } else {
                    opened.plaintext.end = plain.end;
                }
            }
            content::ALERT => {
                if self.on_alert(&buffer[plain])? {
                    self.close_received = true;
                    opened.end = Some(End::Closed);
                }
            }
            content::HANDSHAKE if plain.is_empty() => {
                return Err(Error::Unexpected("an empty handshake record")); // RFC 8446 §5.1
            }
            content::HANDSHAKE => match self.version() {
                Version::Tls13 => self.on_handshake13(&buffer[plain], output)?,
                Version::Tls12 => self.on_handshake12(&buffer[plain], output)?,
            },
            _ => return Err(Error::Unexpected("a record of another type")),
        }
        Ok(true)
    }

    /// RFC 8446 §6, RFC 5246 §7.2. True for close_notify.
    fn on_alert(&mut self, content: &[u8]) -> Result<bool, Error> {
        let &[level, description] = content else {
            return Err(Error::Malformed("an alert is two bytes in a record of its own"));
        };
        if description == alert::CLOSE_NOTIFY {
            return Ok(true);
        }
        let is_warning = match self.version() {
            Version::Tls13 => description == alert::USER_CANCELED,
            Version::Tls12 => match level {
                alert::WARNING => true,
                alert::FATAL => false,
                _ => return Err(Error::Illegal("the level of an alert")),
            },
        };
        if !is_warning {
            return Err(Error::PeerAlert(description));
        }
        self.warnings += 1;
        if self.warnings > MAX_WARNINGS {
            return Err(Error::Flood("warnings"));
        }
        Ok(false)
    }

    /// After a TLS 1.3 handshake a client may send nothing but KeyUpdate (RFC 8446 §4.6.3).
    fn on_handshake13(&mut self, content: &[u8], output: &mut Vec<u8>) -> Result<(), Error> {
        const BYTES: usize = 5;
        let had = usize::from(self.fragment_bytes);
        let mut message = [0; BYTES];
        message[..had].copy_from_slice(&self.fragment[..had]);
        let taken = content.len().min(BYTES - had);
        message[had..had + taken].copy_from_slice(&content[..taken]);
        let have = had + taken;
        if message[0] != KEY_UPDATE {
            return Err(Error::Unexpected("a handshake message after the handshake"));
        }
        if message[1..have.clamp(1, 4)] != [0, 0, 1][..have.clamp(1, 4) - 1] {
            return Err(Error::Malformed("the length of a key update"));
        }
        if have < BYTES {
            self.fragment[..have].copy_from_slice(&message[..have]);
            self.fragment_bytes = have as u8;
            return Ok(());
        }
        if taken < content.len() {
            // RFC 8446 §5.1: what follows is under another key.
            return Err(Error::Unexpected("bytes behind a key update"));
        }
        self.fragment_bytes = 0;
        let is_requested = match message[4] {
            0 => false,
            1 => true,
            _ => return Err(Error::Illegal("a key update")),
        };
        self.key_updates += 1;
        if self.key_updates > MAX_KEY_UPDATES {
            return Err(Error::Flood("key updates"));
        }
        self.receive.ratchet();
        if is_requested {
            self.update_key(false, output);
        }
        Ok(())
    }

    /// A TLS 1.2 client may ask for another handshake (RFC 5246 §7.4.1). It does not get one.
    fn on_handshake12(&mut self, mut content: &[u8], output: &mut Vec<u8>) -> Result<(), Error> {
        while !content.is_empty() {
            if self.skip_bytes > 0 {
                let skipped = content.len().min(self.skip_bytes as usize);
                self.skip_bytes -= skipped as u32;
                content = &content[skipped..];
                continue;
            }
            let had = usize::from(self.fragment_bytes);
            let taken = content.len().min(4 - had);
            self.fragment[had..had + taken].copy_from_slice(&content[..taken]);
            self.fragment_bytes += taken as u8;
            content = &content[taken..];
            if self.fragment[0] != CLIENT_HELLO {
                return Err(Error::Unexpected("a handshake message after the handshake"));
            }
            if self.has_refused_renegotiation {
                return Err(Error::Flood("attempts to renegotiate"));
            }
            if self.fragment_bytes == 4 {
                let [_, high, middle, low] = self.fragment;
                self.fragment_bytes = 0;
                self.skip_bytes = u32::from_be_bytes([0, high, middle, low]);
                if self.skip_bytes as usize > MAX_RECORD_BYTES {
                    return Err(Error::Malformed("the length of a ClientHello"));
                }
                self.has_refused_renegotiation = true;
                self.send_alert(alert::WARNING, alert::NO_RENEGOTIATION, output);
            }
        }
        Ok(())
    }

    /// Sends a KeyUpdate and switches to the next key.
    pub fn update_key(&mut self, request: bool, output: &mut Vec<u8>) {
        if self.close_sent || self.version() != Version::Tls13 {
            return;
        }
        self.assert_started();
        let start = output.len();
        output.extend_from_slice(&[KEY_UPDATE, 0, 0, 1, u8::from(request)]);
        self.send.seal(content::HANDSHAKE, output, start);
        self.send.ratchet();
    }

    /// Seals all of `output`, in place. After `rekey_after` records the key is changed first.
    ///
    /// # Errors
    /// [`Error::KeyUsedUp`] where it cannot be changed any more; nothing is left in `output` then, and
    /// only [`Tls::close`] makes sense.
    pub fn seal(&mut self, output: &mut Vec<u8>, rekey_after: u64) -> Result<(), Error> {
        if self.close_sent {
            output.clear();
        }
        if output.is_empty() {
            return Ok(());
        }
        self.assert_started();
        let mut start = 0;
        if self.send.sequence >= rekey_after.min(MOST_GCM_RECORDS - GCM_RESERVE) {
            start = self.change_key(output)?;
        }
        self.send.seal(content::APPLICATION_DATA, output, start);
        Ok(())
    }

    /// Puts a KeyUpdate before what is to be sealed; returns where that begins.
    #[cold]
    fn change_key(&mut self, output: &mut Vec<u8>) -> Result<usize, Error> {
        match (self.version(), self.suite()) {
            (Version::Tls13, _) => {
                let mut update = Vec::new();
                self.update_key(false, &mut update);
                let start = update.len();
                output.splice(..0, update);
                Ok(start)
            }
            // No limit that can be reached (RFC 8446 §5.5).
            (Version::Tls12, Suite::ChaCha20Poly1305) => Ok(0),
            (Version::Tls12, _) if self.send.sequence < MOST_GCM_RECORDS - GCM_RESERVE => Ok(0),
            (Version::Tls12, _) => {
                output.clear();
                Err(Error::KeyUsedUp)
            }
        }
    }

    /// Says that nothing more will be sent: close_notify, once.
    pub fn close(&mut self, output: &mut Vec<u8>) {
        self.send_alert(alert::WARNING, alert::CLOSE_NOTIFY, output);
        self.close_sent = true;
    }

    /// Tells the peer about an error, after which nothing more is sent.
    fn fail(&mut self, error: &Error, output: &mut Vec<u8>) {
        if let Some(description) = error.alert() {
            self.send_alert(alert::FATAL, description, output);
        }
        self.close_sent = true;
    }

    fn send_alert(&mut self, level: u8, description: u8, output: &mut Vec<u8>) {
        if self.close_sent {
            return;
        }
        self.assert_started();
        let start = output.len();
        output.extend_from_slice(&[level, description]);
        self.send.seal(content::ALERT, output, start);
    }

    /// Two processes must never seal with the same key and number: better none does.
    fn assert_started(&self) {
        assert!(self.started, "a record is sealed before its connection belongs to this process");
    }
}
