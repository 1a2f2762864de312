//! Freezing at any byte: what a moved connection answers is what an unmoved one answers.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use zdt_engine::config::WorkerConfig;

use crate::lab::client::ReadOn;
use crate::lab::worker::Options;
use crate::lab::{Pair, TestWorker, client, eventually};

pub const UPGRADE: &str = "GET /ws/echo HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// A masked client frame (RFC 6455 §5.2).
pub fn frame(first_byte: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut bytes = vec![first_byte];
    match payload.len() {
        0..=125 => bytes.push(0x80 | payload.len() as u8),
        126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        }
        _ => {
            bytes.push(0x80 | 127);
            bytes.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(&mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// Reads until the peer closes, without the Date fields, which may differ.
fn read_all(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("read");
    let mut text = Vec::new();
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        if !line.starts_with(b"Date: ") {
            text.extend_from_slice(line);
        }
    }
    text
}

/// Plays `script` on one connection for every place where it can be cut: the first part is sent to
/// blue, everything moves to green, the second part is sent there. All answers must be the same.
/// `step` cuts at every so-many-th byte; `decode` makes answers comparable.
pub fn check_every_cut(script: &[u8], step: usize, decode: fn(&[u8]) -> Vec<u8>) {
    let mut blue = TestWorker::spawn_with(1, &Options::patient());
    let address = blue.listen();
    let expected = {
        let stream = client::connect(address);
        (&stream).write_all(script).expect("write");
        decode(&read_all(&stream))
    };
    assert!(!expected.is_empty());
    let before = blue.status().bytes_received;
    let mut streams = Vec::new();
    let mut sent = 0;
    for cut in (0..script.len()).step_by(step) {
        let stream = client::connect(address);
        (&stream).write_all(&script[..cut]).expect("write");
        sent += cut as u64;
        streams.push((cut, stream));
    }
    eventually("blue receives the first parts", || {
        let status = blue.status();
        status.bytes_received == before + sent && status.connections == streams.len() as u64
    });
    let mut pair = Pair::join(blue, TestWorker::spawn_with(2, &Options::patient()));
    let report = pair.hand_off();
    assert_eq!(report.moved, streams.len() as u64, "{report:?}");
    for (cut, stream) in &streams {
        (&*stream).write_all(&script[*cut..]).expect("write");
    }
    for (cut, stream) in &streams {
        let answer = decode(&read_all(stream));
        assert!(
            answer == expected,
            "cut at {cut} of {}: {:?} instead of {:?}",
            script.len(),
            String::from_utf8_lossy(&answer),
            String::from_utf8_lossy(&expected),
        );
    }
}

#[test]
fn a_websocket_can_be_cut_anywhere() {
    let mut script = format!("{UPGRADE}\r\n").into_bytes();
    script.extend(frame(0x81, "grüße, Welt".as_bytes()));
    let text = "né 漢字 🦀 and back".as_bytes();
    script.extend(frame(0x01, &text[..2])); // ends inside é
    script.extend(frame(0x89, b"ping between fragments"));
    script.extend(frame(0x00, &text[2..9]));
    script.extend(frame(0x80, &text[9..]));
    script.extend(frame(0x82, &[0xa5; 300]));
    script.extend(frame(0x82, b""));
    script.extend(frame(0x88, &[0x03, 0xe8, b'b', b'y', b'e']));
    check_every_cut(&script, 1, <[u8]>::to_vec);
}

#[test]
fn a_compressed_websocket_can_be_cut_anywhere() {
    let mut script = format!(
        "{UPGRADE}Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
    )
    .into_bytes();
    let mut compress = Compress::new(Compression::default(), false);
    let mut deflate = |text: &[u8]| {
        let mut bytes = Vec::with_capacity(text.len() + 128);
        compress.compress_vec(text, &mut bytes, FlushCompress::Sync).expect("deflate");
        assert!(bytes.ends_with(&[0, 0, 0xff, 0xff]));
        bytes.truncate(bytes.len() - 4);
        bytes
    };
    // The second and third message refer to the first through the window.
    let long = "the same words again and again, the same words ".repeat(12);
    let first = deflate(long.as_bytes());
    script.extend(frame(0xc1, &first));
    let second = deflate(format!("{long}!").as_bytes());
    let half = second.len() / 2;
    script.extend(frame(0x41, &second[..half]));
    script.extend(frame(0x8a, b"unasked pong"));
    script.extend(frame(0x80, &second[half..]));
    let third = deflate(&long.as_bytes()[3..]);
    script.extend(frame(0xc2, &third));
    script.extend(frame(0x88, &[0x03, 0xe8]));
    check_every_cut(&script, 1, inflate_frames);
}

/// What a server's compressed frames say, one after the other with their first bytes. The same
/// message may be compressed in many ways; a restored compressor need not find the same one.
pub fn inflate_frames(bytes: &[u8]) -> Vec<u8> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
    let mut said = Vec::new();
    let mut rest = &bytes[end..];
    let mut inflate = Decompress::new(false);
    while !rest.is_empty() {
        let (header, length) = match rest[1] {
            126 => (4, usize::from(u16::from_be_bytes([rest[2], rest[3]]))),
            length => (2, usize::from(length)),
        };
        said.push(rest[0]);
        let payload = &rest[header..header + length];
        if rest[0] & 0x40 == 0 {
            said.extend_from_slice(payload);
        } else {
            let mut message = Vec::with_capacity(4_096);
            for part in [payload, &[0, 0, 0xff, 0xff]] {
                inflate.decompress_vec(part, &mut message, FlushDecompress::Sync).expect("inflate");
            }
            said.extend_from_slice(&message);
        }
        rest = &rest[header + length..];
    }
    said
}

#[test]
fn http_can_be_cut_anywhere() {
    let script = b"GET /id?id=one HTTP/1.1\r\nHost: x\r\n\r\n\
        POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
        5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nTrailer: t\r\n\r\n\
        POST /digest HTTP/1.1\r\nHost: x\r\nContent-Length: 26\r\n\r\nabcdefghijklmnopqrstuvwxyz\
        GET /stream?chunks=2&interval_ms=1 HTTP/1.1\r\nHost: x\r\n\r\n\
        GET /id?id=last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    // The echo's chunks follow the pieces in which the body arrived, so cut outside of it only
    // after comparing what the chunks say.
    let mut blue = TestWorker::spawn_with(1, &Options::patient());
    let address = blue.listen();
    let before = blue.status().bytes_received;
    let mut streams = Vec::new();
    let mut sent = 0;
    for cut in 0..script.len() {
        let stream = client::connect(address);
        (&stream).write_all(&script[..cut]).expect("write");
        sent += cut as u64;
        streams.push((cut, stream));
    }
    eventually("blue receives the first parts", || blue.status().bytes_received == before + sent);
    let mut pair = Pair::join(blue, TestWorker::spawn_with(2, &Options::patient()));
    let report = pair.hand_off();
    assert_eq!(report.moved, streams.len() as u64, "{report:?}");
    for (cut, stream) in &streams {
        (&*stream).write_all(&script[*cut..]).expect("write");
    }
    for (cut, stream) in &streams {
        let answer = bodies(&read_all(stream));
        assert_eq!(
            answer,
            [
                "one",
                "hello world",
                "71c480df93d6ae2f1efad1447c66c9525e316218cf51fc8d9ed832f2daf18b73\n",
                "chunk 0\nchunk 1\n",
                "last"
            ],
            "cut at {cut}"
        );
    }
}

/// The bodies of a series of responses, chunked or with a length.
fn bodies(mut bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
        let head = String::from_utf8(bytes[..end].to_vec()).expect("text").to_ascii_lowercase();
        bytes = &bytes[end..];
        let mut body = Vec::new();
        if head.contains("transfer-encoding: chunked") {
            loop {
                let line = bytes.windows(2).position(|w| w == b"\r\n").expect("a chunk size");
                let size = std::str::from_utf8(&bytes[..line]).expect("hex");
                let size = usize::from_str_radix(size, 16).expect("hex");
                bytes = &bytes[line + 2..];
                body.extend_from_slice(&bytes[..size]);
                bytes = &bytes[size + 2..];
                if size == 0 {
                    break;
                }
            }
        } else {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .expect("a length")
                .parse::<usize>()
                .expect("a number");
            body.extend_from_slice(&bytes[..length]);
            bytes = &bytes[length..];
        }
        found.push(String::from_utf8(body).expect("text"));
    }
    found
}

