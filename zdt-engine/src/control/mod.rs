//! Control messages between the supervisor and its workers.
//!
//! One `SOCK_SEQPACKET` message each: JSON of [`ToWorker`] or [`FromWorker`], at most
//! [`MAX_MESSAGE_BYTES`], with the descriptors that its documentation lists, in that order. Small,
//! rare, readable; bulk state never travels here. Both sides ignore unknown fields, so that the two
//! ends may be different builds; the [`Hello`] that opens every connection says which versions.
//!
//! Must not know: how either side reacts.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::config::{RouteTarget, WorkerConfig};
use crate::state::Secret;
pub use crate::state::VersionRange;

/// Versions of this protocol that this build speaks: the oldest and the newest.
pub const PROTOCOL_VERSIONS: VersionRange = VersionRange { oldest: 1, newest: 2 };

/// From this version on a worker that drains can be told [`ToWorker::Revive`].
pub const REVIVES_SINCE: u16 = 2;

/// Largest JSON text of one message.
pub const MAX_MESSAGE_BYTES: usize = 128 << 10;

/// Most descriptors with one message (a third of the kernel's SCM_MAX_FD).
pub const MAX_MESSAGE_FDS: usize = 64;

/// First message in both directions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Versions of the control protocol.
    pub protocol: VersionRange,
    /// State formats that this process can read.
    pub state_reads: VersionRange,
    /// State formats that this process can write.
    pub state_writes: VersionRange,
    /// Version of the build, for people.
    pub build: String,
    /// Process id of the sender.
    pub pid: u32,
}

/// A listening socket, as the supervisor numbers them over its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerInfo {
    /// Never used again for another socket.
    pub id: u64,
    /// The address it is bound to.
    pub address: SocketAddr,
    /// False for a listener of the other generation that green accepts from as well.
    pub own: bool,
}

/// Who the worker is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Unique among all workers of a run directory, over all generations.
    pub worker: u32,
    /// Generation that it belongs to.
    pub generation: u32,
    /// Its index in its generation.
    pub index: u32,
    /// Its slot in the steering maps, the load array and the scoreboard.
    pub slot: u32,
}

/// Sent once, after the hello. Descriptors: the listening Unix socket on which a later supervisor
/// reattaches; the scoreboard (memfd); if `has_load_map`, the steering program's load array; and, if
/// `config` has `tls`, certificates and keys (sealed memfd, to be closed once read).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Configure {
    /// Who the worker is.
    pub identity: Identity,
    /// Its job.
    pub config: WorkerConfig,
    /// Whether the third descriptor is there.
    pub has_load_map: bool,
    /// Whether the scoreboard has room for totals.
    #[serde(default)]
    pub has_totals: bool,
    /// Whether there is the file of the access log, behind those.
    #[serde(default)]
    pub has_access_log: bool,
    /// Whether the last descriptor is the directory for bodies of held requests.
    #[serde(default)]
    pub has_spill_dir: bool,
    /// User and group ids that the supervisor runs as; only they may reattach.
    pub supervisor_uid: u32,
    /// What resume tokens are signed with; without, nothing is parked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume_secret: Option<Secret>,
}

/// One end of a channel between a blue and a green worker. Descriptors: the shared memory (memfd);
/// this end of the seqpacket pair; the eventfd on which this end is woken; the eventfd that wakes
/// the peer; the peer's pidfd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenChannel {
    /// The reload that it serves.
    pub reload: u64,
    /// Number of the channel in that reload.
    pub channel: u32,
    /// Blue is the end whose generation is older; its outgoing ring is the first in the memory.
    pub is_blue: bool,
    /// The peer, for logs.
    pub peer: Identity,
    /// State format to write; `None` where the peer can read none that this end writes: then this
    /// end offers nothing (a rollback is impossible).
    pub write_format: Option<u16>,
    /// Made for this channel and this direction: what this end offers is sealed with a key derived
    /// from it. Without, records travel with a checksum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outgoing_secret: Option<Secret>,
    /// The same for what the peer offers: a record that is not sealed with it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incoming_secret: Option<Secret>,
}

