//! The least that a live handoff can cost: a raw echo server hands its connections to a standby
//! process, each with 4 KiB of state, and nothing else happens.
//!
//! The old process cancels its multishot receives by `user_data`, awaits the last completion of each,
//! copies the states into shared memory and sends the descriptors, 253 at a time. The new one takes
//! them, copies the states out and arms its receives. Both are processes of their own, on a CPU each.
//! A port of the C program that the first limits were measured with; as fast as that.
//!
//! Must not know: protocols, who measures.
#![allow(unsafe_code)]

use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::cmsg_space;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, setsockopt, socketpair, sockopt,
};
use nix::time::{ClockId, clock_gettime};

use super::free_address;
use crate::io::{Client, ConnId, ConnectOptions, End, Handler, Io};
use crate::process::{Server, allowed_cpus};
use crate::uring::{Buffers, Completion, Socket, Uring};

const MAX_CONNECTIONS: usize = 16384;
const BATCH: usize = 253;
const ACCEPT: u64 = 0;
const RECEIVE: u64 = 1;
const SEND: u64 = 2;
const CANCEL: u64 = 3;

/// State of one connection.
#[derive(Clone, Copy)]
#[repr(C)]
struct State {
    id: u64,
    messages: u64,
    remote: [u8; 48],
    buffered: [u8; 4096],
}

/// What the two processes share. Only the old one writes states, only before it sends the
/// descriptors that belong to them; only the new one reads them, and only after that.
struct Shared {
    memory: *mut u8,
}

const HEADER_BYTES: usize = 4096;
const SHARED_BYTES: usize = HEADER_BYTES + MAX_CONNECTIONS * size_of::<State>();

impl Shared {
    fn map(fd: &OwnedFd) -> Result<Self> {
        // SAFETY: a new shared mapping of a file of exactly this length, never unmapped.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                SHARED_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                fd.as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error()).context("mmap of the shared states");
        }
        Ok(Self { memory: memory.cast() })
    }

    /// When the old process stopped receiving.
    fn stopped_ns(&self) -> &AtomicU64 {
        // SAFETY: inside the mapping, aligned, and accessed as an atomic by both sides only.
        unsafe { &*self.memory.cast::<AtomicU64>() }
    }

    fn state(&self, index: usize) -> *mut State {
        assert!(index < MAX_CONNECTIONS);
        // SAFETY: in bounds; see the assertion and `SHARED_BYTES`.
        unsafe { self.memory.add(HEADER_BYTES).cast::<State>().add(index) }
    }

    fn write(&self, index: usize, state: &State) {
        // SAFETY: in bounds; nobody reads this state before its descriptor is sent.
        unsafe { self.state(index).copy_from_nonoverlapping(state, 1) }
    }

    fn read(&self, index: usize, state: &mut State) {
        // SAFETY: in bounds; nobody writes this state after its descriptor is sent, and the
        // messages order the accesses. Any bytes are a valid `State`.
        unsafe { self.state(index).copy_to_nonoverlapping(state, 1) }
    }
}

fn now_ns() -> Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// Either process.
struct Half {
    uring: Uring,
    buffers: Buffers,
    completions: Vec<Completion>,
    /// By index: descriptor. Tokens carry the index.
    connections: Vec<OwnedFd>,
    states: Vec<State>,
    /// Armed receives and sends in flight.
    live: usize,
}

impl Half {
    fn new() -> Result<Self> {
        let (uring, buffers) = Uring::new(4096, 4096, 2048)?;
        let blank = State { id: 0, messages: 0, remote: [0; 48], buffered: [0; 4096] };
        let mut states = vec![blank; MAX_CONNECTIONS];
        // Touched beforehand: page faults are not what is measured.
        states.iter_mut().for_each(|state| state.buffered[100] = 1);
        let connections = Vec::with_capacity(MAX_CONNECTIONS);
        Ok(Self { uring, buffers, completions: Vec::new(), connections, states, live: 0 })
    }

    fn add(&mut self, fd: OwnedFd) -> usize {
        self.connections.push(fd);
        self.connections.len() - 1
    }

    fn socket(&self, index: usize) -> Socket {
        Socket::Plain(self.connections[index].as_raw_fd())
    }

    fn arm(&mut self, index: usize) {
        self.uring.receive_multishot(self.socket(index), RECEIVE << 56 | index as u64);
        self.live += 1;
    }

    fn accept(&mut self, listener: &TcpListener) {
        self.uring.accept_multishot(listener.as_raw_fd(), false, ACCEPT << 56);
    }

