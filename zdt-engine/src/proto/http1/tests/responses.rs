//! Responses: what is written for which request, and that misuse writes nothing.
//!
//! Must not know: how requests are parsed.

use proptest::prelude::*;

use super::super::*;

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
const HEAD: &str = "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n";
const OLD: &str = "GET / HTTP/1.0\r\n\r\n";
const OLD_KEPT: &str = "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";

/// A machine that has taken all it can of `bytes`, and how much it has left.
fn after(bytes: &str) -> (Http1, usize) {
    let mut http = Http1::new();
    let left = offer(&mut http, bytes.as_bytes());
    (http, left)
}

fn offer(http: &mut Http1, bytes: &[u8]) -> usize {
    let mut bytes = bytes.to_vec();
    let mut input = Input::new(&mut bytes);
    while http.next_event(&mut input, &Limits::default()).expect("valid").is_some() {}
    input.len()
}

/// What answers `request`, and whether the connection stays.
fn answer(
    request: &str,
    status: u16,
    headers: &[(&str, &str)],
    length: BodyLength,
    body: &[&str],
) -> (String, bool) {
    let (mut http, _) = after(request);
    let mut out = Vec::new();
    let headers: Vec<_> = headers.iter().map(|&(name, value)| (name, value.as_bytes())).collect();
    http.start_response(&mut out, status, &headers, length, b"").expect("a request waits");
    assert_eq!(http.response_state(), ResponseState::Streaming);
    let kept = http.keep_alive();
    for piece in body {
        http.write_body(&mut out, piece.as_bytes()).expect("announced");
    }
    http.finish_response(&mut out).expect("complete");
    assert_eq!(http.must_close(), !kept);
    assert_eq!(http.is_idle(), kept);
    (String::from_utf8(out).expect("text"), kept)
}

