//! What is passed on, what is not, and what clients are told about upstreams that misbehave.

use std::io::{Read, Write};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::upstream::{self, Upstream};
use super::{ask_raw, begin, gateway, gateway_for, get, read_answer};
use crate::lab::client::ReadOn;
use crate::lab::{PATIENCE, client, eventually};
use crate::supervisor::engine::{Engine, Options};

#[test]
fn requests_and_answers_pass() {
    let upstream = Upstream::start("app");
    let engine = gateway(&[&upstream], "workers = 1");
    let address = engine.address();
    // One client connection, one upstream connection.
    let mut stream = client::connect(address);
    for number in 0..20 {
        write!(stream, "GET /n?{number} HTTP/1.1\r\nHost: test\r\n\r\n").expect("write");
        assert_eq!(read_answer(&mut stream).text(), format!("app /n?{number}\n"));
    }
    assert_eq!((upstream.requests(), upstream.connections()), (20, 1));
    // Pipelined ones are answered in their order.
    let all: String = (0..5).map(|n| format!("GET /p{n} HTTP/1.1\r\nHost: test\r\n\r\n")).collect();
    stream.write_all(all.as_bytes()).expect("write");
    let mut text = String::new();
    while text.matches("app /p").count() < 5 {
        let mut piece = [0; 4096];
        let count = stream.read_on(&mut piece).expect("read");
        text.push_str(std::str::from_utf8(&piece[..count]).expect("text"));
    }
    let order: Vec<usize> = (0..5).filter_map(|n| text.find(&format!("app /p{n}"))).collect();
    assert!(order.len() == 5 && order.is_sorted(), "{text}");
    // HEAD has a length and no body; a body with a length, and one in chunks, arrive whole.
    let head = ask_raw(address, "HEAD /h HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    assert!(head.head.contains("Content-Length: 7") && head.body.is_empty(), "{head:?}");
    let sized =
        "POST /sum HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc";
    let chunked = "POST /sum HTTP/1.1\r\nHost: test\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n";
    assert_eq!(ask_raw(address, sized).body, ask_raw(address, chunked).body);
    // HTTP/1.0 gets no chunks.
    let old = ask_raw(address, "GET /trailers HTTP/1.0\r\n\r\n");
    assert_eq!((old.text().as_str(), old.head.contains("chunked")), ("ok", false), "{old:?}");
}

#[test]
fn heads_lose_what_concerns_one_connection_only() {
    let upstream = Upstream::start("app");
    let engine = gateway(&[&upstream], "workers = 1");
    let address = engine.address();
    ask_raw(
        address,
        "GET /a HTTP/1.1\r\nHost: shop.example\r\nConnection: close, X-Private\r\nX-Private: 1\r\n\
         X-Forwarded-For: 203.0.113.9\r\nTE: trailers\r\nX-Public: 2\r\n\r\n",
    );
    let seen = upstream.seen().remove(0);
    for line in [
        "Host: shop.example",
        "X-Public: 2",
        "X-Forwarded-For: 203.0.113.9, 127.0.0.1",
        "Via: 1.1 zdt",
    ] {
        assert!(seen.contains(&format!("\r\n{line}\r\n")), "{line} is missing: {seen}");
    }
    assert!(!seen.contains("X-Private") && !seen.contains("TE:"), "{seen}");
    let hop = get(address, "/hop");
    assert!(hop.head.contains("X-Public: 2") && !hop.head.contains("X-Private"), "{hop:?}");
    assert!(!hop.head.contains("Keep-Alive"), "{hop:?}");
    let hints = get(address, "/hints");
    assert_eq!(hints.status, 103);
    assert!(
        hints.text().starts_with("HTTP/1.1 200 OK") && hints.text().ends_with("ok"),
        "{hints:?}"
    );
    let trailers = get(address, "/trailers");
    assert_eq!(trailers.text(), "2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n");
    assert_eq!(get(address, "/until-close").text(), "d\r\nuntil the end\r\n0\r\n\r\n");
}

#[test]
fn misbehaving_upstreams_get_their_clients_a_clear_answer() {
    let upstream = Upstream::start("app");
    let engine = gateway(&[&upstream], "workers = 1\n[gateway]\nresponse_timeout_ms = 300");
    let address = engine.address();
    for (target, why) in [
        ("/die/silent", "closed the connection before it answered"),
        ("/die/head", "closed the connection before it answered"),
        ("/nonsense", "malformed status line"),
        ("/two-lengths", "Content-Length appears more than once"),
        ("/length-and-chunks", "both Content-Length and Transfer-Encoding"),
    ] {
        let answer = get(address, target);
        assert_eq!(answer.status, 502, "{target}: {answer:?}");
        assert!(answer.text().contains(why), "{target}: {answer:?}");
        // An upstream that fails again and again is left alone for a moment.
        eventually("the upstream is used again", || get(address, "/ok").status == 200);
    }
    let late = get(address, "/never");
    assert_eq!((late.status, late.text().contains("within 300 ms")), (504, true), "{late:?}");
    // What has begun can only be cut off, visibly.
    let cut = get(address, "/die/body");
    assert!(cut.head.contains("Content-Length: 100") && cut.body.len() == 10, "{cut:?}");
    let cut = get(address, "/die/chunk");
    assert!(!cut.text().ends_with("0\r\n\r\n"), "{cut:?}");
    // An answer and a second one behind it: the second one reaches nobody.
    let mut stream = begin(address, "GET /too-much HTTP/1.1\r\nHost: test");
    assert_eq!(read_answer(&mut stream).text(), "ok");
    write!(stream, "GET /next HTTP/1.1\r\nHost: test\r\n\r\n").expect("write");
    assert_eq!(read_answer(&mut stream).text(), "app /next\n");
    // One that comes byte by byte.
    let dripped = get(address, "/drip");
    let whole = "3\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 1\r\n\r\n";
    assert_eq!((dripped.status, dripped.text().as_str()), (200, whole), "{dripped:?}");
    // An answer before the body has been sent.
    let mut early = begin(address, "POST /early HTTP/1.1\r\nHost: test\r\nContent-Length: 0");
    assert_eq!(read_answer(&mut early).status, 413);
}

#[test]
fn requests_are_repeated_only_if_that_does_no_harm() {
    let upstream = Upstream::start("app");
    let engine = gateway(&[&upstream], "workers = 1");
    let address = engine.address();
    let ask = |method: &str, more: &str| {
        let before = upstream.requests();
        let request = format!(
            "{method} /die/silent HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{more}Content-Length: 2\r\n\r\nhi"
        );
        let answer = ask_raw(address, &request);
        assert_eq!(answer.status, 502, "{answer:?}");
        let count = upstream.requests() - before;
        eventually("the upstream is used again", || get(address, "/ok").status == 200);
        count
    };
    assert_eq!(ask("POST", ""), 1, "it may have reached the application");
    assert!(ask("PUT", "") > 1);
    assert!(ask("POST", "Idempotency-Key: 7\r\n") > 1);
    // Never again after a byte of the answer.
    let before = upstream.requests();
    assert_eq!(get(address, "/die/head").status, 502);
    assert_eq!(upstream.requests() - before, 1);
}

#[test]
fn the_least_loaded_upstream_is_asked_and_one_that_is_down_is_not() {
    let (one, two) = (Upstream::start("one"), Upstream::start("two"));
    let engine = gateway(&[&one, &two], "workers = 1");
    let address = engine.address();
    let waiting: Vec<_> =
        (0..6).map(|_| begin(address, "GET /never HTTP/1.1\r\nHost: test")).collect();
    eventually("both have half", || one.requests() == 3 && two.requests() == 3);
    drop(waiting);
    one.stop();
    for _ in 0..10 {
        assert_eq!(get(address, "/x").text(), "two /x\n");
    }
}

#[test]
fn routes_are_taken_by_host_and_path_and_unix_sockets_work() {
    let (api, rest) = (Upstream::start("api"), Upstream::start("rest"));
    let dir = tempfile::tempdir().expect("tempdir");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).expect("permissions");
    let socket = dir.path().join("app.sock");
    upstream::serve_unix(&socket);
    let config = format!(
        "workers = 1\n[[route]]\npath = \"/api\"\nupstream = [{:?}]\n[[route]]\nhost = \"unix.test\"\nupstream = [\"unix:{}\"]\n",
        api.url(),
        socket.display()
    );
    let engine = gateway(&[&rest], &config);
    let address = engine.address();
    assert_eq!(get(address, "/api/1").text(), "api /api/1\n");
    assert_eq!(get(address, "/apis").text(), "rest /apis\n");
    let unix = "GET /u HTTP/1.1\r\nHost: unix.test:80\r\nConnection: close\r\n\r\n";
    assert_eq!(ask_raw(address, unix).text(), "unix /u\n");
}

