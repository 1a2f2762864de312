//! The configuration's types and their defaults.
//!
//! [`WorkerConfig`] is the part that a worker needs; the supervisor sends it in the first control
//! message, so that a worker reads no file and no environment variable. [`Settings`] is the whole
//! (see `zdt.toml` at the root of the repository), [`Sources`] where it comes from. Unknown keys are
//! errors in the file only: on the way to a worker of another build they must be ignored.
//!
//! A new setting is a field with a default (or a name in `OPTIONAL`) and its line in `zdt.toml`; if it has
//! a variable, a line in [`ENVIRONMENT`]; if it cannot change at a reload, a name in [`FIXED`].
//!
//! Must not know: sockets, processes, protocols.

mod changes;
mod environment;
mod file;
mod gateway;
mod network;
mod secret;
mod settings;
mod sources;
mod suggest;
mod tls;

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use changes::{Change, FIXED};
pub use environment::{ENVIRONMENT, EnvironmentName, Form};
pub use gateway::{
    AppOptions, DEFAULT_ROUTE, GatewayConfig, GatewayOptions, HealthOptions, HoldOptions,
    PROXY_SERVICE, RouteOptions, RouteTarget, SwapPolicy, UpstreamAddress, UpstreamTarget, routes,
};
pub use network::Network;
pub use secret::Secret;
pub use settings::{
    AdminAddress, LogFormat, MAX_WORKERS, ParkingSettings, Policy, ReloadOptions, RespawnOptions,
    Settings, SteeringMode, Strategy, SupervisionOptions,
};
pub use sources::{ConfigError, Loaded, Overrides, ShownSetting, Sources};
pub use tls::{CertificateFiles, ClientCertificateRule, MinimumVersion, TlsConfig, TlsOptions};

/// All that a worker is told about its job. Every duration is in milliseconds, every size in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerConfig {
    /// Name of the service to run: `demo`, or the name of an embedded one.
    pub service: String,
    /// Bounds for whatever a client can make a worker hold or wait for.
    pub limits: Limits,
    /// WebSocket options.
    pub websocket: WebSocketOptions,
    /// HTTP/2 options.
    pub http2: Http2Options,
    /// Options of the live handoff.
    pub handoff: HandoffOptions,
    /// How a connection's state is written down.
    pub state: StateOptions,
    /// Sessions whose clients are away.
    pub parking: ParkingOptions,
    /// Receive buffers that the worker lends to the kernel: how many, of what size.
    pub receive_buffers: ReceiveBuffers,
    /// What the gateway does, if it is the service.
    pub gateway: GatewayConfig,
    /// What the worker confines itself to once it has started.
    pub confinement: Confinement,
    /// Where proxies in front tell who their clients are.
    pub proxy_protocol: ProxyProtocol,
    /// Present where TLS is spoken on any address.
    pub tls: Option<TlsConfig>,
    /// A line for each request.
    pub access_log: AccessLogOptions,
}

/// See [`WorkerConfig::access_log`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AccessLogOptions {
    /// Whether there is one, and of which form.
    pub format: AccessLogFormat,
    /// Where it goes; standard error by default.
    pub file: Option<PathBuf>,
}

/// See [`AccessLogOptions::format`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AccessLogFormat {
    /// None.
    #[default]
    Off,
    /// One object a line.
    Json,
    /// As Apache's and nginx's `combined`.
    Combined,
}

/// See [`WorkerConfig::proxy_protocol`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProxyProtocol {
    /// Public addresses on which every connection begins with a header, version 1 or 2.
    pub listeners: Vec<SocketAddr>,
    /// Who may connect there.
    pub trusted: Vec<Network>,
    /// From the accept to the end of the header.
    pub header_timeout_ms: u64,
}

impl Default for ProxyProtocol {
    fn default() -> Self {
        Self { listeners: Vec::new(), trusted: Vec::new(), header_timeout_ms: 3_000 }
    }
}

