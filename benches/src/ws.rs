//! WebSocket framing of the generator's own: RFC 6455 with permessage-deflate (RFC 7692).
//!
//! Strict about what it receives, since it judges a server; able to send what servers find hard
//! (fragments, empty frames, pings in between). The roles differ only in masking, so that the test
//! server uses it as well.
//!
//! Must not know: sockets, what messages mean.

use hyper::http::Request;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Continuation frame.
pub const CONTINUATION: u8 = 0;
/// Text message.
pub const TEXT: u8 = 1;
/// Binary message.
pub const BINARY: u8 = 2;
/// Close frame.
pub const CLOSE: u8 = 8;
/// Ping frame.
pub const PING: u8 = 9;
/// Pong frame.
pub const PONG: u8 = 10;

/// `Sec-WebSocket-Key` of every handshake: the example of RFC 6455 §1.3, so that no hash is needed.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The answer to it.
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

const MAX_MESSAGE_BYTES: usize = 16 << 20;
const SYNC_TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// What was negotiated for compression.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeflateParameters {
    /// The client starts afresh with each message.
    pub client_no_context_takeover: bool,
    /// The server does.
    pub server_no_context_takeover: bool,
}

impl DeflateParameters {
    /// As an offer, or as an answer.
    pub fn header_value(self) -> String {
        let mut value = "permessage-deflate".to_owned();
        if self.client_no_context_takeover {
            value += "; client_no_context_takeover";
        }
        if self.server_no_context_takeover {
            value += "; server_no_context_takeover";
        }
        value
    }

    /// From a `Sec-WebSocket-Extensions` value of the server.
    pub fn parse(value: &str) -> Result<Self, String> {
        let mut parts = value.split(';').map(str::trim);
        if parts.next() != Some("permessage-deflate") {
            return Err(format!("unknown extension {value:?}"));
        }
        let mut parameters = Self::default();
        for part in parts {
            match part.split('=').next().unwrap_or_default().trim() {
                "client_no_context_takeover" => parameters.client_no_context_takeover = true,
                "server_no_context_takeover" => parameters.server_no_context_takeover = true,
                // Smaller windows of the server are fine for a 15-bit inflater.
                "server_max_window_bits" => {}
                _ => return Err(format!("parameter {part:?} was not offered")),
            }
        }
        Ok(parameters)
    }
}

struct Deflate {
    compress: Compress,
    decompress: Decompress,
    reset_compress: bool,
    reset_decompress: bool,
}

impl Deflate {
    fn new(parameters: DeflateParameters, client: bool) -> Self {
        let DeflateParameters { client_no_context_takeover: of_client, .. } = parameters;
        let of_server = parameters.server_no_context_takeover;
        let (own, peer) = if client { (of_client, of_server) } else { (of_server, of_client) };
        Self {
            compress: Compress::new(Compression::fast(), false),
            decompress: Decompress::new(false),
            reset_compress: own,
            reset_decompress: peer,
        }
    }

    /// RFC 7692 §7.2.1.
    fn deflate(&mut self, payload: &[u8]) -> Result<Vec<u8>, String> {
        let mut out = Vec::with_capacity(payload.len() / 2 + 64);
        let start = self.compress.total_in();
        loop {
            let consumed = (self.compress.total_in() - start) as usize;
            out.reserve(256);
            self.compress
                .compress_vec(&payload[consumed..], &mut out, FlushCompress::Sync)
                .map_err(|error| error.to_string())?;
            let consumed = (self.compress.total_in() - start) as usize;
            if consumed == payload.len() && out.len() < out.capacity() {
                break;
            }
        }
        if out.ends_with(&SYNC_TAIL) {
            out.truncate(out.len() - 4);
        }
        if out.is_empty() {
            out.push(0);
        }
        if self.reset_compress {
            self.compress.reset();
        }
        Ok(out)
    }

