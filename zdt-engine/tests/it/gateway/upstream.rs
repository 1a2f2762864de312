//! An upstream that does what it is told by the path, the misbehaviour that no framework offers
//! included. It counts the requests that it has seen.

use crate::lab::client::ReadOn;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// See the module.
pub struct Upstream {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    name: String,
    stopped: AtomicBool,
    requests: AtomicU64,
    connections: AtomicU64,
    seen: Mutex<Vec<String>>,
    open: Mutex<Vec<TcpStream>>,
}

impl Upstream {
    /// On a port that nobody uses.
    pub fn start(name: &str) -> Upstream {
        Self::start_at(name, "127.0.0.1:0".parse().expect("address"))
    }

    /// On that port, which another one may just have left.
    pub fn start_at(name: &str, address: SocketAddr) -> Upstream {
        let listener = listener(address);
        let address = listener.local_addr().expect("address");
        let shared = Arc::new(Shared { name: name.to_owned(), ..Shared::default() });
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    if shared.stopped.load(Ordering::SeqCst) {
                        return;
                    }
                    shared.connections.fetch_add(1, Ordering::SeqCst);
                    shared.open.lock().expect("lock").push(stream.try_clone().expect("clone"));
                    let shared = Arc::clone(&shared);
                    std::thread::spawn(move || {
                        let end = stream.try_clone().expect("clone");
                        serve(stream, &shared);
                        // There is a duplicate in the list.
                        let _ = end.shutdown(std::net::Shutdown::Both);
                    });
                }
            })
        };
        Upstream { address, shared, thread: Some(thread) }
    }

    /// For `--upstream`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests that have arrived whole.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// Connections that were made.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Heads and bodies of the requests, in their order.
    pub fn seen(&self) -> Vec<String> {
        self.shared.seen.lock().expect("lock").clone()
    }

    /// Ends it, and every connection to it.
    pub fn stop(mut self) -> SocketAddr {
        self.end();
        self.address
    }

    fn end(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address); // ends the accept
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for stream in self.shared.open.lock().expect("lock").drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end();
        }
    }
}

/// A port at which nobody listens until [`Upstream::start_at`] does, and that no other test gets meanwhile: the
/// socket is bound to it, and refuses connections.
pub fn reserve() -> (OwnedFd, SocketAddr) {
    use nix::sys::socket::*;
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .expect("socket");
    // As whoever listens there later has it.
    setsockopt(&socket, sockopt::ReuseAddr, &true).expect("SO_REUSEADDR");
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).expect("bind");
    let place: SockaddrIn = getsockname(socket.as_raw_fd()).expect("its address");
    (socket, std::net::SocketAddrV4::from(place).into())
}

fn listener(address: SocketAddr) -> TcpListener {
    // std sets SO_REUSEADDR: connections of the one before may linger.
    TcpListener::bind(address).unwrap_or_else(|error| panic!("{address}: {error}"))
}

/// Serves requests on a Unix socket until the process ends.
pub fn serve_unix(path: &Path) {
    let listener = UnixListener::bind(path).expect("bind");
    // The workers run as another user.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(path, open).expect("permissions");
    std::thread::spawn(move || {
        let shared = Arc::new(Shared { name: "unix".to_owned(), ..Shared::default() });
        while let Ok((stream, _)) = listener.accept() {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || serve::<UnixStream>(stream, &shared));
        }
    });
}

/// Reads a whole request: head and decoded body.
fn read_request(stream: &mut impl Read, buffer: &mut Vec<u8>) -> Option<(String, Vec<u8>)> {
    let head_end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        fill(stream, buffer)?;
    };
    let head = String::from_utf8(buffer.drain(..head_end).collect()).expect("text");
    let value = |name: &str| {
        head.lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.to_owned())
    };
    let mut body = Vec::new();
    if let Some(length) = value("content-length") {
        let length: usize = length.parse().expect("length");
        while buffer.len() < length {
            fill(stream, buffer)?;
        }
        body = buffer.drain(..length).collect();
    } else if value("transfer-encoding").is_some() {
        loop {
            let line_end = loop {
                match buffer.windows(2).position(|window| window == b"\r\n") {
                    Some(at) => break at,
                    None => fill(stream, buffer)?,
                }
            };
            let line: Vec<u8> = buffer.drain(..line_end + 2).collect();
            let line = std::str::from_utf8(&line).expect("text").trim_end();
            let size = usize::from_str_radix(line, 16).expect("a chunk's size");
            while buffer.len() < size + 2 {
                fill(stream, buffer)?;
            }
            body.extend(buffer.drain(..size));
            buffer.drain(..2);
            if size == 0 {
                break;
            }
        }
    }
    Some((head, body))
}

