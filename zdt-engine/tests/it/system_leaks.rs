//! Fifty reloads cost nothing that stays: descriptors, threads and memory, in the supervisor and in
//! the workers. Twenty in twenty seconds cost no more at their height than ten.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::lab::client::ReadOn;
use crate::lab::system::{descriptors, pss, threads, wait_until_settled};
use crate::lab::{client, eventually};
use crate::supervisor::engine::{Engine, Options, Storm, verdict};

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
            let count = stream.read_on(&mut answer).expect("read");
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

/// What supervisor and workers take together.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    processes: usize,
    descriptors: usize,
    pss: u64,
}

impl Held {
    fn now(supervisor: u32) -> Held {
        let mut held = Held::default();
        for pid in children(supervisor).into_iter().chain([supervisor]) {
            // One that has just ended has nothing any more.
            let Ok(links) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
            held.processes += 1;
            held.descriptors += links.count();
            held.pss += pss_if_alive(pid).unwrap_or(0);
        }
        held
    }

    fn most(self, other: Held) -> Held {
        Held {
            processes: self.processes.max(other.processes),
            descriptors: self.descriptors.max(other.descriptors),
            pss: self.pss.max(other.pss),
        }
    }
}

fn children(pid: u32) -> Vec<u32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let list = list.unwrap_or_default();
    list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Like [`pss`], of a process that may end meanwhile.
fn pss_if_alive(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let kib = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_ascii_whitespace().next()?.parse().ok()
    };
    Some((kib("Pss_Anon:")? + kib("Pss_Shmem:")?) << 10)
}

#[test]
fn twenty_reloads_in_a_row_stay_flat() {
    for options in [Options::default(), Options::plain()] {
        stay_flat(options, 2, 50, 4 * NOISE_BYTES);
    }
}

/// The same with many.
#[test]
fn twenty_reloads_of_four_workers_with_a_thousand_connections_stay_flat() {
    let options = Options::config("workers = 4\n");
    // Whose connection is where when the height is measured is a matter of milliseconds.
    stay_flat(options, 4, 1_000, 16 * NOISE_BYTES);
}

/// At most one a second, of both kinds in turn; the height of the first ten is what the others may reach.
/// How long they take depends on the machine (`zdt-load demo` tells it), what they cost does not.
fn stay_flat(options: Options, workers: usize, connections: usize, noise_bytes: u64) {
    let engine = Engine::start(options);
    let mut clients = engine.clients(connections);
    let storm = Storm::begin(engine.address());
    // Pools fill in the first one of each kind.
    let reload = |strategy: &str| engine.zdt(&["reload", "--json", "--strategy", strategy]);
    let check = |output: &std::process::Output| {
        let verdict = verdict(output);
        assert_eq!(verdict["reload_successful"], true, "{verdict}");
        assert_eq!(verdict["lost_connections"], 0, "{verdict}");
        assert_eq!(verdict["drained_connections"], 0, "{verdict}");
    };
    check(&reload("blue-green"));
    check(&reload("rolling"));
    let supervisor = engine.pid();
    let settle = || {
        wait_until_settled(&engine);
        Held::now(supervisor)
    };
    let before = settle();

    let mut heights = [Held::default(); 2];
    let start = Instant::now();
    for number in 0..20u32 {
        let due = start + Duration::from_secs(1) * number;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let done = AtomicBool::new(false);
        let (output, height) = std::thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let mut height = Held::default();
                while !done.load(Ordering::Relaxed) {
                    height = height.most(Held::now(supervisor));
                    std::thread::sleep(Duration::from_millis(20));
                }
                height
            });
            let output = reload(["blue-green", "rolling"][number as usize % 2]);
            done.store(true, Ordering::Relaxed);
            (output, watch.join().expect("watch"))
        });
        check(&output);
        let half = &mut heights[number as usize / 10];
        *half = half.most(height);
        clients.count_all();
    }
    let after = settle();
    storm.end();

    let [first, second] = heights;
    // Two generations at a time, and the supervisor; the one before may still be on its way out.
    assert!(second.processes <= 1 + 3 * workers, "{second:?}");
    // Connections of commands and of the storm come and go; one on its way has a descriptor at each end.
    let on_their_way = 40 + connections;
    assert!(second.descriptors <= first.descriptors + on_their_way, "{first:?}, then {second:?}");
    assert!(second.pss <= first.pss + noise_bytes, "{first:?}, then {second:?}");
    assert_eq!(after.processes, before.processes);
    assert!(after.descriptors <= before.descriptors + 16, "{before:?}, then {after:?}");
    assert!(after.pss <= before.pss + NOISE_BYTES, "{before:?}, then {after:?}");
}
