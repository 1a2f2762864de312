//! HTTP/2 under random traffic: a script of requests, WebSockets, windows and resets is cut at random places, and
//! at each cut the connection moves to another process. What it answers is what an unmoved one answers, stream
//! by stream. Where a script is cut inside a frame, inside a header block or between two frames is up to chance;
//! `http2_freeze` has one script and every place.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpStream;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::freeze::frame as websocket_frame;
use crate::gateway::gateway_to;
use crate::http2_freeze::{read_all, tell};
use crate::lab::TestWorker;
use crate::lab::cuts::{play, seed};
use crate::lab::http2::*;
use crate::lab::worker::Options;

const SCRIPTS: u64 = 12;
const STEPS: usize = 60;
const MOST_STREAMS: u32 = 16;
/// Of 36 bytes at least in a table of 4,096 (RFC 7541 §4.1): all of them stay there.
const MOST_TABLE_ENTRIES: usize = 40;

/// A stream that the client has not ended.
struct Open {
    /// What it still has to send.
    rest: Vec<u8>,
}

/// Writes a script.
struct Author {
    random: StdRng,
    bytes: Vec<u8>,
    last_stream: u32,
    open: BTreeMap<u32, Open>,
    reset: BTreeSet<u32>,
    table_entries: usize,
}

/// What is sent, and which streams are to be answered to their end.
struct Script {
    bytes: Vec<u8>,
    answered: Vec<u32>,
    reset: BTreeSet<u32>,
}

impl AsRef<[u8]> for Script {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Author {
    fn write(seed: u64) -> Script {
        let mut author = Self {
            random: StdRng::seed_from_u64(seed),
            bytes: hello(),
            last_stream: 0,
            open: BTreeMap::new(),
            reset: BTreeSet::new(),
            table_entries: 0,
        };
        author.put(SETTINGS, ACK, 0, &[]);
        for _ in 0..STEPS {
            author.step();
        }
        author.finish()
    }

    fn put(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.bytes.extend(frame(kind, flags, stream, payload));
    }

    fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..30 => self.begin(),
            30..65 => self.go_on(),
            65..80 => self.widen(),
            80..86 => {
                let payload: [u8; 8] = self.random.random();
                self.put(PING, 0, 0, &payload);
            }
            86..91 => {
                // Windows of streams that are open move with it, below zero as well (RFC 9113 §6.9.2).
                let window = self.random.random_range(0..3_000);
                self.set_window(window);
            }
            91..94 => {
                let size: u32 = self.random.random_range(0..4_097);
                let payload = [&[0, 1][..], &size.to_be_bytes()].concat();
                self.put(SETTINGS, 0, 0, &payload);
            }
            94..96 => {
                let stream = (self.last_stream + 2) | 1;
                self.put(PRIORITY, 0, stream, &[0, 0, 0, 0, 9]);
            }
            96..98 => self.put(0x77, 0xff, self.last_stream, b"of a kind that nobody knows"),
            _ => self.give_up(),
        }
    }

    fn set_window(&mut self, window: u32) {
        self.put(SETTINGS, 0, 0, &[&[0, 4][..], &window.to_be_bytes()].concat());
    }

    fn any_open(&mut self) -> Option<u32> {
        let at = self.random.random_range(0..self.open.len().max(1));
        self.open.keys().nth(at).copied()
    }

    /// A request, with a body that follows or without.
    fn begin(&mut self) {
        if self.last_stream >= 2 * MOST_STREAMS {
            return self.go_on();
        }
        let stream = self.last_stream + 1;
        self.last_stream += 2;
        let number: u32 = self.random.random_range(0..3_000);
        let (fields, rest) = match self.random.random_range(0..6) {
            0 => (block(&request("GET", &format!("/id?id=n{number}"), &[])), None),
            1 => (block(&request("GET", &format!("/big?n={number}"), &[])), None),
            2 => {
                let path = format!("/stream?chunks={}&interval_ms=1", number % 6);
                (block(&request("GET", &path, &[])), None)
            }
            3 => (block(&request("POST", "/digest", &[])), Some(self.body(number as usize))),
            4 => (block(&request("POST", "/echo", &[])), Some(self.body(number as usize))),
            _ => (websocket_at("/ws/echo"), Some(self.messages())),
        };
        let end = if rest.is_none() { END_STREAM } else { 0 };
        let fields = [fields, self.more_fields()].concat();
        self.head(stream, end, &fields);
        if let Some(rest) = rest {
            self.open.insert(stream, Open { rest });
        }
    }

    fn body(&mut self, length: usize) -> Vec<u8> {
        let from: u8 = self.random.random();
        (0..length).map(|at| from.wrapping_add((at % 241) as u8)).collect()
    }

    /// Frames of a WebSocket, some in fragments with a ping between them; the last one closes it.
    fn messages(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..self.random.random_range(0..5) {
            let text = "grüße ".repeat(self.random.random_range(0..60));
            match self.random.random_range(0..3) {
                0 => bytes.extend(websocket_frame(0x81, text.as_bytes())),
                1 => bytes.extend(websocket_frame(0x82, text.as_bytes())),
                _ => {
                    // Not between two characters, if chance wants it so.
                    let cut = self.random.random_range(0..=text.len());
                    bytes.extend(websocket_frame(0x01, &text.as_bytes()[..cut]));
                    bytes.extend(websocket_frame(0x89, b"in between"));
                    bytes.extend(websocket_frame(0x80, &text.as_bytes()[cut..]));
                }
            }
        }
        bytes.extend(websocket_frame(0x88, &[0x03, 0xe8]));
        bytes
    }

    /// Fields that go into the table of the peer, and others that are taken from there.
    fn more_fields(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..self.random.random_range(0..3) {
            if self.table_entries > 0 && self.random.random() {
                bytes.push(0x80 | (62 + self.random.random_range(0..self.table_entries)) as u8);
            } else if self.table_entries < MOST_TABLE_ENTRIES {
                self.table_entries += 1;
                bytes.extend(b"\x40\x06x-test\x05");
                bytes.extend(format!("v{:04}", self.random.random_range(0..10_000)).as_bytes());
            }
        }
        bytes
    }

    /// A header block in one frame or in several.
    fn head(&mut self, stream: u32, end: u8, mut block: &[u8]) {
        let (mut kind, mut flags) = (HEADERS, end);
        while self.random.random_range(0..3) == 0 && !block.is_empty() {
            let (part, rest) = block.split_at(self.random.random_range(1..=block.len()));
            self.put(kind, flags, stream, part);
            (kind, flags, block) = (CONTINUATION, 0, rest);
        }
        self.put(kind, flags | END_HEADERS, stream, block);
    }

    /// Some of what a stream has to send; the last part may end it.
    fn go_on(&mut self) {
        let Some(stream) = self.any_open() else { return };
        let Some(mut open) = self.open.remove(&stream) else { return };
        let many = self.random.random_range(0..=open.rest.len());
        let part: Vec<u8> = open.rest.drain(..many).collect();
        let is_last = open.rest.is_empty() && self.random.random();
        self.data(stream, &part, is_last);
        if !is_last {
            self.open.insert(stream, open);
        }
    }

    fn data(&mut self, stream: u32, part: &[u8], is_last: bool) {
        let end = if is_last { END_STREAM } else { 0 };
        if self.random.random_range(0..4) == 0 {
            let padding: u8 = self.random.random();
            let padded = [&[padding][..], part, &vec![0; usize::from(padding)]].concat();
            self.put(DATA, PADDED | end, stream, &padded);
        } else {
            self.put(DATA, end, stream, part);
        }
    }

    /// A little more room for what a stream sends.
    fn widen(&mut self) {
        if self.last_stream == 0 {
            return;
        }
        let stream = 2 * self.random.random_range(0..self.last_stream.div_ceil(2)) + 1;
        let more: u32 = self.random.random_range(1..1_500);
        self.put(WINDOW_UPDATE, 0, stream, &more.to_be_bytes());
    }

    fn give_up(&mut self) {
        let Some(stream) = self.any_open() else { return };
        self.open.remove(&stream);
        self.reset.insert(stream);
        self.put(RST_STREAM, 0, stream, &8u32.to_be_bytes());
    }

    /// All streams end, and all that was asked for has room.
    fn finish(mut self) -> Script {
        while let Some((stream, open)) = self.open.pop_first() {
            self.data(stream, &open.rest, true);
        }
        self.set_window(60_000);
        self.put(WINDOW_UPDATE, 0, 0, &1_000_000u32.to_be_bytes());
        self.put(PING, 0, 0, b"the last");
        let answered = (1..self.last_stream + 1).step_by(2);
        let answered = answered.filter(|stream| !self.reset.contains(stream)).collect();
        Script { bytes: self.bytes, answered, reset: self.reset }
    }
}

impl Script {
    /// What a client hears on the streams that it has not given up: on those it is a matter of time.
    fn hear(&self, stream: TcpStream) -> BTreeMap<u32, String> {
        let mut heard = tell(&read_all(&mut Http2Client::over(stream), &self.answered));
        heard.retain(|stream, _| !self.reset.contains(stream));
        heard
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
    play(&gateway_to(&url), seed, &scripts(seed), 5, Script::hear);
}
