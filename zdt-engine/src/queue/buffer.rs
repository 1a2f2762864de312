//! One buffer's order: a list per priority, and a wheel of lists by expiry.
//!
//! All links sit in the nodes, so that a request enters and leaves in a constant number of steps,
//! wherever it stands.
//!
//! Must not know: the requests' bytes, clocks, bounds.

use super::blocks::Chain;
use super::priority::LEVELS;

const NONE: u32 = u32::MAX;

/// Slots of the wheel, one bit each in its occupancy word.
const SLOTS: u64 = 64;

/// Slots over which the greatest age extends; the others are slack for requests that are overdue.
const AGE_SLOTS: u64 = 56;

/// A held request, without its bytes.
#[derive(Debug, Clone, Copy)]
pub struct Node {
    /// Order of arrival over all buffers.
    pub sequence: u64,
    /// When it began to be held.
    pub since_ms: u64,
    /// The caller's.
    pub tag: u64,
    pub chain: Chain,
    /// Bytes before compression.
    pub raw_bytes: u32,
    next: u32,
    previous: u32,
    next_to_expire: u32,
    previous_to_expire: u32,
    /// Which buffer it is in.
    pub buffer: u16,
    pub level: u8,
    slot: u8,
    pub compressed: bool,
    pub may_have_been_sent: bool,
    pub occupied: bool,
}

const _: () = assert!(size_of::<Node>() <= 64, "part of what a held request costs");

/// All nodes of a queue; freed ones are used again.
#[derive(Debug)]
pub struct Nodes {
    nodes: Vec<Node>,
    free: u32,
}

impl Nodes {
    pub fn new() -> Self {
        Self { nodes: Vec::new(), free: NONE }
    }

    pub fn allocated_bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>()
    }

    pub fn at(&self, index: u32) -> &Node {
        &self.nodes[index as usize]
    }

    pub fn at_mut(&mut self, index: u32) -> &mut Node {
        &mut self.nodes[index as usize]
    }

    /// The node, if it still is the request with that sequence.
    pub fn find(&self, index: u32, sequence: u64) -> Option<&Node> {
        self.nodes.get(index as usize).filter(|node| node.occupied && node.sequence == sequence)
    }

    fn insert(&mut self, node: Node) -> u32 {
        if self.free == NONE {
            self.nodes.push(node);
            return self.nodes.len() as u32 - 1;
        }
        let index = self.free;
        self.free = self.nodes[index as usize].next;
        self.nodes[index as usize] = node;
        index
    }

    fn remove(&mut self, index: u32) -> Node {
        let node = self.nodes[index as usize];
        self.nodes[index as usize].occupied = false;
        self.nodes[index as usize].next = self.free;
        self.free = index;
        node
    }

    pub fn clear(&mut self) {
        *self = Self::new();
    }
}

#[derive(Debug, Clone, Copy)]
struct List {
    first: u32,
    last: u32,
}

impl List {
    const EMPTY: Self = Self { first: NONE, last: NONE };
}

/// What a request brings along.
#[derive(Debug, Clone, Copy)]
pub struct Entrant {
    pub sequence: u64,
    pub since_ms: u64,
    pub tag: u64,
    pub chain: Chain,
    pub raw_bytes: u32,
    pub buffer: u16,
    pub level: u8,
    pub compressed: bool,
    pub may_have_been_sent: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Buffer {
    levels: [List; LEVELS],
    counts: [u32; LEVELS],
    slots: [List; SLOTS as usize],
    /// A bit for each slot that is not empty.
    occupied: u64,
    /// No request is in an earlier slot. Slots count from the clock's zero; slot s is list s mod 64.
    base: u64,
    slot_ms: u64,
    max_age_ms: u64,
    pub requests: usize,
    pub bytes: usize,
    /// True while requests are taken in.
    pub open: bool,
}

impl Buffer {
    pub fn new(max_age_ms: u64) -> Self {
        Self {
            levels: [List::EMPTY; LEVELS],
            counts: [0; LEVELS],
            slots: [List::EMPTY; SLOTS as usize],
            occupied: 0,
            base: 0,
            slot_ms: max_age_ms.div_ceil(AGE_SLOTS).max(1),
            max_age_ms,
            requests: 0,
            bytes: 0,
            open: false,
        }
    }

    /// Appends to the list of its priority. Constant time.
    pub fn insert(&mut self, nodes: &mut Nodes, entrant: Entrant) -> u32 {
        let level = usize::from(entrant.level);
        let previous = self.levels[level].last;
        let index = nodes.insert(Node {
            sequence: entrant.sequence,
            since_ms: entrant.since_ms,
            tag: entrant.tag,
            chain: entrant.chain,
            raw_bytes: entrant.raw_bytes,
            next: NONE,
            previous,
            next_to_expire: NONE,
            previous_to_expire: NONE,
            buffer: entrant.buffer,
            level: entrant.level,
            slot: 0,
            compressed: entrant.compressed,
            may_have_been_sent: entrant.may_have_been_sent,
            occupied: true,
        });
        match previous {
            NONE => self.levels[level].first = index,
            previous => nodes.at_mut(previous).next = index,
        }
        self.levels[level].last = index;
        let slot = self.true_slot(nodes.at(index));
        self.link_into_wheel(nodes, index, slot);
        self.counts[level] += 1;
        self.requests += 1;
        self.bytes += entrant.chain.bytes as usize;
        index
    }

