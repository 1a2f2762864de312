//! One HTTP/2 connection of the generator, which carries WebSockets, each a stream of its own (RFC 8441).
//!
//! The framing is that of h2, whose futures are polled by hand: bytes are brought and fetched, so that a
//! connection fits into the generator's ring like any other.
//!
//! Must not know: sockets, what is said on the streams.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use anyhow::Result;
use bytes::{Bytes, BytesMut};
use h2::client::{self, Connection, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use hyper::http::Request;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a client lets a server send before it has taken any of it, on a stream and in all.
const WINDOW_BYTES: u32 = 1 << 20;

/// What happens on a stream.
#[derive(Debug)]
pub enum Event {
    /// The WebSocket is accepted, with these extensions.
    Accepted(String),
    /// Bytes of it.
    Data(Bytes),
    /// It is over: why.
    Ended(String),
}

/// What has arrived and is to leave.
#[derive(Default)]
struct Bytewise {
    input: BytesMut,
    output: Vec<u8>,
}

/// h2's end of the connection. Nobody waits for it: it is polled whenever something has happened.
#[derive(Clone, Default)]
struct Pipe(Arc<Mutex<Bytewise>>);

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, Bytewise> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut pipe = self.lock();
        let length = pipe.input.len().min(buffer.remaining());
        if length == 0 {
            return Poll::Pending;
        }
        buffer.put_slice(&pipe.input.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.lock().output.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// One WebSocket.
struct Stream {
    key: u32,
    stage: Stage,
    /// Bytes that its window has not let out.
    waiting: BytesMut,
}

enum Stage {
    /// Until the server's settings allow it.
    Wanted(Request<()>),
    Asked(ResponseFuture, SendStream<Bytes>),
    Open(RecvStream, SendStream<Bytes>),
    Over,
}

type Handshake =
    Pin<Box<dyn Future<Output = Result<(SendRequest<Bytes>, Connection<Pipe>), h2::Error>>>>;

enum Link {
    Begins(Handshake),
    Up(SendRequest<Bytes>, Box<Connection<Pipe>>),
    Over,
}

/// See the module documentation.
pub struct Carrier {
    pipe: Pipe,
    link: Link,
    streams: Vec<Stream>,
}

impl Carrier {
    /// A connection on which nothing has been said.
    pub fn new() -> Self {
        let pipe = Pipe::default();
        let handshake = client::Builder::new()
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .enable_push(false)
            .handshake(pipe.clone());
        Self { pipe, link: Link::Begins(Box::pin(handshake)), streams: Vec::new() }
    }

    /// Asks for a WebSocket, which is called `key`.
    pub fn open(&mut self, key: u32, request: Request<()>) {
        let stage = Stage::Wanted(request);
        self.streams.push(Stream { key, stage, waiting: BytesMut::new() });
    }

    /// Sends bytes on it, as far as the windows let them out, the rest later.
    pub fn send(&mut self, key: u32, bytes: &[u8]) {
        if let Some(stream) = self.streams.iter_mut().find(|stream| stream.key == key) {
            stream.waiting.extend_from_slice(bytes);
        }
    }

    /// Resets it; whether any other is left.
    pub fn close(&mut self, key: u32) -> bool {
        self.streams.retain(|stream| stream.key != key);
        !self.streams.is_empty()
    }

    /// Names of all streams.
    pub fn keys(&self) -> impl Iterator<Item = u32> + '_ {
        self.streams.iter().map(|stream| stream.key)
    }

    /// Takes bytes of the connection.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.pipe.lock().input.extend_from_slice(bytes);
    }

    /// Does all that can be done; appends bytes that are to leave, and what has happened on which stream. An error
    /// is the end of the connection.
    pub fn poll(
        &mut self,
        wire: &mut Vec<u8>,
        events: &mut Vec<(u32, Event)>,
    ) -> Result<(), h2::Error> {
        let mut context = Context::from_waker(Waker::noop());
        let result = loop {
            match self.step(&mut context, events) {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        wire.append(&mut self.pipe.lock().output);
        result
    }

    /// Whether anything has moved.
    fn step(
        &mut self,
        context: &mut Context<'_>,
        events: &mut Vec<(u32, Event)>,
    ) -> Result<bool, h2::Error> {
        if let Link::Begins(handshake) = &mut self.link {
            match handshake.as_mut().poll(context) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok((send, connection))) => {
                    self.link = Link::Up(send, Box::new(connection));
                }
                Poll::Ready(Err(error)) => {
                    self.link = Link::Over;
                    return Err(error);
                }
            }
        }
        let Link::Up(send, connection) = &mut self.link else { return Ok(false) };
        if let Poll::Ready(result) = Pin::new(&mut **connection).poll(context) {
            self.link = Link::Over;
            for stream in &self.streams {
                events.push((stream.key, Event::Ended("the connection has ended".to_owned())));
            }
            return result.map(|()| false);
        }
        let mut has_moved = false;
        for stream in &mut self.streams {
            has_moved |= stream.step(send, context, events);
        }
        Ok(has_moved)
    }
}

