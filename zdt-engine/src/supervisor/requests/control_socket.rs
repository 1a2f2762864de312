//! The control socket: requests of the command line, a JSON object a line.
//!
//! A supervisor that hands over passes on whoever it has not answered: the connection, and what was
//! read from it, which its successor serves as if it had read it itself.
//!
//! Must not know: how a request is served.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

use crate::supervisor::handle::{Handle, MAX_LINE_BYTES, Reply, Request};
use crate::sys;

/// Commands that may be served at once.
const MAX_CLIENTS: usize = 64;
/// A connection on which nothing is asked for so long is closed; one that has waited longest is
/// closed sooner if its place is needed.
const IDLE: Duration = Duration::from_secs(60);

/// A connection that is passed on.
#[derive(Debug)]
pub(in crate::supervisor) struct Passed {
    pub stream: OwnedFd,
    /// Read, and not served.
    pub unread: String,
    /// It waits for the verdict of the reload that replaces the supervisor.
    pub waits: bool,
}

/// The connections of one control socket.
#[derive(Clone)]
pub(in crate::supervisor) struct Clients {
    handle: Handle,
    places: std::sync::Arc<Semaphore>,
    idle: Rc<RefCell<Idle>>,
    present: Rc<Present>,
    passed: mpsc::Sender<Passed>,
}

/// How many connections are being served.
#[derive(Default)]
struct Present {
    count: Cell<usize>,
    none: Notify,
}

/// One of them.
struct Presence(Rc<Present>);

impl Drop for Presence {
    fn drop(&mut self) {
        let left = self.0.count.get() - 1;
        self.0.count.set(left);
        if left == 0 {
            self.0.none.notify_waiters();
        }
    }
}

/// Connections on which nothing is asked, those that have been so for longest first.
#[derive(Default)]
struct Idle {
    next: u64,
    waiting: BTreeMap<u64, Rc<Notify>>,
}

/// How the serving of a connection ended.
enum Served {
    /// It is over.
    Over,
    /// Another supervisor is to go on.
    PassOn {
        /// A request that was read.
        request: Option<Request>,
        /// See [`Passed::waits`].
        waits: bool,
    },
}

impl Clients {
    /// Connections that a successor is to serve are given to `passed`.
    pub fn new(handle: Handle, passed: mpsc::Sender<Passed>) -> Clients {
        let places = std::sync::Arc::new(Semaphore::new(MAX_CLIENTS));
        Clients { handle, places, idle: Rc::default(), present: Rc::default(), passed }
    }

