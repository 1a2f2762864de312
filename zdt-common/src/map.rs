//! Values of the maps.
//!
//! Must not know: how they are read and written.

use crate::{BANKS, BITMAP_WORDS, LAYOUT_VERSION};

/// Which banks new connections go to: the one word whose write is the flip.
///
/// Bits 0–31 the epoch, 32–39 the blue bank, 40–47 the green bank, 48–63 the canary share.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Route(pub u64);

impl Route {
    /// `canary_permille` of 1,000 new connections go to `green`, the others to `blue`. More than
    /// 1,000 counts as 1,000; banks are taken modulo [`BANKS`].
    pub const fn new(epoch: u32, blue: u32, green: u32, canary_permille: u16) -> Self {
        let permille = if canary_permille > 1000 { 1000 } else { canary_permille };
        Self(
            epoch as u64
                | ((blue % BANKS) as u64) << 32
                | ((green % BANKS) as u64) << 40
                | (permille as u64) << 48,
        )
    }

    /// Counts the flips. It also salts the canary draw, so that not always the same clients get it.
    pub const fn epoch(self) -> u32 {
        self.0 as u32
    }

    /// The outgoing bank.
    pub const fn blue(self) -> u32 {
        (self.0 >> 32) as u32 % BANKS
    }

    /// The incoming bank.
    pub const fn green(self) -> u32 {
        (self.0 >> 40) as u32 % BANKS
    }

    /// Share of new connections that go to green, of 1,000.
    pub const fn canary_permille(self) -> u32 {
        (self.0 >> 48) as u32
    }
}

/// Sends one SYN, known by its source port, to one slot, ready or not. All zeroes: no probe.
///
/// Bits 0–15 the source port, 16–31 the group, 32–47 the slot, 63 set.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Probe(pub u64);

impl Probe {
    /// A probe of `slot` in `group` by the connection that comes from `source_port`.
    pub const fn new(source_port: u16, group: u32, slot: u32) -> Self {
        Self(
            source_port as u64
                | ((group & 0xffff) as u64) << 16
                | ((slot & 0xffff) as u64) << 32
                | 1 << 63,
        )
    }

    /// True if a probe is under way in this group. Cheap, so that the packet is looked at only then.
    pub const fn concerns(self, group: u32) -> bool {
        self.0 >> 63 == 1 && (self.0 >> 16) as u32 & 0xffff == group
    }

    /// The slot under proof, if this is the connection that proves it.
    pub const fn slot_for(self, group: u32, source_port: u16) -> Option<u32> {
        if self.concerns(group) && self.0 as u16 == source_port {
            Some((self.0 >> 32) as u32 & 0xffff)
        } else {
            None
        }
    }
}

/// How a worker is chosen within a bank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// By the hash of addresses and ports.
    #[default]
    Hash,
    /// In turn.
    RoundRobin,
    /// The less loaded of two that are drawn at random.
    LeastLoaded,
}

impl Policy {
    /// As stored in a [`Group`].
    pub const fn code(self) -> u32 {
        match self {
            Policy::Hash => 0,
            Policy::RoundRobin => 1,
            Policy::LeastLoaded => 2,
        }
    }

    /// The policy with this code; hash for a code that nobody wrote.
    pub const fn from_code(code: u32) -> Self {
        match code {
            1 => Policy::RoundRobin,
            2 => Policy::LeastLoaded,
            _ => Policy::Hash,
        }
    }
}

/// A set of workers in every bank.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct WorkerBits(pub [[u64; BITMAP_WORDS]; BANKS as usize]);

impl WorkerBits {
    /// Adds or removes a worker. Panics if there is no such bank or worker.
    pub fn set(&mut self, bank: u32, worker: u32, member: bool) {
        let word = &mut self.0[bank as usize][worker as usize / 64];
        *word = if member { *word | 1 << (worker % 64) } else { *word & !(1 << (worker % 64)) };
    }

    /// True if the worker is in the set. Panics if there is no such bank or worker.
    pub fn contains(&self, bank: u32, worker: u32) -> bool {
        self.0[bank as usize][worker as usize / 64] >> (worker % 64) & 1 == 1
    }
}

/// One group: a listening address and its workers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Group {
    /// [`LAYOUT_VERSION`] of the build that made it; 0 in a group that is not in use.
    pub layout: u32,
    /// [`Policy::code`].
    pub policy: u32,
    /// Workers of a bank; part of every key, so it never changes.
    pub max_workers: u32,
    /// Port of the address, in host order.
    pub port: u32,
    /// The address: IPv6 as it is, IPv4 as an IPv4-mapped one.
    pub address: [u8; 16],
    /// Scope of a link-local IPv6 address.
    pub scope: u32,
    /// 4 or 6.
    pub family: u32,
    /// Workers that take new connections.
    pub ready: WorkerBits,
    /// Workers that have a socket in the map, ready or not.
    pub present: WorkerBits,
}

impl Group {
    /// True if the group is in use, by a build with this layout.
    pub const fn in_use(&self) -> bool {
        self.layout == LAYOUT_VERSION
    }
}

/// What happened to the connections of one slot in one group.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Counters {
    /// New connections (SYNs) that were sent here.
    pub selected: u64,
    /// Connections of a closed listener, queued or in their handshake, that were sent here.
    pub migrated: u64,
    /// How many of `selected` and `migrated` came here because their first choice failed.
    pub fallback: u64,
    /// Connections that were meant for this slot, and neither it nor any other could take.
    pub dropped: u64,
}

// The maps outlive the process that made them.
const _: () = assert!(size_of::<Group>() == 40 + 2 * 128 && align_of::<Group>() == 8);
const _: () = assert!(size_of::<Counters>() == 32);

#[cfg(feature = "user")]
mod user {
    use super::{Counters, Group, Probe, Route};

    // What aya asks for, no padding and no invalid bit patterns, `bytemuck::Pod` proves: it is derived
    // above for each of them.

    // SAFETY: derives `bytemuck::Pod`.
    unsafe impl aya::Pod for Route {}
    // SAFETY: derives `bytemuck::Pod`.
    unsafe impl aya::Pod for Probe {}
    // SAFETY: derives `bytemuck::Pod`.
    unsafe impl aya::Pod for Group {}
    // SAFETY: derives `bytemuck::Pod`.
    unsafe impl aya::Pod for Counters {}
}
