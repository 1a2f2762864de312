//! HTTP/1.1 under random traffic: pipelined requests, with bodies of both kinds, and a WebSocket at the end of some
//! scripts. The connection moves at random places; what it answers is what an unmoved one answers.

use std::io::{Read, Write as _};
use std::net::TcpStream;

use flate2::{Compress, Compression, FlushCompress};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::freeze::{UPGRADE, frame, inflate_frames};
use crate::gateway::gateway_to;
use crate::lab::TestWorker;
use crate::lab::cuts::{play, seed};
use crate::lab::worker::Options;

const SCRIPTS: u64 = 12;
const MOST_REQUESTS: usize = 12;

struct Script {
    bytes: Vec<u8>,
    /// Of each request, whether its answer has no body whatever its fields say.
    is_head: Vec<bool>,
}

impl AsRef<[u8]> for Script {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Writes a script.
struct Author {
    random: StdRng,
    script: Script,
}

impl Author {
    fn write(seed: u64) -> Script {
        let script = Script { bytes: Vec::new(), is_head: Vec::new() };
        let mut author = Self { random: StdRng::seed_from_u64(seed), script };
        for _ in 0..author.random.random_range(0..MOST_REQUESTS) {
            author.request("");
        }
        if author.random.random() {
            author.request("Connection: close\r\n");
        } else {
            author.websocket();
        }
        author.script
    }

    fn request(&mut self, more: &str) {
        let number = self.random.random_range(0..3_000);
        let (method, target) = match self.random.random_range(0..8) {
            0 => ("GET", format!("/id?id=n{number}")),
            1 => ("GET", format!("/big?n={number}")),
            2 => ("HEAD", format!("/big?n={number}")),
            3 => ("GET", format!("/stream?chunks={}&interval_ms=1", number % 5)),
            4 => ("GET", "/nowhere".to_owned()),
            5 => ("DELETE", "/id?id=x".to_owned()),
            6 => ("POST", "/digest".to_owned()),
            _ => ("POST", "/echo".to_owned()),
        };
        self.script.is_head.push(method == "HEAD");
        let head = format!("{method} {target} HTTP/1.1\r\nHost: zdt.test\r\n{more}");
        self.script.bytes.extend(head.as_bytes());
        if method == "POST" {
            self.body(number);
        } else {
            self.script.bytes.extend(b"\r\n");
        }
    }

    /// With its length in front, or in chunks with extensions and trailers.
    fn body(&mut self, length: usize) {
        let from: u8 = self.random.random();
        let body: Vec<u8> = (0..length).map(|at| from.wrapping_add((at % 241) as u8)).collect();
        let bytes = &mut self.script.bytes;
        if self.random.random_range(0..4) == 0 {
            // The answer to this may come or not: the body may be there before.
            bytes.extend(b"Expect: 100-continue\r\n");
        }
        if self.random.random() {
            write!(bytes, "Content-Length: {length}\r\n\r\n").expect("a vector");
            bytes.extend(body);
            return;
        }
        bytes.extend(b"Transfer-Encoding: chunked\r\n\r\n");
        let mut rest = &body[..];
        while !rest.is_empty() {
            let (chunk, behind) = rest.split_at(self.random.random_range(1..=rest.len()));
            let extension = ["", ";a=b", ";name=\"quoted ; \\\" text\""];
            let extension = extension[self.random.random_range(0..extension.len())];
            write!(bytes, "{:x}{extension}\r\n", chunk.len()).expect("a vector");
            bytes.extend(chunk);
            bytes.extend(b"\r\n");
            rest = behind;
        }
        bytes.extend(b"0\r\n");
        if self.random.random() {
            bytes.extend(b"X-Trailer: of a body\r\n");
        }
        bytes.extend(b"\r\n");
    }

    /// Messages of an echo, compressed with a window that they share, or not.
    fn websocket(&mut self) {
        self.script.is_head.push(false);
        let is_compressed = self.random.random();
        let extension = match is_compressed {
            true => "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n",
            false => "",
        };
        self.script.bytes.extend(format!("{UPGRADE}{extension}\r\n").as_bytes());
        let mut window = Compress::new(Compression::default(), false);
        for _ in 0..self.random.random_range(1..8) {
            let text = "grüße an alle ".repeat(self.random.random_range(0..80));
            let (mut payload, mut first) = (text.into_bytes(), 0x01);
            if is_compressed && !payload.is_empty() && self.random.random() {
                let mut bytes = Vec::with_capacity(payload.len() + 128);
                window.compress_vec(&payload, &mut bytes, FlushCompress::Sync).expect("deflate");
                assert!(bytes.ends_with(&[0, 0, 0xff, 0xff]));
                bytes.truncate(bytes.len() - 4);
                (payload, first) = (bytes, 0x41);
            }
            self.message(first, &payload);
        }
        self.script.bytes.extend(frame(0x88, &[0x03, 0xe8]));
    }

