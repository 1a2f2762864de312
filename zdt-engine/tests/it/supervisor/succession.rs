//! kill -9 of the supervisor, at rest and at every step of a reload; and what the next one finds.

use std::os::unix::process::ExitStatusExt;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::engine::{Engine, Options, output_of};
use crate::lab::eventually;

fn both_steerings() -> [Options; 2] {
    [Options::default(), Options::plain()]
}

#[test]
fn the_next_supervisor_takes_over() {
    for options in both_steerings() {
        let mut engine = Engine::start(options);
        let mut clients = engine.clients(20);
        engine.reload_well();
        let workers = engine.workers(2);
        engine.signal(Signal::SIGKILL);
        engine.wait();
        clients.count_all_in(2);
        engine.ask("alone");
        engine.restart();
        assert_eq!(engine.workers(2), workers, "the same processes");
        clients.count_all_in(2);
        let verdict = engine.reload_well();
        assert_eq!(verdict["migrated_connections"], 20, "{verdict}");
        assert_eq!(verdict["generation"], 3, "{verdict}");
        clients.count_all_in(3);
        for number in 0..20 {
            engine.ask(&number.to_string());
        }
        // Adopted workers are watched like others.
        kill(Pid::from_raw(engine.workers(3)[0] as i32), Signal::SIGKILL).expect("kill");
        eventually("it is replaced", || {
            engine.status()["status"] == "healthy" && engine.workers(3).len() == 2
        });
    }
}

#[test]
fn a_worker_that_died_meanwhile_is_replaced() {
    for options in both_steerings() {
        let mut engine = Engine::start(options);
        let victim = engine.workers(1)[0];
        engine.signal(Signal::SIGKILL);
        engine.wait();
        kill(Pid::from_raw(victim as i32), Signal::SIGKILL).expect("kill");
        engine.restart();
        let workers = engine.workers(1);
        assert!(workers.len() == 2 && !workers.contains(&victim), "{workers:?}");
        assert_eq!(engine.status()["totals"]["crashes"], 1, "it counts, whoever was not there");
        for number in 0..40 {
            engine.ask(&number.to_string());
        }
        engine.reload_well();
    }
}

#[test]
fn a_supervisor_that_dies_in_a_reload_has_a_successor_that_ends_it() {
    for options in both_steerings() {
        for (point, generation) in [
            ("supervisor.after_spawn", 1),
            ("supervisor.before_flip", 1),
            ("supervisor.after_flip", 2),
            ("supervisor.during_handoff", 2),
            ("supervisor.before_commit", 2),
            ("supervisor.after_commit", 2),
        ] {
            let first_start_passes =
                !matches!(point, "supervisor.during_handoff" | "supervisor.after_commit");
            let nth = if first_start_passes { 2 } else { 1 };
            let faults = format!("{point}@0=kill:{nth}");
            let mut engine = Engine::start(Options { faults, ..options.clone() });
            let mut clients = engine.clients(20);
            let reload = output_of(engine.zdt_in_background(&["reload", "--json"]));
            assert!(!reload.status.success(), "{point}: the supervisor died: {reload:?}");
            engine.wait();
            clients.count_all();
            engine.ask("alone");
            engine.restart();
            let status = engine.status();
            let serving = status["generation"].as_u64().expect("generation");
            assert_eq!(serving, generation, "{point}: {status}");
            clients.count_all_in(serving);
            for number in 0..20 {
                engine.ask(&number.to_string());
            }
            let verdict = engine.reload_well();
            assert_eq!(verdict["migrated_connections"], 20, "{point}: {verdict}");
            clients.count_all();
            eventually("only one generation is left", || {
                engine.status()["generations"].as_array().map(Vec::len) == Some(1)
            });
        }
    }
}

