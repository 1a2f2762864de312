//! HTTP/2 clients that want much and take nothing.

use serde_json::Value;

use crate::lab::http2::{DATA, Http2Client, WINDOW_UPDATE};
use crate::supervisor::engine::{Engine, Options};

const STREAMS: u32 = 128;

/// What waits for a client's windows is little, however many streams it opens; it moves with its
/// connection, and a stream whose window opens goes on to its end.
#[test]
fn streams_without_windows_hold_little_and_go_on() {
    let engine = Engine::start(Options::config("workers = 1"));
    let initial_window = (4, 0);
    let mut client = Http2Client::greet_with(engine.address(), &[initial_window]);
    let wanted = 3_000_000;
    for number in 0..STREAMS {
        client.get(1 + 2 * number, &format!("/big?n={wanted}"));
    }
    client.ping();
    let output = engine.zdt(&["test-migration", "--json"]);
    let test: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let bytes = test["largest_bytes"].as_u64().expect("a number");
    // Four full buffers of 64 KiB, and 4 KiB for each of the others, in pieces of a service's choice.
    assert!((256 << 10..2 << 20).contains(&bytes), "{test}");
    engine.reload_well();
    for stream in [1, 2 * STREAMS - 1] {
        let window = u32::to_be_bytes(wanted);
        client.send(WINDOW_UPDATE, 0, stream, &window);
        client.send(WINDOW_UPDATE, 0, 0, &window);
        let mut at = 0;
        while at < wanted as usize {
            let frame = client.read().expect("the connection stays");
            if (frame.kind, frame.stream) == (DATA, stream) {
                let right = (at..).zip(&frame.payload).all(|(at, byte)| *byte == (at % 251) as u8);
                assert!(right, "in the frame at {at} of stream {stream}");
                at += frame.payload.len();
            }
        }
    }
}
