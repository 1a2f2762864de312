//! Rolling reloads: step by step, under load, undone as a whole, and with kill -9 in every step.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::engine::{Engine, Options, Storm, output_of, verdict};
use crate::lab::eventually;
use crate::skip::have_root;

fn both_steerings() -> Vec<Options> {
    let mut all = vec![Options::plain()];
    if have_root("supervisor::rolling with eBPF") {
        all.push(Options::default().and("--steering", "ebpf"));
    }
    all.into_iter().map(|options| options.and("--strategy", "rolling")).collect()
}

const LONG_PAUSE: &str = "[reload]\nrolling_pause_ms = 600000\n";

/// Starts a reload whose first step is done, and whose second one waits.
fn half_done(options: Options) -> (Engine, super::engine::Clients, std::process::Child) {
    let engine = Engine::start(Options { config: LONG_PAUSE.into(), ..options });
    let clients = engine.clients(20);
    let reload = engine.zdt_in_background(&["reload", "--json"]);
    eventually("the first step is done", || engine.status()["reload"]["stage"] == "pausing");
    (engine, clients, reload)
}

#[test]
fn step_by_step_every_connection_moves_and_no_request_fails() {
    for options in both_steerings() {
        let config = "workers = 3\n[reload]\nrolling_pause_ms = 30\n".to_owned();
        let engine = Engine::start(Options { config, ..options });
        let storm = Storm::begin(engine.address());
        let mut clients = engine.clients(30);
        for generation in 2..6 {
            let verdict = engine.reload_well();
            assert_eq!(verdict["strategy"], "rolling", "{verdict}");
            assert_eq!(verdict["workers"], 3, "{verdict}");
            assert!(verdict["migrated_connections"].as_u64() >= Some(30), "{verdict}");
            assert_eq!(verdict["drained_connections"], 0, "{verdict}");
            clients.count_all_in(generation);
        }
        assert!(storm.end() > 10);
    }
}

#[test]
fn the_number_of_workers_may_change_step_by_step() {
    for options in both_steerings() {
        for batch in [1, 2] {
            let config =
                |workers: u64| format!("workers = {workers}\n[reload]\nrolling_batch = {batch}\n");
            let engine = Engine::start(Options { config: config(2), ..options.clone() });
            let storm = Storm::begin(engine.address());
            let mut clients = engine.clients(12);
            for (generation, workers) in [(2, 5), (3, 1), (4, 3)] {
                engine.configure(&config(workers));
                let verdict = engine.reload_well();
                assert_eq!(verdict["workers"], workers, "{verdict}");
                clients.count_all_in(generation);
                // Every socket has somebody who accepts from it.
                for number in 0..40 {
                    engine.ask(&format!("{generation}-{number}"));
                }
            }
            storm.end();
        }
    }
}

#[test]
fn one_listener_for_all_will_do() {
    let config = "reuse_port = false\nstrategy = \"rolling\"\n";
    let engine = Engine::start(Options::config(config));
    let storm = Storm::begin(engine.address());
    let mut clients = engine.clients(8);
    engine.reload_well();
    clients.count_all_in(2);
    storm.end();
}

#[test]
fn between_two_steps_both_generations_serve() {
    for options in both_steerings() {
        let (engine, mut clients, reload) = half_done(options);
        let by_generation = clients.count_all();
        assert_eq!(by_generation.keys().copied().collect::<Vec<_>>(), [1, 2]);
        assert_eq!((engine.workers(1).len(), engine.workers(2).len()), (2, 1));
        let more = engine.clients(40).count_all();
        assert_eq!(more.keys().copied().collect::<Vec<_>>(), [1, 2], "new ones go to both");
        // A newer reload waits, since this one has flipped; until it is undone.
        let second = engine.zdt_in_background(&["reload", "--strategy", "blue-green", "--json"]);
        let undone = engine.zdt(&["rollback", "--json"]);
        assert!(undone.status.success(), "{undone:?}");
        let first = verdict(&output_of(reload));
        assert_eq!(first["outcome"], "rolled_back", "{first}");
        assert!(first["error"].as_str().expect("error").contains("asked for"), "{first}");
        assert!(first["returned_connections"].as_u64() > Some(0), "{first}");
        assert_eq!(
            (&first["lost_connections"], &first["drained_connections"]),
            (&0.into(), &0.into())
        );
        let second = verdict(&output_of(second));
        assert_eq!(
            (&second["outcome"], &second["strategy"]),
            (&"committed".into(), &"blue-green".into())
        );
        clients.count_all_in(3);
    }
}

#[test]
fn the_first_failure_stops_it_and_takes_it_back() {
    for options in both_steerings() {
        // The first step of the first start, then the two of the reload.
        let config = "[reload]\nready_timeout_ms = 3000\n".to_owned();
        let faults = "supervisor.after_spawn@0=fail:3".to_owned();
        let engine = Engine::start(Options { config, faults, ..options });
        let mut clients = engine.clients(20);
        let storm = Storm::begin(engine.address());
        let verdict = engine.reload();
        assert_eq!(verdict["outcome"], "rolled_back", "{verdict}");
        assert!(verdict["error"].as_str().expect("error").contains("after_spawn"), "{verdict}");
        assert!(verdict["returned_connections"].as_u64() > Some(0), "{verdict}");
        assert_eq!(verdict["lost_connections"], 0, "{verdict}");
        clients.count_all_in(1);
        for number in 0..40 {
            engine.ask(&number.to_string());
        }
        engine.reload_well();
        storm.end();
        clients.count_all_in(3);
    }
}

