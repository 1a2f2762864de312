//! kill -9 at every step of a handoff of connections that own two sockets: tunnels, downloads, uploads, and requests
//! that are held. What goes on does so whole, with its own upstream; the rest has ended, on both sides.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};
use tungstenite::Message;
use zdt_engine::config::{GatewayConfig, RouteTarget, UpstreamTarget, WorkerConfig};
use zdt_engine::control::ToWorker;

use super::moving::websocket_upstream;
use super::upstream::Upstream;
use super::{begin, gateway_with_faults, parse};
use crate::lab::client::ReadOn;
use crate::lab::client::{self, Client};
use crate::lab::worker::Options;
use crate::lab::{GIVING_POINTS, Pair, TAKING_POINTS, TestWorker, eventually};
use crate::supervisor::engine::output_of;

/// Of each kind.
const EACH: usize = 6;
/// More than the kernel keeps on its way to a client that does not read.
const DOWNLOAD: usize = 8 << 20;
const UPLOAD: usize = 400_000;

/// Clients in the middle of whatever they do.
struct Clients {
    tunnels: Vec<(usize, Client)>,
    /// With what has come already.
    downloads: Vec<(TcpStream, Vec<u8>)>,
    uploads: Vec<TcpStream>,
    held: Vec<(usize, TcpStream)>,
}

fn body() -> Vec<u8> {
    (0..UPLOAD).map(|at| (at % 253) as u8).collect()
}

impl Clients {
    #[track_caller]
    fn begin(address: SocketAddr) -> Clients {
        let tunnels = (0..EACH).map(|number| (number, client::websocket(address, "/ws"))).collect();
        let head = format!("GET /big?n={DOWNLOAD} HTTP/1.1\r\nHost: test");
        let downloads = (0..EACH).map(|_| {
            let mut stream = client::connect(address);
            setsockopt(&stream, sockopt::RcvBuf, &(128 << 10)).expect("a small buffer");
            write!(stream, "{head}\r\n\r\n").expect("write");
            let mut first = vec![0; 1_000];
            stream.read_exact(&mut first).expect("its beginning");
            (stream, first)
        });
        let uploads = (0..EACH).map(|_| {
            let length = format!("POST /sum HTTP/1.1\r\nHost: test\r\nContent-Length: {UPLOAD}");
            let mut stream = begin(address, &length);
            stream.write_all(&body()[..UPLOAD / 2]).expect("write");
            stream
        });
        let held = (0..EACH).map(|number| {
            (number, begin(address, &format!("GET /held/{number} HTTP/1.1\r\nHost: test")))
        });
        let (downloads, uploads, held) = (downloads.collect(), uploads.collect(), held.collect());
        let mut clients = Clients { tunnels, downloads, uploads, held };
        assert_eq!(clients.speak(1), EACH);
        clients
    }

    /// Each tunnel that is left says something, and must hear it from its own upstream. How many are left.
    #[track_caller]
    fn speak(&mut self, turn: usize) -> usize {
        self.tunnels.retain_mut(|(number, client)| {
            let text = format!("client {number} turn {turn}");
            match client.send(Message::text(text.clone())).and_then(|()| client.read()) {
                Ok(answer) => {
                    assert_eq!(answer, Message::text(format!("{turn} {text}")));
                    true
                }
                Err(tungstenite::Error::Io(error)) => has_ended(&error),
                Err(_) => false,
            }
        });
        self.tunnels.len()
    }

