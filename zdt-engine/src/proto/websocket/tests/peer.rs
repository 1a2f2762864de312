//! The other end, for tests: a client's frames and compression, independent of the machine's code.

use zlib_rs::{DeflateConfig, DeflateFlush, Inflate, InflateFlush};

use crate::proto::websocket::{DeflateParams, Event, Input, Limits, MessageKind, WebSocket};

/// What a test compares: an event without its borrow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    Message(MessageKind, Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, Vec<u8>),
    Error(u16),
}

impl Seen {
    pub(super) fn of(event: &Event<'_>) -> Self {
        match event {
            Event::Message { kind, payload } => Seen::Message(*kind, payload.to_vec()),
            Event::Ping(payload) => Seen::Ping(payload.to_vec()),
            Event::Pong(payload) => Seen::Pong(payload.to_vec()),
            Event::Close { code, reason } => Seen::Close(*code, reason.to_vec()),
        }
    }
}

pub(super) const LIMITS: Limits = Limits { max_message_bytes: 1 << 20 };

/// A machine with the input its caller keeps for it.
pub(super) struct Fed {
    pub machine: WebSocket,
    pub leftover: Vec<u8>,
    pub seen: Vec<Seen>,
}

impl Fed {
    pub(super) fn new(params: Option<DeflateParams>) -> Self {
        Self { machine: WebSocket::new(params), leftover: Vec::new(), seen: Vec::new() }
    }

    pub(super) fn feed(&mut self, bytes: &[u8], limits: &Limits) {
        self.leftover.extend_from_slice(bytes);
        let mut buffer = std::mem::take(&mut self.leftover);
        let mut input = Input::new(&mut buffer);
        loop {
            match self.machine.next_event(&mut input, limits) {
                Ok(Some(event)) => self.seen.push(Seen::of(&event)),
                Ok(None) if self.machine.is_sliced(&input) => {}
                Ok(None) => break,
                Err(error) => {
                    self.seen.push(Seen::Error(error.close_code));
                    break;
                }
            }
        }
        self.leftover = input.peek().to_vec();
        // Only an incomplete header or control frame may stay, and it is told what is missing.
        assert!(self.leftover.len() < 131, "{} bytes left", self.leftover.len());
        assert!(self.leftover.is_empty() || self.machine.wanted(&self.leftover) > 0);
    }
}

/// All events of `bytes`, arriving at once.
pub(super) fn events_of(bytes: &[u8], params: Option<DeflateParams>) -> Vec<Seen> {
    let mut fed = Fed::new(params);
    fed.feed(bytes, &LIMITS);
    fed.seen
}

