//! `zdt rollback`: before the commit, after it, and without anything to go back to.

use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::engine::{Engine, Options, Storm, ask, output_of, verdict};
use crate::lab::{client, eventually, kept_address};

/// A program of its own to start workers from.
fn build(dir: &std::path::Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::copy(env!("CARGO_BIN_EXE_zdt"), &path).expect("copy the program");
    path
}

/// What the workers of a generation execute.
fn programs(engine: &Engine, generation: u64) -> Vec<String> {
    let workers = engine.workers(generation);
    let program = |pid| std::fs::read_link(format!("/proc/{pid}/exe")).expect("exe");
    workers.into_iter().map(|pid| program(pid).display().to_string()).collect()
}

#[test]
fn a_rollback_starts_the_earlier_build_even_if_its_file_is_gone() {
    for options in [Options::default(), Options::plain()] {
        let dir = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir()
            .expect("tempdir");
        let (old, new) = (build(dir.path(), "old"), build(dir.path(), "new"));
        let config = |program: &std::path::Path, workers: u32| {
            format!("workers = {workers}\nexecutable = \"{}\"\n", program.display())
        };
        let engine = Engine::start(Options { config: config(&old, 2), ..options });
        let storm = Storm::begin(engine.address());
        let mut clients = engine.clients(10);
        engine.configure(&config(&new, 3));
        engine.reload_well();
        clients.count_all_in(2);
        std::fs::remove_file(&old).expect("remove the old program");
        eventually("nobody executes it any more", || engine.workers(1).is_empty());

        let output = engine.zdt(&["rollback", "--json"]);
        let back = verdict(&output);
        assert_eq!(
            (&back["outcome"], &back["rollback"]),
            (&"committed".into(), &true.into()),
            "{back}"
        );
        assert_eq!((&back["generation"], &back["workers"]), (&3.into(), &2.into()), "{back}");
        assert_eq!(
            (&back["drained_connections"], &back["lost_connections"]),
            (&0.into(), &0.into())
        );
        clients.count_all_in(3);
        for program in programs(&engine, 3) {
            assert!(program.contains("/old") && program.contains("deleted"), "{program}");
        }
        // And forth again: what was left is what there is to go back to.
        let output = engine.zdt(&["rollback", "--json"]);
        let forth = verdict(&output);
        assert_eq!((&forth["generation"], &forth["workers"]), (&4.into(), &3.into()), "{forth}");
        assert!(programs(&engine, 4).iter().all(|program| program.ends_with("/new")));
        clients.count_all_in(4);
        storm.end();
    }
}

#[test]
fn a_rollback_on_probation_undoes_the_reload() {
    for options in [Options::default(), Options::plain()] {
        let config = "[reload]\nprobation_ms = 600000\n".to_owned();
        let engine = Engine::start(Options { config, ..options });
        let storm = Storm::begin(engine.address());
        let mut clients = engine.clients(10);
        let workers = engine.workers(1);
        let reload = engine.zdt_in_background(&["reload", "--json"]);
        eventually("probation", || engine.status()["reload"]["stage"] == "probation");
        clients.count_all_in(2);
        let output = engine.zdt(&["rollback"]);
        assert!(output.status.success(), "{output:?}");
        let reload = verdict(&output_of(reload));
        assert_eq!(reload["outcome"], "rolled_back", "{reload}");
        assert!(reload["returned_connections"].as_u64() >= Some(10), "{reload}");
        assert_eq!(
            (&reload["lost_connections"], &reload["drained_connections"]),
            (&0.into(), &0.into())
        );
        clients.count_all_in(1);
        assert_eq!(engine.workers(1), workers, "the same processes");
        storm.end();
    }
}

#[test]
fn without_an_earlier_build_there_is_nothing_to_go_back_to() {
    let engine = Engine::start(Options::default());
    let mut clients = engine.clients(2);
    let output = engine.zdt(&["rollback"]);
    assert!(!output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("no earlier build"), "{text}");
    clients.count_all_in(1);
}

#[test]
fn a_reload_and_a_rollback_that_both_wait_are_not_one() {
    let engine = Engine::start(Options::faults("worker.start@2=stop"));
    let mut clients = engine.clients(4);
    // Its workers never come up: what follows takes its place.
    let first = engine.zdt_in_background(&["reload", "--json"]);
    eventually("the first reload waits for its workers", || engine.workers(2).len() == 2);
    let output = engine.zdt(&["rollback", "--json"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(verdict_of(&output)["outcome"], "failed_before_flip");
    assert_eq!(verdict(&output_of(first))["outcome"], "failed_before_flip");
    clients.count_all_in(1);
    engine.reload_well();
    clients.count_all_in(3);
}

fn verdict_of(output: &std::process::Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).expect("a verdict")
}

/// Addresses that only the undone generation was to serve are let go, and can be served by a later one, also by one that
/// comes while the first one's sockets linger.
#[test]
fn an_undone_reload_leaves_no_address_behind() {
    for options in [Options::default(), Options::plain()] {
        // The second does not count the passage at which the first strikes.
        let faults = "supervisor.before_commit@0=fail:2,supervisor.before_commit@0=fail:2";
        let engine = Engine::start(Options { faults: faults.into(), ..options });
        let (old, new) = (engine.address(), kept_address());
        let mut clients = engine.clients(5);
        engine.configure_listen(&[old, new]);
        for _ in 0..2 {
            let undone = engine.reload();
            assert_eq!(undone["outcome"], "rolled_back", "{undone}");
            assert_eq!(undone["lost_connections"], 0, "{undone}");
            clients.count_all_in(1);
        }
        engine.configure_listen(&[old]);
        eventually("the new address is let go", || TcpStream::connect(new).is_err());
        for _ in 0..10 {
            engine.ask("old");
        }
        engine.configure_listen(&[old, new]);
        engine.reload_well();
        clients.count_all_in(4);
        ask(client::connect(new), "new");
    }
}

/// The linger of the first attempt's sockets does not end the second one's.
#[test]
fn a_second_attempt_takes_the_sockets_of_an_undone_one() {
    let faults = "supervisor.before_commit@0=fail:2";
    let engine = Engine::start(Options { faults: faults.into(), ..Options::plain() });
    let (old, new) = (engine.address(), kept_address());
    engine.configure_listen(&[old, new]);
    let undone = engine.reload();
    assert_eq!(undone["outcome"], "rolled_back", "{undone}");
    engine.reload_well();
    // For longer than a socket lingers.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        ask(client::connect(new), "new");
        ask(client::connect(old), "old");
    }
}
