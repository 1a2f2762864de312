//! The handshake: rustls, which gets exactly one more record at a time.
//!
//! The order of things matters. The library must not see a byte of what follows the handshake: it would
//! keep half records and plaintext that nobody can take out again. And it shows the traffic secrets,
//! from which later keys come, only to a key log, while it is called: what that sees during a call belongs to the
//! connection that was called, so handshakes that take turns cannot mix. At the end the keys
//! made from those secrets must be the ones that the library hands out; otherwise nothing goes on.
//!
//! Must not know: sockets, the clock.

use std::cell::RefCell;
use std::sync::Arc;

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, InsufficientSizeError, UnbufferedStatus};
use rustls::{ConnectionTrafficSecrets, KeyLog, ServerConfig};
use zeroize::Zeroizing;

use super::error::Error;
use super::keys::Material;
use super::record::{Direction, record_bytes};
use super::suite::{Suite, Version};
use super::{About, Protocol, Tls};

/// Most bytes that a client may send before its handshake is over: chains of certificates are long,
/// but not endless.
pub(super) const MAX_HANDSHAKE_BYTES: usize = 128 << 10;

/// What rustls shows while it is called.
#[derive(Default)]
struct Seen {
    client_secret: Option<Zeroizing<Vec<u8>>>,
    server_secret: Option<Zeroizing<Vec<u8>>>,
    server_name: Option<Box<str>>,
}

thread_local! {
    static SEEN: RefCell<Seen> = RefCell::default();
}

/// The sink of the traffic secrets.
#[derive(Debug)]
pub(super) struct Sink;

impl KeyLog for Sink {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        SEEN.with_borrow_mut(|seen| match label {
            "CLIENT_TRAFFIC_SECRET_0" => seen.client_secret = Some(Zeroizing::new(secret.to_vec())),
            "SERVER_TRAFFIC_SECRET_0" => seen.server_secret = Some(Zeroizing::new(secret.to_vec())),
            _ => {}
        });
    }
}

/// Called when a certificate is chosen: rustls tells the name only then.
pub(super) fn on_server_name(name: Option<&str>) {
    SEEN.with_borrow_mut(|seen| seen.server_name = name.map(Into::into));
}

/// A handshake after some input.
#[derive(Debug)]
pub enum Step {
    /// It needs more.
    GoesOn(Box<Handshake>),
    /// It is over; what the client has sent beyond it is in [`Tls::incoming`].
    Done(Box<Tls>),
    /// It failed; the alert has been written.
    Failed(Error),
}

/// A handshake in progress.
pub struct Handshake {
    connection: UnbufferedServerConnection,
    /// Received and not discarded.
    input: Zeroizing<Vec<u8>>,
    /// So much of it has been given to the library.
    fed: usize,
    received: usize,
    has_kept: bool,
    seen: Seen,
}

impl std::fmt::Debug for Handshake {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Handshake")
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

impl Handshake {
    /// For a connection that was just accepted.
    ///
    /// # Errors
    /// If the library does not like the configuration.
    pub(super) fn new(config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        Ok(Self {
            connection: UnbufferedServerConnection::new(config)?,
            input: Zeroizing::default(),
            fed: 0,
            received: 0,
            has_kept: false,
            seen: Seen::default(),
        })
    }

    /// Keeps received bytes without looking at them.
    pub fn keep(&mut self, bytes: &[u8]) {
        if self.received <= MAX_HANDSHAKE_BYTES {
            self.received += bytes.len();
            self.input.extend_from_slice(bytes);
            self.has_kept = true;
        }
    }

    /// True if bytes were kept that nobody has looked at.
    pub fn has_kept(&self) -> bool {
        self.has_kept
    }

    /// Goes on with received bytes; appends what must be sent.
    pub fn handle_input(mut self: Box<Self>, bytes: &[u8], output: &mut Vec<u8>) -> Step {
        self.received += bytes.len();
        self.input.extend_from_slice(bytes);
        self.has_kept = false;
        match self.advance(output) {
            Ok(false) if self.received > MAX_HANDSHAKE_BYTES => {
                Step::Failed(Error::Flood("bytes in a handshake"))
            }
            Ok(false) => Step::GoesOn(self),
            Ok(true) => match self.finish() {
                Ok(tls) => Step::Done(Box::new(tls)),
                Err(error) => Step::Failed(error),
            },
            Err(error) => Step::Failed(error),
        }
    }

