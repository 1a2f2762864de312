//! The supervisor itself is replaced: by a good build, by bad ones, and with kill -9 at every step.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::engine::{Engine, Options, Storm, output_of, verdict};
use crate::lab::{eventually, kept_address};
use crate::skip::have_root;

const REPLACE: [&str; 4] = ["reload", "--json", "--strategy", "socket-handoff"];

fn both_steerings() -> Vec<Options> {
    let mut all = vec![Options::plain()];
    if have_root("supervisor::replacement with eBPF") {
        all.push(Options::default().and("--steering", "ebpf"));
    }
    all
}

fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).expect("signal");
}

fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T"))
}

/// Waits until a successor has stopped at its fault point.
#[track_caller]
fn stopped_successor(engine: &Engine, what: &str) -> u32 {
    let mut successor = None;
    eventually(what, || {
        let mut all = engine.supervisors().into_iter();
        successor = all.find(|pid| *pid != engine.pid() && is_stopped(*pid));
        successor.is_some()
    });
    successor.expect("it was found")
}

#[track_caller]
fn replace_well(engine: &Engine) -> Value {
    let verdict = verdict(&engine.zdt(&REPLACE));
    assert_eq!(verdict["reload_successful"], true, "{verdict}");
    assert_eq!(verdict["lost_connections"], 0, "{verdict}");
    assert_eq!(verdict["strategy"], "socket-handoff", "{verdict}");
    verdict
}

/// Whatever was tried: one supervisor, all clients, and everything works as before.
#[track_caller]
fn all_is_well(engine: &mut Engine, clients: &mut super::engine::Clients, what: &str) {
    engine.only_supervisor();
    clients.count_all();
    for number in 0..20 {
        engine.ask(&number.to_string());
    }
    let verdict = engine.reload_well();
    assert_eq!(verdict["migrated_connections"], clients.len(), "{what}: {verdict}");
    clients.count_all();
    eventually("only one generation is left", || {
        engine.status()["generations"].as_array().map(Vec::len) == Some(1)
    });
}

#[test]
fn the_supervisor_and_its_workers_are_replaced() {
    for options in both_steerings() {
        let admin_address = kept_address();
        let mut engine = Engine::start(options.and("--admin", &admin_address.to_string()));
        let mut clients = engine.clients(20);
        engine.reload_well();
        let first = engine.pid();
        let verdict = replace_well(&engine);
        assert_eq!(verdict["previous_supervisor"], first, "{verdict}");
        assert_eq!(verdict["migrated_connections"], 20, "{verdict}");
        assert_eq!(verdict["generation"], 3, "{verdict}");
        // Whoever has the verdict finds one supervisor, and the first process has gone in peace.
        assert_eq!(engine.supervisors(), [verdict["supervisor"].as_u64().expect("pid") as u32]);
        assert!(engine.wait().success());
        clients.count_all_in(3);
        let status = engine.status();
        assert_eq!(status["pid"], verdict["supervisor"]);
        assert_eq!(status["totals"]["reloads"], 2, "counters go on: {status}");
        assert_eq!(status["totals"]["migrated_connections"], 40, "{status}");
        assert!(std::net::TcpStream::connect(admin_address).is_ok(), "the admin endpoint goes on");
        assert!(!engine.run_dir().join("handoff.sock").exists());
        let lock = std::fs::read_to_string(engine.run_dir().join("lock")).expect("lock");
        assert_eq!(lock.trim(), verdict["supervisor"].to_string());
        // And so on.
        let verdict = replace_well(&engine);
        assert_eq!(verdict["previous_supervisor"], status["pid"], "{verdict}");
        all_is_well(&mut engine, &mut clients, "the third");
        // Workers of the third are watched like others.
        let generation = engine.status()["generation"].as_u64().expect("generation");
        send(engine.workers(generation)[0], Signal::SIGKILL);
        eventually("it is replaced", || {
            engine.status()["status"] == "healthy" && engine.workers(generation).len() == 2
        });
        let stop = engine.zdt(&["stop", "--now", "--json"]);
        assert!(stop.status.success(), "{stop:?}");
        assert!(engine.supervisors().is_empty());
    }
}

