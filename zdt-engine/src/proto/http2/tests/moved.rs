//! Random traffic, cut anywhere and moved after every step: the same must come of it as without.
//!
//! Must not know: how the machine works.

use proptest::prelude::*;

use super::super::frame::{self, write};
use super::super::*;
use super::driver::{Received, Server};

/// What a client may do next.
#[derive(Debug, Clone)]
enum Act {
    Request {
        fields: Vec<(u8, u8)>,
        body: bool,
        pieces: usize,
        padding: Option<u8>,
        priority: bool,
    },
    Data {
        stream: usize,
        length: usize,
        end: bool,
        padding: Option<u8>,
    },
    Trailers {
        stream: usize,
    },
    StreamWindow {
        stream: usize,
        increment: u32,
    },
    ConnectionWindow {
        increment: u32,
    },
    InitialWindow {
        bytes: u32,
    },
    Reset {
        stream: usize,
    },
    Ping,
    Acknowledge,
    Unknown,
    Raw(Vec<u8>),
}

fn act() -> impl Strategy<Value = Act> {
    let padding = || prop::option::weighted(0.2, any::<u8>());
    prop_oneof![
        6 => (prop::collection::vec(any::<(u8, u8)>(), 0..5), any::<bool>(), 1usize..4, padding(), any::<bool>())
            .prop_map(|(fields, body, pieces, padding, priority)| Act::Request { fields, body, pieces, padding, priority }),
        8 => (0usize..9, prop_oneof![0usize..20, 0usize..9_000], prop::bool::weighted(0.3), padding())
            .prop_map(|(stream, length, end, padding)| Act::Data { stream, length, end, padding }),
        1 => (0usize..9).prop_map(|stream| Act::Trailers { stream }),
        4 => (0usize..9, 1u32..60_000)
            .prop_map(|(stream, increment)| Act::StreamWindow { stream, increment }),
        4 => (1u32..90_000).prop_map(|increment| Act::ConnectionWindow { increment }),
        1 => (0u32..100_000).prop_map(|bytes| Act::InitialWindow { bytes }),
        1 => (0usize..9).prop_map(|stream| Act::Reset { stream }),
        1 => Just(Act::Ping),
        1 => Just(Act::Acknowledge),
        1 => Just(Act::Unknown),
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Act::Raw),
    ]
}

/// A client that keeps to the rules, except where it is told to send raw bytes.
#[derive(Default)]
struct Client {
    bytes: Vec<u8>,
    last: u32,
    entries: u8,
    /// Streams on which it still sends.
    open: Vec<u32>,
    acknowledged: bool,
}

impl Client {
    fn new() -> Self {
        let mut client = Self::default();
        client.bytes.extend_from_slice(PREFACE);
        write(&mut client.bytes, frame::SETTINGS, 0, 0, &[]);
        client
    }

    /// Fields in every form: indexed in either table, literal with and without indexing.
    fn block(&mut self, fields: &[(u8, u8)], is_request: bool) -> Vec<u8> {
        let mut block = Vec::new();
        if is_request {
            block.extend_from_slice(&[0x83, 0x86, 0x84, 0x41, 1, b'h']);
            self.entries = self.entries.saturating_add(1);
        }
        for &(form, value) in fields {
            match form % 4 {
                // What was put into the table last was a field, unless it was the authority.
                0 if self.entries > 1 && !is_request => block.push(0x80 | 62),
                1 => block.extend_from_slice(&[0x00, 2, b'x', b'a' + value % 26, 1, b'v']),
                2 => block.extend_from_slice(&[0x0f, 17, 3, b'a', b'=', b'a' + value % 26]),
                _ => {
                    block.extend_from_slice(&[
                        0x40,
                        2,
                        b'y',
                        b'a' + value % 26,
                        2,
                        b'w',
                        b'a' + form % 26,
                    ]);
                    self.entries = self.entries.saturating_add(1);
                }
            }
        }
        block
    }

    fn stream(&self, choice: usize) -> Option<u32> {
        self.open.get(choice % self.open.len().max(1)).copied()
    }

