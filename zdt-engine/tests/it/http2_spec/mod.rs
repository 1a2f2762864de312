//! The cases of h2spec (<https://github.com/summerwind/h2spec>, 2.6.0), by its names and numbers: section,
//! then number within it. The program is not needed: what each case sends and what it accepts is written
//! down here, and where h2spec is content with less, our own promise is asked for (GOAWAY before the end,
//! no other RST_STREAM before the right one, an end in good order).
//!
//! Whether the server has answered before the next frame comes changes what some cases meet. Each is
//! therefore played three times: in one write, frame by frame with the server having read each, and the
//! latter over TLS.

mod frames;
mod generic;
mod hpack;
mod messages;
mod starting;
mod streams;
mod windows;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;

use crate::lab::http2::*;
use crate::lab::secure::{self, Authority};
use crate::lab::worker::Options;
use crate::lab::{TestWorker, client, eventually};

const PROTOCOL: u32 = 1;
const FLOW_CONTROL: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const COMPRESSION: u32 = 9;

/// What a case expects; frames that it does not speak of may come before.
enum Expected {
    /// GOAWAY with this code, then the end.
    ConnectionError(u32),
    /// The first RST_STREAM or GOAWAY has one of these codes.
    StreamError(&'static [u32]),
    /// The first RST_STREAM has this code.
    Reset(u32),
    /// The end.
    Closed,
    /// The first HEADERS frame is on that stream.
    Headers(u32),
    /// DATA comes.
    Data,
    /// The first DATA frame has one byte.
    OneByte,
    /// The first SETTINGS frame is an acknowledgement.
    Acknowledgement,
    /// A PING that follows is the first to be answered: the connection lives.
    Pong,
}

use Expected::*;

/// The client's end of a connection, with the times at which it writes.
struct Paced {
    wire: Box<dyn Wire>,
    /// Between this port of the server and that one of the client.
    ports: (u16, u16),
    is_apart: bool,
    /// Waits for the first read.
    held: Vec<u8>,
}

trait Wire: Read + Write {}

impl<T: Read + Write> Wire for T {}

type Client = Http2Client<Paced>;

impl Write for Paced {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.is_apart {
            self.wire.write_all(bytes)?;
            self.wire.flush()?;
            eventually("the server has read it", || is_drained(self.ports));
        } else {
            self.held.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Read for Paced {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        // A server that has closed already is heard all the same.
        let _ = self.wire.write_all(&std::mem::take(&mut self.held));
        let _ = self.wire.flush();
        self.wire.read(buffer)
    }
}

/// Nothing that the client has sent waits in the server's socket, or there is none any more.
fn is_drained((server, client): (u16, u16)) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("sockets");
    let (server, client) = (format!(":{server:04X}"), format!(":{client:04X}"));
    !table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).any(|fields| {
        fields.len() > 4
            && fields[1].ends_with(&server)
            && fields[2].ends_with(&client)
            && !fields[4].ends_with(":00000000")
    })
}

/// A server, and a way to speak to it.
struct Setting {
    name: &'static str,
    worker: TestWorker,
    address: SocketAddr,
    authority: Option<Authority>,
    is_apart: bool,
}

impl Setting {
    fn new(name: &'static str, authority: Option<Authority>, is_apart: bool) -> Self {
        let options = Options { tls: authority.as_ref(), ..Options::default() };
        let mut worker = TestWorker::spawn_with(1, &options);
        let address = worker.listen();
        Self { name, worker, address, authority, is_apart }
    }

    fn connect(&self) -> Client {
        let (wire, port): (Box<dyn Wire>, u16) = match &self.authority {
            None => {
                let stream = client::connect(self.address);
                let port = stream.local_addr().expect("address").port();
                (Box::new(stream), port)
            }
            Some(authority) => {
                let mut config = authority.client_config(&rustls::version::TLS13);
                config.alpn_protocols = vec![b"h2".to_vec()];
                let stream = secure::connect(self.address, &config.into());
                let port = stream.sock.local_addr().expect("address").port();
                (Box::new(stream), port)
            }
        };
        let ports = (self.address.port(), port);
        Client::over(Paced { wire, ports, is_apart: self.is_apart, held: Vec::new() })
    }

    /// Like h2spec's client: the initial window is said, and is what it is by default.
    fn greet(&self) -> Client {
        let mut client = self.connect();
        client.exchange_settings(&[(4, 65_535)]);
        client
    }
}

/// One section.
struct Spec {
    section: &'static str,
    settings: Vec<Setting>,
    failed: Vec<String>,
}

/// Plays the cases of a section.
fn check(section: &'static str, cases: impl FnOnce(&mut Spec)) {
    let settings = vec![
        Setting::new("in one write", None, false),
        Setting::new("frame by frame", None, true),
        Setting::new("over TLS", Some(Authority::new()), true),
    ];
    let mut spec = Spec { section, settings, failed: Vec::new() };
    cases(&mut spec);
    assert!(spec.failed.is_empty(), "failed: {:#?}", spec.failed);
    for setting in &mut spec.settings {
        // And nobody else was harmed.
        let mut other = setting.greet();
        get(&mut other, 1);
        assert_eq!(other.response(1).0, 200, "after {section}, {}", setting.name);
        assert!(setting.worker.status().requests > 0);
    }
}

