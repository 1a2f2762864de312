//! Messages from other threads: none is lost or doubled while its connection moves.

use std::collections::BTreeSet;

use zdt_engine::config::WorkerConfig;

use crate::lab::worker::Options;
use crate::lab::{Pair, TestWorker, client};

#[test]
fn pushed_messages_follow_their_connection() {
    // Cargo builds the examples of the package before its integration tests.
    let this = std::env::current_exe().expect("own path");
    let binary =
        this.parent().and_then(|deps| deps.parent()).expect("target").join("examples/feed");
    let config = WorkerConfig { service: "feed".to_owned(), ..WorkerConfig::default() };
    let options = Options { config, binary: Some(&binary), ..Options::default() };
    let mut blue = TestWorker::spawn_with(1, &options);
    let address = blue.listen();
    let mut clients: Vec<_> = (0..20).map(|_| client::websocket(address, "/feed")).collect();
    let mut seen = vec![BTreeSet::new(); clients.len()];
    let mut read = |clients: &mut Vec<client::Client>, count: usize| {
        for (client, seen) in clients.iter_mut().zip(&mut seen) {
            for _ in 0..count {
                let number: u64 = client.read().expect("a number").to_string().parse().expect("it");
                assert!(seen.insert(number), "{number} came twice");
            }
        }
    };
    read(&mut clients, 10);
    for generation in 2..8 {
        let mut pair = Pair::join(blue, TestWorker::spawn_with(generation, &options));
        assert_eq!(pair.hand_off().moved, 20);
        read(&mut clients, 30);
        pair.blue.commit(pair.reload, Some(0));
        pair.green.commit(pair.reload, None);
        blue = pair.green;
    }
    // Those that are still under way come now; there must be no hole below them.
    read(&mut clients, 50);
    for seen in &seen {
        let received = seen.len() as u64;
        let most = *seen.last().expect("numbers");
        assert_eq!(most, received, "{} numbers are missing", most - received);
    }
}
