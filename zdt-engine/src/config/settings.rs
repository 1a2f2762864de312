//! The supervisor's settings: types, defaults, and the checks that need no machine.
//!
//! Must not know: where the values come from (that is `sources`), sockets, processes.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::gateway::{
    self, GatewayConfig, GatewayOptions, PROXY_SERVICE, RouteOptions, RouteTarget,
};
use super::{
    AccessLogOptions, Confinement, HandoffOptions, Http2Options, Limits, MAX_CONCURRENT_STREAMS,
    ParkingOptions, ProxyProtocol, ReceiveBuffers, SeccompMode, Secret, StateOptions, TlsOptions,
    WebSocketOptions, WorkerConfig, WorkerLimits,
};

/// Most workers of one generation; the steering maps and the scoreboard have room for four
/// generations of that size.
pub const MAX_WORKERS: u32 = 128;

/// Settings that have no default.
pub(super) const OPTIONAL: &[&str] = &[
    "run_dir",
    "handoff_socket",
    "executable",
    "group",
    "admin_token",
    "admin_token_file",
    "access_log.file",
    "parking.path",
    "parking.key",
    "parking.key_file",
];

/// A worker without connections, its rings in a handoff, and room for its service.
const MIN_WORKER_BYTES: u64 = 32 << 20;
/// What a worker has open without a connection, in a handoff with many channels.
const MIN_WORKER_FILES: u64 = 256;

/// Shorter tokens can be guessed.
const MIN_TOKEN_BYTES: usize = 16;

/// Everything that `zdt serve` can be told, with the names of `zdt.toml`. Durations in
/// milliseconds, sizes in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Public addresses.
    pub listen: Vec<SocketAddr>,
    /// Where health, status and metrics are served.
    pub admin: AdminAddress,
    /// Who asks the admin endpoint must show this; on a loopback address nobody has to if there is none.
    /// From the environment only.
    pub admin_token: Option<Secret>,
    /// The file that holds it.
    pub admin_token_file: Option<PathBuf>,
    /// Directory of the control socket, the workers' sockets and the supervisor's state.
    pub run_dir: Option<PathBuf>,
    /// Where a supervisor hands over to its successor; `handoff.sock` in the run directory by default.
    pub handoff_socket: Option<PathBuf>,
    /// The program that workers are started from; that of the supervisor by default.
    pub executable: Option<PathBuf>,
    /// Whom the workers run as, if the supervisor is root.
    pub user: String,
    /// Their group; that of the user by default.
    pub group: Option<String>,
    /// Worker processes of a generation; 0 is the number of CPUs.
    pub workers: u32,
    /// Tie each worker to one CPU, by turns.
    pub pin_cpus: bool,
    /// Name of the service.
    pub service: String,
    /// Whether eBPF steers new connections.
    pub steering: SteeringMode,
    /// Which worker of a generation gets a new connection; needs eBPF, otherwise the kernel hashes.
    pub policy: Policy,
    /// Reload without downtime. Without, the workers drain, end, and are started anew.
    pub zero_downtime: bool,
    /// How a reload replaces the workers.
    pub strategy: Strategy,
    /// One listening socket per worker. Without, all workers share one, and nothing is steered.
    pub reuse_port: bool,
    /// Hand live connections to the new generation. Without, they drain in the old one.
    pub migrate_connections: bool,
    /// Queue of a listening socket; the kernel caps it at `net.core.somaxconn`.
    pub backlog: u32,
    /// How long connections that stay behind may last, after a reload and at a stop.
    pub drain_timeout_ms: u64,
    /// From the moment readiness fails to the moment a stop begins to drain.
    pub drain_delay_ms: u64,
    /// Form of the log on standard error.
    pub log_format: LogFormat,
    /// Options of a reload.
    pub reload: ReloadOptions,
    /// What happens when a worker dies.
    pub respawn: RespawnOptions,
    /// How workers are watched and started.
    pub supervision: SupervisionOptions,
    /// What one worker may use.
    pub worker_limits: WorkerLimits,
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
    pub parking: ParkingSettings,
    /// Receive buffers of a worker.
    pub receive_buffers: ReceiveBuffers,
    /// Where proxies in front tell who their clients are.
    pub proxy_protocol: ProxyProtocol,
    /// The gateway, which is the service `proxy`.
    pub gateway: GatewayOptions,
    /// Its routes beside the default one.
    pub route: Vec<RouteOptions>,
    /// Certificates, and where TLS is spoken.
    pub tls: TlsOptions,
    /// A line for each request.
    pub access_log: AccessLogOptions,
}

