//! A decoded header list: names and values one behind the other in one vector, which its owner uses
//! again for the next.
//!
//! Must not know: how it was encoded, which fields may be there.

use super::FIELD_OVERHEAD_BYTES;

/// Where a field is.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: u32,
    name_bytes: u32,
    value_bytes: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Fields {
    pub(super) bytes: Vec<u8>,
    spans: Vec<Span>,
    list_bytes: usize,
    too_large: bool,
}

impl Fields {
    /// Capacity above which the memory is not kept for the next list.
    const MOST_KEPT: usize = 64 << 10;

    /// Forgets the list, keeps the memory unless it is a lot.
    pub fn clear(&mut self) {
        if self.bytes.capacity() > Self::MOST_KEPT {
            *self = Self::default();
        }
        self.bytes.clear();
        self.spans.clear();
        self.list_bytes = 0;
        self.too_large = false;
    }

    /// True if fields were left out because the list went over its limits.
    pub fn is_too_large(&self) -> bool {
        self.too_large
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Name and value of one field.
    #[inline]
    pub fn get(&self, index: usize) -> Option<(&[u8], &[u8])> {
        self.spans.get(index).map(|span| self.at(*span))
    }

    /// All of them, in order.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.spans.iter().map(|span| self.at(*span))
    }

    #[inline]
    fn at(&self, span: Span) -> (&[u8], &[u8]) {
        let start = span.start as usize;
        let (name_bytes, value_bytes) = (span.name_bytes as usize, span.value_bytes as usize);
        self.bytes[start..start + name_bytes + value_bytes].split_at(name_bytes)
    }

    /// Adds a field.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
        self.add(start, name.len(), usize::MAX, usize::MAX);
    }

    /// What has been put behind `start` becomes a field, if the limits allow.
    #[inline]
    pub(super) fn add(
        &mut self,
        start: usize,
        name_bytes: usize,
        max_list_bytes: usize,
        max_count: usize,
    ) {
        let value_bytes = self.bytes.len() - start - name_bytes;
        self.list_bytes += name_bytes + value_bytes + FIELD_OVERHEAD_BYTES;
        if self.too_large || self.list_bytes > max_list_bytes || self.spans.len() >= max_count {
            self.too_large = true;
            self.bytes.truncate(start);
            return;
        }
        self.spans.push(Span {
            start: start as u32,
            name_bytes: name_bytes as u32,
            value_bytes: value_bytes as u32,
        });
    }

    /// Joins all fields of that name into the first one; a list with fewer than two stays as it is.
    pub fn join(&mut self, name: &[u8], separator: &[u8]) {
        let is_it = |fields: &Self, span: &Span| fields.at(*span).0 == name;
        let found: Vec<usize> =
            (0..self.spans.len()).filter(|index| is_it(self, &self.spans[*index])).collect();
        let [first, rest @ ..] = &found[..] else { return };
        if rest.is_empty() {
            return;
        }
        let mut joined = name.to_vec();
        for (place, index) in found.iter().enumerate() {
            if place > 0 {
                joined.extend_from_slice(separator);
            }
            joined.extend_from_slice(self.at(self.spans[*index]).1);
        }
        self.spans[*first] = Span {
            start: self.bytes.len() as u32,
            name_bytes: name.len() as u32,
            value_bytes: (joined.len() - name.len()) as u32,
        };
        self.bytes.extend_from_slice(&joined);
        let mut index = 0;
        self.spans.retain(|_| {
            index += 1;
            !rest.contains(&(index - 1))
        });
    }
}
