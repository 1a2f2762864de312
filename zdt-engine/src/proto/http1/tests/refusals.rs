//! What is refused, with which status: smuggling vectors, malformed lines, limits.
//!
//! Must not know: how the machine finds out.

use super::super::*;
use super::driver::{Driver, Restart, Seen};

/// The status of the refusal, and how many requests came before it.
fn refusal(bytes: &[u8], limits: Limits) -> (Option<u16>, usize) {
    let driver = Driver::run(limits, Restart::Never, bytes, &[]);
    let requests = driver.seen.iter().filter(|seen| matches!(seen, Seen::Request(_))).count();
    match driver.seen.last() {
        Some(Seen::Refused(error)) => (Some(error.status()), requests),
        _ => (None, requests),
    }
}

fn check(table: &[(&str, &str)], requests: usize, status: u16) {
    let limits = Limits::default();
    for (name, bytes) in table {
        let got = refusal(bytes.as_bytes(), limits);
        assert_eq!(got, (Some(status), requests), "{name}: {bytes:?}");
    }
}

/// A head with these fields besides Host, and something behind it that must never be a request.
macro_rules! post {
    ($fields:literal) => {
        concat!(
            "POST / HTTP/1.1\r\nHost: x\r\n",
            $fields,
            "\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
        )
    };
}

/// A chunked body, and something behind it that must never be a request.
macro_rules! chunks {
    ($body:literal) => {
        concat!(
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
            $body,
            "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
        )
    };
}

