//! The end, and what the admin endpoint and the command line say meanwhile.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use nix::sys::signal::Signal;
use tungstenite::Message;
use tungstenite::protocol::frame::coding::CloseCode;

use super::engine::{Engine, Options, output_of};
use crate::lab::{client, eventually, kept_address};

fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("connect");
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("write");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read");
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("status line");
    let body = answer.split_once("\r\n\r\n").expect("body").1.to_owned();
    (code, body)
}

#[test]
fn the_admin_endpoint_tells_health_readiness_and_status() {
    let admin = kept_address();
    let engine = Engine::start(Options::default().and("--admin", &admin.to_string()));
    let _clients = engine.clients(3);
    assert_eq!(get(admin, "/healthz").0, 200);
    assert_eq!(get(admin, "/readyz").0, 200);
    let (code, body) = get(admin, "/_zero-downtime/status");
    assert_eq!(code, 200);
    let status: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    for field in [
        "status",
        "components",
        "reload_in_progress",
        "strategy",
        "active_connections",
        "buffered_requests",
        "worker_stats",
        "socket_stats",
        "uptime_seconds",
        "memory_usage_mb",
    ] {
        assert!(status.get(field).is_some(), "{field} is missing: {status}");
    }
    assert_eq!(status["status"], "healthy");
    assert_eq!(status["active_connections"], 3);
    assert_eq!(status["components"]["connection_migration"]["active_connections"], 3);
    assert_eq!(get(admin, "/nothing").0, 404);
}

#[test]
fn a_graceful_stop_drains() {
    let admin = kept_address();
    let mut engine = Engine::start(Options {
        config: "drain_delay_ms = 400\ndrain_timeout_ms = 2000\n".into(),
        ..Options::default().and("--admin", &admin.to_string())
    });
    let mut clients = engine.clients(4);
    let address = engine.address();
    engine.signal(Signal::SIGTERM);
    eventually("readiness fails", || get(admin, "/readyz").0 == 503);
    // Whoever has not heard of it yet is served.
    clients.count_all_in(1);
    for _ in 0..clients.len() {
        let mut client = clients.pop();
        match client.read().expect("a farewell") {
            Message::Close(Some(frame)) => assert_eq!(frame.code, CloseCode::Away),
            other => panic!("not a close frame: {other:?}"),
        }
        // Answers the close.
        let _ = client.flush();
        drop(client);
    }
    assert!(engine.wait().success());
    // The kernel takes the rings of dead processes down a moment later, and with them the last hold
    // on the sockets.
    eventually("nobody listens any more", || TcpStream::connect(address).is_err());
    let left: Vec<_> = std::fs::read_dir(engine.run_dir())
        .expect("run directory")
        .filter_map(|entry| entry.ok().map(|entry| entry.file_name()))
        .collect();
    assert_eq!(left, ["lock"], "the run directory is cleaned up");
}

#[test]
fn the_stop_command_waits_for_the_end() {
    let mut engine = Engine::start(Options::config("drain_timeout_ms = 1000\n"));
    let _clients = engine.clients(2);
    let stop = output_of(engine.zdt_in_background(&["stop", "--json"]));
    assert!(stop.status.success(), "{stop:?}");
    let result: serde_json::Value = serde_json::from_slice(&stop.stdout).expect("JSON");
    assert_eq!(result["stopped"], true);
    assert_eq!(result["workers"], 2);
    assert!(engine.wait().success());
    assert!(!engine.zdt(&["status"]).status.success(), "there is nobody to ask");
}

#[test]
fn quit_stops_now() {
    let mut engine = Engine::start(Options::default());
    let mut clients = engine.clients(3);
    engine.signal(Signal::SIGQUIT);
    assert!(engine.wait().success());
    assert_eq!(clients.count_survivors(), 0);
}

#[test]
fn a_stop_during_a_reload_ends_both_generations() {
    let mut engine =
        Engine::start(Options::config("drain_timeout_ms = 1000\n[reload]\nprobation_ms = 500\n"));
    let reload = engine.zdt_in_background(&["reload", "--json"]);
    eventually("probation", || engine.status()["reload"]["stage"] == "probation");
    engine.signal(Signal::SIGTERM);
    assert!(engine.wait().success());
    output_of(reload);
}

#[test]
fn an_immediate_stop_is_no_error() {
    let mut engine = Engine::start(Options::default());
    let clients = engine.clients(4);
    let stop = engine.zdt(&["stop", "--now"]);
    assert!(stop.status.success(), "{stop:?}");
    assert!(engine.wait().success());
    let log = engine.log();
    assert!(!log.contains(" ERROR ") && log.contains("exited with code 0"), "{log}");
    assert_eq!(clients.len(), 4);
}

#[test]
fn workers_without_a_supervisor_can_be_stopped() {
    let mut engine = Engine::start(Options::default());
    engine.ask("before");
    engine.signal(Signal::SIGKILL);
    engine.wait();
    let stop = engine.zdt(&["stop", "--now"]);
    assert!(stop.status.success(), "{stop:?}");
    eventually("nobody listens any more", || TcpStream::connect(engine.address()).is_err());
    let again = engine.zdt(&["stop"]);
    assert!(!again.status.success());
    let message = String::from_utf8_lossy(&again.stderr);
    assert!(message.contains("zdt serve") && message.contains("--run-dir"), "{message}");
}

#[test]
fn a_start_that_cannot_succeed_says_why() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = taken.local_addr().expect("address").to_string();
    let dir = tempfile::tempdir().expect("tempdir");
    let run = |args: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_zdt"))
            .args(["serve", "--admin", "off", "--workers", "1", "--run-dir"])
            .arg(dir.path().join("run"))
            .args(args)
            .output()
            .expect("run zdt");
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let message = run(&["--listen", &address]);
    assert!(message.contains(&address) && message.contains("ss -ltnp"), "{message}");
    let message = run(&["--service", "nothing"]);
    assert!(message.contains("nothing") && message.contains("demo"), "{message}");
    let message = run(&["--config", "/nonexistent.toml"]);
    assert!(message.contains("/nonexistent.toml"), "{message}");
    let message = run(&["--steering", "ebpf", "--user", "no-such-user"]);
    assert!(message.contains("no-such-user") || message.contains("eBPF"), "{message}");
}

#[test]
fn status_and_doctor_speak_to_people_and_programs() {
    let engine = Engine::start(Options::default());
    let mut idle = client::connect(engine.address());
    idle.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("write");
    let text = engine.zdt(&["status"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("healthy") && text.contains(&engine.address().to_string()), "{text}");
    let doctor = engine.zdt(&["doctor", "--json"]);
    let checks: serde_json::Value = serde_json::from_slice(&doctor.stdout).expect("JSON");
    let names: Vec<_> = checks["checks"]
        .as_array()
        .expect("checks")
        .iter()
        .filter_map(|check| check["name"].as_str())
        .collect();
    for name in ["kernel", "privileges", "io_uring features", "eBPF steering", "open files"] {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
}