#[test]
fn no_request_fails_meanwhile() {
    for options in both_steerings() {
        let engine = Engine::start(options);
        let storm = Storm::begin(engine.address());
        let mut clients = engine.clients(10);
        for generation in 2..5 {
            replace_well(&engine);
            clients.count_all_in(generation);
        }
        assert!(storm.end() > 10);
    }
}

/// Steps of the successor until it serves.
const SUCCESSOR: [&str; 10] = [
    "succession.executed",
    "succession.started",
    "succession.greeted",
    "succession.prepared",
    "succession.estate_received",
    "succession.proven",
    "succession.told",
    "succession.adopted",
    "succession.taken_over",
    "succession.done",
];

#[test]
fn a_successor_that_dies_at_any_step_changes_nothing() {
    for options in both_steerings() {
        for point in SUCCESSOR {
            let faults = format!("{point}@successor=kill");
            let mut engine = Engine::start(Options { faults, ..options.clone() });
            let mut clients = engine.clients(10);
            let before = engine.pid();
            let verdict = verdict(&engine.zdt(&REPLACE));
            assert_eq!(verdict["reload_successful"], false, "{point}: {verdict}");
            assert_eq!(verdict["generation"], 1, "{point}: {verdict}");
            let why = verdict["error"].as_str().expect("error");
            assert!(why.contains("not replaced"), "{point}: {why}");
            assert_eq!(engine.only_supervisor(), before, "{point}");
            clients.count_all_in(1);
            all_is_well(&mut engine, &mut clients, point);
        }
    }
}

#[test]
fn a_successor_that_dies_in_its_reload_leaves_it_to_its_predecessor() {
    for options in both_steerings() {
        for (point, generation) in [
            ("supervisor.after_spawn", 1),
            ("supervisor.before_flip", 1),
            ("supervisor.after_flip", 2),
            ("supervisor.during_handoff", 2),
            ("supervisor.before_commit", 2),
            ("supervisor.after_commit", 2),
            ("succession.settled", 2),
        ] {
            let faults = format!("{point}@successor=kill");
            let mut engine = Engine::start(Options { faults, ..options.clone() });
            let mut clients = engine.clients(10);
            let before = engine.pid();
            let verdict = verdict(&engine.zdt(&REPLACE));
            assert_eq!(verdict["reload_successful"], false, "{point}: {verdict}");
            assert_eq!(engine.only_supervisor(), before, "{point}");
            clients.count_all_in(generation);
            all_is_well(&mut engine, &mut clients, point);
        }
    }
}

#[test]
fn a_supervisor_that_dies_at_any_step_has_its_successor() {
    for options in both_steerings() {
        for point in [
            "handover.spawned",
            "handover.greeted",
            "handover.estate_sent",
            "handover.proven",
            "handover.taken_over",
            "handover.passed_on",
        ] {
            let faults = format!("{point}@0=kill");
            let mut engine = Engine::start(Options { faults, ..options.clone() });
            let mut clients = engine.clients(10);
            let before = engine.pid();
            let reload = output_of(engine.zdt_in_background(&REPLACE));
            engine.wait();
            clients.count_all();
            let after = engine.only_supervisor();
            assert_ne!(after, before, "{point}");
            if point == "handover.passed_on" {
                let verdict = verdict(&reload);
                assert_eq!(verdict["reload_successful"], true, "{point}: {verdict}");
            }
            all_is_well(&mut engine, &mut clients, point);
        }
    }
}

#[test]
fn a_successor_that_hangs_is_ended() {
    for (point, config) in [
        ("succession.started", "[reload]\nready_timeout_ms = 3000\n"),
        ("succession.estate_received", ""),
        ("succession.told", ""),
    ] {
        let mut engine = Engine::start(Options {
            config: config.into(),
            ..Options::faults(&format!("{point}@successor=stop"))
        });
        let mut clients = engine.clients(4);
        let before = engine.pid();
        let verdict = verdict(&engine.zdt(&REPLACE));
        assert_eq!(verdict["reload_successful"], false, "{point}: {verdict}");
        assert_eq!(engine.only_supervisor(), before, "{point}");
        all_is_well(&mut engine, &mut clients, point);
    }
}

