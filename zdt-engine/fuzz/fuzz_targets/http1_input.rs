//! Any bytes from a client: the same events and answers in one piece as in many, with the machine
//! saved and restored between them.
//!
//! Must not know: valid requests; the corpus finds them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zdt_engine::proto::Input;
use zdt_engine::proto::http1::{Error, Event, Http1, Http1State, Limits};

/// What the client sees and what the service sees, with body pieces joined.
#[derive(Debug, PartialEq, Default)]
struct Outcome {
    output: Vec<u8>,
    requests: Vec<(String, Vec<(String, Vec<u8>)>)>,
    bodies: Vec<u8>,
    ends: usize,
    error: Option<Error>,
}

fn run(bytes: &[u8], step: usize, early: bool, restart: bool, limits: &Limits) -> Outcome {
    let mut http = Http1::new();
    let mut outcome = Outcome::default();
    let mut buffer = Vec::new();
    for piece in bytes.chunks(step.max(1)) {
        buffer.extend_from_slice(piece);
        let mut input = Input::new(&mut buffer);
        loop {
            if restart {
                let mut record = Vec::new();
                http.save().encode(&mut record);
                let state = Http1State::decode(&record).expect("just written");
                http = Http1::restore(&state).expect("just saved");
            }
            let respond = |http: &mut Http1, output: &mut Vec<u8>| {
                http.respond(output, 200, &[], b"body", b"").expect("a request waits");
            };
            match http.next_event(&mut input, limits) {
                Ok(Some(Event::Request(request))) => {
                    let headers = request.headers();
                    let headers = headers.map(|(name, value)| {
                        assert!(request.header(name).is_some());
                        (name.to_owned(), value.to_vec())
                    });
                    let line = format!("{} {}", request.method, request.target);
                    outcome.requests.push((line, headers.collect()));
                    if early {
                        respond(&mut http, &mut outcome.output);
                    }
                }
                Ok(Some(Event::Body(piece))) => outcome.bodies.extend_from_slice(piece),
                Ok(Some(Event::End)) => {
                    outcome.ends += 1;
                    respond(&mut http, &mut outcome.output);
                }
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(outcome.error.replace(error), None);
                    http.error_response(&mut outcome.output, &error, b"");
                    assert!(http.must_close());
                }
            }
        }
        let left = input.len();
        if http.wants_input() {
            assert!(left <= (limits.max_head_bytes as usize).max(300), "{left} bytes left over");
        }
        buffer.drain(..buffer.len() - left);
    }
    outcome
}

fuzz_target!(|data: &[u8]| {
    let [control, bytes @ ..] = data else { return };
    let small = Limits {
        max_head_bytes: 120,
        max_target_bytes: 30,
        max_header_count: 4,
        max_body_bytes: 50,
    };
    let limits = if control & 1 == 0 { Limits::default() } else { small };
    let early = control & 2 != 0;
    let whole = run(bytes, usize::MAX, early, false, &limits);
    let step = usize::from(control >> 2) % 13 + 1;
    assert_eq!(run(bytes, step, early, true, &limits), whole);
});
