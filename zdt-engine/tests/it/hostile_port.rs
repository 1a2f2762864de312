//! A port that is somebody else's.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output};

use crate::lab::kept_address;
use crate::supervisor::engine::{Engine, Options};

fn serve_elsewhere(address: SocketAddr, args: &[&str]) -> Output {
    let elsewhere = tempfile::tempdir().expect("directory");
    Command::new(env!("CARGO_BIN_EXE_zdt"))
        .args(["serve", "--admin", "off", "--workers", "1", "--listen"])
        .arg(address.to_string())
        .arg("--run-dir")
        .arg(elsewhere.path().join("run"))
        .args(args)
        .output()
        .expect("zdt")
}

/// SO_REUSEPORT would let the second one in, and take every new connection from the first.
#[test]
fn a_second_supervisor_on_the_same_port_is_refused() {
    for options in [Options::default(), Options::plain()] {
        let engine = Engine::start(options);
        engine.ask("before");
        for args in [&[][..], &["--steering", "off"]] {
            let output = serve_elsewhere(engine.address(), args);
            assert!(!output.status.success());
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("somebody else listens there"), "{said}");
        }
        for _ in 0..20 {
            engine.ask("after");
        }
        engine.reload_well();
        engine.ask("again");
    }
}

/// The old workers serve on, and nobody listens where nobody accepts.
#[test]
fn a_reload_onto_a_port_that_is_taken_changes_nothing() {
    let other = kept_address();
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let taken_address = taken.local_addr().expect("address");
    for options in [Options::default(), Options::plain()] {
        let engine = Engine::start(options);
        let mut clients = engine.clients(3);
        engine.configure_listen(&[engine.address(), other, taken_address]);
        let verdict = engine.reload();
        assert_eq!(verdict["outcome"], "failed_before_flip", "{verdict}");
        let error = verdict["error"].as_str().expect("error");
        assert!(error.contains(&taken_address.to_string()), "{error}");
        clients.count_all_in(1);
        for _ in 0..20 {
            engine.ask("after");
        }
        TcpStream::connect(other).expect_err("nobody accepts there");
    }
}
