//! The saved form of a [`Tls`]: everything but the keys, which are made from its secrets again.
//!
//! There is no text form, and secrets are overwritten when the saved form is dropped. Whoever moves
//! one encrypts it. A restored connection can be looked at, but it seals nothing until
//! [`Tls::start`].
//!
//! Must not know: the envelope and section tags around it.

use bytemuck::{Pod, Zeroable};
use zeroize::Zeroize;

use super::keys::{MAX_SECRET_BYTES, Material, NONCE_BYTES};
use super::record::Direction;
use super::suite::{Suite, Version};
use super::{About, Protocol, Tls};

/// The fixed part. The tail behind it is the server name and the client's certificate. May grow at
/// its end.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct TlsHead {
    receive_sequence: u64,
    send_sequence: u64,
    /// Traffic secret, or key in TLS 1.2.
    receive_secret: [u8; MAX_SECRET_BYTES],
    send_secret: [u8; MAX_SECRET_BYTES],
    /// In TLS 1.2.
    receive_nonce: [u8; NONCE_BYTES],
    send_nonce: [u8; NONCE_BYTES],
    skip_bytes: u32,
    client_certificate_bytes: u32,
    server_name_bytes: u16,
    flags: u16,
    fragment: [u8; 4],
    /// 12 or 13.
    version: u8,
    /// Index in [`Suite::ALL`].
    suite: u8,
    /// 0 none, 1 http/1.1, 2 h2.
    protocol: u8,
    fragment_bytes: u8,
    key_updates: u8,
    empty_records: u8,
    warnings: u8,
    _zero: [u8; 1],
}

const _: () = assert!(size_of::<TlsHead>() == 160);

const FLAG_REFUSED_RENEGOTIATION: u16 = 1 << 0;
const FLAG_CLOSE_RECEIVED: u16 = 1 << 1;
const FLAG_FAILED: u16 = 1 << 2;
const FLAG_CLOSE_SENT: u16 = 1 << 3;
const KNOWN_FLAGS: u16 = (1 << 4) - 1;

/// Longest server name (RFC 1035 §2.3.4).
const MAX_SERVER_NAME_BYTES: usize = 255;

/// A saved connection. Overwrites itself when dropped, and shows nothing.
pub struct TlsState<'a> {
    /// The fixed part.
    pub head: TlsHead,
    /// The tail.
    pub tail: [&'a [u8]; 2],
}

impl std::fmt::Debug for TlsState<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("TlsState(..)")
    }
}

impl Drop for TlsState<'_> {
    fn drop(&mut self) {
        self.head.wipe();
    }
}

impl TlsHead {
    /// Overwrites the secrets.
    pub fn wipe(&mut self) {
        self.receive_secret.zeroize();
        self.send_secret.zeroize();
        self.receive_nonce.zeroize();
        self.send_nonce.zeroize();
    }
}

/// Why a saved connection is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// No build writes this.
    #[error("TLS state: {0} is out of range")]
    OutOfRange(&'static str),
}

fn padded(secret: &[u8]) -> [u8; MAX_SECRET_BYTES] {
    let mut padded = [0; MAX_SECRET_BYTES];
    padded[..secret.len()].copy_from_slice(secret);
    padded
}

