//! From a header block to fields (RFC 7541 §3.2, §6).
//!
//! A block cannot make more of itself than its receiver allows: what goes beyond the limits is counted
//! and left out, and decoding goes on, because the table must stay the peer's.
//!
//! Must not know: frames, what the fields mean.

use super::static_table::STATIC;
use super::table::Table;
use super::{DEFAULT_TABLE_BYTES, Error, Fields, huffman};

/// Bounds for one header list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Names, values, and 32 bytes for each field.
    pub max_list_bytes: usize,
    /// Fields.
    pub max_count: usize,
}

/// The receiving half of one connection. See the module.
#[derive(Debug, Clone)]
pub struct Decoder {
    pub(super) table: Table,
    /// The most that the peer may use, as was agreed.
    pub(super) limit_bytes: u32,
    /// The peer has to say in the next block that it uses no more than the limit.
    pub(super) update_due: bool,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// That of a new connection.
    pub fn new() -> Self {
        Self {
            table: Table::new(DEFAULT_TABLE_BYTES),
            limit_bytes: DEFAULT_TABLE_BYTES,
            update_due: false,
        }
    }

    /// The peer has acknowledged this table size (SETTINGS_HEADER_TABLE_SIZE, at most
    /// [`DEFAULT_TABLE_BYTES`]). If it is smaller than what is in use, the peer's next block must say so.
    pub fn set_limit(&mut self, bytes: u32) {
        self.limit_bytes = bytes.min(DEFAULT_TABLE_BYTES);
        self.update_due = self.table.max_bytes() > self.limit_bytes;
    }

    /// Entries in the dynamic table.
    pub fn entries(&self) -> usize {
        self.table.len()
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.table.heap_bytes()
    }

    /// Appends the fields of one whole header block. Names and values are any bytes.
    ///
    /// # Errors
    /// The block breaks RFC 7541. The table is of no use any more.
    pub fn decode(
        &mut self,
        block: &[u8],
        limits: &Limits,
        fields: &mut Fields,
    ) -> Result<(), Error> {
        let mut rest = block;
        let mut updates_allowed = true;
        while let Some(&first) = rest.first() {
            if first & 0xe0 == 0x20 {
                self.update(&mut rest, updates_allowed)?;
                continue;
            }
            if self.update_due {
                return Err(Error::UpdateMissing);
            }
            updates_allowed = false;
            let start = fields.bytes.len();
            let name_bytes = if first & 0x80 != 0 {
                let index = integer(&mut rest, 7)?;
                let (name, value) = self.entry(index)?;
                fields.bytes.extend_from_slice(name);
                fields.bytes.extend_from_slice(value);
                name.len()
            } else {
                // §6.2: with incremental indexing, or without, or never to be indexed.
                let is_indexed = first & 0x40 != 0;
                let index = integer(&mut rest, if is_indexed { 6 } else { 4 })?;
                if index == 0 {
                    string(&mut rest, &mut fields.bytes)?;
                } else {
                    fields.bytes.extend_from_slice(self.entry(index)?.0);
                }
                let name_bytes = fields.bytes.len() - start;
                string(&mut rest, &mut fields.bytes)?;
                if is_indexed {
                    let (name, value) = fields.bytes[start..].split_at(name_bytes);
                    self.table.insert(name, value);
                }
                name_bytes
            };
            fields.add(start, name_bytes, limits.max_list_bytes, limits.max_count);
        }
        Ok(())
    }

    /// RFC 7541 §6.3.
    fn update(&mut self, rest: &mut &[u8], is_allowed: bool) -> Result<(), Error> {
        let bytes = integer(rest, 5)?;
        if !is_allowed {
            return Err(Error::UpdateTooLate);
        }
        if bytes > self.limit_bytes {
            return Err(Error::UpdateTooLarge(bytes));
        }
        self.table.set_max_bytes(bytes);
        self.update_due = false;
        Ok(())
    }

    /// RFC 7541 §2.3.3.
    #[inline]
    fn entry(&self, index: u32) -> Result<(&[u8], &[u8]), Error> {
        let place = (index as usize).checked_sub(1).ok_or(Error::NoSuchEntry(index))?;
        if let Some((name, value)) = STATIC.get(place) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        self.table.get(place - STATIC.len()).ok_or(Error::NoSuchEntry(index))
    }
}

/// RFC 7541 §5.1, with a prefix of so many bits. More than 2^28 is no length and no index.
#[inline]
fn integer(rest: &mut &[u8], prefix_bits: u32) -> Result<u32, Error> {
    let (&first, mut bytes) = rest.split_first().ok_or(Error::Truncated)?;
    let mask = (1 << prefix_bits) - 1;
    let mut value = u32::from(first) & mask;
    if value == mask {
        let mut shift = 0;
        loop {
            let (&byte, further) = bytes.split_first().ok_or(Error::Truncated)?;
            bytes = further;
            if shift > 21 {
                return Err(Error::IntegerTooLarge);
            }
            value += u32::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *rest = bytes;
    Ok(value)
}

/// RFC 7541 §5.2.
#[inline]
fn string(rest: &mut &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    let is_huffman = rest.first().ok_or(Error::Truncated)? & 0x80 != 0;
    let length = integer(rest, 7)? as usize;
    let (bytes, further) = rest.split_at_checked(length).ok_or(Error::Truncated)?;
    *rest = further;
    if is_huffman {
        huffman::decode(bytes, out)
    } else {
        out.extend_from_slice(bytes);
        Ok(())
    }
}
