//! Workers that die, while nothing else goes on and in every stage of a reload.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::engine::{Engine, Options, ask};
use crate::lab::{client, eventually};

fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).expect("signal");
}

/// The state letter of a process, as proc(5) has it.
fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

#[test]
fn a_crashed_worker_is_restarted_on_the_same_listener() {
    for options in [Options::default(), Options::plain()] {
        let engine = Engine::start(Options { config: "workers = 1\n".into(), ..options });
        let victim = engine.workers(1)[0];
        // Connections that are queued, and not accepted, when the worker dies.
        send(victim, Signal::SIGSTOP);
        eventually("it has stopped", || state(victim) == Some('T'));
        let queued: Vec<_> = (0..20).map(|_| client::connect(engine.address())).collect();
        send(victim, Signal::SIGKILL);
        for (number, stream) in queued.into_iter().enumerate() {
            ask(stream, &number.to_string());
        }
        let workers = engine.workers(1);
        assert_eq!(workers.len(), 1);
        assert_ne!(workers[0], victim);
        let status = engine.status();
        assert_eq!(status["totals"]["crashes"], 1, "{status}");
        assert_eq!(status["totals"]["respawns"], 1, "{status}");
        engine.reload_well();
    }
}

#[test]
fn nobody_is_sent_to_a_dead_worker() {
    let engine = Engine::start(Options::default());
    for _ in 0..3 {
        let victim = engine.workers(1)[0];
        send(victim, Signal::SIGKILL);
        // What the kernel had accepted in its name dies with it; what comes later must not.
        eventually("it is dead", || matches!(state(victim), None | Some('Z')));
        for number in 0..30 {
            engine.ask(&number.to_string());
        }
        eventually("it is replaced", || {
            let workers = engine.workers(1);
            workers.len() == 2 && !workers.contains(&victim)
        });
    }
}

#[test]
fn past_the_limit_a_neighbour_takes_the_listener() {
    for options in [Options::default(), Options::plain()] {
        let config = "[respawn]\nlimit = 1\nwindow_ms = 600000\n";
        let engine = Engine::start(Options { config: config.into(), ..options });
        let status = engine.status();
        let of_index = |status: &serde_json::Value, index: u64| {
            status["worker_stats"].as_object().and_then(|all| {
                let worker = all.values().find(|worker| worker["index"] == index)?;
                worker["pid"].as_u64().map(|pid| pid as u32)
            })
        };
        let first = of_index(&status, 0).expect("worker 0");
        send(first, Signal::SIGKILL);
        eventually("it is replaced", || {
            let status = engine.status();
            status["status"] == "healthy" && of_index(&status, 0) != Some(first)
        });
        let second = of_index(&engine.status(), 0).expect("worker 0");
        send(second, Signal::SIGKILL);
        eventually("it is given up", || {
            let status = engine.status();
            status["status"] == "degraded" && of_index(&status, 0).is_none()
        });
        for number in 0..40 {
            engine.ask(&number.to_string());
        }
        engine.reload_well();
        assert_eq!(engine.status()["status"], "healthy");
        assert_eq!(engine.workers(2).len(), 2);
    }
}

#[test]
fn blue_that_dies_in_the_handoff() {
    // Some points are passed for each connection, some for each batch of them.
    for (point, nth) in [
        ("freeze.saved", 10),
        ("offer.published", 10),
        ("offer.after_descriptors", 2),
        ("release.before", 10),
    ] {
        let engine = Engine::start(Options {
            config: "workers = 1\n[handoff]\nwindow = 8\n".into(),
            ..Options::faults(&format!("{point}@1=kill:{nth}"))
        });
        let mut clients = engine.clients(40);
        let verdict = engine.reload();
        assert_eq!(verdict["outcome"], "committed", "{point}: {verdict}");
        let left = clients.count_survivors() as u64;
        let lost = verdict["lost_connections"].as_u64().expect("lost");
        assert_eq!(left + lost, 40, "{point}: {verdict}");
        assert!(lost > 0 && left > 0, "{point}: {verdict}");
        engine.reload_well();
        assert_eq!(clients.count_survivors() as u64, left);
    }
}