impl Default for Settings {
    fn default() -> Self {
        let worker = WorkerConfig::default();
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 8080))],
            admin: AdminAddress(Some(SocketAddr::from(([127, 0, 0, 1], 9180)))),
            admin_token: None,
            admin_token_file: None,
            run_dir: None,
            handoff_socket: None,
            executable: None,
            user: "nobody".to_owned(),
            group: None,
            workers: 0,
            pin_cpus: false,
            service: worker.service,
            steering: SteeringMode::default(),
            policy: Policy::default(),
            zero_downtime: true,
            strategy: Strategy::default(),
            reuse_port: true,
            migrate_connections: true,
            backlog: 4_096,
            drain_timeout_ms: 30_000,
            drain_delay_ms: 0,
            log_format: LogFormat::default(),
            reload: ReloadOptions::default(),
            respawn: RespawnOptions::default(),
            supervision: SupervisionOptions::default(),
            worker_limits: WorkerLimits::default(),
            limits: worker.limits,
            websocket: worker.websocket,
            http2: worker.http2,
            handoff: worker.handoff,
            state: worker.state,
            parking: ParkingSettings::default(),
            receive_buffers: worker.receive_buffers,
            proxy_protocol: worker.proxy_protocol,
            gateway: GatewayOptions::default(),
            route: Vec::new(),
            tls: TlsOptions::default(),
            access_log: worker.access_log,
        }
    }
}

/// See [`Settings::reload`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReloadOptions {
    /// From the start of the new workers until all have greeted, are ready, and are proven.
    pub ready_timeout_ms: u64,
    /// From the flip until the old workers stop accepting: at least a round trip to the clients.
    pub settle_ms: u64,
    /// From the flip until every connection has moved or stays; then the reload is undone.
    pub handoff_timeout_ms: u64,
    /// How long the new generation must stay healthy before the old one is let go.
    pub probation_ms: u64,
    /// Workers that one step of a rolling reload replaces.
    pub rolling_batch: u32,
    /// Between two steps of a rolling reload.
    pub rolling_pause_ms: u64,
    /// A canary that has served fewer requests and messages is undone: they say nothing.
    pub canary_min_requests: u64,
    /// A canary may fail so many more of 1,000 requests than the old workers at the same time.
    pub canary_more_errors_permille: u64,
    /// The 99th percentile of the canary's service times may be so much longer, in per cent.
    pub canary_slower_percent: u64,
    /// A shorter difference between those percentiles is noise.
    pub canary_slower_ms: u64,
}

impl Default for ReloadOptions {
    fn default() -> Self {
        Self {
            ready_timeout_ms: 30_000,
            settle_ms: 10,
            handoff_timeout_ms: 30_000,
            probation_ms: 0,
            rolling_batch: 1,
            rolling_pause_ms: 0,
            canary_min_requests: 10,
            canary_more_errors_permille: 10,
            canary_slower_percent: 100,
            canary_slower_ms: 5,
        }
    }
}

/// See [`Settings::parking`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ParkingSettings {
    /// Keep the sessions of clients whose connection breaks, if the service asks for it.
    pub enabled: bool,
    /// How long a client may take to come back.
    pub ttl_ms: u64,
    /// How long a token is good, from when it was handed out: the connection's time counts, too.
    pub token_ttl_ms: u64,
    /// Sessions kept; those that would be over first make room.
    pub max_sessions: u32,
    /// Bytes kept.
    pub max_bytes: u64,
    /// Where they are written at a stop; the run directory by default.
    pub path: Option<PathBuf>,
    /// 32 bytes, in hexadecimal or base64, that encrypt them there and sign resume tokens. From the
    /// environment only. Without, nothing is written.
    pub key: Option<Secret>,
    /// The file that holds the key.
    pub key_file: Option<PathBuf>,
}

