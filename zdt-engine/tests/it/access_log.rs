//! The access log, as whoever reads it finds it.

use std::io::{Read, Write};
use std::path::Path;

use serde_json::Value;

use crate::lab::{client, eventually};
use crate::supervisor::engine::{Engine, Options};

fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    assert!(text.is_empty() || text.ends_with('\n'), "half a line: {text:?}");
    text.lines().map(str::to_owned).collect()
}

fn logging(dir: &Path, format: &str) -> Engine {
    let path = dir.join("access.log");
    Engine::start(Options::config(&format!(
        "[access_log]\nformat = \"{format}\"\nfile = {path:?}\n"
    )))
}

#[track_caller]
fn ask(engine: &Engine, request: &str) -> String {
    let mut stream = client::connect(engine.address());
    stream.write_all(request.as_bytes()).expect("write");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read");
    answer
}

#[test]
fn requests_of_http2_are_lines_whichever_process_ends_them() {
    use crate::lab::http2::*;
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("access.log");
    let engine = logging(dir.path(), "json");
    let mut client = Http2Client::greet(engine.address());
    for (stream, agent) in [(1, "first"), (3, "second")] {
        let head = request("POST", "/digest?x=1", &[("user-agent", agent)]);
        client.send(HEADERS, END_HEADERS, stream, &block(&head));
        client.send(DATA, 0, stream, b"ab");
    }
    client.get(5, "/id?id=at%20once");
    client.response(5);
    eventually("one line is written", || lines(&path).len() == 1);
    engine.reload_well();
    client.send(DATA, END_STREAM, 3, b"cd");
    assert_eq!(client.response(3).0, 200);
    drop(client);
    eventually("the others are written", || lines(&path).len() == 3);
    let line =
        |number: usize| -> Value { serde_json::from_str(&lines(&path)[number]).expect("JSON") };
    assert_eq!(line(0)["target"], "/id?id=at%20once");
    for (number, agent, status) in [(1, "second", 200), (2, "first", 499)] {
        let line = line(number);
        assert_eq!(line["user_agent"], agent, "{line}");
        assert_eq!(line["status"], status, "{line}");
        assert_eq!(
            (&line["protocol"], &line["generation"]),
            (&"HTTP/2.0".into(), &2.into()),
            "{line}"
        );
        assert_eq!((&line["method"], &line["target"]), (&"POST".into(), &"/digest?x=1".into()));
    }
}

#[test]
fn a_request_whose_body_stalls_is_logged_with_its_answer() {
    use crate::lab::http2::*;
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("access.log");
    let engine = Engine::start(Options::config(&format!(
        "[limits]\nstall_timeout_ms = 200\n[access_log]\nformat = \"json\"\nfile = {path:?}\n"
    )));
    let half = "POST /digest HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc";
    assert!(ask(&engine, half).starts_with("HTTP/1.1 408 "));
    let mut client = Http2Client::greet(engine.address());
    client.send(HEADERS, END_HEADERS, 1, &block(&request("POST", "/digest", &[])));
    assert_eq!(client.response(1).0, 408);
    eventually("both are written", || lines(&path).len() == 2);
    for (line, protocol) in lines(&path).iter().zip(["HTTP/1.1", "HTTP/2.0"]) {
        let line: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!((&line["status"], &line["protocol"]), (&408.into(), &protocol.into()));
    }
}

