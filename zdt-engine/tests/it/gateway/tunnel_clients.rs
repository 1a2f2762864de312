//! Other people's clients whose WebSockets pass through the gateway on streams of HTTP/2, across reloads,
//! in the clear and over TLS.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::lab::eventually;
use crate::lab::programs::{Guarded, python};
use crate::lab::secure::Authority;
use crate::supervisor::engine::{Engine, Options};

use super::gateway_for;

fn count_through_reloads(gateway: &Engine, python: &std::path::Path, transport: &[&str]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/http2_clients.py");
    let mut client = Guarded(
        Command::new(python)
            .args([script, &gateway.address().port().to_string(), "12"])
            .args(transport)
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
    for _ in 0..4 {
        let verdict = gateway.reload_well();
        assert_eq!(verdict["migrated_connections"], 1, "{verdict}");
        assert_eq!(verdict["drained_connections"], 0, "{verdict}");
        next_round();
    }
    drop(client.0.stdin.take());
    rounds.by_ref().for_each(drop);
    let mut status = None;
    eventually("the client ends", || {
        status = client.0.try_wait().expect("wait");
        status.is_some()
    });
    assert!(status.expect("status").success(), "{status:?}");
}

#[test]
fn websockets_of_the_h2_library_pass_through_reloads() {
    let test = "gateway::tunnel_clients::websockets_of_the_h2_library_pass_through_reloads";
    let Some(python) = python(test) else { return };
    // The demo counts the messages of each connection.
    let application = Engine::start(Options::default());
    let url = format!("http://{}", application.address());
    count_through_reloads(&gateway_for(std::slice::from_ref(&url), "workers = 1"), &python, &[]);
    let authority = Authority::new();
    let config = format!("workers = 1\n{}", authority.config());
    count_through_reloads(&gateway_for(&[url], &config), &python, &["tls"]);
}
