//! The control connection to one worker, and the watch over its process.
//!
//! Must not know: what the messages mean.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use crate::control::{FromWorker, MAX_MESSAGE_BYTES, MAX_MESSAGE_FDS, ToWorker};
use crate::fdpass;
use crate::supervisor::WorkerId;

/// Messages that may wait for a worker that does not read; a worker that lets more pile up hangs.
const MAX_WAITING_MESSAGES: usize = 1_024;

/// From a process's closing of its descriptors to its end.
const EXIT_TIME: Duration = Duration::from_secs(1);

/// Something from a worker, or about it.
#[derive(Debug)]
pub enum LinkEvent {
    /// A message, with its descriptors.
    Message(Box<FromWorker>, Vec<OwnedFd>),
    /// Something that is no message; the connection is not read any more.
    Malformed(String),
    /// It has closed the connection, and may live on.
    HungUp,
    /// The process is gone, and all that it had sent was delivered before.
    Exited,
}

/// Messages with their descriptors, in order.
type Waiting = RefCell<VecDeque<(Zeroizing<Vec<u8>>, Vec<OwnedFd>)>>;

/// The connection. Dropping it ends it, and the watch.
#[derive(Debug)]
pub struct Link {
    socket: Rc<AsyncFd<OwnedFd>>,
    waiting: Rc<Waiting>,
    watch: tokio::task::JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl Link {
    /// Starts reading and watching. Everything is reported to `events` until the process is gone.
    ///
    /// # Errors
    /// If the descriptors cannot be watched.
    pub fn start(
        worker: WorkerId,
        socket: OwnedFd,
        pidfd: OwnedFd,
        events: mpsc::Sender<(WorkerId, LinkEvent)>,
    ) -> io::Result<Link> {
        let socket = Rc::new(watched(socket, Interest::READABLE | Interest::WRITABLE)?);
        let pidfd = watched(pidfd, Interest::READABLE)?;
        let watch = tokio::task::spawn_local(watch(worker, Rc::clone(&socket), pidfd, events));
        Ok(Link { socket, waiting: Rc::default(), watch })
    }

    /// Sends a message; if the worker does not read now, it is kept, with duplicates of the
    /// descriptors, and sent when the worker does. Never waits.
    ///
    /// # Errors
    /// `BrokenPipe` if the worker is gone, `WouldBlock` if too much waits already.
    pub fn send(&self, message: &ToWorker, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        // Some hold keys. No message of that kind outgrows the first allocation.
        let mut bytes = Zeroizing::new(Vec::with_capacity(16 << 10));
        serde_json::to_writer(&mut *bytes, message)?;
        if bytes.len() > MAX_MESSAGE_BYTES || fds.len() > MAX_MESSAGE_FDS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "control message too large"));
        }
        if self.waiting.borrow().is_empty() {
            match fdpass::send(self.socket.as_fd(), &[IoSlice::new(&bytes)], fds) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        if self.waiting.borrow().len() >= MAX_WAITING_MESSAGES {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let fds = fds.iter().map(BorrowedFd::try_clone_to_owned).collect::<io::Result<Vec<_>>>()?;
        let first = self.waiting.borrow().is_empty();
        self.waiting.borrow_mut().push_back((bytes, fds));
        if first {
            tokio::task::spawn_local(flush(Rc::clone(&self.socket), Rc::clone(&self.waiting)));
        }
        Ok(())
    }
}

#[expect(
    deprecated,
    reason = "its replacement is unsafe, for types whose descriptor may change; an OwnedFd's cannot"
)]
pub(in crate::supervisor) fn watched(
    descriptor: OwnedFd,
    interest: Interest,
) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(descriptor, interest)
}

async fn flush(socket: Rc<AsyncFd<OwnedFd>>, waiting: Rc<Waiting>) {
    loop {
        let Ok(mut ready) = socket.writable().await else { return };
        loop {
            let sent = match waiting.borrow().front() {
                None => return,
                Some((bytes, fds)) => {
                    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                    fdpass::send(socket.as_fd(), &[IoSlice::new(bytes)], &fds)
                }
            };
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Sent, or the worker is gone and its pidfd says so.
                Ok(_) | Err(_) => drop(waiting.borrow_mut().pop_front()),
            }
        }
        ready.clear_ready();
    }
}