    /// RFC 7692 §7.2.2.
    fn inflate(&mut self, payload: &[u8]) -> Result<Vec<u8>, String> {
        let mut out = Vec::with_capacity(payload.len() * 3 + 64);
        for part in [payload, &SYNC_TAIL] {
            let start = self.decompress.total_in();
            loop {
                let consumed = (self.decompress.total_in() - start) as usize;
                let status = self
                    .decompress
                    .decompress_vec(&part[consumed..], &mut out, FlushDecompress::Sync)
                    .map_err(|error| format!("inflate: {error}"))?;
                let consumed = (self.decompress.total_in() - start) as usize;
                if status == Status::StreamEnd {
                    self.decompress.reset(false);
                    break;
                }
                if consumed == part.len() && out.len() < out.capacity() {
                    break;
                }
                if out.len() > MAX_MESSAGE_BYTES {
                    return Err("inflated message too long".to_owned());
                }
                out.reserve(out.len().max(4096));
            }
        }
        if self.reset_decompress {
            self.decompress.reset(false);
        }
        Ok(out)
    }
}

/// Something that has arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A whole message.
    Message {
        /// Text or binary.
        text: bool,
        /// Its contents.
        payload: Vec<u8>,
    },
    /// A ping.
    Ping(Vec<u8>),
    /// A pong.
    Pong(Vec<u8>),
    /// A close frame with its code, if it has one.
    Close(Option<u16>),
}

/// One end of a connection after the handshake.
pub struct Endpoint {
    client: bool,
    deflate: Option<Box<Deflate>>,
    input: Vec<u8>,
    message: Vec<u8>,
    opcode: Option<(u8, bool)>,
    mask: u32,
}

impl Endpoint {
    /// Either role, with what was negotiated.
    pub fn new(client: bool, deflate: Option<DeflateParameters>) -> Self {
        Self {
            client,
            deflate: deflate.map(|parameters| Box::new(Deflate::new(parameters, client))),
            input: Vec::new(),
            message: Vec::new(),
            opcode: None,
            mask: 0x9d3b_0c61,
        }
    }

    /// Appends one frame. `first_bits` are FIN and RSV1 (0x80, 0x40).
    pub fn write_frame(&mut self, out: &mut Vec<u8>, first_bits: u8, opcode: u8, payload: &[u8]) {
        out.push(first_bits | opcode);
        let mask_bit = if self.client { 0x80 } else { 0 };
        match payload.len() {
            length @ 0..=125 => out.push(mask_bit | length as u8),
            length @ 126..=0xffff => {
                out.push(mask_bit | 126);
                out.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                out.push(mask_bit | 127);
                out.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        if !self.client {
            out.extend_from_slice(payload);
            return;
        }
        self.mask = self.mask.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f);
        let mask = self.mask.to_be_bytes();
        out.extend_from_slice(&mask);
        out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    }

    /// Appends a message, in one frame, or cut at `cuts` (fractions of its bytes as sent, of 65536,
    /// ascending) with a ping, whose payload `ping` gives, before each later piece.
    pub fn write_message(
        &mut self,
        out: &mut Vec<u8>,
        text: bool,
        payload: &[u8],
        compress: bool,
        cuts: &[u16],
        mut ping: impl FnMut() -> Option<Vec<u8>>,
    ) -> Result<(), String> {
        let compressed = match &mut self.deflate {
            Some(deflate) if compress => Some(deflate.deflate(payload)?),
            _ => None,
        };
        let rsv1 = if compressed.is_some() { 0x40 } else { 0 };
        let bytes = compressed.as_deref().unwrap_or(payload);
        let mut start = 0;
        let mut opcode = if text { TEXT } else { BINARY };
        let mut bits = rsv1;
        for &cut in cuts {
            let end = (bytes.len() * usize::from(cut) / 65536).max(start);
            self.write_frame(out, bits, opcode, &bytes[start..end]);
            (start, opcode, bits) = (end, CONTINUATION, 0);
            if let Some(payload) = ping() {
                self.write_frame(out, 0x80, PING, &payload);
            }
        }
        self.write_frame(out, bits | 0x80, opcode, &bytes[start..]);
        Ok(())
    }

    /// Takes received bytes and appends what is complete to `events`.
    pub fn receive(&mut self, data: &[u8], events: &mut Vec<Event>) -> Result<(), String> {
        let mut input = std::mem::take(&mut self.input);
        let mut at = 0;
        let all = if input.is_empty() {
            data
        } else {
            input.extend_from_slice(data);
            &input[..]
        };
        while let Some((frame, length)) = parse_frame(&all[at..], !self.client)? {
            at += length;
            self.on_frame(frame, events)?;
        }
        let rest = all[at..].to_vec();
        self.input = rest;
        Ok(())
    }

    fn on_frame(&mut self, frame: Frame<'_>, events: &mut Vec<Event>) -> Result<(), String> {
        let mut payload = frame.payload.to_vec();
        if let Some(mask) = frame.mask {
            payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        }
        if frame.opcode >= CLOSE {
            if !frame.fin || frame.rsv1 || payload.len() > 125 {
                return Err("fragmented, compressed or long control frame".to_owned());
            }
            events.push(match frame.opcode {
                PING => Event::Ping(payload),
                PONG => Event::Pong(payload),
                CLOSE => Event::Close(
                    payload.get(..2).map(|code| u16::from_be_bytes([code[0], code[1]])),
                ),
                opcode => return Err(format!("opcode {opcode}")),
            });
            return Ok(());
        }
        match (frame.opcode, self.opcode) {
            (CONTINUATION, Some(_)) if !frame.rsv1 => {}
            (TEXT | BINARY, None) => self.opcode = Some((frame.opcode, frame.rsv1)),
            (opcode, state) => return Err(format!("opcode {opcode} within {state:?}")),
        }
        if self.message.len() + payload.len() > MAX_MESSAGE_BYTES {
            return Err("message too long".to_owned());
        }
        if self.message.is_empty() {
            self.message = payload;
        } else {
            self.message.extend_from_slice(&payload);
        }
        if frame.fin
            && let Some((opcode, compressed)) = self.opcode.take()
        {
            let mut payload = std::mem::take(&mut self.message);
            if compressed {
                let deflate = self.deflate.as_mut().ok_or("compressed without negotiation")?;
                payload = deflate.inflate(&payload)?;
            }
            let text = opcode == TEXT;
            if text && std::str::from_utf8(&payload).is_err() {
                return Err("text that is not UTF-8".to_owned());
            }
            events.push(Event::Message { text, payload });
        }
        Ok(())
    }
}

struct Frame<'a> {
    fin: bool,
    rsv1: bool,
    opcode: u8,
    mask: Option<[u8; 4]>,
    payload: &'a [u8],
}

