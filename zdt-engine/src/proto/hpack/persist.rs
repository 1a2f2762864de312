//! The saved form of a [`Decoder`] between two header blocks: its table, entry by entry.
//!
//! A record may be hostile: a table that no peer could have built is refused.
//!
//! Must not know: the envelope and section tags around it.

use serde::{Deserialize, Serialize};

use super::table::Table;
use super::{DEFAULT_TABLE_BYTES, Decoder, FIELD_OVERHEAD_BYTES};

/// The saved form of a [`Decoder`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecoderState {
    /// What was agreed.
    pub limit_bytes: u32,
    /// What the peer uses.
    pub table_bytes: u32,
    /// The peer has to say that it uses no more than the limit.
    pub update_due: bool,
    /// Names and values, the oldest first.
    pub entries: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Why a saved table is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Fewer bytes than it says.
    #[error("HPACK table is truncated")]
    Truncated,
    /// More than a table may hold.
    #[error("HPACK table is too large")]
    TooLarge,
}

impl Decoder {
    /// The state at this moment.
    pub fn save(&self) -> DecoderState {
        let entries = (0..self.table.len()).rev().filter_map(|index| self.table.get(index));
        DecoderState {
            limit_bytes: self.limit_bytes,
            table_bytes: self.table.max_bytes(),
            update_due: self.update_due,
            entries: entries.map(|(name, value)| (name.to_vec(), value.to_vec())).collect(),
        }
    }

    /// The decoder that was saved.
    ///
    /// # Errors
    /// `TooLarge`.
    pub fn restore(state: &DecoderState) -> Result<Self, RestoreError> {
        if state.limit_bytes > DEFAULT_TABLE_BYTES || state.table_bytes > DEFAULT_TABLE_BYTES {
            return Err(RestoreError::TooLarge);
        }
        let mut table = Table::new(state.table_bytes);
        for (name, value) in &state.entries {
            let before = table.len();
            if name.len() + value.len() + FIELD_OVERHEAD_BYTES > state.table_bytes as usize {
                return Err(RestoreError::TooLarge);
            }
            table.insert(name, value);
            if table.len() != before + 1 {
                return Err(RestoreError::TooLarge); // an earlier entry had to go
            }
        }
        Ok(Self { table, limit_bytes: state.limit_bytes, update_due: state.update_due })
    }

    /// Bytes of what [`Decoder::encode_entries`] appends.
    pub fn encoded_bytes(&self) -> usize {
        let entries = (0..self.table.len()).filter_map(|index| self.table.get(index));
        entries.map(|(name, value)| 4 + name.len() + value.len()).sum()
    }

    /// Appends the table's entries, the oldest first: two lengths (u16), name, value.
    pub fn encode_entries(&self, out: &mut Vec<u8>) {
        for index in (0..self.table.len()).rev() {
            let Some((name, value)) = self.table.get(index) else { continue };
            out.extend_from_slice(&(name.len() as u16).to_le_bytes());
            out.extend_from_slice(&(value.len() as u16).to_le_bytes());
            out.extend_from_slice(name);
            out.extend_from_slice(value);
        }
    }

    /// The sizes that go with the entries: agreed, in use, and whether the peer owes an update.
    pub fn sizes(&self) -> (u32, u32, bool) {
        (self.limit_bytes, self.table.max_bytes(), self.update_due)
    }
}

impl DecoderState {
    /// Reads what [`Decoder::encode_entries`] and [`Decoder::sizes`] said.
    ///
    /// # Errors
    /// `Truncated`, `TooLarge`.
    pub fn decode(
        (limit_bytes, table_bytes, update_due): (u32, u32, bool),
        mut bytes: &[u8],
    ) -> Result<Self, RestoreError> {
        // An entry has 4 bytes here and counts at least 32.
        if bytes.len() > DEFAULT_TABLE_BYTES as usize {
            return Err(RestoreError::TooLarge);
        }
        let mut entries = Vec::new();
        while !bytes.is_empty() {
            let (lengths, rest) = bytes.split_first_chunk::<4>().ok_or(RestoreError::Truncated)?;
            let name_bytes = usize::from(u16::from_le_bytes([lengths[0], lengths[1]]));
            let value_bytes = usize::from(u16::from_le_bytes([lengths[2], lengths[3]]));
            let (name, rest) = rest.split_at_checked(name_bytes).ok_or(RestoreError::Truncated)?;
            let (value, rest) =
                rest.split_at_checked(value_bytes).ok_or(RestoreError::Truncated)?;
            entries.push((name.to_vec(), value.to_vec()));
            bytes = rest;
        }
        Ok(Self { limit_bytes, table_bytes, update_due, entries })
    }
}