/// Supervisor to worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToWorker {
    /// Opens the connection.
    Hello(Hello),
    /// See [`Configure`].
    Configure(Box<Configure>),
    /// Accept from these, too. Descriptors: one listening socket for each entry. The worker answers
    /// [`FromWorker::Ready`] once the accepts are armed and its service says that it is ready.
    Listen {
        /// The listeners, in the order of the descriptors.
        listeners: Vec<ListenerInfo>,
    },
    /// A connection from this peer address is the supervisor's proof that the slot is reached. The
    /// worker answers [`FromWorker::ProbeSeen`] when it has accepted it (before or after this
    /// message arrives) and closes it.
    Probe {
        /// Echoed in the answer.
        nonce: u64,
        /// Source address of the probing connection.
        peer: SocketAddr,
    },
    /// See [`OpenChannel`]. Answered by [`FromWorker::ChannelReady`] after the two ends have greeted
    /// each other, or by [`FromWorker::ChannelFailed`].
    OpenChannel(OpenChannel),
    /// Freeze and hand off every connection over the channels of this reload, and every one that is
    /// accepted from now on. [`FromWorker::Progress`] tells how far it is.
    Handoff {
        /// The reload.
        reload: u64,
    },
    /// Cancel the accepts, accept what is queued, hand that off as well; answered by
    /// [`FromWorker::Empty`] when every connection has moved or stays. The worker keeps its
    /// listeners, unarmed, until the commit.
    StopAccepting {
        /// The reload.
        reload: u64,
    },
    /// Freeze no further connection; reclaim the offers that nobody adopted. Answered by
    /// [`FromWorker::Empty`] when no offer is open any more. What has moved has moved.
    CancelHandoff {
        /// The reload.
        reload: u64,
    },
    /// After a rollback: arm the accepts again on the listeners that are still held.
    ResumeAccepting,
    /// Cancel the accepts of these listeners, accept what is queued on them, close them.
    ForgetListeners {
        /// Ids of the listeners.
        ids: Vec<u64>,
    },
    /// The channels of this reload are closed for good; answered by [`FromWorker::Committed`]. With
    /// `drain_ms` the worker also closes its listeners, serves what stayed until the deadline, and
    /// exits.
    Commit {
        /// The reload.
        reload: u64,
        /// Present for the outgoing side only.
        drain_ms: Option<u64>,
    },
    /// Other keys for session tickets. Descriptor: a sealed memfd, to be closed once read.
    TicketKeys,
    /// Graceful stop: close the listeners, answer what is being asked, close WebSockets with 1001
    /// spread over the time, exit when nothing is left or at the deadline.
    Drain {
        /// How long it may last.
        timeout_ms: u64,
    },
    /// The drain is over before its end: serve what is left without a deadline, and accept again from the
    /// listeners that follow. Only for workers that speak version [`REVIVES_SINCE`].
    Revive,
    /// The answer to [`FromWorker::Unpark`]. Descriptor: a sealed memfd with the record, if there was
    /// one; the supervisor has it no more.
    Unparked {
        /// Of the question.
        request: u64,
        /// Whether there was one.
        found: bool,
    },
    /// Exit now.
    Exit,
    /// Answered by [`FromWorker::Status`].
    Status {
        /// Echoed in the answer.
        request: u64,
    },
    /// Take every connection's state, restore it aside, save it again, compare; answered by
    /// [`FromWorker::Rehearsed`].
    Rehearse {
        /// Echoed in the answer.
        request: u64,
    },
    /// Gateway: all routes, with what is known of their upstreams. Also sent when nothing has changed.
    Routes {
        /// They replace what was said before.
        routes: Vec<RouteTarget>,
        /// URLs of upstreams that have been replaced: the worker says [`FromWorker::UpstreamIdle`] of each as
        /// soon as it has nothing of it, also if it has never heard of it.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        leaving: Vec<String>,
    },
    /// Gateway: answer what is held with 503; of that route, or of all.
    FlushQueue {
        /// Name of the route.
        route: Option<String>,
    },
    /// Gateway: the WebSockets of an upstream leave it.
    LeaveUpstream {
        /// Its URL.
        url: String,
        /// For another upstream of their route; without, they are closed with 1012.
        reconnect: bool,
        /// Over so much time.
        over_ms: u64,
    },
    /// From a new supervisor, after the hello, instead of `Configure`: answered by
    /// [`FromWorker::Adopted`].
    Adopt,
}