/// RFC 6455 §5.2. `None` if it is not all there.
fn parse_frame(input: &[u8], masked: bool) -> Result<Option<(Frame<'_>, usize)>, String> {
    let [first, second, ..] = *input else { return Ok(None) };
    if first & 0x30 != 0 {
        return Err("reserved bits".to_owned());
    }
    if (second & 0x80 != 0) != masked {
        return Err("wrong masking".to_owned());
    }
    let (length, mut at) = match second & 0x7f {
        126 => {
            let Some(bytes) = input.get(2..4) else { return Ok(None) };
            (u64::from(u16::from_be_bytes([bytes[0], bytes[1]])), 4)
        }
        127 => {
            let Some(bytes) = input.get(2..10) else { return Ok(None) };
            (bytes.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte)), 10)
        }
        length => (u64::from(length), 2),
    };
    if length > MAX_MESSAGE_BYTES as u64 {
        return Err(format!("frame of {length} bytes"));
    }
    let mask = if masked {
        let Some(bytes) = input.get(at..at + 4) else { return Ok(None) };
        at += 4;
        Some([bytes[0], bytes[1], bytes[2], bytes[3]])
    } else {
        None
    };
    let end = at + length as usize;
    let Some(payload) = input.get(at..end) else { return Ok(None) };
    let (fin, rsv1, opcode) = (first & 0x80 != 0, first & 0x40 != 0, first & 0x0f);
    Ok(Some((Frame { fin, rsv1, opcode, mask, payload }, end)))
}

/// The client's handshake.
pub fn handshake_request(host: &str, target: &str, offer: Option<DeflateParameters>) -> String {
    let extensions = offer.map_or(String::new(), |offer| {
        format!("Sec-WebSocket-Extensions: {}\r\n", offer.header_value())
    });
    format!(
        "GET {target} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{extensions}\r\n"
    )
}

