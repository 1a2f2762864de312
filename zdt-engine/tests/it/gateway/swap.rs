//! The application is replaced, by zdt or by somebody else, under load; holds by command.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::Value;
use tungstenite::Message;
use tungstenite::protocol::frame::coding::CloseCode;

use super::moving::websocket_upstream;
use super::upstream::Upstream;
use super::{begin, gateway, gateway_for, get, read_answer};
use crate::lab::{client, eventually};
use crate::supervisor::engine::{Engine, Options};

/// zdt with its demo service is as good an application as any.
fn application(dir: &Path) -> String {
    format!(
        "[ -e {dir}/broken ] && exec sleep 100; exec {zdt} serve --service demo --workers 1 \
         --steering off --admin off --user root --listen 127.0.0.1:$PORT --run-dir {dir}/$PORT 2>>{dir}/log",
        zdt = env!("CARGO_BIN_EXE_zdt"),
        dir = dir.display()
    )
}

#[track_caller]
fn json(output: &std::process::Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

#[test]
fn swaps_and_reloads_under_load_lose_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let config = "workers = 2\n[gateway.app]\nstart_timeout_ms = 20000\nstop_timeout_ms = 2000\nuser = \"root\"";
    let engine = Engine::start(
        Options::config(config)
            .and("--steering", "off")
            .and("--service", "proxy")
            .and("--app", &application(dir.path())),
    );
    // The first request waits for the application's start.
    assert_eq!(get(engine.address(), "/id?id=first").text(), "first");
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..4)
        .map(|client_number| {
            let (stop, asked, address) = (Arc::clone(&stop), Arc::clone(&asked), engine.address());
            std::thread::spawn(move || {
                let mut stream = client::connect(address);
                let mut number = 0;
                while !stop.load(Ordering::SeqCst) {
                    number += 1;
                    let id = format!("{client_number}-{number}");
                    let request = format!("GET /id?id={id} HTTP/1.1\r\nHost: test\r\n\r\n");
                    std::io::Write::write_all(&mut stream, request.as_bytes()).expect("write");
                    let answer = read_answer(&mut stream);
                    assert_eq!((answer.status, answer.text()), (200, id), "{answer:?}");
                    asked.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    for _ in 0..3 {
        let before = asked.load(Ordering::SeqCst);
        let swapped = json(&engine.zdt(&["reload", "--app", "--json"]));
        assert_eq!(swapped["swap_successful"], true, "{swapped}");
        engine.reload_well();
        eventually("the clients go on", || asked.load(Ordering::SeqCst) > before + 20);
    }
    // A new one that never answers changes nothing.
    std::fs::write(dir.path().join("broken"), "").expect("write");
    std::fs::write(engine.run_dir().join("note"), "").expect("write");
    engine.configure("workers = 2\n[gateway.app]\nstart_timeout_ms = 500\nstop_timeout_ms = 2000\nuser = \"root\"");
    engine.reload_well();
    let failed = engine.zdt(&["reload", "--app", "--json"]);
    let why = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(!failed.status.success() && why.contains("nothing has changed"), "{failed:?}");
    let before = asked.load(Ordering::SeqCst);
    eventually("the clients go on", || asked.load(Ordering::SeqCst) > before + 20);
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.join().expect("a client");
    }
    assert!(engine.zdt(&["stop", "--now"]).status.success());
}

#[test]
fn an_application_that_cannot_be_started_is_tried_less_and_less_until_it_is_another() {
    let dir = tempfile::tempdir().expect("tempdir");
    let config = |command: &str| {
        format!("workers = 1\n[gateway.app]\nuser = \"root\"\ncommand = '{command}'")
    };
    let engine = Engine::start(
        Options::config(&config("exec /nowhere/app"))
            .and("--steering", "off")
            .and("--service", "proxy"),
    );
    let mut held = begin(engine.address(), "GET /id?id=held HTTP/1.1\r\nHost: test");
    for said in ["code 127 (its command is not found)", "again in 1 s", "again in 2 s"] {
        eventually(said, || engine.log().contains(said));
    }
    engine.configure(&config(&application(dir.path())));
    engine.reload_well();
    assert_eq!(read_answer(&mut held).text(), "held");
    assert!(engine.zdt(&["stop", "--now"]).status.success());
}

#[test]
fn upstreams_are_replaced_by_command_and_requests_held() {
    let (one, two) = (Upstream::start("one"), Upstream::start("two"));
    let engine = gateway(&[&one], "workers = 2\n[gateway.app]\nstart_timeout_ms = 500");
    let address = engine.address();
    assert_eq!(get(address, "/a").text(), "one /a\n");
    let unfinished = begin(address, "GET /never HTTP/1.1\r\nHost: test");
    eventually("it is there", || one.requests() == 2);
    let swapped = json(&engine.zdt(&["upstream", "set", "default", &two.url(), "--json"]));
    assert_eq!(swapped["replaced"][0], one.url(), "{swapped}");
    assert_eq!(get(address, "/b").text(), "two /b\n");
    engine.reload_well();
    assert_eq!(get(address, "/c").text(), "two /c\n", "it lasts over a reload");
    assert_eq!(one.requests(), 2, "what was in flight stays there");
    drop(unfinished.shutdown(std::net::Shutdown::Both));
    for (args, why) in [
        (vec!["upstream", "set", "nowhere", "http://127.0.0.1:1"], "no route \"nowhere\""),
        (vec!["upstream", "set", "default", "http://127.0.0.1:1"], "nothing has changed"),
        (vec!["hold", "nowhere"], "there are: default"),
    ] {
        let output = engine.zdt(&args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(why), "{args:?}: {output:?}");
    }

    assert_eq!(json(&engine.zdt(&["hold", "--json"]))[0]["held"], true);
    let mut held = begin(address, "GET /held HTTP/1.1\r\nHost: test");
    let stats = || json(&engine.zdt(&["queue", "stats", "--json"]));
    eventually("it is held", || stats()["held_requests"] == 1);
    engine.reload_well();
    assert_eq!(stats()["held_requests"], 1, "a hold lasts over a reload, too");
    assert!(engine.zdt(&["resume"]).status.success());
    assert_eq!(read_answer(&mut held).text(), "two /held\n");
    assert!(engine.zdt(&["hold", "default"]).status.success());
    let mut given_up = begin(address, "GET /flushed HTTP/1.1\r\nHost: test");
    eventually("it is held", || stats()["held_requests"] == 1);
    let flushed = json(&engine.zdt(&["queue", "flush", "--json"]));
    assert_eq!(
        (&flushed["flushed_requests"], &flushed["buffered_requests"]),
        (&1.into(), &0.into())
    );
    assert_eq!(read_answer(&mut given_up).status, 503);
    assert_eq!(stats()["flushed"], 1);
    let nothing = json(&engine.zdt(&["queue", "flush", "default", "--json"]));
    assert_eq!(nothing["flushed_requests"], 0, "{nothing}");
}

#[test]
fn websockets_go_on_with_the_new_application_or_are_closed_in_good_order() {
    for policy in ["reconnect", "drain"] {
        let config = format!(
            "workers = 1\n[gateway.app]\nstop_timeout_ms = 1000\nwebsockets = \"{policy}\""
        );
        let engine = gateway_for(&[websocket_upstream()], &config);
        let mut clients: Vec<_> =
            (0..5).map(|_| client::websocket(engine.address(), "/any")).collect();
        for client in &mut clients {
            client.send(Message::text("a")).expect("send");
            assert_eq!(client.read().expect("read"), Message::text("1 a"));
        }
        let url = websocket_upstream();
        assert!(engine.zdt(&["upstream", "set", "default", &url]).status.success());
        if policy == "drain" {
            for client in &mut clients {
                match client.read().expect("a close frame") {
                    Message::Close(Some(frame)) => assert_eq!(frame.code, CloseCode::Restart),
                    other => panic!("{other:?}"),
                }
            }
            continue;
        }
        let reconnected = || {
            let stats = json(&engine.zdt(&["queue", "stats", "--json"]));
            stats["reconnected"].as_u64().expect("a number")
        };
        eventually("all have reconnected", || reconnected() == 5);
        for client in &mut clients {
            client.send(Message::text("b")).expect("send");
            assert_eq!(client.read().expect("read"), Message::text("1 b"), "a new application");
        }
    }
}