/// See [`WorkerConfig::confinement`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Confinement {
    /// The filter of system calls.
    pub seccomp: SeccompMode,
    /// Names of system calls that are allowed besides.
    pub seccomp_allow: Vec<String>,
    /// What the filter stops is logged in this form.
    pub log_format: LogFormat,
    /// What one worker may use.
    pub limits: WorkerLimits,
    /// The limit on CPU time is the worker's own to keep.
    pub paces_itself: bool,
    /// Each worker is tied to one CPU.
    pub pin_cpus: bool,
}

/// See [`Settings::worker_limits`]. 0 is no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerLimits {
    /// Memory of one worker.
    pub memory_bytes: u64,
    /// CPU time of one worker, in percent of one CPU.
    pub cpu_percent: u32,
    /// Open descriptors of one worker.
    pub open_files: u64,
}

/// What happens to a system call of a worker that its filter does not allow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SeccompMode {
    /// It fails, and the log names it.
    #[default]
    Enforce,
    /// It is executed, and the kernel's log names it.
    Log,
    /// There is no filter.
    Off,
}

impl SeccompMode {
    /// The name in configurations and statuses.
    pub fn name(self) -> &'static str {
        match self {
            SeccompMode::Enforce => "enforce",
            SeccompMode::Log => "log",
            SeccompMode::Off => "off",
        }
    }
}

/// See [`WorkerConfig::limits`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Open connections of one worker; further ones are accepted and closed at once.
    pub max_connections: u32,
    /// Open connections of one client address in one worker; 0 is no limit.
    pub max_connections_per_address: u32,
    /// From the accept, or the first byte of a later request, to the end of its head.
    pub header_timeout_ms: u64,
    /// An HTTP/1.1 connection without a request is closed after this.
    pub keep_alive_timeout_ms: u64,
    /// A peer that neither sends nor takes a byte of a body for this long is dropped.
    pub stall_timeout_ms: u64,
    /// Request head in all (431).
    pub max_head_bytes: u32,
    /// Request target (414).
    pub max_target_bytes: u32,
    /// Header fields of a request (431).
    pub max_header_count: u16,
    /// Request body (413).
    pub max_body_bytes: u64,
    /// One WebSocket message after reassembly and inflation (close code 1009).
    pub max_message_bytes: u64,
    /// Bytes waiting to be sent on one connection; above this the worker stops receiving from it.
    pub send_queue_bytes: u32,
    /// Bytes that all connections of one worker together may make it hold; 0 is no bound.
    pub worker_buffer_bytes: u64,
    /// Where that is short, a connection that neither gives nor takes anything for so long may be given up.
    pub buffer_patience_ms: u64,
}

/// See [`WorkerConfig::websocket`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WebSocketOptions {
    /// A silent peer is pinged after this; 0 is never.
    pub ping_interval_ms: u64,
    /// A peer that has not answered a ping, or a close, after this is dropped.
    pub pong_timeout_ms: u64,
    /// Negotiate permessage-deflate where the client offers it.
    pub deflate: bool,
    /// Messages shorter than this go out uncompressed.
    pub deflate_threshold_bytes: u32,
}

/// See [`WorkerConfig::http2`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Http2Options {
    /// Speak it with clients that begin with its preface.
    pub enabled: bool,
    /// Requests and WebSockets that a client may have open on one connection; at most 256.
    pub max_concurrent_streams: u32,
    /// Bytes that a client may send on one stream before the service has taken any.
    pub stream_window_bytes: u32,
    /// The same for all streams of a connection together; at least 65,535.
    pub connection_window_bytes: u32,
    /// Bytes waiting for the client's window on one stream; above this its service is asked to wait,
    /// and no more is received on it.
    pub stream_buffer_bytes: u32,
    /// Streams that a client may reset, or have refused, at once; a client that goes on is cut off.
    pub reset_burst: u32,
    /// How many more in each second.
    pub resets_per_second: u32,
    /// Frames without use (pings, settings, empty ones, tiny window updates) that a client may send at
    /// once.
    pub control_burst: u32,
    /// How many more in each second.
    pub control_per_second: u32,
    /// A client that has not acknowledged our settings after this is cut off.
    pub settings_timeout_ms: u64,
}

/// Most streams of one connection: all of them, with their sessions, fit into one state record.
pub const MAX_CONCURRENT_STREAMS: u32 = 256;