#[test]
fn slow_ends_hold_bounded_memory() {
    let upstream = Upstream::start("app");
    let engine = gateway(&[&upstream], "workers = 1");
    let bytes = 64usize << 20;
    let mut stream = begin(engine.address(), &format!("GET /big?n={bytes} HTTP/1.1\r\nHost: test"));
    let mut first = [0; 100];
    stream.read_exact(&mut first).expect("read");
    // Nobody reads: the upstream must be stopped, not stored. Another client gets its answers meanwhile.
    for _ in 0..50 {
        assert_eq!(get(engine.address(), "/x").status, 200);
    }
    let worker = engine.workers(1)[0];
    let status = std::fs::read_to_string(format!("/proc/{worker}/status")).expect("status");
    let resident: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok())
        .expect("VmRSS");
    assert!(resident < 40 << 10, "{resident} KiB in the worker");
    let mut left = bytes;
    let mut piece = vec![0; 1 << 16];
    while left > 1_000 {
        let count = stream.read_on(&mut piece).expect("read");
        assert!(count > 0, "cut off with {left} bytes to come");
        left = left.saturating_sub(count);
    }
}

#[test]
fn without_an_upstream_at_the_start_the_configuration_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_zdt"))
        .args(["serve", "--service", "proxy", "--run-dir"])
        .arg(dir.path().join("run"))
        .output()
        .expect("run");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("--upstream"), "{text}");
    let unnamed: &[String] = &["http://".to_owned()];
    assert!(std::panic::catch_unwind(|| gateway_for(unnamed, "")).is_err());
}

