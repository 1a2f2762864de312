//! The dynamic table of a decoder (RFC 7541 §2.3.2, §4).
//!
//! The entries' bytes lie one behind the other in one vector, the oldest first. What is evicted stays
//! there until it is a good part of the whole. An empty table holds no memory.
//!
//! Must not know: header blocks.

use std::collections::VecDeque;

use super::FIELD_OVERHEAD_BYTES;

/// One entry: where it begins in the bytes, and how long its parts are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    start: u32,
    name_bytes: u16,
    value_bytes: u16,
}

impl Entry {
    fn size(self) -> usize {
        usize::from(self.name_bytes) + usize::from(self.value_bytes) + FIELD_OVERHEAD_BYTES
    }
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    /// The newest last.
    entries: VecDeque<Entry>,
    bytes: Vec<u8>,
    /// Sum of the sizes of §4.1.
    size: usize,
    max_bytes: usize,
}

impl Table {
    /// Bytes of evicted entries that are not worth moving the others for.
    const SLACK_BYTES: usize = 1 << 10;

    pub(super) fn new(max_bytes: u32) -> Self {
        Self { max_bytes: max_bytes as usize, ..Self::default() }
    }

    pub(super) fn max_bytes(&self) -> u32 {
        self.max_bytes as u32
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Name and value; 0 is the newest.
    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<(&[u8], &[u8])> {
        let last = self.entries.len().checked_sub(1)?;
        let entry = self.entries.get(last.checked_sub(index)?)?;
        let start = entry.start as usize;
        let name_bytes = usize::from(entry.name_bytes);
        let bytes = &self.bytes[start..start + name_bytes + usize::from(entry.value_bytes)];
        Some(bytes.split_at(name_bytes))
    }

    /// RFC 7541 §4.4: an entry larger than the table empties it.
    pub(super) fn insert(&mut self, name: &[u8], value: &[u8]) {
        let size = name.len() + value.len() + FIELD_OVERHEAD_BYTES;
        if size > self.max_bytes {
            return self.evict_to(0);
        }
        self.evict_to(self.max_bytes - size);
        let dead = self.entries.front().map_or(self.bytes.len(), |entry| entry.start as usize);
        if dead > Self::SLACK_BYTES || self.entries.is_empty() {
            self.bytes.drain(..dead);
            for entry in &mut self.entries {
                entry.start -= dead as u32;
            }
        }
        // Both fit: the table is at most u16::MAX bytes large.
        let (name_bytes, value_bytes) = (name.len() as u16, value.len() as u16);
        self.entries.push_back(Entry { start: self.bytes.len() as u32, name_bytes, value_bytes });
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
        self.size += size;
    }

    /// RFC 7541 §4.3.
    pub(super) fn set_max_bytes(&mut self, max_bytes: u32) {
        self.max_bytes = max_bytes as usize;
        self.evict_to(self.max_bytes);
    }

    fn evict_to(&mut self, bytes: usize) {
        while self.size > bytes {
            let Some(entry) = self.entries.pop_front() else { break };
            self.size -= entry.size();
        }
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>() + self.bytes.capacity()
    }
}
