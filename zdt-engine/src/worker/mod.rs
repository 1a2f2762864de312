//! One worker: one process, one thread, one io_uring; it serves connections and hands them off.
//!
//! | file | what it does |
//! |---|---|
//! | `startup` | from the control descriptor to a worker that can run |
//! | `event_loop` | waits, dispatches completions, runs timers |
//! | `entry` | one connection with its socket, session and send queue |
//! | `traffic` | bytes in, bytes out, back-pressure, end of a connection |
//! | `feeding` | which connections are received from next |
//! | `work` | how much one connection has done for it in a turn |
//! | `budget` | what clients make the worker hold, and its bound |
//! | `places` | the sessions of a connection, one for each stream |
//! | `calls` | events to the service and to sessions, and what follows from their answers |
//! | `exchange` | what a service does to its connection |
//! | `gateway` | the reverse proxy, with upstream connections of its own |
//! | `access_log` | a line for each request |
//! | `accept` | listeners, limits, probes |
//! | `commands` | control messages |
//! | `outgoing`, `incoming` | the two directions of a handoff |
//! | `preface` | what a proxy in front says of the client |
//! | `tls` | handshakes, records in and out |
//! | `record` | one connection as a state record |
//! | `rehearsal` | what a handoff would move, tried aside |
//! | `parking`, `resume_token` | sessions whose clients are away |
//! | `inbox` | messages from other threads |
//! | `pace` | a share of a CPU |
//!
//! Must not know: eBPF, other processes beyond its channels.

mod accept;
mod access_log;
mod budget;
mod calls;
mod commands;
mod drain;
mod entry;
mod event_loop;
mod exchange;
mod feeding;
mod gateway;
mod inbox;
mod incoming;
mod outgoing;
mod pace;
mod parking;
mod places;
mod preface;
mod record;
mod rehearsal;
mod resume_token;
mod startup;
mod timers;
mod tls;
mod tokens;
mod traffic;
mod work;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use slab::Slab;

use crate::control::{Configure, WorkerStatus};
use crate::handoff::Channel;
use crate::proto::hpack::Fields;
use crate::service::{Service, WorkerInfo};
use crate::shm::scoreboard::{LoadMap, Scoreboard, SlotFigures};
use crate::state;
use crate::uring::Ring;

use accept::Listener;
use commands::ControlLink;
use drain::Drain;
use entry::{BufferPool, Entry};
use inbox::Inbox;
use incoming::Intake;
use outgoing::HandoffJob;
use timers::Timers;

pub use record::{JSON_CODECS, bench_roundtrip};
pub use startup::main;

/// All that a worker has. The parts are separate fields so that a connection, the service and the
/// ring can be borrowed at the same time.
struct Worker {
    ring: Ring,
    configure: Configure,
    info: WorkerInfo,
    service: Box<dyn Service>,
    /// Memory for the header fields of the request that is just being looked at.
    fields: Fields,
    entries: Slab<Entry>,
    timers: Timers,
    /// Connections that wait for their turn to be received from.
    waiting: feeding::Waiting,
    /// Connections that go on with their work in a later turn.
    put_off: work::PutOff,
    /// Numbers the turns.
    turn: u32,
    /// What all connections hold.
    budget: budget::Budget,
    buffers: BufferPool,
    date: event_loop::DateCache,
    now_ms: u64,
    /// The share of a CPU, where this worker keeps to it itself.
    pace: Option<pace::Pace>,
    next_connection: u64,
    /// Present where this worker speaks TLS on any address.
    tls: Option<tls::WorkerTls>,
    status: WorkerStatus,
    by_address: HashMap<std::net::IpAddr, u32>,

    /// Connections to supervisors: the one that is listened to, and later ones that have not asked
    /// to take over yet.
    links: Vec<ControlLink>,
    next_link: usize,
    reattach: OwnedFd,
    scoreboard: Scoreboard,
    spare_figures: SlotFigures,
    load_map: Option<LoadMap>,
    /// Kept to be handed to a later supervisor.
    shared_descriptors: Vec<OwnedFd>,

    listeners: Slab<Listener>,
    accepting: bool,
    /// When the accept queues are looked into next, woken or not.
    next_sweep_ms: u64,
    probes: Vec<accept::Probe>,
    /// Peers that no proxy stands for, refused lately.
    refused: std::collections::VecDeque<std::net::SocketAddr>,

    channels: Slab<Channel>,
    job: Option<HandoffJob>,
    intake: Intake,
    parking: parking::Parking,
    packer: state::Packer,
    unpacker: state::Unpacker,
    rehearsals: std::collections::VecDeque<rehearsal::Rehearsal>,

    /// Present if the service is the gateway.
    gateway: Option<gateway::Shared>,

    access_log: Option<access_log::AccessLog>,
    inbox: Arc<Inbox>,
    /// Connections whose session has a [`crate::service::Pusher`], by id.
    pushable: HashMap<u64, usize>,
    /// Those of them that have moved during this reload, and over which channel.
    followed: HashMap<u64, usize>,

    drain: Option<Drain>,
    exit: bool,
}
