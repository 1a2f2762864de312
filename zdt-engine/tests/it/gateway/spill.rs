//! Large bodies of held requests on the disk: taken in, kept over reloads, replayed, bounded, gone without a trace.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::upstream::{Upstream, reserve};
use super::{begin, gateway, gateway_for, gateway_with_faults, get, read_answer};
use crate::lab::http2::{
    self, DATA, END_HEADERS, END_STREAM, Frame, HEADERS, Http2Client, RST_STREAM, WINDOW_UPDATE,
};
use crate::lab::{PATIENCE, eventually};
use crate::skip::have_root;
use crate::supervisor::engine::{Engine, Options};

const MIB: usize = 1 << 20;

/// The gateway's figures, over all workers.
fn figure(engine: &Engine, name: &str) -> u64 {
    let status = engine.status();
    let workers = status["worker_stats"].as_object().expect("workers");
    workers.values().filter_map(|worker| worker["gateway"][name].as_u64()).sum()
}

/// Waits until so much is on disk.
#[track_caller]
fn arrived(engine: &Engine, bytes: usize) {
    let deadline = Instant::now() + 3 * PATIENCE;
    while figure(engine, "spilled_bytes") < bytes as u64 {
        let status = engine.status();
        let late = Instant::now() > deadline;
        assert!(!late, "{bytes} bytes are not there: {:#}", status["worker_stats"]);
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn config(workers: u32, bytes: usize) -> String {
    format!("workers = {workers}\n[gateway.hold]\ntime_ms = 120000\nspill_bytes = {bytes}")
}

/// A gateway whose upstream is away, and where that will be.
fn away(workers: u32, bytes: usize) -> (Engine, Place) {
    let place = Place::reserve();
    (gateway_for(&[place.url()], &config(workers, bytes)), place)
}

/// Where nobody listens yet.
struct Place {
    address: SocketAddr,
    _kept: OwnedFd,
}

impl Place {
    fn reserve() -> Self {
        let (kept, address) = reserve();
        Self { address, _kept: kept }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn data(bytes: usize, seed: usize) -> Vec<u8> {
    (0..bytes).map(|at| ((at + seed) % 251) as u8).collect()
}

/// What the upstream says of a body.
fn sum(data: &[u8]) -> String {
    let sum = data.iter().fold(0u64, |sum, &byte| sum.wrapping_mul(31) + u64::from(byte));
    format!("{} {sum}\n", data.len())
}

fn post(address: SocketAddr, bytes: usize) -> TcpStream {
    let head = format!("POST /sum HTTP/1.1\r\nHost: test\r\nContent-Length: {bytes}");
    patient(begin(address, &head))
}

/// The test's upstream takes its time for what is large, on a machine that has other things to do.
fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(Duration::from_secs(120))).expect("time-out");
    stream
}

/// A part of a body in chunks.
fn send_chunks(stream: &mut TcpStream, data: &[u8]) {
    for chunk in data.chunks(77_777) {
        write!(stream, "{:x}\r\n", chunk.len()).expect("write");
        stream.write_all(chunk).expect("write");
        stream.write_all(b"\r\n").expect("write");
    }
}

/// Files of held bodies that the engine's workers have open.
fn open_files(engine: &Engine) -> usize {
    let of = |pid: &str| {
        let found = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let links = found.filter_map(|entry| fs::read_link(entry.path()).ok());
        links.filter(|path| path.to_string_lossy().contains("/spill/#")).count()
    };
    let status = engine.status();
    status["worker_stats"]
        .as_object()
        .expect("workers")
        .values()
        .map(|w| of(&w["pid"].to_string()))
        .sum()
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).expect("the directory").next().is_none()
}

#[test]
fn large_bodies_arrive_while_they_are_held_and_cross_reloads() {
    let (engine, place) = away(1, 256 * MIB);
    let address = engine.address();
    let (sized, chunked, small) = (data(40 * MIB, 0), data(9 * MIB, 7), data(20_000, 3));
    let mut first = post(address, sized.len());
    let head = "POST /sum HTTP/1.1\r\nHost: test\r\nX-Priority: 5\r\nTransfer-Encoding: chunked";
    let mut second = patient(begin(address, head));
    let mut third = post(address, small.len());
    third.write_all(&small).expect("write");
    // A part before each reload, and one behind the last: the clients would be stopped if nobody took it.
    let thirds = |data: &[u8], turn: usize| (data.len() / 3 * turn, data.len() / 3 * (turn + 1));
    for turn in 0..2 {
        let (from, to) = thirds(&sized, turn);
        first.write_all(&sized[from..to]).expect("write");
        let (from, to) = thirds(&chunked, turn);
        send_chunks(&mut second, &chunked[from..to]);
        let so_far = (turn + 1) * (sized.len() + chunked.len()) / 3 - 300_000;
        arrived(&engine, so_far);
        let verdict = engine.reload_well();
        assert_eq!(verdict["migrated_connections"], 3, "{verdict}");
        assert_eq!(figure(&engine, "held_requests"), 3);
        assert_eq!((figure(&engine, "spilled_requests"), open_files(&engine)), (2, 2));
        assert!(figure(&engine, "spilled_bytes") >= so_far as u64, "it came along");
    }
    first.write_all(&sized[thirds(&sized, 2).0..]).expect("write");
    send_chunks(&mut second, &chunked[thirds(&chunked, 2).0..]);
    second.write_all(b"0\r\n\r\n").expect("write");
    arrived(&engine, sized.len() + chunked.len() - 200_000);
    assert!(is_empty(&engine.run_dir().join("spill")), "files have no names");
    let upstream = Upstream::start_at("after", place.address);
    assert_eq!(read_answer(&mut first).text(), sum(&sized));
    assert_eq!(read_answer(&mut second).text(), sum(&chunked));
    assert_eq!(read_answer(&mut third).text(), sum(&small));
    assert_eq!(upstream.requests(), 3, "each once");
    eventually("the files are gone", || open_files(&engine) == 0);
    assert_eq!((figure(&engine, "spilled_requests"), figure(&engine, "spilled_bytes")), (0, 0));
    // The connections are good for more.
    write!(first, "GET /again HTTP/1.1\r\nHost: test\r\n\r\n").expect("write");
    assert_eq!(read_answer(&mut first).text(), "after /again\n");
}

#[test]
fn a_replay_crosses_reloads_with_its_file() {
    let (engine, place) = away(1, 64 * MIB);
    let body = data(24 * MIB, 1);
    let mut client = post(engine.address(), body.len());
    client.write_all(&body).expect("write");
    arrived(&engine, 23 * MIB);
    // It takes a little, and then nothing until it is told.
    let listener = std::net::TcpListener::bind(place.address).expect("bind");
    let mut upstream = loop {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut bytes = vec![0; 4 << 10];
        // The first connection may be the attempt whether anybody is there, which brings nothing by itself.
        stream.set_read_timeout(Some(Duration::from_millis(200))).expect("time-out");
        if std::io::Read::read_exact(&mut stream, &mut bytes).is_ok() {
            break (stream, bytes);
        }
        // It waits in the worker for the next request; that is this one, on that connection, or on another.
    };
    for _ in 0..2 {
        assert_eq!(engine.reload_well()["migrated_connections"], 1);
        assert_eq!(open_files(&engine), 1);
    }
    let (stream, received) = &mut upstream;
    stream.set_read_timeout(Some(PATIENCE)).expect("time-out");
    let head_end = received.windows(4).position(|window| window == b"\r\n\r\n").expect("head") + 4;
    let start = received.len();
    received.resize(head_end + body.len(), 0);
    std::io::Read::read_exact(stream, &mut received[start..]).expect("read");
    assert!(received[head_end..] == body, "byte for byte");
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").expect("write");
    assert_eq!(read_answer(&mut client).text(), "ok");
    eventually("the file is gone", || open_files(&engine) == 0);
}

#[test]
fn a_worker_stays_small_while_much_is_held() {
    let (engine, place) = away(1, 300 * MIB);
    let memory = || {
        let status = engine.status();
        let workers = status["worker_stats"].as_object().expect("workers");
        workers.values().map(|one| one["memory_usage_mb"].as_f64().expect("a number")).sum::<f64>()
    };
    let before = memory();
    let body = data(25 * MIB, 2);
    let expected = sum(&body);
    let mut clients: Vec<TcpStream> = (0..8).map(|_| post(engine.address(), body.len())).collect();
    for client in &mut clients {
        client.write_all(&body).expect("write");
    }
    arrived(&engine, 199 * MIB);
    let grown = memory() - before;
    assert!(grown < 30.0, "{grown} MB more than {before}");
    assert!(figure(&engine, "held_bytes") < 3 * MIB as u64);
    let _upstream = Upstream::start_at("after", place.address);
    for client in &mut clients {
        assert_eq!(read_answer(client).text(), expected);
    }
    let grown = memory() - before;
    assert!(grown < 40.0, "{grown} MB more than {before}, after the replay");
}

#[test]
fn a_body_beyond_the_bound_is_answered_with_503_and_others_go_on() {
    let (engine, place) = away(1, 6 * MIB);
    let address = engine.address();
    let body = data(4 * MIB, 5);
    let mut fits = post(address, body.len());
    fits.write_all(&body).expect("write");
    arrived(&engine, 3 * MIB);
    let mut too_much = post(address, body.len());
    let _ = too_much.write_all(&body); // it may be cut off
    let answer = read_answer(&mut too_much);
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.head.contains("Retry-After: ") && answer.text().contains("no more room"));
    assert_eq!((figure(&engine, "unspilled"), figure(&engine, "spilled_requests")), (1, 1));
    // What it had is free again.
    let mut other = post(address, MIB);
    other.write_all(&body[..MIB]).expect("write");
    let stats = || -> serde_json::Value {
        serde_json::from_slice(&engine.zdt(&["queue", "stats", "--json"]).stdout).expect("JSON")
    };
    eventually("it is on disk", || stats()["spilled_bytes"].as_u64() > Some(4 * MIB as u64));
    assert_eq!((&stats()["spilled_total"], &stats()["spilled_requests"]), (&3.into(), &2.into()));
    let text = engine.zdt(&["queue", "stats"]).stdout;
    let text = String::from_utf8(text).expect("text");
    assert!(text.contains("on disk: 2 bodies"), "{text}");
    let _upstream = Upstream::start_at("after", place.address);
    assert_eq!(read_answer(&mut fits).text(), sum(&body));
    assert_eq!(read_answer(&mut other).text(), sum(&body[..MIB]));
}

