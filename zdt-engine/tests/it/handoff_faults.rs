//! Every step of the handoff protocol, interrupted: by kill -9 or SIGSTOP of either side, by refusals,
//! by a receiver without descriptors. Whatever happens, each client either goes on where it was or
//! learns at once that its connection is gone, and nobody is served by two processes.

use nix::sys::signal::Signal;
use tungstenite::Message;
use zdt_engine::config::WorkerConfig;
use zdt_engine::control::ToWorker;

use crate::lab::client::{self, Client};
use crate::lab::worker::Options;
use crate::lab::{GIVING_POINTS, Pair, TAKING_POINTS, TestWorker};

const CLIENTS: usize = 40;

struct Scene {
    pair: Pair,
    clients: Vec<Client>,
}

fn config() -> WorkerConfig {
    let mut config = WorkerConfig::default();
    config.handoff.offer_timeout_ms = 300;
    config.handoff.window = 16;
    config
}

/// Blue with clients on `/ws/counter`, each at 1, and a green that is ready to take over.
fn scene(blue_faults: &str, green_faults: &str) -> Scene {
    let options = |faults| Options { faults, config: config(), ..Options::default() };
    let mut blue = TestWorker::spawn_with(1, &options(blue_faults));
    let address = blue.listen();
    let mut clients: Vec<_> =
        (0..CLIENTS).map(|_| client::websocket(address, "/ws/counter")).collect();
    for client in &mut clients {
        assert_eq!(client::count(client), (1, 1));
    }
    let green = TestWorker::spawn_with(2, &options(green_faults));
    Scene { pair: Pair::join(blue, green), clients }
}

/// Asks every client's server for the next number. Returns how many go on in blue, in green, and
/// how many connections are gone; a wrong number is a failure, and so is silence.
#[track_caller]
fn tally(clients: &mut Vec<Client>, expected: u64) -> (usize, usize, usize) {
    let (mut in_blue, mut in_green, mut gone) = (0, 0, 0);
    clients.retain_mut(|client| {
        let answer = client.send(Message::text("tick")).and_then(|()| client.read());
        match answer {
            Ok(Message::Text(text)) => {
                let answer: serde_json::Value = serde_json::from_str(&text).expect("JSON");
                assert_eq!(answer["n"].as_u64(), Some(expected), "{text}");
                match answer["generation"].as_u64() {
                    Some(1) => in_blue += 1,
                    Some(2) => in_green += 1,
                    other => panic!("generation {other:?}"),
                }
                true
            }
            Ok(other) => panic!("not an answer: {other:?}"),
            Err(tungstenite::Error::Io(error))
                if error.kind() == std::io::ErrorKind::WouldBlock =>
            {
                panic!("a client was left in silence")
            }
            Err(_) => {
                gone += 1;
                false
            }
        }
    });
    (in_blue, in_green, gone)
}

#[test]
fn a_killed_blue_takes_only_its_own_along() {
    for point in GIVING_POINTS {
        let mut scene = scene(&format!("{point}@1=kill:2"), "");
        scene.pair.begin();
        scene.pair.blue.wait_dead();
        let (in_blue, in_green, gone) = tally(&mut scene.clients, 2);
        assert_eq!(in_blue, 0, "{point}");
        assert_eq!(in_green + gone, CLIENTS, "{point}");
        if ["offer.after_descriptors", "release.before"].contains(&point) {
            assert!(in_green > 0, "{point}: complete offers are adopted from a dead blue");
        }
        let adopted = scene.pair.green.commit(scene.pair.reload, None).adopted;
        assert_eq!(adopted as usize, in_green, "{point}");
        // Those that live go on living.
        assert_eq!(tally(&mut scene.clients, 3), (0, in_green, 0), "{point}");
    }
}

#[test]
fn a_killed_green_gives_back_what_it_has_not_started() {
    for (point, most_gone) in
        [("adopt.received", 0), ("adopt.restored", 0), ("adopt.adopted", 0), ("adopt.started", 1)]
    {
        // One message brings several connections.
        for nth in if point == "adopt.received" { 1..=1 } else { 1..=5 } {
            let mut scene = scene("", &format!("{point}@2=kill:{nth}"));
            let report = scene.pair.hand_off();
            let (in_blue, in_green, gone) = tally(&mut scene.clients, 2);
            assert_eq!(in_green, 0, "{point}:{nth}");
            // What green had started before it died is gone with it, and nothing else.
            let started = nth - 1 + most_gone;
            assert_eq!(gone, started, "{point}:{nth} {report:?}");
            assert_eq!(in_blue, CLIENTS - gone, "{point}:{nth}");
            assert_eq!(report.moved as usize, gone, "{point}:{nth} {report:?}");
            assert_eq!(report.staying.values().sum::<u64>() as usize, in_blue, "{report:?}");
            // Blue goes on, also as a blue of the next reload.
            let Pair { blue, .. } = scene.pair;
            let mut next = Pair::join(blue, TestWorker::spawn(2));
            assert_eq!(next.hand_off().moved as usize, in_blue, "{point}:{nth}");
            assert_eq!(tally(&mut scene.clients, 3), (0, in_blue, 0), "{point}:{nth}");
        }
    }
}

