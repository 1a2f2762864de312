//! The plainest servers that io_uring allows: an echo of raw bytes, and a fixed HTTP answer to
//! whatever arrives. They parse nothing, so they show what the kernel leaves to a server.
//!
//! A port of the C programs that the first limits were measured with; as fast as those.
//!
//! Must not know: HTTP, WebSocket, who measures.

use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd;

use crate::uring::{Buffers, Completion, Socket, Uring};

const ACCEPT: u64 = 0;
const RECEIVE: u64 = 1;
const SEND: u64 = 2;
const CLOSE: u64 = 3;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Provided buffers of at least `buffer_bytes`, 32 MiB in all.
fn ring(buffer_bytes: usize) -> io::Result<(Uring, Buffers)> {
    let count = ((32 << 20) / buffer_bytes).clamp(64, 8192).next_power_of_two();
    let (mut uring, buffers) = Uring::new(4096, count as u16, buffer_bytes)?;
    uring.register_direct_descriptors(16384)?;
    Ok((uring, buffers))
}

/// Serves until the process ends: echoes, or answers each receive with 200 if `http`.
pub fn serve(listener: &TcpListener, http: bool, buffer_bytes: usize) -> io::Result<()> {
    let (mut uring, mut buffers) = ring(buffer_bytes)?;
    uring.accept_multishot(listener.as_raw_fd(), true, ACCEPT << 56);
    let mut completions: Vec<Completion> = Vec::with_capacity(4096);
    loop {
        uring.enter(None)?;
        uring.drain(&mut completions);
        for completion in completions.drain(..) {
            let connection = completion.user_data as u32;
            let socket = Socket::Direct(connection);
            match completion.user_data >> 56 {
                ACCEPT => {
                    if completion.result >= 0 {
                        let index = completion.result as u32;
                        uring.receive_multishot(
                            Socket::Direct(index),
                            RECEIVE << 56 | u64::from(index),
                        );
                    }
                    if !completion.more() {
                        uring.accept_multishot(listener.as_raw_fd(), true, ACCEPT << 56);
                    }
                }
                RECEIVE if completion.result > 0 => {
                    let Some(buffer) = completion.buffer() else { continue };
                    if http {
                        buffers.give(buffer);
                        uring.send_static(socket, ANSWER, SEND << 56 | 0xffff << 32);
                    } else {
                        uring.send_buffer(
                            socket,
                            &buffers,
                            buffer,
                            completion.result as usize,
                            SEND << 56 | u64::from(buffer) << 32,
                        );
                    }
                    if !completion.more() {
                        uring.receive_multishot(socket, completion.user_data);
                    }
                }
                RECEIVE => {
                    if let Some(buffer) = completion.buffer() {
                        buffers.give(buffer);
                    }
                    if completion.result == -libc::ENOBUFS {
                        uring.receive_multishot(socket, completion.user_data);
                    } else {
                        uring.close_direct(connection, CLOSE << 56);
                    }
                }
                SEND => {
                    let buffer = (completion.user_data >> 32) as u16;
                    if buffer != 0xffff {
                        buffers.give(buffer);
                    }
                }
                _ => {}
            }
        }
        buffers.publish();
    }
}
