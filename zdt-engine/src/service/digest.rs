//! A SHA-256 in progress that can be saved and restored.
//!
//! Must not know: what is digested.

use sha2::digest::Update;
use sha2::digest::common::hazmat::SerializableState;
use sha2::{Digest, Sha256};

/// SHA-256 of the bytes seen so far.
#[derive(Default)]
pub struct Progress(Sha256);

impl Progress {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        Update::update(&mut self.0, bytes);
    }

    /// The digest in lower-case hexadecimal.
    pub fn finish_hex(&self) -> String {
        use std::fmt::Write;
        let digest = self.0.clone().finalize();
        digest.iter().fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// Appends the state.
    pub fn save(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.0.serialize());
    }

    /// Reads what [`Progress::save`] wrote.
    pub fn restore(bytes: &[u8]) -> Option<Self> {
        let state = bytes.try_into().ok()?;
        Sha256::deserialize(state).ok().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::Progress;

    #[test]
    fn a_digest_survives_being_saved_at_every_byte() {
        let text =
            b"The quick brown fox jumps over the lazy dog. It does so more than 64 bytes long.";
        let mut whole = Progress::default();
        whole.update(text);
        for cut in 0..text.len() {
            let mut first = Progress::default();
            first.update(&text[..cut]);
            let mut saved = Vec::new();
            first.save(&mut saved);
            let mut second = Progress::restore(&saved).expect("own state");
            second.update(&text[cut..]);
            assert_eq!(second.finish_hex(), whole.finish_hex(), "cut at {cut}");
        }
        assert!(Progress::restore(b"short").is_none());
    }
}
