//! A simple server with the demo service's endpoints, a thread for each connection, that can be told
//! to do one kind of thing wrong now and then: it proves that the traffic's checks see it.
//!
//! Must not know: the traffic, zdt.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::payload::mix;
use crate::ws::{self, DeflateParameters, Endpoint, Event};

/// What goes wrong, with one of so many messages or requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// Nothing.
    None,
    /// A byte of an echoed message is changed.
    ChangeMessage,
    /// A message is not echoed.
    LoseMessage,
    /// A message is echoed twice.
    DoubleMessage,
    /// A message is echoed after the next one.
    SwapMessages,
    /// A WebSocket is closed, properly.
    CloseWebSocket,
    /// A connection is reset.
    Reset,
    /// A counter skips a number.
    SkipCount,
    /// A counter says the same number again.
    RepeatCount,
    /// A clock skips a tick.
    SkipTick,
    /// A ping is not answered.
    LosePong,
    /// A request gets the answer of an earlier one.
    MixUp,
    /// A request gets no answer and its connection a FIN.
    LoseAnswer,
    /// A request gets status 503.
    Unavailable,
    /// A byte of a download is changed.
    ChangeDownload,
    /// A byte of an echoed body is changed.
    ChangeBody,
}

impl Fault {
    /// One of so many chances is taken; there are fewer ticks, pings and large bodies than messages.
    fn one_of(self) -> u64 {
        match self {
            Self::SkipTick | Self::LosePong | Self::ChangeDownload | Self::ChangeBody => 5,
            _ => 40,
        }
    }
}

struct Faults {
    fault: Fault,
    chances: AtomicU64,
    last_id: std::sync::Mutex<String>,
}

impl Faults {
    /// Whether this is the moment for `fault`.
    fn strikes(&self, fault: Fault) -> bool {
        let last = fault.one_of() - 1;
        self.fault == fault && self.chances.fetch_add(1, Ordering::Relaxed) % (last + 1) == last
    }
}

/// Serves until the process ends.
pub fn serve(listener: TcpListener, fault: Fault) -> Result<()> {
    let faults = Arc::new(Faults {
        fault,
        chances: AtomicU64::new(0),
        last_id: std::sync::Mutex::default(),
    });
    for stream in listener.incoming() {
        let (stream, faults) = (stream?, Arc::clone(&faults));
        std::thread::Builder::new().stack_size(128 << 10).spawn(move || {
            // The client sees what is wrong.
            let _ = Connection { stream, input: Vec::new(), faults }.run();
        })?;
    }
    Ok(())
}

struct Connection {
    stream: TcpStream,
    input: Vec<u8>,
    faults: Arc<Faults>,
}

impl Connection {
    fn fill(&mut self) -> Result<()> {
        let mut buffer = [0; 16 << 10];
        let length = self.stream.read(&mut buffer)?;
        if length == 0 {
            bail!("end of input");
        }
        self.input.extend_from_slice(&buffer[..length]);
        Ok(())
    }

    /// The next bytes up to and without `end`.
    fn until(&mut self, end: &[u8]) -> Result<Vec<u8>> {
        loop {
            if let Some(at) = self.input.windows(end.len()).position(|bytes| bytes == end) {
                let found = self.input[..at].to_vec();
                self.input.drain(..at + end.len());
                return Ok(found);
            }
            self.fill()?;
        }
    }

    fn exactly(&mut self, length: usize) -> Result<Vec<u8>> {
        while self.input.len() < length {
            self.fill()?;
        }
        Ok(self.input.drain(..length).collect())
    }

    fn body(&mut self, head: &str) -> Result<Vec<u8>> {
        if head.contains("\r\nTransfer-Encoding: chunked") {
            let mut body = Vec::new();
            loop {
                let size = String::from_utf8(self.until(b"\r\n")?)?;
                let size = usize::from_str_radix(&size, 16)?;
                body.extend(self.exactly(size)?);
                self.exactly(2)?;
                if size == 0 {
                    return Ok(body);
                }
            }
        }
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        self.exactly(length.map_or(Ok(0), str::parse)?)
    }

    fn answer(&mut self, status: &str, body: &[u8]) -> Result<()> {
        let mut out =
            format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        out.extend_from_slice(body);
        Ok(self.stream.write_all(&out)?)
    }

    fn run(mut self) -> Result<()> {
        self.stream.set_nodelay(true)?;
        loop {
            let head = String::from_utf8(self.until(b"\r\n\r\n")?)?;
            let target = head.split(' ').nth(1).context("no target")?.to_owned();
            let (path, query) = target.split_once('?').unwrap_or((&target, ""));
            let value = query.split_once('=').map_or("", |(_, value)| value);
            if path.starts_with("/ws/") {
                return self.websocket(path, &head, value);
            }
            let mut body = self.body(&head)?;
            if self.faults.strikes(Fault::LoseAnswer) {
                return Ok(());
            }
            if self.faults.strikes(Fault::Reset) {
                return self.reset();
            }
            if self.faults.strikes(Fault::Unavailable) {
                self.answer("503 Service Unavailable", b"")?;
                continue;
            }
            match path {
                "/id" => {
                    let before = match self.faults.last_id.lock() {
                        Ok(mut last) => std::mem::replace(&mut *last, value.to_owned()),
                        Err(_) => bail!("poisoned"),
                    };
                    let mixed_up = !before.is_empty() && self.faults.strikes(Fault::MixUp);
                    self.answer("200 OK", if mixed_up { &before } else { value }.as_bytes())?;
                }
                "/big" => {
                    let length: usize = value.parse()?;
                    let mut big: Vec<u8> = (0..length).map(|i| mix(i as u64 / 61) as u8).collect();
                    if length > 1000 && self.faults.strikes(Fault::ChangeDownload) {
                        big[length / 2] ^= 0x10;
                    }
                    self.answer("200 OK", &big)?;
                }
                "/echo" => {
                    if !body.is_empty() && self.faults.strikes(Fault::ChangeBody) {
                        body[0] ^= 1;
                    }
                    self.answer("200 OK", &body)?;
                }
                "/stream" => self.stream_chunks()?,
                _ => self.answer("404 Not Found", b"")?,
            }
        }
    }

