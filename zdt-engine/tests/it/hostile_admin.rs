//! Connections to the admin endpoint that send nothing whole.

use std::io::{Read, Write};

use crate::lab::{client, kept_address};
use crate::supervisor::engine::{Engine, Options};

/// Half requests neither use up the supervisor's descriptors nor the endpoint for good.
#[test]
fn half_sent_requests_end_and_are_few_at_a_time() {
    let admin = kept_address();
    let engine = Engine::start(Options::default().and("--admin", &admin.to_string()));
    let open = || {
        let path = format!("/proc/{}/fd", engine.pid());
        std::fs::read_dir(path).expect("descriptors").count()
    };
    let before = open();
    let half: Vec<_> = (0..300)
        .map(|_| {
            let mut stream = client::connect(admin);
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n").expect("write");
            stream
        })
        .collect();
    assert!(open() < before + 80, "{} descriptors, {before} before", open());
    engine.reload_well();
    // The first ones are closed by their deadline, which lets others in.
    let mut first = &half[0];
    let mut answer = Vec::new();
    let _ = first.read_to_end(&mut answer);
    drop(half);
    let mut stream = client::connect(admin);
    stream
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .expect("write");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}
