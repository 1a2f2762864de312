//! Python's websockets, with permessage-deflate and context takeover, across reloads.

use std::process::Command;

use crate::lab::programs::{Rounds, python};
use crate::supervisor::engine::{Engine, Options};

const CONNECTIONS: u64 = 4;

#[test]
fn compressed_messages_of_all_sizes_cross_reloads() {
    let test = "system_python::compressed_messages_of_all_sizes_cross_reloads";
    let Some(python) = python(test) else { return };
    let engine = Engine::start(Options::default());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/system_python.py");
    let url = format!("ws://{}/ws/echo", engine.address());
    let mut client =
        Rounds::begin(Command::new(python).arg(script).arg(url).arg(CONNECTIONS.to_string()));
    for _ in 0..5 {
        let verdict = engine.reload_well();
        assert_eq!(verdict["migrated_connections"], CONNECTIONS, "{verdict}");
        assert_eq!(verdict["drained_connections"], 0, "{verdict}");
        client.next();
    }
    client.end();
}
