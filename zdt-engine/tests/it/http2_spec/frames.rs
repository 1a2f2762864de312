//! `http2/6` without windows: each kind of frame.

use super::*;

#[test]
fn http2_6_1_data() {
    check("http2/6.1", |spec| {
        spec.case("1: sends a DATA frame with 0x0 stream identifier", |c| {
            c.send(DATA, END_STREAM, 0, b"test");
            ConnectionError(PROTOCOL)
        });
        spec.case(
            "2: sends a DATA frame on the stream that is not in open or half-closed (local) state",
            |c| {
                whole(c, 1, &common("POST"));
                c.send(DATA, END_STREAM, 1, b"test");
                StreamError(&[STREAM_CLOSED])
            },
        );
        spec.case("3: sends a DATA frame with invalid pad length", |c| {
            c.send(HEADERS, END_HEADERS, 1, &with("POST", &[("content-length", "4")]));
            c.send(DATA, END_STREAM | PADDED, 1, b"\x06Test");
            ConnectionError(PROTOCOL)
        });
    });
}

#[test]
fn http2_6_2_headers() {
    check("http2/6.2", |spec| {
        spec.case(
            "1: sends a HEADERS frame without the END_HEADERS flag, and a PRIORITY frame",
            |c| {
                c.send(HEADERS, 0, 1, &common("GET"));
                c.send(PRIORITY, 0, 1, &[0, 0, 0, 0, 255]);
                c.send(CONTINUATION, END_HEADERS, 1, &dummy());
                ConnectionError(PROTOCOL)
            },
        );
        spec.case(
            "2: sends a HEADERS frame to another stream while sending a HEADERS frame",
            |c| {
                c.send(HEADERS, 0, 1, &common("GET"));
                get(c, 3);
                c.send(CONTINUATION, END_HEADERS, 1, &dummy());
                ConnectionError(PROTOCOL)
            },
        );
        spec.case("3: sends a HEADERS frame with 0x0 stream identifier", |c| {
            get(c, 0);
            ConnectionError(PROTOCOL)
        });
        spec.case("4: sends a HEADERS frame with invalid pad length", |c| {
            let block = common("GET");
            let payload = [vec![block.len() as u8 + 2], block].concat();
            c.send(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, &payload);
            StreamError(&[PROTOCOL])
        });
    });
}

#[test]
fn http2_6_3_priority() {
    check("http2/6.3", |spec| {
        spec.case("1: sends a PRIORITY frame with 0x0 stream identifier", |c| {
            c.send(PRIORITY, 0, 0, &[0, 0, 0, 0, 255]);
            ConnectionError(PROTOCOL)
        });
        spec.case("2: sends a PRIORITY frame with a length other than 5 octets", |c| {
            get(c, 1);
            c.send(PRIORITY, 0, 1, &[0x80, 0, 0, 1]);
            StreamError(&[FRAME_SIZE])
        });
    });
}

#[test]
fn http2_6_4_rst_stream() {
    check("http2/6.4", |spec| {
        spec.case("1: sends a RST_STREAM frame with 0x0 stream identifier", |c| {
            c.send(RST_STREAM, 0, 0, &word(CANCEL));
            ConnectionError(PROTOCOL)
        });
        spec.case("2: sends a RST_STREAM frame on a idle stream", |c| {
            c.send(RST_STREAM, 0, 1, &word(CANCEL));
            ConnectionError(PROTOCOL)
        });
        spec.case("3: sends a RST_STREAM frame with a length other than 4 octets", |c| {
            get(c, 1);
            c.send(RST_STREAM, 0, 1, &[0; 3]);
            StreamError(&[FRAME_SIZE])
        });
    });
}

