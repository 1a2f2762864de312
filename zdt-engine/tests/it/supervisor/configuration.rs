//! The configuration as a user meets it: `zdt config`, mistakes, what a reload changes and what not.

use std::io::{Read, Write};
use std::process::{Command, Output};

use nix::sys::signal::Signal;
use serde_json::Value;
use tungstenite::Message;

use super::engine::{Engine, Options};
use crate::lab::{client, eventually};

fn zdt(environment: &[(&str, &str)], args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zdt"));
    command.env_clear().envs(environment.iter().copied()).args(args);
    command.output().expect("run zdt")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `zdt config show | head`.
#[test]
fn whoever_has_seen_enough_closes_the_pipe() {
    let (reader, writer) = std::io::pipe().expect("pipe");
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_zdt"));
    let output = command.env_clear().args(["config", "show"]).stdout(writer).output().expect("run");
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
}

#[test]
fn check_names_file_line_and_key() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("zdt.toml");
    let config = path.to_str().expect("path");
    std::fs::write(&path, "workers = 2\n\n[limits]\nmax_conections = 5\n").expect("write");
    let output = zdt(&[], &["config", "check", "--config", config]);
    assert_eq!(output.status.code(), Some(1));
    let expected = format!("{config}:4: ");
    assert!(stderr(&output).contains(&expected), "{output:?}");
    assert!(stderr(&output).contains("did you mean `limits.max_connections`?"), "{output:?}");

    std::fs::write(&path, "workers = 2\n").expect("write");
    let output = zdt(&[], &["config", "check", "--config", config]);
    assert!(output.status.success(), "{output:?}");
    for (name, value, meant) in [
        ("WORKER_COUNTS", "3", "WORKER_COUNT"),
        ("ZDT_STRATEGY", "rolling", "there is no such variable"),
        ("WORKER_COUNT", "three", "whole number"),
    ] {
        let output = zdt(&[(name, value)], &["config", "check", "--config", config]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(stderr(&output).contains(name) && stderr(&output).contains(meant), "{output:?}");
    }
    for (flag, value, meant) in [
        ("--service", "no-such", "no service"),
        ("--user", "no-such-user", "no-such-user"),
        ("--workers", "1000", "--workers: workers: at most"),
        ("--upstream", "http://127.0.0.1:1", "add --service proxy"),
        ("--app", "true", "add --service proxy"),
        ("--admin", "0.0.0.0:9180", "admin_token_file"),
    ] {
        // Who is not root runs its workers itself.
        if flag == "--user" && !nix::unistd::geteuid().is_root() {
            continue;
        }
        let output = zdt(&[], &["config", "check", "--json", flag, value]);
        let result: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!((output.status.code(), &result["valid"]), (Some(1), &false.into()));
        assert!(result["error"].as_str().expect("text").contains(meant), "{result}");
    }
}

#[test]
fn show_says_where_each_value_came_from_and_keeps_secrets() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("zdt.toml");
    std::fs::write(&path, "backlog = 7\nworkers = 2\n").expect("write");
    let config = path.to_str().expect("path");
    let token = "correct-horse-battery-staple";
    let environment = [("WORKER_COUNT", "3"), ("ZERO_DOWNTIME_ADMIN_TOKEN", token)];
    let args = ["config", "show", "--config", config, "--user", "nobody"];
    let output = zdt(&environment, &args);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let line = |name: &str| {
        let found = text.lines().find(|line| line.split_whitespace().next() == Some(name));
        found.unwrap_or_else(|| panic!("{name} in {text}")).to_owned()
    };
    assert!(line("backlog").ends_with(&format!("= 7  # file {config}:1")), "{text}");
    assert!(line("workers").ends_with("= 3  # environment WORKER_COUNT"), "{text}");
    assert!(line("user").ends_with("= \"nobody\"  # flag --user"), "{text}");
    assert!(line("limits.max_head_bytes").ends_with("= 16384"), "{text}");
    assert!(line("admin_token").contains("\"[secret]\"") && !text.contains("horse"), "{text}");

    let output = zdt(&environment, &["config", "show", "--json", "--config", config]);
    let shown: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let backlog = shown.iter().find(|one| one["setting"] == "backlog").expect("backlog");
    assert_eq!((&backlog["value"], &backlog["source"]), (&7.into(), &"file".into()));
    assert!(!String::from_utf8_lossy(&output.stdout).contains("horse"));
}

