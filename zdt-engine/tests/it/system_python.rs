//! Python's websockets, with permessage-deflate and context takeover, across reloads.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::lab::eventually;
use crate::lab::system::{Guarded, python};
use crate::supervisor::engine::{Engine, Options};

const CONNECTIONS: u64 = 4;

#[test]
fn compressed_messages_of_all_sizes_cross_reloads() {
    let test = "system_python::compressed_messages_of_all_sizes_cross_reloads";
    let Some(python) = python(test) else { return };
    let engine = Engine::start(Options::default());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/system_python.py");
    let mut client = Guarded(
        Command::new(python)
            .arg(script)
            .arg(format!("ws://{}/ws/echo", engine.address()))
            .arg(CONNECTIONS.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("run the client"),
    );
    let mut rounds = BufReader::new(client.0.stdout.take().expect("stdout")).lines();
    let mut next_round = || {
        let line = rounds.next().expect("the client has ended early").expect("read");
        assert_eq!(line, "round");
    };
    next_round();
    for _ in 0..5 {
        let verdict = engine.reload_well();
        assert_eq!(verdict["migrated_connections"], CONNECTIONS, "{verdict}");
        assert_eq!(verdict["drained_connections"], 0, "{verdict}");
        next_round();
    }
    drop(client.0.stdin.take());
    // Those that it was at, and the last.
    rounds.by_ref().for_each(drop);
    let mut status = None;
    eventually("the client ends", || {
        status = client.0.try_wait().expect("wait");
        status.is_some()
    });
    assert!(status.expect("status").success(), "{status:?}");
}
