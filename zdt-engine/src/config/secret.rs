//! Values that nobody may read by accident: never printed, erased when dropped.
//!
//! Must not know: what they protect.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

/// Longest secret that a file may hold.
const MAX_FILE_BYTES: u64 = 4_096;

/// A text that is shown as `[secret]`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("[secret]")
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl Secret {
    /// The text itself: to be compared or used as a key, never to be printed.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The 32 bytes that the text stands for, in hexadecimal or base64 (either alphabet).
    pub fn key_bytes(&self) -> Option<Zeroizing<[u8; 32]>> {
        let text = self.0.trim().as_bytes();
        let mut key = Zeroizing::new([0; 32]);
        if text.len() == 64 {
            for (byte, pair) in key.iter_mut().zip(text.chunks_exact(2)) {
                let digit = |at: usize| char::from(pair[at]).to_digit(16);
                *byte = (digit(0)? << 4 | digit(1)?) as u8;
            }
            return Some(key);
        }
        let text = text.strip_suffix(b"=").unwrap_or(text);
        let mut decoded = Zeroizing::new([0; 33]);
        let engines = [URL_SAFE_NO_PAD, STANDARD_NO_PAD];
        let length = engines.iter().find_map(|one| one.decode_slice(text, &mut *decoded).ok())?;
        key.copy_from_slice(decoded.get(..length)?.get(..32).filter(|_| length == 32)?);
        Some(key)
    }

    /// Reads a secret from a file of its own; white space around it does not count.
    ///
    /// # Errors
    /// What is wrong, and what to do: not to be read, not a regular file, readable by everybody, empty,
    /// too long, not text.
    pub fn read(path: &Path) -> Result<Secret, String> {
        let unreadable = |error: std::io::Error| format!("{}: {error}", path.display());
        // A FIFO would block, and a device never end.
        let metadata = std::fs::metadata(path).map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(format!("{} is not a regular file", path.display()));
        }
        if metadata.permissions().mode() & 0o007 != 0 {
            return Err(format!("{} is accessible to everybody; `chmod 600` it", path.display()));
        }
        let file = std::fs::File::open(path).map_err(unreadable)?;
        let mut text = String::with_capacity(MAX_FILE_BYTES as usize + 1);
        let read = file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(unreadable);
        let secret = Secret(text.trim().to_owned());
        let bytes = text.len() as u64;
        text.zeroize();
        read?;
        if bytes > MAX_FILE_BYTES {
            return Err(format!("{} holds more than {MAX_FILE_BYTES} bytes", path.display()));
        }
        if secret.0.is_empty() {
            return Err(format!("{} is empty", path.display()));
        }
        Ok(secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let secret = Secret::from("hunter2".to_owned());
        assert_eq!(format!("{secret:?} {:?}", Some(&secret)), "[secret] Some([secret])");
    }

    #[test]
    fn keys_are_hexadecimal_or_base64() {
        let key = |text: &str| Secret::from(text.to_owned()).key_bytes().map(|key| *key);
        assert_eq!(key(&"fB".repeat(32)), Some([0xfb; 32]));

        let standard = "+/v7".repeat(10) + "+/s=";
        let mut bytes = [0xfb; 32];
        for at in (1..32).step_by(3) {
            bytes[at - 1..=at].copy_from_slice(&[0xfb, 0xfb]);
        }
        assert_eq!(key(&standard), Some(bytes));
        assert_eq!(key(&standard.replace('+', "-").replace('/', "_")), Some(bytes));
        for bad in ["", "ab", &"zz".repeat(32), &"ab".repeat(33), &"A".repeat(44), &"A".repeat(42)]
        {
            assert_eq!(key(bad), None, "{bad}");
        }
    }

    #[test]
    fn files_are_read_and_bad_ones_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let set = |text: &[u8], mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            Secret::read(&path)
        };
        assert_eq!(set(b"  abc\n", 0o600).unwrap().expose(), "abc");
        assert!(set(b"abc", 0o604).unwrap_err().contains("everybody"));
        assert!(set(b" \n", 0o600).unwrap_err().contains("empty"));
        assert!(set(&[b'a'; 5_000], 0o600).unwrap_err().contains("more than"));
        assert!(set(b"\xff\xfe", 0o600).is_err());
        assert!(Secret::read(dir.path()).unwrap_err().contains("regular"));
        assert!(Secret::read(Path::new("/nonexistent/token")).is_err());
    }
}
