//! The `zdt` command.
//!
//! Must not know: how the supervisor does what it is told.

/// As the standard one, for all commands; but whoever has seen enough closes the pipe, which is no reason
/// to panic, and the command's own exit code stands.
macro_rules! println {
    ($($argument:tt)*) => { $crate::cli::print_line(format_args!($($argument)*)) };
}

mod client;
mod config;
mod doctor;
mod gateway;
mod plan;
mod reload;
mod serve;
mod status;
mod stop;
mod top;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{AdminAddress, LogFormat, SteeringMode, Strategy};
use crate::service::Services;
use crate::sys::ring::Blank;

/// Replaces the processes behind a busy port without its clients noticing.
#[derive(Debug, Parser)]
#[command(name = "zdt", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a supervisor and its workers in the foreground.
    Serve(ServeArgs),
    /// Replace the workers by new ones, from the program and configuration that are on disk now.
    Reload(ReloadArgs),
    /// Go back to what served before the last reload, or undo the reload that is going on.
    Rollback(RollbackArgs),
    /// Show what runs.
    Status(StatusArgs),
    /// Show workers and rates, again and again.
    Top(TopArgs),
    /// Say what a reload would do, and which connections it could not move.
    Plan(PlanArgs),
    /// Try the handoff of every connection aside, without its client noticing.
    TestMigration(TestMigrationArgs),
    /// Gateway: hold the requests of a route, or of all.
    Hold(RouteArgs),
    /// Gateway: send what is held, and go on.
    Resume(RouteArgs),
    /// Gateway: look at what is held, or give it up.
    Queue(QueueArgs),
    /// Gateway: replace the upstreams of a route.
    Upstream(UpstreamArgs),
    /// Stop the service; connections drain first.
    Stop(StopArgs),
    /// Check what this machine allows, and say what to do about what it does not.
    Doctor(DoctorArgs),
    /// Check or show the configuration.
    Config(ConfigArgs),
    /// A worker process; started by the supervisor only.
    #[command(hide = true)]
    Worker(WorkerArgs),
}

#[derive(Debug, Args)]
struct ServeArgs {
    #[command(flatten)]
    settings: SettingsArgs,
}

/// What is configured on the command line.
#[derive(Debug, Args)]
struct SettingsArgs {
    /// Configuration file; every setting is described in zdt.toml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Public address; may be given several times.
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    listen: Vec<SocketAddr>,
    /// Certificate (PEM) to speak TLS with, and those behind it; may be given several times, each with its
    /// --tls-key.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Vec<PathBuf>,
    /// Private key (PEM) of the certificate at the same place.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Vec<PathBuf>,
    /// Roots (PEM) that the certificates of clients must lead to; clients without one are refused.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// Address of health, status and metrics, or `off`.
    #[arg(long, value_name = "ADDR")]
    admin: Option<AdminAddress>,
    /// Directory of the control socket and of the supervisor's state.
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Worker processes; 0 is one per CPU.
    #[arg(long, value_name = "N")]
    workers: Option<u32>,
    /// Name of the service.
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Gateway: an upstream of the default route, http://HOST:PORT or unix:/PATH; may be given several
    /// times.
    #[arg(long, value_name = "URL")]
    upstream: Vec<String>,
    /// Gateway: an application to run, with PORT in its environment.
    #[arg(long, value_name = "COMMAND")]
    app: Option<String>,
    /// Whom the workers run as, if started by root.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Group of the workers, if started by root; the user's own by default.
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Whether eBPF steers new connections.
    #[arg(long, value_enum)]
    steering: Option<SteeringMode>,
    /// How a reload replaces the workers.
    #[arg(long, value_enum)]
    strategy: Option<Strategy>,
    /// Form of the log on standard error; RUST_LOG says how much of it.
    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let expected =
        "expected an IP address and a port, such as 127.0.0.1:8080, 0.0.0.0:80 or [::1]:8080";
    text.parse().map_err(|_| expected.to_owned())
}

impl SettingsArgs {
    fn run_dir(&self) -> RunDirArg {
        RunDirArg { run_dir: self.run_dir.clone() }
    }
}

#[derive(Debug, Args)]
struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Say what is wrong with the configuration, without starting anything.
    Check {
        #[command(flatten)]
        settings: SettingsArgs,
        /// Print one line of JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show every setting, and where its value comes from.
    Show {
        #[command(flatten)]
        settings: SettingsArgs,
        /// Ask the running supervisor what is in force there.
        #[arg(long)]
        running: bool,
        /// Print one line of JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct RunDirArg {
    /// Run directory of the supervisor.
    #[arg(long, value_name = "DIR", global = true)]
    run_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ReloadArgs {
    #[command(flatten)]
    run_dir: RunDirArg,
    /// Gateway: replace the application instead of the workers.
    #[arg(long)]
    app: bool,
    /// Print the verdict as one line of JSON.
    #[arg(long)]
    json: bool,
    /// Go on where the new build writes states that the running one cannot read.
    #[arg(long)]
    no_rollback: bool,
    /// How, instead of the configured way.
    #[arg(long, value_enum)]
    strategy: Option<Strategy>,
    /// Send so many of 1,000 new connections to the new workers first, and compare.
    #[arg(long, value_name = "PERMILLE", conflicts_with = "strategy",
        value_parser = clap::value_parser!(u16).range(1..=999))]
    canary: Option<u16>,
    /// How long the canary is watched: 30s, 500ms, 2m.
    #[arg(long = "for", value_name = "TIME", requires = "canary", default_value = "30s",
        value_parser = reload::parse_duration)]
    watch: std::time::Duration,
    /// Do not wait for the verdict.
    #[arg(long)]
    no_wait: bool,
}

