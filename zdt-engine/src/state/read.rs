//! Reading a record: everything is checked before anything is decoded.
//!
//! Must not know: what the sections mean.

use bytemuck::Pod;

use super::{
    CRC_OFFSET, ENVELOPE_BYTES, FLAG_JSON, FLAG_OPTIONAL, FLAG_SEALED, FLAG_ZSTD, FLAGS_OFFSET,
    FORMAT_READS, FORMAT_WRAPPED, FreezeInstant, LENGTH_OFFSET, MAGIC, MAX_RECORD_BYTES,
    MAX_SECTIONS, PLAIN_LENGTH_OFFSET, SECTION_ALIGN, SECTION_HEADER_BYTES, checksum,
};

/// Why a record is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// It does not begin with the magic, or is shorter than an envelope.
    #[error("the bytes are no state record")]
    NotARecord,
    /// Its length is not what its envelope says, or beyond [`MAX_RECORD_BYTES`].
    #[error("the state record has {actual} bytes where its envelope says {claimed}")]
    WrongLength {
        /// In the envelope.
        claimed: u64,
        /// Found.
        actual: u64,
    },
    /// Another format than this build reads.
    #[error("state format {format} cannot be read: this build reads {}..={}", FORMAT_READS.oldest, FORMAT_READS.newest)]
    UnknownFormat {
        /// In the envelope.
        format: u16,
    },
    /// Compressed or encrypted where neither can be, or with flags that do not exist yet.
    #[error("state record flags {flags:#x} are not supported here")]
    UnsupportedFlags {
        /// In the envelope.
        flags: u16,
    },
    /// A bit has changed on the way.
    #[error("the state record's checksum is wrong")]
    WrongChecksum,
    /// It was changed or cut off, or sealed with another key, sequence or direction.
    #[error(
        "the state record's seal is broken: it was changed, or is not the one that was offered"
    )]
    BrokenSeal,
    /// Plain, where every record must be sealed.
    #[error("the state record is not sealed, but records of this channel are")]
    NotSealed,
    /// A second record for the same sequence, or one out of turn.
    #[error("the state record's sequence {sequence} was used before")]
    Replayed {
        /// The sequence.
        sequence: u64,
    },
    /// The compressed body does not become what the envelope says.
    #[error("the state record cannot be decompressed: {0}")]
    Compression(&'static str),
    /// The JSON body does not become a record.
    #[error("the state record's JSON is refused: {0}")]
    Json(&'static str),
    /// The sections do not fill the record exactly, or a header is impossible.
    #[error("the state record's section {index} is malformed")]
    MalformedSection {
        /// Which one, from 0; the number of sections if bytes follow the last.
        index: usize,
    },
    /// A required section that the reader does not know.
    #[error("the state record needs section {tag}, which this build does not know")]
    UnknownSection {
        /// Its tag.
        tag: u16,
    },
    /// A section that the reader needs is not there.
    #[error("the state record lacks section {tag}")]
    MissingSection {
        /// Its tag.
        tag: u16,
    },
    /// A section's contents are impossible; for the decoders of sections.
    #[error("section {tag} of the state record is invalid: {reason}")]
    InvalidSection {
        /// Its tag.
        tag: u16,
        /// What is wrong.
        reason: &'static str,
    },
}

/// A record whose envelope, checksum and section table are right. Borrows its bytes.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    format: u16,
    freeze: FreezeInstant,
    sections: usize,
    /// Which of the tags below [`MARKED_TAGS`] occur, one bit each, and which of them are required: most
    /// sections that are asked for are not there.
    present: u64,
    needed: u64,
    /// A larger tag occurs, too.
    has_unmarked: bool,
    /// What follows the envelope.
    body: &'a [u8],
}

/// Tags that have a bit of their own.
const MARKED_TAGS: u16 = 64;

/// The bit of a tag; none for a larger one.
#[inline]
const fn mark(tag: u16) -> u64 {
    if tag < MARKED_TAGS { 1 << tag } else { 0 }
}

/// What is known of a record's bytes before they are parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Integrity {
    /// Nothing: the checksum decides.
    Unknown,
    /// They are what was written: a seal or a checksum was found right before.
    Verified,
}

