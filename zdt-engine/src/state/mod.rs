//! The binary form of a frozen connection: an envelope and tagged sections.
//!
//! All numbers are little-endian. The envelope is [`ENVELOPE_BYTES`] long:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `ZDTS` |
//! | 4 | 4 | CRC32C of everything after this field |
//! | 8 | 2 | format version |
//! | 10 | 2 | flags, since format 2: 1 zstd, 2 AEAD, 4 JSON |
//! | 12 | 4 | length of the whole record |
//! | 16 | 8 | hash of the boot id |
//! | 24 | 8 | freeze instant, CLOCK_BOOTTIME nanoseconds |
//! | 32 | 2 | number of sections |
//! | 34 | 2 | zero |
//! | 36 | 4 | length of the body before it was compressed; zero where it is not |
//!
//! A record is written plain; [`Packer`] may compress what follows the envelope, and [`Sealer`] may
//! encrypt that and put a tag behind it, which also covers the envelope and takes the place of the
//! checksum (the field is zero then). [`Opener`] and [`Unpacker`] undo that, in the other order.
//!
//! A section is a header of [`SECTION_HEADER_BYTES`], a head, a tail, and zeroes up to a multiple of
//! 8:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 2 | tag |
//! | 2 | 2 | version |
//! | 4 | 4 | length of head and tail |
//! | 8 | 4 | length of the head |
//! | 12 | 2 | flags: 1 optional |
//! | 14 | 2 | zero |
//!
//! The head is a plain-old-data struct that may grow at its end: a reader takes what it knows, and
//! zeroes for what an older writer did not write. A reader that does not know a tag skips an
//! optional section and refuses a record with a required one.
//!
//! [`Record::parse`] checks all of this before anything is decoded. State holds durations, never
//! instants, and ids, never pointers; the only instant is that of the freeze.
//!
//! Must not know: who uses it, what the sections mean.

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub mod json;
mod pack;
pub mod parked;
mod read;
mod seal;
mod write;

#[cfg(test)]
pub(crate) mod tests;

pub use pack::{Packer, Unpacker};
pub use read::{Integrity, Record, Section, Sections, StateError};
pub use seal::{Opener, SEAL_BYTES, SECRET_BYTES, Sealer, Secret, derive};
pub use write::{Writer, set_checksum};

/// An inclusive range of versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRange {
    /// The oldest version that is understood.
    pub oldest: u16,
    /// The newest version that is understood.
    pub newest: u16,
}

impl VersionRange {
    /// The newest version that both ranges hold.
    pub fn newest_common(self, other: VersionRange) -> Option<u16> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

/// Bytes of an envelope.
pub const ENVELOPE_BYTES: usize = 40;

/// Bytes of a section's header.
pub const SECTION_HEADER_BYTES: usize = 16;

/// Largest record that is read; larger ones are refused before anything else is looked at.
pub const MAX_RECORD_BYTES: usize = 64 << 20;

/// Most sections of one record.
pub const MAX_SECTIONS: usize = 1024;

/// Newest format version of this build.
#[cfg(not(feature = "state-format-next"))]
const NEWEST_FORMAT: u16 = 2;

/// For tests only: this build pretends to be the next one.
#[cfg(feature = "state-format-next")]
const NEWEST_FORMAT: u16 = 3;

/// The first format whose records can be compressed, encrypted, or JSON.
pub const FORMAT_WRAPPED: u16 = 2;

/// Format versions that this build can read.
pub const FORMAT_READS: VersionRange = VersionRange { oldest: 1, newest: NEWEST_FORMAT };

/// Format versions that this build can write.
pub const FORMAT_WRITES: VersionRange = VersionRange { oldest: 1, newest: NEWEST_FORMAT };

/// Tag of the optional section that only a `state-format-next` build writes; no other build may
/// ever use it.
pub const TEST_NEXT_TAG: u16 = 0xfffe;

const MAGIC: [u8; 4] = *b"ZDTS";
const SECTION_ALIGN: usize = 8;
const CRC_OFFSET: usize = 4;
const FLAGS_OFFSET: usize = 10;
const LENGTH_OFFSET: usize = 12;
const PLAIN_LENGTH_OFFSET: usize = 36;
const FLAG_OPTIONAL: u16 = 1;

/// The body is compressed.
const FLAG_ZSTD: u16 = 1;
/// The body is encrypted, and a tag follows it.
const FLAG_SEALED: u16 = 2;
/// The body is JSON.
const FLAG_JSON: u16 = 4;

/// When a connection was frozen, as the envelope tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreezeInstant {
    /// See [`boot_hash`].
    pub boot_hash: u64,
    /// CLOCK_BOOTTIME nanoseconds.
    pub boottime_ns: u64,
}

impl FreezeInstant {
    /// How long ago that was, seen from `now`: `None` if it was before another boot. A freeze in the
    /// future (no clock does that) is no time ago.
    pub fn elapsed(self, now: FreezeInstant) -> Option<Duration> {
        (self.boot_hash == now.boot_hash)
            .then(|| Duration::from_nanos(now.boottime_ns.saturating_sub(self.boottime_ns)))
    }
}

/// Tells boots apart in the envelope: the two halves of the boot id, one rotated, folded into one.
pub fn boot_hash(boot_id: [u8; 16]) -> u64 {
    let id = u128::from_le_bytes(boot_id);
    (id as u64) ^ ((id >> 64) as u64).rotate_left(32)
}

/// A copy of `bytes` whose length and checksum fields are right, for fuzzing what is behind them;
/// `None` if there is no room for an envelope.
pub fn with_valid_checksum(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut copy = bytes.to_vec();
    copy.get(..ENVELOPE_BYTES)?;
    copy[..4].copy_from_slice(&MAGIC);
    let length = u32::try_from(copy.len()).ok()?;
    copy[LENGTH_OFFSET..LENGTH_OFFSET + 4].copy_from_slice(&length.to_le_bytes());
    let checksum = checksum(&copy);
    copy[CRC_OFFSET..CRC_OFFSET + 4].copy_from_slice(&checksum.to_le_bytes());
    Some(copy)
}

/// True once [`Sealer::seal`] has encrypted the record.
pub fn is_sealed(record: &[u8]) -> bool {
    read::envelope(record).is_ok_and(|envelope| envelope.flags & FLAG_SEALED != 0)
}

/// CRC32C of what follows the field that holds it.
fn checksum(record: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(&record[CRC_OFFSET + 4..])
}
