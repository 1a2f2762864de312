//! The decision on the host, against a plain model of it.

use proptest::prelude::*;
use zdt_common::{
    BANKS, BITMAP_WORDS, Environment, Group, MAX_WORKERS, Policy, Probe, Route, Search, Tally,
    WorkerBits, bank_of, group_entries, group_key, nth_bit, slot, steer,
};

/// Maps of plain memory. `alive` says which slots have a socket in the kernel's eyes.
#[derive(Clone, Debug)]
struct Host {
    ready: WorkerBits,
    present: WorkerBits,
    alive: Vec<bool>,
    loads: Vec<u32>,
    turn: u32,
    randoms: Vec<u32>,
    next_random: usize,
    tried: Vec<u32>,
}

impl Host {
    fn new(max_workers: u32) -> Self {
        let slots = (BANKS * max_workers) as usize;
        Self {
            ready: WorkerBits::default(),
            present: WorkerBits::default(),
            alive: vec![false; slots],
            loads: vec![0; slots],
            turn: 0,
            randoms: vec![0],
            next_random: 0,
            tried: Vec::new(),
        }
    }

    /// A worker that is there and ready.
    fn add(&mut self, bank: u32, worker: u32, max_workers: u32) {
        self.ready.set(bank, worker, true);
        self.present.set(bank, worker, true);
        self.alive[slot(bank, worker, max_workers) as usize] = true;
    }
}

impl Environment for Host {
    fn ready(&self, bank: u32, word: u32) -> u64 {
        self.ready.0[bank as usize][word as usize]
    }

    fn present(&self, bank: u32, word: u32) -> u64 {
        self.present.0[bank as usize][word as usize]
    }

    fn load(&self, slot: u32) -> u32 {
        self.loads[slot as usize]
    }

    fn next_turn(&mut self) -> u32 {
        self.turn = self.turn.wrapping_add(1);
        self.turn - 1
    }

    fn random(&mut self) -> u32 {
        self.next_random += 1;
        self.randoms[(self.next_random - 1) % self.randoms.len()]
    }

    fn select(&mut self, slot: u32) -> bool {
        self.tried.push(slot);
        self.alive[slot as usize]
    }

    fn run(&mut self, search: &mut Search, steps: u32) {
        for step in 0..steps {
            if search.step(self, step) {
                return;
            }
        }
    }
}

fn policies() -> impl Strategy<Value = Policy> {
    prop_oneof![Just(Policy::Hash), Just(Policy::RoundRobin), Just(Policy::LeastLoaded)]
}

fn routes() -> impl Strategy<Value = Route> {
    (any::<u32>(), 0..BANKS, 0..BANKS, 0..=1000u16)
        .prop_map(|(epoch, blue, green, permille)| Route::new(epoch, blue, green, permille))
}