impl Default for ParkingSettings {
    fn default() -> Self {
        let ParkingOptions { enabled, ttl_ms, token_ttl_ms } = ParkingOptions::default();
        Self {
            enabled,
            ttl_ms,
            token_ttl_ms,
            max_sessions: 100_000,
            max_bytes: 64 << 20,
            path: None,
            key: None,
            key_file: None,
        }
    }
}

/// See [`Settings::respawn`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RespawnOptions {
    /// Restart a worker that died.
    pub enabled: bool,
    /// So many times within the window; after that a live worker takes its listeners.
    pub limit: u32,
    /// The window.
    pub window_ms: u64,
}

impl Default for RespawnOptions {
    fn default() -> Self {
        Self { enabled: true, limit: 5, window_ms: 300_000 }
    }
}

/// See [`Settings::supervision`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SupervisionOptions {
    /// A worker whose loop has not come round for so long hangs: it is killed and replaced. 0 is never.
    pub heartbeat_timeout_ms: u64,
    /// By how much the CPU priority of a reload's new workers is lower until they are proven (nice(2)):
    /// blue serves every client meanwhile. 0 is not at all.
    pub green_nice: u8,
    /// The filter of system calls in workers.
    pub seccomp: SeccompMode,
    /// Names of system calls that are allowed besides, for what a service does.
    pub seccomp_allow: Vec<String>,
}

impl Default for SupervisionOptions {
    fn default() -> Self {
        Self {
            heartbeat_timeout_ms: 10_000,
            green_nice: 10,
            seccomp: SeccompMode::Enforce,
            seccomp_allow: Vec::new(),
        }
    }
}

/// An address, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AdminAddress(pub Option<SocketAddr>);

impl TryFrom<String> for AdminAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl std::str::FromStr for AdminAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        let address = text.parse().map_err(|_| {
            format!("{text:?} is neither an address such as 127.0.0.1:9180 nor \"off\"")
        })?;
        Ok(Self(Some(address)))
    }
}

impl From<AdminAddress> for String {
    fn from(address: AdminAddress) -> String {
        address.0.map_or_else(|| "off".to_owned(), |address| address.to_string())
    }
}

/// See [`Settings::steering`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum SteeringMode {
    /// eBPF where it is allowed, plain sockets otherwise.
    #[default]
    Auto,
    /// eBPF, or an error.
    Ebpf,
    /// Plain sockets.
    Off,
}

/// See [`Settings::policy`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// By the connection's hash.
    #[default]
    Hash,
    /// In turn.
    RoundRobin,
    /// The less loaded of two.
    LeastLoaded,
}

/// See [`Settings::strategy`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// A whole new generation beside the old one, one flip, all connections handed over.
    #[default]
    BlueGreen,
    /// A few workers at a time, each handing its connections to the one in its place.
    Rolling,
    /// The supervisor is replaced first, by the program that is on disk; the workers follow by
    /// blue-green.
    SocketHandoff,
}

impl Strategy {
    /// The name in configurations and verdicts.
    pub fn name(self) -> &'static str {
        match self {
            Strategy::BlueGreen => "blue-green",
            Strategy::Rolling => "rolling",
            Strategy::SocketHandoff => "socket-handoff",
        }
    }
}

/// See [`Settings::log_format`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line.
    Json,
}

impl Settings {
    /// The part that a worker is told.
    pub fn worker_config(&self) -> WorkerConfig {
        WorkerConfig {
            service: self.service.clone(),
            limits: self.limits.clone(),
            websocket: self.websocket.clone(),
            http2: self.http2.clone(),
            handoff: self.handoff.clone(),
            state: self.state.clone(),
            parking: ParkingOptions {
                enabled: self.parking.enabled,
                ttl_ms: self.parking.ttl_ms,
                token_ttl_ms: self.parking.token_ttl_ms,
            },
            receive_buffers: self.receive_buffers.clone(),
            proxy_protocol: self.proxy_protocol.clone(),
            gateway: GatewayConfig {
                options: self.gateway.clone(),
                // Only what names no host can be wrong by now, and then no worker is asked.
                routes: self.routes().unwrap_or_default(),
                workers: self.worker_count(),
            },
            access_log: self.access_log.clone(),
            confinement: Confinement {
                seccomp: self.supervision.seccomp,
                seccomp_allow: self.supervision.seccomp_allow.clone(),
                log_format: self.log_format,
                limits: self.worker_limits.clone(),
                paces_itself: true,
                pin_cpus: self.pin_cpus,
            },
            tls: self.tls.for_worker(),
        }
    }

