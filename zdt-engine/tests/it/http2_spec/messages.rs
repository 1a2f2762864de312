//! `http2/7` and `http2/8`: error codes, and requests as HTTP sees them.

use super::*;

#[test]
fn http2_7_error_codes() {
    check("http2/7", |spec| {
        spec.case("1: sends a GOAWAY frame with unknown error code", |c| {
            c.send(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 0xff]);
            Pong
        });
        spec.case("2: sends a RST_STREAM frame with unknown error code", |c| {
            open(c, "POST");
            c.send(RST_STREAM, 0, 1, &word(0xff));
            Pong
        });
    });
}

#[test]
fn http2_8_1_request_response_exchange() {
    check("http2/8.1", |spec| {
        spec.case("1: sends a second HEADERS frame without the END_STREAM flag", |c| {
            open(c, "POST");
            c.send(DATA, 0, 1, b"test");
            c.send(HEADERS, END_HEADERS, 1, &block(&[("x-test", "ok")]));
            StreamError(&[PROTOCOL])
        });
    });
}

#[test]
fn http2_8_1_2_header_fields() {
    let normal = request("GET", "/", &[]);
    // The fields of a request for the page, but for the one at that place, and with these behind them.
    let but = |place: usize, more: &[(&'static str, &'static str)]| {
        let mut fields = normal.clone();
        if place < fields.len() {
            fields.remove(place);
        }
        fields.extend_from_slice(more);
        block(&fields)
    };
    const NONE: usize = usize::MAX;
    check("http2/8.1.2", |spec| {
        for (name, block) in [
            (
                "1: sends a HEADERS frame that contains the header field name in uppercase letters",
                but(NONE, &[("X-TEST", "ok")]),
            ),
            (
                "1/1: sends a HEADERS frame that contains a unknown pseudo-header field",
                but(NONE, &[(":test", "ok")]),
            ),
            (
                "1/2: sends a HEADERS frame that contains the pseudo-header field defined for response",
                but(NONE, &[(":status", "200")]),
            ),
            (
                "1/4: sends a HEADERS frame that contains a pseudo-header field that appears in a header block after a regular header field",
                [block(&[("x-test", "ok")]), common("GET")].concat(),
            ),
            (
                "2/1: sends a HEADERS frame that contains the connection-specific header field",
                but(NONE, &[("connection", "keep-alive")]),
            ),
            (
                "2/2: sends a HEADERS frame that contains the TE header field with any value other than \"trailers\"",
                but(NONE, &[("trailers", "test"), ("te", "trailers, deflate")]),
            ),
            (
                "3/1: sends a HEADERS frame with empty \":path\" pseudo-header field",
                block(&request("GET", "", &[])),
            ),
            // h2spec leaves out `:scheme` as well, so that case 3 would be enough.
            (
                "3/2: sends a HEADERS frame that omits \":method\" pseudo-header field",
                block(&normal[2..]),
            ),
            ("3/2: with the scheme", but(0, &[])),
            ("3/3: sends a HEADERS frame that omits \":scheme\" pseudo-header field", but(1, &[])),
            ("3/4: sends a HEADERS frame that omits \":path\" pseudo-header field", but(2, &[])),
            (
                "3/5: sends a HEADERS frame with duplicated \":method\" pseudo-header field",
                but(NONE, &[(":method", "GET")]),
            ),
            (
                "3/6: sends a HEADERS frame with duplicated \":scheme\" pseudo-header field",
                but(NONE, &[(":scheme", "http")]),
            ),
            (
                "3/7: sends a HEADERS frame with duplicated \":path\" pseudo-header field",
                but(NONE, &[(":path", "/")]),
            ),
        ] {
            spec.case(name, |c| {
                whole(c, 1, &block);
                StreamError(&[PROTOCOL])
            });
        }
        spec.case(
            "1/3: sends a HEADERS frame that contains a pseudo-header field as trailers",
            |c| {
                open(c, "POST");
                c.send(DATA, 0, 1, b"test");
                c.send(HEADERS, END_HEADERS, 1, &block(&[(":method", "POST")]));
                StreamError(&[PROTOCOL])
            },
        );
        spec.case("1/3: with END_STREAM, as trailers have it", |c| {
            open(c, "POST");
            c.send(DATA, 0, 1, b"test");
            whole(c, 1, &block(&[(":method", "POST")]));
            StreamError(&[PROTOCOL])
        });
        spec.case(
            "6/1: sends a HEADERS frame with the \"content-length\" header field which does not equal the DATA frame payload length",
            |c| {
                c.send(HEADERS, END_HEADERS, 1, &with("POST", &[("content-length", "1")]));
                c.send(DATA, END_STREAM, 1, b"test");
                StreamError(&[PROTOCOL])
            },
        );
        spec.case(
            "6/2: sends a HEADERS frame with the \"content-length\" header field which does not equal the sum of the multiple DATA frames payload length",
            |c| {
                c.send(HEADERS, END_HEADERS, 1, &with("POST", &[("content-length", "1")]));
                c.send(DATA, 0, 1, b"test");
                c.send(DATA, END_STREAM, 1, b"test");
                StreamError(&[PROTOCOL])
            },
        );
    });
}

#[test]
fn http2_8_2_server_push() {
    check("http2/8.2", |spec| {
        spec.case("1: sends a PUSH_PROMISE frame", |c| {
            let payload = [word(3).to_vec(), common("GET")].concat();
            c.send(PUSH_PROMISE, END_HEADERS, 1, &payload);
            ConnectionError(PROTOCOL)
        });
    });
}