impl Spec {
    /// A case on a connection that has been greeted.
    fn case(&mut self, name: &str, case: impl Fn(&mut Client) -> Expected) {
        self.play(name, Setting::greet, case);
    }

    /// A case that greets by itself, or does not.
    fn silent(&mut self, name: &str, case: impl Fn(&mut Client) -> Expected) {
        self.play(name, Setting::connect, case);
    }

    fn play(
        &mut self,
        name: &str,
        connect: impl Fn(&Setting) -> Client,
        case: impl Fn(&mut Client) -> Expected,
    ) {
        for setting in &self.settings {
            let run = AssertUnwindSafe(|| {
                let mut client = connect(setting);
                let expected = case(&mut client);
                expected.verify(&mut client);
            });
            if std::panic::catch_unwind(run).is_err() {
                self.failed.push(format!("{}/{name} ({})", self.section, setting.name));
            }
        }
    }
}

impl Expected {
    fn verify(self, client: &mut Client) {
        match self {
            ConnectionError(code) => {
                assert_eq!(first(client, &[GOAWAY]).code(), code);
                Closed.verify(client);
            }
            StreamError(codes) => {
                let frame = first(client, &[GOAWAY, RST_STREAM]);
                assert!(codes.contains(&frame.code()), "{frame:?}");
            }
            Reset(code) => assert_eq!(first(client, &[RST_STREAM]).code(), code),
            Closed => while client.try_read().expect("an end in good order").is_some() {},
            Headers(stream) => assert_eq!(first(client, &[HEADERS]).stream, stream),
            Data => {
                first(client, &[DATA]);
            }
            OneByte => assert_eq!(first(client, &[DATA]).payload.len(), 1),
            Acknowledgement => assert!(first(client, &[SETTINGS]).has(ACK)),
            Pong => {
                client.send(PING, 0, 0, b"h2spec\0\0");
                let pong = first(client, &[PING]);
                assert_eq!((pong.flags, &pong.payload[..]), (ACK, &b"h2spec\0\0"[..]));
            }
        }
    }
}

/// The first frame of one of these kinds.
#[track_caller]
fn first(client: &mut Client, kinds: &[u8]) -> Frame {
    loop {
        let frame = client.try_read().expect("a frame").expect("closed without a word");
        if kinds.contains(&frame.kind) {
            return frame;
        }
    }
}

/// The fields of a request for the page; h2spec knows no other path.
fn common(method: &str) -> Vec<u8> {
    block(&request(method, "/", &[]))
}

/// They, and these.
fn with(method: &str, more: &[(&str, &str)]) -> Vec<u8> {
    block(&request(method, "/", more))
}

/// A field of 4,000 bytes.
fn dummy() -> Vec<u8> {
    block(&[("x-dummy0", &"x".repeat(4_000))])
}

/// A whole request that is one block.
fn whole(client: &mut Client, stream: u32, block: &[u8]) {
    client.send(HEADERS, END_STREAM | END_HEADERS, stream, block);
}

fn get(client: &mut Client, stream: u32) {
    whole(client, stream, &common("GET"));
}

/// The head of a request that is not ended with it.
fn open(client: &mut Client, method: &str) {
    client.send(HEADERS, END_HEADERS, 1, &common(method));
}

/// Until the response on a stream is complete.
fn closes(client: &mut Client) {
    loop {
        let frame = first(client, &[DATA, HEADERS, RST_STREAM]);
        match frame.kind {
            RST_STREAM => assert_eq!(frame.code(), 0, "{frame:?}"),
            _ if frame.has(END_STREAM) => {}
            _ => continue,
        }
        return;
    }
}

fn word(value: u32) -> [u8; 4] {
    value.to_be_bytes()
}

fn set(client: &mut Client, settings: &[(u16, u32)]) {
    let setting = |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &word(*value)].concat();
    let payload: Vec<u8> = settings.iter().flat_map(setting).collect();
    client.send(SETTINGS, 0, 0, &payload);
}

/// And waits for the acknowledgement.
fn set_and_wait(client: &mut Client, settings: &[(u16, u32)]) {
    set(client, settings);
    Acknowledgement.verify(client);
}

/// SETTINGS_INITIAL_WINDOW_SIZE.
const INITIAL_WINDOW: u16 = 4;

/// Three cases are skipped by h2spec unless the page has at least five bytes.
#[test]
fn the_page_has_a_body() {
    check("http2", |spec| {
        spec.case("the length of the page", |c| {
            get(c, 1);
            let (status, body) = c.response(1);
            assert_eq!(status, 200);
            assert!(body.len() >= 5);
            Pong
        });
    });
}