/// The upstream closes a kept connection just before the next request is sent on it.
#[test]
fn a_request_that_meets_the_end_of_a_kept_connection_is_sent_again_as_a_whole() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    std::fs::set_permissions(dir.path(), mode(0o755)).expect("permissions");
    let socket = dir.path().join("app.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("bind");
    std::fs::set_permissions(&socket, mode(0o777)).expect("permissions");
    let mut options = Options::config("workers = 1").and("--steering", "off");
    options = options.and("--service", "proxy");
    options = options.and("--upstream", &format!("unix:{}", socket.display()));
    options.faults = "gateway.send@1=stop:2".to_owned();
    let engine = Engine::start(options);
    let answer = |upstream: &mut std::os::unix::net::UnixStream, text: &str| {
        let mut piece = [0; 1024];
        let count = upstream.read_on(&mut piece).expect("read");
        assert!(piece[..count].starts_with(b"POST /"), "{count}");
        write!(upstream, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{text}").expect("write");
    };
    let head = "POST /x HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n";
    let mut stream = client::connect(engine.address());
    stream.write_all(head.as_bytes()).expect("write");
    let (mut upstream, _) = listener.accept().expect("accept");
    answer(&mut upstream, "one");
    assert_eq!(read_answer(&mut stream).text(), "one");
    stream.write_all(head.as_bytes()).expect("write");
    let worker = Pid::from_raw(engine.workers(1)[0] as i32);
    eventually("the worker stops", || {
        let stat = std::fs::read_to_string(format!("/proc/{worker}/stat")).expect("stat");
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T"))
    });
    drop(upstream);
    kill(worker, Signal::SIGCONT).expect("signal");
    let (mut upstream, _) = listener.accept().expect("accept");
    upstream.set_read_timeout(Some(PATIENCE)).expect("time-out");
    // No byte of it had left: not even a POST is lost.
    answer(&mut upstream, "two");
    assert_eq!(read_answer(&mut stream).text(), "two");
}
