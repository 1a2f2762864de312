//! The supervisor's settings, in a file for each section of `zdt.toml` that is its own: types and
//! defaults. Those that workers are told as they are stand in `config` itself.
//!
//! Must not know: where the values come from (that is `sources`), sockets, processes.

mod admin;
mod check;
mod parking;
mod reload;
mod steering;
mod supervision;

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use self::admin::AdminAddress;
pub use self::parking::ParkingSettings;
pub use self::reload::{ReloadOptions, Strategy};
pub use self::steering::{Policy, SteeringMode};
pub use self::supervision::{RespawnOptions, SupervisionOptions};
use super::gateway::{
    self, GatewayConfig, GatewayOptions, PROXY_SERVICE, RouteOptions, RouteTarget,
};
use super::{
    AccessLogOptions, Confinement, HandoffOptions, Http2Options, Limits, ParkingOptions,
    ProxyProtocol, ReceiveBuffers, Secret, StateOptions, TlsOptions, WebSocketOptions,
    WorkerConfig, WorkerLimits,
};

/// What is wrong with a setting: its name, and why.
type Fault = (&'static str, String);

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
    "gateway.hold.spill_dir",
    "parking.path",
    "parking.key",
    "parking.key_file",
];

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

    /// Reads what settings keep in files of its own.
    ///
    /// # Errors
    /// The name of the setting, and why.
    pub(super) fn read_files(&mut self) -> Result<(), (&'static str, String)> {
        let name = "admin_token_file";
        if let Some(path) = &self.admin_token_file {
            let token = Secret::read(path).map_err(|reason| (name, reason))?;
            admin::check_token(name, &token)?;
            self.admin_token = Some(token);
        }
        let name = "parking.key_file";
        if let Some(path) = &self.parking.key_file {
            let key = Secret::read(path).map_err(|reason| (name, reason))?;
            parking::check_key(name, &key)?;
            self.parking.key = Some(key);
        }
        Ok(())
    }
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
        let text = include_str!("../../../../zdt.toml");
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
}
