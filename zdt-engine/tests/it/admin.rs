//! The admin endpoint, as scripts, browsers and strangers meet it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::lab::programs::python_with;
use crate::lab::{client, eventually, kept_address};
use crate::supervisor::engine::{Engine, Options};

/// Status code and body of a request with these header lines.
#[track_caller]
pub fn request(admin: SocketAddr, what: &str, headers: &str) -> (u16, String) {
    let mut stream = client::connect(admin);
    let text = format!("{what} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n");
    stream.write_all(text.as_bytes()).expect("write");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a code");
    (code, body.to_owned())
}

const LOCAL: &str = "Host: localhost\r\n";

#[test]
fn a_page_in_a_browser_gets_nothing() {
    let admin = kept_address();
    let _engine = Engine::start(Options::default().and("--admin", &admin.to_string()));
    assert_eq!(request(admin, "GET /healthz", LOCAL).0, 200);
    // Its own name, pointed at this machine.
    let rebound = format!("Host: evil.example:{}\r\n", admin.port());
    let (code, body) = request(admin, "GET /_zero-downtime/status", &rebound);
    assert_eq!(code, 403);
    assert!(!body.contains("pid"), "{body}");
}

#[test]
fn a_token_counts_from_the_reload_that_reads_it() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("token");
    let write = |token: &str| {
        std::fs::write(&path, token).expect("write");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("chmod");
    };
    write("first-token-of-this-test\n");
    let admin = kept_address();
    let config = format!("admin_token_file = {:?}\n", path.to_str().expect("path"));
    let options = Options::config(&config).and("--admin", &admin.to_string());
    let engine = Engine::start(options);
    let ask = |token: &str| {
        let headers = format!("Host: x\r\nAuthorization: Bearer {token}\r\n");
        request(admin, "GET /healthz", &headers).0
    };
    assert_eq!(request(admin, "GET /healthz", LOCAL).0, 401);
    assert_eq!((ask("first-token-of-this-test"), ask("another-token-of-this-test")), (200, 401));
    write("another-token-of-this-test");
    engine.reload_well();
    assert_eq!((ask("first-token-of-this-test"), ask("another-token-of-this-test")), (401, 200));
    write("short");
    let verdict = engine.reload();
    let error = verdict["error"].as_str().expect("error");
    assert!(error.contains("admin_token_file") && !error.contains("short\""), "{error}");
    assert_eq!(ask("another-token-of-this-test"), 200);
    let output = engine.zdt(&["status", "--json"]);
    assert!(!String::from_utf8_lossy(&output.stdout).contains("another-token"));
}

/// The metrics, as Prometheus's own parser reads them: value and type by name and labels.
#[track_caller]
fn metrics(python: &Path, admin: SocketAddr) -> BTreeMap<String, (f64, String)> {
    let (code, page) = request(admin, "GET /metrics", LOCAL);
    assert_eq!(code, 200, "{page}");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/admin_metrics.py");
    let mut parser = Command::new(python)
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run the parser");
    parser.stdin.take().expect("stdin").write_all(page.as_bytes()).expect("write");
    let output = parser.wait_with_output().expect("output");
    assert!(output.status.success(), "not understood:\n{page}");
    let samples: BTreeMap<String, Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let read = |sample: &Value| {
        (
            sample["value"].as_f64().expect("value"),
            sample["type"].as_str().expect("type").to_owned(),
        )
    };
    samples.iter().map(|(key, sample)| (key.clone(), read(sample))).collect()
}

