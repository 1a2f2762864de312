//! A service that is simple enough to be predicted, over a machine that may be moved after every step.
//!
//! Must not know: which traffic it is given.

use std::collections::BTreeMap;

use super::super::super::Input;
use super::super::super::hpack::{Decoder, Fields, Limits as ListLimits};
use super::super::*;

pub const LIMITS: Limits = Limits::SMALL;
pub const OPTIONS: Options = Options::SMALL;

pub fn environment<'a>(now_ms: u64) -> Environment<'a> {
    Environment { limits: LIMITS, options: OPTIONS, now_ms, date: b"" }
}

/// Saves and restores, as a handoff does.
pub fn move_machine(machine: &Http2, now_ms: u64) -> Http2 {
    let mut tail = Vec::new();
    machine.save_tail(&mut tail);
    let head = machine.save_head(now_ms);
    let state = Http2State::decode(head, &tail).expect("what was written is read");
    let mut moved =
        Http2::restore(&state, now_ms, 0).expect("what a machine saves can be restored");
    let mut variable = tail.len();
    for slot in machine.slots() {
        let (head, buffer) = machine.save_stream(slot, now_ms).expect("it lives");
        variable += buffer.len();
        moved.restore_stream(&head, buffer, now_ms, 0).expect("a stream that lives is restored");
        if let Some(block) = machine.save_trailers(slot) {
            variable += block.len();
            moved.restore_trailers(head.id, block).expect("trailers are restored");
        }
    }
    assert_eq!(variable, machine.saved_bytes());
    let mut again = Vec::new();
    moved.save_tail(&mut again);
    assert_eq!((moved.save_head(now_ms), again), (head, tail));
    assert_eq!(moved.stream_count(), machine.stream_count());
    moved
}

/// Names and values.
pub type Pairs = Vec<(String, Vec<u8>)>;

/// What happened to a stream, pieces of bodies put together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    pub request: Option<(String, String, Pairs)>,
    pub body: Vec<u8>,
    pub ended: bool,
    pub reset: bool,
}

/// The machine under test, with what the service knows.
pub struct Server {
    pub machine: Http2,
    pub pending: Vec<u8>,
    pub out: Vec<u8>,
    pub seen: BTreeMap<u32, Seen>,
    pub error: Option<Error>,
    pub moves: bool,
    pub now_ms: u64,
    fields: Fields,
    ids: BTreeMap<usize, u32>,
}

impl Server {
    pub fn new(moves: bool) -> Self {
        let mut server = Self {
            machine: Http2::new(),
            pending: Vec::new(),
            out: Vec::new(),
            seen: BTreeMap::new(),
            error: None,
            moves,
            now_ms: 1_000,
            fields: Fields::default(),
            ids: BTreeMap::new(),
        };
        server.machine.begin(&mut server.out, &environment(server.now_ms));
        server
    }

    fn step(&mut self) {
        if self.moves {
            let moved = move_machine(&self.machine, self.now_ms);
            // A stream may get another slot.
            self.ids = moved.slots().map(|slot| (slot, moved.stream_id(slot))).collect();
            self.machine = moved;
        }
    }

