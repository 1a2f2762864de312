//! The application, holds and replaced upstreams outlive the supervisor: kill -9 before, in the middle of and after a
//! swap, and its replacement while it lives. No request is lost, no process is left behind.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::upstream::Upstream;
use super::{Answer, begin, gateway, get, read_answer};
use crate::lab::{client, eventually};
use crate::skip::skip;
use crate::supervisor::engine::{Engine, Options, verdict};

/// In the environment of every process of one test.
const MARK: &str = "ZDT_TEST_MARK";

/// A gateway with an application of its own.
pub struct Scene {
    pub engine: Engine,
    /// Of the application's program.
    _dir: tempfile::TempDir,
    mark: String,
    config: String,
}

impl Scene {
    /// `None` if there is no Python.
    pub fn new(test: &str, faults: &str, config: &str) -> Option<Scene> {
        Self::with(test, faults, config, 3_000)
    }

    /// With so much time for the end of an application.
    pub fn with(test: &str, faults: &str, config: &str, stop_ms: u64) -> Option<Scene> {
        let version = std::process::Command::new("python3").arg("--version").output();
        if !version.is_ok_and(|output| output.status.success()) {
            skip(test, "python3 is not there");
            return None;
        }
        let dir = tempfile::tempdir().expect("tempdir");
        // It is somebody else who reads it.
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("mode");
        let program = dir.path().join("application.py");
        std::fs::write(&program, include_str!("application.py")).expect("write");
        let mark = dir.path().display().to_string();
        let command = format!("exec env -u ZDT_FAULT python3 {}", program.display());
        let config = format!(
            "workers = 2\n{config}\n[gateway.app]\nstop_timeout_ms = {stop_ms}\ncommand = \"{command}\""
        );
        let mut options = Options::config(&config)
            .and("--steering", "off")
            .and("--service", "proxy")
            .with(MARK, &mark);
        options.faults = faults.to_owned();
        let scene = Scene { engine: Engine::start(options), _dir: dir, mark, config };
        // The first request waits for it.
        assert_eq!(get(scene.engine.address(), "/first").text(), "/first");
        Some(scene)
    }

    /// The application that answers.
    #[track_caller]
    pub fn serving(&self) -> u32 {
        get(self.engine.address(), "/pid").text().parse().expect("a number")
    }

    /// Processes of applications, the supervisor's own aside.
    pub fn processes(&self) -> Vec<u32> {
        let is_one = |pid: &u32| {
            let read =
                |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            let (environment, arguments) = (read("environ"), read("cmdline"));
            let marked = format!("{MARK}={}", self.mark);
            environment.split(|byte| *byte == 0).any(|one| one == marked.as_bytes())
                && !arguments.is_empty()
                && !arguments.split(|byte| *byte == 0).any(|one| one == b"serve")
        };
        let all = std::fs::read_dir("/proc").expect("proc");
        let pids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter(is_one).collect()
    }

    /// There is one application, this one, and the supervisor knows it.
    #[track_caller]
    fn only(&self, pid: u32, what: &str) {
        eventually(&format!("{what}: one application is left"), || self.processes() == [pid]);
        eventually(&format!("{what}: the supervisor knows it"), || {
            let status = self.engine.status();
            let known = status["applications"].as_array().cloned().unwrap_or_default();
            known.len() == 1 && known[0]["pid"] == pid && known[0]["state"] == "serving"
        });
        assert_eq!(self.serving(), pid, "{what}");
    }

    #[track_caller]
    pub fn swap_well(&self) {
        let output = self.engine.zdt(&["reload", "--app", "--json"]);
        assert!(output.status.success(), "{output:?}");
    }

    /// Nothing is left of it.
    #[track_caller]
    pub fn end(self) {
        let output = self.engine.zdt(&["stop", "--now"]);
        assert!(output.status.success(), "{output:?}");
        eventually("no application is left", || self.processes().is_empty());
    }
}

/// Clients whose requests have numbers, half of them such as must not be repeated; every answer must be the right one.
struct Load {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    clients: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    fn begin(address: SocketAddr) -> Load {
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let client = |name: usize| {
            let (stop, asked) = (Arc::clone(&stop), Arc::clone(&asked));
            std::thread::spawn(move || {
                let mut stream = client::connect(address);
                for number in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let id = format!("/{name}-{number}");
                    let request = match number % 2 {
                        0 => format!("GET {id} HTTP/1.1\r\nHost: test\r\n\r\n"),
                        _ => format!(
                            "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n{id}",
                            id.len()
                        ),
                    };
                    stream.write_all(request.as_bytes()).expect("write");
                    let answer = read_answer(&mut stream);
                    assert_eq!((answer.status, answer.text()), (200, id), "{answer:?}");
                    asked.fetch_add(1, Ordering::SeqCst);
                }
            })
        };
        let clients = (0..4).map(client).collect();
        Load { stop, asked, clients }
    }

    #[track_caller]
    fn goes_on(&self) {
        let before = self.asked.load(Ordering::SeqCst);
        eventually("the clients go on", || self.asked.load(Ordering::SeqCst) > before + 20);
    }

    #[track_caller]
    fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        for client in self.clients {
            client.join().expect("no request was lost");
        }
    }
}

