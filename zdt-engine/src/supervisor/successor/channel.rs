//! One end of the connection between a supervisor and its successor.
//!
//! Must not know: what the messages mean.

use std::io::{self, IoSlice};
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::control::MAX_MESSAGE_BYTES;
use crate::fdpass;
use crate::supervisor::workers::link::watched;

/// Sends `Out`, receives `In`.
#[derive(Debug)]
pub struct Channel<Out, In> {
    socket: AsyncFd<OwnedFd>,
    messages: PhantomData<(Out, In)>,
}

impl<Out: Serialize, In: DeserializeOwned> Channel<Out, In> {
    /// Over a connected seqpacket socket.
    ///
    /// # Errors
    /// If it cannot be watched.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = watched(socket, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { socket, messages: PhantomData })
    }

    /// Sends a message; waits while the peer does not read.
    ///
    /// # Errors
    /// `BrokenPipe` if the peer is gone, and what sendmsg(2) says.
    pub async fn send(&self, message: &Out, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MAX_MESSAGE_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "message too large"));
        }
        let send = |socket: &OwnedFd| fdpass::send(socket.as_fd(), &[IoSlice::new(&bytes)], fds);
        self.socket.async_io(Interest::WRITABLE, send).await.map(drop)
    }

    /// The next message; `None` once the peer has closed its end.
    ///
    /// # Errors
    /// `InvalidData` for something that is no message, or one that lost its descriptors.
    pub async fn receive(&self) -> io::Result<Option<(In, Vec<OwnedFd>)>> {
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        let mut fds = Vec::new();
        let mut receive = |socket: &OwnedFd| fdpass::receive(socket.as_fd(), &mut buffer, &mut fds);
        // A peer that closes its end over something unread leaves an error, which comes once, and before what
        // it has said.
        let mut has_been_reset = false;
        let received = loop {
            match self.socket.async_io(Interest::READABLE, &mut receive).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset && !has_been_reset => {
                    has_been_reset = true;
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                other => break other?,
            }
        };
        if received.bytes == 0 {
            return Ok(None);
        }
        if received.truncated || received.control_truncated {
            let why = "a message of the handoff socket lost a part (out of descriptors?)";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let message = serde_json::from_slice(&buffer[..received.bytes])?;
        Ok(Some((message, fds)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FromSuccessor, ToSuccessor};
    use super::*;
    use crate::sys::socket::seqpacket_pair;

    #[test]
    fn messages_with_descriptors_arrive_whole_and_then_the_end() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ours, theirs) = seqpacket_pair().unwrap();
            let ours = Channel::<ToSuccessor, FromSuccessor>::new(ours).unwrap();
            let theirs = Channel::<FromSuccessor, ToSuccessor>::new(theirs).unwrap();
            let null = std::fs::File::open("/dev/null").unwrap();
            // More than the socket's buffer holds at once.
            let count = 2_000;
            let send = async {
                for _ in 0..count {
                    ours.send(&ToSuccessor::Listeners, &[null.as_fd()]).await.unwrap();
                }
                drop(ours);
            };
            let receive = async {
                for _ in 0..count {
                    let (message, fds) = theirs.receive().await.unwrap().unwrap();
                    assert_eq!((message, fds.len()), (ToSuccessor::Listeners, 1));
                }
                assert!(theirs.receive().await.unwrap().is_none());
            };
            tokio::join!(send, receive);
        });
    }

    #[test]
    fn last_words_are_heard() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ours, theirs) = seqpacket_pair().unwrap();
            let ours = Channel::<ToSuccessor, FromSuccessor>::new(ours).unwrap();
            ours.send(&ToSuccessor::Listeners, &[]).await.unwrap();
            let word =
                serde_json::to_vec(&FromSuccessor::Failed { message: "why".into() }).unwrap();
            fdpass::send(theirs.as_fd(), &[IoSlice::new(&word)], &[]).unwrap();
            // With something unread.
            drop(theirs);
            let (message, _) = ours.receive().await.unwrap().unwrap();
            assert_eq!(message, FromSuccessor::Failed { message: "why".into() });
            assert!(ours.receive().await.unwrap().is_none());
        });
    }

    #[test]
    fn junk_is_an_error() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ours, theirs) = seqpacket_pair().unwrap();
            fdpass::send(theirs.as_fd(), &[IoSlice::new(b"{\"type\":\"nonsense\"}")], &[]).unwrap();
            let ours = Channel::<ToSuccessor, FromSuccessor>::new(ours).unwrap();
            assert!(ours.receive().await.is_err());
        });
    }
}
