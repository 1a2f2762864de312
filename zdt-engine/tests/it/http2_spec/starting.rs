//! `http2/3` and `http2/4`: the preface, and frames as such.

use super::*;

#[test]
fn http2_3_5_connection_preface() {
    check("http2/3.5", |spec| {
        spec.silent("1: sends client connection preface", |c| {
            c.write(zdt_engine::proto::http2::PREFACE);
            set(c, &[(INITIAL_WINDOW, 65_535)]);
            let settings = c.try_read().expect("a frame").expect("a frame");
            assert_eq!((settings.kind, settings.flags), (SETTINGS, 0), "the first frame of all");
            Pong
        });
        // In clear it may as well be HTTP/1.1, and is none either: the end is the answer.
        spec.silent("2: sends invalid connection preface", |c| {
            c.write(b"INVALID CONNECTION PREFACE\r\n\r\n");
            if let Some(frame) = c.try_read().expect("an end in good order") {
                assert_eq!(frame.kind, SETTINGS, "{frame:?}");
                assert_eq!(first(c, &[GOAWAY]).code(), PROTOCOL);
            }
            Closed
        });
        spec.silent("a first frame that is not SETTINGS", |c| {
            c.write(zdt_engine::proto::http2::PREFACE);
            c.send(PING, 0, 0, &[0; 8]);
            ConnectionError(PROTOCOL)
        });
    });
}

/// Not of h2spec: what begins like the preface and is none is a request of HTTP/1.1, and no good one.
#[test]
fn a_preface_whose_end_is_wrong_gets_an_answer_of_http1() {
    let mut worker = TestWorker::spawn(1);
    let address = worker.listen();
    let answer = client::exchange(address, b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n");
    assert!(answer.starts_with(b"HTTP/1.1 505 "), "{}", answer.escape_ascii());
    // Without HTTP/2 there is no preface that a line without a slash might have been.
    let mut config = zdt_engine::config::WorkerConfig::default();
    config.http2.enabled = false;
    let mut worker = TestWorker::spawn_with(1, &Options { config, ..Options::default() });
    let answer = client::exchange(worker.listen(), b"INVALID CONNECTION PREFACE\r\n\r\n");
    assert!(answer.starts_with(b"HTTP/1.1 400 "), "{}", answer.escape_ascii());
}

#[test]
fn http2_4_1_frame_format() {
    check("http2/4.1", |spec| {
        spec.case("1: sends a frame with unknown type", |c| {
            c.send(0x16, 0, 0, &[0; 8]);
            Pong
        });
        spec.case("2: sends a frame with undefined flag", |c| {
            c.send(PING, 0x16, 0, &[0; 8]);
            assert!(first(c, &[PING]).has(ACK));
            Pong
        });
        spec.case("3: sends a frame with reserved field bit", |c| {
            c.send(PING, 0x16, 0x8000_0000, &[0; 8]);
            assert!(first(c, &[PING]).has(ACK));
            Pong
        });
    });
}

#[test]
fn http2_4_2_frame_size() {
    check("http2/4.2", |spec| {
        spec.case("1: sends a DATA frame with 2^14 octets in length", |c| {
            open(c, "POST");
            c.send(DATA, END_STREAM, 1, &[b'x'; 16_384]);
            Headers(1)
        });
        spec.case(
            "2: sends a large size DATA frame that exceeds the SETTINGS_MAX_FRAME_SIZE",
            |c| {
                open(c, "POST");
                c.send(DATA, END_STREAM, 1, &[b'x'; 16_385]);
                StreamError(&[FRAME_SIZE])
            },
        );
        spec.case(
            "3: sends a large size HEADERS frame that exceeds the SETTINGS_MAX_FRAME_SIZE",
            |c| {
                whole(c, 1, &[common("GET"), dummy(), dummy(), dummy(), dummy(), dummy()].concat());
                ConnectionError(FRAME_SIZE)
            },
        );
    });
}

#[test]
fn http2_4_3_header_compression() {
    check("http2/4.3", |spec| {
        spec.case("1: sends invalid header block fragment", |c| {
            whole(c, 1, &[0x40]);
            ConnectionError(COMPRESSION)
        });
        spec.case("2: sends a PRIORITY frame while sending the header blocks", |c| {
            c.send(HEADERS, 0, 1, &common("GET"));
            c.send(PRIORITY, 0, 1, &[0, 0, 0, 0, 255]);
            c.send(CONTINUATION, END_HEADERS, 1, &dummy());
            ConnectionError(PROTOCOL)
        });
        spec.case(
            "3: sends a HEADERS frame to another stream while sending the header blocks",
            |c| {
                c.send(HEADERS, 0, 1, &common("GET"));
                get(c, 3);
                c.send(CONTINUATION, END_HEADERS, 1, &dummy());
                ConnectionError(PROTOCOL)
            },
        );
    });
}
