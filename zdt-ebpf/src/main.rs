//! The steering program: chooses the worker that gets a connection.
//!
//! The kernel runs it for every SYN (and every datagram) that arrives at a group of listening sockets,
//! and for every queued connection or handshake of a listener that closes (`migrate`). The decision is
//! [`zdt_common::steer`]; this file only brings it its maps.
//!
//! Must not know: why a bank is blue or green, who is ready and why.
#![no_std]
#![no_main]
// The target has no read-modify-write atomics in `core`, though the instruction set has (v3).
#![feature(asm_experimental_arch)]

use core::arch::asm;
use core::ffi::c_void;
use core::ptr;

use aya_ebpf::bindings::sk_action::{SK_DROP, SK_PASS};
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_loop};
use aya_ebpf::macros::{map, sk_reuseport};
use aya_ebpf::maps::{Array, PerCpuArray, ReusePortSockArray};
use aya_ebpf::programs::SkReuseportContext;
use zdt_common::{
    BANKS, BITMAP_WORDS, Counters, Environment, Group, MAX_GROUPS, MAX_WORKERS, Policy, Probe,
    Route, Search, Tally, group_entries, group_key, steer,
};

const BPF_F_MMAPABLE: u32 = 1 << 10;

/// The one word that a flip writes.
#[map]
static ROUTE: Array<Route> = Array::with_max_entries(1, 0);

/// The connection, if any, that proves a slot.
#[map]
static PROBE: Array<Probe> = Array::with_max_entries(1, 0);

/// Policy and members of each group.
#[map]
static GROUPS: Array<Group> = Array::with_max_entries(MAX_GROUPS, 0);

/// The sockets, by group and slot. The loader shrinks this and the next maps to the workers wanted.
#[map]
static SOCKETS: ReusePortSockArray =
    ReusePortSockArray::with_max_entries(group_entries(MAX_WORKERS), 0);

/// Round-robin tickets of each group.
#[map]
static TURNS: Array<u64> = Array::with_max_entries(MAX_GROUPS, 0);

/// Load of each slot, written by the workers through a mapping.
#[map]
static LOADS: Array<u32> = Array::with_max_entries(BANKS * MAX_WORKERS, BPF_F_MMAPABLE);

/// By group and slot; behind them one for each group, for what was meant for nobody.
#[map]
static COUNTERS: PerCpuArray<Counters> =
    PerCpuArray::with_max_entries(group_entries(MAX_WORKERS) + MAX_GROUPS, 0);

/// The maps, as seen by one decision.
struct Maps<'a> {
    context: &'a SkReuseportContext,
    group: u32,
    members: &'a Group,
    max_workers: u32,
}

impl Environment for Maps<'_> {
    #[inline(always)]
    fn ready(&self, bank: u32, word: u32) -> u64 {
        bits(&self.members.ready.0, bank, word)
    }

    #[inline(always)]
    fn present(&self, bank: u32, word: u32) -> u64 {
        bits(&self.members.present.0, bank, word)
    }

    #[inline(always)]
    fn load(&self, slot: u32) -> u32 {
        match LOADS.get_ptr(slot) {
            // SAFETY: a pointer to a value of the map, which the verifier has checked for null;
            // volatile because workers write it.
            Some(load) => unsafe { ptr::read_volatile(load) },
            None => u32::MAX,
        }
    }

    #[inline(always)]
    fn next_turn(&mut self) -> u32 {
        match TURNS.get_ptr_mut(self.group) {
            // SAFETY: a pointer to an aligned value of the map, which only this function changes.
            Some(turn) => unsafe { fetch_add_one(turn) as u32 },
            None => 0,
        }
    }

    #[inline(always)]
    fn random(&mut self) -> u32 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn select(&mut self, slot: u32) -> bool {
        let key = group_key(self.group, slot, self.max_workers);
        SOCKETS.select_reuseport(self.context, key).is_ok()
    }

    #[inline(always)]
    fn run(&mut self, search: &mut Search, steps: u32) {
        let mut both = Searching { maps: self, search };
        // SAFETY: the callback gets the context that it expects, which outlives the call. The helper
        // fails only for more steps than there can be.
        unsafe {
            bpf_loop(steps, search_step as *mut c_void, ptr::from_mut(&mut both).cast(), 0);
        }
    }
}

struct Searching<'a, 'b, 'c> {
    maps: &'a mut Maps<'b>,
    search: &'c mut Search,
}

