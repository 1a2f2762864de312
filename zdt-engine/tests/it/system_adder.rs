//! An application with a service of its own: what it saves goes on in the next generation.

use std::path::PathBuf;

use tungstenite::Message;

use crate::lab::client;
use crate::skip::skip;
use crate::supervisor::engine::{Engine, Options};

fn adder() -> Option<PathBuf> {
    example("adder")
}

/// Cargo builds examples beside the tests, unless it was asked for this test alone.
pub fn example(name: &str) -> Option<PathBuf> {
    let test = std::env::current_exe().expect("current_exe");
    let path = test.parent()?.parent()?.join("examples").join(name);
    path.exists().then_some(path)
}

#[track_caller]
fn add(client: &mut client::Client, number: i64) -> i64 {
    client.send(Message::text(number.to_string())).expect("send");
    let answer = client.read().expect("read").into_text().expect("text");
    answer.parse().expect("a sum")
}

#[test]
fn the_sums_of_an_application_go_on() {
    let Some(binary) = adder() else {
        return skip("system_adder", "needs the example adder, which `cargo xtask test` builds");
    };
    let options = Options { binary: Some(binary), ..Options::default() };
    let engine = Engine::start(options.and("--service", "adder"));
    let mut clients: Vec<_> =
        (0..10).map(|_| client::websocket(engine.address(), "/sum")).collect();
    for turn in 1..=4_i64 {
        for (number, client) in (1..).zip(&mut clients) {
            assert_eq!(add(client, number * turn), number * (1..=turn).sum::<i64>());
        }
        let verdict = engine.reload_well();
        assert_eq!(verdict["migrated_connections"], 10, "{verdict}");
    }
    // It is that service and no other.
    let answer = client::exchange(
        engine.address(),
        b"GET /id?id=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    );
    assert!(answer.starts_with(b"HTTP/1.1 404 "), "{}", String::from_utf8_lossy(&answer));
}
