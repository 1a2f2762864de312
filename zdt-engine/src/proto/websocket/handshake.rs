//! The opening handshake (RFC 6455 §4.2): is this upgrade request a WebSocket's, and what does it
//! ask for?
//!
//! Nothing is allocated: the answer borrows from the request's headers.
//!
//! Must not know: how the request was parsed, how the response is written.

use arrayvec::ArrayVec;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::negotiation::extensions;
pub use super::negotiation::{DeflateOptions, DeflateParams, ExtensionValue, negotiate_deflate};

/// Subprotocols of one request that are looked at; further ones are not offered to the service.
pub const MAX_SUBPROTOCOLS: usize = 16;
/// `Sec-WebSocket-Extensions` lines of one request that are looked at.
pub const MAX_EXTENSION_LINES: usize = 8;

/// Appended to the client's key (RFC 6455 §1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A valid opening handshake.
#[derive(Debug, Clone)]
pub struct Accept<'h> {
    /// The value for `Sec-WebSocket-Accept`.
    pub accept: [u8; 28],
    /// The subprotocols that the client can speak, the best liked first.
    pub subprotocols: ArrayVec<&'h str, MAX_SUBPROTOCOLS>,
    /// Values of `Sec-WebSocket-Extensions`, for [`negotiate_deflate`].
    pub extensions: ArrayVec<&'h [u8], MAX_EXTENSION_LINES>,
    /// The page that opened the WebSocket, if a browser did.
    pub origin: Option<&'h [u8]>,
}

/// Not a valid opening handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The response's status.
    pub status: u16,
    /// For people.
    pub reason: &'static str,
    /// Header fields that belong to the status.
    pub headers: &'static [(&'static str, &'static [u8])],
}

impl Refusal {
    const fn bad_request(reason: &'static str) -> Self {
        Self { status: 400, reason, headers: &[] }
    }

    const METHOD: Self = Self {
        status: 405,
        reason: "a WebSocket is opened with GET",
        headers: &[("Allow", b"GET")],
    };
    const NO_UPGRADE: Self = Self {
        status: 426,
        reason: "this resource is a WebSocket",
        headers: &[("Upgrade", b"websocket"), ("Connection", b"Upgrade")],
    };
    const VERSION: Self = Self {
        status: 426,
        reason: "unsupported WebSocket version",
        headers: &[
            ("Sec-WebSocket-Version", b"13"),
            ("Upgrade", b"websocket"),
            ("Connection", b"Upgrade"),
        ],
    };
}

/// What the header fields say, whatever they are for.
struct Wish<'h> {
    upgrades: bool,
    connection_upgrades: bool,
    key: Option<&'h [u8]>,
    version: Option<&'h [u8]>,
    has_body: bool,
    origin: Option<&'h [u8]>,
    subprotocols: ArrayVec<&'h str, MAX_SUBPROTOCOLS>,
    extension_lines: ArrayVec<&'h [u8], MAX_EXTENSION_LINES>,
}

impl<'h> Wish<'h> {
    fn read<N: AsRef<[u8]>>(
        headers: impl IntoIterator<Item = (N, &'h [u8])>,
    ) -> Result<Self, Refusal> {
        let mut wish = Self {
            upgrades: false,
            connection_upgrades: false,
            key: None,
            version: None,
            has_body: false,
            origin: None,
            subprotocols: ArrayVec::new(),
            extension_lines: ArrayVec::new(),
        };
        for (name, value) in headers {
            let is = |wanted: &str| name.as_ref().eq_ignore_ascii_case(wanted.as_bytes());
            if is("upgrade") {
                wish.upgrades |= has_token(value, b"websocket");
            } else if is("connection") {
                wish.connection_upgrades |= has_token(value, b"upgrade");
            } else if is("sec-websocket-key") {
                if wish.key.replace(value.trim_ascii()).is_some() {
                    return Err(Refusal::bad_request("more than one Sec-WebSocket-Key"));
                }
            } else if is("sec-websocket-version") {
                if wish.version.replace(value.trim_ascii()).is_some() {
                    return Err(Refusal::bad_request("more than one Sec-WebSocket-Version"));
                }
            } else if is("sec-websocket-protocol") {
                for protocol in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                    // Empty elements of a list are to be ignored (RFC 9110 §5.6.1).
                    if protocol.is_empty() {
                        continue;
                    }
                    let protocol = std::str::from_utf8(protocol).ok().filter(|text| is_token(text));
                    let Some(protocol) = protocol else {
                        return Err(Refusal::bad_request("malformed Sec-WebSocket-Protocol"));
                    };
                    if !wish.subprotocols.is_full() {
                        wish.subprotocols.push(protocol);
                    }
                }
            } else if is("sec-websocket-extensions") {
                // RFC 6455 §9.1: malformed data fails the connection.
                if extensions(value).any(|extension| extension.is_err()) {
                    return Err(Refusal::bad_request("malformed Sec-WebSocket-Extensions"));
                }
                if !wish.extension_lines.is_full() {
                    wish.extension_lines.push(value);
                }
            } else if is("origin") {
                wish.origin = Some(value.trim_ascii());
            } else if is("content-length") {
                wish.has_body |= value.trim_ascii() != b"0";
            } else if is("transfer-encoding") {
                wish.has_body = true;
            }
        }
        Ok(wish)
    }

