//! A thousand switches under a storm of connections.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use zdt_engine::steering::Policy;

use super::harness::*;

const SWITCHES: u32 = 1_000;

#[test]
fn a_thousand_switches_fail_no_connection() {
    in_namespace("steering::storm::a_thousand_switches_fail_no_connection", || {
        storm(V4, SWITCHES / 2);
        storm(V6, SWITCHES / 2);
    });
}

/// Each switch is a new generation that follows the order of a reload: its socket into the map, flip,
/// blue goes on accepting for longer than a round trip, and closes. Every second blue accepts nothing
/// after the flip.
fn storm(ip: IpAddr, switches: u32) {
    let mut scene = Scene::new(ip, 2, 1, Policy::Hash);
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicU64::new(0));
    let client = {
        let (address, stop, answered) = (scene.address, stop.clone(), answered.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                answered.fetch_add(burst(address), Ordering::Relaxed);
            }
        })
    };
    let mut blue = 0;
    for generation in 1..=switches {
        serve(&scene, Duration::from_millis(2));
        let bank = generation % 4;
        let green = scene.add(bank, 0);
        scene.flip(bank);
        scene.steering.clear_slot(scene.group, blue).expect("clear a slot");
        if generation % 2 == 0 {
            serve(&scene, Duration::from_millis(3));
        } else {
            // This blue is stuck: what waits in its accept queue goes to green when it closes.
            serve_one(scene.listener(green), Duration::from_millis(3));
        }
        scene.close(blue);
        blue = green;
    }
    stop.store(true, Ordering::Relaxed);
    while !client.is_finished() {
        answer_queued(&scene);
    }
    if let Err(panic) = client.join() {
        std::panic::resume_unwind(panic);
    }
    let answered = answered.load(Ordering::Relaxed);
    assert!(answered > u64::from(switches), "hardly a storm: {answered} connections");
    let counters = scene.steering.counters().expect("counters");
    let sum = |what: fn(&zdt_engine::steering::Counters) -> u64| -> u64 {
        counters[0].slots.iter().map(what).sum()
    };
    assert_eq!(sum(|counters| counters.dropped) + counters[0].dropped_without_slot, 0);
    assert_eq!(sum(|counters| counters.selected), answered);
    let migrated = sum(|counters| counters.migrated);
    assert!(migrated > 0, "no switch met a queue");
    eprintln!("{ip}: {switches} switches, {answered} connections, {migrated} of them migrated");
}

/// Sixteen connections at once: connect all, ask all, read all. Panics if one fails.
fn burst(address: SocketAddr) -> u64 {
    let mut clients: Vec<_> = (0..16)
        .map(|_| {
            let mut client = connect(address).expect("a connection");
            client.write_all(b"ping").expect("send");
            client
        })
        .collect();
    for client in &mut clients {
        let mut answer = [0; 4];
        client.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"ping");
    }
    clients.len() as u64
}

fn serve(scene: &Scene, time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        answer_queued(scene);
    }
}

fn serve_one(socket: &TcpListener, time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        answer(socket);
    }
}

fn answer_queued(scene: &Scene) {
    scene.listeners.iter().for_each(|(_, socket)| answer(socket));
}

fn answer(socket: &TcpListener) {
    let queued = accept_all(socket);
    if queued.is_empty() {
        std::thread::yield_now();
    }
    for mut stream in queued {
        echo_four(&mut stream).expect("a client that asks");
    }
}