#[test]
fn a_supervisor_that_hangs_hands_over_when_it_goes_on() {
    for point in ["handover.estate_sent", "handover.proven", "handover.taken_over"] {
        let mut engine = Engine::start(Options::faults(&format!("{point}@0=stop")));
        let mut clients = engine.clients(4);
        let before = engine.pid();
        let reload = engine.zdt_in_background(&REPLACE);
        eventually("it has stopped", || is_stopped(before));
        clients.count_all();
        send(before, Signal::SIGCONT);
        let verdict = verdict(&output_of(reload));
        assert_eq!(verdict["reload_successful"], true, "{point}: {verdict}");
        assert_ne!(engine.only_supervisor(), before, "{point}");
        all_is_well(&mut engine, &mut clients, point);
    }
}

#[test]
fn a_successor_of_another_version_is_refused() {
    let mut engine = Engine::start(Options::faults("succession.version@successor=fail"));
    let mut clients = engine.clients(2);
    let verdict = verdict(&engine.zdt(&REPLACE));
    let why = verdict["error"].as_str().expect("error");
    assert!(why.contains("speaks handoff protocols"), "{why}");
    assert_eq!(engine.only_supervisor(), engine.pid());
    all_is_well(&mut engine, &mut clients, "version");
}

/// A copy of the program that the test may replace by another file.
fn program() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("zdt");
    std::fs::copy(env!("CARGO_BIN_EXE_zdt"), &path).expect("copy");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    (dir, path)
}

/// As an installation does it: under another name, then in its place.
fn install(path: &Path, text: &str, mode: u32) {
    let next = path.with_extension("next");
    std::fs::write(&next, text).expect("write");
    std::fs::set_permissions(&next, std::fs::Permissions::from_mode(mode)).expect("chmod");
    std::fs::rename(&next, path).expect("rename");
}

#[test]
fn a_program_that_is_no_supervisor_is_noticed() {
    let (_dir, path) = program();
    let mut engine = Engine::start(Options {
        binary: Some(path.clone()),
        ..Options::config("[reload]\nready_timeout_ms = 3000\n")
    });
    let mut clients = engine.clients(2);
    for (text, mode, why) in [
        ("#!/bin/sh\nexit 7\n", 0o755, "exited with code 7"),
        ("#!/bin/sh\nexec sleep 1000\n", 0o755, "ready_timeout_ms"),
        ("#!/bin/sh\nexit 0\n", 0o644, "ermission denied"),
        ("\u{7f}ELF, but not really", 0o755, "cannot start"),
    ] {
        install(&path, text, mode);
        let verdict = verdict(&engine.zdt(&REPLACE));
        let error = verdict["error"].as_str().expect("error");
        assert!(error.contains(why), "{why}: {error}");
        assert_eq!(engine.supervisors(), [engine.pid()]);
        clients.count_all_in(1);
    }
    let next = path.with_extension("next");
    std::fs::copy(env!("CARGO_BIN_EXE_zdt"), &next).expect("copy");
    std::fs::rename(&next, &path).expect("rename");
    replace_well(&engine);
    all_is_well(&mut engine, &mut clients, "a good one at last");
}

#[test]
fn a_configuration_that_the_new_build_refuses_keeps_the_old_supervisor() {
    let mut engine = Engine::start(Options::default());
    let mut clients = engine.clients(2);
    engine.configure("wrokers = 3\n");
    let verdict = verdict(&engine.zdt(&REPLACE));
    let why = verdict["error"].as_str().expect("error");
    assert!(why.contains("not replaced") && why.contains("wrokers"), "{why}");
    assert_eq!(engine.only_supervisor(), engine.pid());
    engine.configure("");
    all_is_well(&mut engine, &mut clients, "configuration");
}