    fn check_version(&self) -> Result<(), Refusal> {
        match self.version {
            Some(b"13") => Ok(()),
            Some(_) => Err(Refusal::VERSION),
            None => Err(Refusal::bad_request("Sec-WebSocket-Version is missing")),
        }
    }

    fn accepted(self, accept: [u8; 28]) -> Accept<'h> {
        let Self { subprotocols, extension_lines: extensions, origin, .. } = self;
        Accept { accept, subprotocols, extensions, origin }
    }
}

/// Checks a request to a WebSocket resource (RFC 6455 §4.2.1). `http11`: its version is HTTP/1.1 or
/// later. `headers`: all header fields, names in any case. The `Host` field is HTTP's business.
pub fn check<'h, N: AsRef<[u8]>>(
    method: &str,
    http11: bool,
    headers: impl IntoIterator<Item = (N, &'h [u8])>,
) -> Result<Accept<'h>, Refusal> {
    let wish = Wish::read(headers)?;
    if method != "GET" {
        return Err(Refusal::METHOD);
    }
    if !http11 || !wish.upgrades || !wish.connection_upgrades {
        return Err(Refusal::NO_UPGRADE);
    }
    wish.check_version()?;
    let Some(key) = wish.key else {
        return Err(Refusal::bad_request("Sec-WebSocket-Key is missing"));
    };
    let mut nonce = [0; 18];
    if key.len() != 24 || BASE64.decode_slice(key, &mut nonce) != Ok(16) {
        return Err(Refusal::bad_request("malformed Sec-WebSocket-Key"));
    }
    if wish.has_body {
        return Err(Refusal::bad_request("an opening handshake has no body"));
    }
    let accept = accept_key(key);
    Ok(wish.accepted(accept))
}

/// Checks the fields of an extended CONNECT for the protocol `websocket` (RFC 8441 §5): there is no key
/// to be answered, so [`Accept::accept`] means nothing.
pub fn check_extended_connect<'h, N: AsRef<[u8]>>(
    headers: impl IntoIterator<Item = (N, &'h [u8])>,
) -> Result<Accept<'h>, Refusal> {
    let wish = Wish::read(headers)?;
    wish.check_version()?;
    Ok(wish.accepted([0; 28]))
}

/// The value of `Sec-WebSocket-Accept` for a client's key (RFC 6455 §4.2.2).
pub fn accept_key(key: &[u8]) -> [u8; 28] {
    let mut hash = sha1_smol::Sha1::new();
    hash.update(key);
    hash.update(GUID);
    let mut accept = [0; 28];
    let length = BASE64.encode_slice(hash.digest().bytes(), &mut accept);
    assert_eq!(length, Ok(28), "20 bytes are 28 characters of base64");
    accept
}

/// True if the comma-separated list `value` has this token, in any case.
fn has_token(value: &[u8], token: &[u8]) -> bool {
    value.split(|byte| *byte == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(token))
}

/// RFC 9110 §5.6.2.
pub(super) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(is_token_byte)
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
