//! The running supervisor's side of its replacement, until it has handed over.
//!
//! Must not know: what the successor does with what it gets.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::SockType;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::message::Hello;
use super::{Estate, FromSuccessor, PREDECESSOR, ToHeir, ToSuccessor};
use crate::supervisor::core::Core;
use crate::supervisor::reload::Outcome;
use crate::supervisor::reloading::QueuedReload;
use crate::supervisor::rundir::{bind_private, check_socket_parent, remove_if_there};
use crate::supervisor::workers::link::watched;
use crate::supervisor::workers::process::Process;
use crate::sys;

/// All that the successor does while nobody supervises takes it milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// A successor that gets ready; the supervisor acts as ever meanwhile. Dropping this leaves the
/// process alone.
pub struct Replacement {
    pub wanted: QueuedReload,
    pub process: Process,
    until: Instant,
    events: mpsc::Receiver<Event>,
    _watch: Watch,
}

/// The task that waits for the successor; dropping this ends it.
struct Watch(tokio::task::JoinHandle<()>);

/// News of a successor that gets ready.
pub enum Event {
    /// It could begin.
    Prepared(ToHeir),
    /// It cannot, or does not say what it should.
    Failed(String),
    /// Its process is gone.
    Ended,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Replacement {
    /// The next news.
    pub async fn next_event(&mut self) -> Event {
        self.events.recv().await.unwrap_or(Event::Ended)
    }

    /// When it must be ready.
    pub fn deadline(&self) -> Instant {
        self.until
    }
}

impl Core {
    /// Starts the successor. Failures are those of a reload before its flip.
    pub fn begin_replacement(&mut self, wanted: QueuedReload) {
        match self.start_successor(wanted.clone()) {
            Ok(replacement) => self.replacement = Some(replacement),
            Err(message) => self.refuse(&wanted, &not_replaced(&message)),
        }
    }

    fn start_successor(&self, wanted: QueuedReload) -> Result<Replacement, String> {
        if std::process::id() == 1 {
            return Err("it is process 1 here, whose end is everybody's; run zdt below an init \
                        (docker run --init), or reload with --strategy blue-green"
                .to_owned());
        }
        let path = match &self.settings.handoff_socket {
            Some(path) => path.clone(),
            None => self.run_dir.handoff_socket(),
        };
        check_socket_parent(&path)?;
        let listener = bind_private(&path, SockType::SeqPacket)
            .and_then(|socket| watched(socket, Interest::READABLE))
            .map_err(|error| format!("cannot listen on {}: {error}", path.display()))?;
        let listener = Listener { path, listener };
        let program = &self.executable_path;
        let process = spawn(program, &listener.path)
            .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        let pid = process.pid();
        tracing::info!(successor = pid, program = %program.display(), "started a successor");
        fault_point!("handover.spawned");
        let pidfd = process
            .pidfd()
            .try_clone()
            .and_then(|pidfd| watched(pidfd, Interest::READABLE))
            .map_err(|error| {
                process.kill();
                format!("cannot watch process {pid}: {error}")
            })?;
        let (sender, events) = mpsc::channel(4);
        let watch = Watch(tokio::task::spawn_local(prepare(listener, pid, pidfd, sender)));
        let until = Instant::now() + Duration::from_millis(self.settings.reload.ready_timeout_ms);
        Ok(Replacement { wanted, process, until, events, _watch: watch })
    }

    pub fn on_successor(&mut self, event: Event) {
        match event {
            // The loop hands over when it has nothing else to do.
            Event::Prepared(channel) => self.heir = Some(channel),
            Event::Failed(message) => self.abandon_replacement(&not_replaced(&message)),
            Event::Ended => {
                let Some(replacement) = &mut self.replacement else { return };
                let (pid, how) = (replacement.process.pid(), replacement.process.reap());
                let message = format!(
                    "its successor (process {pid}) {how} before it was ready; the log says why"
                );
                self.abandon_replacement(&not_replaced(&message));
            }
        }
    }

    /// The successor has not made it: it is ended, and all is as before.
    pub fn abandon_replacement(&mut self, outcome: &Outcome) {
        self.heir = None;
        let Some(replacement) = self.replacement.take() else { return };
        let wanted = replacement.wanted.clone();
        end(replacement);
        self.refuse(&wanted, outcome);
        self.start_queued();
    }

    pub fn replacement_on_time(&mut self, now: Instant) {
        if self.replacement.as_ref().is_some_and(|replacement| now >= replacement.until) {
            let waited = self.settings.reload.ready_timeout_ms;
            let message =
                format!("its successor was not ready within reload.ready_timeout_ms ({waited} ms)");
            self.abandon_replacement(&not_replaced(&message));
        }
    }

    /// Offers everything to the successor and tells it to take over. Until that is said nothing else
    /// happens here; if it cannot be said, nothing has happened.
    pub async fn hand_over(&mut self, channel: &ToHeir) -> Option<Estate> {
        let wanted = &self.replacement.as_ref()?.wanted;
        let (requested, request) = (wanted.requested, wanted.wanted.request());
        // Whoever of the two is the supervisor in the end finds there what was parked by now.
        if let Err(error) = self.parking.write_now().await {
            tracing::error!(%error, "parked sessions cannot be written");
        }
        let offered = async {
            let estate = self
                .draw_up_estate(requested, request)
                .map_err(|error| format!("cannot put together what it inherits: {error}"))?;
            offer(channel, &estate).await?;
            Ok::<_, String>(estate)
        };
        let outcome = match tokio::time::timeout(PATIENCE, offered).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("its successor did not answer within {PATIENCE:?}")),
        };
        match outcome {
            Ok(estate) => Some(estate),
            Err(message) => {
                self.abandon_replacement(&not_replaced(&message));
                None
            }
        }
    }
}