#[test]
fn hangup_replaces_the_supervisor_where_that_is_configured() {
    let by_file = Options::config("strategy = \"socket-handoff\"\n");
    let by_variable = Options::default().with("ZERO_DOWNTIME_STRATEGY", "SOCKET_HANDOFF");
    for options in [by_file, by_variable] {
        let mut engine = Engine::start(options);
        let mut clients = engine.clients(4);
        let before = engine.pid();
        engine.signal(Signal::SIGHUP);
        assert!(engine.wait().success());
        assert_ne!(engine.only_supervisor(), before);
        clients.count_all_in(2);
        let last = engine.status()["last_reload"].clone();
        assert_eq!(last["strategy"], "socket-handoff", "{last}");
    }
}

#[test]
fn a_hangup_before_its_handler_is_there_does_not_kill_a_successor() {
    let mut engine = Engine::start(Options::faults("succession.executed@successor=stop"));
    let mut clients = engine.clients(4);
    let reload = engine.zdt_in_background(&REPLACE);
    let successor = stopped_successor(&engine, "the successor waits at its first instruction");
    send(successor, Signal::SIGHUP);
    send(successor, Signal::SIGCONT);
    let verdict = verdict(&output_of(reload));
    assert_eq!(verdict["supervisor"], successor, "{verdict}");
    // The signal counts, once there is somebody to obey it.
    eventually("the hangup is obeyed", || {
        engine.status()["generation"].as_u64() >= Some(3) && engine.only_supervisor() == successor
    });
    all_is_well(&mut engine, &mut clients, "hangup");
}

#[test]
fn a_stop_while_a_successor_gets_ready_stops() {
    let mut engine = Engine::start(Options {
        config: "drain_timeout_ms = 500\n".into(),
        ..Options::faults("succession.greeted@successor=stop")
    });
    let reload = engine.zdt_in_background(&REPLACE);
    stopped_successor(&engine, "there are two");
    engine.signal(Signal::SIGTERM);
    assert!(engine.wait().success());
    let verdict = verdict(&output_of(reload));
    assert_eq!(verdict["reload_successful"], false, "{verdict}");
    eventually("nobody is left", || engine.supervisors().is_empty());
}

#[test]
fn signals_reach_the_successor_until_the_first_process_is_gone() {
    let mut engine =
        Engine::start(Options::config("drain_timeout_ms = 500\n[reload]\nprobation_ms = 20000\n"));
    let before = engine.pid();
    let reload = engine.zdt_in_background(&REPLACE);
    eventually("the workers follow", || {
        let status = engine.status();
        status["pid"] != before && status["reload"]["stage"] == "probation"
    });
    // A service manager that has not heard of the successor yet.
    engine.signal(Signal::SIGQUIT);
    assert!(engine.wait().success());
    output_of(reload);
    eventually("nobody is left", || engine.supervisors().is_empty());
}

#[test]
fn reloads_that_meet_all_get_a_verdict() {
    for options in both_steerings() {
        let mut engine = Engine::start(options);
        let mut clients = engine.clients(6);
        let commands: Vec<_> = (0..4)
            .map(|number| match number % 2 {
                0 => engine.zdt_in_background(&REPLACE),
                _ => engine.zdt_in_background(&["reload", "--json"]),
            })
            .collect();
        let verdicts: Vec<Value> =
            commands.into_iter().map(|command| verdict(&output_of(command))).collect();
        assert!(verdicts.iter().any(|verdict| verdict["outcome"] == "committed"), "{verdicts:#?}");
        for verdict in &verdicts {
            let outcome = verdict["outcome"].as_str().expect("outcome");
            assert!(["committed", "superseded"].contains(&outcome), "{verdict}");
            assert_eq!(verdict["lost_connections"], 0, "{verdict}");
        }
        all_is_well(&mut engine, &mut clients, "four at once");
    }
}