/// Worker to supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromWorker {
    /// Opens the connection.
    Hello(Hello),
    /// The accepts are armed and the service is ready.
    Ready,
    /// See [`ToWorker::Probe`].
    ProbeSeen {
        /// Of the probe.
        nonce: u64,
    },
    /// Both ends of the channel have agreed.
    ChannelReady {
        /// The reload.
        reload: u64,
        /// Number of the channel.
        channel: u32,
    },
    /// The channel cannot be used (any more).
    ChannelFailed {
        /// The reload.
        reload: u64,
        /// Number of the channel.
        channel: u32,
        /// What happened and what was expected.
        reason: String,
    },
    /// How far the handoff is; sent at most every 50 ms.
    Progress(HandoffReport),
    /// See [`ToWorker::StopAccepting`] and [`ToWorker::CancelHandoff`].
    Empty(HandoffReport),
    /// See [`ToWorker::Commit`].
    Committed {
        /// The reload.
        reload: u64,
        /// What this worker took in during the reload.
        incoming: IncomingReport,
    },
    /// Gateway: an upstream that is in no route any more has nothing left of this worker.
    UpstreamIdle {
        /// Its URL.
        url: String,
    },
    /// The last connection is gone; the worker exits.
    Drained,
    /// See [`ToWorker::Status`].
    Status {
        /// Of the request.
        request: u64,
        /// What was asked.
        status: Box<WorkerStatus>,
    },
    /// See [`ToWorker::Rehearse`].
    Rehearsed {
        /// Of the request.
        request: u64,
        /// What was found.
        report: Box<RehearsalReport>,
    },
    /// See [`ToWorker::Adopt`]. Descriptors: the listeners in their order, then the scoreboard, then
    /// the load array if there is one, then the keys of session tickets if it says so.
    Adopted(Box<Adopted>),
    /// Sessions whose clients are away. Descriptor: a sealed memfd with their records, one after the
    /// other ([`crate::state::parked`]).
    Parked {
        /// How many.
        count: u32,
    },
    /// A client has shown a token for this session; answered by [`ToWorker::Unparked`].
    Unpark {
        /// Echoed in the answer.
        request: u64,
        /// 32 hexadecimal digits.
        id: String,
    },
    /// The worker cannot go on; it exits.
    Failed {
        /// What, where, what to do.
        message: String,
    },
}

/// Entries of [`WorkerStatus::service_us`]; the last one counts everything that took longer.
pub const SERVICE_TIME_BUCKETS: usize = 26;
/// The sum of figures from workers, any of which may claim any number.
pub fn total(figures: impl IntoIterator<Item = u64>) -> u64 {
    figures.into_iter().fold(0, u64::saturating_add)
}

/// Adds to such a sum.
pub fn add(sum: &mut u64, figure: u64) {
    *sum = sum.saturating_add(figure);
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the outgoing side has done in one reload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HandoffReport {
    /// The reload.
    pub reload: u64,
    /// Connections that the other side has started.
    pub moved: u64,
    /// Connections that are neither moved nor decided to stay.
    pub remaining: u64,
    /// Connections that stay, by reason code.
    pub staying: BTreeMap<String, u64>,
    /// Offers that were refused by the other side.
    pub refused: u64,
    /// Offers that were taken back.
    pub reclaimed: u64,
    /// CLOCK_BOOTTIME when the first connection was frozen; 0 if none was.
    pub began_ns: u64,
    /// CLOCK_BOOTTIME when the last answer was collected.
    pub ended_ns: u64,
}

/// What the incoming side has done in one reload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IncomingReport {
    /// Connections adopted and started.
    pub adopted: u64,
    /// Offers refused, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Blackouts: pairs of microseconds and count, ascending.
    pub blackout_us: Vec<(u64, u64)>,
}

