//! The built-in demo service: every kind of exchange that a handoff must survive, without writing
//! code. `docs/demo-service.md` lists its paths.
//!
//! Must not know: anything below the [`Service`] trait.

use sha2::Digest as _;

use super::digest::Progress;
use super::{
    BodyLength, Busy, Context, Message, Outcome, Request, RestoreError, SavedSession, Service,
    Session,
};

/// Most bytes that `GET /big` produces at a time.
const BIG_CHUNK_BYTES: usize = 32 << 10;

/// Largest `n` of `GET /big` and largest `chunks` of `GET /stream`.
const MAX_COUNT: u64 = 1 << 40;

const RESUME_COOKIE: &str = "zdt_resume";

const TEXT: (&str, &[u8]) = ("Content-Type", b"text/plain; charset=utf-8");
const BYTES: (&str, &[u8]) = ("Content-Type", b"application/octet-stream");

const PAGE: &str = "<!doctype html><title>zdt demo</title><h1>zdt demo</h1>\
<p>This page, and every connection to it, survives the replacement of the process that serves it.</p>\
<ul><li>GET /id?id=X<li>GET /tls<li>GET /big?n=N<li>POST /echo<li>GET /stream?chunks=N&amp;interval_ms=M\
<li>POST /digest<li>WebSocket /ws/echo, /ws/counter, /ws/clock?interval_ms=M</ul>\n";

/// See the module.
pub struct Demo;

impl Service for Demo {
    fn on_request(&mut self, request: &Request<'_>, context: &mut Context<'_>) -> Outcome {
        match (request.method, request.path) {
            ("GET" | "HEAD", "/") => {
                context.respond(200, &[("Content-Type", b"text/html")], PAGE.as_bytes());
                Outcome::Done
            }
            ("GET" | "HEAD", "/id") => {
                let id = request.parameter("id").unwrap_or("");
                context.respond(200, &[TEXT], id.as_bytes());
                Outcome::Done
            }
            ("GET", "/tls") => {
                let answer = request.tls.map(|tls| {
                    let client = tls.client_certificate.map(|der| {
                        let digest = sha2::Sha256::digest(der);
                        digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
                    });
                    serde_json::json!({
                        "version": tls.version,
                        "server_name": tls.server_name,
                        "client_certificate_sha256": client,
                    })
                });
                let answer = answer.unwrap_or(serde_json::Value::Null).to_string();
                context.respond(200, &[("Content-Type", b"application/json")], answer.as_bytes());
                Outcome::Done
            }
            ("GET" | "HEAD", "/big") => match number(request, "n", 1 << 20, 0) {
                Err(()) => bad_number(context),
                Ok(_) if request.method == "HEAD" => {
                    context.respond(200, &[BYTES], b"");
                    Outcome::Done
                }
                Ok(total) => {
                    context.start_response(200, &[BYTES], BodyLength::Known(total));
                    let mut session = Big { total, sent: 0 };
                    session.fill(context);
                    Outcome::Session(Box::new(session))
                }
            },
            ("GET", "/stream") => {
                match (number(request, "chunks", 10, 0), number(request, "interval_ms", 100, 1)) {
                    (Ok(chunks), Ok(interval_ms)) => {
                        context.start_response(200, &[TEXT], BodyLength::Unknown);
                        let mut session = Stream { chunks, interval_ms, sent: 0 };
                        session.step(context);
                        Outcome::Session(Box::new(session))
                    }
                    _ => bad_number(context),
                }
            }
            ("POST", "/echo") => {
                let kind = request.header("content-type").unwrap_or(b"application/octet-stream");
                context.start_response(200, &[("Content-Type", kind)], BodyLength::Unknown);
                Outcome::Session(Box::new(EchoBody))
            }
            ("POST", "/digest") => Outcome::Session(Box::new(Digest(Progress::default()))),
            ("GET" | "CONNECT", "/ws/echo" | "/ws/counter" | "/ws/clock") => {
                websocket(request, context)
            }
            (_, "/tls") => not_allowed(context, b"GET"),
            (_, "/" | "/id" | "/big" | "/stream") => not_allowed(context, b"GET, HEAD"),
            (_, "/echo" | "/digest") => not_allowed(context, b"POST"),
            (_, "/ws/echo" | "/ws/counter" | "/ws/clock") => not_allowed(context, b"GET"),
            _ => {
                context.respond(404, &[TEXT], b"404: no such page; GET / lists them\n");
                Outcome::Done
            }
        }
    }