#[test]
fn a_reload_that_waits_is_asked_for_again_at_the_successor() {
    let mut engine = Engine::start(Options::faults("succession.told@successor=stop"));
    let mut clients = engine.clients(4);
    let first = engine.zdt_in_background(&REPLACE);
    let successor = stopped_successor(&engine, "the successor is told to take over");
    // Nobody supervises at this moment.
    let second = engine.zdt_in_background(&["reload", "--json"]);
    let status = engine.zdt_in_background(&["status", "--json"]);
    clients.count_all_in(1);
    send(successor, Signal::SIGCONT);
    let first = verdict(&output_of(first));
    let second = verdict(&output_of(second));
    assert_eq!(second["outcome"], "committed", "{second}");
    assert!(first["outcome"] == "committed" || first["outcome"] == "superseded", "{first}");
    assert!(output_of(status).status.success());
    assert_eq!(engine.only_supervisor(), successor);
    all_is_well(&mut engine, &mut clients, "again");
}

/// Connects and waits; returns how many bytes came before the end.
fn stranger_hears(path: &Path) -> usize {
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr};
    use std::os::fd::AsRawFd;
    let kind = SockType::SeqPacket;
    let socket = nix::sys::socket::socket(AddressFamily::Unix, kind, SockFlag::empty(), None)
        .expect("socket");
    let address = UnixAddr::new(path).expect("address");
    nix::sys::socket::connect(socket.as_raw_fd(), &address).expect("connect");
    let mut buffer = [0; 64];
    match nix::sys::socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
        Ok(count) => count,
        Err(nix::errno::Errno::ECONNRESET) => 0,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn the_handoff_socket_is_for_the_successor_only() {
    let mut engine = Engine::start(Options::faults("succession.executed@successor=stop"));
    let mut clients = engine.clients(2);
    let reload = engine.zdt_in_background(&REPLACE);
    let path = engine.run_dir().join("handoff.sock");
    eventually("it is there", || path.exists());
    let mode = std::fs::metadata(&path).expect("metadata").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(stranger_hears(&path), 0, "another process of the same user is hung up on");
    send(stopped_successor(&engine, "the successor waits"), Signal::SIGCONT);
    assert_eq!(verdict(&output_of(reload))["reload_successful"], true);
    all_is_well(&mut engine, &mut clients, "strangers");
}

#[test]
fn another_place_for_the_handoff_socket() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("hand.sock");
    let text = path.to_str().expect("UTF-8").to_owned();
    let mut engine = Engine::start(Options::default().with("HANDOFF_SOCKET_PATH", &text));
    let mut clients = engine.clients(2);
    replace_well(&engine);
    assert!(!path.exists(), "it is removed");
    let mode = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(dir.path(), mode).expect("chmod");
    let verdict = verdict(&engine.zdt(&REPLACE));
    let why = verdict["error"].as_str().expect("error");
    assert!(why.contains("handoff_socket") && why.contains("others"), "{why}");
    all_is_well(&mut engine, &mut clients, "another place");
}

/// What a service manager was told, so far.
fn news(manager: &UnixDatagram) -> Vec<String> {
    let mut all = Vec::new();
    let mut buffer = [0; 512];
    while let Ok(count) = manager.recv(&mut buffer) {
        all.extend(String::from_utf8_lossy(&buffer[..count]).lines().map(str::to_owned));
    }
    all.retain(|line| !line.starts_with("MONOTONIC_USEC="));
    all
}

#[test]
fn the_service_manager_is_told_who_is_the_supervisor() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("bind");
    manager.set_nonblocking(true).expect("non-blocking");
    let options = Options::default().with("NOTIFY_SOCKET", path.to_str().expect("UTF-8"));
    let mut engine = Engine::start(options);
    assert_eq!(news(&manager), ["READY=1"]);
    engine.reload_well();
    assert_eq!(news(&manager), ["RELOADING=1", "READY=1"]);
    let verdict = replace_well(&engine);
    engine.wait();
    let main = format!("MAINPID={}", verdict["supervisor"]);
    assert_eq!(news(&manager), ["RELOADING=1", &main, "READY=1", "READY=1"]);
    let stop = engine.zdt(&["stop", "--now"]);
    assert!(stop.status.success(), "{stop:?}");
    assert_eq!(news(&manager), ["STOPPING=1"]);
}