    /// The others do what they had begun. How many could.
    #[track_caller]
    fn finish(self) -> (usize, usize, usize) {
        let bytes = body();
        let sum = bytes.iter().fold(0u64, |sum, &byte| sum.wrapping_mul(31) + u64::from(byte));
        let downloads = self.downloads.into_iter().filter_map(|(mut stream, mut bytes)| {
            let head =
                bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
            let mut piece = vec![0; 1 << 16];
            while bytes.len() < head + DOWNLOAD {
                match stream.read_on(&mut piece) {
                    Ok(count @ 1..) => bytes.extend_from_slice(&piece[..count]),
                    Ok(_) => return None,
                    Err(error) => return has_ended(&error).then_some(()),
                }
            }
            let is_right = |(at, byte): (usize, &u8)| *byte == (at % 251) as u8;
            assert!(bytes[head..].iter().enumerate().all(is_right), "another's bytes");
            Some(())
        });
        let downloads = downloads.count();
        let uploads = self.uploads.into_iter().filter(|stream| {
            let mut stream = stream;
            let sent = stream.write_all(&bytes[UPLOAD / 2..]);
            sent.is_ok() && answer(stream).is_some_and(|text| text == format!("{UPLOAD} {sum}\n"))
        });
        let uploads = uploads.count();
        let held = self.held.into_iter().filter(|(number, stream)| {
            answer(stream).is_some_and(|text| text == format!("app /held/{number}\n"))
        });
        (downloads, uploads, held.count())
    }
}

/// False, or a failure: silence is none of the possible ends.
#[track_caller]
fn has_ended(error: &std::io::Error) -> bool {
    assert_ne!(error.kind(), ErrorKind::WouldBlock, "a client was left in silence");
    false
}

/// The body of a good answer; `None` if the connection has ended.
#[track_caller]
fn answer(mut stream: &TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4_096];
    while !bytes.ends_with(b"\n") || !bytes.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read_on(&mut piece) {
            Ok(count @ 1..) => bytes.extend_from_slice(&piece[..count]),
            Ok(_) => return None,
            Err(error) => return has_ended(&error).then(String::new),
        }
    }
    let answer = parse(&bytes);
    // A client whose upstream's socket went elsewhere would be told that it is gone.
    assert_eq!(answer.status, 200, "{answer:?}");
    Some(answer.text())
}

struct Scene {
    pair: Pair,
    clients: Clients,
    routes: Vec<RouteTarget>,
    _upstream: Upstream,
}

/// Blue with clients, and a green that is ready to take over.
fn scene(blue_faults: &str, green_faults: &str) -> Scene {
    let upstream = Upstream::start("app");
    let route = |name: &str, path: &str, url: &str, held| RouteTarget {
        name: name.to_owned(),
        host: String::new(),
        path: path.to_owned(),
        upstreams: vec![UpstreamTarget::parse(url).expect("a URL")],
        held,
    };
    let routes = vec![
        route("ws", "/ws", &websocket_upstream(), false),
        route("held", "/held", &upstream.url(), true),
        route("default", "/", &upstream.url(), false),
    ];
    let gateway = GatewayConfig { routes: routes.clone(), workers: 1, ..GatewayConfig::default() };
    let mut config =
        WorkerConfig { service: "proxy".to_owned(), gateway, ..WorkerConfig::default() };
    config.handoff.offer_timeout_ms = 300;
    config.handoff.window = 4;
    let spawn = |generation, faults| {
        let options = Options { faults, config: config.clone(), ..Options::default() };
        TestWorker::spawn_with(generation, &options)
    };
    let mut blue = spawn(1, blue_faults);
    let clients = Clients::begin(blue.listen());
    let green = spawn(2, green_faults);
    Scene { pair: Pair::join(blue, green), clients, routes, _upstream: upstream }
}

/// What is left in the worker that is left, and nothing else, goes on there.
#[track_caller]
fn check(worker: &mut TestWorker, mut clients: Clients, routes: Vec<RouteTarget>, what: &str) {
    let tunnels = clients.speak(2);
    assert_eq!(clients.speak(3), tunnels, "{what}: those that live go on living");
    let routes = routes.into_iter().map(|route| RouteTarget { held: false, ..route }).collect();
    let before = worker.status().connections as usize;
    worker.send(&ToWorker::Routes { routes, leaving: Vec::new() }, &[]);
    let (downloads, uploads, held) = clients.finish();
    assert_eq!(tunnels + downloads + uploads + held, before, "{what}: each connection is whole");
    // No upstream's socket is without its client.
    eventually("nothing is in flight", || {
        let upstreams = worker.status().gateway.expect("a gateway").upstreams;
        upstreams.iter().all(|upstream| upstream.outstanding == 0)
    });
}