#[test]
fn a_supervisor_that_dies_leaves_the_application_to_the_next() {
    let Some(mut scene) = Scene::new("gateway::takeover", "", "") else { return };
    let pid = scene.serving();
    if nix::unistd::geteuid().is_root() {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        assert!(status.contains("\nUid:\t65534\t65534\t"), "it is not root: {status}");
    }
    let load = Load::begin(scene.engine.address());
    load.goes_on();
    scene.engine.signal(Signal::SIGKILL);
    scene.engine.wait();
    load.goes_on();
    scene.engine.restart();
    scene.only(pid, "after a kill");
    // It is watched, and swapped, as by the one that has started it.
    scene.swap_well();
    let second = scene.serving();
    assert_ne!(second, pid);
    scene.only(second, "after a swap");
    load.goes_on();
    load.end();
    kill(Pid::from_raw(second as i32), Signal::SIGKILL).expect("kill");
    scene.engine.signal(Signal::SIGKILL);
    scene.engine.wait();
    scene.engine.restart();
    let third = scene.serving();
    assert_ne!(third, second, "that one has died meanwhile");
    scene.only(third, "after its death");
    scene.end();
}

#[test]
fn a_supervisor_that_dies_in_a_swap_has_undone_or_done_it() {
    // The start of the first application passes each of them, too.
    for (point, is_done) in [
        ("application.started", false),
        ("application.written", false),
        ("application.proven", false),
        ("gateway.written", true),
        ("gateway.told", true),
    ] {
        let Some(mut scene) = Scene::new("gateway::takeover", &format!("{point}@0=kill:2"), "")
        else {
            return;
        };
        let first = scene.serving();
        let load = Load::begin(scene.engine.address());
        load.goes_on();
        let swap = scene.engine.zdt(&["reload", "--app", "--json"]);
        assert!(!swap.status.success(), "{point}: nobody was left to answer: {swap:?}");
        scene.engine.wait();
        load.goes_on();
        scene.engine.restart();
        eventually("one application is left", || scene.processes().len() == 1);
        let now = scene.serving();
        assert_eq!(now != first, is_done, "{point}");
        scene.only(now, point);
        load.goes_on();
        scene.swap_well();
        scene.only(scene.serving(), point);
        load.goes_on();
        load.end();
        scene.end();
    }
}

#[test]
fn an_application_that_nothing_served_before_goes_on_starting() {
    for (point, goes_on) in [
        ("application.started", false),
        ("application.written", false),
        ("application.proven", true),
    ] {
        let Some(mut scene) = Scene::new("gateway::takeover", &format!("{point}@0=kill:2"), "")
        else {
            return;
        };
        let first = scene.serving();
        kill(Pid::from_raw(first as i32), Signal::SIGKILL).expect("kill");
        // It is started again, and the supervisor dies over it.
        scene.engine.wait();
        let held = begin(scene.engine.address(), "GET /held HTTP/1.1\r\nHost: test");
        let started = scene.processes();
        scene.engine.restart();
        let mut held = held;
        let Answer { status, body, .. } = read_answer(&mut held);
        assert_eq!((status, body.as_slice()), (200, b"/held".as_slice()), "{point}");
        let now = scene.serving();
        assert_eq!(started.contains(&now), goes_on, "{point}: {started:?}");
        scene.only(now, point);
        scene.end();
    }
}

#[test]
fn the_application_goes_on_when_the_supervisor_is_replaced() {
    for faults in ["", "succession.adopted@successor=kill", "supervisor.after_flip@successor=kill"]
    {
        let Some(mut scene) = Scene::new("gateway::takeover", faults, "") else { return };
        let pid = scene.serving();
        let load = Load::begin(scene.engine.address());
        load.goes_on();
        let replaced =
            verdict(&scene.engine.zdt(&["reload", "--json", "--strategy", "socket-handoff"]));
        assert_eq!(replaced["reload_successful"], faults.is_empty(), "{replaced}");
        let supervisor = scene.engine.only_supervisor();
        assert_eq!(supervisor == scene.engine.pid(), !faults.is_empty(), "{faults}");
        scene.only(pid, faults);
        load.goes_on();
        scene.swap_well();
        scene.only(scene.serving(), faults);
        load.goes_on();
        load.end();
        // Whoever has taken it over notices its end.
        let last = scene.serving();
        kill(Pid::from_raw(last as i32), Signal::SIGKILL).expect("kill");
        let next = scene.serving();
        assert_ne!(next, last);
        scene.only(next, faults);
        scene.end();
    }
}