#[test]
fn every_request_is_a_line_over_reloads_and_rotation() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("access.log");
    let engine = logging(dir.path(), "json");
    let mut socket = client::websocket(engine.address(), "/ws/counter?x=1");
    client::count(&mut socket);
    for number in 0..50 {
        engine.ask(&number.to_string());
    }
    // Its request came in one generation, its answer goes out of another.
    let mut digest = client::connect(engine.address());
    let head = "POST /digest HTTP/1.1\r\nHost: x\r\nUser-Agent: half\r\nContent-Length: 4\r\nConnection: close\r\n\r\nab";
    digest.write_all(head.as_bytes()).expect("write");
    eventually("it is there", || engine.status()["active_connections"] == 2);
    eventually("the lines are written", || lines(&path).len() == 50);
    let rotated = dir.path().join("access.log.1");
    std::fs::rename(&path, &rotated).expect("rotate");
    let verdict = engine.reload_well();
    assert_eq!(verdict["migrated_connections"], 2, "{verdict}");
    digest.write_all(b"cd").expect("write");
    let mut answer = String::new();
    digest.read_to_string(&mut answer).expect("read");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    socket.close(None).expect("close");
    while socket.read().is_ok() {}
    eventually("the new file has the others", || lines(&path).len() == 2);
    assert_eq!(lines(&rotated).len(), 50);
    let parsed = |path: &Path| -> Vec<Value> {
        lines(path).iter().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    for line in parsed(&rotated) {
        assert_eq!((&line["method"], &line["status"]), (&"GET".into(), &200.into()), "{line}");
        assert!(line["target"].as_str().expect("target").starts_with("/id?id="), "{line}");
        assert_eq!((&line["client"], &line["generation"]), (&"127.0.0.1".into(), &1.into()));
    }
    let later = parsed(&path);
    let of = |status: u64| later.iter().find(|line| line["status"] == status).expect("a line");
    assert_eq!((&of(200)["target"], &of(200)["user_agent"]), (&"/digest".into(), &"half".into()));
    assert_eq!(
        (&of(101)["target"], &of(101)["generation"]),
        (&"/ws/counter?x=1".into(), &2.into())
    );
}

#[test]
fn what_a_client_sends_stays_in_its_field() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("access.log");
    let mut engine = logging(dir.path(), "combined");
    let request = "GET /id?id=1%0a HTTP/1.1\r\nHost: x\r\nReferer: a\" \"b\tc\r\nUser-Agent: \\\u{fc}\r\nConnection: close\r\n\r\n";
    ask(&engine, request);
    // A client that goes away in the middle of its answer.
    let mut gone = client::connect(engine.address());
    gone.write_all(b"GET /stream?chunks=100&interval_ms=50 HTTP/1.1\r\nHost: x\r\n\r\n")
        .expect("write");
    gone.read_exact(&mut [0; 20]).expect("an answer");
    drop(gone);
    // What has not been written when the service stops is written then.
    eventually("it is gone", || engine.status()["active_connections"] == 0);
    ask(&engine, "GET /no-such HTTP/1.0\r\nHost: x\r\n\r\n");
    assert!(engine.zdt(&["stop"]).status.success());
    assert!(engine.wait().success());
    let lines = lines(&path);
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines.iter().all(|line| line.matches('"').count() == 6), "{lines:?}");
    let first = lines.iter().find(|line| line.contains("/id")).expect("a line");
    assert!(first.contains(r#""GET /id?id=1%0a HTTP/1.1" 200 "#), "{first}");
    assert!(first.ends_with(r#""a\x22 \x22b\x09c" "\x5c\xc3\xbc""#), "{first}");
    assert!(lines.iter().any(|line| line.contains("\"GET /no-such HTTP/1.0\" 404 ")), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("\"GET /stream?")), "{lines:?}");
}

#[test]
fn a_log_that_cannot_be_opened_fails_the_reload_and_a_full_disk_only_loses_lines() {
    let engine = Engine::start(Options::default());
    engine.configure("[access_log]\nformat = \"json\"\nfile = \"/nonexistent/access.log\"\n");
    let verdict = engine.reload();
    assert_eq!(verdict["outcome"], "failed_before_flip", "{verdict}");
    assert!(verdict["error"].as_str().expect("error").contains("access_log.file"), "{verdict}");
    engine.configure("[access_log]\nformat = \"json\"\nfile = \"/dev/full\"\n");
    engine.reload_well();
    for number in 0..30 {
        engine.ask(&number.to_string());
    }
    engine.reload_well();
    assert_eq!(engine.status()["status"], "healthy");
}