#[test]
fn a_killed_blue_takes_whole_connections_along() {
    for point in GIVING_POINTS {
        let Scene { mut pair, clients, routes, _upstream } =
            scene(&format!("{point}@1=kill:3"), "");
        pair.begin();
        pair.blue.wait_dead();
        pair.green.commit(pair.reload, None);
        check(&mut pair.green, clients, routes, point);
    }
}

#[test]
fn a_killed_green_gives_whole_connections_back() {
    for (point, most_gone) in
        [("adopt.received", 0), ("adopt.restored", 0), ("adopt.adopted", 0), ("adopt.started", 1)]
    {
        for nth in if point == "adopt.received" { 1..=1 } else { 1..=4 } {
            let Scene { mut pair, clients, routes, _upstream } =
                scene("", &format!("{point}@2=kill:{nth}"));
            let report = pair.hand_off();
            // What green had started before it died is gone with it, and nothing else.
            assert_eq!(report.moved as usize, nth - 1 + most_gone, "{point}:{nth} {report:?}");
            eventually("blue has let go of those", || {
                pair.blue.status().connections as usize == 4 * EACH - (nth - 1 + most_gone)
            });
            check(&mut pair.blue, clients, routes, &format!("{point}:{nth}"));
        }
    }
}

#[test]
fn a_stopped_green_never_makes_two_owners() {
    for point in TAKING_POINTS {
        let Scene { mut pair, mut clients, routes, _upstream } =
            scene("", &format!("{point}@2=stop:1"));
        pair.begin();
        pair.green.wait_stopped();
        if ["adopt.received", "adopt.restored"].contains(&point) {
            let report = pair.blue.wait_empty();
            assert!(report.reclaimed > 0, "{point} {report:?}");
            pair.green.signal(Signal::SIGCONT);
        } else {
            pair.green.signal(Signal::SIGCONT);
            pair.blue.wait_empty();
        }
        assert_eq!(clients.speak(2), EACH, "{point}");
        let routes: Vec<_> =
            routes.into_iter().map(|route| RouteTarget { held: false, ..route }).collect();
        for worker in [&pair.blue, &pair.green] {
            worker.send(&ToWorker::Routes { routes: routes.clone(), leaving: Vec::new() }, &[]);
        }
        assert_eq!(clients.speak(3), EACH, "{point}");
        assert_eq!(clients.finish(), (EACH, EACH, EACH), "{point}");
    }
}

#[test]
fn a_killed_supervisor_costs_no_connection() {
    for (point, nth) in [
        ("supervisor.after_spawn", 2),
        ("supervisor.before_flip", 2),
        ("supervisor.after_flip", 2),
        ("supervisor.during_handoff", 1),
        ("supervisor.before_commit", 2),
        ("supervisor.after_commit", 1),
    ] {
        let upstream = Upstream::start("app");
        let config = format!(
            "workers = 2\n[[route]]\nname = \"ws\"\npath = \"/ws\"\nupstream = [\"{}\"]\n\
             [[route]]\nname = \"held\"\npath = \"/held\"\nupstream = [\"{}\"]",
            websocket_upstream(),
            upstream.url()
        );
        let faults = format!("{point}@0=kill:{nth}");
        let mut engine = gateway_with_faults(&[upstream.url()], &config, &faults);
        assert!(engine.zdt(&["hold", "held"]).status.success());
        let mut clients = Clients::begin(engine.address());
        let reload = output_of(engine.zdt_in_background(&["reload", "--json"]));
        assert!(!reload.status.success(), "{point}: {reload:?}");
        engine.wait();
        assert_eq!(clients.speak(2), EACH, "{point}");
        engine.restart();
        assert_eq!(clients.speak(3), EACH, "{point}");
        engine.reload_well();
        assert_eq!(clients.speak(4), EACH, "{point}");
        assert!(engine.zdt(&["resume"]).status.success());
        assert_eq!(clients.finish(), (EACH, EACH, EACH), "{point}");
    }
}