#[test]
fn a_full_disk_costs_one_request() {
    if !have_root("gateway::spill::a_full_disk_costs_one_request") {
        return;
    }
    let place = Place::reserve();
    let config = Options::config(&config(1, 256 * MIB));
    // The run directory's, and so that of the bodies.
    let options = Options { disk_bytes: Some(8 * MIB as u32), ..config };
    let options = options.and("--steering", "off").and("--service", "proxy");
    let engine = Engine::start(options.and("--upstream", &place.url()));
    let body = data(5 * MIB, 9);
    let mut fits = post(engine.address(), body.len());
    fits.write_all(&body).expect("write");
    arrived(&engine, 4 * MIB);
    let mut too_much = post(engine.address(), body.len());
    let _ = too_much.write_all(&body); // it may be cut off
    let answer = read_answer(&mut too_much);
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.head.contains("Retry-After: ") && answer.text().contains("No space"));
    eventually("its place is free", || open_files(&engine) == 1);
    let mut small = post(engine.address(), 1_000);
    small.write_all(&body[..1_000]).expect("write");
    eventually("it is held", || figure(&engine, "held_requests") == 2);
    let _upstream = Upstream::start_at("after", place.address);
    assert_eq!(read_answer(&mut fits).text(), sum(&body));
    assert_eq!(read_answer(&mut small).text(), sum(&body[..1_000]));
}

