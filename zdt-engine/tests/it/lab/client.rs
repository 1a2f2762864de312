//! Clients: a WebSocket client that is not ours (tungstenite), and raw bytes.

use std::io::{ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::{Deref, DerefMut};

use tungstenite::{Message, WebSocket};

use super::PATIENCE;

/// A WebSocket client on a plain TCP stream.
pub type Client = WebSocket<Steady>;

/// A TCP stream whose reads and writes go on after an interruption: with a time-out the kernel does not begin them again
/// by itself (signal(7)), and clients that others wrote give up then.
///
/// What interrupts is SIGCHLD. It is ignored, and does not wake anybody, unless the thread whose child has ended blocks it,
/// as a thread does that is just starting another process; then some other thread of this one is given it, to ignore it.
#[derive(Debug)]
pub struct Steady(pub TcpStream);

fn steadily<T>(mut call: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// [`Read::read`] that goes on after an interruption, see [`Steady`].
pub trait ReadOn: Read {
    /// As there.
    fn read_on(&mut self, bytes: &mut [u8]) -> Result<usize> {
        steadily(|| self.read(bytes))
    }
}

impl<S: Read + ?Sized> ReadOn for S {}

impl Read for Steady {
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize> {
        steadily(|| self.0.read(bytes))
    }
}

impl Write for Steady {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        steadily(|| self.0.write(bytes))
    }

    fn flush(&mut self) -> Result<()> {
        self.0.flush()
    }
}

impl Deref for Steady {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.0
    }
}

impl DerefMut for Steady {
    fn deref_mut(&mut self) -> &mut TcpStream {
        &mut self.0
    }
}

/// Connects with every operation bounded in time.
#[track_caller]
pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, PATIENCE).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("read timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("write timeout");
    stream.set_nodelay(true).expect("nodelay");
    stream
}

/// Opens a WebSocket at that path.
#[track_caller]
pub fn websocket(address: SocketAddr, path: &str) -> Client {
    let stream = Steady(connect(address));
    let (client, _) =
        tungstenite::client(format!("ws://{address}{path}"), stream).expect("handshake");
    client
}

/// One turn on `/ws/counter`: `(n, generation)`.
#[track_caller]
pub fn count<S: Read + Write>(client: &mut WebSocket<S>) -> (u64, u64) {
    client.send(Message::text("tick")).expect("send");
    let answer = loop {
        match client.read().expect("read") {
            Message::Text(text) => break text.to_string(),
            Message::Ping(_) | Message::Pong(_) => {}
            other => panic!("not an answer: {other:?}"),
        }
    };
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    (answer["n"].as_u64().expect("n"), answer["generation"].as_u64().expect("generation"))
}

/// Echoes one message on `/ws/echo` and compares.
#[track_caller]
pub fn echo<S: Read + Write>(client: &mut WebSocket<S>, message: Message) {
    client.send(message.clone()).expect("send");
    assert_eq!(client.read().expect("read"), message);
}

/// Writes a request and reads until the peer closes.
#[track_caller]
pub fn exchange(address: SocketAddr, request: &[u8]) -> Vec<u8> {
    let mut stream = connect(address);
    stream.write_all(request).expect("write");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("read");
    answer
}