#[test]
fn a_reload_reads_everything_again_and_says_what_needs_a_restart() {
    let engine = Engine::start(Options::default());
    let mut clients = engine.clients(3);
    engine.configure("policy = \"round-robin\"\nbacklog = 99\n");
    let verdict = engine.reload_well();
    assert_eq!(verdict["restart_required"], serde_json::json!(["policy"]), "{verdict}");
    clients.count_all_in(2);
    let run_dir = engine.run_dir();
    let run_dir = run_dir.to_str().expect("path");
    let output = zdt(&[], &["config", "show", "--running", "--json", "--run-dir", run_dir]);
    let shown: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let of = |name: &str| shown.iter().find(|one| one["setting"] == name).expect(name);
    assert_eq!((&of("backlog")["value"], &of("backlog")["source"]), (&99.into(), &"file".into()));
    assert_eq!(of("policy")["value"], "hash", "what is in force, not what is written");

    engine.configure("polizy = \"hash\"\n");
    let verdict = engine.reload();
    assert_eq!(verdict["outcome"], "failed_before_flip");
    let error = verdict["error"].as_str().expect("error");
    assert!(error.contains("zdt.toml:3: unknown key `polizy`; did you mean `policy`?"), "{error}");
    clients.count_all_in(2);
}

#[test]
fn without_zero_downtime_the_workers_drain_and_start_anew() {
    for options in [Options::plain(), Options::default()] {
        let config = "zero_downtime = false\ndrain_timeout_ms = 1500\n".to_owned();
        let engine = Engine::start(Options { config, ..options });
        let mut clients = engine.clients(3);
        let reload = engine.zdt_in_background(&["reload", "--json"]);
        eventually("the workers drain", || engine.status()["status"] == "reloading");
        // It waits in the accept queue, and is served by whoever comes.
        engine.ask("during");
        let verdict = super::engine::verdict(&super::engine::output_of(reload));
        assert_eq!(verdict["reload_successful"], true, "{verdict}");
        assert_eq!((&verdict["strategy"], &verdict["generation"]), (&"restart".into(), &2.into()));
        assert_eq!(verdict["migrated_connections"], 0, "{verdict}");
        for _ in 0..clients.len() {
            let goodbye = clients.pop().read().expect("a close");
            assert!(
                matches!(&goodbye, Message::Close(Some(frame)) if u16::from(frame.code) == 1001)
            );
        }
        engine.clients(2).count_all_in(2);
        eventually("healthy", || engine.status()["status"] == "healthy");
    }
}

#[test]
fn a_restart_that_fails_leaves_the_old_build_serving() {
    let config = "zero_downtime = false\ndrain_timeout_ms = 500\n".to_owned();
    let faults = "worker.before_ready@2=fail".to_owned();
    let engine = Engine::start(Options { config, faults, ..Options::default() });
    let verdict = engine.reload();
    assert_eq!(verdict["outcome"], "failed_before_flip", "{verdict}");
    eventually("the old build serves", || engine.status()["status"] == "healthy");
    assert_eq!(engine.status()["generation"], 1);
    engine.clients(2).count_all_in(1);
}

#[test]
fn a_plan_tells_what_a_reload_would_do() {
    let engine = Engine::start(Options::config("workers = 1\n"));
    let mut clients = engine.clients(4);
    let plan = |code: i32| {
        let output = engine.zdt(&["plan", "--json"]);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON")
    };
    let nothing = plan(0);
    assert_eq!((&nothing["ready"], &nothing["executable_changed"]), (&true.into(), &false.into()));
    assert_eq!(nothing["changes"], serde_json::json!([]));
    assert_eq!(nothing["test_migration"]["movable_connections"], 4, "{nothing}");

    let program = engine.run_dir().parent().expect("directory").join("another");
    std::fs::copy(env!("CARGO_BIN_EXE_zdt"), &program).expect("copy");
    let program = program.to_str().expect("path");
    engine
        .configure(&format!("workers = 2\npolicy = \"round-robin\"\nexecutable = \"{program}\"\n"));
    let changed = plan(0);
    assert_eq!((&changed["workers"], &changed["next_workers"]), (&1.into(), &2.into()));
    assert_eq!(
        (&changed["executable"], &changed["executable_changed"]),
        (&program.into(), &true.into())
    );
    assert_eq!(changed["restart_required"], serde_json::json!(["policy"]));
    let workers =
        serde_json::json!({ "setting": "workers", "from": 1, "to": 2, "needs_restart": false });
    assert!(changed["changes"].as_array().expect("list").contains(&workers), "{changed}");

    engine.configure("wrokers = 2\n");
    let broken = plan(1);
    assert!(broken["problems"][0].as_str().expect("text").contains("`workers`"), "{broken}");
    // None of it has changed anything.
    assert_eq!(engine.status()["generation"], 1);
    clients.count_all_in(1);
}

