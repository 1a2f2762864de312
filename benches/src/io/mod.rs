//! The generator's connections: connect, send, receive, close, on one thread and one io_uring.
//!
//! A [`Handler`] is told what happens; it acts through [`Io`]. Output is collected while a batch of
//! completions is handled and goes out with one send a connection.
//!
//! WebSockets on HTTP/2 connections are connections, too (`streams.rs`).
//!
//! Must not know: protocols, what is measured.

mod carrier;
mod streams;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockProtocol, SockType, SockaddrIn, bind, setsockopt,
    shutdown, socket, sockopt,
};

use crate::secure::{self, Secure};
use crate::uring::{Buffers, Completion, OWNED_SEND, Socket, Uring};

const CONNECT: u8 = 1;
const RECEIVE: u8 = 2;
const STATIC_SEND: u8 = 3;
const IGNORED: u8 = 4;

/// Names a connection; never names a later one by mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId {
    index: u32,
    generation: u32,
}

impl ConnId {
    /// Small dense number, used again after the connection is gone.
    pub fn index(self) -> usize {
        self.index as usize
    }
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It could not be made: errno.
    NotConnected(i32),
    /// The peer has finished sending.
    Fin,
    /// Error on it: errno.
    Error(i32),
}

/// How a connection is made.
#[derive(Debug, Clone, Copy, Default)]
pub struct ConnectOptions {
    /// Address to connect from.
    pub source: Option<Ipv4Addr>,
    /// Receive only when [`Io::receive`] asks for it, at most so many bytes: a slow reader.
    pub paced_bytes: Option<u32>,
    /// Size of the socket's receive buffer.
    pub receive_buffer: Option<usize>,
}

/// What happens on connections.
pub trait Handler {
    /// The connection is there.
    fn on_connected(&mut self, io: &mut Io, id: ConnId);
    /// The WebSocket that was asked for on an HTTP/2 connection is there, with these extensions.
    fn on_websocket(&mut self, _io: &mut Io, _id: ConnId, _extensions: &str) {}
    /// Bytes have arrived.
    fn on_data(&mut self, io: &mut Io, id: ConnId, data: &[u8]);
    /// Nothing more will arrive. The handler closes the connection.
    fn on_end(&mut self, io: &mut Io, id: ConnId, end: End);
    /// All that was sent is with the kernel.
    fn on_sent(&mut self, _io: &mut Io, _id: ConnId) {}
}

#[derive(Default)]
struct Slot {
    fd: Option<OwnedFd>,
    generation: u32,
    operations: u32,
    sending: bool,
    dirty: bool,
    closing: bool,
    receiving: bool,
    paced_bytes: Option<u32>,
    pending: Vec<u8>,
    secure: Option<Box<Secure>>,
    /// Something can be said on it.
    is_ready: bool,
    /// It is an HTTP/2 connection.
    carrier: Option<Box<carrier::Carrier>>,
    /// It is a stream of this HTTP/2 connection, and has no socket.
    carried_by: Option<ConnId>,
}

/// Actions on connections.
pub struct Io {
    uring: Uring,
    address: &'static libc::sockaddr_in,
    slots: Vec<Slot>,
    free: VecDeque<u32>,
    dirty: Vec<u32>,
    open: usize,
    /// Present if the address speaks TLS.
    tls: Option<Tls>,
    /// The HTTP/2 connection of each group of streams.
    groups: HashMap<u32, ConnId>,
    /// HTTP/2 connections that are to be polled.
    touched: Vec<ConnId>,
    events: Vec<(u32, carrier::Event)>,
    wire: Vec<u8>,
}

/// Both that are offered by ALPN.
struct Tls {
    http1: Arc<rustls::ClientConfig>,
    http2: Arc<rustls::ClientConfig>,
}

/// A loop over the connections to one address.
pub struct Client {
    /// For actions between turns.
    pub io: Io,
    buffers: Buffers,
    completions: Vec<Completion>,
    plain: Vec<u8>,
}

fn token(kind: u8, index: u32) -> u64 {
    u64::from(kind) << 56 | u64::from(index)
}

