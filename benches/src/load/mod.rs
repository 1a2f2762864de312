//! Loads of the system bench: closed loop, open loop, and connections as fast as they go.
//!
//! Must not know: which server answers.

pub mod closed;
pub mod connects;
pub mod open;

use std::net::{SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::ws::{self, Endpoint};

/// One kind of request, with what comes back for it.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// To be sent, and to be answered with 101, before the first request.
    pub handshake: Option<String>,
    /// Path of the WebSocket.
    pub target: Option<String>,
    /// A request on the wire, as often as many may be in flight at once.
    batch: &'static [u8],
    /// Length of one request.
    pub request_bytes: usize,
    /// Length of one reply.
    pub reply_bytes: usize,
    /// How every reply begins.
    pub reply_prefix: Vec<u8>,
}

impl Exchange {
    fn new(
        handshake: Option<String>,
        request: &[u8],
        reply: &[u8],
        prefix: usize,
        n: usize,
    ) -> Self {
        Self {
            handshake,
            target: None,
            // A few for each run of the program.
            batch: Box::leak(request.repeat(n).into_boxed_slice()),
            request_bytes: request.len(),
            reply_bytes: reply.len(),
            reply_prefix: reply[..prefix.min(reply.len())].to_vec(),
        }
    }

    /// `count` requests.
    pub fn requests(&self, count: usize) -> &'static [u8] {
        &self.batch[..count * self.request_bytes]
    }

    /// Requests that may be in flight on one connection.
    pub fn in_flight(&self) -> usize {
        self.batch.len() / self.request_bytes
    }

    /// WebSocket messages of `payload_bytes`, echoed by a server that speaks the protocol, at
    /// `target`; or, without one, the same bytes to a server that sends back whatever it gets.
    pub fn echo(target: Option<&str>, payload_bytes: usize, in_flight: usize) -> Self {
        let payload: Vec<u8> =
            (0..payload_bytes).map(|i| crate::payload::mix(i as u64) as u8).collect();
        let (mut request, mut reply) = (Vec::new(), Vec::new());
        Endpoint::new(true, None).write_frame(&mut request, 0x80, ws::BINARY, &payload);
        match target {
            Some(target) => {
                Endpoint::new(false, None).write_frame(&mut reply, 0x80, ws::BINARY, &payload);
                let handshake = ws::handshake_request("127.0.0.1", target, None);
                let exchange = Self::new(Some(handshake), &request, &reply, 64, in_flight);
                Self { target: Some(target.to_owned()), ..exchange }
            }
            None => Self::new(None, &request, &request, 64, in_flight),
        }
    }

    /// GET of `target`; asks once to learn how long the answer is.
    pub fn get(address: SocketAddrV4, target: &str, expected_body: Option<&[u8]>) -> Result<Self> {
        let request = format!("GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
        let reply = ask(address, request.as_bytes())?;
        if let Some(body) = expected_body
            && !reply.ends_with(body)
        {
            bail!("unexpected answer to {target}: {:?}", String::from_utf8_lossy(&reply));
        }
        Ok(Self::new(None, request.as_bytes(), &reply, 12, 1))
    }
}

/// Sends a request on a connection of its own; the bytes of the whole answer.
pub fn ask(address: SocketAddrV4, request: &[u8]) -> Result<Vec<u8>> {
    let socket = TcpStream::connect_timeout(&address.into(), Duration::from_secs(2))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut stream = crate::secure::stream(address, socket)?;
    stream.write_all(request)?;
    let mut parser = crate::http::Responses::default();
    let (mut bytes, mut buffer) = (Vec::new(), [0; 16 << 10]);
    let (mut status, mut ended) = (0, false);
    while !ended {
        let length = match stream.read(&mut buffer) {
            // A ring of this thread may interrupt its system calls.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            length => length.context("no answer")?,
        };
        if length == 0 {
            bail!("connection closed without a whole answer");
        }
        bytes.extend_from_slice(&buffer[..length]);
        parser
            .receive(&buffer[..length], |event| match event {
                crate::http::Event::Head { status: code, .. } => status = code,
                crate::http::Event::End => ended = true,
                crate::http::Event::Body(_) => {}
            })
            .map_err(anyhow::Error::msg)?;
    }
    if status != 200 {
        bail!("status {status}");
    }
    Ok(bytes)
}

/// Receive buffers that suit so many connections with so many bytes in flight each.
pub(crate) fn buffers_for(connections: usize, bytes_in_flight: usize) -> (u16, usize) {
    let count = connections.next_power_of_two().clamp(64, 1024) as u16;
    (count, if bytes_in_flight <= 4096 { 4096 } else { 32 << 10 })
}