#[test]
fn a_test_of_the_migration_disturbs_nobody() {
    let engine = Engine::start(Options::default());
    let mut clients = engine.clients(20);
    // One in each state that a client can be in for long: head, body, answer, half a frame.
    let mut half_head = client::connect(engine.address());
    half_head.write_all(b"GET /id?id=half HTT").expect("write");
    let mut half_body = client::connect(engine.address());
    let head =
        b"POST /digest HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nConnection: close\r\n\r\nab";
    half_body.write_all(head).expect("write");
    let mut streaming = client::connect(engine.address());
    let request =
        b"GET /stream?chunks=3&interval_ms=200 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    streaming.write_all(request).expect("write");
    eventually("all are there", || engine.status()["active_connections"] == 23);
    let mut tested = 0;
    for _ in 0..20 {
        let output = engine.zdt(&["test-migration", "--json"]);
        let test: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(test["test_successful"], true, "{test}");
        assert_eq!(output.status.code(), Some(0));
        tested = tested.max(test["tested_connections"].as_u64().expect("number"));
        clients.count_all_in(1);
    }
    assert_eq!(tested, 23);
    let rest = |stream: &mut std::net::TcpStream, rest: &[u8]| {
        stream.write_all(rest).expect("write");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        answer
    };
    assert!(
        rest(&mut half_head, b"P/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ends_with("half")
    );
    let digest = "88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589";
    assert!(rest(&mut half_body, b"cd").contains(digest));
    assert!(rest(&mut streaming, b"").ends_with("0\r\n\r\n"));
    assert_eq!(engine.status()["generation"], 1);
}

#[test]
fn top_shows_rates() {
    let engine = Engine::start(Options::default());
    let mut clients = engine.clients(4);
    let top = engine.zdt_in_background(&["top", "--json", "--interval-ms", "300", "--count", "3"]);
    let mut sent = 0;
    let output = {
        // Traffic for as long as it looks.
        let mut top = top;
        while top.try_wait().expect("wait").is_none() {
            clients.count_all();
            sent += 4;
        }
        top.wait_with_output().expect("output")
    };
    assert!(output.status.success(), "{output:?}");
    let lines: Vec<Value> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(lines.len(), 3);
    for line in &lines {
        assert_eq!(
            (&line["status"], &line["connections"]),
            (&"healthy".into(), &4.into()),
            "{line}"
        );
        assert_eq!(line["workers"].as_object().map(serde_json::Map::len), Some(2), "{line}");
        let rate = line["rates"]["messages"].as_f64().expect("a rate");
        assert!(rate > 0.0 && rate < f64::from(sent) * 10.0, "{rate}, {sent} sent");
    }
}

#[test]
fn a_stopped_supervisor_is_recognised() {
    let engine = Engine::start(Options::default());
    engine.signal(Signal::SIGSTOP);
    let status = engine.zdt_in_background(&["status"]);
    let reload = engine.zdt_in_background(&["reload"]);
    let stop = engine.zdt_in_background(&["stop"]);
    for child in [status, reload, stop] {
        let output = super::engine::output_of(child);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let expected = format!("it is stopped; `kill -CONT {}`", engine.pid());
        assert!(stderr(&output).contains(&expected), "{output:?}");
    }
    engine.ask("meanwhile");
    engine.signal(Signal::SIGCONT);
}