    fn restore(&mut self, saved: &SavedSession<'_>) -> Result<Box<dyn Session>, RestoreError> {
        if saved.version != 1 {
            return Err(RestoreError::UnknownKind);
        }
        let bytes = saved.bytes;
        Ok(match saved.kind {
            EchoBody::KIND => Box::new(EchoBody),
            EchoSocket::KIND => Box::new(EchoSocket),
            Big::KIND => {
                let [total, sent] = words(bytes)?;
                Box::new(Big { total, sent })
            }
            Stream::KIND => {
                let [chunks, interval_ms, sent] = words(bytes)?;
                Box::new(Stream { chunks, interval_ms, sent })
            }
            Digest::KIND => {
                Box::new(Digest(Progress::restore(bytes).ok_or(RestoreError::Malformed)?))
            }
            Counter::KIND => {
                let [n] = words(bytes)?;
                Box::new(Counter { n })
            }
            Clock::KIND => {
                let [n, interval_ms] = words(bytes)?;
                Box::new(Clock { n, interval_ms })
            }
            _ => return Err(RestoreError::UnknownKind),
        })
    }
}

fn number(request: &Request<'_>, name: &str, default: u64, least: u64) -> Result<u64, ()> {
    match request.parameter(name) {
        None => Ok(default),
        Some(text) => {
            let value = text.parse().map_err(|_| ())?;
            if (least..=MAX_COUNT).contains(&value) { Ok(value) } else { Err(()) }
        }
    }
}

fn bad_number(context: &mut Context<'_>) -> Outcome {
    context.respond(400, &[TEXT], b"400: a parameter is not a number in its range\n");
    Outcome::Done
}

fn not_allowed(context: &mut Context<'_>, allow: &[u8]) -> Outcome {
    context.respond(405, &[("Allow", allow), TEXT], b"405: this path has other methods\n");
    Outcome::Done
}

fn websocket(request: &Request<'_>, context: &mut Context<'_>) -> Outcome {
    if !request.is_websocket {
        context.respond(
            426,
            &[("Upgrade", b"websocket"), ("Connection", b"Upgrade"), TEXT],
            b"426: this path is a WebSocket\n",
        );
        return Outcome::Done;
    }
    // The demo speaks whatever the client offers first; it only shows the negotiation.
    let offered = request.header("sec-websocket-protocol").and_then(|value| {
        let first = std::str::from_utf8(value).ok()?.split(',').next()?.trim();
        (!first.is_empty()).then(|| first.to_owned())
    });
    let accept = |context: &mut Context<'_>| context.accept_websocket(offered.as_deref());
    match request.path {
        "/ws/echo" => {
            accept(context);
            Outcome::Session(Box::new(EchoSocket))
        }
        "/ws/counter" => {
            let parked = resume_token(request).and_then(|token| context.parked(token));
            if let Some(token) = context.park() {
                let cookie =
                    format!("{RESUME_COOKIE}={token}; Path=/ws/; HttpOnly; SameSite=Strict");
                context.add_header("Zdt-Resume", token.as_bytes());
                context.add_header("Set-Cookie", cookie.as_bytes());
            }
            accept(context);
            let otherwise: Box<dyn Session> = Box::new(Counter { n: 0 });
            match parked {
                Some(parked) => Outcome::Resume { parked, otherwise },
                None => Outcome::Session(otherwise),
            }
        }
        _ => match number(request, "interval_ms", 1_000, 1) {
            Ok(interval_ms) => {
                accept(context);
                context.set_timer(interval_ms);
                Outcome::Session(Box::new(Clock { n: 0, interval_ms }))
            }
            Err(()) => bad_number(context),
        },
    }
}

/// The token of an earlier connection: browsers show it as a cookie, others in a header field.
fn resume_token<'a>(request: &'a Request<'_>) -> Option<&'a [u8]> {
    request.header("zdt-resume").or_else(|| {
        let cookies = request.header("cookie")?.split(|byte| *byte == b';');
        cookies
            .map(<[u8]>::trim_ascii)
            .find_map(|cookie| cookie.strip_prefix(RESUME_COOKIE.as_bytes())?.strip_prefix(b"="))
    })
}

fn save_words(values: &[u64], bytes: &mut Vec<u8>) {
    for value in values {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
}

fn words<const N: usize>(bytes: &[u8]) -> Result<[u64; N], RestoreError> {
    if bytes.len() != N * 8 {
        return Err(RestoreError::Malformed);
    }
    let mut values = [0; N];
    for (value, chunk) in values.iter_mut().zip(bytes.chunks_exact(8)) {
        *value = u64::from_le_bytes(chunk.try_into().map_err(|_| RestoreError::Malformed)?);
    }
    Ok(values)
}

/// Byte `index` of every `/big`: a pattern in which a lost or doubled piece shows.
pub fn big_byte(index: u64) -> u8 {
    // 251 is prime, so no power-of-two shift maps the pattern onto itself.
    (index % 251) as u8
}

struct Big {
    total: u64,
    sent: u64,
}

impl Big {
    const KIND: &'static str = "demo.big";

    fn fill(&mut self, context: &mut Context<'_>) {
        let mut chunk = [0; BIG_CHUNK_BYTES];
        while self.sent < self.total {
            let room = context.room().min(BIG_CHUNK_BYTES);
            if room == 0 {
                context.want_room();
                return;
            }
            let count = room.min(usize::try_from(self.total - self.sent).unwrap_or(usize::MAX));
            for (offset, byte) in chunk[..count].iter_mut().enumerate() {
                *byte = big_byte(self.sent + offset as u64);
            }
            context.write_body(&chunk[..count]);
            self.sent += count as u64;
        }
        context.finish_response();
    }
}

impl Session for Big {
    fn on_room(&mut self, context: &mut Context<'_>) {
        self.fill(context);
    }

    fn kind(&self) -> &'static str {
        Self::KIND
    }

    fn save(&self, bytes: &mut Vec<u8>) -> Result<(), Busy> {
        save_words(&[self.total, self.sent], bytes);
        Ok(())
    }
}

