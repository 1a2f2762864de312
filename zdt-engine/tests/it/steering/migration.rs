//! Queued connections of a closed listener reach another one.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use zdt_engine::steering::Policy;

use super::harness::*;

const QUEUED: u32 = 200;

#[test]
fn accept_queue_of_a_closed_listener_v4() {
    in_namespace("steering::migration::accept_queue_of_a_closed_listener_v4", || accept_queue(V4));
}

#[test]
fn accept_queue_of_a_closed_listener_v6() {
    in_namespace("steering::migration::accept_queue_of_a_closed_listener_v6", || accept_queue(V6));
}

/// Established, with a request sent, never accepted by blue.
fn accept_queue(ip: IpAddr) {
    let mut scene = Scene::new(ip, 4, 2, Policy::RoundRobin);
    let mut clients: Vec<TcpStream> = (0..QUEUED)
        .map(|number| {
            let mut client = connect(scene.address).expect("a connection");
            client.write_all(&number.to_be_bytes()).expect("send");
            client
        })
        .collect();
    let green = [scene.add(1, 0), scene.add(1, 1)];
    scene.flip(1);
    scene.close(0);
    scene.close(1);
    let mut seen = Vec::new();
    for slot in green {
        // Round robin among green.
        for mut stream in accept_count(scene.listener(slot), QUEUED as usize / 2) {
            seen.push(u32::from_be_bytes(echo_four(&mut stream).expect("echo")));
        }
        assert_eq!(scene.counters(slot).migrated, u64::from(QUEUED / 2));
        assert_eq!(scene.counters(slot).selected, 0);
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..QUEUED).collect::<Vec<_>>());
    for (number, client) in (0..).zip(&mut clients) {
        let mut answer = [0; 4];
        client.read_exact(&mut answer).expect("an answer");
        assert_eq!(u32::from_be_bytes(answer), number);
    }
}

