//! How the command line, the admin endpoint and signals reach the supervisor.
//!
//! The same requests and replies, a JSON object a line, travel over the control socket (`lines`); `status`
//! and `preview` are the long ones among the replies.
//!
//! Must not know: how anything is done.

mod lines;
mod preview;
mod status;

use tokio::sync::{mpsc, oneshot};

pub use self::lines::{
    CanaryRequest, FlushReport, GatewayReply, GatewayRequest, MAX_LINE_BYTES, Progress,
    ReloadRequest, Reply, Request, Swapped,
};
pub use self::preview::{Plan, TestMigration, UnmovableConnection};
pub use self::status::{
    ApplicationStats, BufferingComponent, Components, Confined, Counters, GenerationStats,
    MigrationComponent, SocketStats, Status, Totals, WorkerStats,
};
use crate::config::{Secret, ShownSetting};

/// A request to the supervisor from within its process.
#[derive(Debug)]
pub enum Command {
    /// See [`Request::Reload`]. The verdict is the last reply.
    Reload {
        /// See [`Request::Reload`].
        request: ReloadRequest,
        /// Where replies go; nobody has to listen.
        replies: mpsc::Sender<Reply>,
    },
    /// See [`Request::Rollback`]. The verdict is the last reply.
    Rollback {
        /// Where replies go; nobody has to listen.
        replies: mpsc::Sender<Reply>,
    },
    /// See [`Request::Status`].
    Status {
        /// Where it goes.
        reply: oneshot::Sender<Box<Status>>,
    },
    /// See [`Request::TestMigration`].
    TestMigration {
        /// Where it goes; an error if it cannot be done now.
        reply: oneshot::Sender<Result<TestMigration, String>>,
    },
    /// See [`Request::Plan`].
    Plan {
        /// Where it goes.
        reply: oneshot::Sender<Box<Plan>>,
    },
    /// See [`Request::Gateway`].
    Gateway {
        /// What.
        request: GatewayRequest,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<GatewayReply, String>>,
    },
    /// See [`Request::FlushQueue`].
    FlushQueue {
        /// Where it goes.
        reply: oneshot::Sender<FlushReport>,
    },
    /// See [`Request::Config`].
    Config {
        /// Where it goes.
        reply: oneshot::Sender<Vec<ShownSetting>>,
    },
    /// See [`Request::Stop`].
    Stop {
        /// See [`Request::Stop`].
        now: bool,
        /// Where the number of workers goes.
        reply: oneshot::Sender<u32>,
    },
}

/// What whoever asks the admin endpoint has to show, if anything.
pub type AdminToken = Option<Secret>;

/// The supervisor, from within its process.
#[derive(Debug, Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    readiness: tokio::sync::watch::Receiver<Readiness>,
    admin_token: tokio::sync::watch::Receiver<AdminToken>,
}

/// Whether new connections are welcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Readiness {
    /// Not yet.
    #[default]
    Starting,
    /// They are.
    Ready,
    /// They are, although a place has no worker any more.
    Degraded,
    /// No worker accepts.
    NoWorker,
    /// Not any more.
    Stopping,
    /// They are, and another supervisor looks after them: what waits here is passed on to it.
    HandedOver,
}

impl Handle {
    pub(super) fn new(
        commands: mpsc::Sender<Command>,
        readiness: tokio::sync::watch::Receiver<Readiness>,
        admin_token: tokio::sync::watch::Receiver<AdminToken>,
    ) -> Self {
        Self { commands, readiness, admin_token }
    }

    /// The admin endpoint's token, which a reload may change.
    pub fn admin_token(&self) -> tokio::sync::watch::Receiver<AdminToken> {
        self.admin_token.clone()
    }

    /// Whether new connections are welcome.
    pub fn readiness(&self) -> Readiness {
        *self.readiness.borrow()
    }

    /// Waits until another supervisor has taken over, or this one ends.
    pub async fn handed_over(&self) -> bool {
        let mut readiness = self.readiness.clone();
        readiness.wait_for(|now| *now == Readiness::HandedOver).await.is_ok()
    }

    /// Asks for the status; `None` if the supervisor is ending.
    pub async fn status(&self) -> Option<Box<Status>> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Status { reply }).await.ok()?;
        answer.await.ok()
    }

    /// Tries the handoff of every connection aside; `None` if the supervisor is ending.
    pub async fn test_migration(&self) -> Option<Result<TestMigration, String>> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::TestMigration { reply }).await.ok()?;
        answer.await.ok()
    }

    /// Asks what a reload would do; `None` if the supervisor is ending.
    pub async fn plan(&self) -> Option<Box<Plan>> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Plan { reply }).await.ok()?;
        answer.await.ok()
    }

    /// Drops the requests that are held; `None` if the supervisor is ending.
    pub async fn flush_queue(&self) -> Option<FlushReport> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::FlushQueue { reply }).await.ok()?;
        answer.await.ok()
    }

    /// Tells the gateway something; `None` if the supervisor is ending.
    pub async fn gateway(&self, request: GatewayRequest) -> Option<Result<GatewayReply, String>> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Gateway { request, reply }).await.ok()?;
        answer.await.ok()
    }

    /// Asks for the settings that are in force; `None` if the supervisor is ending.
    pub async fn config(&self) -> Option<Vec<ShownSetting>> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Config { reply }).await.ok()?;
        answer.await.ok()
    }

    /// Begins a reload; the verdict is the last reply. `None` if the supervisor is ending.
    pub async fn reload(&self, request: ReloadRequest) -> Option<mpsc::Receiver<Reply>> {
        let (replies, answers) = mpsc::channel(64);
        self.commands.send(Command::Reload { request, replies }).await.ok()?;
        Some(answers)
    }

    /// Goes back to the generation before; the verdict is the last reply. `None` if the supervisor is
    /// ending.
    pub async fn rollback(&self) -> Option<mpsc::Receiver<Reply>> {
        let (replies, answers) = mpsc::channel(64);
        self.commands.send(Command::Rollback { replies }).await.ok()?;
        Some(answers)
    }

    /// Begins a stop; how many workers are to end. `None` if the supervisor is ending.
    pub async fn stop(&self, now: bool) -> Option<u32> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Stop { now, reply }).await.ok()?;
        answer.await.ok()
    }
}
