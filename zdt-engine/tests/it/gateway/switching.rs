//! An upstream that switches protocols, and then speaks none: it does what the path says.

use crate::lab::client::ReadOn;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use nix::sys::socket::{setsockopt, sockopt};
use zdt_engine::proto::websocket::handshake::accept_key;

/// See the module.
#[derive(Clone, Default)]
pub struct Switching(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// Heads, in the order of their arrival.
    heads: Mutex<Vec<String>>,
    /// Target and how it went on behind the head, for connections that have ended.
    ended: Mutex<Vec<(String, Vec<u8>)>>,
    written: AtomicU64,
    /// Those that wait may go on.
    go: AtomicBool,
}

impl Switching {
    /// Starts one; returns its URL, too.
    pub fn start() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let upstream = Self::default();
        let shared = upstream.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let upstream = shared.clone();
                let thread = std::thread::Builder::new().stack_size(256 << 10);
                thread.spawn(move || upstream.serve(stream)).expect("a thread");
            }
        });
        (upstream, url)
    }

    pub fn heads(&self) -> Vec<String> {
        self.0.heads.lock().expect("lock").clone()
    }

    /// What came behind the head on connections for that target that have ended.
    pub fn ended(&self, target: &str) -> Vec<Vec<u8>> {
        let ended = self.0.ended.lock().expect("lock");
        ended.iter().filter(|(known, _)| known == target).map(|(_, bytes)| bytes.clone()).collect()
    }

    /// Bytes that `/flood` got rid of.
    pub fn written(&self) -> u64 {
        self.0.written.load(Ordering::SeqCst)
    }

    pub fn go(&self) {
        self.0.go.store(true, Ordering::SeqCst);
    }

    fn wait(&self) {
        while !self.0.go.load(Ordering::SeqCst) {
            std::thread::park_timeout(std::time::Duration::from_millis(5));
        }
    }

    fn serve(&self, mut stream: TcpStream) {
        while let Some(head) = read_head(&mut stream) {
            self.0.heads.lock().expect("lock").push(head.clone());
            let target = head.split(' ').nth(1).expect("target").to_owned();
            let refusal = match target.as_str() {
                "/forbidden" => "HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\n\r\nno\n",
                "/ok" => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
                _ => {
                    let mut received = Vec::new();
                    let _ = self.switch(&mut stream, &head, &target, &mut received);
                    self.0.ended.lock().expect("lock").push((target, received));
                    return;
                }
            };
            // What comes behind it is another request.
            if stream.write_all(refusal.as_bytes()).is_err() {
                return;
            }
        }
    }

    fn switch(
        &self,
        stream: &mut TcpStream,
        head: &str,
        target: &str,
        received: &mut Vec<u8>,
    ) -> std::io::Result<()> {
        let path = target.split('?').next().unwrap_or_default();
        let number = || target.split('=').nth(1).and_then(|n| n.parse::<usize>().ok()).expect("n");
        if path == "/patient" {
            self.wait();
        }
        let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "));
        let accept = accept_key(key.unwrap_or_default().as_bytes());
        let accept = if path == "/wrong" { *b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" } else { accept };
        let accept = std::str::from_utf8(&accept).expect("text");
        write!(
            stream,
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\nX-Application: switching\r\n\r\n"
        )?;
        let mut piece = vec![0; 16 << 10];
        match path {
            "/reset" => {
                let _count = stream.read_on(&mut piece)?;
                let linger = libc_linger();
                setsockopt(&*stream, sockopt::Linger, &linger).expect("SO_LINGER");
            }
            "/bye" => {
                let _count = stream.read_on(&mut piece)?;
                stream.write_all(b"bye")?;
                stream.shutdown(Shutdown::Write)?;
                stream.read_to_end(received)?;
            }
            // Both directions at once.
            "/both" => {
                let (mut writer, bytes) = (stream.try_clone()?, number());
                let written = std::thread::spawn(move || {
                    writer.write_all(&pattern(bytes))?;
                    writer.shutdown(Shutdown::Write)
                });
                stream.read_to_end(received)?;
                written.join().expect("it does not panic")?;
            }
            "/stuck" => {
                let _count = stream.read_on(&mut piece)?;
                stream.write_all(b"bye")?;
                stream.shutdown(Shutdown::Write)?;
                self.wait();
            }
            "/gone" => {
                let _count = stream.read_on(&mut piece)?;
                stream.write_all(b"gone")?;
            }
            "/sink" => {
                stream.read_to_end(received)?;
                stream.write_all(b"the end")?;
            }
            "/flood" => {
                let bytes = number();
                for start in (0..bytes).step_by(1 << 14) {
                    let end = bytes.min(start + (1 << 14));
                    let piece: Vec<u8> = (start..end).map(|at| (at % 251) as u8).collect();
                    stream.write_all(&piece)?;
                    self.0.written.fetch_add(piece.len() as u64, Ordering::SeqCst);
                }
                stream.read_to_end(received)?;
            }
            "/deaf" => {
                self.wait();
                let (mut left, mut sum) = (number(), 0u64);
                while left > 0 {
                    let count = stream.read_on(&mut piece)?;
                    if count == 0 {
                        break;
                    }
                    left -= count;
                    sum = piece[..count]
                        .iter()
                        .fold(sum, |sum, &b| sum.wrapping_mul(31) + u64::from(b));
                }
                stream.write_all(&sum.to_be_bytes())?;
                stream.read_to_end(received)?;
            }
            _ => loop {
                let count = stream.read_on(&mut piece)?;
                if count == 0 {
                    // Its client may still be listening.
                    break stream.write_all(b"the end")?;
                }
                received.extend_from_slice(&piece[..count]);
                stream.write_all(&piece[..count])?;
            },
        }
        Ok(())
    }
}

/// Bytes that show where they are.
pub(super) fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at % 241) as u8).collect()
}

pub(super) fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_on(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return None,
        }
    }
    Some(String::from_utf8(head).expect("text"))
}

/// A close is a reset.
fn libc_linger() -> nix::libc::linger {
    nix::libc::linger { l_onoff: 1, l_linger: 0 }
}