impl Stream {
    fn step(
        &mut self,
        send: &mut SendRequest<Bytes>,
        context: &mut Context<'_>,
        events: &mut Vec<(u32, Event)>,
    ) -> bool {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Wanted(request) if !send.is_extended_connect_protocol_enabled() => {
                self.stage = Stage::Wanted(request);
                false
            }
            Stage::Wanted(request) => {
                match send.send_request(request, false) {
                    Ok((response, sink)) => self.stage = Stage::Asked(response, sink),
                    Err(error) => events.push((self.key, Event::Ended(error.to_string()))),
                }
                true
            }
            Stage::Asked(mut response, sink) => match Pin::new(&mut response).poll(context) {
                Poll::Pending => {
                    self.stage = Stage::Asked(response, sink);
                    false
                }
                Poll::Ready(Ok(answer)) if answer.status() == 200 => {
                    let extensions = answer.headers().get("sec-websocket-extensions");
                    let extensions = extensions.and_then(|value| value.to_str().ok());
                    let extensions = extensions.unwrap_or_default().to_owned();
                    events.push((self.key, Event::Accepted(extensions)));
                    self.stage = Stage::Open(answer.into_body(), sink);
                    true
                }
                Poll::Ready(Ok(answer)) => {
                    events.push((self.key, Event::Ended(format!("status {}", answer.status()))));
                    true
                }
                Poll::Ready(Err(error)) => {
                    events.push((self.key, Event::Ended(error.to_string())));
                    true
                }
            },
            Stage::Open(mut source, mut sink) => {
                let mut has_moved = self.send_waiting(&mut sink);
                match source.poll_data(context) {
                    Poll::Pending => self.stage = Stage::Open(source, sink),
                    Poll::Ready(Some(Ok(bytes))) => {
                        // Fails if the stream was reset meanwhile, which the next poll says.
                        let _ = source.flow_control().release_capacity(bytes.len());
                        events.push((self.key, Event::Data(bytes)));
                        self.stage = Stage::Open(source, sink);
                        has_moved = true;
                    }
                    Poll::Ready(Some(Err(error))) => {
                        events.push((self.key, Event::Ended(error.to_string())));
                    }
                    Poll::Ready(None) => {
                        events.push((self.key, Event::Ended("end of the stream".to_owned())));
                    }
                }
                has_moved
            }
            Stage::Over => false,
        }
    }

    fn send_waiting(&mut self, sink: &mut SendStream<Bytes>) -> bool {
        if self.waiting.is_empty() {
            return false;
        }
        sink.reserve_capacity(self.waiting.len());
        let length = sink.capacity().min(self.waiting.len());
        // An error is also what is received.
        length > 0 && sink.send_data(self.waiting.split_to(length).freeze(), false).is_ok()
    }
}
