//! A browser across reloads: Chromium, whose WebSockets are streams of an HTTP/2 connection over TLS (RFC 8441).

use std::process::Command;

use crate::lab::programs::{Rounds, have, python};
use crate::lab::secure::Authority;
use crate::supervisor::engine::{Engine, Options};

#[test]
fn pages_in_chromium_notice_nothing() {
    let test = "browser::pages_in_chromium_notice_nothing";
    if !have(test, "chromium", "--version") {
        return;
    }
    let Some(python) = python(test) else { return };
    let authority = Authority::new();
    let engine = Engine::start(Options::config(&authority.config()));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/browser.py");
    let port = engine.address().port().to_string();
    let mut page = Rounds::begin(Command::new(python).args([script, &port, "20"]));
    for _ in 0..6 {
        let verdict = engine.reload_well();
        // Twenty WebSockets and whatever is being fetched are streams of very few connections.
        let moved = verdict["migrated_connections"].as_u64().expect("a number");
        assert!((1..=4).contains(&moved), "{verdict}");
        // One whose handshake was not over, if any: Chromium opens some ahead of time.
        assert_eq!(verdict["lost_connections"], 0, "{verdict}");
        page.next();
        page.next();
    }
    page.end();
}
