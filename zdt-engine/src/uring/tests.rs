//! Tests of the ring against real sockets: the races that the worker relies on to be decided.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use super::*;
use crate::sys::socket;

fn ring(buffers: u16, bytes: u32) -> Ring {
    Ring::new(64, buffers, bytes).unwrap()
}

/// As a worker gets one: from somebody who is gone by then.
#[test]
fn a_ring_that_another_thread_has_made_belongs_to_who_enables_it() {
    use crate::sys::ring::{Blank, Shape};
    let blank = std::thread::spawn(|| Blank::make(Shape::new(16, 4))).join().unwrap().unwrap();
    let mut ring = Ring::from_blank(blank, false, 4, 64).unwrap();
    let (mut client, server) = pair();
    ring.recv_multishot(server.as_fd(), 3);
    client.write_all(b"hello").unwrap();
    let completion = next(&mut ring);
    assert_eq!((completion.token, completion.more), (3, true));
    let bytes = received(completion);
    ring.send(server.as_fd(), 3, bytes.into(), 0, true);
    assert_eq!(sent(next(&mut ring)).0, 5);
    let mut answer = [0; 5];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
    // Its restrictions hold: it may not connect anywhere.
    ring.socket(libc::AF_INET, 4);
    assert_eq!(next(&mut ring).result, -libc::EACCES);
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_nodelay(true).unwrap();
    (client, listener.accept().unwrap().0)
}

/// Enters until a completion is there.
#[track_caller]
fn next(ring: &mut Ring) -> Completion {
    let start = Instant::now();
    loop {
        if let Some(completion) = ring.next_completion() {
            return completion;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "a completion within ten seconds");
        ring.enter(1, Some(Duration::from_secs(1))).unwrap();
    }
}

#[track_caller]
fn received(completion: Completion) -> RecvBuffer {
    match completion.payload {
        CompletionPayload::Received(Some(buffer)) => {
            assert_eq!(buffer.len() as i32, completion.result);
            buffer
        }
        other => panic!("not received bytes: {} {other:?}", completion.result),
    }
}

#[track_caller]
fn sent(completion: Completion) -> (i32, SendBuffer) {
    match completion.payload {
        CompletionPayload::Sent(buffer) => (completion.result, buffer),
        other => panic!("not a send: {} {other:?}", completion.result),
    }
}

fn unread_bytes_at(stream: &TcpStream, count: usize) {
    let start = Instant::now();
    while socket::readable_bytes(stream.as_fd()).unwrap() < count {
        assert!(start.elapsed() < Duration::from_secs(10));
        std::thread::yield_now();
    }
}

#[test]
fn accepts_receives_and_sends() {
    let listener = socket::listener("127.0.0.1:0".parse().unwrap(), false, 16).unwrap();
    let address = socket::local_address(listener.as_fd()).unwrap();
    let mut ring = ring(4, 64);
    ring.accept_multishot(listener.as_fd(), 1);
    let mut clients = Vec::new();
    let mut servers = Vec::new();
    for index in 0..3u64 {
        let mut client = TcpStream::connect(address).unwrap();
        let completion = next(&mut ring);
        assert_eq!((completion.token, completion.result, completion.more), (1, 0, true));
        let CompletionPayload::Accepted(server) = completion.payload else { panic!("no socket") };
        ring.recv_multishot(server.as_fd(), 100 + index);
        client.write_all(format!("hello {index}").as_bytes()).unwrap();
        let completion = next(&mut ring);
        assert_eq!((completion.token, completion.more), (100 + index, true));
        let mut buffer = received(completion);
        assert_eq!(&*buffer, format!("hello {index}").as_bytes());
        buffer.make_ascii_uppercase();
        // Any 64-bit token will do for a send.
        ring.send(server.as_fd(), u64::MAX - index, buffer.into(), 2, false);
        let completion = next(&mut ring);
        assert_eq!((completion.token, completion.more), (u64::MAX - index, false));
        assert_eq!(sent(completion).0, 5);
        let mut answer = [0u8; 5];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(answer, format!("LLO {index}").as_bytes());
        clients.push(client);
        servers.push(server);
    }
    assert_eq!(ring.outstanding(), 4, "the accept and three receives");
    ring.cancel(Operation::accept(1));
    let completion = next(&mut ring);
    assert_eq!(
        (completion.token, completion.result, completion.more),
        (1, -libc::ECANCELED, false)
    );
    for (index, client) in clients.into_iter().enumerate() {
        drop(client);
        let completion = next(&mut ring);
        assert_eq!(completion.token, 100 + index as u64);
        assert_eq!((completion.result, completion.more), (0, false), "a FIN ends the receive");
        assert!(matches!(completion.payload, CompletionPayload::Received(None)));
    }
    assert_eq!((ring.outstanding(), ring.buffers_free()), (0, 4));
}

