//! Encryption of records: AES-256-GCM over the body, with the envelope, the sequence and the
//! direction as associated data.
//!
//! A key must never meet the same nonce twice. Each direction of each channel has a key of its own,
//! derived from a secret that was made for it; the nonce is the offer's sequence; and a [`Sealer`]
//! refuses a sequence that is not higher than all before. An [`Opener`] is as strict, so that a
//! record cannot be shown twice.
//!
//! Must not know: who makes the secrets, how they travel.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize, Zeroizing};

use super::pack::{put_u16, put_u32};
use super::read::envelope;
use super::{
    CRC_OFFSET, ENVELOPE_BYTES, FLAG_SEALED, FLAGS_OFFSET, FORMAT_WRAPPED, Integrity,
    LENGTH_OFFSET, MAX_RECORD_BYTES, StateError,
};

/// Bytes of a [`Secret`].
pub const SECRET_BYTES: usize = 32;

/// Bytes that a seal adds to a record.
pub const SEAL_BYTES: usize = 16;

/// Key material: overwritten when it is dropped, never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; SECRET_BYTES]);

impl Secret {
    /// Takes the bytes over.
    pub fn new(bytes: [u8; SECRET_BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes, for deriving.
    pub fn bytes(&self) -> &[u8; SECRET_BYTES] {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Secret(..)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = Zeroizing::new(String::with_capacity(2 * SECRET_BYTES));
        for byte in self.0 {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
            }
        }
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        Secret::from_hex(&text).ok_or_else(|| D::Error::custom("64 hexadecimal digits expected"))
    }
}

impl Secret {
    /// Reads 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 2 * SECRET_BYTES {
            return None;
        }
        let mut secret = Self([0; SECRET_BYTES]);
        for (byte, pair) in secret.0.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16);
            *byte = (digit(0)? << 4 | digit(1)?) as u8;
        }
        Some(secret)
    }
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-SHA256 of a secret: another key for every salt and every purpose.
pub fn derive(secret: &Secret, salt: &[u8], purpose: &[&[u8]]) -> Secret {
    let pseudorandom = Salt::new(HKDF_SHA256, salt).extract(secret.bytes());
    let mut derived = Secret([0; SECRET_BYTES]);
    pseudorandom
        .expand(purpose, Length(SECRET_BYTES))
        .and_then(|output| output.fill(&mut derived.0))
        .expect("32 bytes are within what HKDF-SHA256 gives");
    derived
}

pub(crate) fn aead_key(secret: &Secret) -> LessSafeKey {
    let key = UnboundKey::new(&AES_256_GCM, secret.bytes()).expect("a key of 32 bytes");
    LessSafeKey::new(key)
}

pub(crate) fn nonce(sequence: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&sequence.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// What the tag covers beside the body: the envelope as it travels, sequence, direction.
fn associated(record: &[u8], sequence: u64, direction: u8) -> [u8; ENVELOPE_BYTES + 9] {
    let mut bytes = [0; ENVELOPE_BYTES + 9];
    bytes[..ENVELOPE_BYTES].copy_from_slice(&record[..ENVELOPE_BYTES]);
    bytes[ENVELOPE_BYTES..ENVELOPE_BYTES + 8].copy_from_slice(&sequence.to_le_bytes());
    bytes[ENVELOPE_BYTES + 8] = direction;
    bytes
}

/// Seals what one end of a channel sends.
pub struct Sealer {
    key: LessSafeKey,
    direction: u8,
    last_sequence: u64,
}

impl Sealer {
    /// For that direction. The key must not be used for anything else, nor by anybody else.
    pub fn new(key: &Secret, direction: u8) -> Self {
        Self { key: aead_key(key), direction, last_sequence: 0 }
    }

    /// Encrypts a record without a checksum in place and puts its tag behind it. False, and the
    /// record is as it was: its format has no seals, or the sequence is not higher than all before.
    #[must_use]
    pub fn seal(&mut self, record: &mut Vec<u8>, sequence: u64) -> bool {
        let Ok(found) = envelope(record) else { return false };
        let length = record.len() + SEAL_BYTES;
        if found.format < FORMAT_WRAPPED
            || found.flags & FLAG_SEALED != 0
            || sequence <= self.last_sequence
            || length > MAX_RECORD_BYTES
        {
            return false;
        }
        self.last_sequence = sequence;
        put_u32(record, CRC_OFFSET, 0);
        put_u16(record, FLAGS_OFFSET, found.flags | FLAG_SEALED);
        put_u32(record, LENGTH_OFFSET, length as u32);
        let aad = associated(record, sequence, self.direction);
        let tag = self
            .key
            .seal_in_place_separate_tag(
                nonce(sequence),
                Aad::from(aad),
                &mut record[ENVELOPE_BYTES..],
            )
            .expect("no record is as long as AES-GCM's bound");
        record.extend_from_slice(tag.as_ref());
        true
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Sealer").field("last_sequence", &self.last_sequence).finish()
    }
}

/// Opens what the other end of a channel sealed.
pub struct Opener {
    key: LessSafeKey,
    direction: u8,
    last_sequence: u64,
}

impl Opener {
    /// For that direction.
    pub fn new(key: &Secret, direction: u8) -> Self {
        Self { key: aead_key(key), direction, last_sequence: 0 }
    }

    /// Decrypts a record in place: its bytes are then what the peer wrote, and its checksum is of no
    /// use.
    ///
    /// # Errors
    /// It is plain, was changed, cut off, meant for another sequence or direction, or was here
    /// before. Its bytes are of no use then.
    pub fn open(&mut self, record: &mut Vec<u8>, sequence: u64) -> Result<Integrity, StateError> {
        let found = envelope(record)?;
        if found.flags & FLAG_SEALED == 0 {
            return Err(StateError::NotSealed);
        }
        if sequence <= self.last_sequence {
            return Err(StateError::Replayed { sequence });
        }
        if record.len() < ENVELOPE_BYTES + SEAL_BYTES {
            return Err(StateError::BrokenSeal);
        }
        let aad = associated(record, sequence, self.direction);
        self.key
            .open_in_place(nonce(sequence), Aad::from(aad), &mut record[ENVELOPE_BYTES..])
            .map_err(|_| StateError::BrokenSeal)?;
        self.last_sequence = sequence;
        record.truncate(record.len() - SEAL_BYTES);
        put_u16(record, FLAGS_OFFSET, found.flags & !FLAG_SEALED);
        let length = record.len() as u32;
        put_u32(record, LENGTH_OFFSET, length);
        Ok(Integrity::Verified)
    }
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Opener").field("last_sequence", &self.last_sequence).finish()
    }
}
