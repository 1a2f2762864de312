//! A client of HTTP/2 that does what it is told, right or wrong: frames out, frames in.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use zdt_engine::proto::hpack::{Decoder, Fields, Limits};
use zdt_engine::proto::http2::PREFACE;

use super::client::connect;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
pub const WITH_PRIORITY: u8 = 0x20;

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of RST_STREAM or GOAWAY.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().expect("4 bytes"))
    }

    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// The bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A header block of literals without indexing.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            match text.len() {
                length @ 0..127 => bytes.push(length as u8),
                length => {
                    bytes.push(127);
                    let mut rest = length - 127;
                    while rest >= 128 {
                        bytes.push(0x80 | (rest & 0x7f) as u8);
                        rest >>= 7;
                    }
                    bytes.push(rest as u8);
                }
            }
            bytes.extend_from_slice(text.as_bytes());
        }
    }
    bytes
}

/// The pseudo-header fields of a request, then others.
pub fn request<'a>(
    method: &'a str,
    path: &'a str,
    more: &[(&'a str, &'a str)],
) -> Vec<(&'a str, &'a str)> {
    let mut fields =
        vec![(":method", method), (":scheme", "http"), (":path", path), (":authority", "zdt.test")];
    fields.extend_from_slice(more);
    fields
}

/// The fields of an extended CONNECT (RFC 8441).
pub fn websocket_at(path: &str) -> Vec<u8> {
    let more = [("sec-websocket-version", "13"), ("sec-websocket-protocol", "chat")];
    let mut bytes = block(&[(":protocol", "websocket")]);
    bytes.extend(block(&request("CONNECT", path, &more)));
    bytes
}

/// The preface and an empty SETTINGS.
pub fn hello() -> Vec<u8> {
    [&PREFACE[..], &frame(SETTINGS, 0, 0, &[])].concat()
}

/// One connection, over TCP or whatever lies between.
pub struct Http2Client<S = TcpStream> {
    pub stream: S,
    buffer: Vec<u8>,
    decoder: Decoder,
}

impl Http2Client {
    /// Connects and says nothing.
    #[track_caller]
    pub fn silent(address: SocketAddr) -> Self {
        Self::over(connect(address))
    }

    /// Connects, exchanges settings, acknowledges the server's.
    #[track_caller]
    pub fn greet(address: SocketAddr) -> Self {
        Self::greet_with(address, &[])
    }

    /// The same with settings of its own.
    #[track_caller]
    pub fn greet_with(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let mut client = Self::silent(address);
        client.exchange_settings(settings);
        client
    }
}

impl<S: Read + Write> Http2Client<S> {
    /// On a connection that is there; says nothing.
    pub fn over(stream: S) -> Self {
        Self { stream, buffer: Vec::new(), decoder: Decoder::new() }
    }