#[test]
fn green_that_dies_in_the_handoff() {
    for (point, nth) in [("adopt.received", 2), ("adopt.adopted", 10), ("adopt.started", 10)] {
        let engine = Engine::start(Options {
            config: "workers = 1\n[handoff]\noffer_timeout_ms = 300\nwindow = 8\n".into(),
            ..Options::faults(&format!("{point}@2=kill:{nth}"))
        });
        let mut clients = engine.clients(40);
        let verdict = engine.reload();
        assert_eq!(verdict["outcome"], "rolled_back", "{point}: {verdict}");
        let left = clients.count_survivors() as u64;
        let lost = verdict["lost_connections"].as_u64().expect("lost");
        assert_eq!(left + lost, 40, "{point}: {verdict}");
        assert!(left > 0, "{point}: {verdict}");
        eventually("all is well again", || engine.status()["status"] == "healthy");
        assert_eq!(engine.workers(1).len(), 1);
        engine.reload_well();
        assert_eq!(clients.count_survivors() as u64, left);
    }
}

#[test]
fn all_of_green_dies_on_probation() {
    let engine = Engine::start(Options::config("[reload]\nprobation_ms = 20000\n"));
    let mut clients = engine.clients(40);
    let reload = engine.zdt_in_background(&["reload", "--json"]);
    eventually("probation", || engine.status()["reload"]["stage"] == "probation");
    for victim in engine.workers(2) {
        send(victim, Signal::SIGKILL);
    }
    let verdict = super::engine::verdict(&super::engine::output_of(reload));
    assert_eq!(verdict["outcome"], "rolled_back", "{verdict}");
    assert_eq!(verdict["lost_connections"], 40, "all of green died: {verdict}");
    assert_eq!(clients.count_survivors(), 0);
    engine.ask("blue-serves-on");
    engine.reload_well();
}

#[test]
fn everybody_dies_in_the_handoff() {
    let engine = Engine::start(Options::config("[reload]\nprobation_ms = 20000\n"));
    let reload = engine.zdt_in_background(&["reload", "--json"]);
    eventually("probation", || engine.status()["reload"]["stage"] == "probation");
    for victim in engine.workers(1).into_iter().chain(engine.workers(2)) {
        send(victim, Signal::SIGKILL);
    }
    let verdict = super::engine::verdict(&super::engine::output_of(reload));
    eventually("somebody serves again", || engine.status()["status"] == "healthy");
    let generation = engine.status()["generation"].as_u64().expect("generation");
    // Which side is noticed to be dead first decides, and the verdict says which serves.
    assert_eq!(verdict["generation"].as_u64(), Some(generation), "{verdict}");
    assert_eq!(engine.workers(generation).len(), 2);
    for number in 0..10 {
        engine.ask(&number.to_string());
    }
}

#[test]
fn blue_that_dies_before_the_flip_is_restarted() {
    // Green hangs at its start, so that there is time to kill blue.
    let engine = Engine::start(Options {
        config: "[reload]\nready_timeout_ms = 3000\n".into(),
        ..Options::faults("worker.start@2=stop")
    });
    let reload = engine.zdt_in_background(&["reload", "--json"]);
    eventually("green is there", || engine.workers(2).len() == 2);
    let victim = engine.workers(1)[0];
    send(victim, Signal::SIGKILL);
    eventually("it is replaced", || {
        let workers = engine.workers(1);
        workers.len() == 2 && !workers.contains(&victim)
    });
    for green in engine.workers(2) {
        send(green, Signal::SIGCONT);
    }
    let verdict = super::engine::verdict(&super::engine::output_of(reload));
    assert_eq!(verdict["outcome"], "committed", "{verdict}");
    engine.ask("after");
}