    /// True when the handshake is over.
    fn advance(&mut self, output: &mut Vec<u8>) -> Result<bool, Error> {
        let mut failure: Option<Error> = None;
        loop {
            SEEN.take();
            let fed = self.fed;
            let UnbufferedStatus { discard, state } =
                self.connection.process_tls_records(&mut self.input[..fed]);
            let seen = SEEN.take();
            self.seen.client_secret = seen.client_secret.or(self.seen.client_secret.take());
            self.seen.server_secret = seen.server_secret.or(self.seen.server_secret.take());
            self.seen.server_name = seen.server_name.or(self.seen.server_name.take());
            let (mut wants, mut done) = (false, false);
            match state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    let at = output.len();
                    let written = match data.encode(&mut []) {
                        Ok(written) => written,
                        Err(EncodeError::InsufficientSize(InsufficientSizeError {
                            required_size,
                        })) => {
                            output.resize(at + required_size, 0);
                            data.encode(&mut output[at..]).map_err(internal)?
                        }
                        Err(error) => return Err(internal(error)),
                    };
                    output.truncate(at + written);
                }
                // It is in the output; whoever owns that sends it in order.
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::BlockedHandshake) => wants = true,
                // Also before Finished has come: the server could speak first.
                Ok(ConnectionState::WriteTraffic(_)) => done = true,
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                    return Err(Error::PeerAlert(super::alert::CLOSE_NOTIFY));
                }
                Ok(_) => return Err(internal("a state that does not occur")),
                Err(error) => {
                    failure = Some(match error {
                        rustls::Error::AlertReceived(alert) => Error::PeerAlert(alert.into()),
                        error => Error::Handshake(error.to_string()),
                    });
                }
            }
            self.input.drain(..discard);
            self.fed -= discard;
            if let Some(error) = &failure {
                // Its alert first. Asked once more than that, the library would look at the bad input
                // again, and panic.
                if self.connection.wants_write() {
                    continue;
                }
                return Err(error.clone());
            }
            if done {
                if !self.connection.is_handshaking() {
                    return Ok(true);
                }
                wants = true;
            }
            if wants {
                match record_bytes(&self.input[self.fed..]) {
                    Ok(Some(total)) if total <= self.input.len() - self.fed => self.fed += total,
                    Ok(_) => return Ok(false),
                    // The library finds the same fault, and has the words for it.
                    Err(_) if self.input.len() > self.fed => self.fed = self.input.len(),
                    Err(error) => return Err(error),
                }
            }
        }
    }

    fn finish(self) -> Result<Tls, Error> {
        let Self { connection, input, fed, seen, .. } = self;
        if fed != 0 {
            return Err(internal("bytes are left in a handshake that is over"));
        }
        let protocol = match connection.alpn_protocol() {
            Some(b"h2") => Some(Protocol::H2),
            Some(b"http/1.1") => Some(Protocol::Http11),
            _ => None,
        };
        let client_certificate = connection
            .peer_certificates()
            .and_then(|chain| chain.first())
            .map(|leaf| leaf.as_ref().into());
        let version = match connection.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => Version::Tls13,
            Some(rustls::ProtocolVersion::TLSv1_2) => Version::Tls12,
            other => return Err(internal(format!("version {other:?}"))),
        };
        let about = About { server_name: seen.server_name, protocol, client_certificate };
        let (secrets, kernel) = connection.dangerous_into_kernel_connection().map_err(internal)?;
        drop(kernel);
        let receive = direction(version, &secrets.rx, seen.client_secret)?;
        let send = direction(version, &secrets.tx, seen.server_secret)?;
        Ok(Tls::new(receive, send, about, input.to_vec()))
    }
}

fn internal(error: impl std::fmt::Display) -> Error {
    Error::Handshake(error.to_string())
}

/// The keys of one direction, and in TLS 1.3 the proof that the secret is theirs.
fn direction(
    version: Version,
    extracted: &(u64, ConnectionTrafficSecrets),
    secret: Option<Zeroizing<Vec<u8>>>,
) -> Result<Direction, Error> {
    let (sequence, secrets) = extracted;
    let (suite, key, nonce) = match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Suite::Aes128Gcm, key, iv),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Suite::Aes256Gcm, key, iv),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
            (Suite::ChaCha20Poly1305, key, iv)
        }
        _ => return Err(Error::Mismatch),
    };
    let material = match version {
        Version::Tls12 => {
            tied(version, suite, key.as_ref(), iv_bytes(nonce), key.as_ref(), iv_bytes(nonce))
        }
        Version::Tls13 => {
            let secret = secret.ok_or(Error::Mismatch)?;
            tied(version, suite, &secret, &[], key.as_ref(), iv_bytes(nonce))
        }
    }?;
    Ok(Direction::new(version, suite, material, *sequence))
}

/// The material of a direction, if the key and nonce made from it are the ones in use.
pub(super) fn tied(
    version: Version,
    suite: Suite,
    secret: &[u8],
    secret_nonce: &[u8],
    key: &[u8],
    nonce: &[u8],
) -> Result<Material, Error> {
    let material = Material::new(version, suite, secret, secret_nonce).ok_or(Error::Mismatch)?;
    let derived = material.key_and_nonce(version, suite);
    if derived.key() != key || derived.nonce()[..] != *nonce {
        return Err(Error::Mismatch);
    }
    Ok(material)
}

fn iv_bytes(iv: &rustls::crypto::cipher::Iv) -> &[u8] {
    iv.as_ref()
}
