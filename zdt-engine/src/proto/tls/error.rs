//! What can be wrong with a TLS connection, and the alert that says so to the peer.
//!
//! Must not know: how an alert is sent.

/// Numbers of the alerts that are sent or understood here (RFC 8446 §6, RFC 5246 §7.2).
pub mod alert {
    pub const CLOSE_NOTIFY: u8 = 0;
    pub const UNEXPECTED_MESSAGE: u8 = 10;
    pub const BAD_RECORD_MAC: u8 = 20;
    pub const RECORD_OVERFLOW: u8 = 22;
    pub const ILLEGAL_PARAMETER: u8 = 47;
    pub const DECODE_ERROR: u8 = 50;
    pub const PROTOCOL_VERSION: u8 = 70;
    pub const INTERNAL_ERROR: u8 = 80;
    pub const USER_CANCELED: u8 = 90;
    pub const NO_RENEGOTIATION: u8 = 100;

    pub const WARNING: u8 = 1;
    pub const FATAL: u8 = 2;
}

/// Why a connection ends. All but the last two are the peer's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A record or message where none of its kind may come.
    #[error("unexpected: {0}")]
    Unexpected(&'static str),
    /// A record that was not sealed with the right key at the right place.
    #[error("a record does not open")]
    BadRecord,
    /// A record longer than any may be.
    #[error("a record is too long")]
    RecordOverflow,
    /// A record of another protocol version.
    #[error("a record of another protocol version")]
    WrongVersion,
    /// Bytes that mean nothing.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// A value that means nothing.
    #[error("illegal value: {0}")]
    Illegal(&'static str),
    /// More of something harmless than any honest peer sends.
    #[error("too many: {0}")]
    Flood(&'static str),
    /// The peer has given up, with this alert.
    #[error("the peer sent alert {0}")]
    PeerAlert(u8),
    /// The handshake failed; its alert has been written.
    #[error("handshake: {0}")]
    Handshake(String),
    /// A key has protected as much as it may, and this version cannot change it.
    #[error("the key is used up")]
    KeyUsedUp,
    /// The handshake library's keys are not those of its secrets: a bug, and nobody may go on.
    #[error("extracted keys do not match the secrets")]
    Mismatch,
}

impl Error {
    /// The alert that tells the peer; `None` where nothing is to be said (any more).
    pub fn alert(&self) -> Option<u8> {
        Some(match self {
            Error::Unexpected(_) | Error::Flood(_) => alert::UNEXPECTED_MESSAGE,
            Error::BadRecord => alert::BAD_RECORD_MAC,
            Error::RecordOverflow => alert::RECORD_OVERFLOW,
            Error::WrongVersion => alert::PROTOCOL_VERSION,
            Error::Malformed(_) => alert::DECODE_ERROR,
            Error::Illegal(_) => alert::ILLEGAL_PARAMETER,
            Error::Mismatch => alert::INTERNAL_ERROR,
            Error::KeyUsedUp => alert::CLOSE_NOTIFY,
            Error::PeerAlert(_) | Error::Handshake(_) => return None,
        })
    }

    /// A short code for counters.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Unexpected(_) => "unexpected-message",
            Error::BadRecord => "bad-record",
            Error::RecordOverflow => "record-overflow",
            Error::WrongVersion => "protocol-version",
            Error::Malformed(_) | Error::Illegal(_) => "malformed",
            Error::Flood(_) => "flood",
            Error::PeerAlert(_) => "peer-alert",
            Error::Handshake(_) => "handshake",
            Error::KeyUsedUp => "key-used-up",
            Error::Mismatch => "internal",
        }
    }
}
