//! Canaries: green gets a share of the new connections, and decides by itself what becomes of it.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::engine::{Clients, Engine, Options, Storm, output_of, verdict};
use crate::lab::eventually;
use crate::skip::have_root;

/// Half of the connections, so that few of them will do.
const CANARY: [&str; 6] = ["reload", "--canary", "500", "--for", "2s", "--json"];

/// An engine with eBPF, if that is allowed here.
fn engine(test: &str, faults: &str) -> Option<Engine> {
    have_root(test).then(|| Engine::start(Options::faults(faults).and("--steering", "ebpf")))
}

/// A canary that is watched for longer than the test lasts, with clients on both sides.
fn watched(test: &str) -> Option<(Engine, Clients, std::process::Child)> {
    let engine = engine(test, "")?;
    let reload = engine.zdt_in_background(&["reload", "--canary", "500", "--for", "10m", "--json"]);
    eventually("it is watched", || engine.status()["reload"]["stage"] == "watching");
    let mut clients = engine.clients(40);
    let by_generation = clients.count_all();
    assert_eq!(by_generation.keys().copied().collect::<Vec<_>>(), [1, 2], "{by_generation:?}");
    Some((engine, clients, reload))
}

fn undone(verdict: &Value, why: &str) {
    assert_eq!(verdict["outcome"], "rolled_back", "{verdict}");
    assert!(verdict["error"].as_str().expect("error").contains(why), "{verdict}");
    assert_eq!(verdict["drained_connections"], 0, "{verdict}");
}

#[test]
fn a_canary_that_does_well_is_completed() {
    let Some(engine) = engine("a_canary_that_does_well_is_completed", "") else { return };
    let storm = Storm::begin(engine.address());
    let mut clients = engine.clients(20);
    let verdict = verdict(&engine.zdt(&CANARY));
    assert_eq!(verdict["outcome"], "committed", "{verdict}");
    assert_eq!(
        (&verdict["lost_connections"], &verdict["canary"]["green"]["errors"]),
        (&0.into(), &0.into())
    );
    for side in ["blue", "green"] {
        assert!(verdict["canary"][side]["requests"].as_u64() >= Some(10), "{verdict}");
        assert!(verdict["canary"][side]["p99_us"].as_u64() > Some(0), "{verdict}");
    }
    assert!(verdict["duration_ms"].as_f64() >= Some(2_000.0), "{verdict}");
    clients.count_all_in(2);
    storm.end();
}

#[test]
fn a_canary_that_fails_is_undone_by_itself() {
    let name = "a_canary_that_fails_is_undone_by_itself";
    let Some(engine) = engine(name, "request.fail@2=fail:*") else { return };
    let mut clients = engine.clients(20);
    let reload = engine.zdt_in_background(&["reload", "--canary", "500", "--for", "10m", "--json"]);
    eventually("it is watched", || engine.status()["reload"]["stage"] == "watching");
    let mut failed = 0;
    eventually("the canary is given up", || {
        failed += u64::from(!answers(&engine));
        engine.status()["reload_in_progress"] == false
    });
    let verdict = verdict(&output_of(reload));
    undone(&verdict, "of 1,000 requests");
    assert!(failed > 0 && verdict["canary"]["green"]["errors"].as_u64() > Some(1), "{verdict}");
    assert_eq!(verdict["canary"]["blue"]["errors"], 0, "{verdict}");
    clients.count_all_in(1);
    for number in 0..40 {
        engine.ask(&number.to_string());
    }
}

#[test]
fn a_canary_that_is_slow_is_undone_by_itself() {
    let name = "a_canary_that_is_slow_is_undone_by_itself";
    let Some(engine) = engine(name, "request.slow@2=fail:*") else { return };
    let storm = Storm::begin(engine.address());
    let verdict = verdict(&engine.zdt(&CANARY));
    undone(&verdict, "(99 %)");
    assert!(verdict["canary"]["green"]["p99_us"].as_u64() >= Some(20_000), "{verdict}");
    storm.end();
}

