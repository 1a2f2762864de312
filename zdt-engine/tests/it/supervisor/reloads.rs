//! Reloads that succeed, reloads that fail, reloads that meet.

use nix::sys::signal::Signal;
use tungstenite::Message;
use tungstenite::protocol::frame::coding::CloseCode;

use super::engine::{Engine, Options, Storm, ask, output_of, verdict};
use crate::lab::{client, eventually, kept_address};
use crate::skip::have_root;

fn both_steerings() -> Vec<Options> {
    let mut all = vec![Options::plain()];
    if have_root("supervisor::reloads with eBPF") {
        all.push(Options::default().and("--steering", "ebpf"));
    }
    all
}

#[test]
fn a_reload_keeps_every_connection() {
    for options in both_steerings() {
        let engine = Engine::start(options);
        let mut clients = engine.clients(30);
        clients.count_all_in(1);
        let verdict = engine.reload_well();
        assert_eq!(verdict["migrated_connections"], 30, "{verdict}");
        assert_eq!(verdict["drained_connections"], 0, "{verdict}");
        assert_eq!(verdict["strategy"], "blue-green");
        assert_eq!(verdict["generation"], 2);
        assert!(verdict["blackout_us"]["max"].as_u64() > Some(0), "{verdict}");
        clients.count_all_in(2);
        engine.ask("after");
        eventually("the old workers are gone", || engine.workers(1).is_empty());
    }
}

#[test]
fn no_request_fails_during_reloads() {
    for options in both_steerings() {
        let engine = Engine::start(options);
        let storm = Storm::begin(engine.address());
        let mut clients = engine.clients(10);
        for generation in 2..8 {
            engine.reload_well();
            clients.count_all_in(generation);
        }
        assert!(storm.end() > 10);
    }
}

#[test]
fn the_number_of_workers_may_change() {
    for options in both_steerings() {
        let engine = Engine::start(Options { config: "workers = 2\n".into(), ..options });
        let mut clients = engine.clients(12);
        for (generation, workers) in [(2, 3), (3, 1), (4, 2)] {
            engine.configure(&format!("workers = {workers}\n"));
            let verdict = engine.reload_well();
            assert_eq!(verdict["workers"], workers, "{verdict}");
            assert_eq!(verdict["migrated_connections"], clients.len(), "{verdict}");
            clients.count_all_in(generation);
            // Every socket has somebody who accepts from it.
            for number in 0..40 {
                engine.ask(&format!("{generation}-{number}"));
            }
        }
    }
}

#[test]
fn one_shared_listener_will_do() {
    let engine = Engine::start(Options::config("reuse_port = false\n"));
    assert_eq!(engine.status()["socket_stats"]["steering"], "plain");
    assert_eq!(engine.status()["socket_stats"]["listeners"], 1);
    let mut clients = engine.clients(8);
    engine.reload_well();
    clients.count_all_in(2);
    assert_eq!(engine.status()["socket_stats"]["listeners"], 1);
}

#[test]
fn without_migration_connections_drain() {
    let engine = Engine::start(Options::config("migrate_connections = false\n"));
    let mut clients = engine.clients(5);
    let verdict = engine.reload_well();
    assert_eq!(verdict["migrated_connections"], 0, "{verdict}");
    assert_eq!(verdict["drained_connections"], 5, "{verdict}");
    assert_eq!(verdict["drain_reasons"]["migration_disabled"], 5, "{verdict}");
    clients.count_all_in(1);
    assert_eq!(engine.clients(3).count_all().keys().copied().collect::<Vec<_>>(), [2]);
}

#[test]
fn hangup_reloads() {
    let engine = Engine::start(Options::default());
    let mut clients = engine.clients(4);
    engine.signal(Signal::SIGHUP);
    eventually("generation 2 serves", || engine.status()["generation"] == 2);
    clients.count_all_in(2);
    assert_eq!(engine.status()["last_reload"]["reload_successful"], true);
}

