//! Two builds with different state formats: an upgrade keeps every state, and so does the way back.
//!
//! `cargo xtask test` builds the other one, and names it in `ZDT_TEST_FORMAT_NEXT`.

use std::path::{Path, PathBuf};

use tungstenite::Message;
use zdt_engine::state;

use crate::lab::worker::Options as WorkerOptions;
use crate::lab::{Pair, TestWorker, client};
use crate::skip::skip;
use crate::supervisor::engine::{Engine, Options};

fn next_build(test: &str) -> Option<PathBuf> {
    let binary = std::env::var_os("ZDT_TEST_FORMAT_NEXT").map(PathBuf::from);
    if binary.is_none() {
        skip(test, "needs ZDT_TEST_FORMAT_NEXT, which `cargo xtask test` sets");
    }
    binary
}

fn worker(generation: u32, binary: Option<&Path>) -> TestWorker {
    TestWorker::spawn_with(generation, &WorkerOptions { binary, ..WorkerOptions::default() })
}

/// Hands connections in many states from one build to the other, and back.
fn there_and_back(blue: Option<&Path>, green: Option<&Path>) {
    use std::io::{Read, Write};
    let mut blue = worker(1, blue);
    let address = blue.listen();
    let mut counters: Vec<_> = (0..20).map(|_| client::websocket(address, "/ws/counter")).collect();
    for counter in &mut counters {
        assert_eq!(client::count(counter), (1, 1));
    }
    // In the middle of a head, of a body, and of a message.
    let mut head = client::connect(address);
    head.write_all(b"GET /id?id=hea").expect("write");
    let mut body = client::connect(address);
    body.write_all(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n01234")
        .expect("write");
    let mut echo = client::websocket(address, "/ws/echo");
    client::echo(&mut echo, Message::text("before"));
    echo.get_mut().write_all(&[0x01, 0x85, 0, 0, 0, 0, b'h', b'e']).expect("write");

    let mut pair = Pair::join(blue, worker(2, green));
    let report = pair.hand_off();
    assert_eq!((report.moved, report.remaining), (23, 0), "{report:?}");
    for counter in &mut counters {
        assert_eq!(client::count(counter), (2, 2));
    }
    head.write_all(b"d HTTP/1.1\r\nHost").expect("write");
    body.write_all(b"567").expect("write");
    echo.get_mut().write_all(b"l").expect("write");

    let report = pair.roll_back();
    assert_eq!((report.moved, report.remaining), (23, 0), "{report:?}");
    for counter in &mut counters {
        assert_eq!(client::count(counter), (3, 1));
    }
    head.write_all(b": x\r\nConnection: close\r\n\r\n").expect("write");
    let mut answer = String::new();
    head.read_to_string(&mut answer).expect("read");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("head"), "{answer:?}");
    body.write_all(b"89").expect("write");
    body.shutdown(std::net::Shutdown::Write).expect("shutdown");
    answer.clear();
    body.read_to_string(&mut answer).expect("read");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
    let echoed: String = answer.split("\r\n").filter(|line| line.len() <= 10).collect();
    let digits: String = echoed.chars().filter(char::is_ascii_digit).collect();
    assert!(digits.contains("01234") && digits.contains("89"), "{answer:?}");
    echo.get_mut().write_all(b"lo\x80\x80\0\0\0\0").expect("write");
    assert_eq!(echo.read().expect("read"), Message::text("hello"));
}

#[test]
fn the_next_format_takes_over_and_gives_back() {
    let test = "system_formats::the_next_format_takes_over_and_gives_back";
    let Some(next) = next_build(test) else { return };
    there_and_back(None, Some(&next));
}

#[test]
fn the_next_format_is_replaced_by_this_one() {
    let test = "system_formats::the_next_format_is_replaced_by_this_one";
    let Some(next) = next_build(test) else { return };
    there_and_back(Some(&next), None);
}

#[test]
fn a_reload_into_the_next_build_and_back() {
    let Some(next) = next_build("system_formats::a_reload_into_the_next_build_and_back") else {
        return;
    };
    let engine = Engine::start(Options::default());
    let mut clients = engine.clients(20);
    let executable = |path: &Path| format!("executable = {:?}\n", path.display().to_string());
    let this = Path::new(env!("CARGO_BIN_EXE_zdt"));
    let steps = [(2, next.as_path()), (3, next.as_path()), (4, this), (5, &next), (6, this)];
    for (generation, binary) in steps {
        engine.configure(&executable(binary));
        let verdict = engine.reload_well();
        assert_eq!(verdict["migrated_connections"], 20, "{verdict}");
        clients.count_all_in(generation);
    }
}

#[test]
fn the_other_build_is_another_format() {
    let Some(next) = next_build("system_formats::the_other_build_is_another_format") else {
        return;
    };
    let formats = |binary: Option<&Path>| {
        let mut worker = worker(1, binary);
        worker.wait("Hello", |message| match message {
            zdt_engine::control::FromWorker::Hello(hello) => {
                Some((hello.state_reads, hello.state_writes))
            }
            _ => None,
        })
    };
    assert_eq!(formats(None), (state::FORMAT_READS, state::FORMAT_WRITES));
    let (reads, writes) = formats(Some(&next));
    assert_eq!(reads.newest, state::FORMAT_READS.newest + 1);
    assert_eq!(writes.newest, state::FORMAT_WRITES.newest + 1);
    assert_eq!(writes.newest_common(state::FORMAT_READS), Some(state::FORMAT_READS.newest));
}