#[test]
fn bodies_are_framed() {
    use BodyLength::{Known, None, Unknown};
    let check = |request, length, body: &[&str], expected: &str| {
        let (text, kept) = answer(request, 200, &[], length, body);
        assert_eq!(text, format!("HTTP/1.1 200 OK\r\n{expected}"), "{request:?} {length:?}");
        assert_eq!(kept, !expected.contains("close"));
    };
    check(GET, None, &[], "Content-Length: 0\r\n\r\n");
    check(GET, Known(5), &["he", "", "llo"], "Content-Length: 5\r\n\r\nhello");
    let long = "x".repeat(300);
    check(
        GET,
        Unknown,
        &["hello", "", &long],
        &format!("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n12c\r\n{long}\r\n0\r\n\r\n"),
    );
    check(GET, Unknown, &[], "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    // RFC 9110 §9.3.2: as for GET, but without the body, whether it is written or not.
    check(HEAD, None, &[], "\r\n");
    check(HEAD, Known(5), &[], "Content-Length: 5\r\n\r\n");
    check(HEAD, Known(5), &["hello"], "Content-Length: 5\r\n\r\n");
    check(HEAD, Unknown, &["hello"], "Transfer-Encoding: chunked\r\n\r\n");
    check(OLD, Known(2), &["hi"], "Content-Length: 2\r\nConnection: close\r\n\r\nhi");
    check(OLD_KEPT, Known(2), &["hi"], "Content-Length: 2\r\nConnection: keep-alive\r\n\r\nhi");
    // No chunks for HTTP/1.0: the end of the connection is the end of the body.
    check(OLD_KEPT, Unknown, &["hi", "ho"], "Connection: close\r\n\r\nhiho");
    let old_head = OLD_KEPT.replace("GET", "HEAD");
    check(&old_head, Unknown, &["hi"], "Connection: keep-alive\r\n\r\n");
}

#[test]
fn statuses_without_a_body_have_none() {
    use BodyLength::{Known, None, Unknown};
    let head = |status, length| {
        let (text, kept) = answer(GET, status, &[], length, &[]);
        assert!(kept);
        text.split_once("\r\n").map(|(_, fields)| fields.to_owned()).expect("a status line")
    };
    for length in [None, Known(0), Unknown] {
        assert_eq!(head(204, length), "\r\n");
        assert_eq!(head(205, length), "Content-Length: 0\r\n\r\n");
    }
    assert_eq!(head(304, None), "\r\n");
    assert_eq!(head(304, Unknown), "\r\n");
    assert_eq!(head(304, Known(7)), "Content-Length: 7\r\n\r\n");
    for status in [204, 205, 304] {
        let (mut http, _) = after(GET);
        let mut out = Vec::new();
        let too_long = Err(ResponseError::BodyTooLong { excess: 1 });
        assert_eq!(http.respond(&mut out, status, &[], b"x", b""), too_long);
        assert_eq!((out.len(), http.response_state()), (0, ResponseState::Pending));
        http.start_response(&mut out, status, &[], None, b"").expect("a request waits");
        assert_eq!(http.write_body(&mut out, b"x"), too_long);
        http.finish_response(&mut out).expect("complete");
    }
}

#[test]
fn headers_are_checked_and_merged() {
    let fields = |request, headers: &[(&str, &str)]| {
        let (text, kept) = answer(request, 200, headers, BodyLength::None, &[]);
        (text.replace("HTTP/1.1 200 OK\r\n", "").replace("Content-Length: 0\r\n", ""), kept)
    };
    let kept = |text: &str| (text.to_owned(), true);
    let closed = |text: &str| (text.to_owned(), false);
    assert_eq!(fields(GET, &[("A", "b"), ("A", "")]), kept("A: b\r\nA: \r\n\r\n"));
    assert_eq!(fields(GET, &[("Connection", "close")]), closed("Connection: close\r\n\r\n"));
    assert_eq!(fields(GET, &[("connection", "keep-alive")]), kept("\r\n"));
    assert_eq!(
        fields(GET, &[("Connection", "Upgrade"), ("Connection", "CLOSE, x")]),
        closed("Connection: Upgrade, x, close\r\n\r\n")
    );
    assert_eq!(fields(GET, &[("Connection", "upgrade")]), kept("Connection: upgrade\r\n\r\n"));

    let (mut http, _) = after(GET);
    let mut out = b"before".to_vec();
    let mut refused = |status, name, value: &[u8]| {
        let headers = [("X", &b"y"[..]), (name, value)];
        let error = http.start_response(&mut out, status, &headers, BodyLength::None, b"");
        assert_eq!(out, b"before");
        assert_eq!(http.response_state(), ResponseState::Pending);
        error.expect_err("invalid")
    };
    use ResponseError::{InvalidHeader, InvalidStatus, ReservedHeader};
    assert_eq!(refused(200, "", b"x"), InvalidHeader);
    assert_eq!(refused(200, "A b", b"x"), InvalidHeader);
    assert_eq!(refused(200, "A:", b"x"), InvalidHeader);
    assert_eq!(refused(200, "A\r\nB", b"x"), InvalidHeader);
    assert_eq!(refused(200, "A", b"x\r\nSet-Cookie: y"), InvalidHeader);
    assert_eq!(refused(200, "A", b"x\0"), InvalidHeader);
    assert_eq!(refused(200, "Connection", b"close\n"), InvalidHeader);
    assert_eq!(refused(200, "content-Length", b"1"), ReservedHeader);
    assert_eq!(refused(200, "Transfer-Encoding", b"chunked"), ReservedHeader);
    assert_eq!(refused(200, "Keep-Alive", b"timeout=5"), ReservedHeader);
    assert_eq!(refused(199, "A", b"x"), InvalidStatus(199));
    assert_eq!(refused(600, "A", b"x"), InvalidStatus(600));
    http.respond(&mut out, 500, &[], b"sorry", b"").expect("still waits");
}

#[test]
fn the_date_is_written_once() {
    let text = |headers: &[(&str, &[u8])], date: &[u8]| {
        let (mut http, _) = after(GET);
        let mut out = Vec::new();
        http.respond(&mut out, 299, headers, b"", date).map(|()| String::from_utf8(out))
    };
    let own = "HTTP/1.1 299 \r\nDate: now\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(text(&[], b"now"), Ok(Ok(own.to_owned())));
    assert_eq!(text(&[("Date", b"now")], b"then"), Ok(Ok(own.to_owned())));
    assert_eq!(text(&[], b"now\r\nA: b"), Err(ResponseError::InvalidHeader));
}

#[test]
fn wrong_lengths_are_errors_and_write_nothing() {
    let (mut http, _) = after(GET);
    let mut out = Vec::new();
    assert_eq!(http.write_body(&mut out, b"x"), Err(ResponseError::NotStarted));
    assert_eq!(http.finish_response(&mut out), Err(ResponseError::NotStarted));
    assert_eq!(out, b"");
    http.start_response(&mut out, 200, &[], BodyLength::Known(3), b"").expect("a request waits");
    let head = out.len();
    let too_long = ResponseError::BodyTooLong { excess: 1 };
    assert_eq!(http.write_body(&mut out, b"abcd"), Err(too_long));
    http.write_body(&mut out, b"ab").expect("announced");
    assert_eq!(http.write_body(&mut out, b"cd"), Err(too_long));
    let too_short = ResponseError::BodyTooShort { missing: 1 };
    assert_eq!(http.finish_response(&mut out), Err(too_short));
    assert_eq!(http.respond(&mut out, 200, &[], b"", b""), Err(ResponseError::NotExpected));
    assert_eq!(&out[head..], b"ab");
    http.write_body(&mut out, b"c").expect("announced");
    http.finish_response(&mut out).expect("complete");
    assert!(http.is_idle());
    assert_eq!(http.finish_response(&mut out), Err(ResponseError::NotStarted));
    assert_eq!(http.respond(&mut out, 200, &[], b"", b""), Err(ResponseError::NotExpected));
    assert_eq!(&out[head..], b"abc");
    // The unsent body of HEAD is counted, too.
    let (mut http, _) = after(HEAD);
    http.start_response(&mut out, 200, &[], BodyLength::Known(3), b"").expect("a request waits");
    assert_eq!(http.write_body(&mut out, b"abcd"), Err(too_long));
}

#[test]
fn continue_is_sent_once_and_only_when_awaited() {
    let expecting =
        "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    let (mut http, _) = after(expecting);
    let mut out = Vec::new();
    http.send_continue(&mut out);
    http.send_continue(&mut out);
    assert_eq!(out, b"HTTP/1.1 100 Continue\r\n\r\n");
    offer(&mut http, b"body");
    out.clear();
    http.respond(&mut out, 200, &[], b"", b"").expect("a request waits");
    assert!(http.keep_alive());

    // The client has not waited.
    let (mut http, _) = after(&format!("{expecting}b"));
    out.clear();
    http.send_continue(&mut out);
    assert_eq!(out, b"");

    // A final answer instead: what follows could be the body or not.
    let (mut http, _) = after(expecting);
    http.respond(&mut out, 403, &[], b"", b"").expect("a request waits");
    assert!(out.ends_with(b"Connection: close\r\n\r\n"));
    assert!(http.must_close());

    let (mut http, _) = after(GET);
    out.clear();
    http.send_continue(&mut out);
    assert_eq!(out, b"");
}

#[test]
fn the_rest_of_an_unread_body_is_discarded_or_the_connection_closed() {
    let post =
        |length: usize| format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    let limit = DISCARD_LIMIT_BYTES as usize;
    let mut out = Vec::new();

    let (mut http, _) = after(&post(limit));
    http.respond(&mut out, 200, &[], b"", b"").expect("a request waits");
    assert_eq!(http.response_state(), ResponseState::Finished);
    assert!(http.wants_input() && !http.must_close());
    assert_eq!(offer(&mut http, &vec![b'a'; limit - 1]), 0);
    assert!(!http.is_idle());
    let next = [b"a", GET.as_bytes(), GET.as_bytes()].concat();
    assert_eq!(offer(&mut http, &next), GET.len());
    assert_eq!(http.response_state(), ResponseState::Pending);

    let (mut http, _) = after(&post(limit + 1));
    http.respond(&mut out, 200, &[], b"", b"").expect("a request waits");
    assert!(http.must_close() && !http.wants_input());

    // The length is not known beforehand.
    let chunked = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let (mut http, _) = after(chunked);
    http.respond(&mut out, 200, &[], b"", b"").expect("a request waits");
    let mut small = b"3\r\nabc\r\n0\r\nA: b\r\n\r\nGET".to_vec();
    assert_eq!(offer(&mut http, &small), 3);
    assert!(!http.is_idle() && http.wants_input());
    let (mut http, _) = after(chunked);
    http.respond(&mut out, 200, &[], b"", b"").expect("a request waits");
    out.clear();
    small = format!("{:x}\r\n{}", limit + 1, "a".repeat(limit + 1)).into_bytes();
    let mut input = Input::new(&mut small);
    let error = http.next_event(&mut input, &Limits::default()).expect_err("not wanted");
    assert_eq!(error, Error::BodyNotWanted);
    http.error_response(&mut out, &error, b"");
    assert_eq!(out, b"", "the request had its answer");
    assert!(http.must_close());
}

#[test]
fn a_graceful_stop_ends_with_the_response() {
    let (mut http, _) = after(GET);
    let mut out = Vec::new();
    http.close_after_response();
    assert!(!http.keep_alive());
    http.respond(&mut out, 200, &[], b"", b"").expect("a request waits");
    assert!(out.ends_with(b"Connection: close\r\n\r\n"));
    assert!(http.must_close());
    // Between requests it concerns the next one.
    let mut http = Http1::new();
    http.close_after_response();
    assert!(!http.keep_alive() && !http.must_close());
    offer(&mut http, GET.as_bytes());
    http.respond(&mut out, 200, &[], b"", b"").expect("a request waits");
    assert!(http.must_close());
}

#[test]
fn errors_of_the_caller_are_answered_as_well() {
    let (mut http, left) = after(&GET[..10]);
    assert_eq!(left, 10);
    let mut out = Vec::new();
    http.error_response(&mut out, &Error::RequestTimeout, b"now");
    let expected = "HTTP/1.1 408 Request Timeout\r\nDate: now\r\nContent-Type: text/plain\r\n";
    assert!(out.starts_with(expected.as_bytes()));
    assert!(http.must_close());
    // The body of an error is not for HEAD.
    let (mut http, _) = after(HEAD);
    out.clear();
    http.error_response(&mut out, &Error::BodyTooLarge, b"");
    assert!(out.starts_with(b"HTTP/1.1 413 Content Too Large\r\n"));
    assert!(out.ends_with(b"\r\n\r\n"));
}

#[test]
fn an_upgrade_needs_an_offer_and_a_complete_request() {
    let offer = |method: &str, more: &str, version: &str| {
        let fields = "Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
        after(&format!("{method} / HTTP/{version}\r\n{fields}{more}\r\nrest"))
    };
    let mut out = Vec::new();
    let (mut http, left) = offer("GET", "", "1.1");
    assert_eq!(left, 4);
    let bad = http.upgrade(&mut out, "websocket", &[("Upgrade", b"x")]);
    assert_eq!(bad, Err(ResponseError::ReservedHeader));
    let bad = http.upgrade(&mut out, "web\nsocket", &[]);
    assert_eq!(bad, Err(ResponseError::InvalidHeader));
    assert_eq!(out, b"");
    http.upgrade(&mut out, "websocket", &[("Sec-WebSocket-Accept", b"abc=")]).expect("offered");
    let expected = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
        Upgrade: websocket\r\nSec-WebSocket-Accept: abc=\r\n\r\n";
    assert_eq!(String::from_utf8_lossy(&out), expected);
    assert!(!http.wants_input());

    let refused = |mut http: Http1| {
        let mut out = Vec::new();
        let error = http.upgrade(&mut out, "websocket", &[]).expect_err("not upgradable");
        assert_eq!(out, b"");
        error
    };
    assert_eq!(
        refused(offer("POST", "Content-Length: 5\r\n", "1.1").0),
        ResponseError::NotUpgradable
    );
    assert_eq!(refused(offer("GET", "", "1.0").0), ResponseError::NotUpgradable);
    assert_eq!(refused(after(GET).0), ResponseError::NotUpgradable);
    assert_eq!(refused(Http1::new()), ResponseError::NotExpected);
}

/// A call that a service may make, sensible or not.
#[derive(Debug, Clone)]
enum Call {
    Start(u16, BodyLength),
    Write(Vec<u8>),
    Finish,
    Respond(u16, Vec<u8>),
    Continue,
}

fn call() -> impl Strategy<Value = Call> {
    let status = || prop_oneof![4 => Just(200u16), 1 => Just(204), 1 => Just(304), 1 => Just(404)];
    let length = prop_oneof![
        Just(BodyLength::None),
        (0..9u64).prop_map(BodyLength::Known),
        Just(BodyLength::Unknown)
    ];
    let bytes = || proptest::collection::vec(b'a'..=b'z', 0..6);
    prop_oneof![
        2 => (status(), length).prop_map(|(status, length)| Call::Start(status, length)),
        3 => bytes().prop_map(Call::Write),
        2 => Just(Call::Finish),
        1 => (status(), bytes()).prop_map(|(status, body)| Call::Respond(status, body)),
        1 => Just(Call::Continue),
    ]
}

/// Reads one final response from the front as a client would that sent `request`; the body and the
/// rest. Panics if it is malformed.
fn read_response<'o>(request: &str, output: &'o str) -> (String, &'o str) {
    let output = output.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(output);
    let (head, mut rest) = output.split_once("\r\n\r\n").expect("a whole head");
    let mut lines = head.split("\r\n");
    let line = lines.next().expect("a status line");
    let fields: Vec<(&str, &str)> =
        lines.map(|line| line.split_once(": ").expect("a field")).collect();
    let field = |name| fields.iter().find(|field| field.0 == name).map(|field| field.1);
    let status = line.strip_prefix("HTTP/1.1 ").and_then(|line| line.get(..3)).expect("a status");
    let (length, coding) = (field("Content-Length"), field("Transfer-Encoding"));
    assert!(length.is_none() || coding.is_none(), "{head}");
    if request.starts_with("HEAD") || status == "204" || status == "304" {
        return (String::new(), rest);
    }
    if let Some(length) = length {
        let (body, rest) = rest.split_at(length.parse().expect("a number"));
        return (body.to_owned(), rest);
    }
    if coding.is_none() {
        assert_eq!(field("Connection"), Some("close"), "{head}");
        return (rest.to_owned(), "");
    }
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n").expect("a chunk size");
        let size = usize::from_str_radix(size, 16).expect("a chunk size");
        let (data, after) = after.split_at(size);
        rest = after.strip_prefix("\r\n").expect("the end of a chunk");
        if size == 0 {
            return (body, rest);
        }
        body += data;
    }
}