    /// The list for an absolute slot. All requests must lie within 64 slots: one that does not (the
    /// clock has stood still for long, or others are far overdue) goes to the nearest end.
    fn slot_for(&mut self, slot: u64) -> usize {
        if self.occupied == 0 {
            self.base = slot;
        } else if slot < self.base {
            // As far back as the wheel reaches. That is long overdue, too: it reaches further than the
            // greatest age.
            self.base = slot.max((self.base + self.span()).saturating_sub(SLOTS - 1));
        }
        (slot.clamp(self.base, self.base + SLOTS - 1) % SLOTS) as usize
    }

    /// Slots from the base to the last one that is occupied.
    fn span(&self) -> u64 {
        let from_base = self.occupied.rotate_right((self.base % SLOTS) as u32);
        SLOTS - 1 - u64::from(from_base.leading_zeros().min(63))
    }

    /// Takes a request out. Constant time.
    pub fn remove(&mut self, nodes: &mut Nodes, index: u32) -> Node {
        self.unlink_from_wheel(nodes, index);
        let node = nodes.remove(index);
        let level = &mut self.levels[usize::from(node.level)];
        match node.previous {
            NONE => level.first = node.next,
            previous => nodes.at_mut(previous).next = node.next,
        }
        match node.next {
            NONE => level.last = node.previous,
            next => nodes.at_mut(next).previous = node.previous,
        }
        self.counts[usize::from(node.level)] -= 1;
        self.requests -= 1;
        self.bytes -= node.chain.bytes as usize;
        node
    }

    /// First request of the highest priority.
    pub fn first(&self) -> Option<u32> {
        self.levels.iter().rev().map(|list| list.first).find(|&first| first != NONE)
    }

    /// First request of that priority.
    pub fn first_of(&self, level: usize) -> Option<u32> {
        Some(self.levels[level].first).filter(|&first| first != NONE)
    }

    /// Requests of that priority.
    pub fn requests_of(&self, level: usize) -> usize {
        self.counts[level] as usize
    }

    /// The request behind that one in its priority.
    pub fn next(nodes: &Nodes, index: u32) -> Option<u32> {
        Some(nodes.at(index).next).filter(|&next| next != NONE)
    }

    /// The one that is held longest, within a slot's width. Constant time.
    pub fn oldest(&self) -> Option<u32> {
        if self.occupied == 0 {
            return None;
        }
        let slot = (self.base + self.distance_to_first()) % SLOTS;
        Some(self.slots[slot as usize].first)
    }

    /// When [`Buffer::expired`] may find something.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        if self.occupied == 0 {
            return None;
        }
        let slot = self.base + self.distance_to_first();
        Some(slot.saturating_mul(self.slot_ms))
    }

    /// A request whose time is over, if there is one: never older than the bound, at most the width of
    /// a slot younger.
    pub fn expired(&mut self, nodes: &mut Nodes, now_ms: u64) -> Option<u32> {
        while self.next_expiry_ms()? <= now_ms {
            let index = self.oldest()?;
            let slot = self.true_slot(nodes.at(index));
            if slot.saturating_mul(self.slot_ms) <= now_ms {
                return Some(index);
            }
            // It was put into a nearer slot than its own, for want of reach.
            self.base += self.distance_to_first();
            self.unlink_from_wheel(nodes, index);
            self.link_into_wheel(nodes, index, slot);
        }
        None
    }

    fn true_slot(&self, node: &Node) -> u64 {
        node.since_ms.saturating_add(self.max_age_ms) / self.slot_ms
    }

    fn distance_to_first(&self) -> u64 {
        let from_base = self.occupied.rotate_right((self.base % SLOTS) as u32);
        u64::from(from_base.trailing_zeros())
    }

    fn link_into_wheel(&mut self, nodes: &mut Nodes, index: u32, slot: u64) {
        let slot = self.slot_for(slot);
        let list = &mut self.slots[slot];
        let node = nodes.at_mut(index);
        (node.slot, node.next_to_expire, node.previous_to_expire) = (slot as u8, NONE, list.last);
        match list.last {
            NONE => list.first = index,
            previous => nodes.at_mut(previous).next_to_expire = index,
        }
        list.last = index;
        self.occupied |= 1 << slot;
    }

    fn unlink_from_wheel(&mut self, nodes: &mut Nodes, index: u32) {
        let node = *nodes.at(index);
        let list = &mut self.slots[usize::from(node.slot)];
        match node.previous_to_expire {
            NONE => list.first = node.next_to_expire,
            previous => nodes.at_mut(previous).next_to_expire = node.next_to_expire,
        }
        match node.next_to_expire {
            NONE => list.last = node.previous_to_expire,
            next => nodes.at_mut(next).previous_to_expire = node.previous_to_expire,
        }
        if list.first == NONE {
            self.occupied &= !(1 << node.slot);
        }
    }

    /// Visits what is overdue without taking it.
    pub fn each_expired(&self, nodes: &Nodes, now_ms: u64, visit: &mut dyn FnMut(u32)) {
        for offset in 0..SLOTS {
            let slot = self.base + offset;
            if slot.saturating_mul(self.slot_ms) > now_ms {
                return;
            }
            let mut index = self.slots[(slot % SLOTS) as usize].first;
            while index != NONE {
                if self.true_slot(nodes.at(index)).saturating_mul(self.slot_ms) <= now_ms {
                    visit(index);
                }
                index = nodes.at(index).next_to_expire;
            }
        }
    }

    /// Other bytes for a request, after compression.
    pub fn account(&mut self, before: usize, after: usize) {
        self.bytes = self.bytes - before + after;
    }
}