/// Any host, with slots that are ready or not, there or not, alive or not.
fn hosts() -> impl Strategy<Value = (u32, Host)> {
    (1..=MAX_WORKERS).prop_flat_map(|max_workers| {
        let slots = (BANKS * max_workers) as usize;
        (
            prop::collection::vec(0..8u8, slots),
            prop::collection::vec(any::<u32>(), slots),
            prop::collection::vec(any::<u32>(), 1..4),
            any::<u32>(),
            // How many slots there are at all: often few.
            prop_oneof![Just(0.02), Just(0.3), Just(1.0)],
        )
            .prop_map(move |(states, loads, randoms, turn, density)| {
                let mut host = Host::new(max_workers);
                let cut = (f64::from(u32::MAX) * density) as u32;
                for (index, state) in (0u32..).zip(states) {
                    let (bank, worker) = (index / max_workers, index % max_workers);
                    if loads[index as usize] > cut {
                        continue;
                    }
                    host.present.set(bank, worker, state & 1 != 0);
                    host.ready.set(bank, worker, state & 3 == 3);
                    host.alive[index as usize] = state & 1 != 0 && state & 4 != 0;
                }
                host.loads = loads;
                host.randoms = randoms;
                host.turn = turn;
                (max_workers, host)
            })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever the maps hold: a slot that is taken exists and is alive, one that is not ready is never
    /// even tried as long as a ready one can take it, and a connection is dropped only if nobody can.
    #[test]
    fn outcomes_are_right(
        (max_workers, mut host) in hosts(),
        route in routes(),
        policy in policies(),
        hash: u32,
    ) {
        let before = host.clone();
        let outcome = steer(&mut host, route, policy, max_workers, hash);
        let all = || (0..BANKS * max_workers).map(|slot| (slot, slot / max_workers, slot % max_workers));
        let ready_and_alive =
            all().any(|(slot, bank, worker)| before.ready.contains(bank, worker) && before.alive[slot as usize]);
        let any_alive = all().any(|(slot, _, _)| before.alive[slot as usize]);
        let wanted_bank = bank_of(route, hash);
        let wanted_ready = all().any(|(_, bank, worker)| bank == wanted_bank && before.ready.contains(bank, worker));
        match outcome.tally {
            Tally::Dropped => {
                prop_assert!(!any_alive);
                prop_assert_eq!(outcome.slot.is_some(), wanted_ready);
            }
            Tally::FirstChoice | Tally::Fallback => {
                let slot = outcome.slot.expect("a slot took it");
                let (bank, worker) = (slot / max_workers, slot % max_workers);
                prop_assert!(before.alive[slot as usize]);
                prop_assert_eq!(before.ready.contains(bank, worker), ready_and_alive);
                prop_assert_eq!(host.tried.last(), Some(&slot));
                if outcome.tally == Tally::FirstChoice {
                    prop_assert_eq!(bank, wanted_bank);
                    prop_assert_eq!(host.tried.len(), 1);
                } else {
                    // The route's banks come before the others, the chosen one before its partner.
                    let rank = |bank: u32| match bank {
                        bank if bank == wanted_bank => 0,
                        bank if bank == route.blue() || bank == route.green() => 1,
                        _ => 2,
                    };
                    let best = all()
                        .filter(|(slot, bank, worker)| {
                            before.alive[*slot as usize]
                                && before.ready.contains(*bank, *worker) == ready_and_alive
                        })
                        .map(|(_, bank, _)| rank(bank))
                        .min();
                    prop_assert_eq!(Some(rank(bank)), best);
                }
            }
        }
        for tried in host.tried {
            prop_assert!(tried < BANKS * max_workers);
            if ready_and_alive {
                prop_assert!(before.ready.contains(tried / max_workers, tried % max_workers));
            }
        }
    }

    #[test]
    fn nth_bit_is_the_nth_bit(word: u64, n in 0..64u32) {
        let expected = (0..64).filter(|bit| word >> bit & 1 == 1).nth(n as usize);
        if let Some(expected) = expected {
            prop_assert_eq!(nth_bit(word, n), expected);
        }
    }

    #[test]
    fn routes_keep_their_fields(epoch: u32, blue in 0..BANKS, green in 0..BANKS, permille in 0..=1000u16) {
        let route = Route::new(epoch, blue, green, permille);
        prop_assert_eq!(route.epoch(), epoch);
        prop_assert_eq!(route.blue(), blue);
        prop_assert_eq!(route.green(), green);
        prop_assert_eq!(route.canary_permille(), u32::from(permille));
    }

    /// Bytes of two routes in any mixture, as a torn write might leave them, name only banks of the two.
    #[test]
    fn a_torn_route_is_one_of_the_two(one in routes(), other in routes(), mask: u8, hash: u32) {
        let torn = (0..8).fold(0u64, |torn, byte| {
            let from = if mask >> byte & 1 == 1 { one } else { other };
            torn | from.0 & 0xff << (byte * 8)
        });
        let bank = bank_of(Route(torn), hash);
        prop_assert!([one.blue(), one.green(), other.blue(), other.green()].contains(&bank));
    }

    #[test]
    fn probes_hit_their_connection_only(port: u16, group in 0..32u32, slot in 0..1024u32, other_port: u16, other_group in 0..32u32) {
        let probe = Probe::new(port, group, slot);
        prop_assert_eq!(probe.slot_for(group, port), Some(slot));
        let same = port == other_port && group == other_group;
        prop_assert_eq!(probe.slot_for(other_group, other_port).is_some(), same);
        prop_assert_eq!(probe.concerns(other_group), group == other_group);
        prop_assert_eq!(Probe::default().slot_for(other_group, other_port), None);
    }

    #[test]
    fn the_canary_share_is_what_was_asked(epoch: u32, permille in 0..=1000u16) {
        let route = Route::new(epoch, 0, 1, permille);
        let green = (0..20_000u32)
            .filter(|number| bank_of(route, number.wrapping_mul(0x0101_6b2d)) == 1)
            .count();
        // Six standard deviations.
        let expected = 20 * usize::from(permille);
        prop_assert!(green.abs_diff(expected) <= 430, "{} of {}", green, expected);
        prop_assert!(permille != 0 || green == 0);
        prop_assert!(permille != 1000 || green == 20_000);
    }
}

#[test]
fn round_robin_takes_turns() {
    let mut host = Host::new(200);
    for worker in [3, 63, 64, 199] {
        host.add(2, worker, 200);
    }
    let route = Route::new(0, 2, 2, 0);
    let took: Vec<_> = (0..8)
        .map(|_| steer(&mut host, route, Policy::RoundRobin, 200, 0).slot.expect("a slot") - 400)
        .collect();
    assert_eq!(took, [3, 63, 64, 199, 3, 63, 64, 199]);
}

#[test]
fn hash_is_even_and_stable() {
    let mut host = Host::new(8);
    (0..8).for_each(|worker| host.add(1, worker, 8));
    let route = Route::new(0, 1, 1, 0);
    let mut counts = [0; 8];
    for number in 0..8000u32 {
        let hash = number.wrapping_mul(0x9e37_79b1);
        let first = steer(&mut host, route, Policy::Hash, 8, hash);
        assert_eq!(steer(&mut host, route, Policy::Hash, 8, hash), first);
        counts[first.slot.expect("a slot") as usize - 8] += 1;
    }
    assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
}

#[test]
fn least_loaded_takes_the_less_loaded_of_any_two() {
    // Every pair of draws: the two are never the same, and the less loaded wins.
    for (first, second) in (0..64u32).flat_map(|a| (0..64u32).map(move |b| (a << 26, b << 26))) {
        let mut host = Host::new(4);
        (0..4).for_each(|worker| host.add(0, worker, 4));
        host.loads[..4].copy_from_slice(&[30, 10, 20, 40]);
        host.randoms = vec![first, second];
        let outcome = steer(&mut host, Route::new(0, 0, 0, 0), Policy::LeastLoaded, 4, 0);
        let drawn = first >> 30;
        let other = (drawn + 1 + (((second as u64) * 3) >> 32) as u32) % 4;
        assert_ne!(drawn, other);
        let expected = [drawn, other].into_iter().min_by_key(|worker| host.loads[*worker as usize]);
        assert_eq!(outcome.slot, expected);
    }
}

#[test]
fn keys_do_not_overlap() {
    for max_workers in [1, 3, MAX_WORKERS] {
        let keys: Vec<_> = (0..zdt_common::MAX_GROUPS)
            .flat_map(|group| {
                (0..BANKS * max_workers).map(move |slot| group_key(group, slot, max_workers))
            })
            .collect();
        assert!(keys.iter().copied().eq(0..group_entries(max_workers)));
    }
    assert_eq!(BITMAP_WORDS * 64, MAX_WORKERS as usize);
    assert!(!Group::default().in_use());
}