#[test]
fn where_no_file_can_be_made_the_client_is_told() {
    let place = Place::reserve();
    let urls = [place.url()];
    let engine = gateway_with_faults(&urls, &config(1, 256 * MIB), "spill.make@*=fail");
    let body = data(MIB, 9);
    let mut client = post(engine.address(), body.len());
    let _ = client.write_all(&body); // it may be cut off
    let answer = read_answer(&mut client);
    assert_eq!((answer.status, figure(&engine, "unspilled")), (503, 1), "{answer:?}");
    assert!(answer.text().contains("no file can be made"), "{answer:?}");
    assert_eq!((figure(&engine, "held_requests"), figure(&engine, "spilled_bytes")), (0, 0));
}

#[test]
fn who_goes_away_or_waits_too_long_frees_the_disk() {
    let place = Place::reserve();
    let config = "workers = 1\n[gateway.hold]\ntime_ms = 1500\nspill_bytes = 67108864";
    let engine = gateway_for(&[place.url()], config);
    let body = data(4 * MIB, 9);
    let begun = |part: usize| {
        let mut client = post(engine.address(), body.len());
        client.write_all(&body[..part]).expect("write");
        client
    };
    let gone = begun(2 * MIB);
    arrived(&engine, MIB);
    drop(gone);
    eventually("it is not", || figure(&engine, "spilled_bytes") == 0 && open_files(&engine) == 0);
    assert_eq!(figure(&engine, "held_requests"), 0);
    let mut late = begun(3 * MIB);
    let answer = read_answer(&mut late);
    assert_eq!((answer.status, answer.text().contains("in time")), (503, true), "{answer:?}");
    eventually("it is free", || figure(&engine, "spilled_bytes") == 0 && open_files(&engine) == 0);
    let mut flushed = begun(4 * MIB);
    arrived(&engine, 3 * MIB);
    assert!(engine.zdt(&["queue", "flush"]).status.success());
    assert_eq!(read_answer(&mut flushed).status, 503);
    eventually("it is free", || figure(&engine, "spilled_bytes") == 0 && open_files(&engine) == 0);
}

