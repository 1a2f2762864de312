//! kill -9, SIGSTOP, refusals and rollbacks at every step of the handoff, with TLS: whatever happens, no
//! two processes ever seal with the same key and number.

use nix::sys::signal::Signal;
use tungstenite::Message;
use zdt_engine::state::FORMAT_WRAPPED;

use crate::lab::secure::{Authority, Client};
use crate::lab::worker::{Options, Secrets};
use crate::lab::{GIVING_POINTS, Pair, TAKING_POINTS, TestWorker, client};

const CLIENTS: usize = 12;

struct Scene {
    authority: Authority,
    pair: Pair,
    clients: Vec<Client>,
}

fn scene(blue_faults: &str, green_faults: &str) -> Scene {
    let authority = Authority::new();
    let worker = |generation, faults| {
        let mut options = Options { faults, tls: Some(&authority), ..Options::default() };
        options.config.handoff.offer_timeout_ms = 300;
        options.config.handoff.window = 4;
        TestWorker::spawn_with(generation, &options)
    };
    let mut blue = worker(1, blue_faults);
    let address = blue.listen();
    let mut clients: Vec<_> =
        (0..CLIENTS).map(|_| authority.websocket(address, "/ws/counter")).collect();
    for client in &mut clients {
        assert_eq!(client::count(client), (1, 1));
    }
    let pair = Pair::join(blue, worker(2, green_faults));
    Scene { authority, pair, clients }
}

/// Every client asks for the next number, and changes its keys; those whose connection is gone are
/// dropped. Nobody may be left in silence, and no answer may fail to open.
#[track_caller]
fn go_on(scene: &mut Scene, expected: u64, what: &str) -> usize {
    scene.clients.retain_mut(|client| {
        client.get_mut().conn.refresh_traffic_keys().expect("key update");
        match client.send(Message::text("tick")).and_then(|()| client.read()) {
            Ok(Message::Text(text)) => {
                let answer: serde_json::Value = serde_json::from_str(&text).expect("JSON");
                assert_eq!(answer["n"].as_u64(), Some(expected), "{what}: {text}");
                true
            }
            Ok(other) => panic!("{what}: not an answer: {other:?}"),
            Err(tungstenite::Error::Io(error)) => {
                let kinds = [
                    std::io::ErrorKind::UnexpectedEof,
                    std::io::ErrorKind::ConnectionReset,
                    std::io::ErrorKind::BrokenPipe,
                    std::io::ErrorKind::ConnectionAborted,
                ];
                assert!(kinds.contains(&error.kind()), "{what}: {error}");
                false
            }
            Err(tungstenite::Error::Protocol(_) | tungstenite::Error::ConnectionClosed) => false,
            Err(error) => panic!("{what}: {error}"),
        }
    });
    scene.clients.len()
}

#[test]
fn a_killed_blue_never_leaves_a_nonce_twice() {
    for point in GIVING_POINTS {
        let mut scene = scene(&format!("{point}@1=kill:2"), "");
        scene.pair.begin();
        scene.pair.blue.wait_dead();
        let left = go_on(&mut scene, 2, point);
        assert_eq!(go_on(&mut scene, 3, point), left, "{point}");
        assert!(scene.authority.check_nonces() > CLIENTS, "{point}");
    }
}

#[test]
fn a_killed_green_never_leaves_a_nonce_twice() {
    for point in TAKING_POINTS {
        for nth in if point == "adopt.received" { 1..=1 } else { 1..=3 } {
            let what = format!("{point}:{nth}");
            let mut scene = scene("", &format!("{point}@2=kill:{nth}"));
            scene.pair.hand_off();
            let left = go_on(&mut scene, 2, &what);
            assert!(left >= CLIENTS - 4, "{what}: {left} are left");
            assert_eq!(go_on(&mut scene, 3, &what), left, "{what}");
            assert!(scene.authority.check_nonces() > CLIENTS, "{what}");
        }
    }
}

#[test]
fn a_stopped_side_never_leaves_a_nonce_twice() {
    for point in TAKING_POINTS {
        let mut scene = scene("", &format!("{point}@2=stop:3"));
        scene.pair.begin();
        scene.pair.green.wait_stopped();
        if ["adopt.received", "adopt.restored"].contains(&point) {
            // Blue has taken back what green holds in its hands when green goes on.
            scene.pair.blue.wait_empty();
        }
        scene.pair.green.signal(Signal::SIGCONT);
        assert_eq!(go_on(&mut scene, 2, point), CLIENTS, "{point}");
        assert_eq!(go_on(&mut scene, 3, point), CLIENTS, "{point}");
        scene.authority.check_nonces();
    }
    for point in ["freeze.saved", "offer.published", "offer.after_descriptors", "release.before"] {
        let mut scene = scene(&format!("{point}@1=stop:2"), "");
        scene.pair.begin();
        scene.pair.blue.wait_stopped();
        scene.pair.blue.signal(Signal::SIGCONT);
        scene.pair.blue.wait_empty();
        assert_eq!(go_on(&mut scene, 2, point), CLIENTS, "{point}");
        scene.authority.check_nonces();
    }
}

/// Secrets go nowhere in clear: without encryption on the way, connections with TLS stay and drain.
#[test]
fn without_encryption_on_the_way_nothing_secret_moves() {
    let authority = Authority::new();
    let options = Options { tls: Some(&authority), ..Options::default() };
    let mut blue = TestWorker::spawn_with(1, &options);
    let address = blue.listen();
    let mut client = authority.websocket(address, "/ws/counter");
    assert_eq!(client::count(&mut client), (1, 1));
    let mut pair = {
        let none = Secrets { forward: None, back: None };
        let green = TestWorker::spawn_with(2, &options);
        Pair::join_with(blue, green, FORMAT_WRAPPED, &none, &none)
    };
    let report = pair.hand_off();
    assert_eq!(report.staying.get("ring-not-encrypted"), Some(&1), "{report:?}");
    assert_eq!(client::count(&mut client), (2, 1));
}

#[test]
fn refused_and_rolled_back_connections_go_on_where_they_are() {
    let mut scene_refused = scene("", "adopt.refuse@2=fail:*");
    let report = scene_refused.pair.hand_off();
    assert_eq!(report.refused as usize, CLIENTS, "{report:?}");
    assert_eq!(go_on(&mut scene_refused, 2, "refused"), CLIENTS);
    scene_refused.authority.check_nonces();

    let mut scene = scene("", "");
    assert_eq!(scene.pair.hand_off().moved as usize, CLIENTS);
    assert_eq!(go_on(&mut scene, 2, "in green"), CLIENTS);
    assert_eq!(scene.pair.roll_back().moved as usize, CLIENTS);
    assert_eq!(go_on(&mut scene, 3, "back in blue"), CLIENTS);
    assert_eq!(go_on(&mut scene, 4, "back in blue"), CLIENTS);
    assert!(scene.authority.check_nonces() >= 6 * CLIENTS);
}
