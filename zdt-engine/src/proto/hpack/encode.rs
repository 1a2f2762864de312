//! From fields to a header block (RFC 7541 §6), without a dynamic table: each field is an index of the
//! static table, or a literal that is not indexed.
//!
//! Literals are plain, not Huffman code: a copy costs less than the bytes that the code would save,
//! and nothing about our side has to be found again by whoever takes the connection over.
//!
//! Must not know: frames, which fields belong into a response.

use super::DEFAULT_TABLE_BYTES;

/// What the peer's decoder has to be told before the next field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoder {
    /// The table size that the peer's decoder assumes.
    pub(super) table_bytes: u32,
    /// It wants to hear of this smaller one (RFC 7541 §4.2).
    pub(super) update: Option<u32>,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// That of a new connection.
    pub fn new() -> Self {
        Self { table_bytes: DEFAULT_TABLE_BYTES, update: None }
    }

    /// The peer's SETTINGS_HEADER_TABLE_SIZE. Nothing is ever put into its table, but if that becomes
    /// smaller, the next block must say that we know.
    pub fn set_peer_limit(&mut self, bytes: u32) {
        if bytes < self.table_bytes {
            self.table_bytes = bytes;
            self.update = Some(bytes);
        }
    }

    /// To be called at the beginning of each block.
    #[inline]
    pub fn begin_block(&mut self, out: &mut Vec<u8>) {
        if let Some(bytes) = self.update.take() {
            integer(out, 0x20, 5, bytes as usize);
        }
    }

    /// For a saved connection: the table size, and whether an update is due.
    pub fn save(&self) -> (u32, bool) {
        (self.table_bytes, self.update.is_some())
    }

    /// Undoes [`Encoder::save`].
    pub fn restore(table_bytes: u32, update_due: bool) -> Self {
        let table_bytes = table_bytes.min(DEFAULT_TABLE_BYTES);
        Self { table_bytes, update: update_due.then_some(table_bytes) }
    }
}

/// Appends the `:status` field.
#[inline]
pub fn status(out: &mut Vec<u8>, status: u16) {
    let index = match status {
        200 => 8,
        204 => 9,
        206 => 10,
        304 => 11,
        400 => 12,
        404 => 13,
        500 => 14,
        _ => {
            let digits =
                [status / 100 % 10, status / 10 % 10, status % 10].map(|digit| b'0' + digit as u8);
            out.extend_from_slice(&[0x08, 3]);
            out.extend_from_slice(&digits);
            return;
        }
    };
    out.push(0x80 | index);
}

/// Appends a field; the name in any case.
#[inline]
pub fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.reserve(name.len() + value.len() + 16);
    // §7.1.3: what an attacker might guess by trying must never be put into a table.
    let is_secret =
        name.eq_ignore_ascii_case("set-cookie") || name.eq_ignore_ascii_case("authorization");
    let first = if is_secret { 0x10 } else { 0x00 };
    match static_name(name) {
        Some(index) => integer(out, first, 4, index),
        None => {
            out.push(first);
            integer(out, 0, 7, name.len());
            let start = out.len();
            out.extend_from_slice(name.as_bytes());
            out[start..].make_ascii_lowercase();
        }
    }
    integer(out, 0, 7, value.len());
    out.extend_from_slice(value);
}

/// Appends `content-length`.
#[inline]
pub fn content_length(out: &mut Vec<u8>, mut length: u64) {
    let mut digits = [0u8; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (length % 10) as u8;
        length /= 10;
        if length == 0 {
            break;
        }
    }
    // Index 28, which has more than 4 bits.
    out.extend_from_slice(&[0x0f, 28 - 15, (digits.len() - start) as u8]);
    out.extend_from_slice(&digits[start..]);
}

/// RFC 7541 §5.1.
#[inline]
fn integer(out: &mut Vec<u8>, first: u8, prefix_bits: u32, value: usize) {
    let most = (1 << prefix_bits) - 1;
    if value < most {
        return out.push(first | value as u8);
    }
    out.push(first | most as u8);
    let mut rest = value - most;
    while rest >= 0x80 {
        out.push(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Names of the static table that responses use.
fn static_name(name: &str) -> Option<usize> {
    let candidates: &[(&str, usize)] = match name.len() {
        3 => &[("age", 21), ("via", 60)],
        4 => &[("date", 33), ("etag", 34), ("link", 45), ("vary", 59)],
        5 => &[("allow", 22)],
        6 => &[("server", 54)],
        7 => &[("expires", 36), ("refresh", 52)],
        8 => &[("location", 46)],
        10 => &[("set-cookie", 55)],
        11 => &[("retry-after", 53)],
        12 => &[("content-type", 31)],
        13 => &[
            ("cache-control", 24),
            ("last-modified", 44),
            ("accept-ranges", 18),
            ("content-range", 30),
        ],
        14 => &[("content-length", 28)],
        16 => &[
            ("content-encoding", 26),
            ("content-language", 27),
            ("www-authenticate", 61),
            ("content-location", 29),
        ],
        19 => &[("content-disposition", 25)],
        25 => &[("strict-transport-security", 56)],
        27 => &[("access-control-allow-origin", 20)],
        _ => &[],
    };
    candidates.iter().find(|(known, _)| name.eq_ignore_ascii_case(known)).map(|(_, index)| *index)
}
