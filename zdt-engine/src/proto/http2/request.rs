//! The head of a request: is this header list one (RFC 9113 §8.3.1, RFC 8441 §4), and what does it say?
//!
//! Must not know: the connection, what a service does with it.

use std::str::from_utf8;

use super::super::hpack::Fields;
use super::syntax;

/// Where the pseudo-header fields are in the list, and what the others say about the body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Parts {
    method: u16,
    path: Option<u16>,
    authority: Option<u16>,
    protocol: Option<u16>,
    has_host: bool,
    /// The client waits for 100 (Continue), or a final answer, before it sends the body.
    pub expects_continue: bool,
    /// Its content-length.
    pub announced: Option<u64>,
    /// False if the head was the whole request.
    pub has_body: bool,
}

/// A valid request head: a view of its fields.
#[derive(Debug, Clone, Copy)]
pub struct Request<'e> {
    fields: &'e Fields,
    parts: Parts,
}

/// Why a header list is no request: the peer's fault, and the end of the stream (§8.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// Fields that belong to one connection of HTTP/1.1 (§8.2.2).
fn is_connection_specific(name: &[u8]) -> bool {
    match name.len() {
        7 => name == b"upgrade",
        10 => name == b"connection" || name == b"keep-alive",
        16 => name == b"proxy-connection",
        17 => name == b"transfer-encoding",
        _ => false,
    }
}

/// Checks a regular field.
#[inline]
fn check_field(name: &[u8], value: &[u8]) -> Result<(), Malformed> {
    let is_valid = syntax::is_field_name(name)
        && syntax::is_field_value(value)
        && !is_connection_specific(name)
        && (name != b"te" || value.eq_ignore_ascii_case(b"trailers"));
    if is_valid { Ok(()) } else { Err(Malformed) }
}

/// Checks the fields behind a body (§8.1): none of them is a pseudo-header field.
pub(super) fn check_trailers(fields: &Fields) -> Result<(), Malformed> {
    fields.iter().try_for_each(|(name, value)| check_field(name, value))
}

/// Checks a request's header list, and joins the crumbs of its cookies (§8.2.3).
pub(super) fn check(fields: &mut Fields, end_stream: bool) -> Result<Parts, Malformed> {
    let mut parts = Parts { has_body: !end_stream, ..Parts::default() };
    let (mut method, mut scheme, mut in_pseudo, mut cookies) = (None, None, true, 0);
    for (index, (name, value)) in fields.iter().enumerate() {
        let index = index as u16;
        if let [b':', pseudo @ ..] = name {
            let place: &mut Option<u16> = match pseudo {
                b"method" => &mut method,
                b"scheme" => &mut scheme,
                b"path" => &mut parts.path,
                b"authority" => &mut parts.authority,
                b"protocol" => &mut parts.protocol,
                _ => return Err(Malformed),
            };
            if !in_pseudo || !syntax::is_field_value(value) || place.replace(index).is_some() {
                return Err(Malformed);
            }
            if pseudo == b"authority" && !syntax::is_authority(value) {
                return Err(Malformed);
            }
            continue;
        }
        in_pseudo = false;
        check_field(name, value)?;
        match name {
            b"content-length" => {
                let length = syntax::decimal(value).ok_or(Malformed)?;
                if parts.announced.replace(length).is_some() {
                    return Err(Malformed);
                }
            }
            b"host"
                if std::mem::replace(&mut parts.has_host, true) || !syntax::is_authority(value) =>
            {
                return Err(Malformed);
            }
            b"cookie" => cookies += 1,
            b"expect" => parts.expects_continue |= value.eq_ignore_ascii_case(b"100-continue"),
            _ => {}
        }
    }
    let value = |index: u16| fields.get(usize::from(index)).map_or(&b""[..], |(_, value)| value);
    parts.method = method.ok_or(Malformed)?;
    if !syntax::is_token(value(parts.method)) {
        return Err(Malformed);
    }
    let is_connect = value(parts.method) == b"CONNECT";
    if is_connect && parts.protocol.is_none() {
        // §8.5
        if scheme.is_some() || parts.path.is_some() || parts.authority.is_none() {
            return Err(Malformed);
        }
    } else {
        let (Some(scheme), Some(path)) = (scheme, parts.path) else { return Err(Malformed) };
        let path = value(path);
        let is_path =
            path.first() == Some(&b'/') || (path == b"*" && value(parts.method) == b"OPTIONS");
        let is_extended = parts.protocol.is_some();
        if !is_path
            || !syntax::is_target(path)
            || value(scheme).is_empty()
            || (is_extended && (!is_connect || parts.authority.is_none()))
        {
            return Err(Malformed);
        }
    }
    if let (Some(authority), true) = (parts.authority, parts.has_host) {
        // §8.3.1: two names for the target are one too many.
        let host = fields.iter().find(|(name, _)| *name == b"host").map(|(_, value)| value);
        if host != Some(value(authority)) {
            return Err(Malformed);
        }
    }
    if let (Some(1..), true) = (parts.announced, end_stream) {
        return Err(Malformed);
    }
    if end_stream {
        parts.expects_continue = false;
    }
    if cookies > 1 {
        // The first one stays in its place, and everything that is indexed here precedes it.
        fields.join(b"cookie", b"; ");
    }
    Ok(parts)
}

impl<'e> Request<'e> {
    /// `parts` must be what was said about these fields.
    pub fn new(fields: &'e Fields, parts: Parts) -> Self {
        Self { fields, parts }
    }

    fn text(&self, index: Option<u16>) -> &'e str {
        let field = index.and_then(|index| self.fields.get(usize::from(index)));
        field.and_then(|(_, value)| from_utf8(value).ok()).unwrap_or_default()
    }

    /// Case-sensitive, any token.
    pub fn method(&self) -> &'e str {
        self.text(Some(self.parts.method))
    }

    /// Path and query as they were sent; empty for CONNECT without `:protocol`.
    pub fn target(&self) -> &'e str {
        self.text(self.parts.path)
    }

    /// The target's path, not decoded: begins with `/`, or is `*`.
    pub fn path(&self) -> &'e str {
        let target = self.target();
        target.split_once('?').map_or(target, |(path, _)| path)
    }

    /// What follows the first `?`, not decoded.
    pub fn query(&self) -> Option<&'e str> {
        self.target().split_once('?').map(|(_, query)| query)
    }

    /// The protocol that an extended CONNECT asks for (RFC 8441 §4).
    pub fn protocol(&self) -> Option<&'e str> {
        self.parts.protocol.map(|index| self.text(Some(index)))
    }

    /// False if the head was the whole request.
    pub fn has_body(&self) -> bool {
        self.parts.has_body
    }

    /// The client waits for 100 (Continue), or a final answer, before it sends the body.
    pub fn expects_continue(&self) -> bool {
        self.parts.expects_continue
    }

    /// All regular fields in order, as in HTTP/1.1: the authority comes as `host`.
    pub fn headers(&self) -> impl Iterator<Item = (&'e str, &'e [u8])> + use<'e> {
        let authority = self.parts.authority.filter(|_| !self.parts.has_host);
        let fields = self.fields;
        let host = authority.and_then(move |index| fields.get(usize::from(index)));
        let host = host.map(|(_, value)| ("host", value));
        let regular = fields.iter().filter(|(name, _)| name.first() != Some(&b':'));
        host.into_iter()
            .chain(regular.map(|(name, value)| (from_utf8(name).unwrap_or_default(), value)))
    }

    /// Value of the first field of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&'e [u8]> {
        self.headers().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}
