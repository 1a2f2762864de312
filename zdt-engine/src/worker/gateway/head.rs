//! What is passed on of a message's head, and what is not (RFC 9110 §7.6).
//!
//! Must not know: connections, routes.

use std::net::{IpAddr, SocketAddr};

use arrayvec::ArrayVec;

use crate::proto::http1::client::Response;
use crate::proto::websocket::handshake;
use crate::service::{ConnectionId, Request, StreamId};

/// How the request's body is framed towards the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// Content-Length.
    Sized,
    /// Chunked.
    Chunked,
}

/// Fields of a response, at most.
pub const MAX_FIELDS: usize = 256;

/// How a request is passed on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options<'a> {
    /// In place of the client's Host.
    pub host: Option<&'a str>,
    /// Add Forwarded and X-Forwarded-*.
    pub forwarded: bool,
    /// For a WebSocket whose client has sent no key (RFC 8441 §5).
    pub websocket_key: Option<&'a str>,
    /// Whose WebSocket it is: the application finds its session by that when it is replaced.
    pub connection: ConnectionId,
    /// Which of its streams.
    pub stream: StreamId,
}

/// Fields that concern one connection only (RFC 9110 §7.6.1), and those that the gateway writes itself.
fn is_own(name: &str) -> bool {
    let any = |names: &[&str]| names.iter().any(|one| name.eq_ignore_ascii_case(one));
    match name.len() {
        2 => any(&["te"]),
        4 => any(&["host"]),
        6 => any(&["expect"]),
        7 => any(&["upgrade", "trailer"]),
        9 => any(&["forwarded"]),
        10 => any(&["connection", "keep-alive"]),
        // A client must not claim another one's session.
        12 => any(&["x-zdt-resume"]),
        14 => any(&["content-length", "http2-settings"]),
        15 => any(&["x-forwarded-for"]),
        16 => any(&["proxy-connection", "x-forwarded-host", "x-zdt-connection"]),
        17 => any(&["transfer-encoding", "x-forwarded-proto"]),
        _ => false,
    }
}

fn is_forwarding(name: &str) -> bool {
    ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"]
        .iter()
        .any(|one| name.eq_ignore_ascii_case(one))
}

/// True if one of the Connection fields lists that name.
fn is_listed(lists: &[u8], name: &str) -> bool {
    lists
        .split(|&byte| byte == b',')
        .any(|option| option.trim_ascii().eq_ignore_ascii_case(name.as_bytes()))
}

/// The method in HTTP/1.1: HTTP/2 asks for WebSockets with CONNECT.
pub fn method<'r>(request: &Request<'r>) -> &'r str {
    if request.is_websocket { "GET" } else { request.method }
}

/// Writes the request's head for the upstream.
pub fn write_request(out: &mut Vec<u8>, request: &Request<'_>, options: Options<'_>) -> Framing {
    out.reserve(512);
    out.extend_from_slice(method(request).as_bytes());
    out.push(b' ');
    out.extend_from_slice(request.path.as_bytes());
    if let Some(query) = request.query {
        out.push(b'?');
        out.extend_from_slice(query.as_bytes());
    }
    out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
    let host = request.header("host").unwrap_or_default();
    out.extend_from_slice(options.host.map_or(host, str::as_bytes));
    out.extend_from_slice(b"\r\n");
    // Usual ones list nothing that would not be dropped anyway.
    let mut lists = Vec::new();
    request.headers.each(&mut |name, value| {
        let is_usual =
            value.eq_ignore_ascii_case(b"keep-alive") || value.eq_ignore_ascii_case(b"close");
        if name.eq_ignore_ascii_case("connection") && !is_usual {
            lists.extend_from_slice(value);
            lists.push(b',');
        }
    });
    let mut forwarded: Vec<u8> = Vec::new();
    let mut forwarded_for: Vec<u8> = Vec::new();
    let mut sends_length = false;
    request.headers.each(&mut |name, value| {
        if is_own(name) {
            if name.eq_ignore_ascii_case("content-length") {
                if !request.is_websocket {
                    sends_length = true;
                    field(out, name, value);
                }
            } else if is_forwarding(name) {
                if !options.forwarded {
                    field(out, name, value);
                } else if name.len() == 9 {
                    append(&mut forwarded, value);
                } else if name.len() == 15 {
                    append(&mut forwarded_for, value);
                }
            }
        } else if options.websocket_key.is_some() && is_handshake(name) {
        } else if lists.is_empty() || !is_listed(&lists, name) {
            field(out, name, value);
        }
    });
    if options.forwarded {
        let scheme = if request.tls.is_some() { "https" } else { "http" };
        write_forwarded(out, request.peer, scheme, host, &mut forwarded, &mut forwarded_for);
    }
    out.extend_from_slice(b"Via: 1.1 zdt\r\n");
    if request.is_websocket {
        out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n");
        field(
            out,
            "X-Zdt-Connection",
            connection_name(options.connection, options.stream).as_bytes(),
        );
    }
    if let Some(key) = options.websocket_key {
        field(out, KEY, key.as_bytes());
    }
    let framing = match (request.has_body, sends_length) {
        _ if request.is_websocket => Framing::None,
        (_, true) => Framing::Sized,
        (true, false) => {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
            Framing::Chunked
        }
        (false, false) => Framing::None,
    };
    out.extend_from_slice(b"\r\n");
    framing
}