#[test]
fn a_stale_run_directory_is_cleaned() {
    let mut engine = Engine::start(Options::default());
    let workers = engine.workers(1);
    engine.signal(Signal::SIGKILL);
    engine.wait();
    for pid in workers {
        kill(Pid::from_raw(pid as i32), Signal::SIGKILL).expect("kill");
    }
    engine.configure("");
    engine.restart();
    assert_eq!(engine.status()["generation"], 1, "a fresh start");
    engine.ask("fresh");
    let sockets = std::fs::read_dir(engine.run_dir())
        .expect("run directory")
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("worker-"))
        .count();
    assert_eq!(sockets, 2);
}

#[test]
fn a_second_supervisor_is_refused() {
    let engine = Engine::start(Options::default());
    let output = engine.zdt(&["serve", "--listen", "127.0.0.1:0", "--admin", "off"]);
    assert!(!output.status.success());
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("another supervisor"), "{message}");
    assert!(message.contains(&engine.pid().to_string()), "{message}");
    engine.ask("still-there");
}

#[test]
fn a_lost_state_file_is_made_up_for_by_the_workers() {
    let mut engine = Engine::start(Options::default());
    let mut clients = engine.clients(10);
    engine.signal(Signal::SIGKILL);
    engine.wait();
    std::fs::remove_file(engine.run_dir().join("state.json")).expect("remove");
    engine.restart();
    clients.count_all_in(1);
    engine.reload_well();
    clients.count_all_in(2);
    for number in 0..20 {
        engine.ask(&number.to_string());
    }
}

#[test]
fn a_worker_that_hangs_is_waited_for_later() {
    let mut engine = Engine::start(Options::default());
    let mut clients = engine.clients(10);
    let victim = engine.workers(1)[0];
    engine.signal(Signal::SIGKILL);
    engine.wait();
    kill(Pid::from_raw(victim as i32), Signal::SIGSTOP).expect("stop");
    engine.spawn_successor();
    eventually("the successor serves", || {
        let output = engine.zdt(&["status", "--json"]);
        output.status.success() && engine.status()["generation"] == 1
    });
    assert!(engine.workers(1).contains(&victim), "it is still counted on");
    kill(Pid::from_raw(victim as i32), Signal::SIGCONT).expect("continue");
    engine.wait_until_it_serves();
    clients.count_all_in(1);
    engine.reload_well();
    clients.count_all_in(2);
}

/// Supervisors that die while they restart a worker, more often than a worker may crash: that is nobody's crash.
#[test]
fn supervisors_that_die_over_a_restart_use_up_no_attempts() {
    let config = "[respawn]\nlimit = 2\nwindow_ms = 600000\n";
    let started = "supervisor.worker_started@0=kill";
    let configured = "supervisor.worker_configured@0=kill";
    let arming = "supervisor.before_arming@0=kill";
    for options in both_steerings() {
        for (what, deaths) in [
            // Its worker ends with each of them: it had not even greeted.
            ("right after the start", vec![started; 4]),
            // The worker lives on, and is found half started again and again.
            ("before the arming", [vec![configured], vec![arming; 4]].concat()),
            ("now here, now there", [vec![started; 3], vec![configured], vec![arming; 2]].concat()),
        ] {
            let mut engine = Engine::start(Options { config: config.into(), ..options.clone() });
            let mut clients = engine.clients(10);
            let victim = engine.workers(1)[0];
            engine.signal(Signal::SIGKILL);
            engine.wait();
            kill(Pid::from_raw(victim as i32), Signal::SIGKILL).expect("kill");
            let left = clients.count_survivors();
            for (number, fault) in deaths.iter().enumerate() {
                engine.spawn_successor_with(fault);
                let status = engine.wait();
                assert_eq!(status.signal(), Some(9), "{what}, {number}: {fault}");
            }
            engine.restart();
            let status = engine.status();
            assert_eq!(status["totals"]["failed_starts"], 0, "{what}: {status}");
            assert_eq!(engine.workers(1).len(), 2, "{what}: {status}");
            assert_eq!(clients.count_survivors(), left, "{what}");
            for number in 0..20 {
                engine.ask(&number.to_string());
            }
            engine.reload_well();
        }
    }
}
