//! Records of one direction: opened where they arrived, sealed where they were produced, without an
//! allocation for any of them.
//!
//! Must not know: what is in a record, alerts, key updates.

use std::ops::Range;

use ring::aead;

use super::error::Error;
use super::keys::{Keys, Material, NONCE_BYTES};
use super::suite::{Suite, Version};

/// Bytes of a record's header.
pub const HEADER_BYTES: usize = 5;

/// Most plaintext in one record (RFC 8446 §5.1).
pub const MAX_FRAGMENT_BYTES: usize = 1 << 14;

/// Most bytes of a record with its header: RFC 8446 §5.2 allows 256 beyond the plaintext; a TLS 1.2
/// AEAD record has 24.
pub const MAX_RECORD_BYTES: usize = HEADER_BYTES + MAX_FRAGMENT_BYTES + 256;

const AEAD_TAG_BYTES: usize = 16;

/// Content types (RFC 8446 §5.1).
pub mod content {
    pub const CHANGE_CIPHER_SPEC: u8 = 20;
    pub const ALERT: u8 = 21;
    pub const HANDSHAKE: u8 = 22;
    pub const APPLICATION_DATA: u8 = 23;
}

/// Length of the record at the front, header included; `None` until its header is there. A header
/// that none of the two versions can have is refused before its record is awaited.
pub fn record_bytes(bytes: &[u8]) -> Result<Option<usize>, Error> {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    if !(content::CHANGE_CIPHER_SPEC..=content::APPLICATION_DATA).contains(&header[0]) {
        return Err(Error::Unexpected("a record of an unknown type"));
    }
    if header[1] != 3 {
        return Err(Error::WrongVersion);
    }
    let total = HEADER_BYTES + usize::from(u16::from_be_bytes([header[3], header[4]]));
    if total > MAX_RECORD_BYTES {
        return Err(Error::RecordOverflow);
    }
    Ok(Some(total))
}

/// The keys of one direction and its place in the sequence.
pub struct Direction {
    pub(super) material: Material,
    keys: Option<Box<Keys>>,
    pub(super) sequence: u64,
    pub(super) version: Version,
    pub(super) suite: Suite,
}

impl std::fmt::Debug for Direction {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Direction")
            .field("version", &self.version)
            .field("suite", &self.suite)
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

impl Direction {
    /// A direction whose next record has this sequence number. Its key is not made before that.
    pub fn new(version: Version, suite: Suite, material: Material, sequence: u64) -> Self {
        Self { material, keys: None, sequence, version, suite }
    }

    /// Switches to the next generation of keys (RFC 8446 §7.2).
    pub fn ratchet(&mut self) {
        debug_assert_eq!(self.version, Version::Tls13);
        self.material.ratchet(self.suite);
        self.keys = None;
        self.sequence = 0;
    }

    /// True once a key has been made.
    #[cfg(test)]
    pub fn has_key(&self) -> bool {
        self.keys.is_some()
    }

    fn keys(&mut self) -> &Keys {
        let (version, suite, material) = (self.version, self.suite, &self.material);
        self.keys.get_or_insert_with(|| Keys::derive(version, suite, material))
    }

    /// Opens the record that fills `record` of `buffer` exactly; its header has passed
    /// [`record_bytes`]. The plaintext goes to `target`, which lies before its place, or stays where
    /// it is. Returns its type and where it is; on an error the record's bytes are lost.
    pub fn open(
        &mut self,
        buffer: &mut [u8],
        record: Range<usize>,
        target: Option<usize>,
    ) -> Result<(u8, Range<usize>), Error> {
        let explicit = self.suite.explicit_nonce_bytes(self.version);
        let body = record.start + HEADER_BYTES;
        let header: [u8; HEADER_BYTES] =
            *buffer[record.start..].first_chunk().expect("a whole record");
        let sealed_bytes = (record.end - body).checked_sub(explicit).ok_or(Error::BadRecord)?;
        let content_bytes = sealed_bytes.checked_sub(AEAD_TAG_BYTES).ok_or(Error::BadRecord)?;
        let sequence = self.sequence;
        let version = self.version;
        match version {
            // Whatever is not sealed has type 20 or 21; nothing of the kind may come any more.
            Version::Tls13 if header[0] != content::APPLICATION_DATA => {
                return Err(Error::Unexpected("a record that is not encrypted"));
            }
            Version::Tls12 if header[1..3] != [3, 3] => return Err(Error::WrongVersion),
            Version::Tls12 if content_bytes > MAX_FRAGMENT_BYTES => {
                return Err(Error::RecordOverflow);
            }
            _ => {}
        }
        // Keys are borrowed from here on.
        let mut explicit_nonce = [0u8; 8];
        explicit_nonce[..explicit].copy_from_slice(&buffer[body..body + explicit]);
        let keys = self.keys();
        let mut nonce = combined(&keys.nonce, sequence);
        if explicit > 0 {
            nonce[..4].copy_from_slice(&keys.nonce[..4]);
            nonce[4..].copy_from_slice(&explicit_nonce);
        }
        let nonce = aead::Nonce::assume_unique_for_key(nonce);
        let start = target.unwrap_or(body + explicit);
        let sealed = body + explicit - start..;
        let within = &mut buffer[start..record.end];
        let mut plain = match version {
            Version::Tls13 => keys.aead.open_within(nonce, aead::Aad::from(header), within, sealed),
            Version::Tls12 => {
                let additional = tls12_additional(sequence, header[0], content_bytes);
                keys.aead.open_within(nonce, aead::Aad::from(additional), within, sealed)
            }
        }
        .map_err(|_| Error::BadRecord)?
        .len();
        self.sequence = sequence.checked_add(1).ok_or(Error::KeyUsedUp)?;
        let mut kind = header[0];
        if version == Version::Tls13 {
            if plain > MAX_FRAGMENT_BYTES + 1 {
                return Err(Error::RecordOverflow); // RFC 8446 §5.4, padding included
            }
            let inner = &buffer[start..start + plain];
            // RFC 8446 §5.2: the last byte that is not padding is the type.
            let at = match inner.last() {
                Some(&last) if last != 0 => plain - 1,
                _ => inner
                    .iter()
                    .rposition(|&byte| byte != 0)
                    .ok_or(Error::Unexpected("a record without a type"))?,
            };
            kind = inner[at];
            plain = at;
        }
        Ok((kind, start..start + plain))
    }