/// The client's part of a WebSocket's handshake, by which it knows the answer.
const KEY: &str = "Sec-WebSocket-Key";

/// Fields of a handshake that HTTP/2 does without.
fn is_handshake(name: &str) -> bool {
    name.eq_ignore_ascii_case(KEY) || name.eq_ignore_ascii_case("sec-websocket-accept")
}

/// True if that is the answer to the WebSocket handshake in `opening`, a head of [`write_request`]'s.
pub fn is_accepted(opening: &[u8], response: &Response<'_>) -> bool {
    let key = opening.split(|&byte| byte == b'\n').find_map(|line| {
        let (name, value) = line.split_at_checked(KEY.len())?;
        let is_key = name.eq_ignore_ascii_case(KEY.as_bytes());
        is_key.then(|| value.strip_prefix(b":")).flatten().map(<[u8]>::trim_ascii)
    });
    let upgrades = response.header("upgrade").is_some_and(|value| {
        value
            .split(|&byte| byte == b',')
            .any(|one| one.trim_ascii().eq_ignore_ascii_case(b"websocket"))
    });
    upgrades
        && key.is_some_and(|key| {
            response.header("sec-websocket-accept") == Some(&handshake::accept_key(key)[..])
        })
}

/// What the application knows a client's WebSocket by.
pub fn connection_name(connection: ConnectionId, stream: StreamId) -> String {
    match stream {
        0 => format!("{connection:016x}"),
        stream => format!("{connection:016x}-{stream}"),
    }
}

fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn append(list: &mut Vec<u8>, value: &[u8]) {
    if !list.is_empty() {
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(value);
}

/// RFC 7239, and what came before it. What the client claims of its own host and scheme is replaced;
/// of the way before it, kept.
fn write_forwarded(
    out: &mut Vec<u8>,
    peer: SocketAddr,
    scheme: &str,
    host: &[u8],
    forwarded: &mut Vec<u8>,
    forwarded_for: &mut Vec<u8>,
) {
    use std::io::Write as _;
    let address = peer.ip().to_canonical();
    append(forwarded_for, b"");
    let _ = write!(forwarded_for, "{address}");
    append(forwarded, b"");
    let _ = match address {
        IpAddr::V4(address) => write!(forwarded, "for={address};proto={scheme}"),
        IpAddr::V6(address) => write!(forwarded, "for=\"[{address}]\";proto={scheme}"),
    };
    if !host.is_empty() {
        // A Host that has passed the parser holds no quote and no backslash.
        forwarded.extend_from_slice(b";host=\"");
        forwarded.extend_from_slice(host);
        forwarded.push(b'"');
        field(out, "X-Forwarded-Host", host);
    }
    field(out, "X-Forwarded-For", forwarded_for);
    field(out, "X-Forwarded-Proto", scheme.as_bytes());
    field(out, "Forwarded", forwarded);
}

/// The fields of a response that are passed on.
pub fn response_fields<'r>(
    response: &Response<'r>,
) -> Option<ArrayVec<(&'r str, &'r [u8]), MAX_FIELDS>> {
    let mut lists = Vec::new();
    for (name, value) in response.headers() {
        let is_usual =
            value.eq_ignore_ascii_case(b"keep-alive") || value.eq_ignore_ascii_case(b"close");
        if name.eq_ignore_ascii_case("connection") && !is_usual {
            lists.extend_from_slice(value);
            lists.push(b',');
        }
    }
    let mut fields = ArrayVec::new();
    for (name, value) in response.headers() {
        let any = |names: &[&str]| names.iter().any(|one| name.eq_ignore_ascii_case(one));
        let is_dropped = match name.len() {
            7 => any(&["upgrade"]),
            10 => any(&["connection", "keep-alive"]),
            14 => any(&["content-length"]),
            16 => any(&["proxy-connection"]),
            17 => any(&["transfer-encoding"]),
            _ => false,
        };
        if !is_dropped && (lists.is_empty() || !is_listed(&lists, name)) {
            fields.try_push((name, value)).ok()?;
        }
    }
    Some(fields)
}