#[test]
fn a_stopped_green_never_makes_two_owners() {
    for point in TAKING_POINTS {
        let mut scene = scene("", &format!("{point}@2=stop:3"));
        scene.pair.begin();
        scene.pair.green.wait_stopped();
        if ["adopt.received", "adopt.restored"].contains(&point) {
            // Nothing is adopted: after the answer's time is up, blue serves them.
            let report = scene.pair.blue.wait_empty();
            assert!(report.reclaimed > 0, "{point} {report:?}");
            scene.pair.green.signal(Signal::SIGCONT);
        } else {
            // One is adopted: it waits for green however long that takes.
            scene.pair.green.signal(Signal::SIGCONT);
            scene.pair.blue.wait_empty();
        }
        let (in_blue, in_green, gone) = tally(&mut scene.clients, 2);
        assert_eq!((in_blue + in_green, gone), (CLIENTS, 0), "{point}");
        assert_eq!(tally(&mut scene.clients, 3), (in_blue, in_green, 0), "{point}");
        assert_eq!(scene.pair.blue.status().connections as usize, in_blue, "{point}");
        assert_eq!(scene.pair.green.status().connections as usize, in_green, "{point}");
    }
}

#[test]
fn a_stopped_blue_loses_nothing() {
    for point in ["freeze.saved", "offer.published", "offer.after_descriptors", "release.before"] {
        let mut scene = scene(&format!("{point}@1=stop:2"), "");
        scene.pair.begin();
        scene.pair.blue.wait_stopped();
        scene.pair.blue.signal(Signal::SIGCONT);
        let report = scene.pair.blue.wait_empty();
        assert_eq!(report.moved as usize, CLIENTS, "{point} {report:?}");
        assert_eq!(tally(&mut scene.clients, 2), (0, CLIENTS, 0), "{point}");
    }
}

#[test]
fn a_green_that_refuses_everything_changes_nothing() {
    let mut scene = scene("", "adopt.refuse@2=fail:*");
    let report = scene.pair.hand_off();
    assert_eq!(report.refused as usize, CLIENTS, "{report:?}");
    assert_eq!(report.staying["refused"] as usize, CLIENTS, "{report:?}");
    assert_eq!(tally(&mut scene.clients, 2), (CLIENTS, 0, 0));
    let incoming = scene.pair.green.commit(scene.pair.reload, None);
    assert_eq!(incoming.refused["fault-point"] as usize, CLIENTS);
}

#[test]
fn a_green_without_descriptors_loses_nothing() {
    let options = Options { config: config(), ..Options::default() };
    let mut blue = TestWorker::spawn_with(1, &options);
    let address = blue.listen();
    let mut clients: Vec<_> =
        (0..CLIENTS).map(|_| client::websocket(address, "/ws/counter")).collect();
    for client in &mut clients {
        assert_eq!(client::count(client), (1, 1));
    }
    let mut pair = Pair::join(blue, TestWorker::spawn_with(2, &options));
    pair.green.leave_descriptors(CLIENTS / 2);
    let report = pair.hand_off();
    let (in_blue, in_green, gone) = tally(&mut clients, 2);
    assert!(in_blue > 0, "the limit was meant to be too low: {report:?}");
    assert_eq!((in_blue + in_green, gone), (CLIENTS, 0), "{report:?}");
}

#[test]
fn a_rollback_brings_everything_back() {
    let mut scene = scene("", "");
    assert_eq!(scene.pair.hand_off().moved as usize, CLIENTS);
    assert_eq!(tally(&mut scene.clients, 2), (0, CLIENTS, 0));
    assert_eq!(scene.pair.roll_back().moved as usize, CLIENTS);
    assert_eq!(tally(&mut scene.clients, 3), (CLIENTS, 0, 0));
}

#[test]
fn a_rollback_in_the_middle_brings_everything_back() {
    // Green stops with a part adopted; the supervisor changes its mind while it is stopped.
    let mut scene = scene("", "adopt.started@2=stop:10");
    scene.pair.begin();
    scene.pair.green.wait_stopped();
    scene.pair.blue.send(&ToWorker::CancelHandoff { reload: scene.pair.reload }, &[]);
    scene.pair.green.signal(Signal::SIGCONT);
    scene.pair.roll_back();
    assert_eq!(tally(&mut scene.clients, 2), (CLIENTS, 0, 0));
}

#[test]
fn a_commit_right_behind_an_arrival_forgets_no_timer() {
    let mut blue = TestWorker::spawn(1);
    let address = blue.listen();
    let mut ticking = client::websocket(address, "/ws/clock?interval_ms=100");
    let faults = "adopt.started@2=stop:1";
    let green = TestWorker::spawn_with(2, &Options { faults, ..Options::default() });
    let pair = Pair::join(blue, green);
    pair.begin();
    pair.green.wait_stopped();
    // Green finds it as soon as it goes on, before the connection's first receive has come back.
    pair.green.send(&ToWorker::Commit { reload: pair.reload, drain_ms: None }, &[]);
    pair.green.signal(Signal::SIGCONT);
    let mut last = 0;
    while last < 10 {
        let text = ticking.read().expect("a tick").to_string();
        let tick: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        last = tick["n"].as_u64().expect("a number");
    }
}
