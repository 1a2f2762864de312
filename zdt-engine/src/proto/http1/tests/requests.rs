//! What is accepted, and how it is understood.
//!
//! Must not know: what is refused.

use super::super::*;
use super::driver::{Driver, Restart, Seen};

/// What was seen of an input that must be accepted.
fn accepted(bytes: &str) -> Vec<String> {
    let driver = Driver::run(Limits::default(), Restart::Never, bytes.as_bytes(), &[]);
    let line = |seen: &Seen| match seen {
        Seen::Request(request) => request.clone(),
        Seen::Body(body) => format!("{:?}", body.escape_ascii().to_string()),
        Seen::End => "end".to_owned(),
        Seen::Refused(error) => panic!("{error}: {bytes:?}"),
    };
    driver.seen.iter().map(line).collect()
}

/// Parses one head and looks at it.
fn with_request<R>(bytes: &str, look: impl FnOnce(Request<'_>) -> R) -> R {
    let mut bytes = bytes.as_bytes().to_vec();
    let mut input = Input::new(&mut bytes);
    match Http1::new().next_event(&mut input, &Limits::default()) {
        Ok(Some(Event::Request(request))) => look(request),
        other => panic!("{other:?}"),
    }
}

#[test]
fn pipelined_requests_come_out_one_by_one() {
    let bytes = "GET /a HTTP/1.1\r\nHost: x\r\n\r\n\
        POST /b?q HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc\
        \r\nPOST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n1;x=\"y\"\r\nf\r\n0\r\nA: b\r\n\r\n\
        GET /d HTTP/1.1\r\nHost";
    let expected = [
        r#"GET /a None Http11 None ["Host=x"]"#,
        "end",
        r#"POST /b Some("q") Http11 Known(3) ["Host=x", "Content-Length=3"]"#,
        r#""abc""#,
        "end",
        r#"POST /c None Http11 Chunked ["Host=x", "Transfer-Encoding=chunked"]"#,
        r#""def""#,
        "end",
    ];
    assert_eq!(accepted(bytes), expected);
}

#[test]
fn the_next_request_waits_for_the_response() {
    let mut bytes =
        b"GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n".to_vec();
    let mut input = Input::new(&mut bytes);
    let mut http = Http1::new();
    let mut output = Vec::new();
    let limits = Limits::default();
    assert!(matches!(http.next_event(&mut input, &limits), Ok(Some(Event::Request(_)))));
    assert!(matches!(http.next_event(&mut input, &limits), Ok(Some(Event::End))));
    assert!(matches!(http.next_event(&mut input, &limits), Ok(None)));
    assert_eq!(input.len(), 28);
    assert!(!http.wants_input() && !http.is_idle());
    http.respond(&mut output, 200, &[], b"", b"").expect("a request waits");
    assert!(http.is_idle() && http.wants_input());
    let Ok(Some(Event::Request(request))) = http.next_event(&mut input, &limits) else {
        panic!("a second request was there")
    };
    assert_eq!(request.path, "/b");
}

#[test]
fn targets_are_taken_apart() {
    let parts = |method: &str, target: &str, host: &str| {
        with_request(&format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"), |request| {
            assert_eq!(request.target, target);
            (request.path.to_owned(), request.query.map(str::to_owned))
        })
    };
    let path = |path: &str| (path.to_owned(), None);
    let both = |path: &str, query: &str| (path.to_owned(), Some(query.to_owned()));
    assert_eq!(parts("GET", "/", "x"), path("/"));
    assert_eq!(parts("GET", "//a/../b;c=d", "x"), path("//a/../b;c=d"));
    assert_eq!(parts("GET", "/a?b?c", "x"), both("/a", "b?c"));
    assert_eq!(parts("GET", "/a?", "x"), both("/a", ""));
    assert_eq!(parts("GET", "/%2e%00?%", "x"), both("/%2e%00", "%"));
    // What browsers send as it is.
    assert_eq!(parts("GET", "/a|b[c]?{d}^`\\'", "x"), both("/a|b[c]", "{d}^`\\'"));
    assert_eq!(parts("OPTIONS", "*", "x"), path("*"));
    assert_eq!(parts("GET", "http://Example.org:8080/a?b", "example.ORG:8080"), both("/a", "b"));
    assert_eq!(parts("GET", "HTTPS://x", "x"), path("/"));
    assert_eq!(parts("OPTIONS", "http://x", "x"), path("*"));
    assert_eq!(parts("GET", "http://x?a", "x"), both("/", "a"));
    assert_eq!(parts("GET", "http://[::1]:80/", "[::1]:80"), path("/"));
}