/// A client's frame; `first` is the first byte.
pub(super) fn frame(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..126 => bytes.push(0x80 | length as u8),
        length @ 126..65536 => {
            bytes.push(0xfe);
            bytes.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            bytes.push(0xff);
            bytes.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(&mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

/// A client's permessage-deflate.
pub(super) struct Compressor {
    deflate: zlib_rs::Deflate,
    no_context_takeover: bool,
}

impl Compressor {
    pub(super) fn new(params: DeflateParams) -> Self {
        let window_bits = -i32::from(params.client_window_bits.max(9));
        Self {
            deflate: zlib_rs::Deflate::new_with_config(DeflateConfig {
                window_bits,
                ..DeflateConfig::new(6)
            }),
            no_context_takeover: params.client_no_context_takeover,
        }
    }

    /// With a window that earlier messages have left.
    pub(super) fn with_window(params: DeflateParams, window: &[u8]) -> Self {
        let mut compressor = Self::new(params);
        compressor.deflate.set_dictionary(window).expect("dictionary");
        compressor
    }

    /// Compresses a piece up to a flush; the flush marker stays.
    pub(super) fn piece(&mut self, bytes: &[u8], flush: DeflateFlush) -> Vec<u8> {
        let mut out = vec![0; bytes.len() * 2 + 1024];
        let before = self.deflate.total_out();
        let read = self.deflate.total_in();
        self.deflate.compress(bytes, &mut out, flush).expect("compress");
        assert_eq!(self.deflate.total_in() - read, bytes.len() as u64);
        out.truncate((self.deflate.total_out() - before) as usize);
        out
    }

    /// A whole message, flushed after each of the `pieces`.
    pub(super) fn message(&mut self, pieces: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in pieces {
            out.extend(self.piece(piece, DeflateFlush::SyncFlush));
        }
        assert!(out.ends_with(&[0, 0, 0xff, 0xff]));
        out.truncate(out.len() - 4);
        if self.no_context_takeover {
            self.deflate.reset();
        }
        out
    }

    /// A whole message in a final block (RFC 7692 §7.2.3.4); starts a new stream.
    pub(super) fn final_block_message(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = self.piece(bytes, DeflateFlush::Finish);
        self.deflate.reset();
        out.push(0);
        out
    }
}

/// Reads what a server writes, as a strict client.
pub(super) struct ServerReader {
    inflate: Inflate,
    params: Option<DeflateParams>,
}

impl ServerReader {
    pub(super) fn new(params: Option<DeflateParams>) -> Self {
        Self { inflate: fresh_inflate(params), params }
    }

    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Vec<Seen> {
        let mut seen = Vec::new();
        while let [first, second, rest @ ..] = bytes {
            let (length, rest) = match *second {
                length @ 0..126 => (usize::from(length), rest),
                126 => {
                    let length = u16::from_be_bytes(rest[..2].try_into().expect("2"));
                    assert!(length >= 126);
                    (usize::from(length), &rest[2..])
                }
                127 => {
                    let length = u64::from_be_bytes(rest[..8].try_into().expect("8"));
                    assert!(length > 65535);
                    (length as usize, &rest[8..])
                }
                _ => panic!("a server must not mask"),
            };
            let (payload, behind) = rest.split_at(length);
            bytes = behind;
            let payload = if first & 0x40 != 0 { self.inflate(payload) } else { payload.to_vec() };
            seen.push(match first & !0x40 {
                0x81 => {
                    assert!(std::str::from_utf8(&payload).is_ok());
                    Seen::Message(MessageKind::Text, payload)
                }
                0x82 => Seen::Message(MessageKind::Binary, payload),
                0x89 => Seen::Ping(payload),
                0x8a => Seen::Pong(payload),
                0x88 if payload.is_empty() => Seen::Close(None, payload),
                0x88 => Seen::Close(
                    Some(u16::from_be_bytes([payload[0], payload[1]])),
                    payload[2..].to_vec(),
                ),
                other => panic!("unexpected first byte {other:x}"),
            });
        }
        assert!(bytes.is_empty(), "half a frame");
        seen
    }

    fn inflate(&mut self, payload: &[u8]) -> Vec<u8> {
        let params = self.params.expect("compressed without negotiation");
        let compressed = [payload, &[0, 0, 0xff, 0xff]].concat();
        let mut out = vec![0; 256 << 10];
        let (read, before) = (self.inflate.total_in(), self.inflate.total_out());
        self.inflate.decompress(&compressed, &mut out, InflateFlush::SyncFlush).expect("inflate");
        assert_eq!(self.inflate.total_in() - read, compressed.len() as u64);
        out.truncate((self.inflate.total_out() - before) as usize);
        if params.server_no_context_takeover {
            self.inflate = fresh_inflate(self.params);
        }
        out
    }
}

/// With exactly the window that was negotiated, so that a reference too far back fails.
fn fresh_inflate(params: Option<DeflateParams>) -> Inflate {
    Inflate::new(false, params.map_or(15, |params| params.server_window_bits))
}

pub(super) fn params(
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_window_bits: u8,
    client_window_bits: u8,
) -> DeflateParams {
    DeflateParams {
        server_no_context_takeover,
        client_no_context_takeover,
        server_window_bits,
        client_window_bits,
    }
}