#[test]
fn a_replacement_waits_for_the_swap_that_somebody_waits_for() {
    let config = "[gateway.health]\npath = \"/\"\n";
    let faults = "application.proven@0=stop:2";
    let Some(mut scene) = Scene::new("gateway::takeover", faults, config) else { return };
    let first = scene.serving();
    let pid = scene.engine.pid();
    let swap = scene.engine.zdt_in_background(&["reload", "--app", "--json"]);
    eventually("it stops", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T"))
    });
    let replace =
        scene.engine.zdt_in_background(&["reload", "--json", "--strategy", "socket-handoff"]);
    scene.engine.signal(Signal::SIGCONT);
    let swap = crate::supervisor::engine::output_of(swap);
    assert!(swap.status.success(), "{swap:?}");
    let replaced = verdict(&crate::supervisor::engine::output_of(replace));
    assert_eq!(replaced["reload_successful"], true, "{replaced}");
    scene.engine.only_supervisor();
    let now = scene.serving();
    assert_ne!(now, first);
    scene.only(now, "after both");
    scene.end();
}

#[test]
fn an_application_without_anybody_is_ended() {
    // By a stop that finds no supervisor.
    let Some(mut scene) = Scene::new("gateway::takeover", "", "") else { return };
    scene.engine.signal(Signal::SIGKILL);
    scene.engine.wait();
    assert_eq!(scene.processes().len(), 1);
    scene.end();
    // By a supervisor that finds no worker, and starts afresh.
    let Some(mut scene) = Scene::new("gateway::takeover", "", "") else { return };
    let first = scene.serving();
    let workers = scene.engine.workers(1);
    scene.engine.signal(Signal::SIGKILL);
    scene.engine.wait();
    for worker in workers {
        kill(Pid::from_raw(worker as i32), Signal::SIGKILL).expect("kill");
    }
    scene.engine.configure(&scene.config);
    scene.engine.restart();
    let second = scene.serving();
    assert_ne!(second, first);
    scene.only(second, "afresh");
    scene.end();
}

#[test]
fn holds_and_upstreams_outlive_the_supervisor() {
    let (one, two) = (Upstream::start("one"), Upstream::start("two"));
    let mut engine = gateway(&[&one], "workers = 2");
    let address = engine.address();
    assert!(engine.zdt(&["upstream", "set", "default", &two.url()]).status.success());
    assert!(engine.zdt(&["hold"]).status.success());
    let mut held = begin(address, "GET /held HTTP/1.1\r\nHost: test");
    let stats = |engine: &Engine| -> Value {
        serde_json::from_slice(&engine.zdt(&["queue", "stats", "--json"]).stdout).expect("JSON")
    };
    eventually("it is held", || stats(&engine)["held_requests"] == 1);
    // Killed as soon as it has answered: what it has answered is so.
    engine.signal(Signal::SIGKILL);
    engine.wait();
    engine.restart();
    assert_eq!(stats(&engine)["held_requests"], 1);
    engine.reload_well();
    assert_eq!(stats(&engine)["held_requests"], 1, "nor does a reload let it go");
    assert_eq!(one.requests() + two.requests(), 0);
    let replaced = verdict(&engine.zdt(&["reload", "--json", "--strategy", "socket-handoff"]));
    assert_eq!(replaced["reload_successful"], true, "{replaced}");
    assert_eq!(stats(&engine)["held_requests"], 1, "nor another supervisor");
    assert!(engine.zdt(&["resume"]).status.success());
    assert_eq!(read_answer(&mut held).text(), "two /held\n");
    engine.only_supervisor();
    assert_eq!(get(address, "/after").text(), "two /after\n");
    assert_eq!(one.requests(), 0);
}

#[test]
fn what_is_replayed_in_a_reload_is_in_its_verdict_and_counted_for_good() {
    let upstream = Upstream::start("app");
    let engine = gateway(&[&upstream], "workers = 2\n[reload]\nprobation_ms = 2000");
    assert!(engine.zdt(&["hold"]).status.success());
    let mut held: Vec<_> = (0..5)
        .map(|number| begin(engine.address(), &format!("GET /{number} HTTP/1.1\r\nHost: test")))
        .collect();
    let stats = || -> Value {
        serde_json::from_slice(&engine.zdt(&["queue", "stats", "--json"]).stdout).expect("JSON")
    };
    eventually("they are held", || stats()["held_requests"] == 5);
    let reload = engine.zdt_in_background(&["reload", "--json"]);
    eventually("they have moved", || engine.status()["reload"]["moved"] == 5);
    assert!(engine.zdt(&["resume"]).status.success());
    for (number, stream) in held.iter_mut().enumerate() {
        assert_eq!(read_answer(stream).text(), format!("app /{number}\n"));
    }
    let reload = verdict(&crate::supervisor::engine::output_of(reload));
    assert_eq!(reload["replayed_requests"], 5, "{reload}");
    let quiet = engine.reload_well();
    assert_eq!(quiet["replayed_requests"], 0, "{quiet}");
    let stats = stats();
    assert_eq!((&stats["held_total"], &stats["replayed"]), (&5.into(), &5.into()), "{stats}");
    let counters = engine.status()["counters"].clone();
    assert_eq!(counters["replayed_requests"], 5, "{counters}");
}
