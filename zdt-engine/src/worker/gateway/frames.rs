//! Where WebSocket frames begin and end in a stream of bytes (RFC 6455 §5.2); nothing else of them.
//!
//! A tunnel passes bytes on as they are. Only where an upstream is replaced, or a close frame of the
//! gateway's own is put in, must it be known that no frame is cut.
//!
//! Must not know: what is in a frame.

/// One direction of a tunnel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Frames {
    /// The beginning of a header that is not complete.
    header: [u8; 14],
    header_bytes: u8,
    /// Payload to come.
    remaining: u64,
    /// Inside a message of several frames.
    in_message: bool,
}

/// Bytes of [`Frames::save`].
pub const SAVED_BYTES: usize = 24;

impl Frames {
    /// Bytes have passed. True if a message has ended within them.
    pub fn feed(&mut self, mut bytes: &[u8]) -> bool {
        let mut has_ended = false;
        loop {
            let count = (bytes.len() as u64).min(self.remaining);
            self.remaining -= count;
            has_ended |= count > 0 && self.remaining == 0 && self.ends_message();
            bytes = &bytes[count as usize..];
            let Some((&first, rest)) = bytes.split_first() else { return has_ended };
            self.header[usize::from(self.header_bytes)] = first;
            self.header_bytes += 1;
            bytes = rest;
            if let Some(length) = self.complete() {
                self.remaining = length;
                if self.header[0] & 0xf < 8 {
                    self.in_message = !self.ends_message();
                }
                has_ended |= length == 0 && self.ends_message();
                self.header_bytes = 0;
            }
        }
    }

    /// True if the frame that began last is the last one of a message, and no control frame.
    fn ends_message(&self) -> bool {
        self.header[0] & 0x80 != 0 && self.header[0] & 0xf < 8
    }

    /// The payload's length, once the header is complete.
    fn complete(&self) -> Option<u64> {
        let have = usize::from(self.header_bytes);
        let second = *self.header[..have].get(1)?;
        let mask_bytes = if second & 0x80 != 0 { 4 } else { 0 };
        let (length_bytes, length) = match second & 0x7f {
            126 => (2, u64::from(u16::from_be_bytes([self.header[2], self.header[3]]))),
            127 => {
                let bytes = self.header[2..10].try_into().unwrap_or_default();
                (8, u64::from_be_bytes(bytes) & (u64::MAX >> 1))
            }
            length => (0, u64::from(length)),
        };
        (have == 2 + length_bytes + mask_bytes).then_some(length)
    }

    /// True between two frames: a control frame may be put in here.
    pub fn at_boundary(&self) -> bool {
        self.header_bytes == 0 && self.remaining == 0
    }

    /// True between two messages: another stream of messages may go on here.
    pub fn between_messages(&self) -> bool {
        self.at_boundary() && !self.in_message
    }

    /// For a state record.
    pub fn save(&self) -> [u8; SAVED_BYTES] {
        let mut saved = [0; SAVED_BYTES];
        saved[..14].copy_from_slice(&self.header);
        saved[14] = self.header_bytes;
        saved[15] = u8::from(self.in_message);
        saved[16..].copy_from_slice(&self.remaining.to_le_bytes());
        saved
    }

    /// Undoes [`Frames::save`]; `None` if nothing saves that.
    pub fn restore(saved: &[u8; SAVED_BYTES]) -> Option<Self> {
        let (header, rest) = saved.split_first_chunk::<14>()?;
        let frames = Self {
            header: *header,
            header_bytes: rest[0],
            in_message: rest[1] == 1,
            remaining: u64::from_le_bytes(rest[2..].try_into().ok()?),
        };
        let is_sound = frames.header_bytes < 14
            && rest[1] < 2
            && (frames.header_bytes == 0 || (frames.remaining == 0 && frames.complete().is_none()));
        is_sound.then_some(frames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(is_final: bool, opcode: u8, masked: bool, length: usize) -> Vec<u8> {
        let mut bytes = vec![opcode | if is_final { 0x80 } else { 0 }];
        let mask = if masked { 0x80 } else { 0 };
        match length {
            0..126 => bytes.push(mask | length as u8),
            126..65_536 => {
                bytes.push(mask | 126);
                bytes.extend_from_slice(&(length as u16).to_be_bytes());
            }
            _ => {
                bytes.push(mask | 127);
                bytes.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        bytes.extend_from_slice(&[0x81, 0x7f, 0x80, 1][..if masked { 4 } else { 0 }]);
        bytes.extend(std::iter::repeat_n(0x81, length));
        bytes
    }

    #[test]
    fn boundaries_are_found_whatever_the_pieces() {
        for masked in [false, true] {
            let frames = [
                (frame(true, 1, masked, 5), true),
                (frame(false, 2, masked, 0), false),
                (frame(true, 9, masked, 125), false),
                (frame(true, 0, masked, 126), true),
                (frame(true, 2, masked, 70_000), true),
            ];
            for piece in [1, 2, 3, 7, 4_096] {
                let mut cursor = Frames::default();
                for (bytes, between) in &frames {
                    let mut ends = 0;
                    for (number, piece) in bytes.chunks(piece).enumerate() {
                        assert!(number == 0 || !cursor.at_boundary());
                        ends += u32::from(cursor.feed(piece));
                        cursor = Frames::restore(&cursor.save()).unwrap();
                    }
                    assert!(cursor.at_boundary());
                    assert_eq!(ends, u32::from(*between), "messages that ended");
                    assert_eq!(cursor.between_messages(), *between);
                }
            }
        }
    }

    #[test]
    fn any_saved_form_restores_or_is_refused() {
        for seed in 0..=255u8 {
            let mut saved = [seed; SAVED_BYTES];
            saved[15] = seed & 1;
            if let Some(mut frames) = Frames::restore(&saved) {
                frames.feed(&[seed; 300]);
            }
        }
        assert_eq!(Frames::restore(&[0; SAVED_BYTES]), Some(Frames::default()));
    }
}
