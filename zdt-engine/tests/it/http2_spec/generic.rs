//! `generic`: what every server must be able to take.

use super::*;

#[test]
fn generic_1_starting_http2() {
    check("generic/1", |spec| {
        spec.silent("1: sends a client connection preface", |c| {
            c.write(zdt_engine::proto::http2::PREFACE);
            set(c, &[(INITIAL_WINDOW, 65_535)]);
            let settings = c.try_read().expect("a frame").expect("a frame");
            assert_eq!((settings.kind, settings.flags), (SETTINGS, 0), "the first frame of all");
            Pong
        });
    });
}

#[test]
fn generic_2_streams_and_multiplexing() {
    check("generic/2", |spec| {
        spec.case("1: sends a PRIORITY frame on idle stream", |c| {
            c.send(PRIORITY, 0, 1, &[0, 0, 0, 0, 255]);
            Pong
        });
        spec.case("2: sends a WINDOW_UPDATE frame on half-closed (remote) stream", |c| {
            set(c, &[(INITIAL_WINDOW, 0)]);
            get(c, 1);
            c.send(WINDOW_UPDATE, 0, 1, &word(1));
            Data
        });
        spec.case("3: sends a PRIORITY frame on half-closed (remote) stream", |c| {
            set(c, &[(INITIAL_WINDOW, 0)]);
            get(c, 1);
            c.send(PRIORITY, 0, 1, &[0, 0, 0, 0, 255]);
            c.send(WINDOW_UPDATE, 0, 1, &word(1));
            Data
        });
        spec.case("4: sends a RST_STREAM frame on half-closed (remote) stream", |c| {
            get(c, 1);
            c.send(RST_STREAM, 0, 1, &word(CANCEL));
            Pong
        });
        spec.case("5: sends a PRIORITY frame on closed stream", |c| {
            get(c, 1);
            closes(c);
            c.send(PRIORITY, 0, 1, &[0, 0, 0, 0, 255]);
            Pong
        });
    });
}

#[test]
fn generic_3_frame_definitions() {
    check("generic/3", |spec| {
        spec.case("1/1: sends a DATA frame", |c| {
            open(c, "POST");
            c.send(DATA, END_STREAM, 1, b"test");
            Headers(1)
        });
        spec.case("1/2: sends multiple DATA frames", |c| {
            open(c, "POST");
            c.send(DATA, 0, 1, b"test");
            c.send(DATA, END_STREAM, 1, b"test");
            Headers(1)
        });
        spec.case("1/3: sends a DATA frame with padding", |c| {
            open(c, "POST");
            c.send(DATA, END_STREAM | PADDED, 1, b"\x05test\0\0\0\0\0");
            Headers(1)
        });
        spec.case("2/1: sends a HEADERS frame", |c| {
            get(c, 1);
            Headers(1)
        });
        spec.case("2/2: sends a HEADERS frame with padding", |c| {
            let payload = [vec![8], common("GET"), vec![0; 8]].concat();
            c.send(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, &payload);
            Headers(1)
        });
        spec.case("2/3: sends a HEADERS frame with priority", |c| {
            let payload = [vec![0, 0, 0, 0, 255], common("GET")].concat();
            c.send(HEADERS, END_STREAM | END_HEADERS | WITH_PRIORITY, 1, &payload);
            Headers(1)
        });
        for (name, stream, payload) in [
            ("3/1: sends a PRIORITY frame with priority 1", 1, [0, 0, 0, 0, 0]),
            ("3/2: sends a PRIORITY frame with priority 256", 1, [0, 0, 0, 0, 255]),
            ("3/3: sends a PRIORITY frame with stream dependency", 3, [0, 0, 0, 1, 0]),
            ("3/4: sends a PRIORITY frame with exclusive", 1, [0x80, 0, 0, 0, 0]),
            (
                "3/5: sends a PRIORITY frame for an idle stream, then send a HEADER frame for a lower stream ID",
                3,
                [0, 0, 0, 0, 255],
            ),
        ] {
            spec.case(name, |c| {
                c.send(PRIORITY, 0, stream, &payload);
                get(c, 1);
                Headers(1)
            });
        }
        spec.case("4/1: sends a RST_STREAM frame", |c| {
            open(c, "GET");
            c.send(RST_STREAM, 0, 1, &word(CANCEL));
            Pong
        });
        spec.case("5/1: sends a SETTINGS frame", |c| {
            set(c, &[(1, 4_096), (2, 1), (3, 100), (4, 65_535), (5, 16_384), (6, 100)]);
            Acknowledgement
        });
        spec.case("7/1: sends a PING frame", |_| Pong);
        spec.case("8/1: sends a GOAWAY frame", |c| {
            c.send(GOAWAY, 0, 0, b"\0\0\0\0\0\0\0\0h2spec");
            Pong
        });
        spec.case("9/1: sends a WINDOW_UPDATE frame with stream ID 0", |c| {
            c.send(WINDOW_UPDATE, 0, 0, &word(1));
            Pong
        });
        spec.case("9/2: sends a WINDOW_UPDATE frame with stream ID 1", |c| {
            get(c, 1);
            c.send(WINDOW_UPDATE, 0, 1, &word(1));
            Headers(1)
        });
        spec.case("10/1: sends a CONTINUATION frame", |c| {
            let block = common("GET");
            c.send(HEADERS, END_STREAM, 1, &block[..5]);
            c.send(CONTINUATION, END_HEADERS, 1, &block[5..]);
            Headers(1)
        });
        spec.case("10/2: sends multiple CONTINUATION frames", |c| {
            let block = common("GET");
            c.send(HEADERS, END_STREAM, 1, &block[..5]);
            c.send(CONTINUATION, 0, 1, &block[5..10]);
            c.send(CONTINUATION, END_HEADERS, 1, &block[10..]);
            Headers(1)
        });
    });
}