#[test]
fn a_canary_that_nobody_asks_is_undone() {
    let Some(engine) = engine("a_canary_that_nobody_asks_is_undone", "") else { return };
    let verdict = verdict(&engine.zdt(&["reload", "--canary", "500", "--for", "200ms", "--json"]));
    undone(&verdict, "served 0 requests");
}

#[test]
fn what_a_canary_had_goes_back() {
    let Some((engine, mut clients, reload)) = watched("what_a_canary_had_goes_back") else {
        return;
    };
    let at_green = clients.count_all()[&2];
    let output = engine.zdt(&["rollback", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let verdict = verdict(&output_of(reload));
    undone(&verdict, "asked for");
    assert_eq!(verdict["returned_connections"], at_green, "{verdict}");
    assert_eq!(verdict["lost_connections"], 0, "{verdict}");
    clients.count_all_in(1);
    engine.reload_well();
    clients.count_all_in(3);
}

#[test]
fn a_canary_that_is_killed_is_undone() {
    let Some((engine, mut clients, reload)) = watched("a_canary_that_is_killed_is_undone") else {
        return;
    };
    for victim in engine.workers(2) {
        kill(Pid::from_raw(victim as i32), Signal::SIGKILL).expect("kill");
    }
    let verdict = verdict(&output_of(reload));
    undone(&verdict, "SIGKILL");
    let lost = verdict["lost_connections"].as_u64().expect("lost") as usize;
    assert_eq!(clients.count_survivors(), 40 - lost);
    clients.count_all_in(1);
}

#[test]
fn an_old_worker_that_is_killed_beside_a_canary_is_restarted() {
    let name = "an_old_worker_that_is_killed_beside_a_canary_is_restarted";
    let Some((engine, mut clients, reload)) = watched(name) else { return };
    let victim = engine.workers(1)[0];
    kill(Pid::from_raw(victim as i32), Signal::SIGKILL).expect("kill");
    eventually("it is replaced", || {
        let workers = engine.workers(1);
        workers.len() == 2 && !workers.contains(&victim)
    });
    clients.count_survivors();
    for number in 0..20 {
        engine.ask(&number.to_string());
    }
    let output = engine.zdt(&["rollback", "--json"]);
    assert!(output.status.success(), "{output:?}");
    undone(&verdict(&output_of(reload)), "asked for");
    clients.count_all_in(1);
}

#[test]
fn a_supervisor_that_dies_beside_a_canary_has_a_successor_that_takes_all_back() {
    let name = "a_supervisor_that_dies_beside_a_canary_has_a_successor_that_takes_all_back";
    let Some((mut engine, mut clients, reload)) = watched(name) else { return };
    engine.signal(Signal::SIGKILL);
    engine.wait();
    assert!(!output_of(reload).status.success());
    clients.count_all();
    engine.restart();
    assert_eq!(engine.status()["generation"], 1);
    clients.count_all_in(1);
    eventually("the canary is gone", || engine.workers(2).is_empty());
    engine.reload_well();
    clients.count_all();
}

#[test]
fn a_stop_undoes_a_canary_first() {
    let Some((mut engine, mut clients, reload)) = watched("a_stop_undoes_a_canary_first") else {
        return;
    };
    engine.signal(Signal::SIGTERM);
    undone(&verdict(&output_of(reload)), "told to stop");
    drop(clients.pop());
    engine.signal(Signal::SIGQUIT);
    assert!(engine.wait().success());
}

#[test]
fn without_ebpf_there_is_no_canary() {
    let engine = Engine::start(Options::plain());
    let mut clients = engine.clients(3);
    let verdict = verdict(&engine.zdt(&CANARY));
    assert_eq!(verdict["outcome"], "failed_before_flip", "{verdict}");
    assert!(verdict["error"].as_str().expect("error").contains("eBPF"), "{verdict}");
    clients.count_all_in(1);
}

/// One request on a connection of its own; false if it was answered by an error.
fn answers(engine: &Engine) -> bool {
    use std::io::{Read, Write};
    let mut stream = crate::lab::client::connect(engine.address());
    stream
        .write_all(b"GET /id?id=x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .expect("write");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read");
    answer.starts_with("HTTP/1.1 200 ")
}
