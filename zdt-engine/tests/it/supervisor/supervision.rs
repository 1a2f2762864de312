//! Workers that hang, crash again and again, or cannot be started.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::engine::{Engine, Options};
use crate::lab::{client, eventually, kept_address};

const HEARTBEAT: &str = "workers = 2\n[supervision]\nheartbeat_timeout_ms = 2000\n";

#[test]
fn a_stopped_worker_is_killed_and_replaced() {
    let engine = Engine::start(Options::config(HEARTBEAT));
    let workers = engine.workers(1);
    kill(Pid::from_raw(workers[0] as i32), Signal::SIGSTOP).expect("signal");
    eventually("it is replaced", || {
        let now = engine.workers(1);
        now.len() == 2 && !now.contains(&workers[0]) && engine.status()["status"] == "healthy"
    });
    let status = engine.status();
    assert_eq!(status["totals"]["hung"], 1, "{status}");
    assert_eq!(status["totals"]["crashes"], 1, "{status}");
    assert!(engine.workers(1).contains(&workers[1]), "the other one was left alone");
    assert!(engine.log().contains("hangs: stopped by a signal"));
    for number in 0..20 {
        engine.ask(&number.to_string());
    }
}

#[test]
fn an_endless_loop_is_ended() {
    let engine = Engine::start(Options {
        config: HEARTBEAT.replace("workers = 2", "workers = 1"),
        ..Options::faults("worker.turn@1=spin:60")
    });
    let victim = engine.workers(1)[0];
    // Each status is a turn.
    eventually("it is replaced", || {
        let now = engine.workers(1);
        now.len() == 1 && !now.contains(&victim)
    });
    assert!(engine.log().contains("hangs: in an endless loop"));
}

#[test]
fn a_reload_of_busy_workers_kills_nobody() {
    // With the shortest time-out there is, and a probation that is longer.
    let config = format!("{HEARTBEAT}[reload]\nprobation_ms = 3000\n");
    let engine = Engine::start(Options::config(&config));
    let mut clients = engine.clients(50);
    engine.reload_well();
    clients.count_all_in(2);
    let status = engine.status();
    assert_eq!(status["totals"]["hung"], 0, "{status}");
    assert_eq!(status["totals"]["crashes"], 0, "{status}");
}

/// Kills the worker at this index of generation 1.
fn kill_worker(engine: &Engine, index: u64) {
    let pid = || {
        let status = engine.status();
        let workers = status["worker_stats"].as_object().cloned().unwrap_or_default();
        let here = workers.values().find(|of| of["index"] == index && of["state"] == "serving");
        here.and_then(|worker| worker["pid"].as_i64())
    };
    let mut victim = None;
    eventually("it serves", || {
        victim = pid();
        victim.is_some()
    });
    let victim = victim.expect("a process");
    kill(Pid::from_raw(victim as i32), Signal::SIGKILL).expect("kill");
    eventually("it is gone", || pid() != Some(victim));
}

#[test]
fn the_next_supervisor_goes_on_counting_crashes() {
    let config = "[respawn]\nlimit = 2\nwindow_ms = 600000\n";
    let mut engine = Engine::start(Options::config(config));
    let next = |engine: &mut Engine| {
        engine.signal(Signal::SIGKILL);
        engine.wait();
        engine.spawn_successor();
        eventually("it has taken over", || engine.zdt(&["status"]).status.success());
    };
    kill_worker(&engine, 0);
    next(&mut engine);
    kill_worker(&engine, 0);
    eventually("it is replaced", || engine.workers(1).len() == 2);
    next(&mut engine);
    kill_worker(&engine, 0);
    eventually("it is given up", || engine.status()["status"] == "degraded");
    // And stays given up, whoever is the supervisor.
    next(&mut engine);
    let check = |engine: &Engine| {
        let status = engine.status();
        assert_eq!(status["status"], "degraded", "{status}");
        assert!(status["problems"].to_string().contains("crashed 3 times"), "{status}");
        // A worker that had not greeted its supervisor ends with it, and that is no crash.
        assert_eq!(status["totals"]["crashes"], 3, "{status}");
        assert_eq!(engine.workers(1).len(), 1);
        for number in 0..20 {
            engine.ask(&number.to_string());
        }
    };
    check(&engine);
    engine.configure(config);
    engine.reload_well();
    assert_eq!(engine.status()["status"], "healthy");
}

