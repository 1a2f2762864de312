//! Which slot gets a new connection.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use zdt_engine::steering::{Bank, Policy, SteeringError};

use super::harness::*;

#[test]
fn round_robin_is_even_to_the_connection() {
    in_namespace("steering::choice::round_robin_is_even_to_the_connection", || {
        for ip in [V4, V6] {
            let scene = Scene::new(ip, 4, 3, Policy::RoundRobin);
            assert_eq!(scene.spread(30), [(0, 10), (1, 10), (2, 10)]);
            assert_eq!(scene.counters(1).selected, 10);
            assert_eq!(scene.counters(1).fallback, 0);
        }
    });
}

#[test]
fn hash_uses_every_ready_worker() {
    in_namespace("steering::choice::hash_uses_every_ready_worker", || {
        let scene = Scene::new(V4, 8, 4, Policy::Hash);
        for (slot, count) in scene.spread(400) {
            // 100 expected, with a standard deviation of 9.
            assert!((40..=160).contains(&count), "slot {slot} got {count} of 400");
        }
    });
}

#[test]
fn least_loaded_avoids_the_loaded() {
    in_namespace("steering::choice::least_loaded_avoids_the_loaded", || {
        let scene = Scene::new(V4, 4, 3, Policy::LeastLoaded);
        let mut loads = Loads::of(&scene);
        loads.set(0, 5);
        loads.set(1, 1_000_000);
        loads.set(2, 4);
        // Of any two that are drawn, one is not worker 1.
        let spread = scene.spread(200);
        assert_eq!(spread[1], (1, 0));
        // Worker 2 wins against both others: it gets two draws of three.
        assert!((100..=170).contains(&spread[2].1), "{spread:?}");
        loads.set(1, 0);
        assert!(scene.spread(200)[1].1 > 90);
    });
}

#[test]
fn a_worker_that_is_not_ready_gets_nothing() {
    in_namespace("steering::choice::a_worker_that_is_not_ready_gets_nothing", || {
        for policy in [Policy::Hash, Policy::RoundRobin, Policy::LeastLoaded] {
            let mut scene = Scene::new(V4, 4, 3, policy);
            // The lowest load does not help.
            let mut loads = Loads::of(&scene);
            loads.set(0, 100);
            loads.set(2, 100);
            scene.steering.set_ready(scene.group, 1, false).expect("not ready");
            assert_eq!(scene.spread(60)[1], (1, 0));
            assert!(!scene.steering.is_ready(scene.group, 1).expect("a slot"));
        }
    });
}

#[test]
fn more_than_64_workers() {
    in_namespace("steering::choice::more_than_64_workers", || {
        let mut scene = Scene::new(V4, 200, 1, Policy::RoundRobin);
        for worker in [63, 64, 130, 199] {
            scene.add(0, worker);
        }
        assert_eq!(scene.spread(10), [(0, 2), (63, 2), (64, 2), (130, 2), (199, 2)]);
    });
}

#[test]
fn canary_share() {
    in_namespace("steering::choice::canary_share", || {
        let mut scene = Scene::new(V4, 2, 1, Policy::Hash);
        let green = scene.add(1, 0);
        let share = |scene: &mut Scene, permille: u16| {
            let bank = Bank { epoch: 7, blue: 0, green: 1, canary_permille: permille };
            scene.steering.flip(bank).expect("flip");
            assert_eq!(scene.steering.current().expect("the route"), bank);
            let before = scene.counters(green).selected;
            scene.spread(1000);
            scene.counters(green).selected - before
        };
        assert_eq!(share(&mut scene, 0), 0);
        // 200 expected, with a standard deviation of 13.
        let fifth = share(&mut scene, 200);
        assert!((120..=280).contains(&fifth), "{fifth} of 1,000 at 200 permille");
        assert_eq!(share(&mut scene, 1000), 1000);
    });
}

