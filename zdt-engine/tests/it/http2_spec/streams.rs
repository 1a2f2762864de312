//! `http2/5`: streams, their states, errors and extensions.

use super::*;

#[test]
fn http2_5_1_stream_states() {
    check("http2/5.1", |spec| {
        spec.case("1: idle: sends a DATA frame", |c| {
            c.send(DATA, END_STREAM, 1, b"test");
            ConnectionError(PROTOCOL)
        });
        spec.case("2: idle: sends a RST_STREAM frame", |c| {
            c.send(RST_STREAM, 0, 1, &word(CANCEL));
            ConnectionError(PROTOCOL)
        });
        spec.case("3: idle: sends a WINDOW_UPDATE frame", |c| {
            c.send(WINDOW_UPDATE, 0, 1, &word(100));
            ConnectionError(PROTOCOL)
        });
        spec.case("4: idle: sends a CONTINUATION frame", |c| {
            c.send(CONTINUATION, END_HEADERS, 1, &common("GET"));
            ConnectionError(PROTOCOL)
        });
        spec.case("5: half closed (remote): sends a DATA frame", |c| {
            get(c, 1);
            c.send(DATA, END_STREAM, 1, b"test");
            StreamError(&[STREAM_CLOSED])
        });
        spec.case("6: half closed (remote): sends a HEADERS frame", |c| {
            get(c, 1);
            get(c, 1);
            StreamError(&[STREAM_CLOSED])
        });
        spec.case("7: half closed (remote): sends a CONTINUATION frame", |c| {
            get(c, 1);
            c.send(CONTINUATION, END_HEADERS, 1, &common("GET"));
            StreamError(&[STREAM_CLOSED, PROTOCOL])
        });
        spec.case("8: closed: sends a DATA frame after sending RST_STREAM frame", |c| {
            open(c, "GET");
            c.send(RST_STREAM, 0, 1, &word(CANCEL));
            c.send(DATA, END_STREAM, 1, b"test");
            StreamError(&[STREAM_CLOSED])
        });
        spec.case("9: closed: sends a HEADERS frame after sending RST_STREAM frame", |c| {
            open(c, "GET");
            c.send(RST_STREAM, 0, 1, &word(CANCEL));
            get(c, 1);
            StreamError(&[STREAM_CLOSED])
        });
        spec.case("10: closed: sends a CONTINUATION frame after sending RST_STREAM frame", |c| {
            open(c, "GET");
            c.send(RST_STREAM, 0, 1, &word(CANCEL));
            c.send(CONTINUATION, END_HEADERS, 1, &dummy());
            StreamError(&[STREAM_CLOSED, PROTOCOL])
        });
        spec.case("11: closed: sends a DATA frame", |c| {
            get(c, 1);
            closes(c);
            c.send(DATA, END_STREAM, 1, b"test");
            StreamError(&[STREAM_CLOSED])
        });
        spec.case("12: closed: sends a HEADERS frame", |c| {
            get(c, 1);
            closes(c);
            get(c, 1);
            ConnectionError(STREAM_CLOSED)
        });
        spec.case("13: closed: sends a CONTINUATION frame", |c| {
            get(c, 1);
            closes(c);
            c.send(CONTINUATION, END_HEADERS, 1, &dummy());
            ConnectionError(PROTOCOL)
        });
    });
}

#[test]
fn http2_5_1_identifiers_and_concurrency() {
    check("http2/5.1", |spec| {
        spec.case("1/1: sends even-numbered stream identifier", |c| {
            get(c, 2);
            ConnectionError(PROTOCOL)
        });
        spec.case("1/2: sends stream identifier that is numerically smaller than previous", |c| {
            get(c, 5);
            get(c, 3);
            ConnectionError(PROTOCOL)
        });
        spec.case(
            "2/1: sends HEADERS frames that causes their advertised concurrent stream limit to be exceeded",
            |c| {
                set(c, &[(INITIAL_WINDOW, 0)]);
                for stream in 0..=128 {
                    get(c, 2 * stream + 1);
                }
                StreamError(&[PROTOCOL, REFUSED_STREAM])
            },
        );
    });
}

#[test]
fn http2_5_3_1_stream_dependencies() {
    check("http2/5.3.1", |spec| {
        spec.case("1: sends HEADERS frame that depends on itself", |c| {
            let payload = [vec![0, 0, 0, 1, 255], common("GET")].concat();
            c.send(HEADERS, END_STREAM | END_HEADERS | WITH_PRIORITY, 1, &payload);
            StreamError(&[PROTOCOL])
        });
        spec.case("2: sends PRIORITY frame that depend on itself", |c| {
            c.send(PRIORITY, 0, 1, &[0, 0, 0, 1, 255]);
            StreamError(&[PROTOCOL])
        });
    });
}

#[test]
fn http2_5_4_1_connection_error_handling() {
    check("http2/5.4.1", |spec| {
        spec.case("1: sends an invalid PING frame for connection close", |c| {
            c.send(PING, 0, 3, &[0; 8]);
            Closed
        });
        spec.case("2: sends an invalid PING frame to receive GOAWAY frame", |c| {
            c.send(PING, 0, 3, &[0; 8]);
            ConnectionError(PROTOCOL)
        });
    });
}

#[test]
fn http2_5_5_extending_http2() {
    check("http2/5.5", |spec| {
        spec.case("1: sends an unknown extension frame", |c| {
            c.send(0x16, 0, 0, &[0; 8]);
            Pong
        });
        spec.case("2: sends an unknown extension frame in the middle of a header block", |c| {
            c.send(HEADERS, END_STREAM, 1, &common("GET"));
            c.send(0x16, 0, 0, &[0; 8]);
            ConnectionError(PROTOCOL)
        });
    });
}