impl Tls {
    /// The complete state but for [`Tls::incoming`].
    pub fn save(&self) -> TlsState<'_> {
        let flag = |condition: bool, flag: u16| if condition { flag } else { 0 };
        let about = self.about.as_deref();
        let name = about.and_then(|about| about.server_name.as_deref()).unwrap_or("").as_bytes();
        let certificate =
            about.and_then(|about| about.client_certificate.as_deref()).unwrap_or(&[]);
        let head = TlsHead {
            receive_sequence: self.receive.sequence,
            send_sequence: self.send.sequence,
            receive_secret: padded(self.receive.material.secret()),
            send_secret: padded(self.send.material.secret()),
            receive_nonce: *self.receive.material.nonce(),
            send_nonce: *self.send.material.nonce(),
            skip_bytes: self.skip_bytes,
            client_certificate_bytes: certificate.len() as u32,
            server_name_bytes: name.len() as u16,
            flags: flag(self.has_refused_renegotiation, FLAG_REFUSED_RENEGOTIATION)
                | flag(self.close_received, FLAG_CLOSE_RECEIVED)
                | flag(self.failed, FLAG_FAILED)
                | flag(self.close_sent, FLAG_CLOSE_SENT),
            fragment: self.fragment,
            version: match self.version() {
                Version::Tls12 => 12,
                Version::Tls13 => 13,
            },
            suite: Suite::ALL.iter().position(|one| *one == self.suite()).unwrap_or(0) as u8,
            protocol: match about.and_then(|about| about.protocol) {
                None => 0,
                Some(Protocol::Http11) => 1,
                Some(Protocol::H2) => 2,
            },
            fragment_bytes: self.fragment_bytes,
            key_updates: self.key_updates,
            empty_records: self.empty_records,
            warnings: self.warnings,
            _zero: [0],
        };
        TlsState { head, tail: [name, certificate] }
    }

    /// Bytes of the tail of [`Tls::save`], and of what is kept beside it.
    pub fn saved_bytes(&self) -> usize {
        self.incoming.len() + self.save().tail.iter().map(|part| part.len()).sum::<usize>()
    }

    /// A connection that goes on where the saved one stopped, once it is started. Whatever the head
    /// and tail hold, this is safe.
    ///
    /// # Errors
    /// If no machine could be in this state.
    pub fn restore(head: &TlsHead, tail: &[u8], incoming: &[u8]) -> Result<Self, RestoreError> {
        let refuse = RestoreError::OutOfRange;
        let version = match head.version {
            12 => Version::Tls12,
            13 => Version::Tls13,
            _ => return Err(refuse("the version")),
        };
        let suite = *Suite::ALL.get(usize::from(head.suite)).ok_or(refuse("the suite"))?;
        let direction = |secret: &[u8; MAX_SECRET_BYTES], nonce: &[u8; NONCE_BYTES], sequence| {
            let (len, nonce): (usize, &[u8]) = match version {
                Version::Tls12 => (suite.key_bytes(), nonce),
                Version::Tls13 => (suite.secret_bytes(), &[]),
            };
            let material = Material::new(version, suite, &secret[..len], nonce)?;
            Some(Direction::new(version, suite, material, sequence))
        };
        let receive = direction(&head.receive_secret, &head.receive_nonce, head.receive_sequence)
            .ok_or(refuse("the receiving key"))?;
        let send = direction(&head.send_secret, &head.send_nonce, head.send_sequence)
            .ok_or(refuse("the sending key"))?;
        if head.receive_sequence > 1 << 62 || head.send_sequence > 1 << 62 {
            return Err(refuse("a sequence number"));
        }
        if head.flags & !KNOWN_FLAGS != 0 {
            return Err(refuse("a flag"));
        }
        if usize::from(head.fragment_bytes) > head.fragment.len()
            || (version == Version::Tls12
                && usize::from(head.fragment_bytes) == head.fragment.len())
        {
            return Err(refuse("the handshake fragment"));
        }
        let protocol = match head.protocol {
            0 => None,
            1 => Some(Protocol::Http11),
            2 => Some(Protocol::H2),
            _ => return Err(refuse("the application protocol")),
        };
        let name_bytes = usize::from(head.server_name_bytes);
        if name_bytes > MAX_SERVER_NAME_BYTES
            || name_bytes + head.client_certificate_bytes as usize != tail.len()
        {
            return Err(refuse("the length of the names"));
        }
        let (name, certificate) = tail.split_at(name_bytes);
        let name = std::str::from_utf8(name).map_err(|_| refuse("the server name"))?;
        let about = About {
            server_name: (!name.is_empty()).then(|| name.into()),
            protocol,
            client_certificate: (!certificate.is_empty()).then(|| certificate.into()),
        };
        let flag = |flag: u16| head.flags & flag != 0;
        let mut tls = Tls::new(receive, send, about, incoming.to_vec());
        tls.fragment = head.fragment;
        tls.fragment_bytes = head.fragment_bytes;
        tls.skip_bytes = head.skip_bytes;
        tls.key_updates = head.key_updates;
        tls.empty_records = head.empty_records;
        tls.warnings = head.warnings;
        tls.has_refused_renegotiation = flag(FLAG_REFUSED_RENEGOTIATION);
        tls.close_received = flag(FLAG_CLOSE_RECEIVED);
        tls.failed = flag(FLAG_FAILED);
        tls.close_sent = flag(FLAG_CLOSE_SENT);
        tls.started = false;
        Ok(tls)
    }
}