#[test]
fn nothing_is_left_of_those_that_are_killed() {
    let (mut engine, place) = away(1, 64 * MIB);
    let directory = engine.run_dir().join("spill");
    let body = data(8 * MIB, 4);
    let hold = |engine: &Engine| {
        let mut client = post(engine.address(), body.len());
        client.write_all(&body).expect("write");
        arrived(engine, 7 * MIB);
        client
    };
    let lost = hold(&engine);
    let workers = engine.workers(1);
    kill(Pid::from_raw(workers[0] as i32), Signal::SIGKILL).expect("kill");
    eventually("another one is there", || {
        let now = engine.workers(1);
        now.len() == 1 && now != workers
    });
    drop(lost);
    assert_eq!((figure(&engine, "spilled_bytes"), open_files(&engine)), (0, 0));
    assert!(is_empty(&directory));
    // Without the supervisor the worker goes on, and keeps its file.
    let mut kept = hold(&engine);
    engine.signal(Signal::SIGKILL);
    engine.wait();
    assert!(is_empty(&directory));
    engine.restart();
    assert_eq!((figure(&engine, "spilled_requests"), open_files(&engine)), (1, 1));
    assert_eq!(engine.reload_well()["migrated_connections"], 1);
    let _upstream = Upstream::start_at("after", place.address);
    assert_eq!(read_answer(&mut kept).text(), sum(&body));
    assert!(is_empty(&directory));
}

#[test]
fn streams_of_http2_have_files_of_their_own() {
    let (engine, place) = away(1, 64 * MIB);
    let mut client = Http2Client::greet(engine.address());
    let bodies = [data(3 * MIB, 11), data(2 * MIB, 12)];
    let mut sent = [0; 2];
    let mut windows = [65_535i64; 2];
    for stream in [1, 3] {
        let head = http2::block(&http2::request("POST", "/sum", &[]));
        client.send(HEADERS, END_HEADERS, stream, &head);
    }
    // The connection's window is wider than both streams' together, and is kept open.
    let mut upload = |client: &mut Http2Client, until: [usize; 2]| {
        while sent != until {
            let mut has_sent = false;
            for (number, body) in bodies.iter().enumerate() {
                let room = windows[number].clamp(0, 16_384) as usize;
                let count = room.min(until[number] - sent[number]);
                let piece = &body[sent[number]..sent[number] + count];
                if count > 0 {
                    client.send(DATA, 0, [1, 3][number], piece);
                    sent[number] += count;
                    windows[number] -= count as i64;
                    has_sent = true;
                }
            }
            if !has_sent {
                let update = |frame: &Frame| frame.kind == WINDOW_UPDATE && frame.stream != 0;
                let frame = client.read_until(update).expect("a window update");
                let more = u32::from_be_bytes(frame.payload[..4].try_into().expect("4 bytes"));
                windows[frame.stream as usize / 2] += i64::from(more);
            }
        }
    };
    upload(&mut client, [MIB, MIB]);
    eventually("both are on disk", || figure(&engine, "spilled_requests") == 2);
    for _ in 0..2 {
        assert_eq!(engine.reload_well()["migrated_connections"], 1);
        assert_eq!((figure(&engine, "held_requests"), open_files(&engine)), (2, 2));
    }
    upload(&mut client, [3 * MIB, 2 * MIB]);
    for stream in [1, 3] {
        client.send(DATA, END_STREAM, stream, b"");
    }
    let _upstream = Upstream::start_at("after", place.address);
    // In whichever order they come.
    let mut texts = [Vec::new(), Vec::new()];
    let mut open = 2;
    while open > 0 {
        let frame = client.read().expect("the answers");
        assert_ne!(frame.kind, RST_STREAM, "{frame:?}");
        match frame.kind {
            DATA => texts[frame.stream as usize / 2].extend_from_slice(&frame.payload),
            HEADERS => assert_eq!(client.decode(&frame.payload)[0].1, "200"),
            _ => continue,
        }
        open -= u32::from(frame.has(END_STREAM));
    }
    for (text, body) in texts.into_iter().zip(&bodies) {
        assert_eq!(String::from_utf8(text).expect("text"), sum(body));
    }
}

#[test]
fn a_directory_that_is_not_fit_keeps_the_gateway_from_starting() {
    let directory = tempfile::tempdir().expect("tempdir");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(directory.path(), mode).expect("permissions");
    let upstream = Upstream::start("app");
    let engine = gateway(&[&upstream], &config(1, 64 * MIB));
    let path = directory.path().display();
    engine.configure(&format!("{}\nspill_dir = \"{path}\"", config(1, 64 * MIB)));
    let verdict = engine.reload();
    assert_eq!(verdict["reload_successful"], false, "{verdict}");
    eventually("it says why", || engine.log().contains("gateway.hold.spill_dir"));
    assert_eq!(get(engine.address(), "/x").text(), "app /x\n");
}
