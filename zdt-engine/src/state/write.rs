//! Writing a record.
//!
//! Must not know: what the sections mean.

use bytemuck::{Pod, Zeroable};

use super::{
    CRC_OFFSET, ENVELOPE_BYTES, FLAG_OPTIONAL, FORMAT_WRITES, FreezeInstant, MAGIC,
    MAX_RECORD_BYTES, MAX_SECTIONS, SECTION_ALIGN, SECTION_HEADER_BYTES, TEST_NEXT_TAG, checksum,
};

/// Appends one record to a vector, section by section.
///
/// ```
/// use zdt_engine::state::{FreezeInstant, Record, Writer};
///
/// let freeze = FreezeInstant { boot_hash: 7, boottime_ns: 1_000 };
/// let mut bytes = Vec::new();
/// let mut writer = Writer::new(&mut bytes, freeze);
/// writer.section(1, 1, false, &[3u32, 4], &[b"variable ", b"bytes"]);
/// writer.finish(1);
///
/// let record = Record::parse(&bytes).unwrap();
/// let section = record.section(1).unwrap();
/// assert_eq!(section.head::<[u32; 2]>(), [3, 4]);
/// assert_eq!(section.tail(), b"variable bytes");
/// ```
#[must_use = "a record without finish() has no envelope"]
pub struct Writer<'a> {
    bytes: &'a mut Vec<u8>,
    start: usize,
    sections: u16,
    freeze: FreezeInstant,
}

/// What precedes a section; see the table in the parent module.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SectionHeader {
    tag: u16,
    version: u16,
    len: u32,
    head_len: u32,
    flags: u16,
    zero: u16,
}

const _: () = assert!(size_of::<SectionHeader>() == SECTION_HEADER_BYTES);

impl<'a> Writer<'a> {
    /// Begins a record at the end of `bytes`, which may be a pooled vector with other records.
    pub fn new(bytes: &'a mut Vec<u8>, freeze: FreezeInstant) -> Self {
        let start = bytes.len();
        bytes.extend_from_slice(&[0; ENVELOPE_BYTES]);
        Self { bytes, start, sections: 0, freeze }
    }

    /// Appends a section: a head, and a tail made of the given parts. Tags may repeat.
    ///
    /// # Panics
    /// If there are more than [`MAX_SECTIONS`], or the record grows beyond [`MAX_RECORD_BYTES`]:
    /// whoever saves state bounds it far below.
    #[inline]
    pub fn section<T: Pod>(
        &mut self,
        tag: u16,
        version: u16,
        optional: bool,
        head: &T,
        tail: &[&[u8]],
    ) {
        self.section_of(tag, version, optional, bytemuck::bytes_of(head), tail);
    }

    /// Like [`Writer::section`], for a head that is bytes already.
    ///
    /// # Panics
    /// As [`Writer::section`].
    // Inlined, so that headers and heads, whose sizes are known there, are stored and not copied by calls.
    #[inline(always)]
    pub fn section_of(
        &mut self,
        tag: u16,
        version: u16,
        optional: bool,
        head: &[u8],
        tail: &[&[u8]],
    ) {
        let len = head.len() + tail.iter().map(|part| part.len()).sum::<usize>();
        let padded = len.next_multiple_of(SECTION_ALIGN);
        self.make_room(SECTION_HEADER_BYTES + padded);
        let header = SectionHeader {
            tag: tag.to_le(),
            version: version.to_le(),
            len: (len as u32).to_le(),
            head_len: (head.len() as u32).to_le(),
            flags: (u16::from(optional) * FLAG_OPTIONAL).to_le(),
            zero: 0,
        };
        self.bytes.extend_from_slice(bytemuck::bytes_of(&header));
        self.bytes.extend_from_slice(head);
        for part in tail.iter().filter(|part| !part.is_empty()) {
            self.bytes.extend_from_slice(part);
        }
        // Zeroes of a fixed number, of which the superfluous go again.
        let end = self.bytes.len() + (padded - len);
        self.bytes.extend_from_slice(&[0; SECTION_ALIGN]);
        self.bytes.truncate(end);
    }

    /// Counts a section of that many bytes and makes room for it, and for zeroes behind it.
    fn make_room(&mut self, bytes: usize) {
        self.sections += 1;
        assert!(usize::from(self.sections) <= MAX_SECTIONS, "too many sections");
        let room = bytes + SECTION_ALIGN;
        assert!(
            self.bytes.len() - self.start + room <= MAX_RECORD_BYTES,
            "the record is too large"
        );
        self.bytes.reserve(room);
    }

    /// Writes the envelope; the record is complete.
    ///
    /// # Panics
    /// If this build cannot write that format.
    #[inline]
    pub fn finish(self, format: u16) {
        let record = self.finish_unchecked(format);
        set_checksum(record);
    }

    /// Writes the envelope, without a checksum: [`super::Packer`] and [`super::Sealer`], or
    /// [`set_checksum`], have the last word.
    ///
    /// # Panics
    /// If this build cannot write that format.
    #[inline]
    pub fn finish_unchecked(mut self, format: u16) -> &'a mut [u8] {
        assert!(
            (FORMAT_WRITES.oldest..=FORMAT_WRITES.newest).contains(&format),
            "a format that this build cannot write"
        );
        if cfg!(feature = "state-format-next") {
            self.section(TEST_NEXT_TAG, 1, true, &u64::from(format), &[b"from the next format"]);
        }
        let record = &mut self.bytes[self.start..];
        let len = record.len() as u32;
        record[0..4].copy_from_slice(&MAGIC);
        record[8..10].copy_from_slice(&format.to_le_bytes());
        record[12..16].copy_from_slice(&len.to_le_bytes());
        record[16..24].copy_from_slice(&self.freeze.boot_hash.to_le_bytes());
        record[24..32].copy_from_slice(&self.freeze.boottime_ns.to_le_bytes());
        record[32..34].copy_from_slice(&self.sections.to_le_bytes());
        &mut self.bytes[self.start..]
    }
}

/// Completes a record that is not sealed.
#[inline]
pub fn set_checksum(record: &mut [u8]) {
    let checksum = checksum(record);
    record[CRC_OFFSET..CRC_OFFSET + 4].copy_from_slice(&checksum.to_le_bytes());
}