/// A worker's figures. Totals count from the start of the process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerStatus {
    /// Process id.
    pub pid: u32,
    /// Open connections.
    pub connections: u64,
    /// Open connections by protocol (`http1`, `websocket`).
    pub by_protocol: BTreeMap<String, u64>,
    /// Open connections by transport (`tcp`, `tls-hello`, `tls-handshake`, `tls1.2`, `tls1.3`).
    pub by_transport: BTreeMap<String, u64>,
    /// TLS handshakes that came to a good end.
    pub tls_handshakes: u64,
    /// TLS handshakes and connections that failed, by reason code.
    pub tls_failures: BTreeMap<String, u64>,
    /// Connections that could not be handed off and drain, by reason code.
    pub draining: BTreeMap<String, u64>,
    /// Connections accepted from a listener.
    pub accepted: u64,
    /// Connections closed because a limit was reached.
    pub rejected: u64,
    /// Bytes that clients make it hold now: what waits to be sent, and what cannot be used yet.
    pub buffered_bytes: u64,
    /// How often a connection was not received from because all of them together held too much.
    pub squeezed: u64,
    /// Connections given up because nothing else helped.
    pub shed: u64,
    /// Connections adopted from other workers.
    pub adopted: u64,
    /// Connections handed to other workers.
    pub moved: u64,
    /// HTTP requests.
    pub requests: u64,
    /// Requests and messages that failed by the service's fault: answers of 500 and above, WebSockets
    /// closed with 1011, and calls that made no sense.
    pub errors: u64,
    /// How long the service took for requests and messages: entry k counts what took less than 2^k
    /// microseconds and not less than half of that. The first thousand are measured, and then every
    /// sixteenth.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_us: Vec<u64>,
    /// WebSocket messages received.
    pub messages_received: u64,
    /// WebSocket messages sent.
    pub messages_sent: u64,
    /// Bytes received from clients.
    pub bytes_received: u64,
    /// Bytes sent to clients.
    pub bytes_sent: u64,
    /// Sessions that were parked.
    pub parked: u64,
    /// Parked sessions whose clients came back here.
    pub resumed: u64,
    /// Present in a gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Box<GatewayStatus>>,
}

/// A gateway's figures. Totals count from the start of the process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GatewayStatus {
    /// Requests taken on.
    pub requests: u64,
    /// Requests held now.
    pub held_requests: u64,
    /// Memory that they take.
    pub held_bytes: u64,
    /// Age of the oldest of them.
    pub oldest_age_ms: u64,
    /// They by priority, from 0 to 7.
    pub by_priority: Vec<u64>,
    /// They by route.
    pub held_by_route: BTreeMap<String, u64>,
    /// Requests that were held.
    pub held_total: u64,
    /// Held requests that were sent.
    pub replayed: u64,
    /// Requests for which there was no room.
    pub rejected: u64,
    /// Held requests that were given up for newer ones.
    pub displaced: u64,
    /// Held requests whose time was over.
    pub expired: u64,
    /// Held requests whose client went away.
    pub abandoned: u64,
    /// Held requests that were given up by command.
    pub flushed: u64,
    /// Held requests that were compressed.
    pub compressed: u64,
    /// Held requests whose bodies are on the disk in part.
    pub spilled_requests: u64,
    /// What they take there.
    pub spilled_bytes: u64,
    /// Requests whose bodies have gone to the disk.
    pub spilled_total: u64,
    /// Held requests whose bodies found no room there.
    pub unspilled: u64,
    /// Requests that were sent again.
    pub retries: u64,
    /// Connections that an upstream refused.
    pub upstream_failures: u64,
    /// WebSockets that were opened.
    pub tunnels: u64,
    /// WebSockets that went on with another application.
    pub reconnected: u64,
    /// The upstreams.
    pub upstreams: Vec<UpstreamStatus>,
}