#[test]
fn a_replacement_that_is_killed_between_two_steps_takes_only_its_own_along() {
    for options in both_steerings() {
        let (engine, mut clients, reload) = half_done(options);
        let moved = clients.count_all()[&2];
        kill(Pid::from_raw(engine.workers(2)[0] as i32), Signal::SIGKILL).expect("kill");
        let verdict = verdict(&output_of(reload));
        assert_eq!(verdict["outcome"], "rolled_back", "{verdict}");
        assert_eq!(verdict["lost_connections"], moved, "{verdict}");
        assert_eq!(clients.count_survivors(), 20 - moved);
        clients.count_all_in(1);
        for number in 0..20 {
            engine.ask(&number.to_string());
        }
    }
}

#[test]
fn a_worker_that_is_killed_before_its_step_is_restarted_and_takes_part() {
    for options in both_steerings() {
        let config = "[reload]\nrolling_pause_ms = 3000\n".to_owned();
        let engine = Engine::start(Options { config, ..options });
        let mut clients = engine.clients(20);
        let reload = engine.zdt_in_background(&["reload", "--json"]);
        eventually("the first step is done", || engine.status()["reload"]["stage"] == "pausing");
        let status = engine.status();
        let victim = status["worker_stats"]
            .as_object()
            .expect("workers")
            .values()
            .find(|worker| worker["generation"] == 1 && worker["index"] == 1)
            .and_then(|worker| worker["pid"].as_i64())
            .expect("worker 1");
        kill(Pid::from_raw(victim as i32), Signal::SIGKILL).expect("kill");
        eventually("it is replaced", || engine.workers(1).len() == 2);
        let verdict = verdict(&output_of(reload));
        assert_eq!(verdict["outcome"], "committed", "{verdict}");
        clients.count_survivors();
        clients.count_all_in(2);
        for number in 0..40 {
            engine.ask(&number.to_string());
        }
    }
}

#[test]
fn workers_that_die_in_their_handoff_take_only_theirs_along() {
    for options in both_steerings() {
        // Old workers die, each in its own step, and the new ones go on; a new one that dies undoes all.
        for (point, outcome, generation) in [
            ("freeze.saved@1=kill:5", "committed", 2),
            ("offer.published@1=kill:5", "committed", 2),
            ("release.before@1=kill:5", "committed", 2),
            ("adopt.restored@2=kill:5", "rolled_back", 1),
            ("adopt.started@2=kill:5", "rolled_back", 1),
        ] {
            let config = "[handoff]\nwindow = 4\n".to_owned();
            let faults = point.to_owned();
            let engine = Engine::start(Options { config, faults, ..options.clone() });
            let mut clients = engine.clients(60);
            let verdict = engine.reload();
            assert_eq!(verdict["outcome"], outcome, "{point}: {verdict}");
            let lost = verdict["lost_connections"].as_u64().expect("lost") as usize;
            assert_eq!(clients.count_survivors(), 60 - lost, "{point}: {verdict}");
            clients.count_all_in(generation);
            for number in 0..20 {
                engine.ask(&number.to_string());
            }
            eventually("it is whole again", || {
                let status = engine.status();
                status["status"] == "healthy" && engine.workers(generation).len() == 2
            });
        }
    }
}

#[test]
fn without_migration_connections_drain_in_the_old_workers() {
    for options in both_steerings() {
        let config = "migrate_connections = false\n".to_owned();
        let engine = Engine::start(Options { config, ..options });
        let storm = Storm::begin(engine.address());
        let mut clients = engine.clients(6);
        let verdict = engine.reload_well();
        assert_eq!(verdict["migrated_connections"], 0, "{verdict}");
        clients.count_all_in(1);
        assert_eq!(engine.clients(3).count_all().keys().copied().collect::<Vec<_>>(), [2]);
        storm.end();
    }
}

#[test]
fn a_stop_between_two_steps_waits_for_no_pause() {
    let (mut engine, clients, reload) = half_done(Options::plain().and("--strategy", "rolling"));
    drop(clients);
    engine.signal(Signal::SIGTERM);
    let verdict = verdict(&output_of(reload));
    assert_eq!(verdict["outcome"], "committed", "{verdict}");
    assert!(engine.wait().success());
}

#[test]
fn a_supervisor_that_dies_in_any_step_has_a_successor_that_undoes_or_ends_it() {
    for options in both_steerings() {
        // Passages of the first start come first; `:2` is the first step and `:3` the second.
        for (point, generation) in [
            ("supervisor.after_spawn@0=kill:2", 1),
            ("supervisor.before_flip@0=kill:2", 1),
            ("supervisor.after_flip@0=kill:2", 1),
            ("supervisor.during_handoff@0=kill:1", 1),
            ("supervisor.after_spawn@0=kill:3", 1),
            ("supervisor.before_flip@0=kill:3", 1),
            ("supervisor.after_flip@0=kill:3", 1),
            ("supervisor.during_handoff@0=kill:2", 1),
            ("supervisor.before_commit@0=kill:2", 1),
            ("supervisor.after_commit@0=kill:1", 2),
        ] {
            let mut engine = Engine::start(Options { faults: point.into(), ..options.clone() });
            let mut clients = engine.clients(20);
            let reload = output_of(engine.zdt_in_background(&["reload", "--json"]));
            assert!(!reload.status.success(), "{point}: the supervisor died: {reload:?}");
            engine.wait();
            clients.count_all();
            engine.restart();
            let status = engine.status();
            assert_eq!(status["generation"], generation, "{point}: {status}");
            clients.count_all_in(generation);
            for number in 0..20 {
                engine.ask(&number.to_string());
            }
            engine.reload_well();
            clients.count_all();
            eventually("only one generation is left", || {
                engine.status()["generations"].as_array().map(Vec::len) == Some(1)
            });
        }
    }
}
