//! What lies between a socket's bytes and the protocol stack: nothing, a TLS handshake, or TLS.
//!
//! Received bytes enter here first and output leaves here last. What travels with a connection is the
//! state of its [`Tls`], and the bytes that it has received and not opened; or, before anything has been
//! answered, the bytes of its [`Hello`]. A handshake between the two does not travel.
//!
//! Must not know: I/O, what the plaintext means.

use crate::proto::tls::{self, Handshake, Hello, Protocol, Tls, TlsHead};
use crate::state::{Record, Writer};

use super::RestoreError;

/// TLS after its handshake: secrets, sequence numbers, flags, names.
pub const TAG_TLS: u16 = 10;
/// Received bytes that were not opened (tail only).
pub const TAG_TLS_INCOMING: u16 = 11;
/// TLS before its first answer: what has come of the ClientHello (tail only).
pub const TAG_TLS_HELLO: u16 = 48;

/// Most unopened bytes of a connection that are taken over.
const MAX_INCOMING_BYTES: usize = 32 << 20;

/// See the module.
#[derive(Debug, Default)]
pub enum Transport {
    /// Bytes are what they are.
    #[default]
    Plain,
    /// TLS is expected, and nothing has been answered.
    Hello(Hello),
    /// No plaintext goes in or out yet.
    Handshake(Box<Handshake>),
    /// Encrypted.
    Tls(Box<Tls>),
    /// A handshake failed: nothing goes in or out any more.
    Failed,
}

impl Transport {
    /// True without TLS.
    pub fn is_plain(&self) -> bool {
        matches!(self, Transport::Plain)
    }

    /// True while a handshake is in progress.
    pub fn is_shaking_hands(&self) -> bool {
        matches!(self, Transport::Handshake(_))
    }

    /// True if a handshake has still to begin.
    pub fn awaits_handshake(&self) -> bool {
        matches!(self, Transport::Hello(_))
    }

    /// True if its saved form has secrets in it.
    pub fn is_secret(&self) -> bool {
        matches!(self, Transport::Tls(_))
    }

    /// For status and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Transport::Plain => "tcp",
            Transport::Hello(_) => "tls-hello",
            Transport::Handshake(_) | Transport::Failed => "tls-handshake",
            Transport::Tls(tls) => tls.version().name(),
        }
    }

    /// The version that is spoken; `None` without TLS.
    pub fn version(&self) -> Option<&'static str> {
        match self {
            Transport::Tls(tls) => Some(tls.version().name()),
            _ => None,
        }
    }

    /// What was agreed besides keys. Shared, so that it can be looked at while the rest changes.
    pub fn about(&self) -> Option<std::rc::Rc<tls::About>> {
        match self {
            Transport::Tls(tls) => tls.about(),
            _ => None,
        }
    }

    /// The application protocol that was agreed.
    pub fn protocol(&self) -> Option<Protocol> {
        match self {
            Transport::Tls(tls) => tls.about()?.protocol,
            _ => None,
        }
    }

    /// Keeps received bytes without looking at them.
    pub fn keep(&mut self, bytes: &[u8]) {
        match self {
            Transport::Hello(hello) => hello.keep(bytes),
            Transport::Handshake(handshake) => handshake.keep(bytes),
            Transport::Tls(tls) => tls.keep(bytes),
            Transport::Plain | Transport::Failed => {}
        }
    }

    /// True if something that was kept can be worked on without further bytes from the peer.
    pub fn has_work(&self) -> bool {
        match self {
            Transport::Tls(tls) => !tls.is_deaf() && tls.has_whole_record(),
            Transport::Hello(hello) => hello.is_due(),
            Transport::Handshake(handshake) => handshake.has_kept(),
            Transport::Plain | Transport::Failed => false,
        }
    }

    /// Makes wire bytes of output, in place. Output that may not leave any more is dropped.
    ///
    /// # Errors
    /// [`tls::Error::KeyUsedUp`]: the connection must end.
    pub fn seal(&mut self, out: &mut Vec<u8>, rekey_after: u64) -> Result<(), tls::Error> {
        match self {
            Transport::Plain => Ok(()),
            Transport::Tls(tls) => tls.seal(out, rekey_after),
            Transport::Hello(_) | Transport::Handshake(_) | Transport::Failed => {
                out.clear();
                Ok(())
            }
        }
    }

    /// Tells the peer that nothing more will come, once; appends wire bytes.
    pub fn close(&mut self, out: &mut Vec<u8>) {
        if let Transport::Tls(tls) = self {
            tls.close(out);
        }
    }

    /// The connection belongs to this process: it may be sealed.
    pub fn start(&mut self) {
        if let Transport::Tls(tls) = self {
            tls.start();
        }
    }

    /// Received bytes that were not opened.
    pub fn held_bytes(&self) -> usize {
        match self {
            Transport::Hello(hello) => hello.bytes().len(),
            Transport::Tls(tls) => tls.incoming().len(),
            Transport::Plain | Transport::Handshake(_) | Transport::Failed => 0,
        }
    }

    /// Variable bytes of the sections that [`Transport::save`] would write now.
    pub fn saved_bytes(&self) -> usize {
        match self {
            Transport::Hello(hello) => hello.bytes().len(),
            Transport::Tls(tls) => tls.saved_bytes(),
            _ => 0,
        }
    }

    /// Adds the transport's sections to a record.
    pub fn save(&self, writer: &mut Writer<'_>) {
        if let Transport::Hello(hello) = self {
            writer.section(TAG_TLS_HELLO, 1, false, &[0u8; 0], &[hello.bytes()]);
        }
        let Transport::Tls(tls) = self else { return };
        let state = tls.save();
        writer.section(TAG_TLS, 1, false, &state.head, &state.tail);
        if !tls.incoming().is_empty() {
            writer.section(TAG_TLS_INCOMING, 1, false, &[0u8; 0], &[tls.incoming()]);
        }
    }

    /// Rebuilds a transport, which seals nothing before [`Transport::start`].
    pub fn restore(record: &Record<'_>) -> Result<Self, RestoreError> {
        if let Some(section) = record.section(TAG_TLS_HELLO) {
            let hello = Hello::restore(section.tail());
            let too_much = RestoreError::TooMuchPending { bytes: section.tail().len() };
            return hello.map(Transport::Hello).ok_or(too_much);
        }
        let Some(section) = record.section(TAG_TLS) else { return Ok(Transport::Plain) };
        let incoming = record.section(TAG_TLS_INCOMING).map_or(&[][..], |section| section.tail());
        if incoming.len() > MAX_INCOMING_BYTES {
            return Err(RestoreError::TooMuchPending { bytes: incoming.len() });
        }
        let mut head: TlsHead = section.head();
        let restored = Tls::restore(&head, section.tail(), incoming);
        head.wipe();
        Ok(Transport::Tls(Box::new(restored?)))
    }
}