#[test]
fn without_the_program_they_are_lost() {
    in_namespace("steering::migration::without_the_program_they_are_lost", || {
        // What the other tests of this module rely on: it is not the kernel alone.
        let blue = listener((V4, 0).into(), 64);
        let address = blue.local_addr().expect("an address");
        let mut client = connect(address).expect("a connection");
        let green = listener(address, 64);
        drop(blue);
        let error = client.read_exact(&mut [0]).expect_err("reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert!(accept_all(&green).is_empty());
    });
}

#[test]
fn handshake_in_flight_v4() {
    in_namespace("steering::migration::handshake_in_flight_v4", || handshake_in_flight(V4));
}

#[test]
fn handshake_in_flight_v6() {
    in_namespace("steering::migration::handshake_in_flight_v6", || handshake_in_flight(V6));
}

/// The SYN has reached blue; its SYN-ACK gets lost, and blue closes before it is sent again. A socket
/// filter in the client loses it: everything is dropped that arrives at its socket.
fn handshake_in_flight(ip: IpAddr) {
    const CLIENTS: usize = 50;
    let mut scene = Scene::new(ip, 4, 1, Policy::Hash);
    let mut clients: Vec<_> =
        (0..CLIENTS).map(|_| connecting(scene.address, drop_what_arrives)).collect();
    wait_for("the SYNs", || half_open(ip) == CLIENTS);
    assert_eq!(scene.counters(0).selected, CLIENTS as u64);
    assert!(accept_all(scene.listener(0)).is_empty());

    let green = scene.add(1, 0);
    scene.flip(1);
    scene.close(0);
    clients.iter().for_each(let_arrive);
    // The kernel sends the SYN-ACK again after a second.
    let mut accepted = accept_count(scene.listener(green), CLIENTS);
    assert_eq!(scene.counters(green).migrated, CLIENTS as u64);
    assert_eq!(scene.counters(green).selected, 0);
    for client in &mut clients {
        client.set_nonblocking(false).expect("blocking");
        client.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let port = client.local_addr().expect("an address").port();
        client.write_all(&[1, 2, (port >> 8) as u8, port as u8]).expect("send");
    }
    for stream in &mut accepted {
        let port = stream.peer_addr().expect("a peer").port();
        assert_eq!(echo_four(stream).expect("echo"), [1, 2, (port >> 8) as u8, port as u8]);
    }
    for client in &mut clients {
        let mut answer = [0; 4];
        client.read_exact(&mut answer).expect("an answer");
    }
}

#[test]
fn last_packet_of_the_handshake_after_the_close_v4() {
    in_namespace("steering::migration::last_packet_of_the_handshake_after_the_close_v4", || {
        last_packet_after_the_close(V4);
    });
}

#[test]
fn last_packet_of_the_handshake_after_the_close_v6() {
    in_namespace("steering::migration::last_packet_of_the_handshake_after_the_close_v6", || {
        last_packet_after_the_close(V6);
    });
}

/// The client believes it is connected; for blue the handshake ends with the first data (which is what
/// TCP_DEFER_ACCEPT means), and that comes after the close.
fn last_packet_after_the_close(ip: IpAddr) {
    const CLIENTS: usize = 50;
    let mut scene = Scene::new(ip, 4, 1, Policy::Hash);
    defer_accept(scene.listener(0));
    let mut clients: Vec<_> =
        (0..CLIENTS).map(|_| connect(scene.address).expect("a connection")).collect();
    assert_eq!(half_open(ip), CLIENTS);

    let green = scene.add(1, 0);
    scene.flip(1);
    scene.close(0);
    for client in &mut clients {
        client.write_all(b"data").expect("send");
    }
    for mut stream in accept_count(scene.listener(green), CLIENTS) {
        assert_eq!(&echo_four(&mut stream).expect("echo"), b"data");
    }
    for client in &mut clients {
        let mut answer = [0; 4];
        client.read_exact(&mut answer).expect("an answer");
    }
    assert_eq!(scene.counters(green).migrated, CLIENTS as u64);
}

#[test]
fn a_killed_owner_loses_no_queued_connection() {
    in_namespace("steering::migration::a_killed_owner_loses_no_queued_connection", || {
        // The sockets of a process that was killed are closed like any others; here the queue is
        // longer than green's backlog, which migration ignores.
        let mut scene = Scene::new(V4, 4, 1, Policy::Hash);
        let small = listener(scene.address, 8);
        let green = scene.steering.slot(1, 0);
        scene.steering.set_slot(scene.group, green, &small).expect("set a slot");
        scene.steering.set_ready(scene.group, green, true).expect("ready");
        let owner = Owner::of(scene.listener(0));
        scene.close(0);
        let clients: Vec<_> =
            (0..QUEUED).map(|_| connect(scene.address).expect("a connection")).collect();
        assert!(accept_all(&small).is_empty());
        drop(owner);
        assert_eq!(accept_count(&small, clients.len()).len(), clients.len());
    });
}

/// A process that holds a duplicate of a socket until it is killed.
struct Owner(std::process::Child);

impl Owner {
    fn of(socket: &std::net::TcpListener) -> Self {
        let duplicate = socket.try_clone().expect("a duplicate");
        let child = std::process::Command::new("sleep")
            .arg("1000")
            .stdin(OwnedFd::from(duplicate))
            .spawn()
            .expect("sleep");
        Self(child)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.kill().expect("kill");
        self.0.wait().expect("wait");
    }
}

/// Connections of this namespace in SYN_RECV (state 3).
fn half_open(ip: IpAddr) -> usize {
    let table = if ip.is_ipv4() { "tcp" } else { "tcp6" };
    std::fs::read_to_string(format!("/proc/thread-self/net/{table}"))
        .expect("the table of connections")
        .lines()
        .filter(|line| line.split_whitespace().nth(3) == Some("03"))
        .count()
}

fn drop_what_arrives(socket: &OwnedFd) {
    // One instruction of classic BPF: return 0, "keep no byte of it".
    let mut code = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 }];
    let program = libc::sock_fprog { len: 1, filter: code.as_mut_ptr() };
    set_option(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program);
}

fn let_arrive(socket: &TcpStream) {
    set_option(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0i32);
}

fn defer_accept(socket: &std::net::TcpListener) {
    let seconds = 30i32;
    set_option(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, &seconds);
}

fn set_option<T>(socket: i32, level: i32, option: i32, value: &T) {
    let bytes = size_of::<T>() as libc::socklen_t;
    // SAFETY: pointer and length are of a live value, of the type that the callers' options take.
    let result =
        unsafe { libc::setsockopt(socket, level, option, std::ptr::from_ref(value).cast(), bytes) };
    assert_eq!(result, 0, "setsockopt: {}", std::io::Error::last_os_error());
}
