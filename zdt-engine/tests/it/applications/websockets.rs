//! WebSockets of other people's libraries through the gateway, while the application behind them is replaced.

use std::process::Command;

use tungstenite::Message;
use tungstenite::protocol::frame::coding::CloseCode;

use super::{Place, run, swap};
use crate::lab::client;
use crate::lab::programs::{Rounds, node_modules, python};

/// Node's `ws` as the application, Python's `websockets` as the client: compressed messages in flight at every
/// moment of swaps and reloads, each answered once.
#[test]
fn sessions_go_on_in_the_next_application() {
    let test = "applications::websockets::sessions_go_on_in_the_next_application";
    let Some(python) = python(test) else { return };
    if node_modules(test).is_none() {
        return;
    }
    let place = Place::with(&["app.js", "client.py"]);
    let config = "[gateway.app]\nwebsockets = \"reconnect\"\nstop_timeout_ms = 4000";
    let engine = run(place.gateway(config), "exec node app.js");
    let url = format!("ws://{}/", engine.address());
    let mut client =
        Rounds::begin(Command::new(python).arg(place.path("client.py")).args([&url, "12"]));
    for turn in 0..4 {
        swap(&engine);
        // At once, or when all have reconnected.
        if turn % 2 == 1 {
            client.next();
        }
        engine.reload_well();
        client.next();
    }
    client.end();
}

/// With the policy `drain` they have two thirds of the time, and end in good order.
#[test]
fn drained_ones_are_told_to_come_again() {
    if node_modules("applications::websockets::drained_ones_are_told_to_come_again").is_none() {
        return;
    }
    let place = Place::with(&["app.js"]);
    let config = "[gateway.app]\nwebsockets = \"drain\"\nstop_timeout_ms = 6000";
    let engine = run(place.gateway(config), "exec node app.js");
    let mut clients: Vec<_> = (0..8).map(|_| client::websocket(engine.address(), "/")).collect();
    let count = |clients: &mut Vec<client::Client>, number: u32| {
        for client in clients {
            client.send(Message::text("m")).expect("send");
            assert_eq!(client.read().expect("read"), Message::text(format!("{number} m")));
        }
    };
    count(&mut clients, 1);
    swap(&engine);
    count(&mut clients, 2);
    engine.reload_well();
    count(&mut clients, 3);
    for client in &mut clients {
        match client.read().expect("a close frame") {
            Message::Close(Some(frame)) => assert_eq!(frame.code, CloseCode::Restart),
            other => panic!("{other:?}"),
        }
    }
    // Whoever comes again meets the new one.
    let mut again = vec![client::websocket(engine.address(), "/")];
    count(&mut again, 1);
}