async fn watch(
    worker: WorkerId,
    socket: Rc<AsyncFd<OwnedFd>>,
    pidfd: AsyncFd<OwnedFd>,
    events: mpsc::Sender<(WorkerId, LinkEvent)>,
) {
    let mut buffer = vec![0; MAX_MESSAGE_BYTES];
    let mut open = true;
    let mut adopted = false;
    let mut reset = false;
    loop {
        let ended = tokio::select! {
            biased;
            ready = socket.readable(), if open => {
                match ready {
                    Ok(mut ready) => ready.clear_ready(),
                    Err(_) => open = false,
                }
                false
            }
            _ = pidfd.readable() => true,
        };
        // Also after the end: what it said last is in the socket still.
        while open {
            match receive(socket.as_fd(), &mut buffer) {
                Ok(Some(mut event)) => {
                    open = !matches!(event, LinkEvent::Malformed(_));
                    if let LinkEvent::Message(message, fds) = &mut event {
                        fds.truncate(wanted_descriptors(message, &mut adopted));
                    }
                    if events.send((worker, event)).await.is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // It has not read all that it was sent. This is told first, and once; what it said is behind it.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset && !reset => {
                    reset = true;
                }
                Ok(None) | Err(_) => {
                    open = false;
                    // A process that ends closes everything first.
                    let ends = tokio::time::timeout(EXIT_TIME, pidfd.readable()).await.is_ok();
                    if !ends && events.send((worker, LinkEvent::HungUp)).await.is_err() {
                        return;
                    }
                }
            }
        }
        if ended {
            let _ = events.send((worker, LinkEvent::Exited)).await;
            return;
        }
    }
}

/// How many descriptors are kept with a message that may have to wait: otherwise a worker could use up all that
/// the supervisor may have.
fn wanted_descriptors(message: &FromWorker, adopted: &mut bool) -> usize {
    match message {
        FromWorker::Parked { .. } => 1,
        FromWorker::Adopted(_) if !std::mem::replace(adopted, true) => usize::MAX,
        _ => 0,
    }
}

/// One message; `None` at the end of the connection.
pub(in crate::supervisor) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<Option<LinkEvent>> {
    let mut fds = Vec::new();
    let received = fdpass::receive(socket, buffer, &mut fds)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.control_truncated {
        // This process is out of descriptors, for which the worker need not be to blame. Whoever needs
        // them finds that they are missing.
        tracing::error!("out of descriptors: those of a control message got lost");
        fds.clear();
    }
    Ok(Some(if received.truncated {
        LinkEvent::Malformed("a control message was too large".into())
    } else {
        match serde_json::from_slice(&buffer[..received.bytes]) {
            Ok(message) => LinkEvent::Message(Box::new(message), fds),
            Err(error) => LinkEvent::Malformed(format!("unreadable control message: {error}")),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::seqpacket_pair;

    fn run<F: Future>(future: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, future)
    }

    #[test]
    fn what_a_process_said_last_comes_before_its_end() {
        run(async {
            let (ours, theirs) = seqpacket_pair().unwrap();
            let mut child = std::process::Command::new("true").spawn().unwrap();
            let pidfd = crate::sys::pidfd_open(child.id()).unwrap();
            // It has not read everything.
            fdpass::send(ours.as_fd(), &[IoSlice::new(b"{}")], &[]).unwrap();
            for _ in 0..3 {
                let text = serde_json::to_vec(&FromWorker::Ready).unwrap();
                fdpass::send(theirs.as_fd(), &[IoSlice::new(&text)], &[theirs.as_fd()]).unwrap();
            }
            drop(theirs);
            child.wait().unwrap();
            let (sender, mut events) = mpsc::channel(16);
            let _link = Link::start(5, ours, pidfd, sender).unwrap();
            for _ in 0..3 {
                let (worker, event) = events.recv().await.unwrap();
                assert_eq!(worker, 5);
                let LinkEvent::Message(message, fds) = event else { panic!("{event:?}") };
                assert_eq!((*message, fds.len()), (FromWorker::Ready, 0), "nobody wants them");
            }
            assert!(matches!(events.recv().await, Some((5, LinkEvent::Exited))));
        });
    }

    #[test]
    fn messages_wait_for_a_worker_that_does_not_read() {
        run(async {
            let (ours, theirs) = seqpacket_pair().unwrap();
            let pidfd = crate::sys::pidfd_open(std::process::id()).unwrap();
            let (sender, _events) = mpsc::channel(16);
            let link = Link::start(1, ours, pidfd, sender).unwrap();
            let count = 1_000;
            for request in 0..count {
                link.send(&ToWorker::Status { request }, &[]).unwrap();
            }
            let theirs = watched(theirs, Interest::READABLE).unwrap();
            let mut buffer = vec![0; MAX_MESSAGE_BYTES];
            for expected in 0..count {
                let bytes = theirs
                    .async_io(Interest::READABLE, |fd| {
                        fdpass::receive(fd.as_fd(), &mut buffer, &mut Vec::new())
                    })
                    .await
                    .unwrap()
                    .bytes;
                let message: ToWorker = serde_json::from_slice(&buffer[..bytes]).unwrap();
                assert_eq!(message, ToWorker::Status { request: expected });
            }
        });
    }

    #[test]
    fn junk_ends_the_reading() {
        run(async {
            let (ours, theirs) = seqpacket_pair().unwrap();
            let pidfd = crate::sys::pidfd_open(std::process::id()).unwrap();
            let (sender, mut events) = mpsc::channel(16);
            let _link = Link::start(1, ours, pidfd, sender).unwrap();
            fdpass::send(theirs.as_fd(), &[IoSlice::new(b"{\"type\":\"nonsense\"}")], &[]).unwrap();
            assert!(matches!(events.recv().await, Some((1, LinkEvent::Malformed(_)))));
        });
    }
}
