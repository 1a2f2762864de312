//! The cases of h2spec (<https://github.com/summerwind/h2spec>), by its names and numbers: section, then
//! number within it. The program is not needed; what it sends and what it expects is written down here.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;

use crate::lab::TestWorker;
use crate::lab::http2::*;

const PROTOCOL: u32 = 1;
const FLOW_CONTROL: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const COMPRESSION: u32 = 9;

/// What a case expects.
enum Expected {
    /// GOAWAY with one of these codes, or at least the end of the connection.
    ConnectionError(&'static [u32]),
    /// RST_STREAM or GOAWAY with one of these codes, or the end of the connection.
    StreamError(&'static [u32]),
    /// The end, without a word if need be.
    Closed,
    /// An answer to a PING that follows: the connection lives.
    Lives,
    /// A response of that status on that stream.
    Status(u32, u16),
    /// The case has looked by itself.
    Seen,
}

use Expected::*;

/// Number in its section, what is sent, what is expected.
type Case = (&'static str, fn(&mut Http2Client) -> Expected);

fn check(section: &str, cases: &[Case]) {
    let mut worker = TestWorker::spawn(1);
    let address = worker.listen();
    let mut failed = Vec::new();
    for (name, case) in cases {
        let run = AssertUnwindSafe(|| run(address, *case));
        if std::panic::catch_unwind(run).is_err() {
            failed.push(format!("{section}/{name}"));
        }
        // And nobody else was harmed.
        let mut other = Http2Client::greet(address);
        other.get(1, "/");
        assert_eq!(other.response(1).0, 200, "after {section}/{name}");
    }
    assert!(failed.is_empty(), "failed: {failed:#?}");
}

fn run(address: SocketAddr, case: fn(&mut Http2Client) -> Expected) {
    let mut client = Http2Client::greet(address);
    match case(&mut client) {
        ConnectionError(codes) => match client.read_until(|frame| frame.kind == GOAWAY) {
            Some(frame) => {
                assert!(codes.contains(&frame.code()), "{frame:?}");
                client.read_until(|_| false);
            }
            None => panic!("closed without a word"),
        },
        StreamError(codes) => {
            let is_error = |frame: &Frame| matches!(frame.kind, GOAWAY | RST_STREAM);
            let frame = client.read_until(is_error).expect("closed without a word");
            assert!(codes.contains(&frame.code()), "{frame:?}");
        }
        Closed => {
            client.read_until(|_| false);
        }
        Lives => client.ping(),
        Status(stream, status) => assert_eq!(client.response(stream).0, status),
        Seen => {}
    }
}

/// A request without a body, with these fields behind the usual ones.
fn get(client: &mut Http2Client, stream: u32, more: &[(&str, &str)]) {
    client.send(HEADERS, END_STREAM | END_HEADERS, stream, &block(&request("GET", "/", more)));
}

/// The head of a request with a body.
fn post(client: &mut Http2Client, stream: u32, more: &[(&str, &str)]) {
    client.send(HEADERS, END_HEADERS, stream, &block(&request("POST", "/digest", more)));
}

/// Exactly these fields.
fn raw(client: &mut Http2Client, fields: &[(&str, &str)]) -> Expected {
    client.send(HEADERS, END_STREAM | END_HEADERS, 1, &block(fields));
    StreamError(&[PROTOCOL])
}

/// A request for the page, and its answer read.
fn done(client: &mut Http2Client, stream: u32) {
    get(client, stream, &[]);
    client.response(stream);
}

fn word(value: u32) -> [u8; 4] {
    value.to_be_bytes()
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    [&id.to_be_bytes()[..], &word(value)].concat()
}

#[test]
fn generic() {
    check(
        "generic",
        &[
            ("1/1: sends a client connection preface", |_| Lives),
            ("2/1: sends a PRIORITY frame on idle stream", |c| {
                c.send(PRIORITY, 0, 1, &[0, 0, 0, 0, 10]);
                Lives
            }),
            ("2/2: sends a WINDOW_UPDATE frame on half-closed (remote) stream", |c| {
                get(c, 1, &[]);
                c.send(WINDOW_UPDATE, 0, 1, &word(100));
                Status(1, 200)
            }),
            ("2/3: sends a PRIORITY frame on half-closed (remote) stream", |c| {
                get(c, 1, &[]);
                c.send(PRIORITY, 0, 1, &[0, 0, 0, 0, 10]);
                Status(1, 200)
            }),
            ("2/4: sends a RST_STREAM frame on half-closed (remote) stream", |c| {
                get(c, 1, &[]);
                c.send(RST_STREAM, 0, 1, &word(8));
                Lives
            }),
            ("2/5: sends a PRIORITY frame on closed stream", |c| {
                done(c, 1);
                c.send(PRIORITY, 0, 1, &[0, 0, 0, 0, 10]);
                Lives
            }),
            ("3.1/1: sends a DATA frame", |c| {
                post(c, 1, &[]);
                c.send(DATA, END_STREAM, 1, b"test");
                Status(1, 200)
            }),
            ("3.1/2: sends multiple DATA frames", |c| {
                post(c, 1, &[]);
                c.send(DATA, 0, 1, b"test");
                c.send(DATA, END_STREAM, 1, b"test");
                Status(1, 200)
            }),
            ("3.1/3: sends a DATA frame with padding", |c| {
                post(c, 1, &[]);
                c.send(DATA, END_STREAM | PADDED, 1, b"\x03test\0\0\0");
                Status(1, 200)
            }),
            ("3.2/1: sends a HEADERS frame", |c| {
                get(c, 1, &[]);
                Status(1, 200)
            }),
            ("3.2/2: sends a HEADERS frame with padding", |c| {
                let mut payload = vec![4];
                payload.extend(block(&request("GET", "/", &[])));
                payload.extend([0; 4]);
                c.send(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, &payload);
                Status(1, 200)
            }),
            ("3.2/3: sends a HEADERS frame with priority", |c| {
                let mut payload = vec![0, 0, 0, 0, 10];
                payload.extend(block(&request("GET", "/", &[])));
                c.send(HEADERS, END_STREAM | END_HEADERS | WITH_PRIORITY, 1, &payload);
                Status(1, 200)
            }),
            ("3.3/1..5: sends PRIORITY frames of all kinds", |c| {
                for priority in
                    [[0, 0, 0, 0, 1], [0, 0, 0, 0, 255], [0, 0, 0, 3, 10], [0x80, 0, 0, 3, 10]]
                {
                    c.send(PRIORITY, 0, 1, &priority);
                }
                get(c, 1, &[]);
                Status(1, 200)
            }),
            ("3.4/1: sends a RST_STREAM frame", |c| {
                post(c, 1, &[]);
                c.send(RST_STREAM, 0, 1, &word(8));
                Lives
            }),
            ("3.5/1: sends a SETTINGS frame", |c| {
                c.send(SETTINGS, 0, 0, &setting(3, 100));
                c.read_until(|f| f.kind == SETTINGS && f.has(ACK)).expect("an acknowledgement");
                Seen
            }),
            ("3.7/1: sends a PING frame", |_| Lives),
            ("3.8/1: sends a GOAWAY frame", |c| {
                c.send(GOAWAY, 0, 0, &[0; 8]);
                Lives
            }),
            ("3.9/1: sends a WINDOW_UPDATE frame with stream ID 0", |c| {
                c.send(WINDOW_UPDATE, 0, 0, &word(1));
                Lives
            }),
            ("3.9/2: sends a WINDOW_UPDATE frame with stream ID 1", |c| {
                post(c, 1, &[]);
                c.send(WINDOW_UPDATE, 0, 1, &word(1));
                Lives
            }),
            ("3.10/1: sends a CONTINUATION frame", |c| {
                let block = block(&request("GET", "/", &[]));
                c.send(HEADERS, END_STREAM, 1, &block[..10]);
                c.send(CONTINUATION, END_HEADERS, 1, &block[10..]);
                Status(1, 200)
            }),
            ("3.10/2: sends multiple CONTINUATION frames", |c| {
                let block = block(&request("GET", "/", &[]));
                c.send(HEADERS, END_STREAM, 1, &block[..10]);
                c.send(CONTINUATION, 0, 1, &block[10..20]);
                c.send(CONTINUATION, END_HEADERS, 1, &block[20..]);
                Status(1, 200)
            }),
            ("4/1: sends a GET request", |c| {
                get(c, 1, &[]);
                Status(1, 200)
            }),
            ("4/2: sends a HEAD request", |c| {
                c.send(HEADERS, END_STREAM | END_HEADERS, 1, &block(&request("HEAD", "/", &[])));
                let (status, body) = c.response(1);
                assert_eq!((status, body.len()), (200, 0));
                Seen
            }),
            ("4/3: sends a POST request", |c| {
                post(c, 1, &[]);
                c.send(DATA, END_STREAM, 1, b"test");
                Status(1, 200)
            }),
            ("4/4: sends a POST request with trailers", |c| {
                post(c, 1, &[("trailer", "x-test")]);
                c.send(DATA, 0, 1, b"test");
                c.send(HEADERS, END_STREAM | END_HEADERS, 1, &block(&[("x-test", "ok")]));
                Status(1, 200)
            }),
            ("5/1..15: sends all representations of header fields", |c| {
                // Indexed; literal with incremental indexing, without, and never, with indexed and new
                // names, plain and in Huffman code; an update of the table's size; the dynamic table.
                let mut block = vec![0x20, 0x3f, 0xe1, 0x1f, 0x82, 0x86, 0x84];
                block.extend([
                    0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4,
                    0xff,
                ]);
                block.extend([0x58, 0x08]);
                block.extend(b"no-cache");
                block.extend([
                    0x40, 1, b'a', 1, b'b', 0x00, 1, b'c', 1, b'd', 0x10, 1, b'e', 1, b'f',
                ]);
                block.extend([0x0f, 0x2b, 1, b'u', 0x1f, 0x2b, 1, b'v', 0xbe, 0xbf]);
                c.send(HEADERS, END_STREAM | END_HEADERS, 1, &block);
                Status(1, 200)
            }),
        ],
    );
}

#[test]
fn http2_3_starting() {
    check(
        "http2/3.5",
        &[
            ("1: sends client connection preface", |_| Lives),
            ("2: sends invalid connection preface", |c| {
                let address = c.stream.peer_addr().expect("address");
                *c = Http2Client::silent(address);
                c.write(b"INVALID CONNECTION PREFACE\r\n\r\n");
                // What is no preface is HTTP/1.1, and no good one: the answer is not a frame.
                use std::io::Read;
                let mut answer = Vec::new();
                c.stream.read_to_end(&mut answer).expect("read");
                assert!(answer.starts_with(b"HTTP/1.1 400 "), "{answer:?}");
                Seen
            }),
            ("a preface whose end is wrong", |c| {
                let address = c.stream.peer_addr().expect("address");
                *c = Http2Client::silent(address);
                c.write(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n");
                use std::io::Read;
                let mut answer = Vec::new();
                c.stream.read_to_end(&mut answer).expect("read");
                assert!(answer.starts_with(b"HTTP/1.1 "), "{answer:?}");
                Seen
            }),
            ("a first frame that is not SETTINGS", |c| {
                let address = c.stream.peer_addr().expect("address");
                *c = Http2Client::silent(address);
                c.write(
                    &[&zdt_engine::proto::http2::PREFACE[..], &frame(PING, 0, 0, &[0; 8])].concat(),
                );
                ConnectionError(&[PROTOCOL])
            }),
        ],
    );
}

#[test]
fn http2_4_frames() {
    check(
        "http2/4",
        &[
            ("4.1/1: sends a frame with unknown type", |c| {
                c.send(0x16, 0, 0, &[0; 8]);
                Lives
            }),
            ("4.1/2: sends a frame with undefined flag", |c| {
                c.send(PING, 0x16, 0, &[1; 8]);
                c.read_until(|f| f.kind == PING && f.has(ACK)).expect("a pong");
                Seen
            }),
            ("4.1/3: sends a frame with reserved field bit", |c| {
                c.send(PING, 0, 0x8000_0000, &[1; 8]);
                c.read_until(|f| f.kind == PING && f.has(ACK)).expect("a pong");
                Seen
            }),
            ("4.2/1: sends a DATA frame with 2^14 octets in length", |c| {
                post(c, 1, &[]);
                c.send(DATA, END_STREAM, 1, &[0; 16_384]);
                Status(1, 200)
            }),
            (
                "4.2/2: sends a large size DATA frame that exceeds the SETTINGS_MAX_FRAME_SIZE",
                |c| {
                    post(c, 1, &[]);
                    c.send(DATA, END_STREAM, 1, &[0; 16_385]);
                    StreamError(&[FRAME_SIZE])
                },
            ),
            (
                "4.2/3: sends a large size HEADERS frame that exceeds the SETTINGS_MAX_FRAME_SIZE",
                |c| {
                    c.send(HEADERS, END_STREAM | END_HEADERS, 1, &[0; 16_385]);
                    ConnectionError(&[FRAME_SIZE])
                },
            ),
            ("4.3/1: sends invalid header block fragment", |c| {
                c.send(HEADERS, END_STREAM | END_HEADERS, 1, &[0x80]);
                ConnectionError(&[COMPRESSION])
            }),
            ("4.3/2: sends a PRIORITY frame while sending the header blocks", |c| {
                c.send(HEADERS, END_STREAM, 1, &block(&request("GET", "/", &[])));
                c.send(PRIORITY, 0, 1, &[0, 0, 0, 0, 10]);
                ConnectionError(&[PROTOCOL])
            }),
            (
                "4.3/3: sends a HEADERS frame to another stream while sending the header blocks",
                |c| {
                    c.send(HEADERS, END_STREAM, 1, &block(&request("GET", "/", &[])));
                    get(c, 3, &[]);
                    ConnectionError(&[PROTOCOL])
                },
            ),
        ],
    );
}

#[test]
fn http2_5_streams() {
    check(
        "http2/5",
        &[
            ("5.1/1: idle: sends a DATA frame", |c| {
                c.send(DATA, END_STREAM, 1, b"test");
                ConnectionError(&[PROTOCOL])
            }),
            ("5.1/2: idle: sends a RST_STREAM frame", |c| {
                c.send(RST_STREAM, 0, 1, &word(8));
                ConnectionError(&[PROTOCOL])
            }),
            ("5.1/3: idle: sends a WINDOW_UPDATE frame", |c| {
                c.send(WINDOW_UPDATE, 0, 1, &word(100));
                ConnectionError(&[PROTOCOL])
            }),
            ("5.1/4: idle: sends a CONTINUATION frame", |c| {
                c.send(CONTINUATION, END_HEADERS, 1, &block(&request("GET", "/", &[])));
                ConnectionError(&[PROTOCOL])
            }),
            ("5.1/5: half closed (remote): sends a DATA frame", |c| {
                c.send(
                    HEADERS,
                    END_STREAM | END_HEADERS,
                    1,
                    &block(&request("GET", "/stream", &[])),
                );
                c.send(DATA, END_STREAM, 1, b"test");
                StreamError(&[STREAM_CLOSED])
            }),
            ("5.1/6: half closed (remote): sends a HEADERS frame", |c| {
                c.send(
                    HEADERS,
                    END_STREAM | END_HEADERS,
                    1,
                    &block(&request("GET", "/stream", &[])),
                );
                get(c, 1, &[]);
                StreamError(&[STREAM_CLOSED])
            }),
            ("5.1/7: half closed (remote): sends a CONTINUATION frame", |c| {
                get(c, 1, &[]);
                c.send(CONTINUATION, END_HEADERS, 1, &block(&request("GET", "/", &[])));
                ConnectionError(&[PROTOCOL])
            }),
            ("5.1/8: closed: sends a DATA frame after sending RST_STREAM frame", |c| {
                post(c, 1, &[]);
                c.send(RST_STREAM, 0, 1, &word(8));
                c.send(DATA, END_STREAM, 1, b"test");
                StreamError(&[STREAM_CLOSED])
            }),
            ("5.1/9: closed: sends a HEADERS frame after sending RST_STREAM frame", |c| {
                post(c, 1, &[]);
                c.send(RST_STREAM, 0, 1, &word(8));
                get(c, 1, &[]);
                StreamError(&[STREAM_CLOSED])
            }),
            ("5.1/10: closed: sends a CONTINUATION frame after sending RST_STREAM frame", |c| {
                post(c, 1, &[]);
                c.send(RST_STREAM, 0, 1, &word(8));
                c.send(CONTINUATION, END_HEADERS, 1, &block(&request("GET", "/", &[])));
                ConnectionError(&[PROTOCOL])
            }),
            ("5.1/11: closed: sends a DATA frame", |c| {
                done(c, 1);
                c.send(DATA, END_STREAM, 1, b"test");
                StreamError(&[STREAM_CLOSED])
            }),
            ("5.1/12: closed: sends a HEADERS frame", |c| {
                done(c, 1);
                get(c, 1, &[]);
                ConnectionError(&[STREAM_CLOSED])
            }),
            ("5.1/13: closed: sends a CONTINUATION frame", |c| {
                done(c, 1);
                c.send(CONTINUATION, END_HEADERS, 1, &block(&request("GET", "/", &[])));
                ConnectionError(&[PROTOCOL])
            }),
            ("5.1.1/1: sends even-numbered stream identifier", |c| {
                get(c, 2, &[]);
                ConnectionError(&[PROTOCOL])
            }),
            ("5.1.1/2: sends stream identifier that is numerically smaller than previous", |c| {
                done(c, 5);
                get(c, 3, &[]);
                ConnectionError(&[PROTOCOL])
            }),
            (
                "5.1.2/1: sends HEADERS frames that causes their advertised concurrent stream limit to be exceeded",
                |c| {
                    for stream in 0..129 {
                        post(c, 2 * stream + 1, &[]);
                    }
                    StreamError(&[PROTOCOL, REFUSED_STREAM])
                },
            ),
            ("5.3.1/1: sends HEADERS frame that depends on itself", |c| {
                let mut payload = vec![0, 0, 0, 1, 255];
                payload.extend(block(&request("GET", "/", &[])));
                c.send(HEADERS, END_STREAM | END_HEADERS | WITH_PRIORITY, 1, &payload);
                StreamError(&[PROTOCOL])
            }),
            ("5.3.1/2: sends PRIORITY frame that depend on itself", |c| {
                c.send(PRIORITY, 0, 2, &[0, 0, 0, 2, 255]);
                StreamError(&[PROTOCOL])
            }),
            ("5.4.1/1: sends an invalid PING frame for connection close", |c| {
                c.send(PING, 0, 3, &[0; 8]);
                Closed
            }),
            ("5.4.1/2: sends an invalid PING frame to receive GOAWAY frame", |c| {
                c.send(PING, 0, 3, &[0; 8]);
                ConnectionError(&[PROTOCOL])
            }),
            ("5.5/1: sends an unknown extension frame", |c| {
                c.send(0x16, 0, 0, &[0; 8]);
                Lives
            }),
            ("5.5/2: sends an unknown extension frame in the middle of a header block", |c| {
                c.send(HEADERS, END_STREAM, 1, &block(&request("GET", "/", &[])));
                c.send(0x16, 0, 0, &[0; 8]);
                ConnectionError(&[PROTOCOL])
            }),
        ],
    );
}

#[test]
fn http2_6_frame_definitions() {
    check(
        "http2/6",
        &[
            ("6.1/1: sends a DATA frame with 0x0 stream identifier", |c| {
                c.send(DATA, END_STREAM, 0, b"test");
                ConnectionError(&[PROTOCOL])
            }),
            (
                "6.1/2: sends a DATA frame on the stream that is not in open or half-closed (local) state",
                |c| {
                    c.send(
                        HEADERS,
                        END_STREAM | END_HEADERS,
                        1,
                        &block(&request("GET", "/stream", &[])),
                    );
                    c.send(DATA, END_STREAM, 1, b"test");
                    StreamError(&[STREAM_CLOSED])
                },
            ),
            ("6.1/3: sends a DATA frame with invalid pad length", |c| {
                post(c, 1, &[]);
                c.send(DATA, END_STREAM | PADDED, 1, b"\x05test");
                ConnectionError(&[PROTOCOL])
            }),
            (
                "6.2/1: sends a HEADERS frame without the END_HEADERS flag, and a PRIORITY frame",
                |c| {
                    c.send(HEADERS, END_STREAM, 1, &block(&request("GET", "/", &[])));
                    c.send(PRIORITY, 0, 1, &[0, 0, 0, 0, 255]);
                    ConnectionError(&[PROTOCOL])
                },
            ),
            ("6.2/2: sends a HEADERS frame to another stream while sending a HEADERS frame", |c| {
                c.send(HEADERS, END_STREAM, 1, &block(&request("GET", "/", &[])));
                get(c, 3, &[]);
                ConnectionError(&[PROTOCOL])
            }),
            ("6.2/3: sends a HEADERS frame with 0x0 stream identifier", |c| {
                get(c, 0, &[]);
                ConnectionError(&[PROTOCOL])
            }),
            ("6.2/4: sends a HEADERS frame with invalid pad length", |c| {
                let mut payload = vec![0xff];
                payload.extend(block(&request("GET", "/", &[])));
                c.send(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, &payload);
                ConnectionError(&[PROTOCOL])
            }),
            ("6.3/1: sends a PRIORITY frame with 0x0 stream identifier", |c| {
                c.send(PRIORITY, 0, 0, &[0, 0, 0, 0, 255]);
                ConnectionError(&[PROTOCOL])
            }),
            ("6.3/2: sends a PRIORITY frame with a length other than 5 octets", |c| {
                post(c, 1, &[]);
                c.send(PRIORITY, 0, 1, &[0, 0, 0, 1]);
                StreamError(&[FRAME_SIZE])
            }),
            ("6.4/1: sends a RST_STREAM frame with 0x0 stream identifier", |c| {
                c.send(RST_STREAM, 0, 0, &word(8));
                ConnectionError(&[PROTOCOL])
            }),
            ("6.4/2: sends a RST_STREAM frame on a idle stream", |c| {
                c.send(RST_STREAM, 0, 1, &word(8));
                ConnectionError(&[PROTOCOL])
            }),
            ("6.4/3: sends a RST_STREAM frame with a length other than 4 octets", |c| {
                post(c, 1, &[]);
                c.send(RST_STREAM, 0, 1, &[0, 0, 0]);
                ConnectionError(&[FRAME_SIZE])
            }),
            ("6.5/1: sends a SETTINGS frame with ACK flag and payload", |c| {
                c.send(SETTINGS, ACK, 0, &[0]);
                ConnectionError(&[FRAME_SIZE])
            }),
            ("6.5/2: sends a SETTINGS frame with a stream identifier other than 0x0", |c| {
                c.send(SETTINGS, 0, 1, &setting(3, 100));
                ConnectionError(&[PROTOCOL])
            }),
            (
                "6.5/3: sends a SETTINGS frame with a length other than a multiple of 6 octets",
                |c| {
                    c.send(SETTINGS, 0, 0, &[0, 3, 0]);
                    ConnectionError(&[FRAME_SIZE])
                },
            ),
            ("6.5.2/1: SETTINGS_ENABLE_PUSH (0x2): sends the value other than 0 or 1", |c| {
                c.send(SETTINGS, 0, 0, &setting(2, 2));
                ConnectionError(&[PROTOCOL])
            }),
            (
                "6.5.2/2: SETTINGS_INITIAL_WINDOW_SIZE (0x4): sends the value above the maximum flow control window size",
                |c| {
                    c.send(SETTINGS, 0, 0, &setting(4, 1 << 31));
                    ConnectionError(&[FLOW_CONTROL])
                },
            ),
            (
                "6.5.2/3: SETTINGS_MAX_FRAME_SIZE (0x5): sends the value below the initial value",
                |c| {
                    c.send(SETTINGS, 0, 0, &setting(5, 16_383));
                    ConnectionError(&[PROTOCOL])
                },
            ),
            (
                "6.5.2/4: SETTINGS_MAX_FRAME_SIZE (0x5): sends the value above the maximum allowed frame size",
                |c| {
                    c.send(SETTINGS, 0, 0, &setting(5, 1 << 24));
                    ConnectionError(&[PROTOCOL])
                },
            ),
            ("6.5.2/5: sends a SETTINGS frame with unknown identifier", |c| {
                c.send(SETTINGS, 0, 0, &setting(0xff, 1));
                Lives
            }),
            ("6.5.3/1: sends multiple values of SETTINGS_INITIAL_WINDOW_SIZE", |c| {
                let both = [setting(4, 100), setting(4, 1)].concat();
                c.send(SETTINGS, 0, 0, &both);
                get(c, 1, &[]);
                let data = c.read_until(|f| f.kind == DATA).expect("data");
                assert_eq!(data.payload.len(), 1);
                Seen
            }),
            ("6.5.3/2: sends a SETTINGS frame without ACK flag", |c| {
                c.send(SETTINGS, 0, 0, &setting(1, 4_096));
                c.read_until(|f| f.kind == SETTINGS && f.has(ACK)).expect("an acknowledgement");
                Seen
            }),
            ("6.7/1: sends a PING frame", |_| Lives),
            ("6.7/2: sends a PING frame with ACK", |c| {
                c.send(PING, ACK, 0, b"invalid\0");
                c.send(PING, 0, 0, b"h2spec\0\0");
                let pong = c.read_until(|f| f.kind == PING).expect("a pong");
                assert_eq!((pong.flags, &pong.payload[..]), (ACK, &b"h2spec\0\0"[..]));
                Seen
            }),
            (
                "6.7/3: sends a PING frame with a stream identifier field value other than 0x0",
                |c| {
                    c.send(PING, 0, 1, &[0; 8]);
                    ConnectionError(&[PROTOCOL])
                },
            ),
            ("6.7/4: sends a PING frame with a length field value other than 8", |c| {
                c.send(PING, 0, 0, &[0; 6]);
                ConnectionError(&[FRAME_SIZE])
            }),
            ("6.8/1: sends a GOAWAY frame with a stream identifier other than 0x0", |c| {
                c.send(GOAWAY, 0, 1, &[0; 8]);
                ConnectionError(&[PROTOCOL])
            }),
            ("6.9/1: sends a WINDOW_UPDATE frame with a flow control window increment of 0", |c| {
                c.send(WINDOW_UPDATE, 0, 0, &word(0));
                ConnectionError(&[PROTOCOL])
            }),
            (
                "6.9/2: sends a WINDOW_UPDATE frame with a flow control window increment of 0 on a stream",
                |c| {
                    post(c, 1, &[]);
                    c.send(WINDOW_UPDATE, 0, 1, &word(0));
                    StreamError(&[PROTOCOL])
                },
            ),
            ("6.9/3: sends a WINDOW_UPDATE frame with a length other than 4 octets", |c| {
                c.send(WINDOW_UPDATE, 0, 0, &[0, 0, 1]);
                ConnectionError(&[FRAME_SIZE])
            }),
            (
                "6.9.1/1: sends SETTINGS frame to set the initial window size to 1 and sends HEADERS frame",
                |c| {
                    c.send(SETTINGS, 0, 0, &setting(4, 1));
                    get(c, 1, &[]);
                    let data = c.read_until(|f| f.kind == DATA).expect("data");
                    assert_eq!(data.payload.len(), 1);
                    Seen
                },
            ),
            (
                "6.9.1/2: sends multiple WINDOW_UPDATE frames increasing the flow control window to above 2^31-1",
                |c| {
                    c.send(WINDOW_UPDATE, 0, 0, &word((1 << 31) - 1));
                    c.send(WINDOW_UPDATE, 0, 0, &word((1 << 31) - 1));
                    ConnectionError(&[FLOW_CONTROL])
                },
            ),
            (
                "6.9.1/3: sends multiple WINDOW_UPDATE frames increasing the flow control window to above 2^31-1 on a stream",
                |c| {
                    post(c, 1, &[]);
                    c.send(WINDOW_UPDATE, 0, 1, &word((1 << 31) - 1));
                    c.send(WINDOW_UPDATE, 0, 1, &word((1 << 31) - 1));
                    StreamError(&[FLOW_CONTROL])
                },
            ),
            ("6.9.2/1: changes SETTINGS_INITIAL_WINDOW_SIZE after sending HEADERS frame", |c| {
                c.send(SETTINGS, 0, 0, &setting(4, 0));
                get(c, 1, &[]);
                c.send(SETTINGS, 0, 0, &setting(4, 1));
                let data = c.read_until(|f| f.kind == DATA).expect("data");
                assert_eq!(data.payload.len(), 1);
                Seen
            }),
            ("6.9.2/2: sends a SETTINGS frame for window size to be negative", |c| {
                c.send(SETTINGS, 0, 0, &setting(4, 3));
                get(c, 1, &[]);
                c.read_until(|f| f.kind == DATA).expect("data");
                c.send(SETTINGS, 0, 0, &setting(4, 2));
                c.send(WINDOW_UPDATE, 0, 1, &word(2));
                let data = c.read_until(|f| f.kind == DATA).expect("data");
                assert_eq!(data.payload.len(), 1);
                Seen
            }),
            (
                "6.9.2/3: sends a SETTINGS_INITIAL_WINDOW_SIZE settings with an exceeded maximum window size value",
                |c| {
                    c.send(SETTINGS, 0, 0, &setting(4, u32::MAX));
                    ConnectionError(&[FLOW_CONTROL])
                },
            ),
            ("6.10/1: sends multiple CONTINUATION frames preceded by a HEADERS frame", |c| {
                let block = block(&request("GET", "/", &[]));
                c.send(HEADERS, END_STREAM, 1, &block[..5]);
                c.send(CONTINUATION, 0, 1, &block[5..9]);
                c.send(CONTINUATION, END_HEADERS, 1, &block[9..]);
                Status(1, 200)
            }),
            (
                "6.10/2: sends a CONTINUATION frame followed by any frame other than CONTINUATION",
                |c| {
                    let block = block(&request("GET", "/", &[]));
                    c.send(HEADERS, 0, 1, &block);
                    c.send(CONTINUATION, 0, 1, &[]);
                    c.send(DATA, END_STREAM, 1, b"test");
                    ConnectionError(&[PROTOCOL])
                },
            ),
            ("6.10/3: sends a CONTINUATION frame with 0x0 stream identifier", |c| {
                c.send(HEADERS, END_STREAM, 1, &block(&request("GET", "/", &[])));
                c.send(CONTINUATION, END_HEADERS, 0, &[]);
                ConnectionError(&[PROTOCOL])
            }),
            (
                "6.10/4: sends a CONTINUATION frame preceded by a HEADERS frame with END_HEADERS flag",
                |c| {
                    post(c, 1, &[]);
                    c.send(CONTINUATION, END_HEADERS, 1, &block(&[("x", "y")]));
                    ConnectionError(&[PROTOCOL])
                },
            ),
            (
                "6.10/5: sends a CONTINUATION frame preceded by a CONTINUATION frame with END_HEADERS flag",
                |c| {
                    c.send(HEADERS, 0, 1, &block(&request("POST", "/digest", &[])));
                    c.send(CONTINUATION, END_HEADERS, 1, &[]);
                    c.send(CONTINUATION, END_HEADERS, 1, &block(&[("x", "y")]));
                    ConnectionError(&[PROTOCOL])
                },
            ),
            ("6.10/6: sends a CONTINUATION frame preceded by a DATA frame", |c| {
                post(c, 1, &[]);
                c.send(DATA, END_STREAM, 1, b"test");
                c.send(CONTINUATION, END_HEADERS, 1, &block(&[("x", "y")]));
                ConnectionError(&[PROTOCOL])
            }),
        ],
    );
}

#[test]
fn http2_7_error_codes() {
    check(
        "http2/7",
        &[
            ("7/1: sends a GOAWAY frame with unknown error code", |c| {
                c.send(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 0xff]);
                Lives
            }),
            ("7/2: sends a RST_STREAM frame with unknown error code", |c| {
                post(c, 1, &[]);
                c.send(RST_STREAM, 0, 1, &word(0xff));
                Lives
            }),
        ],
    );
}

#[test]
fn http2_8_messages() {
    check(
        "http2/8",
        &[
            ("8.1/1: sends a second HEADERS frame without the END_STREAM flag", |c| {
                post(c, 1, &[]);
                c.send(HEADERS, END_HEADERS, 1, &block(&[("x-test", "ok")]));
                StreamError(&[PROTOCOL])
            }),
            (
                "8.1.2/1: sends a HEADERS frame that contains the header field name in uppercase letters",
                |c| {
                    get(c, 1, &[("X-TEST", "ok")]);
                    StreamError(&[PROTOCOL])
                },
            ),
            ("8.1.2.1/1: sends a HEADERS frame that contains a unknown pseudo-header field", |c| {
                raw(c, &[(":test", "ok"), (":method", "GET"), (":scheme", "http"), (":path", "/")])
            }),
            (
                "8.1.2.1/2: sends a HEADERS frame that contains the pseudo-header field defined for response",
                |c| {
                    raw(
                        c,
                        &[
                            (":method", "GET"),
                            (":scheme", "http"),
                            (":path", "/"),
                            (":status", "200"),
                        ],
                    )
                },
            ),
            (
                "8.1.2.1/3: sends a HEADERS frame that contains a pseudo-header field as trailers",
                |c| {
                    post(c, 1, &[]);
                    c.send(DATA, 0, 1, b"test");
                    c.send(HEADERS, END_STREAM | END_HEADERS, 1, &block(&[(":method", "POST")]));
                    StreamError(&[PROTOCOL])
                },
            ),
            (
                "8.1.2.1/4: sends a HEADERS frame that contains a pseudo-header field after a regular header field",
                |c| raw(c, &[(":method", "GET"), (":scheme", "http"), ("x", "y"), (":path", "/")]),
            ),
            (
                "8.1.2.2/1: sends a HEADERS frame that contains the connection-specific header field",
                |c| {
                    get(c, 1, &[("connection", "keep-alive")]);
                    StreamError(&[PROTOCOL])
                },
            ),
            (
                "8.1.2.2/2: sends a HEADERS frame that contains the TE header field with any value other than \"trailers\"",
                |c| {
                    get(c, 1, &[("te", "trailers, deflate")]);
                    StreamError(&[PROTOCOL])
                },
            ),
            ("8.1.2.3/1: sends a HEADERS frame with empty \":path\" pseudo-header field", |c| {
                raw(
                    c,
                    &[(":method", "GET"), (":scheme", "http"), (":path", ""), (":authority", "x")],
                )
            }),
            ("8.1.2.3/2: sends a HEADERS frame that omits \":method\" pseudo-header field", |c| {
                raw(c, &[(":scheme", "http"), (":path", "/"), (":authority", "x")])
            }),
            ("8.1.2.3/3: sends a HEADERS frame that omits \":scheme\" pseudo-header field", |c| {
                raw(c, &[(":method", "GET"), (":path", "/"), (":authority", "x")])
            }),
            ("8.1.2.3/4: sends a HEADERS frame that omits \":path\" pseudo-header field", |c| {
                raw(c, &[(":method", "GET"), (":scheme", "http"), (":authority", "x")])
            }),
            (
                "8.1.2.3/5: sends a HEADERS frame with duplicated \":method\" pseudo-header field",
                |c| {
                    raw(
                        c,
                        &[
                            (":method", "GET"),
                            (":method", "GET"),
                            (":scheme", "http"),
                            (":path", "/"),
                        ],
                    )
                },
            ),
            (
                "8.1.2.3/6: sends a HEADERS frame with duplicated \":scheme\" pseudo-header field",
                |c| {
                    raw(
                        c,
                        &[
                            (":method", "GET"),
                            (":scheme", "http"),
                            (":scheme", "http"),
                            (":path", "/"),
                        ],
                    )
                },
            ),
            (
                "8.1.2.3/7: sends a HEADERS frame with duplicated \":path\" pseudo-header field",
                |c| {
                    raw(
                        c,
                        &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":path", "/")],
                    )
                },
            ),
            (
                "8.1.2.6/1: sends a HEADERS frame with the \"content-length\" header field which does not equal the DATA frame payload length",
                |c| {
                    post(c, 1, &[("content-length", "1")]);
                    c.send(DATA, END_STREAM, 1, b"test");
                    StreamError(&[PROTOCOL])
                },
            ),
            (
                "8.1.2.6/2: sends a HEADERS frame with the \"content-length\" header field which does not equal the sum of the multiple DATA frames payload length",
                |c| {
                    post(c, 1, &[("content-length", "1")]);
                    c.send(DATA, 0, 1, b"test");
                    c.send(DATA, END_STREAM, 1, b"test");
                    StreamError(&[PROTOCOL])
                },
            ),
            ("8.2/1: sends a PUSH_PROMISE frame", |c| {
                let mut payload = word(3).to_vec();
                payload.extend(block(&request("GET", "/", &[])));
                c.send(PUSH_PROMISE, END_HEADERS, 1, &payload);
                ConnectionError(&[PROTOCOL])
            }),
        ],
    );
}

#[test]
fn hpack() {
    check(
        "hpack",
        &[
            ("2.3.3/1: sends a indexed header field representation with invalid index", |c| {
                let mut block = block(&request("GET", "/", &[]));
                block.push(0x80 | 70);
                c.send(HEADERS, END_STREAM | END_HEADERS, 1, &block);
                ConnectionError(&[COMPRESSION])
            }),
            ("2.3.3/2: sends a literal header field representation with invalid index", |c| {
                let mut block = block(&request("GET", "/", &[]));
                block.extend([0x40 | 0x3f, 7, 5]);
                block.extend(b"empty");
                c.send(HEADERS, END_STREAM | END_HEADERS, 1, &block);
                ConnectionError(&[COMPRESSION])
            }),
            ("4.2/1: sends a dynamic table size update at the end of header block", |c| {
                let mut block = block(&request("GET", "/", &[]));
                block.push(0x21);
                c.send(HEADERS, END_STREAM | END_HEADERS, 1, &block);
                ConnectionError(&[COMPRESSION])
            }),
            (
                "5.2/1: sends a Huffman-encoded string literal representation with padding longer than 7 bits",
                |c| {
                    let mut block = block(&request("GET", "/", &[]));
                    block.extend(b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff");
                    c.send(HEADERS, END_STREAM | END_HEADERS, 1, &block);
                    ConnectionError(&[COMPRESSION])
                },
            ),
            ("5.2/2: sends a Huffman-encoded string literal representation padded by zero", |c| {
                let mut block = block(&request("GET", "/", &[]));
                block.extend(b"\x00\x85\xf2\xb2\x4a\x84\xff\x83\x49\x50\x90");
                c.send(HEADERS, END_STREAM | END_HEADERS, 1, &block);
                ConnectionError(&[COMPRESSION])
            }),
            (
                "5.2/3: sends a Huffman-encoded string literal representation containing the EOS symbol",
                |c| {
                    let mut block = block(&request("GET", "/", &[]));
                    block.extend(b"\x00\x85\xf2\xb2\x4a\x84\xff\x87\x49\x51\xff\xff\xff\xfa\x7f");
                    c.send(HEADERS, END_STREAM | END_HEADERS, 1, &block);
                    ConnectionError(&[COMPRESSION])
                },
            ),
            ("6.1/1: sends a indexed header field representation with index 0", |c| {
                let mut block = block(&request("GET", "/", &[]));
                block.push(0x80);
                c.send(HEADERS, END_STREAM | END_HEADERS, 1, &block);
                ConnectionError(&[COMPRESSION])
            }),
            (
                "6.3/1: sends a dynamic table size update larger than the value of SETTINGS_HEADER_TABLE_SIZE",
                |c| {
                    let mut bytes = vec![0x3f, 0xe2, 0x1f];
                    bytes.extend(block(&request("GET", "/", &[])));
                    c.send(HEADERS, END_STREAM | END_HEADERS, 1, &bytes);
                    ConnectionError(&[COMPRESSION])
                },
            ),
        ],
    );
}
