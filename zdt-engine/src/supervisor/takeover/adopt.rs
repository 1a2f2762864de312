//! Finding the workers of another supervisor, dead or about to go, and hearing what they have.
//!
//! Must not know: what becomes of them.

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::store::State;
use crate::control::{Adopted, FromWorker, Hello, MAX_MESSAGE_BYTES, PROTOCOL_VERSIONS, ToWorker};
use crate::fdpass;
use crate::supervisor::WorkerId;
use crate::supervisor::rundir::{RunDir, connect_to_worker};
use crate::supervisor::successor::Estate;
use crate::supervisor::workers::life::own_hello;
use crate::supervisor::workers::link::{LinkEvent, receive, watched};

/// A worker answers within a turn of its loop.
const PATIENCE: Duration = Duration::from_secs(3);

/// A worker that lives.
pub(in crate::supervisor) struct Survivor {
    pub id: WorkerId,
    /// The control connection to it, which it obeys from now on.
    pub socket: OwnedFd,
    /// What it said; `None` if it hangs.
    pub answer: Option<Answer>,
}

/// What a survivor says of itself.
pub(in crate::supervisor) struct Answer {
    pub hello: Hello,
    pub adopted: Box<Adopted>,
    pub descriptors: Vec<OwnedFd>,
}

/// What another supervisor has left.
pub(in crate::supervisor) struct Predecessor {
    pub state: Option<State>,
    pub survivors: Vec<Survivor>,
    /// What it left to this process expressly; nothing, if it was killed.
    pub estate: Option<Box<Estate>>,
}

/// A worker that was greeted, and still obeys another supervisor.
pub(in crate::supervisor) struct Greeted {
    pub id: WorkerId,
    /// What it said; `None` if it hangs.
    pub hello: Option<Hello>,
    socket: AsyncFd<OwnedFd>,
}

/// Connects to every worker of the run directory; `None` if none lives.
pub(in crate::supervisor) async fn find(
    run_dir: &RunDir,
    state: Option<State>,
) -> Option<Predecessor> {
    let greeted = greet_all(run_dir).await;
    let survivors = adopt_all(run_dir, greeted).await;
    (!survivors.is_empty()).then_some(Predecessor { state, survivors, estate: None })
}

/// Greets every worker of the run directory, which changes nothing for any of them.
pub(in crate::supervisor) async fn greet_all(run_dir: &RunDir) -> Vec<Greeted> {
    let mut asked = Vec::new();
    for id in run_dir.workers().unwrap_or_default() {
        match connect_to_worker(run_dir.path(), id) {
            Ok(socket) => asked.push((id, tokio::task::spawn_local(greet(id, socket)))),
            Err(error) => {
                tracing::info!(worker = id, %error, "has died meanwhile");
                run_dir.remove_worker(id);
            }
        }
    }
    let mut greeted = Vec::new();
    for (id, answer) in asked {
        match answer.await {
            Ok(Some(worker)) => greeted.push(worker),
            Ok(None) | Err(_) => {
                tracing::info!(worker = id, "has died meanwhile");
                run_dir.remove_worker(id);
            }
        }
    }
    greeted
}

/// Takes them over: from here on they obey this process.
pub(in crate::supervisor) async fn adopt_all(
    run_dir: &RunDir,
    greeted: Vec<Greeted>,
) -> Vec<Survivor> {
    let asked: Vec<_> = greeted
        .into_iter()
        .map(|worker| (worker.id, tokio::task::spawn_local(adopt(worker))))
        .collect();
    let mut survivors = Vec::new();
    for (id, answer) in asked {
        match answer.await {
            Ok(Some(survivor)) => survivors.push(survivor),
            Ok(None) | Err(_) => {
                tracing::info!(worker = id, "has died meanwhile");
                run_dir.remove_worker(id);
            }
        }
    }
    survivors
}

/// `None` if it died.
async fn greet(id: WorkerId, socket: OwnedFd) -> Option<Greeted> {
    let socket = watched(socket, Interest::READABLE).ok()?;
    say(&socket, &ToWorker::Hello(own_hello()))?;
    let hello = match tokio::time::timeout(PATIENCE, hear(&socket)).await {
        Ok(Some((FromWorker::Hello(hello), _))) => Some(hello),
        Ok(_) => return None,
        Err(_) => {
            tracing::error!(worker = id, "lives, but does not answer");
            None
        }
    };
    if let Some(hello) = &hello
        && PROTOCOL_VERSIONS.newest_common(hello.protocol).is_none()
    {
        tracing::error!(
            worker = id,
            "speaks control protocols {:?}, this supervisor {PROTOCOL_VERSIONS:?}",
            hello.protocol
        );
    }
    Some(Greeted { id, hello, socket })
}

/// `None` if it died.
async fn adopt(worker: Greeted) -> Option<Survivor> {
    let Greeted { id, hello, socket } = worker;
    say(&socket, &ToWorker::Adopt)?;
    let answer = match hello {
        // It was waited for long enough, and will answer late if it does.
        None => None,
        Some(hello) => match tokio::time::timeout(PATIENCE, hear(&socket)).await {
            Ok(Some((FromWorker::Adopted(adopted), descriptors))) => {
                Some(Answer { hello, adopted, descriptors })
            }
            Ok(_) => return None,
            Err(_) => {
                tracing::error!(worker = id, "lives, but does not answer any more");
                None
            }
        },
    };
    Some(Survivor { id, socket: socket.into_inner(), answer })
}

fn say(socket: &AsyncFd<OwnedFd>, message: &ToWorker) -> Option<()> {
    let bytes = serde_json::to_vec(message).ok()?;
    fdpass::send(socket.as_fd(), &[IoSlice::new(&bytes)], &[]).ok()?;
    Some(())
}

/// The next message; `None` if it died, or speaks nonsense.
async fn hear(socket: &AsyncFd<OwnedFd>) -> Option<(FromWorker, Vec<OwnedFd>)> {
    let mut buffer = vec![0; MAX_MESSAGE_BYTES];
    let receive = |socket: &OwnedFd| receive(socket.as_fd(), &mut buffer);
    match socket.async_io(Interest::READABLE, receive).await.ok()?? {
        LinkEvent::Message(message, descriptors) => Some((*message, descriptors)),
        LinkEvent::Malformed(_) | LinkEvent::HungUp | LinkEvent::Exited => None,
    }
}
