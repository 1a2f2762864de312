//! The body of a request: lengths, chunks, trailers (RFC 9112 §6 and §7).
//!
//! Must not know: heads, responses.

use super::head::{ends_line, parse_field};
use super::syntax;
use super::{Error, Limits};

/// Longest line with a chunk size, without its CRLF. Real ones have 1 to 8 bytes.
const MAX_CHUNK_LINE_BYTES: usize = 256;

/// All chunk extensions of one body together. They mean nothing to us; a client that sends more of
/// them is out for our time.
const MAX_EXTENSION_BYTES: u32 = 16 << 10;

/// Where a chunked body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunked {
    /// Before the line with the size.
    Size,
    /// Inside the data.
    Data { remaining: u64 },
    /// Between the data and the CRLF that ends the chunk.
    DataEnd,
    /// After the last chunk.
    Trailers(Trailers),
}

/// How much of the trailer section has been seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Trailers {
    /// Consumed so far.
    pub bytes: u32,
    /// Lines consumed so far.
    pub lines: u16,
    /// Bytes of the incomplete line that need not be looked at again.
    pub scanned: u32,
}

/// What to do next with the input of a chunked body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ChunkStep {
    /// More bytes are needed.
    Incomplete,
    /// Drop that many bytes and look again.
    Skip(usize),
    /// That many bytes are data.
    Data(usize),
    /// Drop that many bytes: the body, trailers included, is complete.
    End(usize),
}

/// What a chunked body has used of its allowances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Used {
    /// Data announced so far.
    pub data_bytes: u64,
    /// Chunk extensions so far.
    pub extension_bytes: u32,
}

impl Chunked {
    /// Decides about the front of `input`, which must not be empty.
    pub(super) fn step(
        &mut self,
        input: &[u8],
        used: &mut Used,
        limits: &Limits,
    ) -> Result<ChunkStep, Error> {
        match self {
            Chunked::Size => {
                let Some(line) = chunk_line(input)? else { return Ok(ChunkStep::Incomplete) };
                let (size, extension_bytes) = parse_chunk_line(line)?;
                used.extension_bytes = used.extension_bytes.saturating_add(extension_bytes);
                if used.extension_bytes > MAX_EXTENSION_BYTES {
                    return Err(Error::ChunkExtensionsTooLong);
                }
                used.data_bytes = used.data_bytes.saturating_add(size);
                if used.data_bytes > limits.max_body_bytes || used.data_bytes == u64::MAX {
                    return Err(Error::BodyTooLarge);
                }
                let skip = line.len() + 2;
                *self = match size {
                    0 => Chunked::Trailers(Trailers::default()),
                    remaining => Chunked::Data { remaining },
                };
                Ok(ChunkStep::Skip(skip))
            }
            Chunked::Data { remaining } => {
                let count = (input.len() as u64).min(*remaining);
                *remaining -= count;
                if *remaining == 0 {
                    *self = Chunked::DataEnd;
                }
                // Fits: it is at most the length of a slice.
                Ok(ChunkStep::Data(count as usize))
            }
            Chunked::DataEnd => match input {
                [b'\r', b'\n', ..] => {
                    *self = Chunked::Size;
                    Ok(ChunkStep::Skip(2))
                }
                [b'\r'] => Ok(ChunkStep::Incomplete),
                _ => Err(Error::MalformedChunk),
            },
            Chunked::Trailers(trailers) => trailers.step(input, limits),
        }
    }
}

/// The line with the chunk size, without its CRLF; `None` while it is not complete.
fn chunk_line(input: &[u8]) -> Result<Option<&[u8]>, Error> {
    if !input[0].is_ascii_hexdigit() {
        return Err(Error::MalformedChunk);
    }
    let window = &input[..input.len().min(MAX_CHUNK_LINE_BYTES + 2)];
    let end = syntax::find_control(window, 0);
    if end > MAX_CHUNK_LINE_BYTES {
        return Err(Error::ChunkExtensionsTooLong);
    }
    Ok(ends_line(window, end)?.then(|| &window[..end]))
}