    /// Bytes arrive.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        let mut bytes = std::mem::take(&mut self.pending);
        let total = bytes.len();
        let mut input = Input::new(&mut bytes);
        let lent = environment(self.now_ms);
        while self.error.is_none() {
            self.step();
            let next = self.machine.next_event(&mut input, &mut self.out, &mut self.fields, &lent);
            match next {
                Ok(None) => break,
                Ok(Some(event)) => self.on_event(event, &mut input),
                Err(error) => self.error = Some(error),
            }
        }
        let left = input.len();
        self.pending = bytes[total - left..].to_vec();
        self.step();
        let lent = environment(self.now_ms);
        self.machine.flush(&mut self.out, usize::MAX, &lent);
        self.step();
    }

    fn on_event(&mut self, event: Event, input: &mut Input<'_>) {
        let lent = environment(self.now_ms);
        match event {
            Event::Request { slot, parts } => {
                let id = self.machine.stream_id(slot);
                self.ids.insert(slot, id);
                let request = Request::new(&self.fields, parts);
                let headers =
                    request.headers().map(|(name, value)| (name.to_owned(), value.to_vec()));
                let seen =
                    (request.method().to_owned(), request.target().to_owned(), headers.collect());
                self.seen.entry(id).or_default().request = Some(seen);
                match id % 8 {
                    1 => self.machine.respond(slot, &mut self.out, 200, &[], b"at once", &lent),
                    3 => self.machine.start_response(
                        slot,
                        &mut self.out,
                        200,
                        &[("x-kind", b"echo")],
                        BodyLength::Unknown,
                        &lent,
                    ),
                    5 => {
                        self.machine.respond(slot, &mut self.out, 200, &[], &[b'5'; 30_000], &lent)
                    }
                    _ => Ok(()),
                }
                .expect("a response is due");
            }
            Event::Data { slot, bytes } => {
                let id = self.machine.stream_id(slot);
                let bytes = input.take(bytes).to_vec();
                self.seen.entry(id).or_default().body.extend_from_slice(&bytes);
                self.machine.took(bytes.len(), &mut self.out, &lent);
                self.step();
                let slot = self.machine.slot_of(id).expect("it lives");
                if id % 8 == 3 {
                    let written = self.machine.write_body(slot, &mut self.out, &bytes, self.now_ms);
                    written.expect("the response is open");
                }
            }
            Event::End { slot } => {
                let id = self.machine.stream_id(slot);
                let seen = self.seen.entry(id).or_default();
                seen.ended = true;
                let length = seen.body.len();
                match id % 8 {
                    3 => {
                        let sum = length.to_string();
                        let trailers: [(&str, &[u8]); 1] = [("x-sum", sum.as_bytes())];
                        self.machine.finish_response_with(slot, &mut self.out, &trailers)
                    }
                    7 => {
                        let body = vec![b'7'; length % 977 + 40_000];
                        self.machine.respond(slot, &mut self.out, 201, &[], &body, &lent)
                    }
                    other => panic!("the response to {other} is over"),
                }
                .expect("in order");
            }
            Event::Reset { slot } => {
                let id = self.ids[&slot];
                self.seen.entry(id).or_default().reset = true;
            }
        }
    }

    /// Reads all frames that were written since the last time.
    pub fn frames(&mut self) -> Vec<Frame> {
        Frame::parse_all(&std::mem::take(&mut self.out))
    }
}

/// A frame as the client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn parse_all(mut bytes: &[u8]) -> Vec<Self> {
        let mut frames = Vec::new();
        while let Some(header) = frame::Header::parse(bytes) {
            let (payload, rest) = bytes[frame::HEADER_BYTES..].split_at(header.length);
            bytes = rest;
            frames.push(Self {
                kind: header.kind,
                flags: header.flags,
                stream: header.stream,
                payload: payload.to_vec(),
            });
        }
        assert!(bytes.is_empty(), "half a frame was written");
        frames
    }
}

/// Status, body, whether it ended, and the code of a reset.
type Answer = (Option<u16>, Vec<u8>, bool, Option<u32>);

/// What a client has got, stream by stream.
#[derive(Debug, Default)]
pub struct Received {
    pub streams: BTreeMap<u32, Answer>,
    /// The field that ended them.
    pub trailers: BTreeMap<u32, (Vec<u8>, Vec<u8>)>,
    pub goaway: Option<u32>,
    pub pongs: usize,
    decoder: Decoder,
}

impl Received {
    pub fn read(&mut self, frames: &[Frame]) {
        let mut fields = Fields::default();
        let limits = ListLimits { max_list_bytes: 1 << 20, max_count: 1_000 };
        for one in frames {
            let stream = self.streams.entry(one.stream).or_default();
            match one.kind {
                frame::HEADERS => {
                    fields.clear();
                    self.decoder.decode(&one.payload, &limits, &mut fields).expect("a block");
                    let (name, value) = fields.get(0).expect("a field");
                    let ends = one.flags & frame::END_STREAM != 0;
                    assert!(!stream.2, "fields behind the end");
                    stream.2 |= ends;
                    if stream.0.is_some() {
                        assert!(ends && name[0] != b':', "one head each");
                        self.trailers.insert(one.stream, (name.to_vec(), value.to_vec()));
                        continue;
                    }
                    assert_eq!(name, b":status");
                    let status = std::str::from_utf8(value).expect("digits");
                    stream.0 = Some(status.parse().expect("a number"));
                }
                frame::DATA => {
                    assert!(
                        stream.0.is_some() && !stream.2,
                        "data before the head or behind the end"
                    );
                    assert_eq!(stream.3, None, "data behind a reset");
                    stream.1.extend_from_slice(&one.payload);
                    stream.2 |= one.flags & frame::END_STREAM != 0;
                }
                frame::RST_STREAM => stream.3 = Some(frame::word(&one.payload)),
                frame::GOAWAY => self.goaway = Some(frame::word(&one.payload[4..])),
                frame::PING if one.flags & frame::ACK != 0 => self.pongs += 1,
                _ => {}
            }
        }
    }
}
