//! Finding the workers that a dead supervisor has left behind, and hearing what they have.
//!
//! Must not know: what becomes of them.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::WorkerId;
use super::link::{LinkEvent, receive, watched};
use super::rundir::{RunDir, connect_to_worker};
use super::store::State;
use super::workers::own_hello;
use crate::control::{Adopted, FromWorker, Hello, MAX_MESSAGE_BYTES, PROTOCOL_VERSIONS, ToWorker};
use crate::fdpass;

/// A worker answers within a turn of its loop.
const PATIENCE: Duration = Duration::from_secs(3);

/// A worker that lives.
pub(super) struct Survivor {
    pub id: WorkerId,
    /// The control connection to it, which it obeys from now on.
    pub socket: OwnedFd,
    /// What it said; `None` if it hangs.
    pub answer: Option<Answer>,
}

/// What a survivor says of itself.
pub(super) struct Answer {
    pub hello: Hello,
    pub adopted: Box<Adopted>,
    pub descriptors: Vec<OwnedFd>,
}

/// What a dead supervisor has left behind.
pub(super) struct Predecessor {
    pub state: Option<State>,
    pub survivors: Vec<Survivor>,
}

/// Connects to every worker of the run directory; `None` if none lives.
pub(super) async fn find(run_dir: &RunDir, state: Option<State>) -> Option<Predecessor> {
    let workers = run_dir.workers().unwrap_or_default();
    let mut asked = Vec::new();
    for id in workers {
        match connect_to_worker(run_dir.path(), id) {
            Ok(socket) => {
                asked.push((id, tokio::task::spawn_local(ask(id, socket))));
            }
            Err(error) => {
                tracing::info!(worker = id, %error, "has died meanwhile");
                run_dir.remove_worker(id);
            }
        }
    }
    let mut survivors = Vec::new();
    for (id, answer) in asked {
        match answer.await {
            Ok(Some((socket, answer))) => survivors.push(Survivor { id, socket, answer }),
            Ok(None) | Err(_) => {
                tracing::info!(worker = id, "has died meanwhile");
                run_dir.remove_worker(id);
            }
        }
    }
    (!survivors.is_empty()).then_some(Predecessor { state, survivors })
}

/// Greets a worker and asks what it has; `None` if it died.
async fn ask(id: WorkerId, socket: OwnedFd) -> Option<(OwnedFd, Option<Answer>)> {
    for message in [ToWorker::Hello(own_hello()), ToWorker::Adopt] {
        let bytes = serde_json::to_vec(&message).ok()?;
        fdpass::send(socket.as_fd(), &[IoSlice::new(&bytes)], &[]).ok()?;
    }
    let socket = watched(socket, tokio::io::Interest::READABLE).ok()?;
    let mut hello = None;
    let answer = tokio::time::timeout(PATIENCE, async {
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        loop {
            let mut ready = socket.readable().await.ok()?;
            ready.clear_ready();
            loop {
                match receive(socket.as_fd(), &mut buffer) {
                    Ok(Some(LinkEvent::Message(message, descriptors))) => match *message {
                        FromWorker::Hello(said) => hello = Some(said),
                        FromWorker::Adopted(adopted) => {
                            let hello = hello.take()?;
                            return Some(Answer { hello, adopted, descriptors });
                        }
                        _ => {}
                    },
                    Ok(_) => return None,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(_) => return None,
                }
            }
        }
    })
    .await;
    let socket = socket.into_inner();
    match answer {
        Ok(Some(answer)) => {
            if PROTOCOL_VERSIONS.newest_common(answer.hello.protocol).is_none() {
                tracing::error!(
                    worker = id,
                    "speaks control protocols {:?}, this supervisor {PROTOCOL_VERSIONS:?}",
                    answer.hello.protocol
                );
            }
            Some((socket, Some(answer)))
        }
        Ok(None) => None,
        Err(_) => {
            tracing::error!(worker = id, "lives, but does not answer");
            Some((socket, None))
        }
    }
}
