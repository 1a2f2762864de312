//! Sockets: listeners, non-blocking accept, options, peers, seqpacket pairs.
//!
//! Must not know: who listens, what is spoken.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, Shutdown, SockFlag, SockType, SockaddrStorage, getsockopt, setsockopt,
    sockopt,
};

const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

/// Who is at the other end of a Unix socket, as of its connect (SO_PEERCRED).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Process id.
    pub pid: i32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

/// A listening TCP socket, non-blocking and close-on-exec, with TCP_NODELAY for what it accepts. An
/// IPv6 one takes IPv6 only: IPv4 and IPv6 are separate reuseport groups.
///
/// # Errors
/// What socket(2), bind(2) and listen(2) say.
pub fn listener(address: SocketAddr, reuseport: bool, backlog: u32) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let listener = socket::socket(family, SockType::Stream, FLAGS, None)?;
    setsockopt(&listener, sockopt::ReuseAddr, &true)?;
    if reuseport {
        setsockopt(&listener, sockopt::ReusePort, &true)?;
    }
    if address.is_ipv6() {
        setsockopt(&listener, sockopt::Ipv6V6Only, &true)?;
    }
    setsockopt(&listener, sockopt::TcpNoDelay, &true)?;
    socket::bind(listener.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(listener.as_fd(), backlog)?;
    Ok(listener)
}

/// Not nix's: it refuses a backlog above libc's SOMAXCONN, whatever the sysctl says.
fn listen(socket: BorrowedFd<'_>, backlog: u32) -> io::Result<()> {
    let backlog = libc::c_int::try_from(backlog).unwrap_or(libc::c_int::MAX);
    // SAFETY: the call takes two integers; the descriptor is borrowed, and so open.
    Errno::result(unsafe { libc::listen(socket.as_raw_fd(), backlog) })?;
    Ok(())
}

/// False once somebody has shut the listener down.
///
/// # Errors
/// What getsockopt(2) says.
pub fn is_listening(listener: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(getsockopt(&listener, sockopt::AcceptConn)?)
}

/// Makes one that was shut down listen again, at the address that it had.
///
/// # Errors
/// What bind(2) and listen(2) say: a port that the kernel had chosen is free after a shutdown.
pub fn listen_again(listener: BorrowedFd<'_>, address: SocketAddr, backlog: u32) -> io::Result<()> {
    if local_address(listener)?.port() != address.port() {
        socket::bind(listener.as_raw_fd(), &SockaddrStorage::from(address))?;
    }
    listen(listener, backlog)
}

/// Takes a connection out of a non-blocking listener's queue; `None` when it is empty. The
/// connection is non-blocking and close-on-exec.
///
/// # Errors
/// What accept4(2) says, except errors that concern only the connection that was lost: those are
/// skipped.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<Option<(OwnedFd, SocketAddr)>> {
    loop {
        match socket::accept4(listener.as_raw_fd(), FLAGS) {
            Ok(descriptor) => {
                // SAFETY: the kernel has just opened this descriptor for us alone.
                let connection = unsafe { OwnedFd::from_raw_fd(descriptor) };
                match peer_address(std::os::fd::AsFd::as_fd(&connection)) {
                    Ok(peer) => return Ok(Some((connection, peer))),
                    // Reset while it was queued.
                    Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
                        return Ok(Some((connection, unknown_peer())));
                    }
                    Err(error) => return Err(error),
                }
            }
            Err(Errno::EAGAIN) => return Ok(None),
            // accept(2): errors already pending on the new connection.
            Err(
                Errno::EINTR
                | Errno::ECONNABORTED
                | Errno::EPROTO
                | Errno::ENETDOWN
                | Errno::ENOPROTOOPT
                | Errno::EHOSTDOWN
                | Errno::ENONET
                | Errno::EHOSTUNREACH
                | Errno::ENETUNREACH,
            ) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn unknown_peer() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
}

fn to_std(address: &SockaddrStorage) -> io::Result<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Ok(SocketAddr::V4((*v4).into()));
    }
    if let Some(v6) = address.as_sockaddr_in6() {
        return Ok(SocketAddr::V6((*v6).into()));
    }
    Err(Errno::EAFNOSUPPORT.into())
}

/// The address of the other end of a TCP connection.
///
/// # Errors
/// ENOTCONN once the connection was reset.
pub fn peer_address(connection: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    to_std(&socket::getpeername::<SockaddrStorage>(connection.as_raw_fd())?)
}

/// The address that a socket is bound to.
///
/// # Errors
/// What getsockname(2) says.
pub fn local_address(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    to_std(&socket::getsockname::<SockaddrStorage>(socket.as_raw_fd())?)
}

/// Sends small segments at once (TCP_NODELAY).
///
/// # Errors
/// What setsockopt(2) says.
pub fn set_nodelay(connection: BorrowedFd<'_>) -> io::Result<()> {
    Ok(setsockopt(&connection, sockopt::TcpNoDelay, &true)?)
}

