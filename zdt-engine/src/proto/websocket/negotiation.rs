//! Negotiation of permessage-deflate: the header's grammar (RFC 6455 §9.1) and the extension's
//! parameters (RFC 7692 §7.1).
//!
//! Must not know: zlib, frames.

use std::fmt::Write as _;

use arrayvec::ArrayString;
use serde::{Deserialize, Serialize};

use super::handshake::is_token;

/// Most parameters of one extension; an offer with more is malformed.
const MAX_PARAMETERS: usize = 16;

/// The value for the response's `Sec-WebSocket-Extensions`.
pub type ExtensionValue = ArrayString<160>;

/// What the server wants of permessage-deflate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeflateOptions {
    /// Forget the window after each outgoing message even if the client does not ask for it.
    pub server_no_context_takeover: bool,
    /// Make the client forget its window after each message.
    pub client_no_context_takeover: bool,
    /// Largest window of outgoing messages, 9 to 15 bits.
    pub server_max_window_bits: u8,
    /// Largest window of incoming messages, 9 to 15 bits; can only be had from clients that offer
    /// the parameter.
    pub client_max_window_bits: u8,
}

impl Default for DeflateOptions {
    fn default() -> Self {
        Self {
            server_no_context_takeover: false,
            client_no_context_takeover: false,
            server_max_window_bits: 15,
            client_max_window_bits: 15,
        }
    }
}

/// What has been agreed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeflateParams {
    /// Outgoing messages do not refer to earlier ones.
    pub server_no_context_takeover: bool,
    /// Incoming messages do not refer to earlier ones.
    pub client_no_context_takeover: bool,
    /// log2 of the window of outgoing messages, 9 to 15.
    pub server_window_bits: u8,
    /// log2 of the window of incoming messages, 8 to 15.
    pub client_window_bits: u8,
}

impl DeflateParams {
    pub(super) fn is_valid(&self) -> bool {
        (9..=15).contains(&self.server_window_bits) && (8..=15).contains(&self.client_window_bits)
    }

    pub(super) fn server_window_bytes(&self) -> usize {
        1 << self.server_window_bits
    }

    /// zlib's compressors take 8 bits for 9 (RFC 7692 §7.1.2 leaves no room for that, but a
    /// larger window on our side accepts it).
    pub(super) fn client_window_bytes(&self) -> usize {
        1 << self.client_window_bits.max(9)
    }
}

/// Takes the first acceptable offer among the values of the request's `Sec-WebSocket-Extensions`
/// (RFC 7692 §5): the parameters, and the value of the response's header. `None`: no compression.
pub fn negotiate_deflate<'h>(
    offers: impl IntoIterator<Item = &'h [u8]>,
    options: &DeflateOptions,
) -> Option<(DeflateParams, ExtensionValue)> {
    offers
        .into_iter()
        .flat_map(extensions)
        .map_while(Result::ok)
        .filter(|extension| extension.name.eq_ignore_ascii_case("permessage-deflate"))
        .find_map(|offer| accept_offer(&offer, options))
}

