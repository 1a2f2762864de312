//! Held requests: kept while nobody can answer them, then sent in the order of their priority.

use std::io::Write;
use std::net::Shutdown;

use serde_json::Value;

use super::upstream::Upstream;
use super::{ask_raw, begin, gateway, gateway_for, get, read_answer};
use crate::lab::{client, eventually};
use crate::supervisor::engine::Engine;

/// The gateway's figures, over all workers.
pub(super) fn figure(engine: &Engine, name: &str) -> u64 {
    let status = engine.status();
    let workers = status["worker_stats"].as_object().expect("workers");
    workers.values().filter_map(|worker| worker["gateway"][name].as_u64()).sum()
}

#[test]
fn requests_wait_for_their_upstream_and_survive_reloads() {
    let upstream = Upstream::start("before");
    let engine = gateway(&[&upstream], "workers = 1\n[gateway.hold]\nreplay_concurrency = 1");
    let address = engine.address();
    assert_eq!(get(address, "/x").text(), "before /x\n");
    let place = upstream.stop();
    let mut waiting = Vec::new();
    for number in 0..10 {
        let head = format!("GET /{number} HTTP/1.1\r\nHost: test\r\nX-Priority: {}", number % 3);
        waiting.push((number, begin(address, &head)));
        eventually("it is held", || figure(&engine, "held_requests") == number + 1);
    }
    let mut post = client::connect(address);
    write!(
        post,
        "POST /sum HTTP/1.1\r\nHost: test\r\nX-Urgent: true\r\nContent-Length: 100000\r\n\r\n"
    )
    .expect("write");
    post.write_all(&[7; 100_000]).expect("write");
    eventually("it is held", || figure(&engine, "held_requests") == 11);
    // A client that goes away leaves the queue.
    let gone = begin(address, "GET /gone HTTP/1.1\r\nHost: test");
    eventually("it is held", || figure(&engine, "held_requests") == 12);
    gone.shutdown(Shutdown::Write).expect("shutdown");
    eventually("it has left", || figure(&engine, "held_requests") == 11);
    drop(gone);

    assert_eq!(engine.reload_well()["drained_connections"], 0);
    assert_eq!(figure(&engine, "held_requests"), 11);
    let oldest = figure(&engine, "oldest_age_ms");
    assert!(oldest > 0, "the age came along");

    let upstream = Upstream::start_at("after", place);
    for (number, mut stream) in waiting {
        assert_eq!(read_answer(&mut stream).text(), format!("after /{number}\n"));
    }
    assert!(read_answer(&mut post).text().starts_with("100000 "));
    // The most urgent first. (Within a priority the order is that of the handoff.)
    let order: Vec<usize> = upstream
        .seen()
        .iter()
        .map(|text| text.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned())
        .map(|name| name.parse::<usize>().map_or(7, |number| number % 3))
        .collect();
    assert_eq!(order.len(), 11);
    assert!(order.is_sorted_by(|first, second| first >= second), "{order:?}");
    assert_eq!(figure(&engine, "held_requests"), 0);
}

#[test]
fn bounds_are_answered_with_503_and_when_to_come_again() {
    let upstream = Upstream::start("app");
    let config = "workers = 1\n[gateway.hold]\nrequests = 2\ntime_ms = 400";
    let engine = gateway(&[&upstream], config);
    let address = engine.address();
    upstream.stop();
    let mut first: Vec<_> =
        (0..2).map(|_| begin(address, "GET / HTTP/1.1\r\nHost: test")).collect();
    eventually("they are held", || figure(&engine, "held_requests") == 2);
    let full = get(address, "/");
    assert_eq!(full.status, 503, "{full:?}");
    assert!(full.head.contains("Retry-After: ") && full.text().contains("no more"), "{full:?}");
    for stream in &mut first {
        let late = read_answer(stream);
        assert_eq!((late.status, late.text().contains("in time")), (503, true), "{late:?}");
    }
    assert_eq!((figure(&engine, "expired"), figure(&engine, "rejected")), (2, 1));
}

#[test]
fn what_must_not_wait_is_told_at_once() {
    let nobody = Upstream::start("app");
    let url = nobody.url();
    nobody.stop();
    let engine = gateway_for(&[url], "workers = 1\n[gateway.hold]\nenabled = false");
    let answer = get(engine.address(), "/");
    assert_eq!(answer.status, 503, "{answer:?}");
}

#[test]
fn a_held_request_may_be_displaced_by_a_newer_one() {
    let upstream = Upstream::start("app");
    let config = "workers = 1\n[gateway.hold]\nrequests = 1\noverflow = \"oldest\"";
    let engine = gateway(&[&upstream], config);
    let place = upstream.stop();
    let mut old = begin(engine.address(), "GET /old HTTP/1.1\r\nHost: test");
    eventually("it is held", || figure(&engine, "held_total") == 1);
    let mut new = begin(engine.address(), "GET /new HTTP/1.1\r\nHost: test");
    assert_eq!(read_answer(&mut old).status, 503);
    let _upstream = Upstream::start_at("after", place);
    assert_eq!(read_answer(&mut new).text(), "after /new\n");
    let _: Value = engine.status();
    let last =
        ask_raw(engine.address(), "GET /x HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    assert_eq!(last.status, 200);
}

#[test]
fn streams_and_slow_clients_do_not_hold_up_those_behind_them() {
    let upload = "POST /x HTTP/1.1\r\nHost: test\r\nContent-Length: 9";
    for first in ["GET /begun HTTP/1.1\r\nHost: test", "GET /never HTTP/1.1\r\nHost: test", upload]
    {
        let upstream = Upstream::start("app");
        let engine = gateway(&[&upstream], "workers = 1\n[gateway.hold]\nreplay_concurrency = 2");
        assert!(engine.zdt(&["hold"]).status.success());
        let _slow: Vec<_> = (0..3)
            .map(|number| {
                let mut stream = begin(engine.address(), first);
                if first == upload {
                    stream.write_all(b"abc").expect("write");
                }
                eventually("it is held", || figure(&engine, "held_requests") == number + 1);
                stream
            })
            .collect();
        let mut last = begin(engine.address(), "GET /last HTTP/1.1\r\nHost: test");
        eventually("it is held", || figure(&engine, "held_requests") == 4);
        assert!(engine.zdt(&["resume"]).status.success());
        assert_eq!(read_answer(&mut last).text(), "app /last\n", "behind {first}");
    }
}
