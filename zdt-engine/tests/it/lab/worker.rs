//! One worker process under the test's control, and channels between two of them.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use nix::unistd::Pid;

use zdt_engine::config::WorkerConfig;
use zdt_engine::control::{
    Configure, FromWorker, HandoffReport, Hello, Identity, IncomingReport, ListenerInfo,
    MAX_MESSAGE_BYTES, OpenChannel, PROTOCOL_VERSIONS, ToWorker, WorkerStatus,
};
use zdt_engine::shm::{ChannelMemory, Scoreboard};
use zdt_engine::state::Secret;
use zdt_engine::sys::EventFd;
use zdt_engine::{fdpass, state, sys};

use super::PATIENCE;

/// Descriptors are made inheritable only while this is held, so that no other child gets them.
static SPAWNING: Mutex<()> = Mutex::new(());

static NEXT: AtomicU64 = AtomicU64::new(1);

fn unique() -> u64 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A worker process.
pub struct TestWorker {
    child: Child,
    control: OwnedFd,
    pub identity: Identity,
    backlog: VecDeque<FromWorker>,
    listeners: Vec<(ListenerInfo, OwnedFd)>,
    scoreboard: OwnedFd,
    ended: bool,
}

/// Options of a worker process.
#[derive(Default)]
pub struct Options<'a> {
    /// `ZDT_FAULT`.
    pub faults: &'a str,
    /// Job of the worker.
    pub config: WorkerConfig,
    /// TLS on all its addresses.
    pub tls: Option<&'a super::secure::Authority>,
    /// Another binary than the one under test.
    pub binary: Option<&'a std::path::Path>,
    /// Run this test of this very binary as the worker; it finds its control connection's number in
    /// [`WORKER_CONTROL`].
    pub test: Option<&'a str>,
}

impl Options<'_> {
    /// For tests of what is said, not when: no deadline of the engine is ever met, however busy the machine is.
    pub fn patient() -> Self {
        const LONG_MS: u64 = 3_600_000;
        let mut config = WorkerConfig::default();
        let limits = &mut config.limits;
        limits.header_timeout_ms = LONG_MS;
        limits.keep_alive_timeout_ms = LONG_MS;
        limits.stall_timeout_ms = LONG_MS;
        config.http2.settings_timeout_ms = LONG_MS;
        config.websocket.ping_interval_ms = LONG_MS;
        config.websocket.pong_timeout_ms = LONG_MS;
        config.handoff.freeze_budget_ms = LONG_MS;
        config.handoff.offer_timeout_ms = LONG_MS;
        let gateway = &mut config.gateway.options;
        gateway.connect_timeout_ms = LONG_MS;
        gateway.response_timeout_ms = LONG_MS;
        Self { config, ..Self::default() }
    }
}

/// Environment variable for [`Options::test`].
pub const WORKER_CONTROL: &str = "ZDT_TEST_WORKER_CONTROL";

impl TestWorker {
    /// Starts a worker of that generation with default options.
    pub fn spawn(generation: u32) -> Self {
        Self::spawn_with(generation, &Options::default())
    }