#[test]
fn a_reset_is_reported_once() {
    let (client, server) = pair();
    let mut ring = ring(4, 64);
    ring.recv_multishot(server.as_fd(), 5);
    ring.enter(0, None).unwrap();
    // Unread bytes turn the close into a reset.
    ring.send(server.as_fd(), 6, SendBuffer::Static(b"unread"), 0, false);
    assert_eq!(sent(next(&mut ring)).0, 6);
    unread_bytes_at(&client, 6);
    drop(client);
    let completion = next(&mut ring);
    assert_eq!(
        (completion.token, completion.result, completion.more),
        (5, -libc::ECONNRESET, false)
    );
    assert!(socket::take_error(server.as_fd()).unwrap().is_none(), "the ring was its witness");
}

#[test]
fn bytes_before_the_cancel_are_delivered() {
    // Whatever has been acknowledged must come out: from the receive before its last completion,
    // or from the socket afterwards. Never both, never neither.
    let (mut client, server) = pair();
    let mut ring = ring(8, 32);
    let mut expected = Vec::new();
    let mut seen = Vec::new();
    for round in 0..500u32 {
        ring.recv_multishot(server.as_fd(), 9);
        if round % 3 != 0 {
            ring.enter(0, None).unwrap();
        }
        let bytes = vec![round as u8; 1 + round as usize % 90];
        let late = round % 2 == 0;
        if !late {
            client.write_all(&bytes).unwrap();
        }
        ring.cancel(Operation::receive(9));
        if late {
            client.write_all(&bytes).unwrap();
        }
        expected.extend_from_slice(&bytes);
        loop {
            let completion = next(&mut ring);
            assert_eq!(completion.token, 9);
            let last = !completion.more;
            assert!(
                completion.result > 0 || completion.result == -libc::ECANCELED,
                "{}",
                completion.result
            );
            if completion.result > 0 {
                seen.extend_from_slice(&received(completion));
            }
            if last {
                break;
            }
        }
        assert_eq!(ring.outstanding(), 0);
        assert!(expected.starts_with(&seen));
    }
    ring.recv_multishot(server.as_fd(), 10);
    while seen.len() < expected.len() {
        let completion = next(&mut ring);
        let last = !completion.more;
        if completion.result > 0 {
            seen.extend_from_slice(&received(completion));
        }
        if last {
            ring.recv_multishot(server.as_fd(), 10);
        }
    }
    assert!(seen == expected);
}

#[test]
fn cancelling_what_has_ended_is_silent() {
    let (client, server) = pair();
    let mut ring = ring(4, 64);
    ring.cancel(Operation::receive(3));
    ring.recv_multishot(server.as_fd(), 3);
    drop(client);
    let completion = next(&mut ring);
    assert_eq!((completion.token, completion.result, completion.more), (3, 0, false));
    let stale = ring.send(server.as_fd(), 3, vec![1, 2, 3].into(), 0, true);
    drop(next(&mut ring));
    ring.cancel(stale);
    ring.cancel(Operation::receive(3));
    ring.enter(0, None).unwrap();
    ring.enter(1, Some(Duration::from_millis(1))).unwrap();
    assert!(ring.next_completion().is_none());
}

#[test]
fn no_free_buffer_ends_the_receive() {
    let (mut client, server) = pair();
    let mut ring = ring(2, 8);
    client.write_all(&[7u8; 24]).unwrap();
    unread_bytes_at(&server, 24);
    ring.recv_multishot(server.as_fd(), 1);
    let mut held = vec![received(next(&mut ring)), received(next(&mut ring))];
    assert_eq!(ring.buffers_free(), 0);
    let completion = next(&mut ring);
    assert_eq!((completion.result, completion.more), (-libc::ENOBUFS, false));
    // One comes back, and is seen by the kernel at the next enter.
    drop(held.pop());
    assert_eq!(ring.buffers_free(), 1);
    ring.recv_multishot(server.as_fd(), 1);
    assert_eq!(&*received(next(&mut ring)), &[7u8; 8]);
}