#[test]
fn http2_6_5_settings() {
    check("http2/6.5", |spec| {
        spec.case("1: sends a SETTINGS frame with ACK flag and payload", |c| {
            c.send(SETTINGS, ACK, 0, &[0]);
            ConnectionError(FRAME_SIZE)
        });
        spec.case("2: sends a SETTINGS frame with a stream identifier other than 0x0", |c| {
            c.send(SETTINGS, 0, 1, &[0, 3, 0, 0, 0, 100]);
            ConnectionError(PROTOCOL)
        });
        spec.case(
            "3: sends a SETTINGS frame with a length other than a multiple of 6 octets",
            |c| {
                c.send(SETTINGS, 0, 0, &[0, 3, 0]);
                ConnectionError(FRAME_SIZE)
            },
        );
        for (name, setting, code) in [
            (
                "2/1: SETTINGS_ENABLE_PUSH (0x2): sends the value other than 0 or 1",
                (2, 2),
                PROTOCOL,
            ),
            (
                "2/2: SETTINGS_INITIAL_WINDOW_SIZE (0x4): sends the value above the maximum flow control window size",
                (4, 1 << 31),
                FLOW_CONTROL,
            ),
            (
                "2/3: SETTINGS_MAX_FRAME_SIZE (0x5): sends the value below the initial value",
                (5, 16_383),
                PROTOCOL,
            ),
            (
                "2/4: SETTINGS_MAX_FRAME_SIZE (0x5): sends the value above the maximum allowed frame size",
                (5, 1 << 24),
                PROTOCOL,
            ),
        ] {
            spec.case(name, |c| {
                set(c, &[setting]);
                ConnectionError(code)
            });
        }
        spec.case("2/5: sends a SETTINGS frame with unknown identifier", |c| {
            set(c, &[(0xff, 1)]);
            Pong
        });
        spec.case("3/1: sends multiple values of SETTINGS_INITIAL_WINDOW_SIZE", |c| {
            set_and_wait(c, &[(INITIAL_WINDOW, 100), (INITIAL_WINDOW, 1)]);
            get(c, 1);
            OneByte
        });
        spec.case("3/2: sends a SETTINGS frame without ACK flag", |c| {
            set(c, &[(2, 0)]);
            Acknowledgement
        });
    });
}

#[test]
fn http2_6_7_ping() {
    check("http2/6.7", |spec| {
        spec.case("1: sends a PING frame", |_| Pong);
        spec.case("2: sends a PING frame with ACK", |c| {
            c.send(PING, ACK, 0, b"invalid\0");
            Pong
        });
        spec.case(
            "3: sends a PING frame with a stream identifier field value other than 0x0",
            |c| {
                c.send(PING, 0, 1, &[0; 8]);
                ConnectionError(PROTOCOL)
            },
        );
        spec.case("4: sends a PING frame with a length field value other than 8", |c| {
            c.send(PING, 0, 0, &[0; 6]);
            ConnectionError(FRAME_SIZE)
        });
    });
}

#[test]
fn http2_6_8_goaway() {
    check("http2/6.8", |spec| {
        spec.case("1: sends a GOAWAY frame with a stream identifier other than 0x0", |c| {
            c.send(GOAWAY, 0, 1, &[0; 8]);
            ConnectionError(PROTOCOL)
        });
    });
}

#[test]
fn http2_6_10_continuation() {
    check("http2/6.10", |spec| {
        spec.case("1: sends multiple CONTINUATION frames preceded by a HEADERS frame", |c| {
            c.send(HEADERS, END_STREAM, 1, &common("GET"));
            c.send(CONTINUATION, 0, 1, &dummy());
            c.send(CONTINUATION, END_HEADERS, 1, &dummy());
            Headers(1)
        });
        spec.case(
            "2: sends a CONTINUATION frame followed by any frame other than CONTINUATION",
            |c| {
                c.send(HEADERS, 0, 1, &common("POST"));
                c.send(CONTINUATION, 0, 1, &dummy());
                c.send(DATA, END_STREAM, 1, b"test");
                ConnectionError(PROTOCOL)
            },
        );
        spec.case("3: sends a CONTINUATION frame with 0x0 stream identifier", |c| {
            c.send(HEADERS, END_STREAM, 1, &common("GET"));
            c.send(CONTINUATION, END_HEADERS, 0, &dummy());
            ConnectionError(PROTOCOL)
        });
        spec.case(
            "4: sends a CONTINUATION frame preceded by a HEADERS frame with END_HEADERS flag",
            |c| {
                get(c, 1);
                c.send(CONTINUATION, END_HEADERS, 1, &dummy());
                ConnectionError(PROTOCOL)
            },
        );
        spec.case(
            "5: sends a CONTINUATION frame preceded by a CONTINUATION frame with END_HEADERS flag",
            |c| {
                c.send(HEADERS, END_STREAM, 1, &common("GET"));
                c.send(CONTINUATION, END_HEADERS, 1, &dummy());
                c.send(CONTINUATION, END_HEADERS, 1, &dummy());
                ConnectionError(PROTOCOL)
            },
        );
        spec.case("6: sends a CONTINUATION frame preceded by a DATA frame", |c| {
            c.send(HEADERS, 0, 1, &common("POST"));
            c.send(DATA, END_STREAM, 1, b"test");
            c.send(CONTINUATION, 0, 1, &dummy());
            c.send(CONTINUATION, END_HEADERS, 0, &dummy());
            ConnectionError(PROTOCOL)
        });
    });
}