#[derive(Debug, Args)]
struct RollbackArgs {
    #[command(flatten)]
    run_dir: RunDirArg,
    /// Print the verdict as one line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct StatusArgs {
    #[command(flatten)]
    run_dir: RunDirArg,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct TopArgs {
    #[command(flatten)]
    run_dir: RunDirArg,
    /// Between two looks.
    #[arg(long, value_name = "MS", default_value_t = 1_000)]
    interval_ms: u64,
    /// End after so many.
    #[arg(long, value_name = "N")]
    count: Option<u32>,
    /// Print one line of JSON for each look.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct PlanArgs {
    #[command(flatten)]
    run_dir: RunDirArg,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct TestMigrationArgs {
    #[command(flatten)]
    run_dir: RunDirArg,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct RouteArgs {
    #[command(flatten)]
    run_dir: RunDirArg,
    /// Name of the route; `zdt queue stats` lists them.
    route: Option<String>,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct QueueArgs {
    #[command(flatten)]
    run_dir: RunDirArg,
    #[command(subcommand)]
    command: QueueCommand,
}

#[derive(Debug, Subcommand)]
enum QueueCommand {
    /// What is held, and how the upstreams are.
    Stats {
        /// Print one line of JSON.
        #[arg(long)]
        json: bool,
    },
    /// Answer what is held with 503.
    Flush {
        /// Only of this route.
        route: Option<String>,
        /// Print one line of JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct UpstreamArgs {
    #[command(flatten)]
    run_dir: RunDirArg,
    #[command(subcommand)]
    command: UpstreamCommand,
}

#[derive(Debug, Subcommand)]
enum UpstreamCommand {
    /// New requests go to these as soon as they answer; the others finish what they have.
    Set {
        /// Name of the route.
        route: String,
        /// http://HOST:PORT or unix:/PATH.
        #[arg(required = true)]
        urls: Vec<String>,
        /// Print one line of JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct StopArgs {
    #[command(flatten)]
    run_dir: RunDirArg,
    /// Do not let connections drain.
    #[arg(long)]
    now: bool,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct DoctorArgs {
    #[command(flatten)]
    run_dir: RunDirArg,
    /// Configuration file, for the user of the workers.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct WorkerArgs {
    /// Descriptor of the control connection.
    #[arg(long)]
    control_fd: i32,
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
}

/// The command with the services that come with it.
pub fn main() -> ExitCode {
    run_with(Services::builtin())
}

/// The command with these services.
pub fn run_with(services: Services) -> ExitCode {
    match Cli::parse().command {
        Command::Serve(args) => report("serve", serve::run(args, &services)),
        Command::Reload(args) => report("reload", reload::run(&args)),
        Command::Rollback(args) => report("rollback", reload::roll_back(&args)),
        Command::Status(args) => report("status", status::run(&args)),
        Command::Top(args) => report("top", top::run(&args)),
        Command::Plan(args) => report("plan", plan::plan(&args)),
        Command::TestMigration(args) => report("test-migration", plan::test_migration(&args)),
        Command::Hold(args) => report("hold", gateway::hold(&args, true)),
        Command::Resume(args) => report("resume", gateway::hold(&args, false)),
        Command::Queue(args) => report("queue", gateway::queue(&args)),
        Command::Upstream(args) => report("upstream", gateway::upstream(&args)),
        Command::Stop(args) => report("stop", stop::run(&args)),
        Command::Doctor(args) => report("doctor", doctor::run(&args)),
        Command::Config(args) => report("config", config::run(args, &services)),
        Command::Worker(args) => run_worker(&args, &services),
    }
}

fn report(command: &str, result: Result<ExitCode, String>) -> ExitCode {
    result.unwrap_or_else(|message| {
        eprintln!("zdt {command}: {message}");
        ExitCode::FAILURE
    })
}

fn run_worker(args: &WorkerArgs, services: &Services) -> ExitCode {
    // Whoever signals all processes of a service (a terminal, systemd) means the supervisor, which
    // tells its workers what to do. SIGKILL still ends a worker at once.
    let mut ignored = nix::sys::signal::SigSet::empty();
    ignored.add(nix::sys::signal::Signal::SIGHUP);
    ignored.add(nix::sys::signal::Signal::SIGINT);
    ignored.add(nix::sys::signal::Signal::SIGTERM);
    ignored.add(nix::sys::signal::Signal::SIGQUIT);
    let blocked = ignored.thread_block();
    start_log(args.log_format);
    if let Err(error) = blocked {
        tracing::warn!(%error, "cannot block signals");
    }
    // Executed through a descriptor, the process would otherwise be called by its number.
    let _ = std::fs::write("/proc/self/comm", "zdt-worker");
    // First: it must not meet descriptors of this program's own.
    let ring = Blank::bequeathed().unwrap_or_else(|error| {
        tracing::warn!(%error, "the ring that was made for this worker cannot be had");
        None
    });
    match crate::sys::unix::take_inherited(args.control_fd) {
        Ok(control) => crate::worker::main(control, ring, services),
        Err(error) => {
            eprintln!(
                "zdt worker: no control connection at descriptor {}: {error}; workers are started \
                 by `zdt serve`",
                args.control_fd
            );
            ExitCode::FAILURE
        }
    }
}

/// Prints a line on standard output; a disk that is full is an error that must not pass for an answer.
fn print_line(line: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{line}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            eprintln!("zdt: cannot write to standard output: {error}");
            std::process::exit(1);
        }
        _ => {}
    }
}

fn start_log(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(tracing::Level::INFO.into())
        .from_env_lossy();
    let builder = tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter);
    let started = match format {
        LogFormat::Text => builder
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .with_target(false)
            .try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    // An application that embeds the engine may log its own way.
    drop(started);
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