    fn padded(flags: u8, padding: Option<u8>, payload: &[u8]) -> (u8, Vec<u8>) {
        match padding {
            None => (flags, payload.to_vec()),
            Some(padding) => {
                let mut bytes = vec![padding];
                bytes.extend_from_slice(payload);
                bytes.resize(bytes.len() + usize::from(padding), 0);
                (flags | frame::PADDED, bytes)
            }
        }
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Request { fields, body, pieces, padding, priority } => {
                self.last += 2;
                let id = if self.last == 2 { 1 } else { self.last - 1 };
                self.last = id + 1;
                let block = self.block(fields, true);
                let size = block.len().div_ceil(*pieces);
                let mut parts: Vec<_> = block.chunks(size.max(1)).collect();
                let first = parts.remove(0);
                let end_stream = if *body { 0 } else { frame::END_STREAM };
                let end_headers = if parts.is_empty() { frame::END_HEADERS } else { 0 };
                let mut payload = Vec::new();
                let mut flags = end_stream | end_headers;
                if *priority {
                    payload.extend_from_slice(&[0, 0, 0, 0, 7]);
                    flags |= frame::PRIORITY_FIELDS;
                }
                payload.extend_from_slice(first);
                let (flags, payload) = Self::padded(flags, *padding, &payload);
                write(&mut self.bytes, frame::HEADERS, flags, id, &payload);
                let count = parts.len();
                for (index, part) in parts.into_iter().enumerate() {
                    let flags = if index + 1 == count { frame::END_HEADERS } else { 0 };
                    write(&mut self.bytes, frame::CONTINUATION, flags, id, part);
                }
                if *body {
                    self.open.push(id);
                }
            }
            Act::Data { stream, length, end, padding } => {
                let Some(id) = self.stream(*stream) else { return };
                let payload: Vec<u8> = (0..*length).map(|at| (at % 251) as u8).collect();
                let flags = if *end { frame::END_STREAM } else { 0 };
                let (flags, payload) = Self::padded(flags, *padding, &payload);
                write(&mut self.bytes, frame::DATA, flags, id, &payload);
                if *end {
                    self.open.retain(|open| *open != id);
                }
            }
            Act::Trailers { stream } => {
                let Some(id) = self.stream(*stream) else { return };
                let block = self.block(&[(1, 3)], false);
                let flags = frame::END_STREAM | frame::END_HEADERS;
                write(&mut self.bytes, frame::HEADERS, flags, id, &block);
                self.open.retain(|open| *open != id);
            }
            Act::StreamWindow { stream, increment } => {
                let id = (2 * *stream as u32 + 1).min(self.last.saturating_sub(1));
                if id % 2 == 1 {
                    frame::write_window_update(&mut self.bytes, id, *increment);
                }
            }
            Act::ConnectionWindow { increment } => {
                frame::write_window_update(&mut self.bytes, 0, *increment);
            }
            Act::InitialWindow { bytes } => {
                let mut payload = vec![0, 4];
                payload.extend_from_slice(&bytes.to_be_bytes());
                write(&mut self.bytes, frame::SETTINGS, 0, 0, &payload);
            }
            Act::Reset { stream } => {
                let Some(id) = self.stream(*stream) else { return };
                frame::write_reset(&mut self.bytes, id, ErrorCode::Cancel);
                self.open.retain(|open| *open != id);
            }
            Act::Ping => write(&mut self.bytes, frame::PING, 0, 0, b"12345678"),
            Act::Acknowledge if !self.acknowledged => {
                self.acknowledged = true;
                write(&mut self.bytes, frame::SETTINGS, frame::ACK, 0, &[]);
            }
            Act::Acknowledge => {}
            Act::Unknown => write(&mut self.bytes, 0x42, 0xff, 5, b"whatever"),
            Act::Raw(bytes) => self.bytes.extend_from_slice(bytes),
        }
    }
}

fn play(bytes: &[u8], cuts: &[usize], moves: bool) -> (Server, Vec<u8>) {
    let mut server = Server::new(moves);
    let mut rest = bytes;
    let mut cuts = cuts.iter().cycle();
    while !rest.is_empty() {
        let (now, later) = rest.split_at(rest.len().min(*cuts.next().expect("a cut")));
        server.receive(now);
        rest = later;
    }
    let out = std::mem::take(&mut server.out);
    (server, out)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_moved_machine_writes_what_an_unmoved_one_writes(
        acts in prop::collection::vec(act(), 0..40),
        cuts in prop::collection::vec(prop_oneof![1usize..4, 1usize..30, 1usize..20_000], 1..20),
    ) {
        let mut client = Client::new();
        for act in &acts {
            client.act(act);
        }
        let (stays, stays_out) = play(&client.bytes, &cuts, false);
        let (moved, moved_out) = play(&client.bytes, &cuts, true);
        prop_assert_eq!(&stays.seen, &moved.seen);
        prop_assert_eq!(stays.error, moved.error);
        prop_assert_eq!(super::driver::Frame::parse_all(&stays_out), super::driver::Frame::parse_all(&moved_out));
        // What a client gets is legal, and does not depend on how its bytes were cut either.
        let mut received = Received::default();
        received.read(&super::driver::Frame::parse_all(&stays_out));
        let (whole, _) = play(&client.bytes, &[usize::MAX], false);
        if whole.error.is_none() {
            prop_assert_eq!(&whole.seen, &stays.seen);
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_answered_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        with_preface: bool,
        cut in 1usize..100,
    ) {
        let mut all = if with_preface { Client::new().bytes } else { Vec::new() };
        all.extend(bytes);
        let (server, out) = play(&all, &[cut], true);
        prop_assert!(server.machine.heap_bytes() < 200_000);
        super::driver::Frame::parse_all(&out);
    }
}