    /// Starts a worker.
    pub fn spawn_with(generation: u32, options: &Options<'_>) -> Self {
        let (control, theirs) = sys::socket::seqpacket_pair().expect("socketpair");
        let default_binary = std::path::Path::new(env!("CARGO_BIN_EXE_zdt"));
        let binary = options.binary.unwrap_or(default_binary);
        let child = {
            let _alone = SPAWNING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).expect("F_SETFD");
            let number = theirs.as_raw_fd().to_string();
            let mut command;
            if let Some(test) = options.test {
                command = Command::new(std::env::current_exe().expect("path of the test binary"));
                command.args(["--exact", test, "--nocapture"]).env(WORKER_CONTROL, &number);
            } else {
                command = Command::new(binary);
                command.args(["worker", "--control-fd", &number]);
            }
            command
                .env("ZDT_FAULT", options.faults)
                .envs(options.tls.map(|tls| ("ZDT_NONCES", tls.nonces())))
                .env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "error".to_owned()))
                .stdin(Stdio::null())
                .spawn()
                .expect("spawn a worker")
        };
        drop(theirs);
        let scoreboard = Scoreboard::create(64).expect("scoreboard");
        let identity =
            Identity { worker: unique() as u32, generation, index: 0, slot: generation % 64 };
        let worker = Self {
            child,
            control,
            identity,
            backlog: VecDeque::new(),
            listeners: Vec::new(),
            scoreboard,
            ended: false,
        };
        worker.send(
            &ToWorker::Hello(Hello {
                protocol: PROTOCOL_VERSIONS,
                state_reads: state::FORMAT_READS,
                state_writes: state::FORMAT_WRITES,
                build: "test".to_owned(),
                pid: std::process::id(),
            }),
            &[],
        );
        let credentials = options.tls.map(super::secure::Authority::sealed);
        let mut config = options.config.clone();
        config.tls = options.tls.and_then(|authority| authority.options().for_worker());
        let configure = Configure {
            identity: worker.identity.clone(),
            config,
            has_load_map: false,
            has_totals: false,
            has_access_log: false,
            has_spill_dir: false,
            supervisor_uid: nix::unistd::geteuid().as_raw(),
            resume_secret: None,
        };
        let reattach = abstract_listener();
        let mut descriptors = vec![reattach.as_fd(), worker.scoreboard.as_fd()];
        descriptors.extend(credentials.as_ref().map(AsFd::as_fd));
        worker.send(&ToWorker::Configure(Box::new(configure)), &descriptors);
        worker
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a control message.
    pub fn send(&self, message: &ToWorker, descriptors: &[BorrowedFd<'_>]) {
        let bytes = serde_json::to_vec(message).expect("JSON");
        // A worker that was just killed does not receive; the test looks at what follows from that.
        let _ = fdpass::send(self.control.as_fd(), &[IoSlice::new(&bytes)], descriptors);
    }

    /// The next message for which `pick` returns something; others are kept.
    #[track_caller]
    pub fn wait<T>(&mut self, what: &str, mut pick: impl FnMut(&FromWorker) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut looked_at = 0;
        loop {
            while looked_at < self.backlog.len() {
                if let Some(picked) = pick(&self.backlog[looked_at]) {
                    self.backlog.remove(looked_at);
                    return picked;
                }
                looked_at += 1;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited {PATIENCE:?} for {what}; got {:?}", self.backlog);
            assert!(!self.ended, "the worker ended while {what} was awaited; {:?}", self.backlog);
            self.receive(left.as_millis() as u16);
        }
    }

    fn receive(&mut self, timeout_ms: u16) {
        let mut polled = [PollFd::new(self.control.as_fd(), PollFlags::POLLIN)];
        if poll(&mut polled, PollTimeout::from(timeout_ms)) == Ok(0) {
            return;
        }
        let mut bytes = vec![0; MAX_MESSAGE_BYTES];
        let mut descriptors = Vec::new();
        match fdpass::receive(self.control.as_fd(), &mut bytes, &mut descriptors) {
            Ok(received) if received.bytes > 0 => {
                let message = serde_json::from_slice(&bytes[..received.bytes]).expect("JSON");
                self.backlog.push_back(message);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            _ => self.ended = true,
        }
    }

    /// Makes a listening socket for this worker on a free port.
    pub fn listen(&mut self) -> SocketAddr {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let socket = sys::socket::listener(address, true, 4_096).expect("listener");
        self.take_listener(socket, true)
    }

    /// Gives this worker a listening socket.
    pub fn take_listener(&mut self, socket: OwnedFd, own: bool) -> SocketAddr {
        let address = sys::socket::local_address(socket.as_fd()).expect("local address");
        let info = ListenerInfo { id: unique(), address, own };
        self.send(&ToWorker::Listen { listeners: vec![info.clone()] }, &[socket.as_fd()]);
        self.listeners.push((info, socket));
        self.wait("Ready", |message| matches!(message, FromWorker::Ready).then_some(()));
        address
    }

    /// Another descriptor of its first listener.
    pub fn listener_duplicate(&self) -> OwnedFd {
        self.listeners[0].1.try_clone().expect("dup")
    }

    /// Its figures.
    #[track_caller]
    pub fn status(&mut self) -> WorkerStatus {
        let request = unique();
        self.send(&ToWorker::Status { request }, &[]);
        self.wait("Status", |message| match message {
            FromWorker::Status { request: of, status } if *of == request => {
                Some((**status).clone())
            }
            _ => None,
        })
    }

    /// Waits until it has handed off, or decided to keep, everything.
    #[track_caller]
    pub fn wait_empty(&mut self) -> HandoffReport {
        self.wait("Empty", |message| match message {
            FromWorker::Empty(report) => Some(report.clone()),
            _ => None,
        })
    }

    /// Commits a reload.
    #[track_caller]
    pub fn commit(&mut self, reload: u64, drain_ms: Option<u64>) -> IncomingReport {
        self.send(&ToWorker::Commit { reload, drain_ms }, &[]);
        self.wait("Committed", |message| match message {
            FromWorker::Committed { incoming, .. } => Some(incoming.clone()),
            _ => None,
        })
    }

    /// Limits its open files to what it has now and `spare` more (prlimit(1)).
    #[track_caller]
    pub fn leave_descriptors(&self, spare: usize) {
        let pid = self.child.id();
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("fd directory").count();
        let limit = format!("--nofile={}", open + spare);
        let status = Command::new("prlimit")
            .args(["--pid", &pid.to_string(), &limit])
            .status()
            .expect("prlimit, of util-linux");
        assert!(status.success(), "prlimit {limit}");
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
    }

    /// Waits until the process is stopped by a signal.
    pub fn wait_stopped(&self) {
        super::eventually("the worker stops at its fault point", || self.state() == Some('T'));
    }

    /// Waits until the process has ended, without collecting it.
    pub fn wait_dead(&self) {
        super::eventually("the worker ends", || matches!(self.state(), None | Some('Z')));
    }

    fn state(&self) -> Option<char> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    }
}

impl Drop for TestWorker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An unnamed listening Unix socket, where the supervisor would put `worker-ID.sock`.
fn abstract_listener() -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("socket");
    let name = format!("zdt-test-{}-{}", std::process::id(), unique());
    let address = UnixAddr::new_abstract(name.as_bytes()).expect("name");
    bind(listener.as_raw_fd(), &address).expect("bind");
    listen(&listener, Backlog::new(8).expect("backlog")).expect("listen");
    listener
}

