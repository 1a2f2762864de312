//! Tests of descriptor passing: what is lost must be told.

use std::io::{Read, Write};
use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, setrlimit};

use super::*;
use crate::sys::socket;

fn pipes(count: usize) -> (Vec<std::io::PipeReader>, Vec<std::io::PipeWriter>) {
    (0..count).map(|_| std::io::pipe().unwrap()).unzip()
}

fn borrowed<T: AsFd>(descriptors: &[T]) -> Vec<BorrowedFd<'_>> {
    descriptors.iter().map(AsFd::as_fd).collect()
}

#[test]
fn descriptors_arrive_in_order_and_close_on_exec() {
    let (left, right) = socket::seqpacket_pair().unwrap();
    let (mut readers, writers) = pipes(5);
    let parts = [IoSlice::new(b"fi"), IoSlice::new(b""), IoSlice::new(b"ve")];
    assert_eq!(send(left.as_fd(), &parts, &borrowed(&writers)).unwrap(), 4);
    drop(writers);
    let mut buffer = [0u8; 16];
    let mut fds = vec![OwnedFd::from(std::fs::File::open("/dev/null").unwrap())];
    let received = receive(right.as_fd(), &mut buffer, &mut fds).unwrap();
    assert_eq!(received, Received { bytes: 4, truncated: false, control_truncated: false });
    assert_eq!(&buffer[..4], b"five");
    assert_eq!(fds.len(), 6, "appended to what was there");
    for (index, fd) in fds.drain(..).skip(1).enumerate() {
        let flags = FdFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFD).unwrap());
        assert!(flags.contains(FdFlag::FD_CLOEXEC));
        std::fs::File::from(fd).write_all(&[index as u8]).unwrap();
    }
    for (index, reader) in readers.iter_mut().enumerate() {
        let mut all = Vec::new();
        // To the end: no duplicate of the writing side is left anywhere.
        reader.read_to_end(&mut all).unwrap();
        assert_eq!(all, [index as u8]);
    }
}

#[test]
fn neither_side_waits() {
    let (left, right) = socket::seqpacket_pair().unwrap();
    let (mut buffer, mut fds) = ([0u8; 64], Vec::new());
    let empty = receive(right.as_fd(), &mut buffer, &mut fds).unwrap_err();
    assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
    let full = loop {
        if let Err(error) = send(left.as_fd(), &[IoSlice::new(&[0; 64])], &[]) {
            break error;
        }
    };
    assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    receive(right.as_fd(), &mut buffer, &mut fds).unwrap();
    drop(left);
    // A child that another test has just forked may hold a duplicate of `left` until it executes its
    // program: the end is waited for, not expected at once.
    loop {
        let mut readable = [PollFd::new(right.as_fd(), PollFlags::POLLIN)];
        poll(&mut readable, PollTimeout::NONE).unwrap();
        if receive(right.as_fd(), &mut buffer, &mut fds).unwrap().bytes == 0 {
            break;
        }
    }
    let closed = send(right.as_fd(), &[IoSlice::new(b"x")], &[]).unwrap_err();
    assert_eq!(closed.kind(), io::ErrorKind::BrokenPipe, "and no signal");
    assert!(fds.is_empty());
}

#[test]
fn a_message_that_is_too_long_is_told() {
    let (left, right) = socket::seqpacket_pair().unwrap();
    let (readers, _writers) = pipes(1);
    send(left.as_fd(), &[IoSlice::new(b"too long")], &borrowed(&readers)).unwrap();
    let (mut buffer, mut fds) = ([0u8; 3], Vec::new());
    let received = receive(right.as_fd(), &mut buffer, &mut fds).unwrap();
    assert_eq!(received, Received { bytes: 3, truncated: true, control_truncated: false });
    assert_eq!(fds.len(), 1);
}

#[test]
fn as_many_as_the_kernel_takes() {
    let (left, right) = socket::seqpacket_pair().unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let many = vec![null.as_fd(); MAX_FDS + 1];
    let refused = send(left.as_fd(), &[IoSlice::new(b"x")], &many).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    let refused = send(left.as_fd(), &[IoSlice::new(b"")], &many[..1]).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "descriptors need a byte");
    send(left.as_fd(), &[IoSlice::new(b"x")], &many[..MAX_FDS]).unwrap();
    let (mut buffer, mut fds) = ([0u8; 16], Vec::new());
    let received = receive(right.as_fd(), &mut buffer, &mut fds).unwrap();
    assert_eq!(received, Received { bytes: 1, truncated: false, control_truncated: false });
    assert_eq!(fds.len(), MAX_FDS);
}

const CHILD: &str = "ZDT_TEST_FDPASS_CHILD";

/// Out of descriptors in the receiver: in a process of its own, since the limit is one's own.
#[test]
fn running_out_of_descriptors_is_told() {
    if std::env::var(CHILD).is_err() {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "fdpass::tests::running_out_of_descriptors_is_told", "--nocapture"])
            .env(CHILD, "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let (left, right) = socket::seqpacket_pair().unwrap();
    let (mut readers, writers) = pipes(8);
    send(left.as_fd(), &[IoSlice::new(b"eight")], &borrowed(&writers)).unwrap();
    send(left.as_fd(), &[IoSlice::new(b"next")], &borrowed(&writers[..1])).unwrap();
    drop(writers);
    // Room for three more: the lowest free number is the first that would be opened.
    let lowest = std::fs::File::open("/dev/null").unwrap().as_raw_fd() as u64;
    let open = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse::<u64>().unwrap())
        .max()
        .unwrap();
    let limit = (lowest..)
        .filter(|number| !std::path::Path::new(&format!("/proc/self/fd/{number}")).exists());
    let limit = limit.take(3).last().unwrap() + 1;
    assert!(limit <= open + 4);
    setrlimit(Resource::RLIMIT_NOFILE, limit, 20_000).unwrap();
    let (mut buffer, mut fds) = ([0u8; 16], Vec::new());
    let received = receive(right.as_fd(), &mut buffer, &mut fds).unwrap();
    assert_eq!((received.bytes, received.control_truncated), (5, true));
    assert_eq!(fds.len(), 3, "those for which there was room");
    // The bytes of the next message still come, and its descriptor is lost as well.
    let received = receive(right.as_fd(), &mut buffer, &mut fds).unwrap();
    assert_eq!((received.bytes, received.control_truncated, fds.len()), (4, true, 3));
    drop(fds);
    for reader in &mut readers {
        assert_eq!(reader.read(&mut [0]).unwrap(), 0, "nothing leaked: every writer is closed");
    }
}

#[test]
fn descriptors_of_a_message_nobody_reads_are_closed() {
    let (left, right) = socket::seqpacket_pair().unwrap();
    let (mut readers, writers) = pipes(2);
    send(left.as_fd(), &[IoSlice::new(b"lost")], &borrowed(&writers)).unwrap();
    drop((left, right, writers));
    assert_eq!(readers[1].read(&mut [0]).unwrap(), 0);
}