#[test]
fn a_wrong_configuration_fails_the_reload_and_nothing_else() {
    let engine = Engine::start(Options::default());
    let mut clients = engine.clients(4);
    engine.configure("wrokers = 3\n");
    let verdict = engine.reload();
    assert_eq!(verdict["outcome"], "failed_before_flip");
    let why = verdict["error"].as_str().expect("error");
    assert!(why.contains("zdt.toml") && why.contains("wrokers"), "{why}");
    clients.count_all_in(1);
    engine.configure("");
    engine.reload_well();
    clients.count_all_in(2);
}

#[test]
fn a_green_that_fails_changes_nothing() {
    let cases = [
        ("worker.start@2=kill", "SIGKILL"),
        ("worker.start@2=exit", "code 3"),
        ("worker.start@2=stop", "ready_timeout_ms"),
        ("worker.before_ready@2=fail", "fault point"),
    ];
    for (faults, why) in cases {
        let engine = Engine::start(Options {
            config: "[reload]\nready_timeout_ms = 3000\n".into(),
            ..Options::faults(faults)
        });
        let mut clients = engine.clients(6);
        let verdict = engine.reload();
        assert_eq!(verdict["outcome"], "failed_before_flip", "{faults}: {verdict}");
        let error = verdict["error"].as_str().expect("error");
        assert!(error.contains(why), "{faults}: {error}");
        assert_eq!(verdict["generation"], 1);
        assert_eq!(verdict["lost_connections"], 0);
        clients.count_all_in(1);
        eventually("green is gone", || engine.workers(2).is_empty());
        engine.reload_well();
        clients.count_all_in(3);
    }
}

#[test]
fn a_failure_at_any_step_is_undone() {
    for options in both_steerings() {
        for (point, outcome) in [
            ("supervisor.after_spawn", "failed_before_flip"),
            ("supervisor.before_flip", "failed_before_flip"),
            ("supervisor.after_flip", "rolled_back"),
            ("supervisor.during_handoff", "rolled_back"),
            ("supervisor.before_commit", "rolled_back"),
        ] {
            // The first passage is the start of the first generation, which hands nothing off.
            let nth = if point == "supervisor.during_handoff" { 1 } else { 2 };
            let faults = format!("{point}@0=fail:{nth}");
            let engine = Engine::start(Options { faults, ..options.clone() });
            let mut clients = engine.clients(10);
            let verdict = engine.reload();
            assert_eq!(verdict["outcome"], outcome, "{point}: {verdict}");
            assert!(verdict["error"].as_str().expect("error").contains(point), "{verdict}");
            assert_eq!(verdict["lost_connections"], 0, "{point}: {verdict}");
            assert_eq!(verdict["drained_connections"], 0, "{point}: {verdict}");
            if point == "supervisor.before_commit" {
                assert_eq!(verdict["returned_connections"], 10, "{verdict}");
            }
            clients.count_all_in(1);
            for number in 0..20 {
                engine.ask(&number.to_string());
            }
            engine.reload_well();
            clients.count_all_in(3);
        }
    }
}

#[test]
fn before_the_flip_a_newer_reload_supersedes() {
    let engine = Engine::start(Options::faults("worker.start@2=stop"));
    let mut clients = engine.clients(4);
    let first = engine.zdt_in_background(&["reload", "--json"]);
    eventually("the first reload waits for its workers", || engine.workers(2).len() == 2);
    engine.reload_well();
    let first = verdict(&output_of(first));
    assert_eq!(first["outcome"], "superseded", "{first}");
    clients.count_all_in(3);
}

#[test]
fn after_the_flip_a_newer_reload_waits() {
    let engine = Engine::start(Options::config("[reload]\nprobation_ms = 700\n"));
    let mut clients = engine.clients(4);
    let first = engine.zdt_in_background(&["reload", "--json"]);
    eventually("the first reload is on probation", || {
        engine.status()["reload"]["stage"] == "probation"
    });
    // These two are one: nobody needs the generation between them.
    let second = engine.zdt_in_background(&["reload", "--json"]);
    let third = engine.zdt_in_background(&["reload", "--json"]);
    let first = verdict(&output_of(first));
    assert_eq!((&first["outcome"], &first["generation"]), (&"committed".into(), &2.into()));
    for later in [second, third] {
        let later = verdict(&output_of(later));
        assert_eq!(later["outcome"], "committed", "{later}");
        assert_eq!(later["generation"], 3, "{later}");
    }
    clients.count_all_in(3);
}

