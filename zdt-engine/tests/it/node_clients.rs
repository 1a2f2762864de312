//! Node's clients over TLS across reloads: `ws`, and node:http2 with WebSockets as streams (RFC 8441).

use std::process::Command;

use crate::lab::programs::{Rounds, node_modules};
use crate::lab::secure::Authority;
use crate::supervisor::engine::{Engine, Options};

#[test]
fn clients_of_node_notice_nothing() {
    let Some(modules) = node_modules("node_clients::clients_of_node_notice_nothing") else {
        return;
    };
    let authority = Authority::new();
    let engine = Engine::start(Options::config(&authority.config()));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/node_clients.js");
    let port = engine.address().port().to_string();
    let certificate = authority.path("server.pem");
    let mut node = Command::new("node");
    let mut clients = Rounds::begin(node.args([script, &port]).arg(certificate).arg(modules));
    for _ in 0..6 {
        let verdict = engine.reload_well();
        // Five of `ws`, and the one of node:http2 with its five WebSockets.
        assert_eq!(verdict["migrated_connections"], 6, "{verdict}");
        assert_eq!(verdict["drained_connections"], 0, "{verdict}");
        clients.next();
        clients.next();
    }
    clients.end();
}