#[test]
fn the_flip_moves_every_group_at_once() {
    in_namespace("steering::choice::the_flip_moves_every_group_at_once", || {
        let mut scene = Scene::new(V4, 2, 1, Policy::Hash);
        scene.add(1, 0);
        // A second address in the same steering, IPv6.
        let blue = listener(SocketAddr::new(V6, 0), 64);
        let address = blue.local_addr().expect("an address");
        let green = listener(address, 64);
        let steering = &mut scene.steering;
        let second = steering.add_listener_group(&blue, Policy::RoundRobin).expect("a group");
        for (slot, socket) in [(0, &blue), (2, &green)] {
            steering.set_slot(second, slot, socket).expect("set a slot");
            steering.set_ready(second, slot, true).expect("ready");
        }
        assert_eq!(steering.find_group(address), Some(second));
        assert_eq!(steering.listener_groups().len(), 2);
        let both = |scene: &Scene| {
            let clients: Vec<_> = (0..5).map(|_| connect(address).expect("a connection")).collect();
            let first = scene.spread(5);
            let second = [accept_all(&blue).len(), accept_all(&green).len()];
            drop(clients);
            (first, second)
        };
        assert_eq!(both(&scene), (vec![(0, 5), (2, 0)], [5, 0]));
        scene.flip(1);
        assert_eq!(both(&scene), (vec![(0, 0), (2, 5)], [0, 5]));
        scene.flip(0);
        assert_eq!(both(&scene), (vec![(0, 5), (2, 0)], [5, 0]));
    });
}

#[test]
fn the_probe_reaches_a_slot_that_is_not_ready() {
    in_namespace("steering::choice::the_probe_reaches_a_slot_that_is_not_ready", || {
        for ip in [V4, V6] {
            let mut scene = Scene::new(ip, 2, 2, Policy::RoundRobin);
            let under_proof = scene.add(1, 1);
            scene.steering.set_ready(scene.group, under_proof, false).expect("not ready");
            let own = listener(SocketAddr::new(ip, 0), 1).local_addr().expect("a free port");
            scene.steering.set_probe(own.port(), scene.group, under_proof).expect("a probe");
            let _others: Vec<_> =
                (0..10).map(|_| connect(scene.address).expect("a connection")).collect();
            let probe = connecting(scene.address, |socket| {
                let address = nix::sys::socket::SockaddrStorage::from(own);
                nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(socket), &address)
                    .expect("bind to the probe's port");
            });
            let accepted = accept_count(scene.listener(under_proof), 1);
            let peer = accepted[0].peer_addr().expect("a peer");
            assert_eq!(peer, probe.local_addr().expect("an address"));
            assert_eq!(scene.counters(under_proof).selected, 1);
            end_with_reset(&probe);
            drop(probe);
            assert_eq!(accept_all(scene.listener(0)).len(), 5);
            assert_eq!(accept_all(scene.listener(1)).len(), 5);
            // Once it is over, the same port is a client like any other.
            scene.steering.clear_probe().expect("clear the probe");
            scene.spread(10);
            assert_eq!(scene.counters(under_proof).selected, 1);
        }
    });
}

#[test]
fn a_slot_whose_socket_is_gone_falls_back() {
    in_namespace("steering::choice::a_slot_whose_socket_is_gone_falls_back", || {
        let mut scene = Scene::new(V4, 4, 2, Policy::RoundRobin);
        // Closed behind steering's back, as after a crash: the slot is still marked ready.
        scene.close(1);
        assert_eq!(scene.spread(20), [(0, 20)]);
        assert_eq!(scene.counters(0).selected, 20);
        assert_eq!(scene.counters(0).fallback, 10);
        assert_eq!(scene.counters(1).selected, 0);

        // Nobody left in the bank: any ready worker of another one.
        let other = scene.add(3, 2);
        scene.close(0);
        assert_eq!(scene.spread(8), [(other, 8)]);
        assert_eq!(scene.counters(other).fallback, 8);
    });
}

#[test]
fn without_a_ready_worker_connections_wait() {
    in_namespace("steering::choice::without_a_ready_worker_connections_wait", || {
        let mut scene = Scene::new(V4, 4, 1, Policy::Hash);
        // The only worker died; the supervisor keeps the listener for its successor.
        scene.steering.set_ready(scene.group, 0, false).expect("not ready");
        assert_eq!(scene.spread(5), [(0, 5)]);
        assert_eq!(scene.counters(0).fallback, 5);
    });
}