struct Stream {
    chunks: u64,
    interval_ms: u64,
    sent: u64,
}

impl Stream {
    const KIND: &'static str = "demo.stream";

    fn step(&mut self, context: &mut Context<'_>) {
        if self.sent == self.chunks {
            context.finish_response();
        } else if context.room() == 0 {
            context.want_room();
        } else {
            context.write_body(format!("chunk {}\n", self.sent).as_bytes());
            self.sent += 1;
            context.set_timer(self.interval_ms);
        }
    }
}

impl Session for Stream {
    fn on_timer(&mut self, context: &mut Context<'_>) {
        self.step(context);
    }

    fn on_room(&mut self, context: &mut Context<'_>) {
        self.step(context);
    }

    fn kind(&self) -> &'static str {
        Self::KIND
    }

    fn save(&self, bytes: &mut Vec<u8>) -> Result<(), Busy> {
        save_words(&[self.chunks, self.interval_ms, self.sent], bytes);
        Ok(())
    }
}

struct EchoBody;

impl EchoBody {
    const KIND: &'static str = "demo.echo";
}

impl Session for EchoBody {
    fn on_body(&mut self, bytes: &[u8], context: &mut Context<'_>) {
        context.write_body(bytes);
    }

    fn on_body_end(&mut self, context: &mut Context<'_>) {
        context.finish_response();
    }

    fn kind(&self) -> &'static str {
        Self::KIND
    }

    fn save(&self, _bytes: &mut Vec<u8>) -> Result<(), Busy> {
        Ok(())
    }
}

struct Digest(Progress);

impl Digest {
    const KIND: &'static str = "demo.digest";
}

impl Session for Digest {
    fn on_body(&mut self, bytes: &[u8], _context: &mut Context<'_>) {
        self.0.update(bytes);
    }

    fn on_body_end(&mut self, context: &mut Context<'_>) {
        context.respond(200, &[TEXT], format!("{}\n", self.0.finish_hex()).as_bytes());
    }

    fn kind(&self) -> &'static str {
        Self::KIND
    }

    fn save(&self, bytes: &mut Vec<u8>) -> Result<(), Busy> {
        self.0.save(bytes);
        Ok(())
    }
}

struct EchoSocket;

impl EchoSocket {
    const KIND: &'static str = "demo.ws.echo";
}

impl Session for EchoSocket {
    fn on_message(&mut self, message: Message<'_>, context: &mut Context<'_>) {
        match message {
            Message::Text(text) => context.send_text(text),
            Message::Binary(bytes) => context.send_binary(bytes),
        }
    }

    fn on_push(&mut self, bytes: &[u8], context: &mut Context<'_>) {
        context.send_binary(bytes);
    }

    fn kind(&self) -> &'static str {
        Self::KIND
    }

    fn save(&self, _bytes: &mut Vec<u8>) -> Result<(), Busy> {
        Ok(())
    }
}

struct Counter {
    n: u64,
}

impl Counter {
    const KIND: &'static str = "demo.ws.counter";
}

impl Session for Counter {
    fn on_message(&mut self, _message: Message<'_>, context: &mut Context<'_>) {
        self.n += 1;
        let worker = context.worker();
        context.send_text(&format!(
            "{{\"n\": {}, \"worker\": {}, \"generation\": {}}}",
            self.n, worker.pid, worker.generation
        ));
    }

    fn kind(&self) -> &'static str {
        Self::KIND
    }

    fn save(&self, bytes: &mut Vec<u8>) -> Result<(), Busy> {
        save_words(&[self.n], bytes);
        Ok(())
    }
}

struct Clock {
    n: u64,
    interval_ms: u64,
}

impl Clock {
    const KIND: &'static str = "demo.ws.clock";
}

impl Session for Clock {
    fn on_timer(&mut self, context: &mut Context<'_>) {
        // A peer that does not read gets no further ticks queued; the count shows what it missed.
        self.n += 1;
        if context.room() > 0 {
            context.send_text(&format!("{{\"n\": {}}}", self.n));
        }
        context.set_timer(self.interval_ms);
    }

    fn kind(&self) -> &'static str {
        Self::KIND
    }

    fn save(&self, bytes: &mut Vec<u8>) -> Result<(), Busy> {
        save_words(&[self.n, self.interval_ms], bytes);
        Ok(())
    }
}