#[test]
fn a_crash_loop_ends_degraded() {
    let engine = Engine::start(Options {
        config: "[respawn]\nlimit = 3\nwindow_ms = 600000\n".into(),
        // Both workers, and each that takes their place.
        ..Options::faults("worker.turn@1=exit:40")
    });
    eventually("all are given up", || {
        let status = engine.status();
        status["status"] == "degraded" && status["totals"]["crashes"] == 8
    });
    let status = engine.status();
    assert_eq!(status["totals"]["respawns"], 6, "three for each place: {status}");
    assert_eq!(status["totals"]["failed_starts"], 0, "{status}");
    let problems = status["problems"].to_string();
    assert!(problems.contains("crashed 4 times") && problems.contains("code 3"), "{problems}");
    assert!(engine.log().contains("degraded: its worker crashed 4 times"));
    assert!(engine.workers(1).is_empty());
    // A reload is the way out.
    let verdict = engine.reload();
    assert_eq!(verdict["outcome"], "committed", "{verdict}");
    assert_eq!(engine.status()["status"], "healthy");
    engine.ask("again");
}

#[test]
fn a_restart_that_hangs_is_a_start_that_failed() {
    let engine = Engine::start(Options {
        config: "[respawn]\nlimit = 1\nwindow_ms = 600000\n[reload]\nready_timeout_ms = 4000\n"
            .into(),
        ..Options::faults("worker.start@2=stop")
    });
    let stopped = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    };
    let reload = engine.zdt_in_background(&["reload", "--json"]);
    eventually("green has stopped", || {
        let green = engine.workers(2);
        green.len() == 2 && green.into_iter().all(stopped)
    });
    for green in engine.workers(2) {
        kill(Pid::from_raw(green as i32), Signal::SIGCONT).expect("signal");
    }
    let verdict = super::engine::verdict(&super::engine::output_of(reload));
    assert_eq!(verdict["outcome"], "committed", "{verdict}");
    // The one that takes its place stops as well, and nobody lets it go on.
    let victim = engine.workers(2)[0];
    kill(Pid::from_raw(victim as i32), Signal::SIGKILL).expect("signal");
    eventually("it is given up", || {
        engine.status()["problems"].to_string().contains("is not restarted any more")
    });
    let status = engine.status();
    let problems = status["problems"].to_string();
    assert!(problems.contains("crashed once and failed to start once"), "{problems}");
    assert!(problems.contains("was not ready in time"), "{problems}");
    assert_eq!(status["totals"]["failed_starts"], 1, "{status}");
    engine.ask("its-neighbour");
}

#[test]
fn starts_that_fail_are_told_from_crashes() {
    let admin = kept_address();
    let options = Options::config("[respawn]\nlimit = 3\nwindow_ms = 600000\n");
    let engine = Engine::start(options.and("--admin", &admin.to_string()));
    let readiness = || {
        let request = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        String::from_utf8(client::exchange(admin, request)).expect("UTF-8")
    };
    assert!(readiness().ends_with("{\"status\":\"ready\"}"), "{}", readiness());
    // What a new worker needs cannot be made.
    for id in 3..=6 {
        std::fs::create_dir(engine.run_dir().join(format!("worker-{id}.sock"))).expect("mkdir");
    }
    let victim = engine.workers(1)[0];
    kill(Pid::from_raw(victim as i32), Signal::SIGKILL).expect("signal");
    eventually("it is given up", || {
        engine.status()["status"] == "degraded" && {
            let problems = engine.status()["problems"].to_string();
            problems.contains("is not restarted any more")
        }
    });
    let status = engine.status();
    let problems = status["problems"].to_string();
    assert!(problems.contains("crashed once and failed to start 3 times"), "{problems}");
    assert!(problems.contains("its socket cannot be made"), "{problems}");
    assert_eq!(status["totals"]["crashes"], 1, "{status}");
    assert_eq!(status["totals"]["failed_starts"], 3, "{status}");
    assert!(readiness().starts_with("HTTP/1.1 200 "), "{}", readiness());
    assert!(readiness().ends_with("{\"status\":\"degraded\"}"), "{}", readiness());
    // The neighbour has its sockets.
    for number in 0..40 {
        engine.ask(&number.to_string());
    }
}