impl GatewayStatus {
    /// Adds another worker's.
    pub fn add(&mut self, other: &GatewayStatus) {
        self.oldest_age_ms = self.oldest_age_ms.max(other.oldest_age_ms);
        self.by_priority.resize(self.by_priority.len().max(other.by_priority.len()), 0);
        for (mine, theirs) in self.by_priority.iter_mut().zip(&other.by_priority) {
            add(mine, *theirs);
        }
        for (route, held) in &other.held_by_route {
            add(self.held_by_route.entry(route.clone()).or_default(), *held);
        }
        for (mine, theirs) in [
            (&mut self.requests, other.requests),
            (&mut self.held_requests, other.held_requests),
            (&mut self.held_bytes, other.held_bytes),
            (&mut self.held_total, other.held_total),
            (&mut self.replayed, other.replayed),
            (&mut self.rejected, other.rejected),
            (&mut self.displaced, other.displaced),
            (&mut self.expired, other.expired),
            (&mut self.abandoned, other.abandoned),
            (&mut self.flushed, other.flushed),
            (&mut self.compressed, other.compressed),
            (&mut self.spilled_requests, other.spilled_requests),
            (&mut self.spilled_bytes, other.spilled_bytes),
            (&mut self.spilled_total, other.spilled_total),
            (&mut self.unspilled, other.unspilled),
            (&mut self.retries, other.retries),
            (&mut self.upstream_failures, other.upstream_failures),
            (&mut self.tunnels, other.tunnels),
            (&mut self.reconnected, other.reconnected),
        ] {
            add(mine, theirs);
        }
        for theirs in &other.upstreams {
            match self.upstreams.iter_mut().find(|mine| mine.url == theirs.url) {
                None => self.upstreams.push(theirs.clone()),
                Some(mine) => {
                    mine.healthy &= theirs.healthy;
                    add(&mut mine.outstanding, theirs.outstanding);
                    add(&mut mine.idle, theirs.idle);
                }
            }
        }
    }
}

/// See [`GatewayStatus::upstreams`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpstreamStatus {
    /// Its URL.
    pub url: String,
    /// It gets requests.
    pub healthy: bool,
    /// Requests and WebSockets in flight.
    pub outstanding: u64,
    /// Connections without any.
    pub idle: u64,
}

/// What a rehearsal has found in one worker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RehearsalReport {
    /// Connections whose state was taken.
    pub tested: u64,
    /// Connections that were just being handed off.
    pub moving: u64,
    /// Connections that ended before their turn.
    pub ended: u64,
    /// Connections that would stay behind, by reason code.
    pub reasons: BTreeMap<String, u64>,
    /// Some of them by name.
    pub unmovable: Vec<Unmovable>,
    /// Bytes of all records.
    pub bytes: u64,
    /// Bytes of the largest.
    pub largest_bytes: u64,
    /// Time that it took the worker's loop, in slices.
    pub busy_us: u64,
}

/// A connection that a handoff would leave behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unmovable {
    /// Its id.
    pub connection: u64,
    /// The client.
    pub peer: SocketAddr,
    /// What it speaks.
    pub protocol: String,
    /// Reason code.
    pub reason: String,
}

/// What a worker tells a new supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Adopted {
    /// What it was told when it started.
    pub configure: Configure,
    /// The listeners that it holds.
    pub listeners: Vec<ListenerInfo>,
    /// False once it was told to stop accepting, or to drain.
    pub accepting: bool,
    /// True after a commit with `drain_ms`, or a drain.
    pub draining: bool,
    /// The open channels: reload and number.
    pub channels: Vec<OpenChannel>,
    /// Whether the last descriptor is a sealed memfd with the keys of session tickets.
    #[serde(default)]
    pub has_ticket_keys: bool,
    /// Its figures.
    pub status: WorkerStatus,
}