/// What an envelope says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Envelope {
    pub format: u16,
    pub flags: u16,
    /// Of the body, before it was compressed.
    pub plain_bytes: usize,
}

/// One section of a [`Record`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section<'a> {
    tag: u16,
    version: u16,
    optional: bool,
    head: &'a [u8],
    tail: &'a [u8],
}

#[inline]
fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

#[inline]
fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes([bytes[offset], bytes[offset + 1], bytes[offset + 2], bytes[offset + 3]])
}

#[inline]
fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from(u32_at(bytes, offset)) | u64::from(u32_at(bytes, offset + 4)) << 32
}

impl<'a> Record<'a> {
    /// Checks a record that fills `bytes` exactly.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, StateError> {
        Self::parse_checked(bytes, Integrity::Unknown)
    }

    /// Like [`Record::parse`], but a record that was verified already is not summed again.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    #[inline]
    pub fn parse_checked(bytes: &'a [u8], integrity: Integrity) -> Result<Self, StateError> {
        let Envelope { format, flags, .. } = envelope(bytes)?;
        if flags != 0 {
            return Err(StateError::UnsupportedFlags { flags });
        }
        if integrity == Integrity::Unknown {
            verify_checksum(bytes)?;
        }
        let sections = usize::from(u16_at(bytes, 32));
        let freeze = FreezeInstant { boot_hash: u64_at(bytes, 16), boottime_ns: u64_at(bytes, 24) };
        let (envelope, body) = bytes.split_at(ENVELOPE_BYTES);
        if sections > MAX_SECTIONS || u16_at(envelope, 34) != 0 || u32_at(envelope, 36) != 0 {
            return Err(StateError::MalformedSection { index: 0 });
        }
        let (mut rest, mut present, mut needed, mut has_unmarked) = (body, 0, 0, false);
        for index in 0..sections {
            let (section, behind) =
                split_section(rest).ok_or(StateError::MalformedSection { index })?;
            present |= mark(section.tag);
            needed |= if section.optional { 0 } else { mark(section.tag) };
            has_unmarked |= section.tag >= MARKED_TAGS;
            rest = behind;
        }
        if !rest.is_empty() {
            return Err(StateError::MalformedSection { index: sections });
        }
        Ok(Self { format, freeze, sections, present, needed, has_unmarked, body })
    }

    /// The format version that it was written in.
    pub fn format(&self) -> u16 {
        self.format
    }

    /// When its connection was frozen.
    pub fn freeze(&self) -> FreezeInstant {
        self.freeze
    }

    /// All sections, in their order.
    pub fn sections(&self) -> Sections<'a> {
        Sections { rest: self.body, left: self.sections }
    }

    /// The first section with this tag.
    #[inline]
    pub fn section(&self, tag: u16) -> Option<Section<'a>> {
        if tag < MARKED_TAGS && self.present & mark(tag) == 0 {
            return None;
        }
        self.sections().find(|section| section.tag == tag)
    }

    /// The first section with this tag.
    ///
    /// # Errors
    /// [`StateError::MissingSection`] if there is none.
    #[inline]
    pub fn required(&self, tag: u16) -> Result<Section<'a>, StateError> {
        self.section(tag).ok_or(StateError::MissingSection { tag })
    }

    /// Refuses the record if it has a required section whose tag is not among `known`.
    ///
    /// # Errors
    /// [`StateError::UnknownSection`] with the first such tag.
    #[inline]
    pub fn refuse_unknown(&self, known: &[u16]) -> Result<(), StateError> {
        let marked = known.iter().fold(0, |marks, tag| marks | mark(*tag));
        if self.needed & !marked == 0 && !self.has_unmarked {
            return Ok(());
        }
        match self.sections().find(|section| !section.optional && !known.contains(&section.tag)) {
            Some(section) => Err(StateError::UnknownSection { tag: section.tag }),
            None => Ok(()),
        }
    }
}