impl Client {
    /// A loop with `buffer_count` (a power of two) receive buffers.
    pub fn new(address: SocketAddrV4, buffer_count: u16, buffer_bytes: usize) -> io::Result<Self> {
        let (uring, buffers) = Uring::new(4096, buffer_count, buffer_bytes)?;
        let target = address;
        // One a client, for the life of the process: the kernel reads it when it connects.
        let address = Box::leak(Box::new(libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: address.port().to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
            sin_zero: [0; 8],
        }));
        let io = Io {
            uring,
            address,
            slots: Vec::new(),
            free: VecDeque::new(),
            dirty: Vec::new(),
            open: 0,
            tls: match secure::is_registered(target) {
                true => Some(Tls {
                    http1: secure::client_config(&[]).map_err(io::Error::other)?,
                    http2: secure::client_config(&[b"h2"]).map_err(io::Error::other)?,
                }),
                false => None,
            },
            groups: HashMap::new(),
            touched: Vec::new(),
            events: Vec::new(),
            wire: Vec::new(),
        };
        Ok(Self { io, buffers, completions: Vec::new(), plain: Vec::new() })
    }

    /// Sends what is queued, waits for something to happen, at most for `timeout`, and handles it.
    pub fn turn<H: Handler>(&mut self, handler: &mut H, timeout: Duration) -> io::Result<()> {
        self.poll_carriers(handler);
        self.io.flush();
        self.io.uring.enter(Some(timeout))?;
        self.io.uring.drain(&mut self.completions);
        let mut completions = std::mem::take(&mut self.completions);
        for completion in completions.drain(..) {
            self.handle(handler, completion);
        }
        self.completions = completions;
        self.buffers.publish();
        Ok(())
    }

    /// Closes everything and waits until the kernel is done with it, for a second at most.
    pub fn close_all(&mut self) -> io::Result<()> {
        for index in 0..self.io.slots.len() {
            // A connection goes with its last stream.
            if self.io.slots[index].fd.is_some() && self.io.slots[index].carrier.is_none()
                || self.io.slots[index].carried_by.is_some()
            {
                let generation = self.io.slots[index].generation;
                self.io.abort(ConnId { index: index as u32, generation });
            }
        }
        let mut nobody = Nobody;
        for _ in 0..1000 {
            if self.io.open == 0 {
                break;
            }
            self.turn(&mut nobody, Duration::from_millis(1))?;
        }
        Ok(())
    }

    fn handle<H: Handler>(&mut self, handler: &mut H, completion: Completion) {
        let index = completion.user_data as u32;
        let kind = (completion.user_data >> 56) as u8;
        let io = &mut self.io;
        if kind == IGNORED {
            return;
        }
        let Some(slot) = io.slots.get_mut(index as usize) else { return };
        let id = ConnId { index, generation: slot.generation };
        if !completion.more() {
            slot.operations -= 1;
        }
        let closing = slot.closing;
        match kind {
            CONNECT if closing => {}
            CONNECT if completion.result < 0 => {
                io.on_over(handler, id, End::NotConnected(-completion.result));
            }
            CONNECT if io.tls.is_some() => {
                io.receive(id);
                io.begin_handshake(id);
            }
            CONNECT => {
                io.receive(id);
                io.on_ready(handler, id);
            }
            RECEIVE => {
                if !completion.more() {
                    slot.receiving = false;
                }
                if let Some(buffer) = completion.buffer() {
                    if completion.result > 0 && !closing {
                        let data = self.buffers.bytes(buffer, completion.result as usize);
                        if io.tls.is_some() {
                            io.on_sealed(handler, id, data, &mut self.plain);
                        } else {
                            io.on_bytes(handler, id, data);
                        }
                    }
                    self.buffers.give(buffer);
                }
                let alive = io.is_open(id);
                if alive && completion.result <= 0 && completion.result != -libc::ENOBUFS {
                    let end = match completion.result {
                        0 => End::Fin,
                        error => End::Error(-error),
                    };
                    io.on_over(handler, id, end);
                } else if alive
                    && !completion.more()
                    && io.slots[index as usize].paced_bytes.is_none()
                {
                    self.buffers.publish();
                    io.receive(id);
                }
            }
            OWNED_SEND | STATIC_SEND => {
                slot.sending = false;
                if kind == OWNED_SEND {
                    while let Some((key, mut bytes)) = io.uring.take_returned() {
                        bytes.clear();
                        let slot = &mut io.slots[key as usize];
                        if slot.pending.capacity() == 0 && bytes.capacity() <= 1 << 20 {
                            slot.pending = bytes;
                        }
                    }
                }
                let slot = &mut io.slots[index as usize];
                if !closing && completion.result < 0 {
                    // The receive reports the error, too, unless it was ended already.
                    if !slot.receiving {
                        io.on_over(handler, id, End::Error(-completion.result));
                    }
                } else if !closing {
                    if slot.pending.is_empty() {
                        handler.on_sent(io, id);
                    } else {
                        io.mark_dirty(index);
                    }
                }
            }
            _ => {}
        }
        io.release_if_done(index);
    }
}