    /// The gateway's routes; none if it is not the service. Host names are looked up.
    ///
    /// # Errors
    /// The setting, and what is wrong with it.
    pub fn routes(&self) -> Result<Vec<RouteTarget>, (&'static str, String)> {
        if self.service != PROXY_SERVICE {
            let gateway = &self.gateway;
            let given = [
                ("gateway.upstream", !gateway.upstream.is_empty()),
                ("gateway.app.command", !gateway.app.command.is_empty()),
                ("route", !self.route.is_empty()),
            ];
            return match given.into_iter().find(|&(_, given)| given) {
                Some((setting, _)) => Err((
                    setting,
                    "is for the service `proxy` only: add --service proxy".to_owned(),
                )),
                None => Ok(Vec::new()),
            };
        }
        let routes = gateway::routes(&self.gateway, &self.route)?;
        if routes.is_empty() {
            let why = "the service `proxy` needs an upstream: --upstream URL, or a [[route]]";
            return Err(("gateway.upstream", why.to_owned()));
        }
        Ok(routes)
    }

    /// Workers of a generation.
    pub fn worker_count(&self) -> u32 {
        if self.workers != 0 {
            return self.workers;
        }
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get());
        u32::try_from(cpus).unwrap_or(MAX_WORKERS).min(MAX_WORKERS)
    }

    /// What is wrong with the values themselves: the name of the setting, and why.
    ///
    /// # Errors
    /// The first one found.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if self.listen.is_empty() {
            return Err(("listen", "needs at least one address, such as 127.0.0.1:8080".into()));
        }
        for (index, address) in self.listen.iter().enumerate() {
            if address.port() != 0 && self.listen[..index].contains(address) {
                return Err(("listen", format!("{address} is there twice")));
            }
        }
        if self.workers > MAX_WORKERS {
            return Err(("workers", format!("at most {MAX_WORKERS}, not {}", self.workers)));
        }
        self.check_admin()?;
        self.check_proxy_protocol()?;
        self.check_parking()?;
        if self.service.is_empty() {
            return Err(("service", "is empty; `demo` is built in".into()));
        }
        if self.backlog == 0 {
            return Err(("backlog", "must be at least 1".into()));
        }
        let buffers = &self.receive_buffers;
        if !buffers.count.is_power_of_two() || buffers.count > 32_768 {
            return Err((
                "receive_buffers.count",
                format!("must be a power of two up to 32768, not {}", buffers.count),
            ));
        }
        if buffers.bytes < 1_024 {
            return Err(("receive_buffers.bytes", "must be at least 1024".into()));
        }
        self.routes()?;
        let hold = &self.gateway.hold;
        if hold.time_ms == 0 || hold.bytes == 0 || hold.replay_concurrency == 0 {
            return Err((
                "gateway.hold",
                "bounds must be at least 1; `enabled = false` holds nothing".into(),
            ));
        }
        self.gateway.health.check()?;
        self.tls.check(&self.listen)?;
        let http2 = &self.http2;
        if !(1..=MAX_CONCURRENT_STREAMS).contains(&http2.max_concurrent_streams) {
            return Err((
                "http2.max_concurrent_streams",
                format!(
                    "must be 1 to {MAX_CONCURRENT_STREAMS}, not {}",
                    http2.max_concurrent_streams
                ),
            ));
        }
        for (name, bytes, least) in [
            ("http2.stream_window_bytes", http2.stream_window_bytes, 1_024),
            ("http2.connection_window_bytes", http2.connection_window_bytes, 65_535),
        ] {
            if !(least..1 << 31).contains(&bytes) {
                return Err((
                    name,
                    format!("must be {least} to {}, not {bytes}", (1u32 << 31) - 1),
                ));
            }
        }
        if http2.stream_buffer_bytes < 1_024 {
            return Err(("http2.stream_buffer_bytes", "must be at least 1024".into()));
        }
        let least = self.limits.max_message_bytes.saturating_mul(2);
        if (1..least).contains(&self.limits.worker_buffer_bytes) {
            let why = format!("must be 0, or at least {least}, twice limits.max_message_bytes");
            return Err(("limits.worker_buffer_bytes", why));
        }
        if self.handoff.window == 0 {
            return Err(("handoff.window", "must be at least 1".into()));
        }
        let heartbeat_ms = self.supervision.heartbeat_timeout_ms;
        let limits = &self.worker_limits;
        if limits.memory_bytes != 0 && limits.memory_bytes < MIN_WORKER_BYTES {
            let why =
                format!("must be at least {MIN_WORKER_BYTES}, which a worker starts with, or 0");
            return Err(("worker_limits.memory_bytes", why));
        }
        if limits.open_files != 0 && limits.open_files < MIN_WORKER_FILES {
            let why = format!("must be at least {MIN_WORKER_FILES}, or 0");
            return Err(("worker_limits.open_files", why));
        }
        if heartbeat_ms != 0 && heartbeat_ms < 2_000 {
            let why =
                "must be at least 2000 (a worker's loop comes round once a second), or 0".into();
            return Err(("supervision.heartbeat_timeout_ms", why));
        }
        if self.supervision.green_nice > 19 {
            let why = format!("at most 19, not {}", self.supervision.green_nice);
            return Err(("supervision.green_nice", why));
        }
        if self.respawn.window_ms == 0 {
            return Err(("respawn.window_ms", "must be at least 1".into()));
        }
        for (setting, value) in [
            ("reload.ready_timeout_ms", self.reload.ready_timeout_ms),
            ("reload.handoff_timeout_ms", self.reload.handoff_timeout_ms),
        ] {
            if value == 0 {
                return Err((setting, "a time-out of 0 ms would fail every reload".into()));
            }
        }
        if self.reload.rolling_batch == 0 {
            return Err(("reload.rolling_batch", "must be at least 1".into()));
        }
        Ok(())
    }

    fn check_proxy_protocol(&self) -> Result<(), (&'static str, String)> {
        let of = &self.proxy_protocol;
        if let Some(other) = of.listeners.iter().find(|one| !self.listen.contains(one)) {
            let why = format!("{other} is not among the addresses of `listen`");
            return Err(("proxy_protocol.listeners", why));
        }
        if !of.listeners.is_empty() && of.trusted.is_empty() {
            let why =
                "name the proxies in front, such as \"10.0.0.0/8\"; nobody else may connect there";
            return Err(("proxy_protocol.trusted", why.into()));
        }
        if of.header_timeout_ms == 0 {
            return Err(("proxy_protocol.header_timeout_ms", "must be at least 1".into()));
        }
        Ok(())
    }

    fn check_admin(&self) -> Result<(), (&'static str, String)> {
        let has_token = self.admin_token.is_some() || self.admin_token_file.is_some();
        if let Some(address) = self.admin.0
            && !address.ip().is_loopback()
            && !has_token
        {
            let why = format!(
                "{address} is not a loopback address, so whoever asks there must show a token: name \
                 its file with admin_token_file, or set ZERO_DOWNTIME_ADMIN_TOKEN"
            );
            return Err(("admin", why));
        }
        if self.admin_token.is_some() && self.admin_token_file.is_some() {
            let why = "there is a token in the environment, too (ZERO_DOWNTIME_ADMIN_TOKEN); \
                       which one counts?";
            return Err(("admin_token_file", why.into()));
        }
        self.admin_token.as_ref().map_or(Ok(()), |token| check_token("admin_token", token))
    }

    fn check_parking(&self) -> Result<(), (&'static str, String)> {
        let parking = &self.parking;
        if parking.enabled && (parking.ttl_ms == 0 || parking.token_ttl_ms == 0) {
            return Err((
                "parking.ttl_ms",
                "must be at least 1; `enabled = false` for none".into(),
            ));
        }
        if parking.key.is_some() && parking.key_file.is_some() {
            let why =
                "there is a key in the environment, too (CONNECTION_STATE_KEY); which one counts?";
            return Err(("parking.key_file", why.into()));
        }
        parking.key.as_ref().map_or(Ok(()), |key| check_key("parking.key", key))
    }

    /// Reads what settings keep in files of its own.
    ///
    /// # Errors
    /// The name of the setting, and why.
    pub(super) fn read_files(&mut self) -> Result<(), (&'static str, String)> {
        let name = "admin_token_file";
        if let Some(path) = &self.admin_token_file {
            let token = Secret::read(path).map_err(|reason| (name, reason))?;
            check_token(name, &token)?;
            self.admin_token = Some(token);
        }
        let name = "parking.key_file";
        if let Some(path) = &self.parking.key_file {
            let key = Secret::read(path).map_err(|reason| (name, reason))?;
            check_key(name, &key)?;
            self.parking.key = Some(key);
        }
        Ok(())
    }
}