#[test]
fn a_receive_reads_no_further_than_its_limit() {
    let (mut client, server) = pair();
    const BUFFER: usize = 8 << 10;
    let mut ring = ring(64, BUFFER as u32);
    let at_least_6_17 = crate::sys::kernel::version().unwrap() >= (6, 17);
    assert_eq!(ring.limits_receives(), at_least_6_17);
    let limit = RECEIVE_LIMIT as usize;
    let writer = std::thread::spawn(move || client.write_all(&vec![5; 2 * limit]).unwrap());
    let (mut total, mut ends) = (0, Vec::new());
    ring.recv_multishot(server.as_fd(), 1);
    while total < 2 * limit {
        let completion = next(&mut ring);
        let more = completion.more;
        total += usize::try_from(completion.result).unwrap();
        if !more {
            ends.push(total);
            ring.recv_multishot(server.as_fd(), 1);
        }
        drop(completion);
    }
    writer.join().unwrap();
    if at_least_6_17 {
        // The last buffer may go beyond it.
        assert!(matches!(ends[..], [end] if (limit..limit + BUFFER).contains(&end)), "{ends:?}");
    }
}

#[test]
fn buffers_go_round_many_times() {
    let (mut client, server) = pair();
    let mut ring = ring(4, 16);
    ring.recv_multishot(server.as_fd(), 1);
    let mut held = Vec::new();
    // More rounds than the 16-bit tail has values.
    for round in 0..70_000u32 {
        client.write_all(&round.to_le_bytes()).unwrap();
        let completion = next(&mut ring);
        if !completion.more {
            ring.recv_multishot(server.as_fd(), 1);
        }
        let buffer = received(completion);
        assert_eq!(*buffer, round.to_le_bytes());
        // Out of order: every third is kept for a while.
        if round % 3 == 0 {
            held.push((round, buffer));
        }
        if held.len() == 2 {
            let (kept, buffer) = held.swap_remove(round as usize % 2);
            assert_eq!(*buffer, kept.to_le_bytes(), "nobody wrote to a buffer that is held");
        }
    }
}

#[test]
fn a_buffer_outlives_its_ring() {
    let (mut client, server) = pair();
    let mut ring = ring(2, 16);
    ring.recv_multishot(server.as_fd(), 1);
    client.write_all(b"kept").unwrap();
    let mut buffer = received(next(&mut ring));
    drop(ring);
    client.write_all(b"more").unwrap();
    buffer[0] = b'K';
    assert_eq!(&*buffer, b"Kept");
    buffer.truncate(9);
    buffer.truncate(2);
    assert_eq!(&*buffer, b"Ke");
}

/// Fills the connection until no send is taken; returns what was sent.
fn fill(ring: &mut Ring, server: &TcpStream) -> usize {
    let mut total = 0;
    loop {
        ring.send(server.as_fd(), 1, vec![0x55; 1 << 16].into(), 0, true);
        match sent(next(ring)).0 {
            result if result > 0 => total += result as usize,
            result => {
                assert_eq!(result, -libc::EAGAIN);
                return total;
            }
        }
    }
}

#[test]
fn sends_that_do_not_wait_are_short() {
    let (client, server) = pair();
    socket::set_buffers(server.as_fd(), 1 << 14, 1 << 14).unwrap();
    let mut ring = ring(2, 16);
    ring.send(server.as_fd(), 1, vec![0x55; 8 << 20].into(), 0, true);
    let (result, buffer) = sent(next(&mut ring));
    assert!(0 < result && result < 8 << 20, "{result}");
    assert_eq!(buffer.as_slice().len(), 8 << 20, "the whole buffer comes back");
    let total = result as usize + fill(&mut ring, &server);
    drop(ring);
    drop(server);
    let mut bytes = Vec::new();
    (&client).read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), total);
}

#[test]
fn a_waiting_send_sends_all() {
    let (mut client, server) = pair();
    socket::set_buffers(server.as_fd(), 1 << 14, 1 << 14).unwrap();
    let mut ring = ring(2, 16);
    let bytes: Vec<u8> = (0..4u32 << 20).map(|index| (index % 251) as u8).collect();
    let expected = bytes[1000..].to_vec();
    let reader = std::thread::spawn(move || {
        let mut seen = vec![0u8; (4 << 20) - 1000];
        client.read_exact(&mut seen).unwrap();
        seen
    });
    ring.send(server.as_fd(), 1, bytes.into(), 1000, false);
    assert_eq!(sent(next(&mut ring)).0 as usize, expected.len());
    assert!(reader.join().unwrap() == expected);
}