struct Nobody;

impl Handler for Nobody {
    fn on_connected(&mut self, io: &mut Io, id: ConnId) {
        io.abort(id);
    }
    fn on_data(&mut self, _: &mut Io, _: ConnId, _: &[u8]) {}
    fn on_end(&mut self, io: &mut Io, id: ConnId, _: End) {
        io.abort(id);
    }
}

impl Io {
    fn begin_handshake(&mut self, id: ConnId) {
        let slot = &mut self.slots[id.index()];
        if let Some(tls) = &self.tls {
            let config = if slot.carrier.is_some() { &tls.http2 } else { &tls.http1 };
            slot.secure = Secure::new(config, &mut slot.pending).ok().map(Box::new);
            self.mark_dirty(id.index);
        }
    }

    /// Encrypted bytes have arrived.
    fn on_sealed<H: Handler>(
        &mut self,
        handler: &mut H,
        id: ConnId,
        data: &[u8],
        plain: &mut Vec<u8>,
    ) {
        let slot = &mut self.slots[id.index()];
        let Some(secure) = &mut slot.secure else { return };
        let was_ready = secure.is_ready();
        plain.clear();
        let result = secure.receive(data, plain, &mut slot.pending);
        let is_ready = secure.is_ready();
        let is_paced = slot.paced_bytes.is_some();
        if !slot.pending.is_empty() && !slot.sending {
            self.mark_dirty(id.index);
        }
        if is_ready && !was_ready {
            self.on_ready(handler, id);
        }
        if !plain.is_empty() && self.is_open(id) {
            self.on_bytes(handler, id, plain);
        } else if is_paced && self.is_open(id) {
            self.receive(id); // its handler has seen nothing that it could answer with that
        }
        if result.is_err() && self.is_open(id) {
            self.on_over(handler, id, End::Error(libc::EPROTO));
        }
    }