/// One step of a search; 1 ends it.
unsafe extern "C" fn search_step(step: u32, context: *mut c_void) -> i64 {
    // SAFETY: `Maps::run` passes this very type, and nobody else has it meanwhile.
    let both = unsafe { &mut *context.cast::<Searching<'_, '_, '_>>() };
    both.search.step(both.maps, step).into()
}

#[inline(always)]
fn bits(bitmap: &[[u64; BITMAP_WORDS]; BANKS as usize], bank: u32, word: u32) -> u64 {
    let bank = &bitmap[(bank % BANKS) as usize];
    // SAFETY: within the bitmap; volatile because the supervisor writes it.
    unsafe { ptr::read_volatile(&bank[word as usize % BITMAP_WORDS]) }
}

/// Adds one and returns what was there before.
///
/// # Safety
/// The pointer is to an aligned value of a map.
#[inline(always)]
unsafe fn fetch_add_one(value: *mut u64) -> u64 {
    let mut before = 1u64;
    // SAFETY: one instruction that touches only the value, which the caller vouches for.
    unsafe {
        asm!(
            "{before} = atomic_fetch_add((u64 *)({value} + 0), {before})",
            value = in(reg) value,
            before = inout(reg) before,
        );
    }
    before
}

#[inline(always)]
fn count(key: u32, change: impl Fn(&mut Counters)) {
    if let Some(counters) = COUNTERS.get_ptr_mut(key) {
        // SAFETY: this CPU's own value; the program is not preempted by itself on one CPU.
        change(unsafe { &mut *counters });
    }
}

/// The source port of the TCP (or UDP) header at which the packet's data begins.
#[inline(always)]
fn source_port(context: &SkReuseportContext) -> Option<u16> {
    let data = context.data();
    if data + 2 > context.data_end() {
        return None;
    }
    // SAFETY: the two bytes are within the packet; the verifier makes sure of it.
    Some(u16::from_be(unsafe { ptr::read_unaligned(data as *const u16) }))
}

/// Steers one connection of a group. Not inlined: all entry points share it.
#[inline(never)]
fn steer_in_group(context: &SkReuseportContext, group: u32) -> u32 {
    let (Some(members), Some(route)) = (GROUPS.get(group), ROUTE.get_ptr(0)) else {
        return SK_PASS;
    };
    // SAFETY: a value of the map; volatile, once, because this read is the decision's place in time.
    let route = unsafe { ptr::read_volatile(route) };
    let max_workers = members.max_workers;
    if max_workers == 0 || max_workers > MAX_WORKERS {
        // The group is not in use: the kernel's own choice.
        return SK_PASS;
    }
    let migrating = context.migrating_sk().is_some();
    let mut maps = Maps { context, group, members, max_workers };

    if let Some(probe) = PROBE.get_ptr(0) {
        // SAFETY: as for the route.
        let probe = unsafe { ptr::read_volatile(probe) };
        if !migrating
            && probe.concerns(group)
            && let Some(port) = source_port(context)
            && let Some(slot) = probe.slot_for(group, port)
            && maps.select(slot)
        {
            count(group_key(group, slot, max_workers), |counters| counters.selected += 1);
            return SK_PASS;
        }
    }

    let policy = Policy::from_code(members.policy);
    let outcome = steer(&mut maps, route, policy, max_workers, context.hash());
    let key = match outcome.slot {
        Some(slot) => group_key(group, slot, max_workers),
        None => group_entries(max_workers) + group,
    };
    count(key, |counters| {
        if outcome.tally == Tally::Dropped {
            counters.dropped += 1;
            return;
        }
        if migrating {
            counters.migrated += 1;
        } else {
            counters.selected += 1;
        }
        if outcome.tally == Tally::Fallback {
            counters.fallback += 1;
        }
    });
    if outcome.tally == Tally::Dropped { SK_DROP } else { SK_PASS }
}

macro_rules! entry_points {
    ($($name:ident = $group:literal),* $(,)?) => {
        $(
            /// Entry point of one group.
            #[sk_reuseport(migrate)]
            pub fn $name(context: SkReuseportContext) -> u32 {
                steer_in_group(&context, $group)
            }
        )*
        const _: () = assert!([$($group),*].len() == MAX_GROUPS as usize);
    };
}

entry_points! {
    steer_0 = 0, steer_1 = 1, steer_2 = 2, steer_3 = 3, steer_4 = 4, steer_5 = 5, steer_6 = 6,
    steer_7 = 7, steer_8 = 8, steer_9 = 9, steer_10 = 10, steer_11 = 11, steer_12 = 12,
    steer_13 = 13, steer_14 = 14, steer_15 = 15, steer_16 = 16, steer_17 = 17, steer_18 = 18,
    steer_19 = 19, steer_20 = 20, steer_21 = 21, steer_22 = 22, steer_23 = 23, steer_24 = 24,
    steer_25 = 25, steer_26 = 26, steer_27 = 27, steer_28 = 28, steer_29 = 29, steer_30 = 30,
    steer_31 = 31,
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing here panics; a program that could would not pass the verifier.
    loop {}
}

/// `bpf_get_prandom_u32` and the socket helpers need no GPL; this only tells the kernel what is true.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"MIT\0";