#[test]
fn without_any_socket_connections_are_refused_and_counted() {
    in_namespace(
        "steering::choice::without_any_socket_connections_are_refused_and_counted",
        || {
            let mut scene = Scene::new(V4, 4, 1, Policy::Hash);
            scene.steering.clear_slot_everywhere(0).expect("clear");
            let error = connect(scene.address).expect_err("nobody is there");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
            let counters = scene.steering.counters().expect("counters");
            assert_eq!(counters[0].dropped_without_slot, 1);

            // A slot that is believed to be ready, but is not there.
            let _group = listener(scene.address, 1);
            let slot = scene.add(0, 1);
            scene.close(slot);
            connect(scene.address).expect_err("nobody is there");
            assert_eq!(scene.counters(slot).dropped, 1);
        },
    );
}

#[test]
fn misuse_is_refused() {
    in_namespace("steering::choice::misuse_is_refused", || {
        let mut scene = Scene::new(V4, 4, 1, Policy::Hash);
        let (steering, group) = (&mut scene.steering, scene.group);
        assert!(matches!(
            steering.set_ready(group, 3, true),
            Err(SteeringError::EmptySlot { slot: 3, .. })
        ));
        assert!(matches!(
            steering.clear_slot(group, 16),
            Err(SteeringError::Limit { wanted: 16, most: 15, .. })
        ));
        let bank = Bank { blue: 4, ..Bank::default() };
        assert!(matches!(steering.flip(bank), Err(SteeringError::Limit { wanted: 4, .. })));
        // A socket can be in one slot only.
        let taken = scene.listeners[0].1.as_fd();
        assert!(matches!(steering.set_slot(group, 1, taken), Err(SteeringError::Map { .. })));
        assert!(!steering.has_socket(group, 1).expect("a slot"));
        steering.remove_listener_group(group).expect("remove");
        assert!(matches!(
            steering.set_ready(group, 0, true),
            Err(SteeringError::NoSuchGroup { group: 0 })
        ));
        assert!(steering.listener_groups().is_empty());
    });
}

#[test]
fn a_32nd_address_but_no_33rd() {
    in_namespace("steering::choice::a_32nd_address_but_no_33rd", || {
        let mut scene = Scene::new(V4, 1, 1, Policy::Hash);
        let more: Vec<_> = (0..32).map(|_| listener(SocketAddr::new(V4, 0), 8)).collect();
        for socket in &more[..31] {
            let group = scene.steering.add_listener_group(socket, Policy::Hash).expect("a group");
            scene.steering.set_slot(group, 0, socket).expect("set a slot");
        }
        scene.steering.set_ready_everywhere(0, true).expect("ready");
        assert!(matches!(
            scene.steering.add_listener_group(&more[31], Policy::Hash),
            Err(SteeringError::Limit { .. })
        ));
        for socket in &more[..31] {
            let address = socket.local_addr().expect("an address");
            let _client = connect(address).expect("a connection");
            assert_eq!(accept_all(socket).len(), 1);
        }
        let counters = scene.steering.counters().expect("counters");
        assert_eq!(counters.iter().map(|group| group.slots[0].selected).sum::<u64>(), 31);
    });
}

/// The load array, mapped as a worker maps it.
struct Loads {
    map: memmap2::MmapMut,
}

impl Loads {
    fn of(scene: &Scene) -> Self {
        let map = scene.steering.load_map();
        let bytes = 4 * scene.steering.max_workers() as usize * 8;
        // SAFETY: the map is not shrunk by anyone, and only this thread uses the mapping.
        let map = unsafe { memmap2::MmapOptions::new().len(bytes).map_mut(&map) };
        Self { map: map.expect("map the load array") }
    }

    fn set(&mut self, slot: usize, load: u32) {
        self.map[slot * 8..slot * 8 + 4].copy_from_slice(&load.to_ne_bytes());
    }
}