fn check_key(name: &'static str, key: &Secret) -> Result<(), (&'static str, String)> {
    match key.key_bytes() {
        Some(_) => Ok(()),
        None => Err((
            name,
            "is not a key: 32 bytes as 64 hexadecimal digits, or as base64, are expected; \
             `openssl rand -hex 32` makes one"
                .into(),
        )),
    }
}

fn check_token(name: &'static str, token: &Secret) -> Result<(), (&'static str, String)> {
    let token = token.expose();
    if token.len() < MIN_TOKEN_BYTES || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let why = format!(
            "a token has at least {MIN_TOKEN_BYTES} characters, all of them visible ASCII; \
             `openssl rand -hex 32` makes one"
        );
        return Err((name, why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_sound_and_survive_a_round_trip() {
        let settings = Settings::default();
        assert_eq!(settings.check(), Ok(()));
        let text = toml::to_string(&settings).unwrap();
        assert_eq!(toml::from_str::<Settings>(&text).unwrap(), settings);
    }

    #[test]
    fn the_documented_file_states_exactly_the_defaults() {
        let text = include_str!("../../../zdt.toml");
        let table: toml::Table = text.parse().unwrap();
        let mut defaults = toml::Table::try_from(Settings::default()).unwrap();
        assert_eq!(table, defaults, "zdt.toml must list every setting with its default");
        // Optional settings have no default to state, but must be documented.
        defaults.clear();
        for name in OPTIONAL {
            let name = name.rsplit('.').next().unwrap();
            assert!(text.contains(&format!("# {name} = ")), "{name} is not documented");
        }
    }

    #[test]
    fn bad_values_name_the_setting() {
        let name = |change: fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            settings.check().unwrap_err().0
        };
        assert_eq!(name(|s| s.listen.clear()), "listen");
        assert_eq!(name(|s| s.listen = vec![s.listen[0], s.listen[0]]), "listen");
        assert_eq!(name(|s| s.workers = MAX_WORKERS + 1), "workers");
        assert_eq!(name(|s| s.admin = "0.0.0.0:9180".parse().unwrap()), "admin");
        assert_eq!(name(|s| s.admin_token = Some("short".to_owned().into())), "admin_token");
        assert_eq!(name(|s| s.receive_buffers.count = 100), "receive_buffers.count");
        assert_eq!(name(|s| s.handoff.window = 0), "handoff.window");
        assert_eq!(name(|s| s.reload.handoff_timeout_ms = 0), "reload.handoff_timeout_ms");
        assert_eq!(
            name(|s| s.supervision.heartbeat_timeout_ms = 500),
            "supervision.heartbeat_timeout_ms"
        );
        assert_eq!(name(|s| s.supervision.green_nice = 20), "supervision.green_nice");
        assert_eq!(name(|s| s.worker_limits.memory_bytes = 1), "worker_limits.memory_bytes");
        assert_eq!(name(|s| s.worker_limits.open_files = 1), "worker_limits.open_files");
    }

    #[test]
    fn the_admin_endpoint_can_be_off() {
        assert_eq!("off".parse(), Ok(AdminAddress(None)));
        assert!("9180".parse::<AdminAddress>().is_err());
    }
}