#[test]
fn hosts_are_accepted() {
    for host in ["", "x", "x:80", "x:", "127.0.0.1:8080", "[::ffff:1.2.3.4]", "a_b-c.d~%41", ":80"]
    {
        let bytes = format!("GET / HTTP/1.1\r\nHost:\t{host} \r\n\r\n");
        with_request(&bytes, |request| assert_eq!(request.host(), Some(host.as_bytes())));
    }
    with_request("GET / HTTP/1.0\r\n\r\n", |request| {
        assert_eq!((request.host(), request.version), (None, Version::Http10));
    });
}

#[test]
fn fields_are_found_in_any_case() {
    let bytes = "GET / HTTP/1.1\r\nHost: x\r\nX-A:1\r\nx-a: \t2 \t\r\nEmpty:\r\nX-AB: 3\r\n\
        Upgrade: websocket, h2c\r\nUpgrade: ,x\r\nConnection: foo, UPGRADE\r\nObs: \u{e9}\t!\r\n\r\n";
    with_request(bytes, |request| {
        assert_eq!(request.header("x-A"), Some(&b"1"[..]));
        assert_eq!(request.header_values("X-a").collect::<Vec<_>>(), [b"1", b"2"]);
        assert_eq!(request.header("empty"), Some(&b""[..]));
        assert_eq!(request.header("x"), None);
        assert_eq!(request.header("X-A:1"), None);
        assert_eq!(request.header("obs"), Some("\u{e9}\t!".as_bytes()));
        assert_eq!(request.headers().count(), 9);
        assert_eq!(request.headers().nth(1), Some(("X-A", &b"1"[..])));
        assert!(request.upgrade);
        assert_eq!(request.upgrade_tokens().collect::<Vec<_>>(), [&b"websocket"[..], b"h2c", b"x"]);
    });
    // Not listed by Connection; and from HTTP/1.0.
    for bytes in [
        "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    ] {
        with_request(bytes, |request| {
            assert!(!request.upgrade);
            assert_eq!(request.upgrade_tokens().count(), 0);
        });
    }
}

#[test]
fn persistence_is_read_from_version_and_connection() {
    let keep_alive = |version: &str, connection: &str| {
        let bytes = format!("GET / HTTP/{version}\r\nHost: x\r\n{connection}\r\n");
        with_request(&bytes, |request| request.keep_alive)
    };
    assert!(keep_alive("1.1", ""));
    assert!(keep_alive("1.1", "Connection: keep-alive\r\n"));
    assert!(!keep_alive("1.1", "Connection: x, Close\r\n"));
    assert!(!keep_alive("1.1", "Connection: keep-alive\r\nConnection: close\r\n"));
    assert!(!keep_alive("1.0", ""));
    assert!(keep_alive("1.0", "Connection: Keep-Alive\r\n"));
    assert!(!keep_alive("1.0", "Connection: keep-alive, close\r\n"));
}

#[test]
fn expectations_are_reported_where_they_count() {
    let expects = |version: &str, fields: &str| {
        let bytes = format!("POST / HTTP/{version}\r\nHost: x\r\n{fields}\r\n");
        with_request(&bytes, |request| request.expects_continue)
    };
    assert!(expects("1.1", "Expect: 100-Continue\r\nContent-Length: 1\r\n"));
    assert!(expects("1.1", "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n"));
    assert!(!expects("1.1", "Expect: 100-continue\r\nContent-Length: 0\r\n"));
    assert!(!expects("1.1", "Expect: 100-continue\r\n"));
    assert!(!expects("1.0", "Expect: 100-continue\r\nContent-Length: 1\r\n"));
    assert!(!expects("1.0", "Expect: something\r\nContent-Length: 1\r\n"));
}

#[test]
fn a_slow_head_is_scanned_once() {
    // A quadratic scan of this would take minutes, not milliseconds.
    let limits = Limits { max_head_bytes: 1 << 20, ..Limits::default() };
    let mut bytes = b"GET / HTTP/1.1\r\nHost: x\r\nA: ".to_vec();
    bytes.resize(1 << 19, b'a');
    bytes.extend_from_slice(b"\r\n\r\n");
    let mut http = Http1::new();
    for end in 1..bytes.len() {
        let mut input = Input::new(&mut bytes[..end]);
        assert!(matches!(http.next_event(&mut input, &limits), Ok(None)));
        assert_eq!(input.len(), end);
    }
    let mut input = Input::new(&mut bytes);
    assert!(matches!(http.next_event(&mut input, &limits), Ok(Some(Event::Request(_)))));
}