proptest! {
    /// Whatever a service calls: each error leaves output and machine as they were, and a client
    /// reads exactly what was written without an error.
    #[test]
    fn no_sequence_of_calls_breaks_the_wire(
        requests in proptest::collection::vec(
            prop_oneof![2 => Just(GET), 1 => Just(HEAD), 1 => Just(OLD), 1 => Just(OLD_KEPT)],
            1..4,
        ),
        calls in proptest::collection::vec(call(), 0..30),
    ) {
        let mut http = Http1::new();
        let mut output = Vec::new();
        let mut calls = calls.into_iter();
        let mut written = Vec::new();
        'requests: for request in &requests {
            offer(&mut http, request.as_bytes());
            let mut body = String::new();
            loop {
                let Some(call) = calls.next() else { break 'requests };
                let (before, machine) = (output.len(), http.clone());
                let result = match &call {
                    Call::Start(status, length) => {
                        http.start_response(&mut output, *status, &[], *length, b"")
                    }
                    Call::Write(bytes) => http.write_body(&mut output, bytes),
                    Call::Finish => http.finish_response(&mut output),
                    Call::Respond(status, body) => {
                        http.respond(&mut output, *status, &[], body, b"")
                    }
                    Call::Continue => {
                        http.send_continue(&mut output);
                        Ok(())
                    }
                };
                if result.is_err() {
                    prop_assert_eq!(output.len(), before, "{:?}", call);
                    prop_assert_eq!(&http, &machine, "{:?}", call);
                } else if let Call::Write(bytes) | Call::Respond(_, bytes) = &call {
                    body += &String::from_utf8_lossy(bytes);
                }
                if http.response_state() == ResponseState::Idle {
                    break;
                }
            }
            written.push((*request, body));
            if http.must_close() {
                break;
            }
        }
        let output = String::from_utf8(output).expect("text");
        let mut rest = output.as_str();
        for (request, body) in written {
            let (read, after) = read_response(request, rest);
            prop_assert_eq!(read, if request == HEAD { String::new() } else { body });
            rest = after;
        }
    }
}
