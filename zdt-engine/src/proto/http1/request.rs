//! A request as its receiver sees it: a view of the bytes that it arrived in.
//!
//! Must not know: the connection, the response, how the bytes were checked.

use std::str::from_utf8;

use super::head::Head;
use super::syntax;

/// HTTP version of a request. Responses always say 1.1 (RFC 9110 §6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
}

/// How the body of a request is framed (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BodyKind {
    /// There is none.
    None,
    /// Content-Length, in bytes.
    Known(u64),
    /// Transfer-Encoding: chunked.
    Chunked,
}

/// A valid request head. Borrows from the input, owns nothing.
#[derive(Debug, Clone, Copy)]
pub struct Request<'b> {
    /// Case-sensitive, any token, never `CONNECT`.
    pub method: &'b str,
    /// As it was sent: origin-form, absolute-form or `*`.
    pub target: &'b str,
    /// The target's path, not decoded: begins with `/`, or is `*` for the server as a whole.
    pub path: &'b str,
    /// What follows the first `?`, not decoded.
    pub query: Option<&'b str>,
    /// The request's version.
    pub version: Version,
    /// Whether and how a body follows.
    pub body: BodyKind,
    /// The client would like to keep the connection afterwards.
    pub keep_alive: bool,
    /// The client waits for 100 (Continue), or a final answer, before it sends the body.
    pub expects_continue: bool,
    /// There is an Upgrade field, and Connection lists it (RFC 9110 §7.8).
    pub upgrade: bool,
    fields: &'b [u8],
}

impl<'b> Request<'b> {
    /// `bytes` is exactly the head that `head` was parsed from.
    pub(super) fn new(bytes: &'b [u8], head: &Head) -> Self {
        let line = &head.line;
        // The parser lets nothing but ASCII into any of these.
        let text = |bytes| from_utf8(bytes).unwrap_or_default();
        let target = &bytes[line.method_length + 1..][..line.target_length];
        let (path_start, path_end) = line.path;
        let method = text(&bytes[..line.method_length]);
        Self {
            method,
            target: text(target),
            path: match text(&target[path_start..path_end]) {
                // RFC 9112 §3.2.4 and RFC 9110 §4.2.3
                "" if method == "OPTIONS" && !line.has_query => "*",
                "" => "/",
                path => path,
            },
            query: line.has_query.then(|| text(&target[path_end + 1..])),
            version: line.version,
            body: head.body,
            keep_alive: head.keep_alive,
            expects_continue: head.expects_continue,
            upgrade: head.upgrade,
            fields: &bytes[line.length..head.length - 2],
        }
    }

    /// All fields in order: names as they were sent, values without surrounding white space.
    pub fn headers(&self) -> Headers<'b> {
        Headers { rest: self.fields }
    }

    /// The value of the first field of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&'b [u8]> {
        self.header_values(name).next()
    }

    /// The values of all fields of that name, in any case, in order.
    pub fn header_values<'n>(&self, name: &'n str) -> impl Iterator<Item = &'b [u8]> + use<'b, 'n> {
        let mut rest = self.fields;
        std::iter::from_fn(move || {
            while !rest.is_empty() {
                let line = next_line(&mut rest);
                if line.get(name.len()) == Some(&b':')
                    && line[..name.len()].eq_ignore_ascii_case(name.as_bytes())
                {
                    return Some(syntax::trim(&line[name.len() + 1..]));
                }
            }
            None
        })
    }

    /// The elements of the comma-separated lists in all fields of that name, empty ones skipped
    /// (RFC 9110 §5.6.1).
    pub fn header_list<'n>(&self, name: &'n str) -> impl Iterator<Item = &'b [u8]> + use<'b, 'n> {
        self.header_values(name).flat_map(syntax::list).filter(|element| !element.is_empty())
    }

    /// The protocols that the client offers to switch to; none unless [`upgrade`](Self::upgrade).
    pub fn upgrade_tokens(&self) -> impl Iterator<Item = &'b [u8]> + use<'b> {
        let name = if self.upgrade { "upgrade" } else { "" };
        self.header_list(name)
    }

    /// The Host field; may be empty, and absent from HTTP/1.0.
    pub fn host(&self) -> Option<&'b [u8]> {
        self.header("host")
    }
}

/// Iterator over the fields of a [`Request`].
#[derive(Debug, Clone)]
pub struct Headers<'b> {
    pub(super) rest: &'b [u8],
}

impl<'b> Iterator for Headers<'b> {
    type Item = (&'b str, &'b [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let line = next_line(&mut self.rest);
        let colon = line.iter().position(|&byte| byte == b':')?;
        Some((from_utf8(&line[..colon]).unwrap_or_default(), syntax::trim(&line[colon + 1..])))
    }
}

/// Takes a line with its CRLF from the front and returns it without.
fn next_line<'b>(rest: &mut &'b [u8]) -> &'b [u8] {
    // A CR in a valid head is always followed by LF.
    let end = memchr::memchr(b'\r', rest).unwrap_or(rest.len());
    let line = &rest[..end];
    *rest = rest.get(end + 2..).unwrap_or_default();
    line
}
