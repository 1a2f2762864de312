//! A port that is somebody else's.

use std::process::Command;

use crate::supervisor::engine::{Engine, Options};

/// SO_REUSEPORT would let the second one in, and take every new connection from the first.
#[test]
fn a_second_supervisor_on_the_same_port_is_refused() {
    for options in [Options::default(), Options::plain()] {
        let engine = Engine::start(options);
        engine.ask("before");
        let elsewhere = tempfile::tempdir().expect("directory");
        let output = Command::new(env!("CARGO_BIN_EXE_zdt"))
            .args(["serve", "--admin", "off", "--workers", "1", "--listen"])
            .arg(engine.address().to_string())
            .arg("--run-dir")
            .arg(elsewhere.path().join("run"))
            .output()
            .expect("zdt");
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("somebody else listens there"), "{said}");
        for _ in 0..20 {
            engine.ask("after");
        }
        engine.reload_well();
        engine.ask("again");
    }
}