#[test]
fn a_green_that_dies_on_probation_is_undone() {
    let engine = Engine::start(Options::config("[reload]\nprobation_ms = 20000\n"));
    let mut clients = engine.clients(10);
    let reload = engine.zdt_in_background(&["reload", "--json"]);
    eventually("probation", || engine.status()["reload"]["stage"] == "probation");
    clients.count_all_in(2);
    let victim = engine.workers(2)[0];
    let held = engine.status()["worker_stats"]
        .as_object()
        .expect("workers")
        .values()
        .find(|worker| worker["pid"] == victim)
        .and_then(|worker| worker["connections"].as_u64())
        .expect("connections");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(victim as i32), Signal::SIGKILL)
        .expect("kill");
    let verdict = verdict(&output_of(reload));
    assert_eq!(verdict["outcome"], "rolled_back", "{verdict}");
    assert_eq!(verdict["lost_connections"], held, "{verdict}");
    assert_eq!(verdict["returned_connections"], 10 - held, "{verdict}");
    assert_eq!(clients.count_survivors() as u64, 10 - held);
    engine.ask("after");
}

#[test]
fn a_fifth_generation_ends_the_oldest_drain() {
    let engine =
        Engine::start(Options::config("migrate_connections = false\ndrain_timeout_ms = 600000\n"));
    let mut first = client::websocket(engine.address(), "/ws/counter");
    assert_eq!(client::count(&mut first), (1, 1));
    let mut later = Vec::new();
    for _ in 0..3 {
        engine.reload_well();
        later.push(engine.clients(1));
    }
    assert_eq!(client::count(&mut first), (2, 1));
    engine.reload_well();
    // The oldest drain was ended, as a drain ends.
    match first.read().expect("a goodbye") {
        Message::Close(Some(frame)) => assert_eq!(frame.code, CloseCode::Away),
        other => panic!("no goodbye: {other:?}"),
    }
    assert_eq!(engine.status()["totals"]["lost_connections"], 0);
    let log = engine.log();
    assert_eq!(log.lines().find(|line| line.contains("ERROR")), None);
    for (clients, generation) in later.iter_mut().zip(2..) {
        clients.count_all_in(generation);
    }
}

#[test]
fn reloads_leave_no_descriptor_behind() {
    for options in both_steerings() {
        let engine = Engine::start(options);
        let open = |pid: u32| std::fs::read_dir(format!("/proc/{pid}/fd")).expect("fd").count();
        let sockets = engine.status()["socket_stats"]["listeners"].clone();
        let settled = || {
            let status = engine.status();
            status["socket_stats"]["listeners"] == sockets
                && status["generations"].as_array().map(Vec::len) == Some(1)
        };
        let mut clients = engine.clients(6);
        engine.reload_well();
        eventually("old listeners are let go", settled);
        let before = open(engine.pid());
        for _ in 0..10 {
            engine.reload_well();
        }
        clients.count_all_in(12);
        eventually("old listeners are let go", settled);
        // The connection of the last status may just be closing.
        eventually("no descriptor is left over", || open(engine.pid()) <= before);
        let most = 40;
        for worker in engine.workers(12) {
            let count = open(worker);
            assert!(count < most, "{count} descriptors in a worker with a few connections");
        }
    }
}

#[test]
fn new_addresses_are_served_and_old_ones_let_go() {
    for options in both_steerings() {
        let engine = Engine::start(options);
        let old = engine.address();
        let new = kept_address();
        let mut clients = engine.clients(3);
        engine.configure_listen(&[old, new]);
        engine.reload_well();
        clients.count_all_in(2);
        for _ in 0..6 {
            ask(client::connect(new), "new");
            ask(client::connect(old), "old");
        }
        engine.configure_listen(&[new]);
        engine.reload_well();
        clients.count_all_in(3);
        ask(client::connect(new), "new");
        eventually("the old address is let go", || std::net::TcpStream::connect(old).is_err());
    }
}