    fn reset(&mut self) -> Result<()> {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        nix::sys::socket::setsockopt(&self.stream, nix::sys::socket::sockopt::Linger, &linger)?;
        Ok(())
    }

    fn stream_chunks(&mut self) -> Result<()> {
        self.stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        for number in 0..10 {
            self.stream.write_all(format!("7\r\nchunk{number:02}\r\n").as_bytes())?;
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(self.stream.write_all(b"0\r\n\r\n")?)
    }

    fn websocket(mut self, path: &str, head: &str, interval_ms: &str) -> Result<()> {
        let offer = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Extensions: "));
        let deflate =
            offer.map(DeflateParameters::parse).transpose().map_err(anyhow::Error::msg)?;
        let extensions = deflate.map_or(String::new(), |deflate| {
            format!("Sec-WebSocket-Extensions: {}\r\n", deflate.header_value())
        });
        write!(
            self.stream,
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n{extensions}\r\n",
            ws::ACCEPT
        )?;
        let mut endpoint = Endpoint::new(false, deflate);
        if path == "/ws/clock" {
            return self.clock(&mut endpoint, Duration::from_millis(interval_ms.parse()?));
        }
        let (mut n, mut kept_back, mut events) = (0u64, None, Vec::new());
        let mut data = std::mem::take(&mut self.input);
        loop {
            endpoint.receive(&data, &mut events).map_err(anyhow::Error::msg)?;
            let mut out = Vec::new();
            let mut write = |out: &mut Vec<u8>, text, payload: &[u8]| {
                endpoint
                    .write_message(out, text, payload, true, &[], || None)
                    .map_err(anyhow::Error::msg)
            };
            for event in events.drain(..) {
                match event {
                    Event::Ping(payload) => {
                        if !self.faults.strikes(Fault::LosePong) {
                            out.push(0x80 | ws::PONG);
                            out.push(payload.len() as u8);
                            out.extend_from_slice(&payload);
                        }
                    }
                    Event::Message { .. } if path == "/ws/counter" => {
                        n += 1;
                        if self.faults.strikes(Fault::SkipCount) {
                            n += 1;
                        } else if n > 1 && self.faults.strikes(Fault::RepeatCount) {
                            n -= 1;
                        }
                        write(&mut out, true, format!("{{\"n\":{n}}}").as_bytes())?;
                    }
                    Event::Message { text, mut payload } => {
                        if self.faults.strikes(Fault::CloseWebSocket) {
                            out.extend_from_slice(&[0x80 | ws::CLOSE, 2, 3, 0xe8]);
                            self.stream.write_all(&out)?;
                            return Ok(());
                        }
                        if self.faults.strikes(Fault::LoseMessage) {
                            continue;
                        }
                        if !payload.is_empty() && self.faults.strikes(Fault::ChangeMessage) {
                            let at = payload.len() / 2;
                            payload[at] = if payload[at] == b'x' { b'y' } else { b'x' };
                            // Text stays text, so that only the contents are wrong.
                            if text && std::str::from_utf8(&payload).is_err() {
                                payload.fill(b'x');
                            }
                        }
                        if self.faults.strikes(Fault::SwapMessages) && kept_back.is_none() {
                            kept_back = Some((text, payload));
                            continue;
                        }
                        write(&mut out, text, &payload)?;
                        if let Some((text, payload)) = kept_back.take() {
                            write(&mut out, text, &payload)?;
                        }
                        if self.faults.strikes(Fault::DoubleMessage) {
                            write(&mut out, text, &payload)?;
                        }
                    }
                    Event::Close(_) => bail!("closed"),
                    Event::Pong(_) => {}
                }
            }
            self.stream.write_all(&out)?;
            self.fill()?;
            data = std::mem::take(&mut self.input);
        }
    }

    fn clock(&mut self, endpoint: &mut Endpoint, interval: Duration) -> Result<()> {
        let start = Instant::now();
        for n in 1u32.. {
            let due = start + interval * n;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if self.faults.strikes(Fault::SkipTick) {
                continue;
            }
            let mut out = Vec::new();
            let text = format!("{{\"n\":{n}}}");
            endpoint
                .write_message(&mut out, true, text.as_bytes(), false, &[], || None)
                .map_err(anyhow::Error::msg)?;
            self.stream.write_all(&out)?;
        }
        Ok(())
    }
}
