//! Golden records of HTTP/2 and TLS: what this build writes of a connection in a given state is laid down in
//! `tests/golden`, and is read for as long as the format says so.
//!
//! Must not know: how a record travels.

use bytemuck::bytes_of;

use super::*;
use crate::config::WorkerConfig;
use crate::conn::Event;
use crate::proto::hpack::Fields;
use crate::proto::http2::PREFACE;
use crate::proto::tls::Hello;
use crate::proto::websocket::MessageKind;
use crate::proto::{BodyLength, Input};
use crate::service::demo::Demo;
use crate::state::tests::golden_file;

const NOW_MS: u64 = 5_000;
const FROZEN_NS: u64 = 42_000_000_007;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Literals that go into the header table.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    fields.iter().flat_map(|(n, v)| [vec![0x40], text(n), text(v)].concat()).collect()
}

fn request(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let fields =
        [(":method", method), (":scheme", "https"), (":path", path), (":authority", "zdt.test")];
    [block(&fields), block(more)].concat()
}

fn websocket(more: &[(&str, &str)]) -> Vec<u8> {
    let version = block(&[("sec-websocket-version", "13")]);
    let head = request("CONNECT", "/websocket", &[]);
    [block(&[(":protocol", "websocket")]), head, version, block(more)].concat()
}

/// A WebSocket frame of a client whose mask is zero.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    [&[first, 0x80 | payload.len() as u8, 0, 0, 0, 0], payload].concat()
}

/// A connection with a service that does what the path says.
struct Scene {
    entry: Entry,
    config: WorkerConfig,
    fields: Fields,
}

impl Scene {
    fn new(first: &[u8]) -> Self {
        let peer = SocketAddr::from(([192, 0, 2, 1], 40_000));
        let mut entry = Entry::new(None, 7, peer, Connection::new(1_000), 1_000);
        entry.frozen_ns = FROZEN_NS;
        // What is told to the client is in the record: it must not change with the defaults.
        let mut config = WorkerConfig::default();
        config.limits.max_head_bytes = 16 << 10;
        config.http2.max_concurrent_streams = 128;
        config.http2.stream_window_bytes = 65_535;
        config.http2.connection_window_bytes = 1 << 20;
        let mut scene = Self { entry, config, fields: Fields::default() };
        scene.receive(first);
        scene
    }

    fn receive(&mut self, bytes: &[u8]) {
        let Self { entry, config, fields } = self;
        let environment = Environment::new(config, 2_000, b"");
        let mut bytes = [entry.connection.take_pending(), bytes.to_vec()].concat();
        let (mut input, mut out) = (Input::new(&mut bytes), Vec::new());
        while let Some((slot, event)) =
            entry.connection.next_event(&mut input, &environment, &mut out, fields)
        {
            let Event::Request(head, upgrade) = event else { continue };
            let place = entry.places.at(slot);
            place.log = Some(LogEntry::new(&head));
            let path = head.path().to_owned();
            let session = |kind, bytes: &[u8]| {
                Demo.restore(&SavedSession { kind, version: 1, bytes }).expect("a session")
            };
            let mut answers = entry.connection.answers(slot, &environment, &mut out);
            assert!(match path.as_str() {
                "/websocket" => {
                    place.session = Some(session("demo.ws.counter", &3u64.to_le_bytes()));
                    place.timer_due_ms = NOW_MS + 250;
                    let (id, expires_unix_s) = (ParkId([9; 16]), 1_900_000_000);
                    place.ticket = Some(Box::new(Ticket { id, expires_unix_s }));
                    let upgrade = upgrade.expect("a wish for a WebSocket");
                    let text = b"a message that is long enough to be compressed, compressed";
                    answers.accept_websocket(&upgrade, None)
                        && answers.send_message(MessageKind::Text, text)
                }
                "/big" => {
                    place.wants_room = true;
                    place.session =
                        Some(session("demo.big", bytes_of(&[50_000u64.to_le(), 200u64.to_le()])));
                    answers.start_response(200, &[], BodyLength::Known(50_000))
                        && answers.write_body(&[b'b'; 200])
                }
                "/trailers" => {
                    place.log = None; // its exchange is over
                    answers.start_response(200, &[], BodyLength::Unknown)
                        && answers.write_body(&[b't'; 200])
                        && answers.finish_response(&[("x-sum", b"200")])
                }
                "/early" => {
                    place.log = None;
                    answers.respond(413, &[], b"no")
                }
                "/echo" => {
                    place.session = Some(session("demo.echo", b""));
                    answers.start_response(200, &[], BodyLength::Unknown)
                }
                other => panic!("no such page: {other}"),
            });
        }
        entry.connection.keep(input.peek());
    }

