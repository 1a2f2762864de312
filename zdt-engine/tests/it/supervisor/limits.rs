//! `worker_limits` and `pin_cpus`: that they are there, and that they hold.

use std::io::Write;
use std::time::{Duration, Instant};

use tungstenite::Message;
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Data, OpCode};

use super::engine::{Engine, Options};
use crate::lab::client::ReadOn;
use crate::lab::{client, eventually};

fn limit(pid: u32, name: &str) -> String {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
    let line = limits.lines().find_map(|line| line.strip_prefix(name)).expect(name);
    line.split_whitespace().next().expect("soft limit").to_owned()
}

fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("stat").1.split(' ').collect();
    let ticks: u64 = [11, 12].iter().map(|&at| fields[at].parse::<u64>().expect("ticks")).sum();
    Duration::from_millis(10 * ticks)
}

#[test]
fn memory_is_limited() {
    const LIMIT: u64 = 96 << 20;
    let engine = Engine::start(Options::config(&format!(
        "workers = 1\n[worker_limits]\nmemory_bytes = {LIMIT}\n"
    )));
    let means = engine.status()["confinement"]["memory"].clone();
    let victim = engine.workers(1)[0];
    if means == "rlimit" {
        assert_eq!(limit(victim, "Max data size"), LIMIT.to_string());
        assert!(engine.status()["confinement"]["no_cgroup_because"].is_string());
    } else {
        assert_eq!(means, "cgroup");
    }
    // Messages that never end, each below `limits.max_message_bytes`: all of it has to be kept.
    let mut clients = Vec::new();
    'alive: for _ in 0..12 {
        let mut client = client::websocket(engine.address(), "/ws/echo");
        for part in 0..15 {
            let kind = if part == 0 { Data::Binary } else { Data::Continue };
            let frame = Frame::message(vec![0u8; 1 << 20], OpCode::Data(kind), false);
            if client.send(Message::Frame(frame)).is_err() {
                break 'alive;
            }
        }
        clients.push(client);
    }
    eventually("it has died of it, and is replaced", || {
        let status = engine.status();
        status["totals"]["crashes"] == 1 && status["status"] == "healthy"
    });
    drop(clients);
    assert!(!engine.workers(1).contains(&victim));
    engine.ask("after");
    engine.reload_well();
}

#[test]
fn cpu_time_is_limited() {
    const PERCENT: u32 = 20;
    let engine = Engine::start(Options::config(&format!(
        "workers = 1\n[worker_limits]\ncpu_percent = {PERCENT}\n"
    )));
    let means = engine.status()["confinement"]["cpu"].clone();
    assert!(means == "pacing" || means == "cgroup", "{means}");
    let worker = engine.workers(1)[0];
    let address = engine.address();
    std::thread::scope(|scope| {
        let until = Instant::now() + Duration::from_secs(3);
        for _ in 0..3 {
            scope.spawn(move || {
                let mut answer = vec![0u8; 64 << 10];
                let mut stream = client::connect(address);
                stream
                    .write_all(b"GET /big?n=1073741824 HTTP/1.1\r\nHost: x\r\n\r\n")
                    .expect("write");
                while Instant::now() < until {
                    assert!(stream.read_on(&mut answer).expect("read") > 0);
                }
            });
        }
        let (begun, before) = (Instant::now(), cpu_time(worker));
        while Instant::now() < until - Duration::from_millis(200) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let used = (cpu_time(worker) - before).as_secs_f64() / begun.elapsed().as_secs_f64();
        assert!(used < 1.4 * f64::from(PERCENT) / 100.0, "{used:.2} of a CPU");
    });
    // It comes round, and is not taken for one that hangs.
    engine.reload_well();
    assert_eq!(engine.status()["totals"]["hung"], 0);
}

#[test]
fn descriptors_are_limited() {
    const LIMIT: usize = 256;
    let engine = Engine::start(Options::config(&format!(
        "workers = 1\n[worker_limits]\nopen_files = {LIMIT}\n"
    )));
    assert_eq!(engine.status()["confinement"]["open_files"], "rlimit");
    let worker = engine.workers(1)[0];
    assert_eq!(limit(worker, "Max open files"), LIMIT.to_string());
    let mut clients: Vec<_> = (0..LIMIT + 50).map(|_| client::connect(engine.address())).collect();
    eventually("it has no descriptor left", || {
        let open = std::fs::read_dir(format!("/proc/{worker}/fd")).expect("fd").count();
        assert!(open <= LIMIT);
        open >= LIMIT - 1 && engine.log().contains("Too many open files")
    });
    // For a second more it tries, ten times; that is no news.
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        engine.status();
    }
    let log = engine.log();
    let complaints = log.lines().filter(|line| line.contains("WARN accept: ")).count();
    assert!(complaints <= 2, "{complaints}: one for the listener in ten seconds");
    // Who waits is served when others go.
    let last = clients.pop().expect("a client");
    drop(clients);
    super::engine::ask(last, "the-last");
}

#[test]
fn workers_are_pinned_by_turns() {
    let engine = Engine::start(Options::config("pin_cpus = true\nworkers = 3\n"));
    let own = std::fs::read_to_string("/proc/self/status").expect("status");
    let cpus = |status: &str| -> String {
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        line.expect("a list").trim().to_owned()
    };
    let mut seen: Vec<String> = engine
        .workers(1)
        .iter()
        .map(|pid| cpus(&std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status")))
        .collect();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|list| list.parse::<u32>().is_ok()), "one CPU each: {seen:?}");
    seen.sort();
    seen.dedup();
    let available = std::thread::available_parallelism().expect("CPUs").get();
    assert_eq!(seen.len(), available.min(3), "{seen:?} of {}", cpus(&own));
    assert_eq!(engine.status()["confinement"]["pinned_cpus"], true);
}
