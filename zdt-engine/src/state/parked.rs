//! A parked session as a record: who may have it back, until when, and what it saved.
//!
//! Parked sessions outlive a boot, so theirs is the only state with a time of day in it.
//!
//! Must not know: who parks, where it is kept.

use bytemuck::{Pod, Zeroable};

use super::read::envelope_length;
use super::{Integrity, Record, StateError, Unpacker};

/// Identity, end, timer.
pub const TAG_PARKED: u16 = 30;
/// The session: kind, then what it saved; as in a connection's record.
pub const TAG_PARKED_SESSION: u16 = 31;

/// Largest parked session.
pub const MAX_PARKED_BYTES: usize = 1 << 20;

/// Largest record of one, with everything around it.
const MAX_PARKED_RECORD_BYTES: usize = MAX_PARKED_BYTES + 1_024;

/// Fixed part of [`TAG_PARKED`].
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct ParkedHead {
    /// Random; the client's token names it.
    pub id: [u8; 16],
    /// Seconds since the epoch.
    pub expires_unix_s: u64,
    /// Until the session's timer is due, plus one; 0 where there is none.
    pub timer_remaining_ms: u64,
}

const _: () = assert!(size_of::<ParkedHead>() == 32);

/// Fixed part of [`TAG_PARKED_SESSION`].
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct ParkedSessionHead {
    /// Bytes of the kind, at the start of the tail.
    pub kind_bytes: u16,
    /// The session's own version.
    pub version: u16,
}

/// A parked session, decoded. Borrows its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parked<'a> {
    /// See [`ParkedHead`].
    pub head: ParkedHead,
    /// Names it for the service.
    pub kind: &'a str,
    /// The session's own version.
    pub version: u16,
    /// What it saved.
    pub bytes: &'a [u8],
}

impl<'a> Parked<'a> {
    /// Makes the record plain and reads it. What it takes is bounded, whatever the record claims.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(
        record: &'a mut Vec<u8>,
        integrity: Integrity,
        unpacker: &mut Unpacker,
    ) -> Result<Self, StateError> {
        let invalid = |reason| StateError::InvalidSection { tag: TAG_PARKED_SESSION, reason };
        let integrity = unpacker.unpack_within(record, integrity, MAX_PARKED_RECORD_BYTES)?;
        let record = Record::parse_checked(record, integrity)?;
        record.refuse_unknown(&[TAG_PARKED, TAG_PARKED_SESSION])?;
        let head = record.required(TAG_PARKED)?.head();
        let section = record.required(TAG_PARKED_SESSION)?;
        let session: ParkedSessionHead = section.head();
        let (kind, bytes) = section
            .tail()
            .split_at_checked(usize::from(session.kind_bytes))
            .ok_or(invalid("the kind is longer than all"))?;
        let kind = std::str::from_utf8(kind).map_err(|_| invalid("the kind is no text"))?;
        Ok(Self { head, kind, version: session.version, bytes })
    }
}

/// Takes the first of several records that follow each other off the front.
///
/// # Errors
/// If what is there does not begin with a record that fits.
pub fn split_record(bytes: &[u8]) -> Result<(&[u8], &[u8]), StateError> {
    let length = envelope_length(bytes)?;
    bytes
        .split_at_checked(length)
        .ok_or(StateError::WrongLength { claimed: length as u64, actual: bytes.len() as u64 })
}