    /// Sends the preface, exchanges settings, acknowledges the server's.
    #[track_caller]
    pub fn exchange_settings(&mut self, settings: &[(u16, u32)]) {
        let mut payload = Vec::new();
        for (id, value) in settings {
            payload.extend_from_slice(&id.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        self.write(&[&PREFACE[..], &frame(SETTINGS, 0, 0, &payload)].concat());
        let is_acknowledged = |frame: &Frame| frame.kind == SETTINGS && frame.has(ACK);
        self.read_until(is_acknowledged).expect("the server greets");
        self.send(SETTINGS, ACK, 0, &[]);
    }

    /// Sends bytes; a server that has closed already is the reader's business.
    pub fn write(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.write(&frame(kind, flags, stream, payload));
    }

    /// A request without a body.
    pub fn get(&mut self, stream: u32, path: &str) {
        let block = block(&request("GET", path, &[]));
        self.send(HEADERS, END_STREAM | END_HEADERS, stream, &block);
    }

    /// The next frame; `None` at the end of the connection, also a sudden one.
    #[track_caller]
    pub fn read(&mut self) -> Option<Frame> {
        // A TLS client may find out when it wants to write.
        let ends = [ErrorKind::ConnectionReset, ErrorKind::UnexpectedEof, ErrorKind::BrokenPipe];
        match self.try_read() {
            Ok(frame) => frame,
            Err(error) if ends.contains(&error.kind()) => None,
            Err(error) => panic!("no frame: {error}"),
        }
    }

    /// The next frame; `None` at an end in good order, between two frames.
    pub fn try_read(&mut self) -> std::io::Result<Option<Frame>> {
        loop {
            if let Some(length) = self.buffer.get(..9).map(|head| {
                usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])
            }) && self.buffer.len() >= 9 + length
            {
                let rest = self.buffer.split_off(9 + length);
                let bytes = std::mem::replace(&mut self.buffer, rest);
                let stream = u32::from_be_bytes(bytes[5..9].try_into().expect("4 bytes"));
                return Ok(Some(Frame {
                    kind: bytes[3],
                    flags: bytes[4],
                    stream,
                    payload: bytes[9..].to_vec(),
                }));
            }
            let mut chunk = [0; 16 << 10];
            match self.stream.read(&mut chunk) {
                Ok(0) if self.buffer.is_empty() => return Ok(None),
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
                // With a time-out a read is not begun again by the kernel (signal(7)).
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads until a frame is the one; `None` if the connection ends before.
    #[track_caller]
    pub fn read_until(&mut self, is_it: impl Fn(&Frame) -> bool) -> Option<Frame> {
        loop {
            let frame = self.read()?;
            if is_it(&frame) {
                return Some(frame);
            }
        }
    }

    /// The status and body of the response on a stream; frames of other streams are passed over.
    #[track_caller]
    pub fn response(&mut self, stream: u32) -> (u16, Vec<u8>) {
        let (mut status, mut body) = (0, Vec::new());
        loop {
            let frame = self.read().expect("the connection has ended before the response");
            if frame.kind == HEADERS {
                // Every block must be decoded, whosever it is.
                let fields = self.decode(&frame.payload);
                if frame.stream == stream {
                    status = fields[0].1.parse().expect("a status");
                }
            }
            if frame.stream != stream {
                continue;
            }
            match frame.kind {
                DATA => body.extend_from_slice(&frame.payload),
                RST_STREAM => panic!("stream {stream} was reset with code {}", frame.code()),
                _ => {}
            }
            if matches!(frame.kind, HEADERS | DATA) && frame.has(END_STREAM) {
                return (status, body);
            }
        }
    }

    /// The fields of a header block.
    #[track_caller]
    pub fn decode(&mut self, block: &[u8]) -> Vec<(String, String)> {
        let mut fields = Fields::default();
        let limits = Limits { max_list_bytes: 1 << 20, max_count: 1_000 };
        self.decoder.decode(block, &limits, &mut fields).expect("a header block");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        fields.iter().map(|(name, value)| (text(name), text(value))).collect()
    }

    /// A ping that comes back: everything before it has been dealt with.
    #[track_caller]
    pub fn ping(&mut self) {
        self.send(PING, 0, 0, b"h2client");
        self.read_until(|frame| frame.kind == PING && frame.has(ACK)).expect("a pong");
    }
}

impl Http2Client<TcpStream> {
    /// The next frame, if it has come already or if it is to be waited for.
    #[track_caller]
    pub fn read_now(&mut self, wait: bool) -> Option<Frame> {
        if !wait && self.buffer.len() < 9 {
            let mut byte = [0];
            self.stream.set_nonblocking(true).expect("nonblocking");
            let there = self.stream.peek(&mut byte);
            self.stream.set_nonblocking(false).expect("blocking");
            if matches!(&there, Err(error) if error.kind() == ErrorKind::WouldBlock) {
                return None;
            }
        }
        Some(self.read().expect("the connection lives"))
    }
}