    fn reap(&mut self, stopping: bool) {
        self.uring.drain(&mut self.completions);
        let mut completions = std::mem::take(&mut self.completions);
        for completion in completions.drain(..) {
            let index = completion.user_data as u32 as usize;
            match completion.user_data >> 56 {
                ACCEPT if completion.result >= 0 => {
                    // SAFETY: the kernel has just made this descriptor for us.
                    let fd = unsafe { OwnedFd::from_raw_fd(completion.result) };
                    let index = self.add(fd);
                    self.arm(index);
                }
                RECEIVE => {
                    if !completion.more() {
                        self.live -= 1;
                    }
                    if let Some(buffer) = completion.buffer() {
                        if completion.result > 0 {
                            self.uring.send_buffer(
                                self.socket(index),
                                &self.buffers,
                                buffer,
                                completion.result as usize,
                                SEND << 56 | u64::from(buffer) << 32 | index as u64,
                            );
                            self.live += 1;
                            self.states[index].messages += 1;
                        } else {
                            self.buffers.give(buffer);
                        }
                    }
                    let over = completion.result <= 0 && completion.result != -libc::ENOBUFS;
                    if !completion.more() && !stopping && !over {
                        self.arm(index);
                    }
                }
                SEND => {
                    self.live -= 1;
                    self.buffers.give((completion.user_data >> 32) as u16);
                }
                _ => {}
            }
        }
        self.completions = completions;
        self.buffers.publish();
    }
}

/// The old process: `zdt-load peer-handoff --port …`. Starts the new one. Prints `ready`, serves until
/// a line comes in, hands off, and leaves.
pub fn run_old(port: u16) -> Result<()> {
    let cpus = allowed_cpus();
    let listener = super::bind_listener(port)?;
    let (own, other) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::empty())?;
    let _ = setsockopt(&own, sockopt::SndBufForce, &(4 << 20));
    let memory = memfd_create("handoff", MFdFlags::empty())?;
    nix::unistd::ftruncate(&memory, SHARED_BYTES as i64)?;
    let shared = Shared::map(&memory)?;
    // The new process inherits both descriptors and the listener, which the library made CLOEXEC.
    let listener_copy = nix::unistd::dup(&listener)?;
    let fds = [other.as_raw_fd(), memory.as_raw_fd(), listener_copy.as_raw_fd()];
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("peer-handoff").args(fds.iter().map(|fd| format!("--inherited={fd}")));
    command.stdin(Stdio::null()).stdout(Stdio::inherit());
    let mut new = Server::start("new", &mut command, Some(cpus[1 % cpus.len()]))?;
    drop((other, listener_copy));
    let _pinned = crate::process::Pinned::to(cpus[0])?;

    let mut half = Half::new()?;
    half.accept(&listener);
    // The new one says when it is ready.
    let mut byte = [0; 1];
    nix::sys::socket::recv(own.as_raw_fd(), &mut byte, MsgFlags::empty())?;
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let _ = std::io::stdin().lock().read_line(&mut line);
        let _ = sender.send(());
    });
    println!("ready");
    std::io::stdout().flush()?;
    while receiver.try_recv().is_err() {
        half.uring.enter(Some(Duration::from_millis(5)))?;
        half.reap(false);
    }

    shared.stopped_ns().store(now_ns()?, Ordering::SeqCst);
    for index in 0..half.connections.len() {
        half.uring.cancel(RECEIVE << 56 | index as u64, CANCEL << 56);
    }
    while half.live > 0 {
        half.uring.enter(None)?;
        half.reap(true);
    }
    let total = half.connections.len();
    for start in (0..total).step_by(BATCH) {
        let end = total.min(start + BATCH);
        for index in start..end {
            half.states[index].id = index as u64;
            shared.write(index, &half.states[index]);
        }
        let raw: Vec<RawFd> = half.connections[start..end].iter().map(AsRawFd::as_raw_fd).collect();
        let text = [(start as u32).to_le_bytes(), (total as u32).to_le_bytes()].concat();
        sendmsg::<()>(
            own.as_raw_fd(),
            &[IoSlice::new(&text)],
            &[ControlMessage::ScmRights(&raw)],
            MsgFlags::empty(),
            None,
        )?;
    }
    // Stays until the other has said how long it took, then ends it.
    nix::sys::socket::recv(own.as_raw_fd(), &mut byte, MsgFlags::empty())?;
    let _ = receiver.recv_timeout(Duration::from_millis(1));
    let mut rest = String::new();
    let _ = std::io::stdin().lock().read_line(&mut rest);
    new.check_alive()
}