/// Ends a connection in one or both directions, whoever else holds a duplicate of the socket.
///
/// # Errors
/// ENOTCONN if it has ended already.
pub fn shutdown(connection: BorrowedFd<'_>, how: std::net::Shutdown) -> io::Result<()> {
    let how = match how {
        std::net::Shutdown::Read => Shutdown::Read,
        std::net::Shutdown::Write => Shutdown::Write,
        std::net::Shutdown::Both => Shutdown::Both,
    };
    Ok(socket::shutdown(connection.as_raw_fd(), how)?)
}

/// Takes the socket's pending error, if any (SO_ERROR).
///
/// # Errors
/// What getsockopt(2) says.
pub fn take_error(socket: BorrowedFd<'_>) -> io::Result<Option<io::Error>> {
    let error = socket::getsockopt(&socket, sockopt::SocketError)?;
    Ok((error != 0).then(|| io::Error::from_raw_os_error(error)))
}

/// Bytes that were received but not yet read (FIONREAD).
///
/// # Errors
/// What ioctl(2) says.
pub fn readable_bytes(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int to the address given.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    Errno::result(result)?;
    Ok(count as usize)
}

/// Who is at the other end of a Unix socket.
///
/// # Errors
/// What getsockopt(2) says.
pub fn peer_credentials(socket: BorrowedFd<'_>) -> io::Result<PeerCredentials> {
    let credentials = socket::getsockopt(&socket, sockopt::PeerCredentials)?;
    Ok(PeerCredentials { pid: credentials.pid(), uid: credentials.uid(), gid: credentials.gid() })
}

/// Two connected Unix sockets that keep message boundaries, non-blocking and close-on-exec.
///
/// # Errors
/// When out of descriptors.
pub fn seqpacket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, FLAGS)?)
}

/// Asks for larger socket buffers; the kernel gives at most its sysctl limits.
///
/// # Errors
/// What setsockopt(2) says.
pub fn set_buffers(socket: BorrowedFd<'_>, send: usize, receive: usize) -> io::Result<()> {
    setsockopt(&socket, sockopt::SndBuf, &send)?;
    Ok(setsockopt(&socket, sockopt::RcvBuf, &receive)?)
}

/// The address as a `sockaddr_in` or `sockaddr_in6`, byte by byte (ip(7), ipv6(7)).
pub fn encode_address(address: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(28);
    match address {
        SocketAddr::V4(address) => {
            bytes.extend_from_slice(&(libc::AF_INET as libc::sa_family_t).to_ne_bytes());
            bytes.extend_from_slice(&address.port().to_be_bytes());
            bytes.extend_from_slice(&address.ip().octets());
            bytes.extend_from_slice(&[0; 8]);
        }
        SocketAddr::V6(address) => {
            bytes.extend_from_slice(&(libc::AF_INET6 as libc::sa_family_t).to_ne_bytes());
            bytes.extend_from_slice(&address.port().to_be_bytes());
            bytes.extend_from_slice(&address.flowinfo().to_be_bytes());
            bytes.extend_from_slice(&address.ip().octets());
            bytes.extend_from_slice(&address.scope_id().to_ne_bytes());
        }
    }
    bytes
}

/// The path as a `sockaddr_un` (unix(7)); the caller has made sure that it has at most 107 bytes.
pub fn encode_unix_address(path: &str) -> Vec<u8> {
    let mut bytes = (libc::AF_UNIX as libc::sa_family_t).to_ne_bytes().to_vec();
    bytes.extend_from_slice(path.as_bytes());
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn listeners_share_a_port_and_accept_without_waiting() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let first = listener(address.parse().unwrap(), true, 16).unwrap();
            let bound = local_address(first.as_fd()).unwrap();
            let second = listener(bound, true, 16).unwrap();
            let taken = listener(bound, false, 16).unwrap_err();
            assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
            assert!(accept(first.as_fd()).unwrap().is_none());
            drop(second);

            let mut client = TcpStream::connect(bound).unwrap();
            let (server, peer) = accept(first.as_fd()).unwrap().unwrap();
            assert_eq!(peer, client.local_addr().unwrap());
            set_nodelay(server.as_fd()).unwrap();
            client.write_all(b"hello").unwrap();
            let mut server_stream = TcpStream::from(server.try_clone().unwrap());
            server_stream.set_nonblocking(false).unwrap();
            let mut one = [0u8; 1];
            server_stream.read_exact(&mut one).unwrap();
            assert_eq!(readable_bytes(server.as_fd()).unwrap(), 4);
            assert!(take_error(server.as_fd()).unwrap().is_none());
            shutdown(server.as_fd(), std::net::Shutdown::Write).unwrap();
            assert_eq!(client.read(&mut one).unwrap(), 0, "shutdown reaches the client");
        }
    }

    #[test]
    fn pairs_know_their_peer() {
        let (left, _right) = seqpacket_pair().unwrap();
        set_buffers(left.as_fd(), 1 << 16, 1 << 16).unwrap();
        let peer = peer_credentials(left.as_fd()).unwrap();
        assert_eq!(peer.pid as u32, std::process::id());
        assert_eq!(peer.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(peer.gid, nix::unistd::getegid().as_raw());
    }
}