    /// In fragments, which may be empty, with control frames between them.
    fn message(&mut self, mut first: u8, mut payload: &[u8]) {
        while self.random.random_range(0..3) == 0 {
            let (part, rest) = payload.split_at(self.random.random_range(0..=payload.len()));
            self.script.bytes.extend(frame(first, part));
            if self.random.random() {
                self.script.bytes.extend(frame(0x89, b"in between"));
            }
            (first, payload) = (0x00, rest);
        }
        self.script.bytes.extend(frame(0x80 | first, payload));
    }
}

impl Script {
    /// The answers one by one: heads without what time changes, bodies put together.
    fn hear(&self, mut stream: TcpStream) -> Vec<String> {
        let mut bytes = Vec::new();
        while let Err(error) = stream.read_to_end(&mut bytes) {
            assert_eq!(error.kind(), std::io::ErrorKind::Interrupted, "{error}");
        }
        let mut rest = &bytes[..];
        let mut answers = Vec::new();
        for is_head in &self.is_head {
            let (head, behind) = loop {
                let end = rest.windows(4).position(|window| window == b"\r\n\r\n");
                let (head, behind) = rest.split_at(end.expect("a head") + 4);
                rest = behind;
                if !head.starts_with(b"HTTP/1.1 100 ") {
                    break (String::from_utf8(head.to_vec()).expect("text"), behind);
                }
            };
            let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
            let (body, behind) = if head.starts_with("HTTP/1.1 101 ") {
                (inflate_frames(&[b"\r\n\r\n", behind].concat()), &[][..])
            } else if *is_head {
                (Vec::new(), behind)
            } else if field("Transfer-Encoding: chunked").is_some() {
                unchunk(behind)
            } else {
                let length = field("Content-Length: ").expect("a length").parse().expect("number");
                let (body, behind) = behind.split_at(length);
                (body.to_vec(), behind)
            };
            let lines: Vec<_> = head.lines().filter(|line| !line.starts_with("Date: ")).collect();
            answers.push(format!("{} {}", lines.join(", "), body.escape_ascii()));
            rest = behind;
        }
        assert!(rest.is_empty(), "more than was asked for: {:?}", rest.escape_ascii().to_string());
        answers
    }
}

/// What chunks say, with the trailers, and what is behind them.
fn unchunk(mut rest: &[u8]) -> (Vec<u8>, &[u8]) {
    let line = |rest: &[u8]| rest.windows(2).position(|window| window == b"\r\n").expect("a line");
    let mut body = Vec::new();
    loop {
        let end = line(rest);
        let size = std::str::from_utf8(&rest[..end]).expect("text");
        let size = usize::from_str_radix(size, 16).expect("a size");
        rest = &rest[end + 2..];
        if size == 0 {
            break;
        }
        body.extend_from_slice(&rest[..size]);
        assert_eq!(&rest[size..size + 2], b"\r\n");
        rest = &rest[size + 2..];
    }
    loop {
        let end = line(rest);
        body.extend_from_slice(&rest[..end]);
        rest = &rest[end + 2..];
        if end == 0 {
            return (body, rest);
        }
    }
}

fn scripts(seed: u64) -> Vec<Script> {
    (0..SCRIPTS).map(|number| Author::write(seed.wrapping_add(number))).collect()
}

#[test]
fn random_traffic_moves_at_random_places() {
    let seed = seed();
    play(&Options::patient(), seed, &scripts(seed), 20, Script::hear);
}

/// What the application says comes through a gateway, whose upstream connections move as well.
#[test]
fn random_traffic_moves_with_its_upstreams() {
    let seed = seed();
    let mut application = TestWorker::spawn_with(1, &Options::patient());
    let url = format!("http://{}", application.listen());
    play(&gateway_to(&url), seed, &scripts(seed), 10, Script::hear);
}
