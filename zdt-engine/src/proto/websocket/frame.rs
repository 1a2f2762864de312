//! Frames (RFC 6455 §5.2): reading a client's frame header, writing our own.
//!
//! Must not know: messages, compression, UTF-8.

use super::Error;

/// Largest payload of a control frame (RFC 6455 §5.5).
pub(super) const MAX_CONTROL_BYTES: usize = 125;

pub(super) const CONTINUATION: u8 = 0x0;
pub(super) const TEXT: u8 = 0x1;
pub(super) const BINARY: u8 = 0x2;
pub(super) const CLOSE: u8 = 0x8;
pub(super) const PING: u8 = 0x9;
pub(super) const PONG: u8 = 0xa;

/// The final frame of a message.
pub(super) const FIN: u8 = 0x80;
/// Compressed message (RFC 7692 §6).
pub(super) const RSV1: u8 = 0x40;
const MASKED: u8 = 0x80;

/// A complete header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub fin: bool,
    pub rsv1: bool,
    pub opcode: u8,
    pub mask: [u8; 4],
    pub header_bytes: usize,
    pub payload_bytes: u64,
}

impl Header {
    #[inline]
    pub(super) fn is_control(&self) -> bool {
        self.opcode & 0x8 != 0
    }
}

/// Reads a client's frame header; `None` if not all of it has arrived.
#[inline]
pub(super) fn parse(bytes: &[u8]) -> Result<Option<Header>, Error> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    let (first, second) = (*first, *second);
    if first & 0x30 != 0 {
        return Err(Error::protocol("reserved bit set"));
    }
    let opcode = first & 0x0f;
    let fin = first & FIN != 0;
    let rsv1 = first & RSV1 != 0;
    let short_length = second & 0x7f;
    match opcode {
        CONTINUATION | TEXT | BINARY => {}
        CLOSE | PING | PONG => {
            if !fin {
                return Err(Error::protocol("fragmented control frame"));
            }
            if rsv1 {
                return Err(Error::protocol("compressed control frame"));
            }
            if usize::from(short_length) > MAX_CONTROL_BYTES {
                return Err(Error::protocol("control frame too long"));
            }
        }
        _ => return Err(Error::protocol("reserved opcode")),
    }
    if second & MASKED == 0 {
        return Err(Error::protocol("frame is not masked"));
    }
    let (payload_bytes, rest, length_bytes) = match short_length {
        126 => {
            let Some((length, rest)) = rest.split_first_chunk::<2>() else { return Ok(None) };
            let length = u16::from_be_bytes(*length);
            if length < 126 {
                return Err(Error::protocol("length is not encoded minimally"));
            }
            (u64::from(length), rest, 2)
        }
        127 => {
            let Some((length, rest)) = rest.split_first_chunk::<8>() else { return Ok(None) };
            let length = u64::from_be_bytes(*length);
            if length >> 63 != 0 {
                return Err(Error::protocol("length has its highest bit set"));
            }
            if length <= u64::from(u16::MAX) {
                return Err(Error::protocol("length is not encoded minimally"));
            }
            (length, rest, 8)
        }
        length => (u64::from(length), rest, 0),
    };
    let Some((mask, _)) = rest.split_first_chunk::<4>() else { return Ok(None) };
    let header_bytes = 2 + length_bytes + 4;
    Ok(Some(Header { fin, rsv1, opcode, mask: *mask, header_bytes, payload_bytes }))
}

/// How many bytes the header at the front of `bytes` has, as far as can be told: 2 of fewer than 2.
pub(super) fn header_bytes(bytes: &[u8]) -> usize {
    match bytes {
        [_, second, ..] => match second & 0x7f {
            126 => 8,
            127 => 14,
            _ => 6,
        },
        _ => 2,
    }
}

/// The header of a server's frame: its bytes and how many of them count.
#[inline]
pub(super) fn server_header(first: u8, payload_bytes: usize) -> ([u8; 10], usize) {
    let mut header = [0; 10];
    header[0] = first;
    if payload_bytes < 126 {
        header[1] = payload_bytes as u8;
        (header, 2)
    } else if let Ok(length) = u16::try_from(payload_bytes) {
        header[1] = 126;
        header[2..4].copy_from_slice(&length.to_be_bytes());
        (header, 4)
    } else {
        header[1] = 127;
        header[2..10].copy_from_slice(&(payload_bytes as u64).to_be_bytes());
        (header, 10)
    }
}

/// Appends a server's frame: never masked.
#[inline]
pub(super) fn write(out: &mut Vec<u8>, first: u8, payload: &[u8]) {
    out.reserve(payload.len() + 10);
    let (header, header_bytes) = server_header(first, payload.len());
    out.extend_from_slice(&header[..header_bytes]);
    out.extend_from_slice(payload);
}

/// True for a close code that may be on the wire (RFC 6455 §7.4, and those registered since).
pub(super) fn is_close_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}