/// RFC 7692 §7.1: declines an offer with an unknown, a repeated or a badly valued parameter, and
/// one that we cannot fulfil.
fn accept_offer(
    offer: &Extension<'_>,
    options: &DeflateOptions,
) -> Option<(DeflateParams, ExtensionValue)> {
    let mut server_no_context_takeover = false;
    let mut client_no_context_takeover = false;
    let mut server_bits = None;
    // None: not offered. Some(None): offered without a value.
    let mut client_bits: Option<Option<u8>> = None;
    for (name, value) in offer.parameters() {
        let repeated = match name {
            "server_no_context_takeover" if value.is_none() => {
                std::mem::replace(&mut server_no_context_takeover, true)
            }
            "client_no_context_takeover" if value.is_none() => {
                std::mem::replace(&mut client_no_context_takeover, true)
            }
            "server_max_window_bits" => server_bits.replace(window_bits(value?)?).is_some(),
            "client_max_window_bits" => {
                let bits = match value {
                    Some(value) => Some(window_bits(value)?),
                    None => None,
                };
                client_bits.replace(bits).is_some()
            }
            _ => return None,
        };
        if repeated {
            return None;
        }
    }
    // zlib's raw deflate has no window of 8 bits.
    if server_bits == Some(8) {
        return None;
    }
    let server_window_bits =
        options.server_max_window_bits.clamp(9, 15).min(server_bits.unwrap_or(15));
    let client_window_bits = match client_bits {
        Some(offered) => options.client_max_window_bits.clamp(9, 15).min(offered.unwrap_or(15)),
        None => 15,
    };
    let params = DeflateParams {
        server_no_context_takeover: server_no_context_takeover
            || options.server_no_context_takeover,
        client_no_context_takeover: client_no_context_takeover
            || options.client_no_context_takeover,
        server_window_bits,
        client_window_bits,
    };
    let mut response = ExtensionValue::new();
    response.push_str("permessage-deflate");
    if params.server_no_context_takeover {
        response.push_str("; server_no_context_takeover");
    }
    if params.client_no_context_takeover {
        response.push_str("; client_no_context_takeover");
    }
    let fits = "the longest response has fewer than 160 bytes";
    if server_bits.is_some() || server_window_bits < 15 {
        write!(response, "; server_max_window_bits={server_window_bits}").expect(fits);
    }
    // Only if the client offered it (RFC 7692 §7.1.2.2).
    if client_bits.is_some() && client_window_bits < 15 {
        write!(response, "; client_max_window_bits={client_window_bits}").expect(fits);
    }
    Some((params, response))
}

/// RFC 7692 §7.1.2: 8 to 15, without leading zeros.
fn window_bits(value: &str) -> Option<u8> {
    match value {
        "8" => Some(8),
        "9" => Some(9),
        "10" | "11" | "12" | "13" | "14" | "15" => value.parse().ok(),
        _ => None,
    }
}

/// One element of `Sec-WebSocket-Extensions`, syntactically valid.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extension<'h> {
    pub name: &'h str,
    parameters: &'h str,
}

impl<'h> Extension<'h> {
    /// Names and values; quotes are taken off.
    fn parameters(self) -> impl Iterator<Item = (&'h str, Option<&'h str>)> {
        self.parameters.split(';').skip(1).map(|parameter| match parameter.split_once('=') {
            Some((name, value)) => (trim(name), Some(trim(value).trim_matches('"'))),
            None => (trim(parameter), None),
        })
    }
}

/// RFC 6455 §9.1: the extensions in one header value, or an error where it is malformed.
pub(super) fn extensions(value: &[u8]) -> impl Iterator<Item = Result<Extension<'_>, ()>> {
    let text = std::str::from_utf8(value);
    let items = text.unwrap_or("=").split(',');
    items.map(trim).filter(|item| !item.is_empty()).map(|item| {
        let mut parts = item.splitn(MAX_PARAMETERS + 2, ';');
        let name = trim(parts.next().unwrap_or_default());
        if !is_token(name) {
            return Err(());
        }
        for (index, parameter) in parts.enumerate() {
            let (name, value) = match parameter.split_once('=') {
                Some((name, value)) => (trim(name), Some(trim(value))),
                None => (trim(parameter), None),
            };
            let value_is_valid = value.is_none_or(|value| {
                // A quoted string must be a token too (RFC 6455 §9.1), so splitting at commas and
                // semicolons first was right. Escaping a token's letters is taken as malformed.
                let quoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
                is_token(quoted.unwrap_or(value))
            });
            if index >= MAX_PARAMETERS || !is_token(name) || !value_is_valid {
                return Err(());
            }
        }
        Ok(Extension { name, parameters: item })
    })
}

/// Optional white space is space and tab only.
fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}
