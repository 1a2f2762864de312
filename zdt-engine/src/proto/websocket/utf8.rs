//! UTF-8 validation of text that arrives in pieces (RFC 6455 §8.1), which fails at the first byte
//! that no valid text could contain there.
//!
//! Must not know: frames, messages.

/// From here on the vectorised validator is worth its set-up.
const LARGE_BYTES: usize = 128;

/// The bytes that no valid continuation could repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Invalid;

/// The place in a text: between characters, or inside of one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Utf8 {
    /// The beginning of a character whose rest has not arrived.
    begun: [u8; 3],
    begun_bytes: u8,
}

impl Utf8 {
    /// Takes the next piece of the text.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Invalid> {
        while self.begun_bytes > 0 {
            let Some((next, rest)) = bytes.split_first() else { return Ok(()) };
            bytes = rest;
            let count = usize::from(self.begun_bytes);
            let mut character = [0; 4];
            character[..count].copy_from_slice(&self.begun[..count]);
            character[count] = *next;
            match incomplete_tail(&character[..=count])? {
                0 => self.begun_bytes = 0,
                _ => {
                    // A fourth byte always decides, so a begun character fits.
                    self.begun[count] = *next;
                    self.begun_bytes += 1;
                }
            }
        }
        let tail = incomplete_tail(bytes)?;
        self.begun[..tail].copy_from_slice(&bytes[bytes.len() - tail..]);
        self.begun_bytes = tail as u8;
        Ok(())
    }

    /// True between two characters: where a text may end.
    pub(super) fn is_complete(self) -> bool {
        self.begun_bytes == 0
    }
}

/// How many bytes at the end of `bytes` begin a character that may still become valid.
#[inline]
fn incomplete_tail(bytes: &[u8]) -> Result<usize, Invalid> {
    if bytes.len() >= LARGE_BYTES {
        if simdutf8::basic::from_utf8(bytes).is_ok() {
            return Ok(0);
        }
        return match simdutf8::compat::from_utf8(bytes) {
            Ok(_) => Ok(0),
            Err(error) if error.error_len().is_some() => Err(Invalid),
            Err(error) => Ok(bytes.len() - error.valid_up_to()),
        };
    }
    match std::str::from_utf8(bytes) {
        Ok(_) => Ok(0),
        Err(error) if error.error_len().is_some() => Err(Invalid),
        Err(error) => Ok(bytes.len() - error.valid_up_to()),
    }
}

/// True if all of `bytes` is valid UTF-8.
#[inline]
pub(super) fn is_valid(bytes: &[u8]) -> bool {
    if bytes.len() >= LARGE_BYTES {
        simdutf8::basic::from_utf8(bytes).is_ok()
    } else {
        std::str::from_utf8(bytes).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn feed_all(pieces: &[&[u8]]) -> Result<bool, Invalid> {
        let mut utf8 = Utf8::default();
        for piece in pieces {
            utf8.feed(piece)?;
        }
        Ok(utf8.is_complete())
    }

    #[test]
    fn fails_at_the_first_impossible_byte() {
        for (good, bad) in [
            (&b"\xce\xba"[..], &b"\xff"[..]),
            (b"\xf4", b"\x90"),
            (b"\xed", b"\xa0"),
            (b"\xe0", b"\x80"),
            (b"\xf0", b"\x80"),
            (b"", b"\xc0"),
            (b"", b"\xf5"),
            (b"ab\xe2\x82", b"a"),
        ] {
            let mut utf8 = Utf8::default();
            assert_eq!(utf8.feed(good), Ok(()), "{good:x?}");
            assert_eq!(utf8.feed(bad), Err(Invalid), "{good:x?} {bad:x?}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_standard_library(
            text in ".{0,200}",
            junk in proptest::collection::vec(any::<u8>(), 0..3),
            place in any::<prop::sample::Index>(),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut bytes = text.into_bytes();
            let place = place.index(bytes.len() + 1);
            bytes.splice(place..place, junk);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            let expected = match std::str::from_utf8(&bytes) {
                Ok(_) => Ok(true),
                Err(error) if error.error_len().is_none() => Ok(false),
                Err(_) => Err(Invalid),
            };
            prop_assert_eq!(feed_all(&pieces), expected);
            prop_assert_eq!(is_valid(&bytes), expected == Ok(true));
        }
    }
}