/// The client's handshake on a stream of HTTP/2 (RFC 8441 §5).
pub fn http2_request(
    scheme: &str,
    host: &str,
    target: &str,
    offer: Option<DeflateParameters>,
) -> Result<Request<()>, String> {
    let mut request = Request::builder()
        .method("CONNECT")
        .uri(format!("{scheme}://{host}{target}"))
        .extension(h2::ext::Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13");
    if let Some(offer) = offer {
        request = request.header("sec-websocket-extensions", offer.header_value());
    }
    request.body(()).map_err(|error| error.to_string())
}

/// Checks the server's answer, of which `head` is all up to the empty line.
pub fn check_handshake(head: &str) -> Result<Option<DeflateParameters>, String> {
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 101") {
        return Err(format!("handshake refused: {status}"));
    }
    let (mut accepted, mut deflate) = (false, None);
    for line in lines {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.trim();
        if name.eq_ignore_ascii_case("sec-websocket-accept") {
            accepted = value == ACCEPT;
        } else if name.eq_ignore_ascii_case("sec-websocket-extensions") {
            deflate = Some(DeflateParameters::parse(value)?);
        }
    }
    if accepted { Ok(deflate) } else { Err("wrong Sec-WebSocket-Accept".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::Plan;

    #[test]
    fn messages_survive_any_cut() {
        for deflate in [
            None,
            Some(DeflateParameters::default()),
            Some(DeflateParameters {
                client_no_context_takeover: true,
                server_no_context_takeover: true,
            }),
        ] {
            for (mut from, mut to) in [
                (Endpoint::new(true, deflate), Endpoint::new(false, deflate)),
                (Endpoint::new(false, deflate), Endpoint::new(true, deflate)),
            ] {
                let mut wire = Vec::new();
                let mut expected = Vec::new();
                for (sequence, length) in
                    [0, 1, 125, 126, 5000, 65535, 65536].into_iter().enumerate()
                {
                    let text = sequence % 2 == 0;
                    let plan = Plan { connection: 1, sequence: sequence as u32, length, text };
                    let payload = plan.bytes();
                    let cuts = [0, 20000, 20001, 65535];
                    let cuts = &cuts[..sequence % 5];
                    from.write_message(&mut wire, text, &payload, sequence % 3 != 1, cuts, || {
                        Some(vec![sequence as u8])
                    })
                    .unwrap();
                    expected.extend(cuts.iter().map(|_| Event::Ping(vec![sequence as u8])));
                    expected.push(Event::Message { text, payload });
                }
                let mut events = Vec::new();
                for piece in wire.chunks(911) {
                    to.receive(piece, &mut events).unwrap();
                }
                assert!(events == expected, "{deflate:?}");
            }
        }
    }

    #[test]
    fn bad_frames_are_errors() {
        let cases: [&[u8]; 7] = [
            &[0x91, 0],                              // reserved bit
            &[0x81, 0x80, 0, 0, 0, 0],               // masked
            &[0x80, 0],                              // continuation of nothing
            &[0x09, 0],                              // fragmented ping
            &[0x81, 1, 0xff],                        // not UTF-8
            &[0xc1, 1, 0],                           // compressed without negotiation
            &[0x82, 127, 1, 0, 0, 0, 0, 0, 0, 0, 0], // huge
        ];
        for case in cases {
            let mut client = Endpoint::new(true, None);
            assert!(client.receive(case, &mut Vec::new()).is_err(), "{case:x?}");
        }
    }

    #[test]
    fn the_handshake_is_checked() {
        let answer = |accept: &str, more: &str| {
            format!("HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {accept}\r\n{more}")
        };
        assert_eq!(check_handshake(&answer(ACCEPT, "")), Ok(None));
        assert!(check_handshake(&answer("x", "")).is_err());
        assert!(check_handshake("HTTP/1.1 200 OK\r\n").is_err());
        let deflate = "sec-websocket-extensions: permessage-deflate; server_no_context_takeover";
        let parameters = check_handshake(&answer(ACCEPT, deflate)).unwrap().unwrap();
        assert!(parameters.server_no_context_takeover && !parameters.client_no_context_takeover);
        assert!(check_handshake(&answer(ACCEPT, "Sec-WebSocket-Extensions: x")).is_err());
    }
}
