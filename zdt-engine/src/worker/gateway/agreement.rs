//! What the two ends of a WebSocket have agreed to: extensions and subprotocol (RFC 6455 §9, RFC 7692).
//!
//! Where an upstream is replaced, the client goes on as agreed with the one before. So the opening request that
//! is kept for the next one offers exactly that, and the next one has to agree to it. A client that compresses
//! with a window over several messages could not go on: nobody but the old application has the window.
//!
//! Must not know: connections, when a WebSocket moves.

use crate::config::SwapPolicy;
use crate::proto::http1::client::Response;

const EXTENSIONS: &str = "Sec-WebSocket-Extensions";
const PROTOCOL: &str = "Sec-WebSocket-Protocol";
const DEFLATE: &str = "permessage-deflate";
const NO_WINDOW: &str = "client_no_context_takeover";

/// What an upstream has agreed to.
#[derive(Debug)]
pub struct Agreed {
    extensions: String,
    protocol: Option<Vec<u8>>,
}

/// Each extension with its parameters, written alike whatever the spaces.
fn extensions<'v>(values: impl Iterator<Item = &'v [u8]>, without_window: bool) -> String {
    let mut list = Vec::new();
    for value in values {
        let text = String::from_utf8_lossy(value);
        for extension in text.split(',').map(str::trim).filter(|text| !text.is_empty()) {
            let mut parts: Vec<&str> = extension.split(';').map(str::trim).collect();
            let has = |name: &str| parts.iter().any(|part| part.eq_ignore_ascii_case(name));
            if without_window && has(DEFLATE) && !has(NO_WINDOW) {
                parts.push(NO_WINDOW);
            }
            parts[1..].sort_unstable();
            list.push(parts.join("; "));
        }
    }
    list.join(", ")
}

fn values<'r>(response: &Response<'r>, name: &'static str) -> impl Iterator<Item = &'r [u8]> {
    response
        .headers()
        .filter(move |(known, _)| known.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
}

/// The lines of a request's head that was written here.
fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    head.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line))
}

fn value_of<'h>(line: &'h [u8], name: &str) -> Option<&'h [u8]> {
    let (known, rest) = line.split_at_checked(name.len())?;
    (known.eq_ignore_ascii_case(name.as_bytes()) && rest.first() == Some(&b':'))
        .then(|| rest[1..].trim_ascii())
}

impl Agreed {
    /// With a window only if the WebSocket ends with its application.
    pub fn of(response: &Response<'_>, policy: SwapPolicy) -> Self {
        let without_window = policy == SwapPolicy::Reconnect;
        Self {
            extensions: extensions(values(response, EXTENSIONS), without_window),
            protocol: values(response, PROTOCOL).next().map(<[u8]>::to_vec),
        }
    }

    /// An opening request that offers this and nothing else.
    pub fn put_into(&self, head: &mut Vec<u8>) {
        let mut out = Vec::with_capacity(head.len());
        for line in lines(head).take_while(|line| !line.is_empty()) {
            if value_of(line, EXTENSIONS).is_none() && value_of(line, PROTOCOL).is_none() {
                out.extend_from_slice(line);
                out.extend_from_slice(b"\r\n");
            }
        }
        let mut field = |name: &str, value: &[u8]| {
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value);
            out.extend_from_slice(b"\r\n");
        };
        if !self.extensions.is_empty() {
            field(EXTENSIONS, self.extensions.as_bytes());
        }
        if let Some(protocol) = &self.protocol {
            field(PROTOCOL, protocol);
        }
        out.extend_from_slice(b"\r\n");
        *head = out;
    }

    /// The fields that the client is answered with.
    pub fn told<'a>(&'a self, fields: &[(&'a str, &'a [u8])]) -> Vec<(&'a str, &'a [u8])> {
        let is_other = |(name, _): &&(&str, &[u8])| !name.eq_ignore_ascii_case(EXTENSIONS);
        let mut told: Vec<_> = fields.iter().filter(is_other).copied().collect();
        if !self.extensions.is_empty() {
            told.push((EXTENSIONS, self.extensions.as_bytes()));
        }
        told
    }
}

/// Whether a WebSocket that was opened, and agreed to, by this request can go on as answered here.
///
/// # Errors
///
/// What the client has not agreed to.
pub fn check(opening: &[u8], response: &Response<'_>) -> Result<(), String> {
    let offered = extensions(lines(opening).filter_map(|line| value_of(line, EXTENSIONS)), false);
    let answered = extensions(values(response, EXTENSIONS), true);
    if offered != answered {
        return Err(format!(
            "agreed to the WebSocket extensions {answered:?} instead of {offered:?}, with which the client goes on"
        ));
    }
    let protocol = lines(opening).find_map(|line| value_of(line, PROTOCOL));
    if protocol != values(response, PROTOCOL).next() {
        return Err("agreed to another WebSocket subprotocol than the client's".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_upstream_is_offered_what_was_agreed_and_nothing_else() {
        let answer: [&[u8]; 2] =
            [b"permessage-deflate ;server_max_window_bits=12;client_max_window_bits=12", b"other"];
        let mut agreed = Agreed {
            extensions: extensions(answer.into_iter(), true),
            protocol: Some(b"chat".to_vec()),
        };
        assert_eq!(
            agreed.extensions,
            "permessage-deflate; client_max_window_bits=12; client_no_context_takeover; \
             server_max_window_bits=12, other"
        );
        let mut head =
            b"GET / HTTP/1.1\r\nHost: h\r\nsec-websocket-extensions: permessage-deflate, x\r\n\
            Sec-WebSocket-Protocol: soap, chat\r\nSec-WebSocket-Version: 13\r\n\r\n"
                .to_vec();
        agreed.extensions = "a; b".to_owned();
        agreed.put_into(&mut head);
        assert_eq!(
            String::from_utf8(head).unwrap(),
            "GET / HTTP/1.1\r\nHost: h\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Extensions: a; b\r\n\
             Sec-WebSocket-Protocol: chat\r\n\r\n"
        );
    }

    #[test]
    fn the_client_is_told_once() {
        let agreed = Agreed { extensions: "a; b".to_owned(), protocol: None };
        let fields: [(&str, &[u8]); 3] =
            [("SEC-WEBSOCKET-EXTENSIONS", b"a"), ("X", b"1"), ("sec-websocket-extensions", b"c")];
        let told: Vec<(&str, &[u8])> = vec![("X", b"1"), (EXTENSIONS, b"a; b")];
        assert_eq!(agreed.told(&fields), told);
    }
}