/// Reads the envelope, and holds it against the bytes behind it.
#[inline]
pub(super) fn envelope(bytes: &[u8]) -> Result<Envelope, StateError> {
    if bytes.len() < ENVELOPE_BYTES || bytes[..4] != MAGIC {
        return Err(StateError::NotARecord);
    }
    let claimed = u32_at(bytes, LENGTH_OFFSET);
    if claimed as usize != bytes.len() || bytes.len() > MAX_RECORD_BYTES {
        let actual = bytes.len() as u64;
        return Err(StateError::WrongLength { claimed: u64::from(claimed), actual });
    }
    // Before the checksum: another format may compute another one.
    let format = u16_at(bytes, 8);
    if !(FORMAT_READS.oldest..=FORMAT_READS.newest).contains(&format) {
        return Err(StateError::UnknownFormat { format });
    }
    let flags = u16_at(bytes, FLAGS_OFFSET);
    let known = if format < FORMAT_WRAPPED { 0 } else { FLAG_ZSTD | FLAG_SEALED | FLAG_JSON };
    if flags & !known != 0 {
        return Err(StateError::UnsupportedFlags { flags });
    }
    Ok(Envelope { format, flags, plain_bytes: u32_at(bytes, PLAIN_LENGTH_OFFSET) as usize })
}

/// What an envelope says of the record's length, for records that follow each other.
pub(super) fn envelope_length(bytes: &[u8]) -> Result<usize, StateError> {
    if bytes.len() < ENVELOPE_BYTES || bytes[..4] != MAGIC {
        return Err(StateError::NotARecord);
    }
    let claimed = u32_at(bytes, LENGTH_OFFSET);
    if (claimed as usize) < ENVELOPE_BYTES || claimed as usize > MAX_RECORD_BYTES {
        let actual = bytes.len() as u64;
        return Err(StateError::WrongLength { claimed: u64::from(claimed), actual });
    }
    Ok(claimed as usize)
}

/// Holds the checksum against the bytes behind it.
#[inline]
pub(super) fn verify_checksum(bytes: &[u8]) -> Result<(), StateError> {
    let right = checksum(bytes) == u32_at(bytes, CRC_OFFSET);
    if right { Ok(()) } else { Err(StateError::WrongChecksum) }
}

/// Takes a section off the front; `None` if it does not fit.
#[inline]
fn split_section(bytes: &[u8]) -> Option<(Section<'_>, &[u8])> {
    let (header, rest) = bytes.split_at_checked(SECTION_HEADER_BYTES)?;
    let len = u32_at(header, 4) as usize;
    let head_len = u32_at(header, 8) as usize;
    let flags = u16_at(header, 12);
    if flags & !FLAG_OPTIONAL != 0 || u16_at(header, 14) != 0 {
        return None;
    }
    let (contents, _) = rest.split_at_checked(len)?;
    let (_, rest) = rest.split_at_checked(len.next_multiple_of(SECTION_ALIGN))?;
    let (head, tail) = contents.split_at_checked(head_len)?;
    let section = Section {
        tag: u16_at(header, 0),
        version: u16_at(header, 2),
        optional: flags & FLAG_OPTIONAL != 0,
        head,
        tail,
    };
    Some((section, rest))
}

/// Iterates over the sections of a [`Record`].
#[derive(Debug, Clone)]
pub struct Sections<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Sections<'a> {
    type Item = Section<'a>;

    #[inline]
    fn next(&mut self) -> Option<Section<'a>> {
        self.left = self.left.checked_sub(1)?;
        let (section, rest) = split_section(self.rest)?;
        self.rest = rest;
        Some(section)
    }
}

impl<'a> Section<'a> {
    /// What it is.
    pub fn tag(&self) -> u16 {
        self.tag
    }

    /// Version of its contents, for its reader.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// Whether a reader that does not know it may go on without.
    pub fn optional(&self) -> bool {
        self.optional
    }

    /// The head as a `T`: what an older writer left out is zero, what a newer one added is ignored.
    #[inline]
    pub fn head<T: Pod>(&self) -> T {
        let mut value = T::zeroed();
        let into = bytemuck::bytes_of_mut(&mut value);
        let len = into.len().min(self.head.len());
        into[..len].copy_from_slice(&self.head[..len]);
        value
    }

    /// The head's bytes, as they were written.
    pub fn head_bytes(&self) -> &'a [u8] {
        self.head
    }

    /// The variable bytes.
    #[inline]
    pub fn tail(&self) -> &'a [u8] {
        self.tail
    }
}