    /// Under TLS, with that head; its secrets are no secrets.
    fn under_tls(mut self, version: u8, suite: u8, incoming: &[u8]) -> Self {
        let mut head = [0; 160];
        head[..8].copy_from_slice(&1_234u64.to_le_bytes());
        head[8..16].copy_from_slice(&4_321u64.to_le_bytes());
        head[16..64].fill(0x11);
        head[64..112].fill(0x22);
        let [name, certificate] = [&b"zdt.test"[..], b"a certificate"];
        head[140..144].copy_from_slice(&(certificate.len() as u32).to_le_bytes());
        head[144..146].copy_from_slice(&(name.len() as u16).to_le_bytes());
        (head[152], head[153], head[154]) = (version, suite, 2);
        (head[156], head[157], head[158]) = (3, 4, 1);
        let mut bytes = Vec::new();
        let freeze = FreezeInstant { boot_hash: 0, boottime_ns: 0 };
        let mut writer = Writer::new(&mut bytes, freeze);
        writer.section_of(TAG_TLS, 1, false, &head, &[name, certificate]);
        if !incoming.is_empty() {
            writer.section(TAG_TLS_INCOMING, 1, false, &[0u8; 0], &[incoming]);
        }
        writer.finish(1);
        let record = Record::parse(&bytes).expect("a record");
        self.entry.transport = Transport::restore(&record).expect("TLS");
        self.entry.unsent = b"sealed, and not sent".to_vec();
        self
    }

    /// TLS is expected, and so much of a ClientHello has come.
    fn before_tls(mut self, hello: &[u8]) -> Self {
        self.entry.transport = Transport::Hello(Hello::restore(hello).expect("it is short"));
        self
    }

    fn save(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        save(&self.entry, 2, NOW_MS, &mut bytes).expect("it can be saved");
        of_boot(bytes, 0)
    }
}

/// The same record from another boot.
fn of_boot(mut record: Vec<u8>, hash: u64) -> Vec<u8> {
    record[16..24].copy_from_slice(&hash.to_le_bytes());
    state::set_checksum(&mut record);
    record
}

/// Holds a connection against its golden file, in both directions.
#[track_caller]
fn check(name: &str, scene: &Scene, tags: &[u16]) {
    let golden = golden_file(name, || scene.save());
    let record = Record::parse(&golden).expect("a record");
    let mut seen: Vec<_> = record.sections().map(|section| section.tag()).collect();
    seen.dedup();
    if cfg!(not(feature = "state-format-next")) {
        assert_eq!(seen, tags, "{name}");
        assert!(golden == scene.save(), "{name}: what is written is not what was laid down");
    }
    let environment = Environment::new(&scene.config, NOW_MS, b"");
    let here = of_boot(golden.clone(), boot_hash());
    let restored =
        restore(&here, Integrity::Unknown, &environment, &mut Demo, FROZEN_NS).expect(name);
    let mut again = Vec::new();
    restored.save(2, NOW_MS, &mut again).expect("it can be saved");
    assert!(of_boot(again, 0) == golden, "{name}: it is not restored as it was");
}

fn hello() -> Vec<u8> {
    // A small window, so that bodies wait for it.
    [&PREFACE[..], &frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 60])].concat()
}