/// RFC 9110 §9.2.2.
pub fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "PUT" | "DELETE" | "OPTIONS" | "TRACE")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Headers;

    struct List(Vec<(&'static str, &'static [u8])>);

    impl Headers for List {
        fn first(&self, name: &str) -> Option<&[u8]> {
            self.0
                .iter()
                .find(|(known, _)| known.eq_ignore_ascii_case(name))
                .map(|(_, value)| *value)
        }

        fn each(&self, visit: &mut dyn FnMut(&str, &[u8])) {
            self.0.iter().for_each(|(name, value)| visit(name, value));
        }
    }

    fn written(
        fields: Vec<(&'static str, &'static [u8])>,
        has_body: bool,
        options: Options<'_>,
    ) -> (String, Framing) {
        let headers = List(fields);
        let request = Request {
            method: "POST",
            path: "/a",
            query: Some("b=c"),
            headers: &headers,
            is_websocket: false,
            has_body,
            peer: "[::ffff:192.0.2.7]:1234".parse().unwrap(),
            tls: None,
        };
        let mut out = Vec::new();
        let framing = write_request(&mut out, &request, options);
        (String::from_utf8(out).unwrap(), framing)
    }

    #[test]
    fn the_scheme_is_that_of_the_client() {
        let headers = List(vec![("Host", b"a")]);
        let tls = crate::service::TlsInfo {
            version: "tls1.3",
            server_name: None,
            client_certificate: None,
        };
        let request = Request {
            method: "GET",
            path: "/",
            query: None,
            headers: &headers,
            is_websocket: false,
            has_body: false,
            peer: "192.0.2.7:1234".parse().unwrap(),
            tls: Some(tls),
        };
        let mut out = Vec::new();
        write_request(&mut out, &request, Options { forwarded: true, ..PLAIN });
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("X-Forwarded-Proto: https\r\n"), "{text}");
        assert!(text.contains("for=192.0.2.7;proto=https"), "{text}");
    }

    const PLAIN: Options<'_> =
        Options { host: None, forwarded: false, websocket_key: None, connection: 7, stream: 0 };

    #[test]
    fn fields_of_one_connection_are_not_passed_on() {
        let (head, framing) = written(
            vec![
                ("Host", b"example.org"),
                ("Connection", b"keep-alive, X-Private"),
                ("connection", b" te"),
                ("X-Private", b"1"),
                ("Keep-Alive", b"timeout=5"),
                ("Proxy-Connection", b"close"),
                ("TE", b"trailers"),
                ("Upgrade", b"h2c"),
                ("Expect", b"100-continue"),
                ("Transfer-Encoding", b"chunked"),
                ("X-Public", b"2"),
            ],
            true,
            PLAIN,
        );
        assert_eq!(framing, Framing::Chunked);
        assert_eq!(
            head,
            "POST /a?b=c HTTP/1.1\r\nHost: example.org\r\nX-Public: 2\r\nVia: 1.1 zdt\r\n\
             Transfer-Encoding: chunked\r\n\r\n"
        );
    }

    #[test]
    fn a_client_cannot_claim_the_session_of_another_one() {
        let headers = List(vec![
            ("Host", b"h"),
            ("X-Zdt-Resume", b"0000000000000008"),
            ("x-zdt-connection", b"0000000000000008"),
        ]);
        let request = Request {
            method: "GET",
            path: "/socket",
            query: None,
            headers: &headers,
            is_websocket: true,
            has_body: false,
            peer: "192.0.2.7:1234".parse().unwrap(),
            tls: None,
        };
        let mut out = Vec::new();
        write_request(&mut out, &request, PLAIN);
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("\r\nX-Zdt-Connection: 0000000000000007\r\n"), "{text}");
        assert!(!text.contains("0000000000000008"), "{text}");
    }

    #[test]
    fn a_length_is_passed_on_once() {
        let (head, framing) = written(
            vec![("Host", b"h"), ("Connection", b"content-length"), ("Content-Length", b"3")],
            true,
            PLAIN,
        );
        assert_eq!(framing, Framing::Sized);
        assert_eq!(head.matches("Content-Length: 3\r\n").count(), 1, "{head}");
        assert!(!head.contains("chunked"), "{head}");
    }

    #[test]
    fn who_asked_is_passed_on() {
        let options = Options { host: Some("inside:1"), forwarded: true, ..PLAIN };
        let (head, _) = written(
            vec![
                ("Host", b"example.org"),
                ("X-Forwarded-For", b"203.0.113.1"),
                ("X-Forwarded-Proto", b"https"),
                ("Forwarded", b"for=203.0.113.1"),
            ],
            false,
            options,
        );
        for line in [
            "Host: inside:1\r\n",
            "X-Forwarded-For: 203.0.113.1, 192.0.2.7\r\n",
            "X-Forwarded-Proto: http\r\n",
            "X-Forwarded-Host: example.org\r\n",
            "Forwarded: for=203.0.113.1, for=192.0.2.7;proto=http;host=\"example.org\"\r\n",
        ] {
            assert!(head.contains(line), "{line:?} is missing in {head}");
        }
        assert!(!head.contains("https"), "the client does not say how it came: {head}");
    }
}