/// What the records of a channel are sealed with; nothing by default.
#[derive(Default, Clone)]
pub struct Secrets {
    pub forward: Option<Secret>,
    pub back: Option<Secret>,
}

impl Secrets {
    /// One for each direction.
    pub fn random() -> Self {
        let secret = || Some(Secret::new(sys::random_bytes().expect("random numbers")));
        Self { forward: secret(), back: secret() }
    }
}

/// A reload between one blue and one green worker.
pub struct Pair {
    pub blue: TestWorker,
    pub green: TestWorker,
    pub reload: u64,
}

impl Pair {
    /// Joins them with a channel, as the supervisor does by default.
    #[track_caller]
    pub fn join(blue: TestWorker, green: TestWorker) -> Self {
        let secrets = Secrets::random();
        Self::join_with(blue, green, state::FORMAT_WRAPPED, &secrets, &secrets)
    }

    /// Joins them with a channel of that format, whose ends are told these secrets.
    #[track_caller]
    pub fn join_with(
        blue: TestWorker,
        green: TestWorker,
        format: u16,
        blue_secrets: &Secrets,
        green_secrets: &Secrets,
    ) -> Self {
        let mut pair = Self { blue, green, reload: unique() };
        pair.open_channel_with(0, Some(format), blue_secrets, green_secrets);
        for end in [&mut pair.blue, &mut pair.green] {
            end.wait("ChannelReady", |message| {
                matches!(message, FromWorker::ChannelReady { .. }).then_some(())
            });
        }
        pair
    }

    /// Sends both their ends of a channel.
    pub fn open_channel(&mut self, channel: u32, write_format: Option<u16>) {
        self.open_channel_with(channel, write_format, &Secrets::default(), &Secrets::default());
    }

    fn open_channel_with(
        &mut self,
        channel: u32,
        write_format: Option<u16>,
        blue_secrets: &Secrets,
        green_secrets: &Secrets,
    ) {
        let memory = ChannelMemory::create().expect("channel memory");
        let (blue_socket, green_socket) = sys::socket::seqpacket_pair().expect("socketpair");
        let blue_wake = EventFd::new().expect("eventfd");
        let green_wake = EventFd::new().expect("eventfd");
        let blue_pidfd = sys::pidfd_open(self.blue.pid()).expect("pidfd");
        let green_pidfd = sys::pidfd_open(self.green.pid()).expect("pidfd");
        let open = |is_blue, peer: &Identity| {
            ToWorker::OpenChannel(OpenChannel {
                reload: self.reload,
                channel,
                is_blue,
                peer: peer.clone(),
                write_format,
                outgoing_secret: if is_blue { &blue_secrets.forward } else { &green_secrets.back }
                    .clone(),
                incoming_secret: if is_blue { &blue_secrets.back } else { &green_secrets.forward }
                    .clone(),
            })
        };
        self.blue.send(
            &open(true, &self.green.identity),
            &[
                memory.as_fd(),
                blue_socket.as_fd(),
                blue_wake.as_fd(),
                green_wake.as_fd(),
                green_pidfd.as_fd(),
            ],
        );
        self.green.send(
            &open(false, &self.blue.identity),
            &[
                memory.as_fd(),
                green_socket.as_fd(),
                green_wake.as_fd(),
                blue_wake.as_fd(),
                blue_pidfd.as_fd(),
            ],
        );
    }

    /// Hands everything from blue to green and waits until blue is empty.
    #[track_caller]
    pub fn hand_off(&mut self) -> HandoffReport {
        self.begin();
        self.blue.wait_empty()
    }

    /// Starts the handoff of everything, blue to green.
    pub fn begin(&self) {
        self.blue.send(&ToWorker::Handoff { reload: self.reload }, &[]);
        self.blue.send(&ToWorker::StopAccepting { reload: self.reload }, &[]);
    }

    /// Takes everything back: the same, green to blue.
    #[track_caller]
    pub fn roll_back(&mut self) -> HandoffReport {
        self.blue.send(&ToWorker::CancelHandoff { reload: self.reload }, &[]);
        self.blue.wait_empty();
        self.green.send(&ToWorker::Handoff { reload: self.reload }, &[]);
        self.green.send(&ToWorker::StopAccepting { reload: self.reload }, &[]);
        let report = self.green.wait_empty();
        self.blue.send(&ToWorker::ResumeAccepting, &[]);
        report
    }
}
