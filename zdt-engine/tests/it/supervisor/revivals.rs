//! `zdt rollback` after the commit, while the workers that served before still drain.

use super::engine::{Clients, Engine, Options, Storm, output_of, verdict};
use crate::lab::eventually;

/// An engine whose first generation drains, with connections that could not be moved, and whose second
/// one has others.
fn with_two_generations(options: Options) -> (Engine, Clients, Clients) {
    let engine = Engine::start(options);
    let mut stayed = engine.clients(6);
    engine.configure("migrate_connections = false\ndrain_timeout_ms = 600000\n");
    let verdict = engine.reload_well();
    assert_eq!(verdict["drained_connections"], 6, "{verdict}");
    stayed.count_all_in(1);
    let mut came = engine.clients(4);
    came.count_all_in(2);
    (engine, stayed, came)
}

fn options(faults: &str, base: &Options) -> Options {
    let config = "drain_timeout_ms = 600000\n".to_owned();
    Options { faults: faults.to_owned(), config, ..base.clone() }
}

#[test]
fn the_old_workers_serve_again_with_what_they_have_kept() {
    for base in [Options::default(), Options::plain()] {
        let (engine, mut stayed, mut came) = with_two_generations(options("", &base));
        let storm = Storm::begin(engine.address());
        let old = engine.workers(1);
        assert!(!old.is_empty());
        let back = verdict(&engine.zdt(&["rollback", "--json"]));
        assert_eq!((&back["revived"], &back["rollback"]), (&true.into(), &true.into()), "{back}");
        assert_eq!((&back["generation"], &back["workers"]), (&1.into(), &2.into()), "{back}");
        // Of the storm, some may have moved as well.
        assert!(back["migrated_connections"].as_u64() >= Some(4), "{back}");
        assert_eq!(back["lost_connections"], 0, "{back}");
        stayed.count_all_in(1);
        came.count_all_in(1);
        let now = engine.workers(1);
        assert!(now.len() == 2 && old.iter().all(|worker| now.contains(worker)), "{old:?} {now:?}");
        eventually("the other generation has ended", || engine.workers(2).is_empty());
        assert_eq!(engine.status()["status"], "healthy");
        engine.clients(4).count_all_in(1);
        // What drained moves like everything else now, and numbers go on.
        engine.configure("");
        let next = engine.reload_well();
        assert_eq!((&next["generation"], &next["drained_connections"]), (&3.into(), &0.into()));
        stayed.count_all_in(3);
        came.count_all_in(3);
        storm.end();
    }
}

#[test]
fn what_cannot_be_had_back_is_started_anew_and_drains_on() {
    for base in [Options::default(), Options::plain()] {
        for point in ["supervisor.after_spawn", "supervisor.before_flip"] {
            let faults = format!("{point}@0=fail:3");
            let (engine, mut stayed, mut came) = with_two_generations(options(&faults, &base));
            let old = engine.workers(1);
            let back = verdict(&engine.zdt(&["rollback", "--json"]));
            assert_eq!(
                (&back["reload_successful"], &back["revived"], &back["generation"]),
                (&true.into(), &false.into(), &3.into()),
                "{point}: {back}"
            );
            stayed.count_all_in(1);
            came.count_all_in(3);
            assert_eq!(engine.workers(1), old, "{point}: they drain");
            let generations = engine.status()["generations"].clone();
            assert!(generations.to_string().contains("draining"), "{point}: {generations}");
        }
        // After the flip the way back is the usual one, on which all that can move goes along.
        let faults = "supervisor.after_flip@0=fail:3";
        let (engine, mut stayed, mut came) = with_two_generations(options(faults, &base));
        let back = verdict(&engine.zdt(&["rollback", "--json"]));
        assert_eq!(back["outcome"], "rolled_back", "{back}");
        stayed.count_all_in(2);
        came.count_all_in(2);
        engine.clients(4).count_all_in(2);
    }
}

#[test]
fn a_supervisor_that_dies_meanwhile_takes_nobody_along() {
    for base in [Options::default(), Options::plain()] {
        for (point, nth) in [
            ("supervisor.after_spawn", 3),
            ("supervisor.before_flip", 3),
            ("supervisor.after_flip", 3),
            ("supervisor.before_commit", 3),
            ("supervisor.after_commit", 2),
        ] {
            let faults = format!("{point}@0=kill:{nth}");
            let (mut engine, mut stayed, mut came) = with_two_generations(options(&faults, &base));
            let output = output_of(engine.zdt_in_background(&["rollback", "--json"]));
            assert!(!output.status.success(), "{point}: the supervisor died: {output:?}");
            engine.wait();
            stayed.count_all_in(1);
            came.count_all();
            engine.restart();
            stayed.count_all_in(1);
            came.count_all();
            for number in 0..10 {
                engine.ask(&number.to_string());
            }
            engine.configure("drain_timeout_ms = 600000\n");
            let next = engine.reload_well();
            assert_eq!(next["lost_connections"], 0, "{point}: {next}");
            stayed.count_all();
            came.count_all();
        }
    }
}