    /// Serves the socket for as long as the supervisor lives.
    pub async fn accept_all(self, socket: OwnedFd) {
        let listener = std::os::unix::net::UnixListener::from(socket);
        let listener = match UnixListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "cannot serve the control socket");
                return;
            }
        };
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if self.places.available_permits() == 0 {
                        self.idle.borrow_mut().end_oldest();
                    }
                    let Ok(place) = std::sync::Arc::clone(&self.places).acquire_owned().await
                    else {
                        return;
                    };
                    self.serve(stream, String::new(), None, Some(place));
                }
                Err(error) => {
                    tracing::error!(%error, "cannot accept on the control socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Waits until no connection is left.
    pub async fn gone(&self) {
        while self.present.count.get() > 0 {
            self.present.none.notified().await;
        }
    }

    fn serve(
        &self,
        stream: UnixStream,
        unread: String,
        answers: Option<mpsc::Receiver<Reply>>,
        place: Option<OwnedSemaphorePermit>,
    ) {
        let clients = self.clone();
        self.present.count.set(self.present.count.get() + 1);
        let presence = Presence(Rc::clone(&self.present));
        tokio::task::spawn_local(async move {
            if let Err(error) = clients.serve_client(stream, unread, answers).await {
                tracing::debug!(%error, "a control connection ended");
            }
            drop((place, presence));
        });
    }

    /// Serves a connection that a predecessor passed on, or that comes back from a successor that died.
    /// `answers`: what it waits for.
    pub fn resume(&self, client: Passed, answers: Option<mpsc::Receiver<Reply>>) -> io::Result<()> {
        let stream = std::os::unix::net::UnixStream::from(client.stream);
        stream.set_nonblocking(true)?;
        self.serve(UnixStream::from_std(stream)?, client.unread, answers, None);
        Ok(())
    }

    async fn serve_client(
        &self,
        mut stream: UnixStream,
        unread: String,
        answers: Option<mpsc::Receiver<Reply>>,
    ) -> io::Result<()> {
        let peer = sys::socket::peer_credentials(stream.as_fd())?;
        let own = nix::unistd::geteuid().as_raw();
        if peer.uid != own && peer.uid != 0 {
            tracing::warn!(uid = peer.uid, pid = peer.pid, "refused on the control socket");
            let message =
                format!("user {} may not control this supervisor of user {own}", peer.uid);
            return write(&mut stream, &Reply::Error { message }).await;
        }
        let mut reader = BufReader::new(stream);
        let mut line = unread.into_bytes();
        if let Some(answers) = answers
            && let Served::PassOn { request, waits } =
                relay(answers, None, &self.handle, reader.get_mut()).await?
        {
            return self.pass_on(reader, line, request, waits).await;
        }
        loop {
            match self.read_line(&mut reader, &mut line).await? {
                Read::Line => {}
                Read::Over => return Ok(()),
                Read::HandedOver => return self.pass_on(reader, line, None, false).await,
            }
            let served = match serde_json::from_slice(&line) {
                Ok(request) => serve_request(request, &self.handle, reader.get_mut()).await?,
                Err(error) => {
                    let message = format!(
                        "request not understood ({error}); is the command of another version?"
                    );
                    return write(reader.get_mut(), &Reply::Error { message }).await;
                }
            };
            line.clear();
            if let Served::PassOn { request, waits } = served {
                return self.pass_on(reader, line, request, waits).await;
            }
        }
    }

    /// The next request, behind what `line` holds already.
    async fn read_line(
        &self,
        reader: &mut BufReader<UnixStream>,
        line: &mut Vec<u8>,
    ) -> io::Result<Read> {
        if line.ends_with(b"\n") {
            return Ok(Read::Line);
        }
        let (number, ended) = self.idle.borrow_mut().begin();
        let limit = (MAX_LINE_BYTES as u64).saturating_sub(line.len() as u64);
        let mut limited = reader.take(limit);
        let outcome = tokio::select! {
            read = limited.read_until(b'\n', line) => read.map(|count| match count {
                0 => Read::Over,
                _ => Read::Line,
            }),
            true = self.handle.handed_over() => Ok(Read::HandedOver),
            () = ended.notified() => Ok(Read::Over),
            () = tokio::time::sleep(IDLE) => Ok(Read::Over),
        };
        self.idle.borrow_mut().waiting.remove(&number);
        outcome
    }

    async fn pass_on(
        &self,
        reader: BufReader<UnixStream>,
        mut line: Vec<u8>,
        request: Option<Request>,
        waits: bool,
    ) -> io::Result<()> {
        if let Some(request) = request.filter(|_| !waits) {
            let mut again = serde_json::to_vec(&request)?;
            again.push(b'\n');
            line.splice(..0, again);
        }
        line.extend_from_slice(reader.buffer());
        let unread = String::from_utf8_lossy(&line).into_owned();
        let stream = OwnedFd::from(reader.into_inner().into_std()?);
        let _ = self.passed.send(Passed { stream, unread, waits }).await;
        Ok(())
    }
}

/// What came of the wait for a line.
enum Read {
    Line,
    Over,
    HandedOver,
}

impl Idle {
    fn begin(&mut self) -> (u64, Rc<Notify>) {
        let (number, ended) = (self.next, Rc::new(Notify::new()));
        self.next += 1;
        self.waiting.insert(number, Rc::clone(&ended));
        (number, ended)
    }

    fn end_oldest(&mut self) {
        if let Some((_, ended)) = self.waiting.pop_first() {
            ended.notify_one();
        }
    }
}

async fn serve_request(
    request: Request,
    handle: &Handle,
    stream: &mut UnixStream,
) -> io::Result<Served> {
    let reply = match &request {
        Request::Status => handle.status().await.map(Reply::Status),
        Request::Config => handle.config().await.map(Reply::Config),
        Request::TestMigration => handle.test_migration().await.map(|result| match result {
            Ok(result) => Reply::TestMigration(Box::new(result)),
            Err(message) => Reply::Error { message },
        }),
        Request::Plan => handle.plan().await.map(Reply::Plan),
        Request::FlushQueue => handle.flush_queue().await.map(Reply::Flushed),
        Request::Gateway(request) => {
            handle.gateway(request.clone()).await.map(|result| match result {
                Ok(reply) => Reply::Gateway(Box::new(reply)),
                Err(message) => Reply::Error { message },
            })
        }
        Request::Stop { now } => {
            let pid = std::process::id();
            handle.stop(*now).await.map(|workers| Reply::Stopping { workers, pid })
        }
        Request::Reload(reload) => match handle.reload(*reload).await {
            Some(answers) => return relay(answers, Some(request), handle, stream).await,
            None => None,
        },
        Request::Rollback => match handle.rollback().await {
            Some(answers) => return relay(answers, Some(request), handle, stream).await,
            None => None,
        },
    };
    match reply {
        Some(reply) => write(stream, &reply).await?,
        None => return unanswered(handle, Some(request), false, stream).await,
    }
    Ok(Served::Over)
}

/// Passes on what a reload says, until its verdict.
async fn relay(
    mut answers: mpsc::Receiver<Reply>,
    request: Option<Request>,
    handle: &Handle,
    stream: &mut UnixStream,
) -> io::Result<Served> {
    let mut waits = false;
    while let Some(reply) = answers.recv().await {
        match reply {
            Reply::Inherited => waits = true,
            Reply::Verdict(_) => {
                write(stream, &reply).await?;
                return Ok(Served::Over);
            }
            _ => write(stream, &reply).await?,
        }
    }
    unanswered(handle, request, waits, stream).await
}

/// The supervisor's loop has ended before the answer.
async fn unanswered(
    handle: &Handle,
    request: Option<Request>,
    waits: bool,
    stream: &mut UnixStream,
) -> io::Result<Served> {
    if handle.handed_over().await {
        return Ok(Served::PassOn { request, waits });
    }
    let message = "the supervisor is ending".to_owned();
    write(stream, &Reply::Error { message }).await?;
    Ok(Served::Over)
}

async fn write(stream: &mut UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    stream.write_all(&line).await
}
