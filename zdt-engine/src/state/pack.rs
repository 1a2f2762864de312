//! Compression of a record's body, for large records and for those at rest.
//!
//! The envelope stays as it is, says so, and tells the length that the body had. What comes back is
//! never longer than that, nor than any record may be, whatever the compressed bytes claim.
//!
//! Must not know: which records are worth it.

use super::read::{envelope, verify_checksum};
use super::{
    ENVELOPE_BYTES, FLAG_JSON, FLAG_SEALED, FLAG_ZSTD, FLAGS_OFFSET, FORMAT_WRAPPED, Integrity,
    LENGTH_OFFSET, MAX_RECORD_BYTES, PLAIN_LENGTH_OFFSET, StateError,
};

/// zstd's fastest level of those that are worth the name: everybody else waits meanwhile.
const LEVEL: i32 = 1;

/// Largest body that is compressed: a few milliseconds of work. A worker has but one thread.
pub const MAX_PACKED_INPUT: usize = 1 << 20;

/// Compresses records. Makes its context when it is first needed.
#[derive(Default)]
pub struct Packer {
    context: Option<zstd::bulk::Compressor<'static>>,
    scratch: Vec<u8>,
}

impl Packer {
    /// Compresses a plain record in place if its body is longer than `above_bytes`, its format knows
    /// compression, and it helps. The checksum is left to whoever completes the record.
    pub fn pack(&mut self, record: &mut Vec<u8>, above_bytes: usize) {
        let Ok(found) = envelope(record) else { return };
        let body = record.len() - ENVELOPE_BYTES;
        if found.format < FORMAT_WRAPPED
            || found.flags & !FLAG_JSON != 0
            || body <= above_bytes
            || body > MAX_PACKED_INPUT
        {
            return;
        }
        if self.context.is_none() {
            self.context = zstd::bulk::Compressor::new(LEVEL).ok();
        }
        let Some(context) = &mut self.context else { return };
        self.scratch.clear();
        // No room for more than seven eighths: less of a gain is not worth the other side's work.
        self.scratch.reserve_exact(body - body / 8);
        let fits = context.compress_to_buffer(&record[ENVELOPE_BYTES..], &mut self.scratch).is_ok();
        if !fits || self.scratch.len() > body - body / 8 {
            return;
        }
        record.truncate(ENVELOPE_BYTES);
        record.extend_from_slice(&self.scratch);
        put_u16(record, FLAGS_OFFSET, found.flags | FLAG_ZSTD);
        let length = record.len() as u32;
        put_u32(record, LENGTH_OFFSET, length);
        put_u32(record, PLAIN_LENGTH_OFFSET, body as u32);
    }
}

/// Decompresses records. Makes its context when it is first needed.
#[derive(Default)]
pub struct Unpacker {
    context: Option<zstd::bulk::Decompressor<'static>>,
}

impl Unpacker {
    /// Checks the record's bytes, unless that was done before, and makes it plain.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn unpack(
        &mut self,
        record: &mut Vec<u8>,
        integrity: Integrity,
    ) -> Result<Integrity, StateError> {
        self.unpack_within(record, integrity, MAX_RECORD_BYTES)
    }

    /// The same for a record that is known to be short: one that claims more is refused unread.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn unpack_within(
        &mut self,
        record: &mut Vec<u8>,
        integrity: Integrity,
        most_bytes: usize,
    ) -> Result<Integrity, StateError> {
        let found = envelope(record)?;
        if found.flags & !FLAG_JSON == 0 {
            return Ok(integrity); // whoever reads on checks it
        }
        if found.flags & FLAG_SEALED != 0 {
            return Err(StateError::UnsupportedFlags { flags: found.flags });
        }
        if integrity == Integrity::Unknown {
            verify_checksum(record)?;
        }
        let plain = found.plain_bytes;
        if plain == 0 || plain > most_bytes.min(MAX_RECORD_BYTES) - ENVELOPE_BYTES {
            return Err(StateError::Compression("an impossible length"));
        }
        if self.context.is_none() {
            let context = zstd::bulk::Decompressor::new();
            self.context = Some(context.map_err(|_| StateError::Compression("out of memory"))?);
        }
        let context = self.context.as_mut().expect("made just now");
        let mut body = Vec::new();
        body.try_reserve_exact(plain).map_err(|_| StateError::Compression("out of memory"))?;
        // Never writes beyond the vector's capacity.
        context
            .decompress_to_buffer(&record[ENVELOPE_BYTES..], &mut body)
            .map_err(|_| StateError::Compression("no valid zstd frame of that length"))?;
        if body.len() != plain {
            return Err(StateError::Compression("shorter than announced"));
        }
        record.truncate(ENVELOPE_BYTES);
        record.extend_from_slice(&body);
        put_u16(record, FLAGS_OFFSET, found.flags & FLAG_JSON);
        let length = record.len() as u32;
        put_u32(record, LENGTH_OFFSET, length);
        put_u32(record, PLAIN_LENGTH_OFFSET, 0);
        Ok(Integrity::Verified)
    }
}

pub(super) fn put_u16(record: &mut [u8], offset: usize, value: u16) {
    record[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
}

pub(super) fn put_u32(record: &mut [u8], offset: usize, value: u32) {
    record[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}
