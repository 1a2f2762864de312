//! Contents of test messages: any of them can be computed again from its [`Plan`], so the checker
//! keeps no copies.
//!
//! Must not know: connections, protocols.

use std::sync::OnceLock;

/// Longest payload.
pub const MAX_BYTES: usize = 64 << 10;

/// Bytes at the start of a payload that is long enough, which name it.
pub const NAME_BYTES: usize = 18;

const TABLE_BYTES: usize = 256 << 10;

/// What a message holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Number of its connection.
    pub connection: u32,
    /// Number of the message on it.
    pub sequence: u32,
    /// Bytes, at most [`MAX_BYTES`].
    pub length: u32,
    /// UTF-8 text, else any bytes.
    pub text: bool,
}

/// A step of SplitMix64: good enough to spread numbers.
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn binary_table() -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    TABLE.get_or_init(|| {
        (0..TABLE_BYTES as u64 / 8).flat_map(|i| mix(i ^ 0x5eed).to_le_bytes()).collect()
    })
}

fn text_table() -> &'static str {
    static TABLE: OnceLock<String> = OnceLock::new();
    TABLE.get_or_init(|| {
        // Characters of one to four bytes; words repeat, so that it compresses like prose.
        let words = [
            "zero ",
            "downtime ",
            "größer ",
            "naïve ",
            "κόσμε ",
            "мир ",
            "世界 ",
            "🦀🚀 ",
            "€uro ",
            "a",
            "\n",
        ];
        let mut table = String::with_capacity(TABLE_BYTES + 16);
        let mut state = 1;
        while table.len() < TABLE_BYTES {
            state = mix(state);
            table.push_str(words[(state % words.len() as u64) as usize]);
        }
        table
    })
}

impl Plan {
    fn parts(&self) -> (Vec<u8>, &'static [u8], usize) {
        let length = self.length as usize;
        assert!(length <= MAX_BYTES);
        let name = if length >= NAME_BYTES {
            format!("{:08x}:{:08x} ", self.connection, self.sequence).into_bytes()
        } else {
            Vec::new()
        };
        let wanted = length - name.len();
        let random = mix(u64::from(self.connection) << 32 | u64::from(self.sequence));
        let mut start = random as usize % (TABLE_BYTES - MAX_BYTES - 8);
        if !self.text {
            return (name, &binary_table()[start..start + wanted], 0);
        }
        let table = text_table();
        while !table.is_char_boundary(start) {
            start += 1;
        }
        let mut end = start + wanted;
        while !table.is_char_boundary(end) {
            end -= 1;
        }
        (name, &table.as_bytes()[start..end], wanted - (end - start))
    }

    /// Appends the payload.
    pub fn write(&self, out: &mut Vec<u8>) {
        let (name, body, padding) = self.parts();
        out.extend_from_slice(&name);
        out.extend_from_slice(body);
        out.resize(out.len() + padding, b' ');
    }

    /// The payload.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.length as usize);
        self.write(&mut out);
        out
    }

    /// Whether these bytes are the payload.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        if bytes.len() != self.length as usize {
            return false;
        }
        let (name, body, _) = self.parts();
        let (head, rest) = bytes.split_at(name.len());
        let (middle, padding) = rest.split_at(body.len());
        head == name && middle == body && padding.iter().all(|&byte| byte == b' ')
    }
}

/// Connection and sequence that the bytes name, if they are long enough.
pub fn name_of(bytes: &[u8]) -> Option<(u32, u32)> {
    let text = std::str::from_utf8(bytes.get(..NAME_BYTES)?).ok()?;
    let (connection, sequence) = text.strip_suffix(' ')?.split_once(':')?;
    Some((u32::from_str_radix(connection, 16).ok()?, u32::from_str_radix(sequence, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_match_themselves_and_nothing_else() {
        for length in [0, 1, 3, 17, 18, 19, 125, 126, 4096, MAX_BYTES as u32] {
            for text in [false, true] {
                for sequence in 0..50 {
                    let plan = Plan { connection: 7, sequence, length, text };
                    let mut bytes = plan.bytes();
                    assert_eq!(bytes.len(), length as usize);
                    assert!(plan.matches(&bytes));
                    assert!(!text || std::str::from_utf8(&bytes).is_ok());
                    if length >= NAME_BYTES as u32 {
                        assert_eq!(name_of(&bytes), Some((7, sequence)));
                        assert!(!Plan { sequence: sequence + 1, ..plan }.matches(&bytes));
                    }
                    if let Some(last) = bytes.last_mut() {
                        *last ^= 1;
                        assert!(!plan.matches(&bytes));
                    }
                }
            }
        }
    }
}
