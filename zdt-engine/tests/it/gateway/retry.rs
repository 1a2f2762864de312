//! Requests that are sent again, and those that are not: applications that are killed under load, connections that
//! were kept for too long, upstreams that accept and never answer.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::moving::websocket_upstream;
use super::takeover::Scene;
use super::upstream::Upstream;
use super::{begin, gateway, gateway_for, gateway_with_faults, get, read_answer};
use crate::lab::client::ReadOn;
use crate::lab::{client, eventually};

/// Accepts, reads something, and ends without a word.
fn dying() -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    let count = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&count);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _count = stream.read_on(&mut [0; 4096]);
            seen.fetch_add(1, Ordering::SeqCst);
        }
    });
    (url, count)
}

#[test]
fn no_get_is_lost_when_the_application_is_killed() {
    let Some(scene) = Scene::new("gateway::retry", "", "") else { return };
    let address = scene.engine.address();
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (0..6)
        .map(|name| {
            let (stop, asked) = (Arc::clone(&stop), Arc::clone(&asked));
            std::thread::spawn(move || {
                let mut stream = client::connect(address);
                let mut number = 0;
                while !stop.load(Ordering::SeqCst) {
                    number += 1;
                    let id = format!("/{name}-{number}");
                    write!(stream, "GET {id} HTTP/1.1\r\nHost: test\r\n\r\n").expect("write");
                    let answer = read_answer(&mut stream);
                    assert_eq!((answer.status, answer.text()), (200, id), "{answer:?}");
                    asked.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let mut last = 0;
    for _ in 0..4 {
        let before = asked.load(Ordering::SeqCst);
        eventually("the clients go on", || asked.load(Ordering::SeqCst) > before + 50);
        let pid = scene.serving();
        assert_ne!(pid, last, "another one");
        last = pid;
        kill(Pid::from_raw(pid as i32), Signal::SIGKILL).expect("kill");
    }
    let before = asked.load(Ordering::SeqCst);
    eventually("the clients go on", || asked.load(Ordering::SeqCst) > before + 50);
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.join().expect("no GET was lost");
    }
    scene.end();
}

/// More kept connections than there are attempts, and all of them closed just before the next request.
#[test]
fn kept_connections_that_have_ended_use_up_no_attempts() {
    const KEPT: usize = 6;
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    let faults = format!("gateway.send@1=stop:{}", KEPT + 1);
    let engine = gateway_with_faults(&[url], "workers = 1", &faults);
    let mut clients: Vec<TcpStream> =
        (0..KEPT).map(|_| begin(engine.address(), "GET /a HTTP/1.1\r\nHost: test")).collect();
    let mut kept: Vec<TcpStream> =
        (0..KEPT).map(|_| listener.accept().expect("accept").0).collect();
    for stream in &mut kept {
        answer(stream, "one");
    }
    for stream in &mut clients {
        assert_eq!(read_answer(stream).text(), "one");
    }
    clients[0].write_all(b"GET /b HTTP/1.1\r\nHost: test\r\n\r\n").expect("write");
    let worker = engine.workers(1)[0];
    eventually("the worker stops", || {
        let stat = std::fs::read_to_string(format!("/proc/{worker}/stat")).expect("stat");
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T"))
    });
    drop(kept);
    kill(Pid::from_raw(worker as i32), Signal::SIGCONT).expect("signal");
    let (mut fresh, _) = listener.accept().expect("accept");
    answer(&mut fresh, "two");
    assert_eq!(read_answer(&mut clients[0]).text(), "two");
    // None of it counts against the upstream, which has been there all the time.
    clients[1].write_all(b"GET /c HTTP/1.1\r\nHost: test\r\n\r\n").expect("write");
    answer(&mut fresh, "three");
    assert_eq!(read_answer(&mut clients[1]).text(), "three");
}

#[track_caller]
fn answer(upstream: &mut TcpStream, text: &str) {
    let count = upstream.read_on(&mut [0; 1024]).expect("read");
    assert!(count > 0, "a request");
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", text.len());
    write!(upstream, "{head}{text}").expect("write");
}

/// It has always less to do than the others, because it never does anything.
#[test]
fn an_upstream_that_accepts_and_dies_costs_no_get_while_there_is_another() {
    let good = Upstream::start("good");
    let (url, deaths) = dying();
    let engine = gateway_for(&[url, good.url()], "workers = 1");
    for number in 0..20 {
        let answer = get(engine.address(), &format!("/{number}"));
        assert_eq!(answer.text(), format!("good /{number}\n"));
    }
    assert!(deaths.load(Ordering::SeqCst) > 0, "it was asked");
}

#[test]
fn an_upstream_that_always_dies_ends_in_502_and_is_left_alone() {
    let (url, deaths) = dying();
    let engine = gateway_for(&[url], "workers = 1");
    let answer = get(engine.address(), "/x");
    assert_eq!(answer.status, 502, "{answer:?}");
    assert!(
        answer.text().contains("closed the connection before it answered, again"),
        "{answer:?}"
    );
    assert_eq!(deaths.load(Ordering::SeqCst), 3);
    let stats = engine.zdt(&["queue", "stats", "--json"]);
    let stats: serde_json::Value = serde_json::from_slice(&stats.stdout).expect("JSON");
    assert_eq!(stats["retries"], 2, "{stats}");
    // It counts as down: the next one is held first, and gets its answer all the same.
    let held = begin(engine.address(), "GET /y HTTP/1.1\r\nHost: test");
    let mut held = held;
    assert_eq!(read_answer(&mut held).status, 502);
    let stats = engine.zdt(&["queue", "stats", "--json"]);
    let stats: serde_json::Value = serde_json::from_slice(&stats.stdout).expect("JSON");
    assert!(stats["held_total"].as_u64() > Some(0), "{stats}");
}

#[test]
fn nothing_is_sent_again_after_an_interim_answer() {
    let upstream = Upstream::start("app");
    let engine = gateway(&[&upstream], "workers = 1");
    let answer = get(engine.address(), "/die/interim");
    assert!(answer.status == 103 && answer.text().starts_with("HTTP/1.1 502 "), "{answer:?}");
    assert_eq!(upstream.requests(), 1);
}

/// An upstream for a WebSocket's second handshake that does not agree to it.
fn disagreeing(how: &'static str) -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    let count = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&count);
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for mut stream in listener.incoming().flatten() {
            if stream.read_on(&mut [0; 4096]).is_ok_and(|bytes| bytes > 0) {
                seen.fetch_add(1, Ordering::SeqCst);
            }
            let _ = stream.write_all(how.as_bytes());
            if how.is_empty() {
                continue; // it dies
            }
            open.push(stream);
        }
    });
    (url, count)
}

#[test]
fn a_websocket_whose_next_application_does_not_agree_ends() {
    for (how, most) in [
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", 1),
        ("", 3),
        // Half a head, and then nothing.
        ("HTTP/1.1 101 Switching", 1),
    ] {
        let config = "workers = 1\n[gateway]\nresponse_timeout_ms = 300\n\
                      [gateway.app]\nstop_timeout_ms = 4000\nwebsockets = \"reconnect\"";
        let engine = gateway_for(&[websocket_upstream()], config);
        let mut client = client::websocket(engine.address(), "/any");
        client.send(tungstenite::Message::text("a")).expect("send");
        assert_eq!(client.read().expect("read"), tungstenite::Message::text("1 a"));
        let (url, asked) = disagreeing(how);
        assert!(engine.zdt(&["upstream", "set", "default", &url]).status.success());
        match client.read() {
            Err(tungstenite::Error::Io(error)) => {
                assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "{how:?}: silence");
            }
            Err(_) => {}
            Ok(message) => panic!("{how:?}: {message:?}"),
        }
        assert_eq!(asked.load(Ordering::SeqCst), most, "{how:?}");
    }
}
