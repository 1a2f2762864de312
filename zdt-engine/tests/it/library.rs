//! The library's view of a running supervisor.

use std::process::Command;

use zdt_engine::{ClientError, ZeroDowntime};

use crate::lab::eventually;
use crate::skip::skip;
use crate::supervisor::engine::{Engine, Options};
use crate::system_adder::example;

#[test]
fn a_program_does_what_the_command_line_does() {
    let mut engine = Engine::start(Options::default());
    let mut clients = engine.clients(6);
    let zdt = ZeroDowntime::at(engine.run_dir());
    assert_eq!(zdt.stats().expect("stats").active_connections, 6);
    let health = zdt.health().expect("health");
    assert_eq!((health.status.as_str(), health.problems.len()), ("healthy", 0));
    assert_eq!(health.components.connection_migration.active_connections, 6);
    assert!(health.memory_usage_mb > 1.0 && health.uptime_seconds > 0.0, "{health:?}");
    assert!(!zdt.is_reloading().expect("answer"));
    let test = zdt.test_migration().expect("test");
    assert_eq!((test.test_successful, test.movable_connections), (true, 6));
    let verdict = zdt.reload().expect("verdict");
    assert_eq!((verdict.reload_successful, verdict.migrated_connections), (true, 6));
    clients.count_all_in(2);
    // Somebody else's reload is seen, and a verdict that says no is no error.
    engine.configure("no_such = 1\n");
    let verdict = zdt.reload().expect("verdict");
    assert!(!verdict.reload_successful && verdict.error.is_some(), "{verdict:?}");
    drop(clients);
    eventually("the clients are gone", || zdt.stats().expect("stats").active_connections == 0);
    assert_eq!(zdt.shutdown().expect("stopped"), 2);
    assert!(engine.wait().success());
    assert!(matches!(zdt.health(), Err(ClientError::Absent { .. })));
}

#[test]
fn the_deploy_example_deploys() {
    let Some(deploy) = example("deploy") else {
        return skip("library", "needs the example deploy, which `cargo xtask test` builds");
    };
    let engine = Engine::start(Options::default());
    let mut clients = engine.clients(3);
    let output = Command::new(deploy).arg(engine.run_dir()).output().expect("run");
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("generation 2: 3 connections migrated"), "{said}");
    clients.count_all_in(2);
}