    /// Starts to connect.
    pub fn connect(&mut self, options: ConnectOptions) -> io::Result<ConnId> {
        let fd = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::Tcp,
        )?;
        setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
        if let Some(bytes) = options.receive_buffer {
            setsockopt(&fd, sockopt::RcvBuf, &bytes)?;
        }
        if let Some(source) = options.source {
            setsockopt(&fd, sockopt::IpBindAddressNoPort, &true)?;
            bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(source, 0)))?;
        }
        let index = self.vacant_slot();
        let slot = &mut self.slots[index as usize];
        slot.operations = 1;
        slot.paced_bytes = options.paced_bytes;
        self.uring.connect(fd.as_raw_fd(), self.address, token(CONNECT, index));
        slot.fd = Some(fd);
        self.open += 1;
        Ok(ConnId { index, generation: slot.generation })
    }

    fn vacant_slot(&mut self) -> u32 {
        self.free.pop_front().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        })
    }

    /// Connections that exist, those that are being made or closed included.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Whether the connection exists and is not being closed.
    pub fn is_open(&self, id: ConnId) -> bool {
        self.slots.get(id.index()).is_some_and(|slot| {
            let is_there = slot.fd.is_some() || slot.carried_by.is_some();
            slot.generation == id.generation && is_there && !slot.closing
        })
    }

    /// Whether a send is in flight.
    pub fn is_sending(&self, id: ConnId) -> bool {
        let slot = &self.slots[id.index()];
        slot.sending || (slot.secure.is_some() && !slot.pending.is_empty())
    }

    /// Queues bytes.
    pub fn send(&mut self, id: ConnId, bytes: &[u8]) {
        match self.slots.get(id.index()).and_then(|slot| slot.carried_by) {
            Some(carrier) if self.is_open(id) => self.send_on_stream(carrier, id.index, bytes),
            _ => self.send_bytes(id, bytes),
        }
    }

    fn send_bytes(&mut self, id: ConnId, bytes: &[u8]) {
        if self.is_open(id) && !bytes.is_empty() {
            let slot = &mut self.slots[id.index()];
            match &mut slot.secure {
                Some(secure) => secure.send(bytes, &mut slot.pending),
                None => slot.pending.extend_from_slice(bytes),
            }
            if !self.slots[id.index()].sending {
                self.mark_dirty(id.index);
            }
        }
    }

    /// Sends bytes that live for ever, at once. Nothing may be in flight or queued.
    pub fn send_static(&mut self, id: ConnId, bytes: &'static [u8]) {
        let slot = &mut self.slots[id.index()];
        if slot.secure.is_some() || slot.carried_by.is_some() {
            return self.send(id, bytes);
        }
        assert!(!slot.sending && slot.pending.is_empty());
        if let (Some(fd), false) = (&slot.fd, slot.closing) {
            slot.sending = true;
            slot.operations += 1;
            let socket = Socket::Plain(fd.as_raw_fd());
            self.uring.send_static(socket, bytes, token(STATIC_SEND, id.index));
        }
    }

    /// Arms the receive; of use for paced connections only.
    pub fn receive(&mut self, id: ConnId) {
        let slot = &mut self.slots[id.index()];
        if let (Some(fd), false, false) = (&slot.fd, slot.closing, slot.receiving) {
            slot.receiving = true;
            slot.operations += 1;
            let socket = Socket::Plain(fd.as_raw_fd());
            let user_data = token(RECEIVE, id.index);
            match slot.paced_bytes {
                None => self.uring.receive_multishot(socket, user_data),
                Some(limit) => self.uring.receive_once(socket, limit, user_data),
            }
        }
    }

    /// Ends the connection with a FIN; what is queued and not yet sent is lost.
    pub fn close(&mut self, id: ConnId) {
        if self.is_stream(id) {
            return self.end_stream(id, Self::close);
        }
        if let Some(fd) = self.start_closing(id) {
            // Ends the operations in flight. Fails if the peer has already reset it.
            let _ = shutdown(fd, Shutdown::Both);
        }
        self.release_if_done(id.index);
    }

    /// Ends the connection with a reset, which leaves no TIME_WAIT behind.
    pub fn abort(&mut self, id: ConnId) {
        if self.is_stream(id) {
            return self.end_stream(id, Self::abort);
        }
        if self.start_closing(id).is_some() {
            let slot = &self.slots[id.index()];
            if let Some(fd) = &slot.fd {
                let linger = libc::linger { l_onoff: 1, l_linger: 0 };
                let _ = setsockopt(fd, sockopt::Linger, &linger);
            }
            let cancelled = token(IGNORED, 0);
            for kind in [RECEIVE, STATIC_SEND, OWNED_SEND, CONNECT] {
                if slot.operations > 0 {
                    self.uring.cancel(token(kind, id.index), cancelled);
                }
            }
        }
        self.release_if_done(id.index);
    }

    /// Tells the peer that nothing more will be sent.
    pub fn finish_sending(&mut self, id: ConnId) {
        if let Some(Slot { fd: Some(fd), .. }) = self.slots.get(id.index()) {
            let _ = shutdown(fd.as_raw_fd(), Shutdown::Write);
        }
    }

    fn is_stream(&self, id: ConnId) -> bool {
        self.slots
            .get(id.index())
            .is_some_and(|slot| slot.generation == id.generation && slot.carried_by.is_some())
    }

    fn start_closing(&mut self, id: ConnId) -> Option<i32> {
        if !self.is_open(id) {
            return None;
        }
        let slot = &mut self.slots[id.index()];
        slot.closing = true;
        slot.pending = Vec::new();
        slot.fd.as_ref().map(|fd| fd.as_raw_fd())
    }

    fn mark_dirty(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if !slot.dirty {
            slot.dirty = true;
            self.dirty.push(index);
        }
    }

    fn flush(&mut self) {
        for index in std::mem::take(&mut self.dirty) {
            let slot = &mut self.slots[index as usize];
            slot.dirty = false;
            if slot.sending || slot.closing || slot.pending.is_empty() {
                continue;
            }
            if let Some(fd) = &slot.fd {
                slot.sending = true;
                slot.operations += 1;
                let bytes = std::mem::take(&mut slot.pending);
                self.uring.send_owned(Socket::Plain(fd.as_raw_fd()), bytes, index);
            }
        }
    }

    fn release_if_done(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if slot.closing && slot.operations == 0 && slot.fd.is_some() {
            slot.fd = None;
            slot.closing = false;
            slot.receiving = false;
            slot.sending = false;
            slot.secure = None;
            slot.carrier = None;
            slot.is_ready = false;
            slot.generation = slot.generation.wrapping_add(1);
            self.open -= 1;
            self.free.push_back(index);
        }
    }
}