fn pair_with_options(options: &Options<'_>) -> (TestWorker, SocketAddr, TestWorker) {
    let mut blue = TestWorker::spawn_with(1, options);
    let address = blue.listen();
    (blue, address, TestWorker::spawn_with(2, options))
}

#[test]
fn a_download_goes_on_behind_a_full_socket_buffer() {
    let (mut blue, address, green) = pair_with_options(&Options::default());
    const TOTAL: u64 = 40 << 20;
    let mut stream = client::connect(address);
    let request = format!("GET /big?n={TOTAL} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("write");
    let (mut last, mut looks) = (0, 0);
    eventually("the socket's buffers are full", || {
        let sent = blue.status().bytes_sent;
        looks = if sent > 0 && sent == last { looks + 1 } else { 0 };
        last = sent;
        looks == 20
    });
    let mut pair = Pair::join(blue, green);
    assert_eq!(pair.hand_off().moved, 1);
    let mut head = Vec::new();
    let mut body = Vec::new();
    stream.read_to_end(&mut body).expect("read");
    let end = body.windows(4).position(|w| w == b"\r\n\r\n").expect("a head") + 4;
    head.extend(body.drain(..end));
    assert!(head.starts_with(b"HTTP/1.1 200 "));
    assert_eq!(body.len() as u64, TOTAL);
    let wrong = body
        .iter()
        .enumerate()
        .position(|(index, byte)| *byte != zdt_engine::service::demo::big_byte(index as u64));
    assert_eq!(wrong, None, "first wrong byte");
}

#[test]
fn a_half_closed_client_gets_the_rest() {
    let (mut blue, address, green) = pair_with_options(&Options::default());
    let mut stream = client::connect(address);
    stream
        .write_all(b"GET /stream?chunks=4&interval_ms=150 HTTP/1.1\r\nHost: x\r\n\r\n")
        .expect("write");
    stream.shutdown(Shutdown::Write).expect("FIN");
    eventually("the response has begun", || blue.status().bytes_sent > 0);
    let mut pair = Pair::join(blue, green);
    assert_eq!(pair.hand_off().moved, 1);
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("read");
    assert_eq!(bodies(&answer), ["chunk 0\nchunk 1\nchunk 2\nchunk 3\n"]);
    assert_eq!(pair.green.status().connections, 0);
}

#[test]
fn a_clock_keeps_its_pace() {
    let (blue, address, green) = pair_with_options(&Options::default());
    let mut ticking = client::websocket(address, "/ws/clock?interval_ms=100");
    let began = Instant::now();
    let mut pair = Pair::join(blue, green);
    assert_eq!(pair.hand_off().moved, 1);
    for n in 1..=5 {
        let text = ticking.read().expect("tick").to_string();
        assert_eq!(text, format!("{{\"n\": {n}}}"));
    }
    // Five periods, of which the handoff may have cost a part of one, but not have begun one anew
    // each time.
    assert!(began.elapsed() >= Duration::from_millis(450), "{:?}", began.elapsed());
}

#[test]
fn a_keep_alive_deadline_is_neither_lost_nor_early() {
    let mut config = WorkerConfig::default();
    config.limits.keep_alive_timeout_ms = 1_500;
    let options = Options { config, ..Options::default() };
    let (mut blue, address, green) = pair_with_options(&options);
    let mut kept = client::connect(address);
    kept.write_all(b"GET /id?id=a HTTP/1.1\r\nHost: x\r\n\r\n").expect("write");
    let mut buffer = [0; 1024];
    let count = kept.read_on(&mut buffer).expect("read");
    assert!(buffer[..count].ends_with(b"a"));
    let idle_since = Instant::now();
    eventually("blue has seen the request", || blue.status().requests == 1);
    let mut pair = Pair::join(blue, green);
    assert_eq!(pair.hand_off().moved, 1);
    // Nobody asks again: green closes when blue would have.
    assert_eq!(kept.read_on(&mut buffer).expect("FIN"), 0);
    let idle = idle_since.elapsed();
    assert!(idle >= Duration::from_millis(1_400), "closed after {idle:?}");
    assert!(idle < Duration::from_millis(4_000), "closed after {idle:?}");
}

#[test]
fn large_states_travel_beside_the_ring() {
    let (mut blue, address, green) = pair_with_options(&Options::default());
    // Three quarters of a 4 MiB message: its assembly is far larger than a quarter of the ring.
    let message: Vec<u8> = (0..4_u32 << 20).map(|index| (index % 253) as u8).collect();
    let bytes = frame(0x82, &message);
    let mut streams: Vec<TcpStream> = Vec::new();
    let cut = bytes.len() * 3 / 4;
    for _ in 0..5 {
        let mut stream = client::connect(address);
        stream.write_all(format!("{UPGRADE}\r\n").as_bytes()).expect("write");
        stream.write_all(&bytes[..cut]).expect("write");
        streams.push(stream);
    }
    eventually("blue receives the first parts", || blue.status().bytes_received >= 5 * cut as u64);
    let mut pair = Pair::join(blue, green);
    assert_eq!(pair.hand_off().moved, 5);
    for stream in &mut streams {
        stream.write_all(&bytes[cut..]).expect("write");
    }
    for stream in &mut streams {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).expect("head");
            head.push(byte[0]);
        }
        let mut frame_head = [0; 10];
        stream.read_exact(&mut frame_head).expect("frame");
        assert_eq!(frame_head[..2], [0x82, 127]);
        let mut echoed = vec![0; message.len()];
        stream.read_exact(&mut echoed).expect("payload");
        assert!(echoed == message);
    }
}
