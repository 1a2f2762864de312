//! One connection of HTTP/2 with everything on it at once: WebSockets, an upload that is echoed, a download that
//! its window stops. Whatever happens to the server, all of it goes on, or the connection is gone.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use zdt_engine::service::demo::big_byte;

use super::client;
use super::http2::*;
use super::secure::{self, Authority};
use crate::freeze::frame as websocket_frame;

/// In clear, or under keys that can be changed.
pub trait Wire: Read + Write {
    fn rekey(&mut self) {}
}

impl Wire for TcpStream {}

impl Wire for secure::Stream {
    fn rekey(&mut self) {
        self.conn.refresh_traffic_keys().expect("key update");
    }
}

const SOCKETS: [u32; 3] = [1, 3, 5];
const UPLOAD: u32 = 7;
const DOWNLOAD: u32 = 9;

const WINDOW: u32 = 10_000;
const UPLOADED_EACH_TURN: usize = 500;
const DOWNLOADED_EACH_TURN: u32 = 700;

pub struct Mixed {
    client: Http2Client<Box<dyn Wire>>,
    turns: usize,
    received: BTreeMap<u32, Vec<u8>>,
}

impl Mixed {
    /// Opens all of it, and takes the first turn.
    #[track_caller]
    pub fn open(address: SocketAddr, authority: Option<&Authority>) -> Self {
        let wire: Box<dyn Wire> = match authority {
            None => Box::new(client::connect(address)),
            Some(authority) => {
                let mut config = authority.client_config(&rustls::version::TLS13);
                config.alpn_protocols = vec![b"h2".to_vec()];
                Box::new(secure::connect(address, &config.into()))
            }
        };
        let mut client = Http2Client::over(wire);
        client.exchange_settings(&[(4, WINDOW)]);
        for stream in SOCKETS {
            client.send(HEADERS, END_HEADERS, stream, &websocket_at("/ws/counter"));
        }
        client.send(HEADERS, END_HEADERS, UPLOAD, &block(&request("POST", "/echo", &[])));
        client.get(DOWNLOAD, "/big?n=10000000");
        let mut mixed = Self { client, turns: 0, received: BTreeMap::new() };
        mixed.turn().expect("the server serves");
        mixed
    }

    /// Something on every stream. Returns the generation that has answered, `None` if the connection is gone; a
    /// wrong answer on any stream is a failure, and so is silence, or the end of one stream without the others.
    #[track_caller]
    pub fn turn(&mut self) -> Option<u64> {
        self.client.stream.rekey();
        self.turns += 1;
        for stream in SOCKETS {
            self.client.send(DATA, 0, stream, &websocket_frame(0x81, b"tick"));
        }
        self.client.send(DATA, 0, UPLOAD, &[self.turns as u8; UPLOADED_EACH_TURN]);
        let more = DOWNLOADED_EACH_TURN.to_be_bytes();
        self.client.send(WINDOW_UPDATE, 0, DOWNLOAD, &more);
        self.client.send(WINDOW_UPDATE, 0, UPLOAD, &more);
        self.client.send(WINDOW_UPDATE, 0, 0, &(4 * DOWNLOADED_EACH_TURN).to_be_bytes());
        while !self.is_answered() {
            let frame = self.client.read()?;
            assert!(![GOAWAY, RST_STREAM].contains(&frame.kind), "{frame:?}");
            if frame.kind == DATA {
                self.received.entry(frame.stream).or_default().extend(frame.payload);
            }
        }
        let generations = SOCKETS.map(|stream| {
            let text = self.text(stream);
            let answer = &text[text.rfind('{').expect("JSON")..];
            let answer: serde_json::Value = serde_json::from_str(answer).expect("JSON");
            assert_eq!(answer["n"], self.turns, "stream {stream}: {text}");
            answer["generation"].as_u64().expect("a generation")
        });
        assert!(generations.iter().all(|one| *one == generations[0]), "{generations:?}");
        for (at, byte) in self.received[&UPLOAD].iter().enumerate() {
            assert_eq!(usize::from(*byte), at / UPLOADED_EACH_TURN + 1, "upload, byte {at}");
        }
        for (at, byte) in self.received[&DOWNLOAD].iter().enumerate() {
            assert_eq!(*byte, big_byte(at as u64), "download, byte {at}");
        }
        Some(generations[0])
    }

    fn is_answered(&self) -> bool {
        let length = |stream| self.received.get(&stream).map_or(0, Vec::len);
        let most = (WINDOW + DOWNLOADED_EACH_TURN * self.turns as u32) as usize;
        assert!(length(DOWNLOAD) <= most, "more than the window");
        SOCKETS.iter().all(|stream| self.text(*stream).matches('}').count() == self.turns)
            && length(UPLOAD) == UPLOADED_EACH_TURN * self.turns
            && length(DOWNLOAD) == most
    }

    fn text(&self, stream: u32) -> String {
        let bytes = self.received.get(&stream).map_or(&[][..], |bytes| bytes);
        String::from_utf8_lossy(bytes).into_owned()
    }
}