/// The new process. Prints connections and nanoseconds from the stop of the old to the last armed
/// receive, then serves until it is killed.
pub fn run_new(inherited: &[RawFd]) -> Result<()> {
    let &[channel, memory, listener] = inherited else { bail!("three descriptors are needed") };
    // SAFETY: the parent passed exactly these descriptors to this process, for nobody else.
    let (channel, memory, listener) = unsafe {
        (
            OwnedFd::from_raw_fd(channel),
            OwnedFd::from_raw_fd(memory),
            TcpListener::from(OwnedFd::from_raw_fd(listener)),
        )
    };
    let shared = Shared::map(&memory)?;
    let mut half = Half::new()?;
    nix::sys::socket::send(channel.as_raw_fd(), b"r", MsgFlags::empty())?;
    let mut control = cmsg_space!([RawFd; BATCH]);
    loop {
        let mut text = [0; 8];
        let mut slices = [IoSliceMut::new(&mut text)];
        let message =
            recvmsg::<()>(channel.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty())?;
        if message.bytes == 0 {
            return Ok(());
        }
        let mut fds = Vec::new();
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = part {
                // SAFETY: the kernel has just installed these descriptors in this process.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        let start = u32::from_le_bytes([text[0], text[1], text[2], text[3]]) as usize;
        let total = u32::from_le_bytes([text[4], text[5], text[6], text[7]]) as usize;
        for (offset, fd) in fds.into_iter().enumerate() {
            let index = half.add(fd);
            shared.read(start + offset, &mut half.states[index]);
            half.arm(index);
        }
        half.uring.submit();
        if half.connections.len() >= total {
            break;
        }
    }
    let took_ns = now_ns()? - shared.stopped_ns().load(Ordering::SeqCst);
    half.accept(&listener);
    println!("{} {took_ns}", half.connections.len());
    std::io::stdout().flush()?;
    nix::sys::socket::send(channel.as_raw_fd(), b"d", MsgFlags::empty())?;
    loop {
        half.uring.enter(None)?;
        half.reap(false);
    }
}

struct Echoes {
    ready: usize,
    echoed: usize,
    failure: Option<End>,
    ids: Vec<ConnId>,
}

impl Handler for Echoes {
    fn on_connected(&mut self, _: &mut Io, id: ConnId) {
        self.ready += 1;
        self.ids.push(id);
    }
    fn on_data(&mut self, _: &mut Io, _: ConnId, data: &[u8]) {
        self.echoed += data.len();
    }
    fn on_end(&mut self, io: &mut Io, id: ConnId, end: End) {
        io.abort(id);
        self.failure = Some(end);
    }
}

/// One bare handoff of so many connections: connections for each second. Every connection is proven
/// to live before and after.
pub fn measure(connections: usize) -> Result<f64> {
    let address = free_address()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["peer-handoff", "--port", &address.port().to_string()]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut server = Server::start("bare handoff", &mut command, None)?;
    let mut stdin = server.child().stdin.take().context("no pipe")?;
    let mut lines = BufReader::new(server.child().stdout.take().context("no pipe")?).lines();
    let ready = lines.next().context("the bare handoff did not start")??;
    if ready != "ready" {
        bail!("the bare handoff said {ready:?}");
    }
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, address.port());
    let mut client = Client::new(address, 1024, 4096)?;
    let mut echoes = Echoes { ready: 0, echoed: 0, failure: None, ids: Vec::new() };
    let mut started = 0;
    turn_until(&mut client, &mut echoes, |client, echoes| {
        while started < connections && started - echoes.ready < 100 {
            client.io.connect(ConnectOptions::default())?;
            started += 1;
        }
        Ok(echoes.ready == connections)
    })?;
    echo(&mut client, &mut echoes)?;
    stdin.write_all(b"go\n")?;
    let line = lines.next().context("the bare handoff has ended")??;
    let (moved, took_ns) = line.split_once(' ').context("no figures")?;
    let (moved, took_ns): (usize, f64) = (moved.parse()?, took_ns.parse()?);
    echo(&mut client, &mut echoes)?;
    client.close_all()?;
    if moved != connections {
        bail!("the bare handoff moved {moved} of {connections} connections");
    }
    Ok(moved as f64 / took_ns * 1e9)
}

fn echo(client: &mut Client, echoes: &mut Echoes) -> Result<()> {
    echoes.echoed = 0;
    for (number, id) in echoes.ids.clone().into_iter().enumerate() {
        client.io.send(id, b"8 bytes.");
        if number % 500 == 499 {
            turn_until(client, echoes, |_, echoes| Ok(echoes.echoed == 8 * (number + 1)))?;
        }
    }
    let all = 8 * echoes.ids.len();
    turn_until(client, echoes, |_, echoes| Ok(echoes.echoed == all))
}

fn turn_until(
    client: &mut Client,
    echoes: &mut Echoes,
    mut done: impl FnMut(&mut Client, &mut Echoes) -> Result<bool>,
) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    while !done(client, echoes)? {
        client.turn(echoes, Duration::from_millis(5))?;
        if let Some(failure) = echoes.failure {
            bail!("a connection of the bare handoff ended: {failure:?}");
        }
        if Instant::now() > end {
            bail!("the bare handoff did not answer within 20 s");
        }
    }
    Ok(())
}