/// The outcome of a reload that ends before the supervisor is another one: nothing has happened.
pub fn not_replaced(why: &str) -> Outcome {
    Outcome::FailedBeforeFlip(format!("the supervisor was not replaced: {why}"))
}

/// Kills a successor that nothing depends on, and removes the zombie once it is one.
fn end(mut replacement: Replacement) {
    replacement.process.kill();
    tokio::task::spawn_local(async move {
        let pidfd = replacement.process.pidfd().try_clone();
        if let Ok(pidfd) = pidfd.and_then(|pidfd| watched(pidfd, Interest::READABLE)) {
            let _ = pidfd.readable().await;
        }
        replacement.process.reap();
    });
}

async fn offer(channel: &ToHeir, estate: &Estate) -> Result<(), String> {
    let lost = |error: io::Error| format!("its successor cannot be told anything: {error}");
    estate.send(channel).await.map_err(lost)?;
    fault_point!("handover.estate_sent");
    match channel.receive().await.map_err(|error| error.to_string())? {
        Some((FromSuccessor::Proven, _)) => {}
        Some((FromSuccessor::Failed { message }, _)) => return Err(message),
        Some((other, _)) => return Err(format!("its successor said {other:?} too early")),
        None => return Err("its successor died over what it was to inherit".to_owned()),
    }
    fault_point!("handover.proven");
    channel.send(&ToSuccessor::TakeOver, &[]).await.map_err(lost)
}

/// The handoff socket. It is there for one successor only.
struct Listener {
    path: PathBuf,
    listener: AsyncFd<OwnedFd>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        remove_if_there(&self.path);
    }
}

/// Starts the program with the arguments, the environment and the streams of this process.
///
/// SIGHUP is blocked in it from its first instruction, since it would kill it until a handler is
/// there; it unblocks it then.
fn spawn(program: &Path, handoff_socket: &Path) -> io::Result<Process> {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| program.into());
    let mut marker = std::ffi::OsString::from(format!("{}:", std::process::id()));
    marker.push(handoff_socket);
    let mut command = Command::new(program);
    command.arg0(name).args(arguments).env(PREDECESSOR, marker).stdin(Stdio::null());
    let mut hangup = SigSet::empty();
    hangup.add(Signal::SIGHUP);
    let before = SigSet::thread_get_mask()?;
    hangup.thread_block()?;
    let started = Process::start_command(&mut command);
    before.thread_set_mask()?;
    started
}

/// How long the last words of a dead successor are looked for.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Waits for the successor, and greets it.
async fn prepare(
    listener: Listener,
    pid: u32,
    pidfd: AsyncFd<OwnedFd>,
    events: mpsc::Sender<Event>,
) {
    let event = {
        let mut greeting = std::pin::pin!(greet(&listener, pid));
        let greeted = tokio::select! {
            outcome = &mut greeting => Some(outcome),
            // What it said last counts, and its death only then. All of it is in the sockets by now, but
            // this loop may need some turns to see it.
            _ = pidfd.readable() => tokio::time::timeout(LAST_WORDS, greeting).await.ok(),
        };
        match greeted {
            Some(Ok(Some(channel))) => Event::Prepared(channel),
            Some(Err(message)) => Event::Failed(message),
            Some(Ok(None)) | None => {
                let _ = pidfd.readable().await;
                Event::Ended
            }
        }
    };
    drop(listener);
    let _ = events.send(event).await;
}

/// `None` if the successor hung up.
async fn greet(listener: &Listener, pid: u32) -> Result<Option<ToHeir>, String> {
    let broken = |error: io::Error| format!("the handoff socket: {error}");
    let socket = loop {
        let accept = |socket: &OwnedFd| {
            sys::unix::accept_unix(socket.as_fd())?.ok_or_else(|| io::ErrorKind::WouldBlock.into())
        };
        let socket =
            listener.listener.async_io(Interest::READABLE, accept).await.map_err(broken)?;
        let peer = sys::socket::peer_credentials(socket.as_fd()).map_err(broken)?;
        // Nobody but the process that was started for this.
        let own = nix::unistd::geteuid().as_raw();
        if peer.uid == own && u32::try_from(peer.pid) == Ok(pid) {
            break socket;
        }
        tracing::warn!(uid = peer.uid, pid = peer.pid, "refused on the handoff socket");
    };
    let channel = ToHeir::new(socket).map_err(broken)?;
    match channel.receive().await.map_err(broken)? {
        Some((FromSuccessor::Hello(hello), _)) => {
            // It checks, too; whoever is the newer one knows best.
            let _ = channel.send(&ToSuccessor::Hello(Hello::own()), &[]).await;
            hello.check()?;
        }
        Some((other, _)) => return Err(format!("its successor begins with {other:?}")),
        None => return Ok(None),
    }
    fault_point!("handover.greeted");
    match channel.receive().await.map_err(broken)? {
        Some((FromSuccessor::Prepared, _)) => Ok(Some(channel)),
        Some((FromSuccessor::Failed { message }, _)) => Err(message),
        Some((other, _)) => Err(format!("its successor said {other:?} too early")),
        None => Ok(None),
    }
}