/// `chunk-size [ chunk-ext ]`: the size and the bytes that the extensions take (RFC 9112 §7.1).
fn parse_chunk_line(line: &[u8]) -> Result<(u64, u32), Error> {
    let digits = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
    // 16 digits are 64 bits; no honest sender pads with zeros beyond that.
    if digits == 0 || digits > 16 {
        return Err(Error::MalformedChunk);
    }
    let size = line[..digits].iter().fold(0u64, |size, &digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            _ => (digit | 0x20) - b'a' + 10,
        };
        size << 4 | u64::from(value)
    });
    let extensions = &line[digits..];
    if !are_extensions(extensions) {
        return Err(Error::MalformedChunk);
    }
    // At most MAX_CHUNK_LINE_BYTES.
    Ok((size, extensions.len() as u32))
}

/// `*( BWS ";" BWS chunk-ext-name [ BWS "=" BWS chunk-ext-val ] )` (RFC 9112 §7.1.1).
fn are_extensions(mut rest: &[u8]) -> bool {
    let skip_space = |bytes: &mut &[u8]| {
        while let [b' ' | b'\t', tail @ ..] = *bytes {
            *bytes = tail;
        }
    };
    let skip_token = |bytes: &mut &[u8]| {
        let length = bytes.iter().position(|&byte| !syntax::is_token_byte(byte));
        let length = length.unwrap_or(bytes.len());
        *bytes = &bytes[length..];
        length > 0
    };
    while !rest.is_empty() {
        skip_space(&mut rest);
        let Some(tail) = rest.strip_prefix(b";") else { return false };
        rest = tail;
        skip_space(&mut rest);
        if !skip_token(&mut rest) {
            return false;
        }
        let after_name = rest;
        skip_space(&mut rest);
        let Some(tail) = rest.strip_prefix(b"=") else {
            rest = after_name;
            continue;
        };
        rest = tail;
        skip_space(&mut rest);
        let valid = match rest.strip_prefix(b"\"") {
            Some(tail) => {
                rest = tail;
                skip_quoted(&mut rest)
            }
            None => skip_token(&mut rest),
        };
        if !valid {
            return false;
        }
    }
    true
}

/// The rest of a quoted-string after its opening quote (RFC 9110 §5.6.4).
fn skip_quoted(rest: &mut &[u8]) -> bool {
    loop {
        *rest = match *rest {
            [b'"', tail @ ..] => {
                *rest = tail;
                return true;
            }
            [b'\\', _, tail @ ..] => tail,
            [b'\\'] | [] => return false,
            [_, tail @ ..] => tail,
        };
    }
}

impl Trailers {
    /// One line of `trailer-section CRLF` (RFC 9112 §7.1.2): checked, bounded, dropped.
    fn step(&mut self, input: &[u8], limits: &Limits) -> Result<ChunkStep, Error> {
        let end = syntax::find_control(input, self.scanned as usize);
        let allowed = limits.max_head_bytes.saturating_sub(self.bytes).saturating_sub(2) as usize;
        if end > allowed {
            return Err(Error::HeadTooLarge);
        }
        if !ends_line(input, end)? {
            // Fits: at most `max_head_bytes`.
            self.scanned = end as u32;
            return Ok(ChunkStep::Incomplete);
        }
        let line = &input[..end];
        if line.is_empty() {
            return Ok(ChunkStep::End(2));
        }
        let (name, _) = parse_field(line)?;
        let is = |forbidden: &str| name.eq_ignore_ascii_case(forbidden.as_bytes());
        if is("content-length") || is("transfer-encoding") || is("host") {
            return Err(Error::ForbiddenTrailer);
        }
        if self.lines >= limits.max_header_count {
            return Err(Error::TooManyFields);
        }
        self.lines += 1;
        self.bytes = self.bytes.saturating_add(end as u32 + 2);
        self.scanned = 0;
        Ok(ChunkStep::Skip(end + 2))
    }
}
