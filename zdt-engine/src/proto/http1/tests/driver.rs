//! A connection for tests: feeds the machine, answers by a fixed rule, and writes down what it saw.
//!
//! What is written down does not depend on how the input was cut, so two runs can be compared.
//!
//! Must not know: what a test wants to show.

use super::super::*;

/// One thing that happened, with the pieces of a body put together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    Request(String),
    Body(Vec<u8>),
    End,
    Refused(Error),
}

/// Who replaces the machine between two calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Restart {
    Never,
    /// Saved, encoded, decoded and restored after every single call.
    Always,
}

pub(super) struct Driver {
    pub http: Http1,
    pub limits: Limits,
    /// What the machine left in the input.
    pub leftover: Vec<u8>,
    pub output: Vec<u8>,
    pub seen: Vec<Seen>,
    restart: Restart,
    path: String,
    body: Vec<u8>,
}

impl Driver {
    pub fn new(limits: Limits, restart: Restart) -> Self {
        Self {
            http: Http1::new(),
            limits,
            leftover: Vec::new(),
            output: Vec::new(),
            seen: Vec::new(),
            restart,
            path: String::new(),
            body: Vec::new(),
        }
    }

    /// Runs a whole input in pieces that end at `cuts`, a sorted list of offsets.
    pub fn run(limits: Limits, restart: Restart, bytes: &[u8], cuts: &[usize]) -> Self {
        let mut driver = Self::new(limits, restart);
        let mut start = 0;
        for &end in cuts.iter().chain([&bytes.len()]) {
            driver.feed(&bytes[start..end]);
            start = end;
        }
        driver
    }

    /// Offers more input and answers everything that can be answered.
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut buffer = std::mem::take(&mut self.leftover);
        buffer.extend_from_slice(bytes);
        let mut input = Input::new(&mut buffer);
        loop {
            let event = self.http.next_event(&mut input, &self.limits);
            self.restart();
            match event {
                Ok(Some(event)) => self.on_event(event),
                Ok(None) => break,
                Err(error) => {
                    self.seen.push(Seen::Refused(error));
                    self.http.error_response(&mut self.output, &error, b"");
                    self.restart();
                    assert!(self.http.must_close());
                }
            }
        }
        self.leftover = input.peek().to_vec();
        if self.http.wants_input() {
            // All that the caller has to keep for the machine.
            let bound = (self.limits.max_head_bytes as usize).max(300);
            assert!(self.leftover.len() <= bound, "{} bytes left over", self.leftover.len());
        }
    }

    fn on_event(&mut self, event: Event<'_>) {
        match event {
            Event::Request(request) => {
                let headers: Vec<String> = request
                    .headers()
                    .map(|(name, value)| format!("{name}={}", value.escape_ascii()))
                    .collect();
                self.seen.push(Seen::Request(format!(
                    "{} {} {:?} {:?} {:?} {headers:?}",
                    request.method, request.path, request.query, request.version, request.body
                )));
                self.path = request.path.to_owned();
                self.body.clear();
                match (request.path, request.body) {
                    ("/early", _) => self.respond(b"early"),
                    ("/copy", BodyKind::Known(length)) => self.start(BodyLength::Known(length)),
                    ("/chunks", _) => self.start(BodyLength::Unknown),
                    _ => {}
                }
                self.http.send_continue(&mut self.output);
                self.restart();
            }
            Event::Body(piece) => {
                assert!(!piece.is_empty());
                match self.seen.last_mut() {
                    Some(Seen::Body(body)) => body.extend_from_slice(piece),
                    _ => self.seen.push(Seen::Body(piece.to_vec())),
                }
                self.body.extend_from_slice(piece);
                // The framing by length hides how the bytes came.
                if self.path == "/copy" && self.is_streaming() {
                    self.write(piece);
                }
            }
            Event::End => {
                self.seen.push(Seen::End);
                assert!(self.http.request_complete());
                assert!(!self.http.wants_input());
                let body = std::mem::take(&mut self.body);
                match self.path.as_str() {
                    "/copy" if self.is_streaming() => self.finish(),
                    "/chunks" => {
                        for piece in body.chunks(7) {
                            self.write(piece);
                        }
                        self.finish();
                    }
                    _ => self.respond(&body),
                }
            }
        }
    }

    fn is_streaming(&self) -> bool {
        self.http.response_state() == ResponseState::Streaming
    }

    fn respond(&mut self, body: &[u8]) {
        let headers: [(&str, &[u8]); 1] = [("X-Path", self.path.as_bytes())];
        self.http.respond(&mut self.output, 200, &headers, body, b"").expect("a request waits");
        self.restart();
    }

    fn start(&mut self, length: BodyLength) {
        self.http
            .start_response(&mut self.output, 200, &[], length, b"now")
            .expect("a request waits");
        self.restart();
    }

    fn write(&mut self, bytes: &[u8]) {
        self.http.write_body(&mut self.output, bytes).expect("announced");
        self.restart();
    }

    fn finish(&mut self) {
        self.http.finish_response(&mut self.output).expect("complete");
        self.restart();
    }

    fn restart(&mut self) {
        if self.restart == Restart::Never {
            return;
        }
        let saved = self.http.save();
        let mut encoded = Vec::new();
        saved.encode(&mut encoded);
        assert_eq!(Http1State::decode(&encoded), Ok(saved));
        let json = serde_json::to_string(&saved).expect("plain data");
        let decoded: Http1State = serde_json::from_str(&json).expect("what was just written");
        assert_eq!(decoded, saved);
        let restored = Http1::restore(&decoded);
        let restored = restored.unwrap_or_else(|error| panic!("{error}: {:?}", self.http));
        assert_eq!(restored.save(), saved);
        self.http = restored;
    }
}