#[test]
fn a_failed_replacement_is_no_news_but_that_it_is_over() {
    use std::os::linux::net::SocketAddrExt;
    let name = format!("zdt-it-{}", std::process::id());
    let address =
        std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("abstract address");
    let manager = UnixDatagram::bind_addr(&address).expect("bind");
    manager.set_nonblocking(true).expect("non-blocking");
    let options = Options::faults("succession.taken_over@successor=kill");
    let engine = Engine::start(options.with("NOTIFY_SOCKET", &format!("@{name}")));
    assert_eq!(news(&manager), ["READY=1"]);
    let verdict = verdict(&engine.zdt(&REPLACE));
    assert_eq!(verdict["reload_successful"], false, "{verdict}");
    assert_eq!(news(&manager), ["RELOADING=1", "READY=1"]);
}

#[test]
fn replacements_leave_nothing_behind() {
    for options in both_steerings() {
        let mut engine = Engine::start(options);
        let open = |pid: u32| {
            std::fs::read_dir(format!("/proc/{pid}/fd"))
                .map_or(0, |descriptors| descriptors.count())
        };
        let settled = |engine: &Engine| {
            let status = engine.status();
            status["generations"].as_array().map(Vec::len) == Some(1)
                && status["socket_stats"]["listeners"].as_u64() <= Some(2)
        };
        let mut clients = engine.clients(4);
        replace_well(&engine);
        engine.wait();
        eventually("old listeners are let go", || settled(&engine));
        let before = open(engine.only_supervisor());
        for _ in 0..6 {
            replace_well(&engine);
        }
        clients.count_all_in(8);
        eventually("old listeners are let go", || settled(&engine));
        let after = engine.only_supervisor();
        eventually("no descriptor is left over", || open(after) <= before + 2);
        let left: Vec<_> = std::fs::read_dir(engine.run_dir())
            .expect("run directory")
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with("worker-") || name.starts_with("handoff"))
            .collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }
}

/// How often workers have crashed, and what was given up, is the successor's, too: nobody gets another full window by it.
#[test]
fn crashes_and_places_given_up_are_inherited() {
    let config = "[respawn]\nlimit = 1\nwindow_ms = 600000\n";
    // The workers do not follow: it is about those of the old generation.
    let faults = "worker.start@2=exit:*,worker.start@3=exit:*";
    for options in both_steerings() {
        let options = Options { config: config.into(), ..options };
        let mut engine = Engine::start(Options { faults: faults.into(), ..options });
        let first = engine.workers(1);
        let at = |engine: &Engine, index: u64| {
            let status = engine.status();
            let workers = status["worker_stats"].as_object().expect("workers");
            let worker =
                workers.values().find(|one| one["index"] == index && one["generation"] == 1);
            worker.and_then(|one| one["pid"].as_u64()).map(|pid| pid as u32)
        };
        let victim = at(&engine, 0).expect("worker 0");
        send(victim, Signal::SIGKILL);
        eventually("it is replaced", || {
            engine.status()["status"] == "healthy" && at(&engine, 0) != Some(victim)
        });
        let mut supervisor = engine.pid();
        let mut replace = |engine: &Engine| {
            let output = engine.zdt(&["reload", "--json", "--strategy", "socket-handoff"]);
            assert!(!output.status.success(), "its workers do not follow: {output:?}");
            let now = engine.status()["pid"].as_u64().expect("pid") as u32;
            assert_ne!(now, supervisor, "the supervisor is another one");
            supervisor = now;
        };
        replace(&engine);
        assert_eq!(engine.status()["totals"]["crashes"], 1);
        // One was its limit, under the predecessor.
        send(at(&engine, 0).expect("worker 0"), Signal::SIGKILL);
        eventually("it is given up", || {
            engine.status()["status"] == "degraded" && at(&engine, 0).is_none()
        });
        replace(&engine);
        let status = engine.status();
        assert_eq!(
            (&status["status"], &status["totals"]["crashes"]),
            (&"degraded".into(), &2.into())
        );
        assert_eq!(at(&engine, 0), None, "{status}");
        assert_eq!(at(&engine, 1), first.iter().copied().find(|pid| *pid != victim), "{status}");
        for number in 0..20 {
            engine.ask(&number.to_string());
        }
        let _ = engine.wait();
    }
}
