//! Network namespaces, listening sockets, clients and servers for the tests of steering.
//!
//! Must not know: what is tested.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};
use zdt_engine::steering::{Bank, Counters, GroupId, Policy, Steering};

pub const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
pub const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// Longest that a test waits for something that has to happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `body` in a fresh network namespace: a thread of its own, whose children inherit it.
pub fn in_namespace(test: &'static str, body: impl FnOnce() + Send + 'static) {
    if !crate::skip::have_root(test) {
        return;
    }
    let thread = std::thread::Builder::new().name(test.to_owned()).spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        bring_up_loopback();
        // Without the program a queued connection must be lost, else the test proves nothing.
        std::fs::write("/proc/sys/net/ipv4/tcp_migrate_req", "0").expect("tcp_migrate_req");
        body();
    });
    if let Err(panic) = thread.expect("a thread").join() {
        std::panic::resume_unwind(panic);
    }
}

fn bring_up_loopback() {
    let any =
        socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), None).expect("a socket");
    // SAFETY: all fields of an ifreq may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request is a valid ifreq, which the kernel only reads.
    let result = unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCSIFFLAGS, &request) };
    assert_eq!(result, 0, "lo up: {}", std::io::Error::last_os_error());
}

/// A non-blocking listening socket that shares its address.
pub fn listener(address: SocketAddr, backlog: i32) -> TcpListener {
    let socket = unbound(address);
    setsockopt(&socket, sockopt::ReusePort, &true).expect("SO_REUSEPORT");
    setsockopt(&socket, sockopt::ReuseAddr, &true).expect("SO_REUSEADDR");
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true).expect("IPV6_V6ONLY");
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address)).expect("bind");
    listen(&socket, Backlog::new(backlog).expect("backlog")).expect("listen");
    TcpListener::from(socket)
}

fn unbound(address: SocketAddr) -> OwnedFd {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)
        .expect("a socket")
}

/// A TCP socket that has begun to connect, prepared by `before`.
pub fn connecting(address: SocketAddr, before: impl FnOnce(&OwnedFd)) -> TcpStream {
    let socket = unbound(address);
    before(&socket);
    match nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => TcpStream::from(socket),
        Err(error) => panic!("connect to {address}: {error}"),
    }
}

/// A connected client that ends with a reset, so that thousands leave no TIME_WAIT behind.
pub fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    end_with_reset(&stream);
    Ok(stream)
}

pub fn end_with_reset(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(stream, sockopt::Linger, &linger).expect("SO_LINGER");
}

/// Everything that waits in an accept queue.
pub fn accept_all(listener: &TcpListener) -> Vec<TcpStream> {
    let mut accepted = Vec::new();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).expect("blocking");
                stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
                accepted.push(stream);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return accepted,
            Err(error) => panic!("accept: {error}"),
        }
    }
}

/// Accepts until `count` connections have come.
pub fn accept_count(listener: &TcpListener, count: usize) -> Vec<TcpStream> {
    let mut accepted = Vec::new();
    wait_for(&format!("{count} connections"), || {
        accepted.extend(accept_all(listener));
        accepted.len() >= count
    });
    assert_eq!(accepted.len(), count);
    accepted
}

/// Polls a condition until it holds; a test fails if it never does.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Reads four bytes and sends them back.
pub fn echo_four(stream: &mut TcpStream) -> std::io::Result<[u8; 4]> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    stream.write_all(&bytes)?;
    Ok(bytes)
}

/// Steering, one group, and its listening sockets by slot.
pub struct Scene {
    pub steering: Steering,
    pub group: GroupId,
    pub address: SocketAddr,
    pub listeners: Vec<(u32, TcpListener)>,
}

impl Scene {
    /// One group at a free port of `ip`, with `workers` ready workers in bank 0.
    pub fn new(ip: IpAddr, max_workers: u32, workers: u32, policy: Policy) -> Self {
        let mut steering = Steering::load(max_workers, None).expect("steering");
        let first = listener(SocketAddr::new(ip, 0), 4096);
        let address = first.local_addr().expect("an address");
        let group = steering.add_listener_group(&first, policy).expect("a group");
        let mut scene = Self { steering, group, address, listeners: Vec::new() };
        scene.put(0, 0, first);
        for worker in 1..workers {
            scene.add(0, worker);
        }
        scene.flip(0);
        scene
    }

    /// Adds a ready worker with a new socket.
    pub fn add(&mut self, bank: u32, worker: u32) -> u32 {
        let socket = listener(self.address, 4096);
        self.put(bank, worker, socket)
    }

    fn put(&mut self, bank: u32, worker: u32, socket: TcpListener) -> u32 {
        let slot = self.steering.slot(bank, worker);
        self.steering.set_slot(self.group, slot, socket.as_fd()).expect("set a slot");
        self.steering.set_ready(self.group, slot, true).expect("ready");
        self.listeners.push((slot, socket));
        slot
    }

    /// Sends all new connections to one bank.
    pub fn flip(&mut self, bank: u32) {
        let epoch = self.steering.current().expect("the route").epoch + 1;
        self.steering.flip(Bank::only(epoch, bank)).expect("flip");
    }

    pub fn listener(&self, slot: u32) -> &TcpListener {
        &self.listeners.iter().find(|(at, _)| *at == slot).expect("a listener").1
    }

    /// Closes the socket of a slot, without telling steering.
    pub fn close(&mut self, slot: u32) {
        self.listeners.retain(|(at, _)| *at != slot);
    }

    pub fn counters(&self, slot: u32) -> Counters {
        let all = self.steering.counters().expect("counters");
        let mine = all.iter().find(|counters| counters.group == self.group).expect("the group");
        mine.slots[slot as usize]
    }

    /// Makes `count` connections and says how many each slot got, in the order of slots.
    pub fn spread(&self, count: usize) -> Vec<(u32, usize)> {
        let clients: Vec<_> =
            (0..count).map(|_| connect(self.address).expect("a connection")).collect();
        let mut spread: Vec<_> =
            self.listeners.iter().map(|(slot, socket)| (*slot, accept_all(socket).len())).collect();
        spread.sort_unstable();
        assert_eq!(spread.iter().map(|(_, count)| count).sum::<usize>(), clients.len());
        spread
    }
}
