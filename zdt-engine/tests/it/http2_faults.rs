//! kill -9, SIGSTOP, refusals and rollbacks at every step of the handoff, with connections of HTTP/2 that have
//! everything on them at once, in clear and over TLS: a connection goes on with all its streams, or is gone as a
//! whole, and no key is used twice with the same number.

use nix::sys::signal::Signal;

use crate::lab::mixed::Mixed;
use crate::lab::secure::Authority;
use crate::lab::worker::Options;
use crate::lab::{GIVING_POINTS, Pair, TAKING_POINTS, TestWorker};
use crate::supervisor::engine::{self, Engine, output_of};

const CLIENTS: usize = 6;

struct Scene {
    authority: Option<Authority>,
    pair: Pair,
    clients: Vec<Mixed>,
}

/// Blue with clients, and a green that is ready to take over.
fn scene(over_tls: bool, blue_faults: &str, green_faults: &str) -> Scene {
    let authority = over_tls.then(Authority::new);
    let worker = |generation, faults| {
        let mut options = Options { faults, tls: authority.as_ref(), ..Options::default() };
        options.config.handoff.offer_timeout_ms = 300;
        options.config.handoff.window = 2;
        TestWorker::spawn_with(generation, &options)
    };
    let mut blue = worker(1, blue_faults);
    let address = blue.listen();
    let clients = (0..CLIENTS).map(|_| Mixed::open(address, authority.as_ref())).collect();
    let pair = Pair::join(blue, worker(2, green_faults));
    Scene { authority, pair, clients }
}

impl Scene {
    /// A turn of every client; those whose connection is gone are dropped. Returns how many go on in blue, and
    /// how many in green.
    #[track_caller]
    fn turn(&mut self) -> (usize, usize) {
        let mut served = [0; 3];
        self.clients.retain_mut(|client| {
            let generation = client.turn();
            served[generation.unwrap_or(0) as usize] += 1;
            generation.is_some()
        });
        if let Some(authority) = &self.authority {
            assert!(authority.check_nonces() > 0);
        }
        (served[1], served[2])
    }
}

/// In clear, and over TLS.
fn both(test: impl Fn(bool)) {
    for over_tls in [false, true] {
        println!("over TLS: {over_tls}");
        test(over_tls);
    }
}

#[test]
fn a_killed_blue_takes_only_its_own_along() {
    both(|over_tls| {
        for point in GIVING_POINTS {
            let mut scene = scene(over_tls, &format!("{point}@1=kill:2"), "");
            scene.pair.begin();
            scene.pair.blue.wait_dead();
            let (in_blue, in_green) = scene.turn();
            assert_eq!(in_blue, 0, "{point}");
            if ["offer.after_descriptors", "release.before"].contains(&point) {
                assert!(in_green > 0, "{point}: complete offers are adopted from a dead blue");
            }
            let adopted = scene.pair.green.commit(scene.pair.reload, None).adopted;
            assert_eq!(adopted as usize, in_green, "{point}");
            assert_eq!(scene.turn(), (0, in_green), "{point}");
        }
    });
}

#[test]
fn a_killed_green_gives_back_what_it_has_not_started() {
    both(|over_tls| {
        for (point, most_gone) in [
            ("adopt.received", 0),
            ("adopt.restored", 0),
            ("adopt.adopted", 0),
            ("adopt.started", 1),
        ] {
            // One message brings several connections.
            for nth in if point == "adopt.received" { 1..=1 } else { 1..=3 } {
                let what = format!("{point}:{nth}");
                let mut scene = scene(over_tls, "", &format!("{point}@2=kill:{nth}"));
                scene.pair.hand_off();
                let (in_blue, in_green) = scene.turn();
                assert_eq!((in_blue, in_green), (CLIENTS - (nth - 1 + most_gone), 0), "{what}");
                assert_eq!(scene.turn(), (in_blue, 0), "{what}");
            }
        }
    });
}

#[test]
fn a_stopped_side_never_makes_two_owners() {
    both(|over_tls| {
        for point in TAKING_POINTS {
            let mut scene = scene(over_tls, "", &format!("{point}@2=stop:2"));
            scene.pair.begin();
            scene.pair.green.wait_stopped();
            if ["adopt.received", "adopt.restored"].contains(&point) {
                // Blue has taken back what green holds in its hands when green goes on.
                scene.pair.blue.wait_empty();
            }
            scene.pair.green.signal(Signal::SIGCONT);
            let (in_blue, in_green) = scene.turn();
            assert_eq!(in_blue + in_green, CLIENTS, "{point}");
            let (in_blue, in_green) = scene.turn();
            assert_eq!(in_blue + in_green, CLIENTS, "{point}");
        }
        for point in
            ["freeze.saved", "offer.published", "offer.after_descriptors", "release.before"]
        {
            let mut scene = scene(over_tls, &format!("{point}@1=stop:2"), "");
            scene.pair.begin();
            scene.pair.blue.wait_stopped();
            scene.pair.blue.signal(Signal::SIGCONT);
            let report = scene.pair.blue.wait_empty();
            assert_eq!(report.moved as usize, CLIENTS, "{point} {report:?}");
            assert_eq!(scene.turn(), (0, CLIENTS), "{point}");
        }
    });
}

#[test]
fn refused_and_rolled_back_connections_go_on_where_they_are() {
    both(|over_tls| {
        let mut refused = scene(over_tls, "", "adopt.refuse@2=fail:*");
        let report = refused.pair.hand_off();
        assert_eq!(report.refused as usize, CLIENTS, "{report:?}");
        assert_eq!(refused.turn(), (CLIENTS, 0));

        let mut scene = scene(over_tls, "", "");
        assert_eq!(scene.pair.hand_off().moved as usize, CLIENTS);
        assert_eq!(scene.turn(), (0, CLIENTS));
        assert_eq!(scene.pair.roll_back().moved as usize, CLIENTS);
        assert_eq!(scene.turn(), (CLIENTS, 0));
        assert_eq!(scene.turn(), (CLIENTS, 0));
    });
}

#[test]
fn a_supervisor_that_dies_in_any_step_takes_nothing_along() {
    both(|over_tls| {
        let authority = over_tls.then(Authority::new);
        let config = authority.as_ref().map_or(String::new(), Authority::config);
        // Passages of the first start come first.
        for point in [
            "supervisor.after_spawn@0=kill:2",
            "supervisor.before_flip@0=kill:2",
            "supervisor.after_flip@0=kill:2",
            "supervisor.during_handoff@0=kill:1",
            "supervisor.before_commit@0=kill:2",
            "supervisor.after_commit@0=kill:1",
        ] {
            let options =
                engine::Options { faults: point.into(), ..engine::Options::config(&config) };
            let mut engine = Engine::start(options);
            let address = engine.address();
            let mut clients: Vec<_> =
                (0..CLIENTS).map(|_| Mixed::open(address, authority.as_ref())).collect();
            let reload = output_of(engine.zdt_in_background(&["reload", "--json"]));
            assert!(!reload.status.success(), "{point}: the supervisor died: {reload:?}");
            engine.wait();
            for client in &mut clients {
                client.turn().unwrap_or_else(|| panic!("{point}: a connection is gone"));
            }
            engine.restart();
            // It has undone the reload, or ended it.
            let generation = engine.status()["generation"].as_u64();
            for client in &mut clients {
                assert_eq!(client.turn(), generation, "{point}");
            }
            let verdict = engine.reload_well();
            assert_eq!(verdict["migrated_connections"], CLIENTS, "{point}: {verdict}");
            for client in &mut clients {
                assert!(client.turn() > generation, "{point}");
            }
        }
    });
}