#[test]
fn a_cancelled_send_tells_how_much_was_sent() {
    let (client, server) = pair();
    socket::set_buffers(server.as_fd(), 1 << 14, 1 << 14).unwrap();
    let mut ring = ring(2, 16);
    let bytes: Vec<u8> = (0..8u32 << 20).map(|index| (index % 251) as u8).collect();
    let operation = ring.send(server.as_fd(), 77, bytes.clone().into(), 0, false);
    ring.enter(0, None).unwrap();
    assert!(ring.next_completion().is_none(), "the socket's buffer is full");
    ring.cancel(operation);
    let completion = next(&mut ring);
    assert_eq!((completion.token, completion.more), (77, false));
    let (result, buffer) = sent(completion);
    assert!(0 < result && result < 8 << 20, "{result}");
    assert!(buffer.as_slice() == bytes);
    // A second one, cancelled before a byte went out.
    let total = result as usize + fill(&mut ring, &server);
    let operation = ring.send(server.as_fd(), 78, vec![1; 10].into(), 0, false);
    ring.enter(0, None).unwrap();
    ring.cancel(operation);
    assert_eq!(sent(next(&mut ring)).0, -libc::ECANCELED);
    drop(ring);
    drop(server);
    let mut seen = Vec::new();
    (&client).read_to_end(&mut seen).unwrap();
    assert_eq!(seen.len(), total);
    assert!(seen[..result as usize] == bytes[..result as usize]);
}

#[test]
fn sending_to_a_closed_peer_is_an_error_and_no_signal() {
    let (client, server) = pair();
    server.shutdown(Shutdown::Write).unwrap();
    let mut ring = ring(2, 16);
    ring.send(server.as_fd(), 1, vec![1].into(), 0, true);
    let (result, buffer) = sent(next(&mut ring));
    assert_eq!(result, -libc::EPIPE);
    assert_eq!(buffer.as_slice(), [1]);
    drop(client);
}

#[test]
#[should_panic(expected = "range")]
fn a_range_beyond_the_buffer_is_refused() {
    let (_client, server) = pair();
    ring(2, 16).send(server.as_fd(), 1, vec![1].into(), 2, true);
}

#[test]
#[should_panic(expected = "56 bits")]
fn a_token_that_is_too_large_is_refused() {
    let (_client, server) = pair();
    ring(2, 16).recv_multishot(server.as_fd(), 1 << 56);
}

#[test]
fn polls_report_every_wake_up() {
    let event = crate::sys::EventFd::new().unwrap();
    let mut ring = ring(2, 16);
    ring.poll_multishot(event.as_fd(), 42);
    for _ in 0..3 {
        event.signal().unwrap();
        let completion = next(&mut ring);
        assert_eq!((completion.token, completion.more), (42, true));
        assert!(completion.result & i32::from(libc::POLLIN) != 0);
        assert!(event.take().unwrap());
    }
    ring.cancel(Operation::poll(42));
    let completion = next(&mut ring);
    assert_eq!((completion.result, completion.more), (-libc::ECANCELED, false));
}

#[test]
fn closes_come_after_what_was_queued_before() {
    let (mut client, server) = pair();
    let mut ring = ring(2, 16);
    let server: OwnedFd = server.into();
    let number = server.as_raw_fd();
    ring.send(server.as_fd(), 1, vec![9; 5].into(), 0, false);
    ring.close(server);
    assert_eq!(sent(next(&mut ring)).0, 5);
    let mut seen = Vec::new();
    client.read_to_end(&mut seen).unwrap();
    assert_eq!(seen, [9; 5], "the bytes, then the FIN");
    assert!(ring.next_completion().is_none());
    let again = nix::fcntl::fcntl(client.as_fd(), nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(number));
    assert!(again.unwrap() >= number);
}

#[test]
fn more_operations_than_places() {
    let mut ring = Ring::new(4, 2, 16).unwrap();
    let (client, server) = pair();
    for index in 0..500u64 {
        ring.send(server.as_fd(), index, vec![index as u8].into(), 0, false);
    }
    let mut tokens = HashMap::new();
    for _ in 0..500 {
        let completion = next(&mut ring);
        *tokens.entry(completion.token).or_insert(0) += 1;
        assert_eq!(sent(completion).0, 1);
    }
    assert!(tokens.len() == 500 && tokens.values().all(|count| *count == 1));
    assert_eq!(ring.outstanding(), 0);
    drop(client);
}

#[test]
fn more_completions_than_places() {
    // A ring with 4 entries has room for 16 completions: 300 wake-ups overflow it. The kernel keeps
    // the rest, and may end a multishot operation whose completion found no room.
    let events: Vec<_> = (0..300).map(|_| crate::sys::EventFd::new().unwrap()).collect();
    let mut ring = Ring::new(4, 2, 16).unwrap();
    for (token, event) in events.iter().enumerate() {
        ring.poll_multishot(event.as_fd(), token as u64);
    }
    ring.enter(0, None).unwrap();
    for event in &events {
        event.signal().unwrap();
    }
    let mut seen = vec![0u32; events.len()];
    while seen.contains(&0) {
        let completion = next(&mut ring);
        assert!(completion.result > 0);
        seen[completion.token as usize] += 1;
        if !completion.more {
            ring.poll_multishot(events[completion.token as usize].as_fd(), completion.token);
        }
    }
}

