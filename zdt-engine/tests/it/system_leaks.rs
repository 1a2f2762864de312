//! Fifty reloads cost nothing that stays: descriptors, threads and memory, in the supervisor and in
//! the workers.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use crate::lab::system::{descriptors, pss, threads, wait_until_settled};
use crate::lab::{client, eventually};
use crate::supervisor::engine::{Engine, Options};

/// What allocators and page tables may differ by; fifty leaks of a ring, a thread or a generation's
/// tables are more.
const NOISE_BYTES: u64 = 1 << 20;

/// Descriptors by kind, with what differs from run to run taken out.
fn kinds(pid: u32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for link in descriptors(pid) {
        let kind = link.split(['[', '(']).next().unwrap_or_default().to_owned();
        *kinds.entry(kind).or_default() += 1;
    }
    kinds
}

#[test]
fn fifty_reloads_leave_nothing_behind() {
    let engine = Engine::start(Options::default());
    let mut clients = engine.clients(20);
    let mut kept: Vec<_> = (0..10).map(|_| client::connect(engine.address())).collect();
    let ask_all = |kept: &mut Vec<std::net::TcpStream>| {
        for stream in kept {
            stream.write_all(b"GET /id?id=kept HTTP/1.1\r\nHost: x\r\n\r\n").expect("write");
            let mut answer = [0; 1024];
            let count = stream.read(&mut answer).expect("read");
            assert!(answer[..count].ends_with(b"kept"));
        }
    };
    let serving = |engine: &Engine| {
        let generation = wait_until_settled(engine)["generation"].as_u64().expect("generation");
        let mut workers = engine.workers(generation);
        workers.sort_unstable();
        assert_eq!(workers.len(), 2);
        workers
    };
    // Pools fill in the first ones.
    for _ in 0..10 {
        engine.reload_well();
        clients.count_all();
        ask_all(&mut kept);
    }
    let workers = serving(&engine);
    let supervisor = engine.pid();
    let before = (kinds(supervisor), threads(supervisor), pss(supervisor));
    let worker_pss: u64 = workers.iter().map(|&pid| pss(pid)).sum();
    let worker_descriptors =
        |workers: &[u32]| -> usize { workers.iter().map(|&pid| descriptors(pid).len()).sum() };
    let held = worker_descriptors(&workers);

    for _ in 0..50 {
        let verdict = engine.reload_well();
        assert_eq!(verdict["migrated_connections"], 30, "{verdict}");
        clients.count_all();
        ask_all(&mut kept);
    }

    let workers = serving(&engine);
    // The last command's connection may still be about to be closed, then as well as now.
    let mut more = BTreeMap::new();
    eventually("the supervisor has no more descriptors than before", || {
        more = kinds(supervisor);
        more.retain(|kind, count| *count > before.0.get(kind).copied().unwrap_or(0));
        more.is_empty()
    });
    // Threads of the kernel and of the runtime's pool come and go.
    let now = threads(supervisor);
    assert!(now <= before.1 + 8, "{now} threads, {} before", before.1);
    let grown = pss(supervisor).saturating_sub(before.2);
    assert!(grown < NOISE_BYTES, "the supervisor has grown by {grown} bytes from {}", before.2);
    assert_eq!(worker_descriptors(&workers), held);
    let now: u64 = workers.iter().map(|&pid| pss(pid)).sum();
    let grown = now.saturating_sub(worker_pss);
    assert!(grown < NOISE_BYTES, "the workers have grown by {grown} bytes from {worker_pss}");
    let children =
        std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children"))
            .expect("children");
    assert_eq!(children.split_ascii_whitespace().count(), 2, "no unburied worker: {children}");
    assert_eq!(engine.status()["generation"], 61);
}