#[test]
fn ambiguous_framing_is_refused() {
    let table = [
        ("CL.TE", post!("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n")),
        ("TE.CL", post!("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n")),
        ("CL.0 and TE", post!("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n")),
        ("two lengths", post!("Content-Length: 5\r\nContent-Length: 6\r\n")),
        ("two equal lengths", post!("Content-Length: 5\r\nContent-Length: 5\r\n")),
        ("list of lengths", post!("Content-Length: 5, 6\r\n")),
        ("list of equal lengths", post!("Content-Length: 5, 5\r\n")),
        ("length with trailing comma", post!("Content-Length: 5,\r\n")),
        ("plus sign", post!("Content-Length: +5\r\n")),
        ("minus sign", post!("Content-Length: -5\r\n")),
        ("minus zero", post!("Content-Length: -0\r\n")),
        ("hexadecimal length", post!("Content-Length: 0x5\r\n")),
        ("length with a unit", post!("Content-Length: 5b\r\n")),
        ("length with a fraction", post!("Content-Length: 5.0\r\n")),
        ("length with an underscore", post!("Content-Length: 1_0\r\n")),
        ("length of two words", post!("Content-Length: 5 5\r\n")),
        ("quoted length", post!("Content-Length: \"5\"\r\n")),
        ("empty length", post!("Content-Length:\r\n")),
        ("non-ASCII digits", post!("Content-Length: \u{0665}\r\n")),
        ("chunked twice", post!("Transfer-Encoding: chunked, chunked\r\n")),
        ("two lines", post!("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n")),
        ("chunked not last", post!("Transfer-Encoding: chunked, gzip\r\n")),
        ("not last over lines", post!("Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n")),
        ("identity", post!("Transfer-Encoding: identity\r\n")),
        ("gzip alone", post!("Transfer-Encoding: gzip\r\n")),
        ("empty coding", post!("Transfer-Encoding:\r\n")),
        ("empty element", post!("Transfer-Encoding: chunked,\r\n")),
        ("leading comma", post!("Transfer-Encoding: ,chunked\r\n")),
        ("another token", post!("Transfer-Encoding: xchunked\r\n")),
        ("quoted", post!("Transfer-Encoding: \"chunked\"\r\n")),
        ("apostrophes", post!("Transfer-Encoding: 'chunked'\r\n")),
        ("two words", post!("Transfer-Encoding: x chunked\r\n")),
        ("two words, chunked first", post!("Transfer-Encoding: chunked x\r\n")),
        ("parameter", post!("Transfer-Encoding: chunked;q=1\r\n")),
        ("vertical tab", post!("Transfer-Encoding: \u{b}chunked\r\n")),
        ("NUL", post!("Transfer-Encoding: chunked\0\r\n")),
        ("long s", post!("Transfer-Encoding: \u{17f}hunked\r\n")),
        ("space before the colon", post!("Transfer-Encoding : chunked\r\n")),
        ("tab before the colon", post!("Transfer-Encoding\t: chunked\r\n")),
        ("NUL before the colon", post!("Transfer-Encoding\0: chunked\r\n")),
        ("space before the name", post!(" Transfer-Encoding: chunked\r\n")),
        ("folded value", post!("Transfer-Encoding:\r\n chunked\r\n")),
        ("folded into another", post!("X: y\r\n Transfer-Encoding: chunked\r\n")),
        ("tab-folded", post!("X: y\r\n\tTransfer-Encoding: chunked\r\n")),
        ("hidden by a bare LF", post!("X: y\nTransfer-Encoding: chunked\r\n")),
        ("hidden by a bare CR", post!("X: y\rTransfer-Encoding: chunked\r\n")),
        ("two carriage returns", post!("X: y\r\r\nTransfer-Encoding: chunked\r\n")),
        ("line that is no field", post!("Transfer-Encoding\r\n")),
        ("no name", post!(": chunked\r\n")),
        ("chunked in HTTP/1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ];
    for (name, bytes) in table {
        assert_eq!(
            refusal(bytes.as_bytes(), Limits::default()),
            (Some(400), 0),
            "{name}: {bytes:?}"
        );
    }
    check(
        &[
            ("gzip, chunked", post!("Transfer-Encoding: gzip, chunked\r\n")),
            ("over two lines", post!("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n")),
            ("identity, chunked", post!("Transfer-Encoding: identity,chunked\r\n")),
            ("with a parameter", post!("Transfer-Encoding: x;y=z , Chunked\r\n")),
        ],
        0,
        501,
    );
}

#[test]
fn malformed_chunks_are_refused() {
    let table = [
        ("no size", chunks!("\r\n\r\n")),
        ("no hexadecimal digit", chunks!("g\r\n\r\n")),
        ("sign", chunks!("+1\r\na\r\n0\r\n\r\n")),
        ("minus", chunks!("-1\r\na\r\n0\r\n\r\n")),
        ("prefix", chunks!("0x1\r\na\r\n0\r\n\r\n")),
        ("underscore", chunks!("1_\r\na\r\n0\r\n\r\n")),
        ("leading space", chunks!(" 1\r\na\r\n0\r\n\r\n")),
        ("trailing space", chunks!("1 \r\na\r\n0\r\n\r\n")),
        ("trailing tab", chunks!("1\t\r\na\r\n0\r\n\r\n")),
        ("trailing space of the last", chunks!("1\r\na\r\n0 \r\n\r\n")),
        ("17 digits that wrap to 1", chunks!("10000000000000001\r\na\r\n0\r\n\r\n")),
        ("17 digits", chunks!("00000000000000001\r\na\r\n0\r\n\r\n")),
        ("size ended by LF", chunks!("1\na\r\n0\r\n\r\n")),
        ("size ended by CR", chunks!("1\ra\r\n0\r\n\r\n")),
        ("data too long", chunks!("1\r\nab\r\n0\r\n\r\n")),
        ("data too short", chunks!("3\r\nab\r\n0\r\n\r\n")),
        ("data ended by LF", chunks!("1\r\na\n0\r\n\r\n")),
        ("data ended by CR", chunks!("1\r\na\r0\r\n\r\n")),
        ("no end of data", chunks!("1\r\na0\r\n\r\n")),
        ("extension without name", chunks!("1;\r\na\r\n0\r\n\r\n")),
        ("extension without value", chunks!("1;a=\r\na\r\n0\r\n\r\n")),
        ("open quotation", chunks!("1;a=\"b\r\na\r\n0\r\n\r\n")),
        ("text after a quotation", chunks!("1;a=\"b\"c\r\na\r\n0\r\n\r\n")),
        ("LF in an extension", chunks!("1;a\nb\r\na\r\n0\r\n\r\n")),
        ("CR in an extension", chunks!("1;a\rb\r\na\r\n0\r\n\r\n")),
        ("LF in a quotation", chunks!("1;a=\"\n\"\r\na\r\n0\r\n\r\n")),
        ("NUL in an extension", chunks!("1;\0\r\na\r\n0\r\n\r\n")),
        ("comma for a semicolon", chunks!("1,a\r\na\r\n0\r\n\r\n")),
        ("LF ends the trailers", chunks!("0\r\n\n")),
        ("trailers ended by CR", chunks!("0\r\n\rX")),
        ("trailer ended by LF", chunks!("0\r\nA: b\n\r\n")),
        ("folded trailer", chunks!("0\r\nA: b\r\n c\r\n\r\n")),
        ("trailer without colon", chunks!("0\r\nA\r\n\r\n")),
        ("space before the colon of a trailer", chunks!("0\r\nA : b\r\n\r\n")),
        ("length as a trailer", chunks!("0\r\nContent-Length: 5\r\n\r\n")),
        ("coding as a trailer", chunks!("0\r\ntransfer-encoding: chunked\r\n\r\n")),
        ("host as a trailer", chunks!("0\r\nHost: y\r\n\r\n")),
        ("request in place of the end", chunks!("0\r\n")),
    ];
    check(&table, 1, 400);
}

#[test]
fn malformed_heads_are_refused() {
    let table = [
        ("no version (HTTP/0.9)", "GET /\r\n\r\n"),
        ("no target", "GET HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("empty target", "GET  HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("two spaces after the method", "GET  / HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("two spaces before the version", "GET /  HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("tab after the method", "GET\t/ HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("tab before the version", "GET /\tHTTP/1.1\r\nHost: x\r\n\r\n"),
        ("space after the version", "GET / HTTP/1.1 \r\nHost: x\r\n\r\n"),
        ("space before the method", " GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("space in the target", "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("request in the target", "GET /a HTTP/1.1 /b HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("method of no token", "G(T / HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("lower-case version", "GET / http/1.1\r\nHost: x\r\n\r\n"),
        ("long version", "GET / HTTP/1.10\r\nHost: x\r\n\r\n"),
        ("short version", "GET / HTTP/1\r\nHost: x\r\n\r\n"),
        ("version with a comma", "GET / HTTP/1,1\r\nHost: x\r\n\r\n"),
        ("version of letters", "GET / HTTP/a.b\r\nHost: x\r\n\r\n"),
        ("other protocol", "GET / HTCP/1.1\r\nHost: x\r\n\r\n"),
        ("fragment", "GET /#a HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("fragment after a query", "GET /?a#b HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("backslash", "GET /\\x HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("quotation mark", "GET /\"x HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("non-ASCII", "GET /\u{e9} HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("NUL", "GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("DEL", "GET /\u{7f} HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("relative path", "GET a/b HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("asterisk", "GET * HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("asterisk and more", "OPTIONS *x HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("other scheme", "GET ftp://x/ HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("authority-form", "GET x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n"),
        ("no authority", "GET http:/// HTTP/1.1\r\nHost:\r\n\r\n"),
        ("authority of a port", "GET http://:80/ HTTP/1.1\r\nHost: :80\r\n\r\n"),
        ("user information", "GET http://u@x/ HTTP/1.1\r\nHost: u@x\r\n\r\n"),
        ("other host than the target's", "GET http://y/ HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("other port than the target's", "GET http://x:81/ HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("query as authority", "GET http://?x HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("no Host", "GET / HTTP/1.1\r\n\r\n"),
        ("two Hosts", "GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"),
        ("two equal Hosts", "GET / HTTP/1.1\r\nHost: x\r\nhost: x\r\n\r\n"),
        ("two Hosts of HTTP/1.0", "GET / HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n"),
        ("list of hosts", "GET / HTTP/1.1\r\nHost: x, y\r\n\r\n"),
        ("tight list of hosts", "GET / HTTP/1.1\r\nHost: x,y\r\n\r\n"),
        ("Host with a path", "GET / HTTP/1.1\r\nHost: x/y\r\n\r\n"),
        ("Host with a query", "GET / HTTP/1.1\r\nHost: x?y\r\n\r\n"),
        ("Host with a user", "GET / HTTP/1.1\r\nHost: u@x\r\n\r\n"),
        ("Host with a backslash", "GET / HTTP/1.1\r\nHost: x\\y\r\n\r\n"),
        ("port of letters", "GET / HTTP/1.1\r\nHost: x:http\r\n\r\n"),
        ("two ports", "GET / HTTP/1.1\r\nHost: x:80:80\r\n\r\n"),
        ("port out of range", "GET / HTTP/1.1\r\nHost: x:65536\r\n\r\n"),
        ("open bracket", "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n"),
        ("text after the bracket", "GET / HTTP/1.1\r\nHost: [::1]x\r\n\r\n"),
        ("name in brackets", "GET / HTTP/1.1\r\nHost: [x]\r\n\r\n"),
        ("bad escape", "GET / HTTP/1.1\r\nHost: x%2\r\n\r\n"),
        ("LF ends the request line", "GET / HTTP/1.1\nHost: x\r\n\r\n"),
        ("LF ends a field", "GET / HTTP/1.1\r\nHost: x\n\r\n"),
        ("LF ends the head", "GET / HTTP/1.1\r\nHost: x\r\n\n"),
        ("LF before the request", "\nGET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("CR before the request", "\rGET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("two empty lines", "\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("CR ends the head", "GET / HTTP/1.1\r\nHost: x\r\n\rX"),
        ("folded first field", "GET / HTTP/1.1\r\n Host: x\r\n\r\n"),
        ("space for a line", "GET / HTTP/1.1\r\nHost: x\r\n \r\n\r\n"),
        ("space in a name", "GET / HTTP/1.1\r\nHost: x\r\nA B: c\r\n\r\n"),
        ("bracket in a name", "GET / HTTP/1.1\r\nHost: x\r\nA[: c\r\n\r\n"),
        ("non-ASCII name", "GET / HTTP/1.1\r\nHost: x\r\n\u{e9}: c\r\n\r\n"),
        ("escape in a value", "GET / HTTP/1.1\r\nHost: x\r\nA: \u{1b}\r\n\r\n"),
        ("form feed in a value", "GET / HTTP/1.1\r\nHost: x\r\nA: \u{c}\r\n\r\n"),
    ];
    check(&table, 0, 400);
    check(&[("TLS hello", "\u{16}\u{3}\u{1}"), ("SSH", "SSH-2.0-x\r\n")], 0, 400);
}

#[test]
fn what_is_not_implemented_says_so() {
    let table = [
        ("HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("HTTP/2.0", "GET / HTTP/2.0\r\nHost: x\r\n\r\n"),
        ("HTTP/1.2", "GET / HTTP/1.2\r\nHost: x\r\n\r\n"),
        ("HTTP/0.9", "GET / HTTP/0.9\r\n\r\n"),
        ("HTTP/9.9", "GET / HTTP/9.9\r\n"),
    ];
    check(&table, 0, 505);
    let long = format!("{} / HTTP/1.1\r\nHost: x\r\n\r\n", "M".repeat(33));
    check(&[("CONNECT", "CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n"), ("long", &long)], 0, 501);
    check(&[("expectation", post!("Expect: 200-ok\r\nContent-Length: 1\r\n"))], 0, 417);
    check(&[("list of two", post!("Expect: 100-continue, x\r\n"))], 0, 417);
}

#[test]
fn limits_are_exact() {
    let status = |bytes: &str, limits| refusal(bytes.as_bytes(), limits).0;
    let limits = Limits {
        max_head_bytes: 100,
        max_target_bytes: 20,
        max_header_count: 3,
        max_body_bytes: 10,
    };

    let target =
        |length: usize| format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(length - 1));
    assert_eq!(status(&target(20), limits), None);
    assert_eq!(status(&target(21), limits), Some(414));
    assert_eq!(status(&target(90), limits), Some(414));
    // No end of the line in sight.
    assert_eq!(status(&target(90)[..63], limits), Some(414));

    let head = |length: usize| {
        let start = "GET / HTTP/1.1\r\nHost: x\r\nA: ";
        format!("{start}{}\r\n\r\n", "a".repeat(length - start.len() - 4))
    };
    assert_eq!(head(100).len(), 100);
    assert_eq!(status(&head(100), limits), None);
    assert_eq!(status(&head(101), limits), Some(431));
    assert_eq!(status(&head(200)[..98], limits), None);
    assert_eq!(status(&head(200)[..99], limits), Some(431));

    let fields =
        |count: usize| format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "a:\r\n".repeat(count));
    assert_eq!(status(&fields(2), limits), None);
    assert_eq!(status(&fields(3), limits), Some(431));

    let sized =
        |length: &str| format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    assert_eq!(status(&sized("10"), limits), None);
    assert_eq!(status(&sized("0000000000000000000000010"), limits), None);
    assert_eq!(status(&sized("11"), limits), Some(413));
    assert_eq!(status(&sized("18446744073709551617"), limits), Some(413));
    let unlimited = Limits { max_body_bytes: u64::MAX, ..limits };
    assert_eq!(status(&sized("18446744073709551614"), unlimited), None);
    assert_eq!(status(&sized("18446744073709551621"), unlimited), Some(413));

    let chunked = |body: &str| {
        format!("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
    };
    assert_eq!(status(&chunked("4\r\nabcd\r\n6\r\n"), limits), None);
    assert_eq!(status(&chunked("4\r\nabcd\r\n7\r\n"), limits), Some(413));
    assert_eq!(status(&chunked("1\r\na\r\nfffffffffffffffe\r\n"), unlimited), Some(413));
    assert_eq!(status(&chunked(&format!("0\r\n{}\r\n", "a:\r\n".repeat(3))), limits), None);
    assert_eq!(status(&chunked(&format!("0\r\n{}\r\n", "a:\r\n".repeat(4))), limits), Some(431));
    assert_eq!(status(&chunked(&format!("0\r\na:{}\r\n\r\n", "b".repeat(94))), limits), None);
    assert_eq!(status(&chunked(&format!("0\r\na:{}\r\n\r\n", "b".repeat(99))), limits), Some(431));
}

#[test]
fn chunk_extensions_are_bounded() {
    let status = |line: &str, count: usize| {
        let mut bytes =
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for _ in 0..count {
            bytes.extend_from_slice(format!("{line}\r\na\r\n").as_bytes());
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        refusal(&bytes, Limits::default()).0
    };
    assert_eq!(status(&format!("1;{}", "x".repeat(254)), 1), None);
    assert_eq!(status(&format!("1;{}", "x".repeat(255)), 1), Some(400));
    let sixteen = format!("1;{}", "x".repeat(15));
    assert_eq!(status(&sixteen, 1024), None);
    assert_eq!(status(&sixteen, 1025), Some(400));
}

#[test]
fn a_refusal_is_readable_and_final() {
    let bytes = b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut driver = Driver::run(Limits::default(), Restart::Never, bytes, &[]);
    let expected = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\
        Content-Length: 45\r\nConnection: close\r\n\r\n400 Bad Request: Host appears more than once\n";
    let text = String::from_utf8(driver.output.clone()).expect("text");
    assert_eq!(text, expected);
    // Nothing more comes, in or out.
    driver.output.clear();
    driver.feed(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    driver.http.error_response(&mut driver.output, &Error::RequestTimeout, b"");
    assert_eq!(driver.output, b"");
    assert_eq!(driver.seen.len(), 1);
    assert!(driver.http.must_close() && !driver.http.wants_input());
}

#[test]
fn an_error_in_a_body_is_answered_only_before_the_response() {
    let request = |path: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\nx")
    };
    let run = |path| {
        let bytes = request(path);
        let driver = Driver::run(Limits::default(), Restart::Never, bytes.as_bytes(), &[]);
        assert_eq!(driver.seen.last(), Some(&Seen::Refused(Error::MalformedChunk)));
        String::from_utf8(driver.output).expect("text")
    };
    assert!(run("/late").starts_with("HTTP/1.1 400 Bad Request\r\n"));
    // The head is out: the connection ends without the last chunk.
    assert!(run("/chunks").ends_with("Transfer-Encoding: chunked\r\n\r\n"));
    // Answered in full already.
    assert!(run("/early").ends_with("\r\n\r\nearly"));
}