#[test]
fn timeouts_end_the_wait() {
    let mut ring = ring(2, 16);
    let start = Instant::now();
    ring.enter(1, Some(Duration::from_millis(20))).unwrap();
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(19) && waited < Duration::from_secs(5), "{waited:?}");
    ring.enter(1, Some(Duration::ZERO)).unwrap();
    ring.enter(1, Some(Duration::from_nanos(1))).unwrap();
    ring.enter(0, Some(Duration::MAX)).unwrap();
    assert!(ring.next_completion().is_none());
}

#[test]
fn dropping_with_operations_in_flight() {
    for round in 0..20 {
        let listener = socket::listener("127.0.0.1:0".parse().unwrap(), false, 16).unwrap();
        let address = socket::local_address(listener.as_fd()).unwrap();
        let (mut client, server) = pair();
        socket::set_buffers(server.as_fd(), 1 << 14, 1 << 14).unwrap();
        let event = crate::sys::EventFd::new().unwrap();
        let mut ring = ring(4, 64);
        ring.accept_multishot(listener.as_fd(), 1);
        ring.recv_multishot(server.as_fd(), 2);
        ring.poll_multishot(event.as_fd(), 3);
        ring.send(server.as_fd(), 4, vec![1; 8 << 20].into(), 0, false);
        if round % 4 != 0 {
            ring.enter(0, None).unwrap();
        }
        let waiting = TcpStream::connect(address).unwrap();
        client.write_all(b"bytes nobody reads").unwrap();
        if round % 4 == 2 {
            ring.enter(1, None).unwrap();
        }
        let start = Instant::now();
        drop(ring);
        assert!(start.elapsed() < Duration::from_secs(4), "every operation could be cancelled");
        drop((waiting, listener, server));
        // Nothing holds the server's socket any more: the client sees the end.
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut sink = vec![0u8; 1 << 16];
        while client.read(&mut sink).is_ok_and(|count| count > 0) {}
    }
}

#[test]
fn rings_come_and_go() {
    // More than the 16 places for registered rings of a thread, and than the memory limit.
    for _ in 0..100 {
        probe().unwrap();
    }
}

#[test]
fn sizes_that_no_ring_can_have() {
    assert!(matches!(Ring::new(8, 3, 64), Err(SetupError::InvalidSize)));
    assert!(matches!(Ring::new(8, 0, 64), Err(SetupError::InvalidSize)));
    assert!(matches!(Ring::new(8, 2, 0), Err(SetupError::InvalidSize)));
}

#[test]
fn a_file_is_written_and_read_where_it_is_said_and_closed_aside() {
    let mut ring = Ring::new_connecting(64, 4, 4_096).unwrap();
    let file = OwnedFd::from(tempfile::tempfile().unwrap());
    ring.write_at(file.as_fd(), 1, SendBuffer::Owned(b"0123456789".to_vec()), 2, 5);
    let (result, buffer) = sent(next(&mut ring));
    assert_eq!((result, buffer.as_slice()), (8, &b"0123456789"[..]));
    ring.read_at(file.as_fd(), 2, vec![b'x'; 8], 3);
    let completion = next(&mut ring);
    assert_eq!(completion.token, 2);
    let (result, buffer) = sent(completion);
    assert_eq!((result, buffer.as_slice()), (8, &b"\0\x00234567"[..]));
    // Up to its end, and there nothing.
    for (offset, count, bytes) in [(10, 3, &b"789xxxxx"[..]), (13, 0, b"xxxxxxxx")] {
        ring.read_at(file.as_fd(), 3, vec![b'x'; 8], offset);
        let (result, buffer) = sent(next(&mut ring));
        assert_eq!((result, buffer.as_slice()), (count, bytes));
    }
    // The other end of a pipe notices when it is closed.
    let (reader, writer) = nix::unistd::pipe().unwrap();
    ring.close_aside(writer);
    ring.enter(0, None).unwrap();
    assert_eq!(nix::unistd::read(&reader, &mut [0]).unwrap(), 0, "the end");
    // Only for those that were made for it.
    let mut plain = Ring::new(64, 4, 4_096).unwrap();
    plain.read_at(file.as_fd(), 4, vec![0; 8], 0);
    assert_eq!(sent(next(&mut plain)).0, -libc::EACCES);
}