#[test]
fn generic_4_http_message_exchanges() {
    check("generic/4", |spec| {
        spec.case("1: sends a GET request", |c| {
            get(c, 1);
            Headers(1)
        });
        spec.case("2: sends a HEAD request", |c| {
            whole(c, 1, &common("HEAD"));
            Headers(1)
        });
        spec.case("3: sends a POST request", |c| {
            open(c, "POST");
            c.send(DATA, END_STREAM, 1, b"test");
            Headers(1)
        });
        spec.case("4: sends a POST request with trailers", |c| {
            c.send(HEADERS, END_HEADERS, 1, &with("POST", &[("trailer", "x-test")]));
            c.send(DATA, 0, 1, b"test");
            whole(c, 1, &block(&[("x-test", "ok")]));
            Headers(1)
        });
    });
}

#[test]
fn generic_5_hpack() {
    const AGENT: &[u8] = b"\x0auser-agent\x06h2spec";
    const AGENT_IN_HUFFMAN_CODE: &[u8] = b"\x87\xb5\x05\xb1\x61\xcc\x5a\x93\x84\x9c\x48\xac\xa4";
    const TEST: &[u8] = b"\x06x-test\x06h2spec";
    const TEST_IN_HUFFMAN_CODE: &[u8] = b"\x85\xf2\xb2\x4a\x84\xff\x84\x9c\x48\xac\xa4";
    check("generic/5", |spec| {
        for (name, first, rest) in [
            ("1: sends a indexed header field representation", 0xba, &b""[..]),
            (
                "2: sends a literal header field with incremental indexing - indexed name",
                0x40,
                AGENT_IN_HUFFMAN_CODE,
            ),
            (
                "3: sends a literal header field with incremental indexing - indexed name (with Huffman coding)",
                0x40,
                AGENT,
            ),
            ("4: sends a literal header field with incremental indexing - new name", 0x40, TEST),
            (
                "5: sends a literal header field with incremental indexing - new name (with Huffman coding)",
                0x40,
                TEST_IN_HUFFMAN_CODE,
            ),
            ("6: sends a literal header field without indexing - indexed name", 0, AGENT),
            (
                "7: sends a literal header field without indexing - indexed name (with Huffman coding)",
                0,
                AGENT_IN_HUFFMAN_CODE,
            ),
            ("8: sends a literal header field without indexing - new name", 0, TEST),
            (
                "9: sends a literal header field without indexing - new name (huffman encoded)",
                0,
                TEST_IN_HUFFMAN_CODE,
            ),
            ("10: sends a literal header field never indexed - indexed name", 0x10, AGENT),
            (
                "11: sends a literal header field never indexed - indexed name (huffman encoded)",
                0x10,
                AGENT_IN_HUFFMAN_CODE,
            ),
            ("12: sends a literal header field never indexed - new name", 0x10, TEST),
            (
                "13: sends a literal header field never indexed - new name (huffman encoded)",
                0x10,
                TEST_IN_HUFFMAN_CODE,
            ),
            // What the names of 2, 3, 6, 7, 10 and 11 promise, and h2spec does not send.
            ("an indexed name, with incremental indexing", 0x7a, b"\x06h2spec"),
            ("an indexed name, without indexing", 0x0f, b"\x2b\x06h2spec"),
            ("an indexed name, never indexed", 0x1f, b"\x2b\x84\x9c\x48\xac\xa4"),
        ] {
            spec.case(name, |c| {
                whole(c, 1, &[common("GET"), vec![first], rest.to_vec()].concat());
                Headers(1)
            });
        }
        spec.case("14: sends a dynamic table size update", |c| {
            whole(c, 1, &[vec![0x20], common("GET")].concat());
            Headers(1)
        });
        spec.case("15: sends multiple dynamic table size update", |c| {
            whole(c, 1, &[vec![0x20, 0x3f, 0xe1, 0x1f], common("GET")].concat());
            Headers(1)
        });
    });
}