fn fill(stream: &mut impl Read, buffer: &mut Vec<u8>) -> Option<()> {
    let mut bytes = [0; 16 << 10];
    match stream.read_on(&mut bytes) {
        Ok(count @ 1..) => buffer.extend_from_slice(&bytes[..count]),
        _ => return None,
    }
    Some(())
}

fn serve<S: Read + Write>(mut stream: S, shared: &Shared) {
    let mut buffer = Vec::new();
    while let Some((head, body)) = read_request(&mut stream, &mut buffer) {
        shared.requests.fetch_add(1, Ordering::SeqCst);
        let text = format!("{head}{}", String::from_utf8_lossy(&body[..body.len().min(200)]));
        shared.seen.lock().expect("lock").push(text);
        let target = head.split(' ').nth(1).expect("target").to_owned();
        let is_head = head.starts_with("HEAD ");
        let goes_on = answer(&mut stream, &target, is_head, &body, shared);
        if goes_on.is_none() {
            return;
        }
    }
}

/// `None` ends the connection.
fn answer(
    stream: &mut impl Write,
    target: &str,
    is_head: bool,
    body: &[u8],
    shared: &Shared,
) -> Option<()> {
    let mut raw = |text: &str| stream.write_all(text.as_bytes()).ok();
    let path = target.split('?').next().unwrap_or_default();
    let mut begins = path == "/begun";
    match path {
        "/die/silent" => return None,
        "/die/head" => {
            raw("HTTP/1.1 200 OK\r\nContent-Le")?;
            return None;
        }
        "/die/interim" => {
            raw("HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n")?;
            return None;
        }
        "/die/body" => {
            raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nten bytes.")?;
            return None;
        }
        "/die/chunk" => {
            raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n20\r\nten bytes.")?;
            return None;
        }
        "/too-much" => {
            raw("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\nsmuggled")?
        }
        "/nonsense" => raw("SSH-2.0-OpenSSH_9.9\r\n")?,
        "/two-lengths" => {
            raw("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok")?
        }
        "/length-and-chunks" => {
            raw(
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            )?;
        }
        "/hints" => raw(
            "HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        )?,
        "/trailers" => raw(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n",
        )?,
        "/until-close" => {
            raw("HTTP/1.0 200 OK\r\n\r\nuntil the end")?;
            return None;
        }
        "/drip" => {
            let text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 1\r\n\r\n";
            for byte in text.chars() {
                raw(&byte.to_string())?;
            }
        }
        "/hop" => raw(
            "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Private\r\nKeep-Alive: timeout=5\r\nX-Private: 1\r\nX-Public: 2\r\nContent-Length: 2\r\n\r\nok",
        )?,
        "/never" | "/begun" => loop {
            if std::mem::take(&mut begins) {
                raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")?;
            }
            if shared.stopped.load(Ordering::SeqCst) {
                return None;
            }
            std::thread::park_timeout(std::time::Duration::from_millis(20));
        },
        "/early" => {
            raw(
                "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nno\n",
            )?;
            return None;
        }
        "/big" => {
            let bytes: usize = target.split('=').nth(1).and_then(|n| n.parse().ok()).expect("n");
            raw(&format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n"))?;
            for start in (0..bytes).step_by(1 << 16) {
                let piece: Vec<u8> =
                    (start..bytes.min(start + (1 << 16))).map(|at| (at % 251) as u8).collect();
                stream.write_all(&piece).ok()?;
            }
        }
        "/sum" => {
            let sum = body.iter().fold(0u64, |sum, &byte| sum.wrapping_mul(31) + u64::from(byte));
            let text = format!("{} {sum}\n", body.len());
            raw(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()))?;
        }
        _ => {
            let text = format!("{} {target}\n", shared.name);
            let text_or_not = if is_head { "" } else { &text };
            raw(&format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text_or_not}",
                text.len()
            ))?;
        }
    }
    Some(())
}