/// Header table, header block half-way, settings that are not acknowledged, windows below zero, WebSockets with
/// compression and half a frame, a download, trailers, an upload, tickets and log entries; TLS 1.3.
#[test]
fn a_connection_with_everything_on_it() {
    let mut scene = Scene::new(&hello());
    let deflate = [("sec-websocket-extensions", "permessage-deflate")];
    scene.receive(&frame(HEADERS, END_HEADERS, 1, &websocket(&[])));
    scene.receive(&frame(HEADERS, END_HEADERS, 3, &websocket(&deflate)));
    scene.receive(&frame(HEADERS, END_STREAM | END_HEADERS, 5, &request("GET", "/big", &[])));
    let trailers = request("GET", "/trailers", &[]);
    scene.receive(&frame(HEADERS, END_STREAM | END_HEADERS, 7, &trailers));
    let upload = request("POST", "/echo", &[("content-length", "100"), ("user-agent", "golden")]);
    scene.receive(&frame(HEADERS, END_HEADERS, 9, &upload));
    scene.receive(&frame(DATA, 0, 9, b"uploaded"));
    // The beginning of a message, and half a ping behind it.
    let pieces = [masked(0x01, b"frag"), masked(0x89, b"ping")[..5].to_vec()].concat();
    scene.receive(&frame(DATA, 0, 1, &pieces));
    scene.receive(&frame(WINDOW_UPDATE, 0, 5, &[0, 0, 0, 30]));
    scene.receive(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 10]));
    // A stream that is refused and remembered, and one whose block is not complete.
    scene.receive(&frame(HEADERS, END_STREAM | END_HEADERS, 11, &block(&[("x", "no request")])));
    scene.receive(&frame(HEADERS, END_STREAM, 13, &request("GET", "/ha", &[])[..30]));
    scene.receive(&frame(9, 0, 13, b"\x40\x01"));
    scene.receive(&frame(DATA, 0, 9, b"cut off")[..7]);
    let scene = scene.under_tls(13, 0, b"\x17\x03\x03 half a record");
    let tags = [10, 11, 1, 2, 5, 6, 7, 6, 7, 6, 42, 6, 16, 17, 20, 43, 44];
    check("http2-everything.bin", &scene, &tags);
}

/// In the middle of DATA with padding, settings acknowledged, an answer that has overtaken its request, farewell said;
/// TLS 1.2.
#[test]
fn a_connection_in_the_middle_of_data() {
    let mut scene = Scene::new(&hello());
    scene.receive(&frame(SETTINGS, 1, 0, b""));
    scene.receive(&frame(HEADERS, END_HEADERS, 1, &request("POST", "/early", &[])));
    scene.receive(&frame(HEADERS, END_HEADERS, 3, &request("POST", "/echo", &[])));
    let mut out = Vec::new();
    scene.entry.connection.close_after_response(&mut out);
    scene.receive(&frame(6, 1, 0, b"farewell"));
    scene.receive(
        &frame(DATA, PADDED | END_STREAM, 3, b"\x05data behind which is padding\0\0\0\0\0")[..20],
    );
    let scene = scene.under_tls(12, 1, b"");
    check("http2-data.bin", &scene, &[10, 1, 5, 6, 16, 17, 20, 44]);
}

/// Nothing but half a preface, and nothing but a preface.
#[test]
fn connections_that_have_hardly_begun() {
    check("http2-half-preface.bin", &Scene::new(&PREFACE[..11]), &[1, 2, 3, 16]);
    check("http2-preface.bin", &Scene::new(PREFACE), &[1, 5, 16]);
}

/// In the middle of a ClientHello; and behind a proxy whose header, too, is only half there.
#[test]
fn connections_whose_handshake_has_not_begun() {
    let half = Scene::new(b"").before_tls(b"\x16\x03\x01\x00\xf1\x01\x00\x00\xed\x03\x03half");
    check("tls-hello.bin", &half, &[48, 1, 3, 16]);
    let mut proxied = Scene::new(b"").before_tls(b"");
    let bytes = b"PROXY TCP4 192.0.2.".to_vec();
    proxied.entry.preface = Some(Box::new(Preface { bytes, deadline_ms: NOW_MS + 700 }));
    check("tls-hello-proxied.bin", &proxied, &[48, 1, 3, 16, 40]);
}