/// See [`WorkerConfig::handoff`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HandoffOptions {
    /// A connection that cannot be frozen in this time thaws in place and drains.
    pub freeze_budget_ms: u64,
    /// An offer that is not answered in this time is reclaimed.
    pub offer_timeout_ms: u64,
    /// Connections that may be frozen at once on one channel.
    pub window: u32,
}

/// See [`WorkerConfig::state`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StateOptions {
    /// Encrypt records between the generations, with keys made for each reload.
    pub encryption: bool,
    /// How records are encoded.
    pub encoding: Encoding,
    /// Compress large records, and parked sessions.
    pub compression: bool,
    /// Records in flight are compressed above this.
    pub compress_above_bytes: u32,
}

/// See [`WorkerConfig::receive_buffers`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReceiveBuffers {
    /// A power of two, at most 32,768.
    pub count: u16,
    /// Bytes of each.
    pub bytes: u32,
}

/// Submissions for which a worker's ring has places; a batch that is larger goes to the kernel in parts.
pub const RING_ENTRIES: u32 = 2_048;

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            service: "demo".to_owned(),
            limits: Limits::default(),
            websocket: WebSocketOptions::default(),
            http2: Http2Options::default(),
            handoff: HandoffOptions::default(),
            state: StateOptions::default(),
            parking: ParkingOptions::default(),
            receive_buffers: ReceiveBuffers::default(),
            proxy_protocol: ProxyProtocol::default(),
            gateway: GatewayConfig::default(),
            access_log: AccessLogOptions::default(),
            confinement: Confinement::default(),
            tls: None,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 16_000,
            max_connections_per_address: 0,
            header_timeout_ms: 10_000,
            keep_alive_timeout_ms: 75_000,
            stall_timeout_ms: 60_000,
            max_head_bytes: 16 << 10,
            max_target_bytes: 8 << 10,
            max_header_count: 100,
            max_body_bytes: 1 << 30,
            max_message_bytes: 16 << 20,
            send_queue_bytes: 256 << 10,
            worker_buffer_bytes: 256 << 20,
            buffer_patience_ms: 5_000,
        }
    }
}

impl Default for WebSocketOptions {
    fn default() -> Self {
        Self {
            ping_interval_ms: 30_000,
            pong_timeout_ms: 10_000,
            deflate: true,
            deflate_threshold_bytes: 8,
        }
    }
}

impl Default for Http2Options {
    fn default() -> Self {
        Self {
            enabled: true,
            max_concurrent_streams: 128,
            stream_window_bytes: 65_535,
            connection_window_bytes: 1 << 20,
            stream_buffer_bytes: 64 << 10,
            reset_burst: 200,
            resets_per_second: 50,
            control_burst: 2_000,
            control_per_second: 200,
            settings_timeout_ms: 30_000,
        }
    }
}

impl Default for HandoffOptions {
    fn default() -> Self {
        Self { freeze_budget_ms: 50, offer_timeout_ms: 2_000, window: 128 }
    }
}

/// See [`WorkerConfig::parking`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ParkingOptions {
    /// Keep the sessions of clients whose connection breaks, if the service asks for it.
    pub enabled: bool,
    /// How long a client may take to come back.
    pub ttl_ms: u64,
    /// How long a token is good, from when it was handed out: the connection's time counts, too.
    pub token_ttl_ms: u64,
}

impl Default for ParkingOptions {
    fn default() -> Self {
        Self { enabled: true, ttl_ms: 3_600_000, token_ttl_ms: 604_800_000 }
    }
}

/// See [`StateOptions::encoding`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encoding {
    /// Plain old data: small and fast.
    #[default]
    Binary,
    /// For people and tools. What holds keys stays binary.
    Json,
}

impl Default for StateOptions {
    fn default() -> Self {
        Self {
            encryption: true,
            encoding: Encoding::default(),
            compression: true,
            compress_above_bytes: 64 << 10,
        }
    }
}

impl Default for ReceiveBuffers {
    fn default() -> Self {
        Self { count: 128, bytes: 32 << 10 }
    }
}
