//! The plain handoff: idle and active connections, HTTP and WebSocket, there and back.

use crate::lab::{Pair, TestWorker, client};

#[test]
fn a_counter_goes_on_in_green() {
    let mut blue = TestWorker::spawn(1);
    let address = blue.listen();
    let mut clients: Vec<_> = (0..50).map(|_| client::websocket(address, "/ws/counter")).collect();
    for client in &mut clients {
        assert_eq!(client::count(client), (1, 1));
    }
    let mut pair = Pair::join(blue, TestWorker::spawn(2));
    let report = pair.hand_off();
    assert_eq!((report.moved, report.remaining), (50, 0), "{report:?}");
    for client in &mut clients {
        assert_eq!(client::count(client), (2, 2));
    }
    let incoming = pair.green.commit(pair.reload, None);
    assert_eq!(incoming.adopted, 50);
    assert_eq!(incoming.blackout_us.iter().map(|(_, count)| count).sum::<u64>(), 50);
}

#[test]
fn connections_accepted_during_the_handoff_move_too() {
    let mut blue = TestWorker::spawn(1);
    let address = blue.listen();
    let mut pair = Pair::join(blue, TestWorker::spawn(2));
    // Established, and not accepted yet as far as the test can tell: some are in the queue, some
    // are accepted while the handoff runs.
    pair.begin();
    let streams: Vec<_> = (0..200).map(|_| client::connect(address)).collect();
    let report = pair.blue.wait_empty();
    assert!(report.staying.is_empty(), "{report:?}");
    // What arrived after blue was empty sits in the queue of a listener that green takes over.
    let listener = pair.blue.listener_duplicate();
    pair.green.take_listener(listener, false);
    for mut stream in streams {
        use std::io::{Read, Write};
        stream
            .write_all(b"GET /id?id=new HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .expect("write");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read");
        assert!(answer.ends_with("new"), "{answer}");
    }
}