    /// Bytes that sealing adds to each record, before and behind the content.
    fn overhead(&self) -> (usize, usize) {
        let before = HEADER_BYTES + self.suite.explicit_nonce_bytes(self.version);
        let behind = AEAD_TAG_BYTES + usize::from(self.version == Version::Tls13);
        (before, behind)
    }

    /// Seals what `output` has from `start` on, in place, as so many records of that type as it takes.
    pub fn seal(&mut self, kind: u8, output: &mut Vec<u8>, start: usize) {
        let len = output.len() - start;
        let (before, behind) = self.overhead();
        let records = len.div_ceil(MAX_FRAGMENT_BYTES);
        output.resize(output.len() + records * (before + behind), 0);
        let first = self.sequence;
        // From the last one on: each moves behind the places of those before it.
        for index in (0..records).rev() {
            let from = start + index * MAX_FRAGMENT_BYTES;
            let content = (len - index * MAX_FRAGMENT_BYTES).min(MAX_FRAGMENT_BYTES);
            let to = start + index * (MAX_FRAGMENT_BYTES + before + behind);
            output.copy_within(from..from + content, to + before);
            let record = &mut output[to..to + before + content + behind];
            self.seal_one(kind, record, first + index as u64, content);
        }
        self.sequence = first + records as u64;
    }

    /// An empty record, which only hostile peers send.
    #[cfg(test)]
    pub fn seal_empty(&mut self, kind: u8, output: &mut Vec<u8>) {
        let (before, behind) = self.overhead();
        output.resize(before + behind, 0);
        self.seal_one(kind, output, self.sequence, 0);
        self.sequence += 1;
    }

    /// Seals one record whose content is in its place.
    fn seal_one(&mut self, kind: u8, record: &mut [u8], sequence: u64, content: usize) {
        let (version, (before, _)) = (self.version, self.overhead());
        let keys = self.keys();
        #[cfg(any(test, feature = "fault-points"))]
        super::nonces::record(keys.id, sequence);
        let nonce = combined(&keys.nonce, sequence);
        let outer = match version {
            Version::Tls13 => content::APPLICATION_DATA,
            Version::Tls12 => kind,
        };
        let length = (record.len() - HEADER_BYTES) as u16;
        let header = [outer, 3, 3, (length >> 8) as u8, length as u8];
        record[..HEADER_BYTES].copy_from_slice(&header);
        if before > HEADER_BYTES {
            record[HEADER_BYTES..before].copy_from_slice(&nonce[4..]);
        }
        let nonce = aead::Nonce::assume_unique_for_key(nonce);
        let tag_at = record.len() - AEAD_TAG_BYTES;
        let (sealed, tag) = record.split_at_mut(tag_at);
        let made = match version {
            Version::Tls13 => {
                sealed[before + content] = kind;
                let additional = aead::Aad::from(header);
                keys.aead.seal_in_place_separate_tag(nonce, additional, &mut sealed[before..])
            }
            Version::Tls12 => {
                let additional = aead::Aad::from(tls12_additional(sequence, kind, content));
                keys.aead.seal_in_place_separate_tag(nonce, additional, &mut sealed[before..])
            }
        }
        .expect("a record is far below the limits of its AEAD");
        tag.copy_from_slice(made.as_ref());
    }
}

/// The nonce of a record (RFC 8446 §5.3; RFC 7905 §2; for AES-GCM in TLS 1.2 the explicit part can be
/// chosen, and this is what the handshake's first records had).
fn combined(nonce: &[u8; NONCE_BYTES], sequence: u64) -> [u8; NONCE_BYTES] {
    let mut combined = *nonce;
    for (byte, of_sequence) in combined[4..].iter_mut().zip(sequence.to_be_bytes()) {
        *byte ^= of_sequence;
    }
    combined
}

/// The additional data of a record (RFC 5246 §6.2.3.3).
fn tls12_additional(sequence: u64, kind: u8, content: usize) -> [u8; 13] {
    let mut additional = [0; 13];
    additional[..8].copy_from_slice(&sequence.to_be_bytes());
    additional[8..11].copy_from_slice(&[kind, 3, 3]);
    additional[11..].copy_from_slice(&(content as u16).to_be_bytes());
    additional
}
