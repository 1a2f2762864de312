//! Any bytes from a client: the same events and frames with the machine saved and restored after every step as
//! without, whole frames only, and bounded memory.
//!
//! Must not know: valid frames; the corpus finds them.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use zdt_engine::proto::Input;
use zdt_engine::proto::hpack::Fields;
use zdt_engine::proto::http2::{
    BodyLength, Environment, Error, Event, Http2, Http2State, Limits, Options, PREFACE, Request,
};

const LIMITS: Limits = Limits {
    max_head_bytes: 2 << 10,
    max_target_bytes: 256,
    max_header_count: 20,
    max_body_bytes: 60_000,
};

const OPTIONS: Options = Options {
    max_streams: 8,
    stream_window_bytes: 20_000,
    connection_window_bytes: 70_000,
    stream_buffer_bytes: 2 << 10,
    reset_burst: 20,
    resets_per_second: 10,
    control_burst: 60,
    control_per_second: 10,
};

const ENVIRONMENT: Environment<'static> =
    Environment { limits: LIMITS, options: OPTIONS, now_ms: 1_000, date: b"today" };

/// What the service has seen of a stream.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    requests: Vec<(String, String, Vec<(String, Vec<u8>)>)>,
    body: Vec<u8>,
    ends: usize,
    resets: usize,
}

#[derive(Debug, Default, PartialEq)]
struct Outcome {
    streams: BTreeMap<u32, Seen>,
    out: Vec<u8>,
    error: Option<Error>,
}

struct Server {
    machine: Http2,
    moves: bool,
    ids: BTreeMap<usize, u32>,
    outcome: Outcome,
}

impl Server {
    fn step(&mut self) {
        if !self.moves {
            return;
        }
        let mut tail = Vec::new();
        self.machine.save_tail(&mut tail);
        let head = self.machine.save_head(1_000);
        let state = Http2State::decode(head, &tail).expect("just written");
        let mut moved = Http2::restore(&state, 1_000, 0).expect("just saved");
        for slot in self.machine.slots() {
            let (head, buffer) = self.machine.save_stream(slot, 1_000).expect("it lives");
            moved.restore_stream(&head, buffer, 1_000, 0).expect("just saved");
            if let Some(block) = self.machine.save_trailers(slot) {
                moved.restore_trailers(head.id, block).expect("just saved");
            }
        }
        assert_eq!(moved.save_head(1_000), head);
        self.ids = moved.slots().map(|slot| (slot, moved.stream_id(slot))).collect();
        self.machine = moved;
    }

    fn on_event(&mut self, event: Event, fields: &Fields, input: &mut Input<'_>) {
        let Self { machine, ids, outcome, .. } = self;
        let out = &mut outcome.out;
        match event {
            Event::Request { slot, parts } => {
                let id = machine.stream_id(slot);
                ids.insert(slot, id);
                let request = Request::new(fields, parts);
                let headers =
                    request.headers().map(|(name, value)| (name.to_owned(), value.to_vec()));
                outcome.streams.entry(id).or_default().requests.push((
                    request.method().to_owned(),
                    request.target().to_owned(),
                    headers.collect(),
                ));
                match id % 8 {
                    1 => {
                        machine.respond(slot, out, 200, &[], b"at once", &ENVIRONMENT).expect("due")
                    }
                    3 if request.protocol().is_some() => {
                        machine.accept_tunnel(slot, out, &[], &ENVIRONMENT).expect("due");
                    }
                    3 => {
                        let length = BodyLength::Unknown;
                        let headers: [(&str, &[u8]); 1] = [("x-kind", b"echo")];
                        machine
                            .start_response(slot, out, 200, &headers, length, &ENVIRONMENT)
                            .expect("due");
                    }
                    5 => machine
                        .respond(slot, out, 200, &[], &[b'5'; 30_000], &ENVIRONMENT)
                        .expect("due"),
                    _ => machine.send_continue(slot, out),
                }
            }
            Event::Data { slot, bytes } => {
                let id = machine.stream_id(slot);
                let bytes = input.take(bytes.div_ceil(2)).to_vec();
                outcome.streams.entry(id).or_default().body.extend_from_slice(&bytes);
                machine.took(bytes.len(), out, &ENVIRONMENT);
                if id % 8 == 3 {
                    // The stream may have been reset for what it sends behind its answer.
                    let _ = machine.write_body(slot, out, &bytes, 1_000);
                }
            }
            Event::End { slot } => {
                let id = machine.stream_id(slot);
                outcome.streams.entry(id).or_default().ends += 1;
                if id % 8 == 3 {
                    let trailers: [(&str, &[u8]); 1] = [("x-end", b"yes")];
                    machine.finish_response_with(slot, out, &trailers).expect("it is open");
                } else {
                    machine.respond(slot, out, 404, &[], b"none", &ENVIRONMENT).expect("due");
                }
            }
            Event::Reset { slot } => {
                let id = ids.get(&slot).copied().unwrap_or_default();
                outcome.streams.entry(id).or_default().resets += 1;
            }
        }
    }
}

fn run(pieces: &[&[u8]], moves: bool) -> Outcome {
    let machine = Http2::new();
    let mut server = Server { machine, moves, ids: BTreeMap::new(), outcome: Outcome::default() };
    server.machine.begin(&mut server.outcome.out, &ENVIRONMENT);
    let mut fields = Fields::default();
    let mut buffer = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        let mut input = Input::new(&mut buffer);
        loop {
            server.step();
            let out = &mut server.outcome.out;
            match server.machine.next_event(&mut input, out, &mut fields, &ENVIRONMENT) {
                Ok(Some(event)) => server.on_event(event, &fields, &mut input),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(server.outcome.error.replace(error), None, "an error is the end");
                }
            }
        }
        let left = input.len();
        assert!(left <= 9 + 16_384, "{left} bytes left over");
        buffer.drain(..buffer.len() - left);
        server.step();
        server.machine.flush(&mut server.outcome.out, 1 << 20, &ENVIRONMENT);
        assert!(server.machine.stream_count() <= OPTIONS.max_streams as usize + 1);
        assert!(server.machine.heap_bytes() < 600_000, "{}", server.machine.heap_bytes());
    }
    server.outcome
}

fuzz_target!(|data: &[u8]| {
    let [control, bytes @ ..] = data else { return };
    let hello = [&PREFACE[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    let step = usize::from(control >> 1) % 50 * 7 + 1;
    let mut pieces: Vec<&[u8]> = Vec::new();
    if control & 1 == 0 {
        pieces.push(&hello);
    }
    pieces.extend(bytes.chunks(step));
    let outcome = run(&pieces, true);
    assert_eq!(run(&pieces, false), outcome);
    // Whole frames only.
    let mut rest = &outcome.out[..];
    while let Some((&[a, b, c, ..], behind)) = rest.split_first_chunk::<9>() {
        rest = &behind[(usize::from(a) << 16) + (usize::from(b) << 8) + usize::from(c)..];
    }
    assert!(rest.is_empty(), "half a frame was written");
});
