//! The gateway: `zdt serve --service proxy` in front of upstreams that obey, misbehave, or are not
//! there.

mod ending;
pub mod half_closed;
mod hold;
mod http2;
mod kills;
mod moving;
mod proxy;
mod retry;
mod slow;
mod smuggling;
mod spill;
mod swap;
mod switching;
mod takeover;
mod tunnel_clients;
mod tunnels;
pub mod upstream;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use zdt_engine::config::{RouteTarget, UpstreamTarget};

use crate::lab::client::ReadOn;
use crate::lab::{client, worker};
use crate::supervisor::engine::{Engine, Options};
use upstream::Upstream;

/// A gateway in front of these.
#[track_caller]
fn gateway(upstreams: &[&Upstream], config: &str) -> Engine {
    let urls: Vec<String> = upstreams.iter().map(|upstream| upstream.url()).collect();
    gateway_for(&urls, config)
}

#[track_caller]
fn gateway_for(urls: &[String], config: &str) -> Engine {
    gateway_with_faults(urls, config, "")
}

#[track_caller]
fn gateway_with_faults(urls: &[String], config: &str, faults: &str) -> Engine {
    let options = Options { faults: faults.to_owned(), ..Options::config(config) };
    let mut options = options.and("--steering", "off").and("--service", "proxy");
    for url in urls {
        options = options.and("--upstream", url);
    }
    Engine::start(options)
}

/// A worker that is a gateway in front of that.
pub fn gateway_to(url: &str) -> worker::Options<'static> {
    let target = UpstreamTarget::parse(url).expect("a URL");
    let route = RouteTarget {
        name: "default".to_owned(),
        path: "/".to_owned(),
        upstreams: vec![target],
        ..RouteTarget::default()
    };
    let mut options = worker::Options::patient();
    options.config.service = "proxy".to_owned();
    options.config.gateway.routes = vec![route];
    options.config.gateway.workers = 1;
    options
}

/// One answer: status, head, body.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Sends a request as it is, on a connection of its own that the other side must end.
#[track_caller]
fn ask_raw(address: SocketAddr, request: &str) -> Answer {
    parse(&client::exchange(address, request.as_bytes()))
}

#[track_caller]
fn parse(bytes: &[u8]) -> Answer {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(bytes)));
    let head = String::from_utf8(bytes[..end].to_vec()).expect("text");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("status");
    Answer { status, head, body: bytes[end + 4..].to_vec() }
}

#[track_caller]
fn get(address: SocketAddr, target: &str) -> Answer {
    ask_raw(address, &format!("GET {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"))
}

/// Sends a request on a connection that stays, and returns it.
#[track_caller]
fn begin(address: SocketAddr, head: &str) -> TcpStream {
    let mut stream = client::connect(address);
    stream.write_all(format!("{head}\r\n\r\n").as_bytes()).expect("write");
    stream
}

/// Reads an answer with a length or in chunks, and whatever came with it.
#[track_caller]
pub fn read_answer(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    let mut piece = [0; 16 << 10];
    loop {
        let count = match stream.read_on(&mut piece) {
            // A time-out makes it a call that does not go on by itself after a stop.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            result => result.expect("read"),
        };
        assert!(count > 0, "cut off: {:?}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&piece[..count]);
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let mut answer = parse(&bytes);
        if answer.head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            match unchunked(&answer.body) {
                Some(body) => answer.body = body,
                None => continue,
            }
            return answer;
        }
        let length = answer.head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().ok())?
        });
        if bytes.len() >= end + 4 + length.expect("a length") {
            return answer;
        }
    }
}

/// A body without its chunks, once it is there as a whole; behind it, what came with it.
#[track_caller]
fn unchunked(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = bytes.windows(2).position(|window| window == b"\r\n")?;
        let size = std::str::from_utf8(&bytes[..line]).expect("text");
        let size = usize::from_str_radix(size, 16).expect("a chunk's size");
        let chunk = bytes.get(line + 2..line + 2 + size + 2)?;
        body.extend_from_slice(chunk.strip_suffix(b"\r\n").expect("the end of a chunk"));
        bytes = &bytes[line + 2 + size + 2..];
        if size == 0 {
            body.extend_from_slice(bytes);
            return Some(body);
        }
    }
}
