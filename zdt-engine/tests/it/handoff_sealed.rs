//! Records in flight: sealed, plain, compressed; and what becomes of those that do not fit.

use tungstenite::Message;

use crate::lab::worker::{Options, Secrets};
use crate::lab::{Pair, TestWorker, client};

/// Counters, and a message in progress that compresses well and is too large for the ring.
fn there_and_back(format: u16, secrets: &Secrets, options: &Options<'_>) {
    use std::io::Write;
    let mut blue = TestWorker::spawn_with(1, options);
    let address = blue.listen();
    let mut counters: Vec<_> = (0..5).map(|_| client::websocket(address, "/ws/counter")).collect();
    for counter in &mut counters {
        assert_eq!(client::count(counter), (1, 1));
    }
    let mut echo = client::websocket(address, "/ws/echo");
    client::echo(&mut echo, Message::text("before"));
    // A fragment of 400,000 bytes whose message goes on; masked with zeroes.
    let fragment = b"compressible ".repeat(400_000 / 13);
    let mut frame = vec![0x02, 0xff];
    frame.extend_from_slice(&(fragment.len() as u64).to_be_bytes());
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(&fragment);
    echo.get_mut().write_all(&frame).expect("write");
    echo.get_mut().write_all(&[0x89, 0x80, 0, 0, 0, 0]).expect("ping");
    assert!(matches!(echo.read().expect("read"), Message::Pong(_)), "the fragment has arrived");

    let green = TestWorker::spawn_with(2, options);
    let mut pair = Pair::join_with(blue, green, format, secrets, secrets);
    for (generation, report) in [(2, pair.hand_off()), (1, pair.roll_back())] {
        assert_eq!((report.moved, report.refused), (6, 0), "to {generation}: {report:?}");
    }
    for counter in &mut counters {
        assert_eq!(client::count(counter), (2, 1));
    }
    echo.get_mut().write_all(&[0x80, 0x83, 0, 0, 0, 0, b'e', b'n', b'd']).expect("write");
    let whole = echo.read().expect("read").into_data();
    assert!(whole[..fragment.len()] == fragment && whole[fragment.len()..] == *b"end");
}

#[test]
fn sealed_records_go_there_and_back() {
    there_and_back(2, &Secrets::random(), &Options::default());
}

#[test]
fn plain_records_go_there_and_back() {
    there_and_back(2, &Secrets::default(), &Options::default());
}

#[test]
fn records_of_the_first_format_go_there_and_back() {
    there_and_back(1, &Secrets::default(), &Options::default());
}

#[test]
fn uncompressed_records_go_there_and_back() {
    let mut options = Options::default();
    options.config.state.compression = false;
    there_and_back(2, &Secrets::random(), &options);
}

#[test]
fn json_records_go_there_and_back() {
    let mut options = Options::default();
    options.config.state.encoding = zdt_engine::config::Encoding::Json;
    for secrets in [Secrets::random(), Secrets::default()] {
        there_and_back(2, &secrets, &options);
    }
    // To a build that knows nothing of it the old encoding is spoken.
    there_and_back(1, &Secrets::default(), &options);
}

/// Green is told other secrets than blue: no record opens, and nobody loses a connection.
#[test]
fn what_does_not_open_stays_with_its_owner() {
    let mut blue = TestWorker::spawn(1);
    let address = blue.listen();
    let mut counters: Vec<_> = (0..20).map(|_| client::websocket(address, "/ws/counter")).collect();
    for counter in &mut counters {
        assert_eq!(client::count(counter), (1, 1));
    }
    let (blue_secrets, green_secrets) = (Secrets::random(), Secrets::random());
    let green = TestWorker::spawn(2);
    let mut pair = Pair::join_with(blue, green, 2, &blue_secrets, &green_secrets);
    let report = pair.hand_off();
    assert_eq!((report.moved, report.refused), (0, 20), "{report:?}");
    for counter in &mut counters {
        assert_eq!(client::count(counter), (2, 1));
    }
    let incoming = pair.green.commit(pair.reload, None);
    assert_eq!((incoming.adopted, incoming.refused["record"]), (0, 20), "{incoming:?}");
}

/// A blue that does not seal, or a green that does not expect it, is refused as well.
#[test]
fn plain_where_sealed_is_expected_is_refused() {
    for (blue_secrets, green_secrets) in
        [(Secrets::default(), Secrets::random()), (Secrets::random(), Secrets::default())]
    {
        let mut blue = TestWorker::spawn(1);
        let address = blue.listen();
        let mut counter = client::websocket(address, "/ws/counter");
        assert_eq!(client::count(&mut counter), (1, 1));
        let green = TestWorker::spawn(2);
        let mut pair = Pair::join_with(blue, green, 2, &blue_secrets, &green_secrets);
        let report = pair.hand_off();
        assert_eq!((report.moved, report.refused), (0, 1), "{report:?}");
        assert_eq!(client::count(&mut counter), (2, 1));
    }
}
