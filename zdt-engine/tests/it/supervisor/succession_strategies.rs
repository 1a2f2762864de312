//! kill -9 of the supervisor in reloads of every strategy, with connections of HTTP/2 that have everything on them.

use nix::sys::signal::Signal;

use super::engine::{Clients, Engine, Options, Storm, output_of};
use crate::lab::eventually;
use crate::lab::mixed::Mixed;
use crate::skip::have_root;

/// Clients of both versions of HTTP.
struct Both {
    websockets: Clients,
    mixed: Vec<Mixed>,
}

impl Both {
    #[track_caller]
    fn open(engine: &Engine) -> Both {
        let mixed = (0..4).map(|_| Mixed::open(engine.address(), None)).collect();
        Both { websockets: engine.clients(6), mixed }
    }

    /// All of them go on, wherever.
    #[track_caller]
    fn go_on(&mut self, what: &str) {
        self.websockets.count_all();
        for client in &mut self.mixed {
            client.turn().unwrap_or_else(|| panic!("{what}: a connection is gone"));
        }
    }

    /// All of them go on in that generation.
    #[track_caller]
    fn go_on_in(&mut self, generation: u64, what: &str) {
        self.websockets.count_all_in(generation);
        for client in &mut self.mixed {
            assert_eq!(client.turn(), Some(generation), "{what}");
        }
    }
}

/// The supervisor has died: its workers serve on, the next one ends what it had begun, and can reload.
#[track_caller]
fn all_goes_on(engine: &mut Engine, clients: &mut Both, what: &str) {
    clients.go_on(what);
    engine.restart();
    let generation = engine.status()["generation"].as_u64().expect("a number");
    clients.go_on_in(generation, what);
    let verdict = engine.reload_well();
    assert!(verdict["migrated_connections"].as_u64() >= Some(10), "{what}: {verdict}");
    assert_eq!(verdict["drained_connections"], 0, "{what}: {verdict}");
    clients.go_on_in(verdict["generation"].as_u64().expect("a number"), what);
    eventually("only one generation is left", || {
        engine.status()["generations"].as_array().map(Vec::len) == Some(1)
    });
}

/// At each point of either step of a rolling reload.
#[test]
fn in_a_rolling_reload() {
    let mut steerings = vec![Options::plain()];
    if have_root("supervisor::succession_strategies::in_a_rolling_reload with eBPF") {
        steerings.push(Options::default().and("--steering", "ebpf"));
    }
    for options in steerings {
        // Passages of the first start come first.
        for point in [
            "supervisor.after_spawn@0=kill:2",
            "supervisor.after_spawn@0=kill:3",
            "supervisor.before_flip@0=kill:2",
            "supervisor.before_flip@0=kill:3",
            "supervisor.after_flip@0=kill:2",
            "supervisor.after_flip@0=kill:3",
            "supervisor.during_handoff@0=kill:1",
            "supervisor.during_handoff@0=kill:2",
            "supervisor.before_commit@0=kill:2",
            "supervisor.after_commit@0=kill:1",
        ] {
            let options = options.clone().and("--strategy", "rolling");
            let mut engine = Engine::start(Options { faults: point.into(), ..options });
            let mut clients = Both::open(&engine);
            let reload = output_of(engine.zdt_in_background(&["reload", "--json"]));
            assert!(!reload.status.success(), "{point}: the supervisor died: {reload:?}");
            engine.wait();
            all_goes_on(&mut engine, &mut clients, point);
        }
    }
}

/// Between two steps of a rolling reload, while it pauses.
#[test]
fn between_two_steps() {
    let config = "[reload]\nrolling_pause_ms = 600000\n";
    for options in [Options::plain(), Options::default()] {
        let options = Options { config: config.into(), ..options.and("--strategy", "rolling") };
        let mut engine = Engine::start(options);
        let mut clients = Both::open(&engine);
        let reload = engine.zdt_in_background(&["reload", "--json"]);
        eventually("the first step is done", || engine.status()["reload"]["stage"] == "pausing");
        engine.signal(Signal::SIGKILL);
        engine.wait();
        assert!(!output_of(reload).status.success());
        engine.configure("");
        all_goes_on(&mut engine, &mut clients, "between two steps");
    }
}

/// A canary: while it is watched, and in the reload that follows where it has done well.
#[test]
fn in_a_canary() {
    if !have_root("supervisor::succession_strategies::in_a_canary") {
        return;
    }
    let ebpf = || Options::default().and("--steering", "ebpf");
    let mut engine = Engine::start(ebpf());
    let mut clients = Both::open(&engine);
    let reload = engine.zdt_in_background(&["reload", "--canary", "500", "--for", "10m", "--json"]);
    eventually("it is watched", || engine.status()["reload"]["stage"] == "watching");
    // Some of these are green's.
    let mut later = Both::open(&engine);
    engine.signal(Signal::SIGKILL);
    engine.wait();
    assert!(!output_of(reload).status.success());
    later.go_on("watched");
    all_goes_on(&mut engine, &mut clients, "watched");
    later.go_on("watched");

    for point in [
        "supervisor.after_flip@0=kill:2",
        "supervisor.after_flip@0=kill:3",
        "supervisor.during_handoff@0=kill:1",
        "supervisor.before_commit@0=kill:2",
        "supervisor.after_commit@0=kill:1",
    ] {
        let mut engine = Engine::start(Options { faults: point.into(), ..ebpf() });
        // Requests enough for it to do well.
        let storm = Storm::begin(engine.address());
        let mut clients = Both::open(&engine);
        let canary = ["reload", "--canary", "500", "--for", "2s", "--json"];
        let reload = output_of(engine.zdt_in_background(&canary));
        assert!(!reload.status.success(), "{point}: the supervisor died: {reload:?}");
        engine.wait();
        all_goes_on(&mut engine, &mut clients, point);
        storm.end();
    }
}