#[test]
fn counters_never_fall_and_miss_nothing() {
    let Some(python) =
        python_with("admin::counters_never_fall_and_miss_nothing", "prometheus_client")
    else {
        return;
    };
    let admin = kept_address();
    let config = "[respawn]\nlimit = 20\n";
    let mut options = Options::config(config).and("--admin", &admin.to_string());
    options.faults = "supervisor.before_commit@0=fail:3".to_owned();
    let mut engine = Engine::start(options);
    let mut clients = engine.clients(8);
    let mut last: BTreeMap<String, (f64, String)> = BTreeMap::new();
    let mut messages = 8;
    let mut check = |what: &str, messages: u64| {
        let now = metrics(&python, admin);
        for (name, (value, kind)) in &last {
            let (later, _) = now.get(name).cloned().unwrap_or((-1.0, String::new()));
            assert!(
                kind != "counter" || later >= *value,
                "{what}: {name} fell from {value} to {later}"
            );
        }
        let of =
            |name: &str| now.get(name).unwrap_or_else(|| panic!("{what}: {name} in {now:?}")).0;
        assert_eq!(of("zdt_websocket_messages_received_total{}") as u64, messages, "{what}");
        assert_eq!(of("zdt_websocket_messages_sent_total{}") as u64, messages, "{what}");
        last = now;
    };
    check("start", messages);
    let mut count = |clients: &mut crate::supervisor::engine::Clients| {
        messages += clients.len() as u64;
        clients.count_all();
        messages
    };
    engine.reload_well();
    check("a reload", count(&mut clients));
    // Undone after its handoff: green has counted, and dies.
    let verdict = engine.reload();
    assert_eq!(verdict["outcome"], "rolled_back", "{verdict}");
    check("a rollback", count(&mut clients));
    engine.reload_well();
    check("a reload", count(&mut clients));
    // A worker that is killed hands nothing on; what it had counted is known all the same.
    let generation = engine.status()["generation"].as_u64().expect("a number");
    let killed = engine.workers(generation)[0];
    kill(Pid::from_raw(killed as i32), Signal::SIGKILL).expect("kill");
    eventually("it is replaced", || {
        let status = engine.status();
        status["status"] == "healthy" && !engine.workers(generation).contains(&killed)
    });
    check("a crash", messages_of(&engine));
    // And so does the next supervisor.
    engine.signal(Signal::SIGKILL);
    engine.wait();
    engine.restart();
    check("another supervisor", messages_of(&engine));
    engine.reload_well();
    check("its reload", messages_of(&engine));
    let output = engine.zdt(&["reload", "--json", "--strategy", "socket-handoff"]);
    assert!(output.status.success(), "{output:?}");
    check("its successor", messages_of(&engine));
    let reloads = last.get("zdt_reloads_total{result=committed}").expect("reloads").0;
    assert_eq!(reloads as u64, 4, "over supervisors");
}

fn messages_of(engine: &Engine) -> u64 {
    engine.status()["counters"]["messages_received"].as_u64().expect("a number")
}

#[test]
fn the_three_endpoints_have_every_field() {
    let admin = kept_address();
    let engine = Engine::start(Options::default().and("--admin", &admin.to_string()));
    let mut clients = engine.clients(5);
    engine.reload_well();
    let (code, body) = request(admin, "GET /_zero-downtime/status", LOCAL);
    let status: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((code, &status["status"]), (200, &"healthy".into()));
    for field in [
        "reload_in_progress",
        "strategy",
        "active_connections",
        "buffered_requests",
        "worker_stats",
        "socket_stats",
        "uptime_seconds",
        "memory_usage_mb",
    ] {
        assert!(!status[field].is_null(), "{field} in {status}");
    }
    let components = &status["components"];
    assert_eq!(components["connection_migration"]["status"], "healthy");
    assert_eq!(components["connection_migration"]["active_connections"], 5);
    assert_eq!(components["request_buffering"]["buffered_requests"], 0);
    for field in [
        "reload_successful",
        "migrated_connections",
        "replayed_requests",
        "strategy",
        "duration_ms",
    ] {
        assert!(!status["last_reload"][field].is_null(), "{field} in {status}");
    }
    let (code, body) = request(admin, "POST /_zero-downtime/test-migration", LOCAL);
    let test: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((code, &test["test_successful"]), (200, &true.into()), "{test}");
    assert_eq!((&test["tested_connections"], &test["movable_connections"]), (&5.into(), &5.into()));
    assert_eq!(test["workers"], 2);
    let (code, body) = request(admin, "POST /_zero-downtime/flush-queue", LOCAL);
    assert_eq!((code, body.as_str()), (200, r#"{"flushed_requests":0,"buffered_requests":0}"#));
    clients.count_all_in(2);
    for path in ["test-migration", "flush-queue"] {
        let path = format!("/_zero-downtime/{path}");
        assert_eq!(request(admin, &format!("GET {path}"), LOCAL).0, 405, "{path}");
        let page = format!("{LOCAL}Origin: http://evil.example\r\n");
        assert_eq!(request(admin, &format!("POST {path}"), &page).0, 403, "{path}");
    }
}
