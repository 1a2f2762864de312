//! The demo: the engine under checked traffic, reloaded again and again; nobody may notice.
//!
//! Must not know: how the engine works.

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::json;

use crate::engine::{Engine, Options as EngineOptions, Reloader, Verdict, find_zdt};
use crate::figures::median;
use crate::traffic::{self, Controller, Options, Outcome};

/// Arguments of `demo`.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// WebSockets to keep open.
    #[arg(long, default_value_t = 1000)]
    connections: usize,
    /// Reloads, spread evenly over the time.
    #[arg(long, default_value_t = 5)]
    reloads: usize,
    /// Duration of the traffic, without connecting.
    #[arg(long, default_value_t = 15.0)]
    seconds: f64,
    /// Workers of a generation.
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// WebSocket messages a second, all connections together.
    #[arg(long, default_value_t = 3000.0)]
    messages_per_s: f64,
    /// How new connections are steered: auto, ebpf or off.
    #[arg(long, default_value = "auto", value_parser = ["auto", "ebpf", "off"])]
    steering: String,
    /// Over TLS.
    #[arg(long)]
    tls: bool,
    /// Half of the WebSockets over HTTP/2: by ALPN with --tls, otherwise by prior knowledge.
    #[arg(long)]
    h2: bool,
    /// Seed of the traffic; a new one each time if it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Show the gateway: an application in Python, replaced ten times under load.
    #[arg(long)]
    gateway: bool,
    /// Print one JSON line instead of a table.
    #[arg(long)]
    json: bool,
    /// The zdt command; beside this program by default.
    #[arg(long)]
    zdt: Option<PathBuf>,
    /// Send the traffic to this server, which is not started, reloaded or stopped.
    #[arg(long, conflicts_with = "zdt")]
    address: Option<SocketAddrV4>,
}

const RELOAD_TIMEOUT: Duration = Duration::from_secs(60);

type Reloaded = Result<(Verdict, Duration)>;

/// Reloads at even distances while the traffic runs.
struct Schedule {
    reloader: Option<Reloader>,
    reloads: usize,
    duration: Duration,
    ready: Option<Instant>,
    begun: usize,
    running: Option<Receiver<Reloaded>>,
    results: Vec<Reloaded>,
}

impl Controller for Schedule {
    fn on_ready(&mut self) {
        self.ready = Some(Instant::now());
    }

    fn go_on(&mut self) -> bool {
        let Some(ready) = self.ready else { return true };
        match self.running.as_ref().map(Receiver::try_recv) {
            Some(Err(TryRecvError::Empty)) => return true,
            Some(Ok(result)) => {
                match &result {
                    Ok((verdict, _)) if verdict.drained_connections > 0 => {
                        eprintln!(
                            "# reload {} left behind: {:?}",
                            self.begun, verdict.drain_reasons
                        );
                    }
                    Ok(_) => {}
                    Err(error) => eprintln!("# reload {}: {error:#}", self.begun),
                }
                self.results.push(result);
                self.running = None;
            }
            Some(Err(TryRecvError::Disconnected)) => {
                self.results.push(Err(anyhow::anyhow!("the reload panicked")));
                self.running = None;
            }
            None => {}
        }
        let past = ready.elapsed();
        let due = self.duration * (self.begun as u32 + 1) / (self.reloads as u32 + 1);
        if let Some(reloader) = &self.reloader
            && self.begun < self.reloads
            && past >= due
        {
            self.begun += 1;
            let (sender, receiver) = channel();
            let reloader = reloader.clone();
            std::thread::spawn(move || {
                // Nobody listens any more if the demo has failed meanwhile.
                let _ = sender.send(reloader.reload(RELOAD_TIMEOUT));
            });
            self.running = Some(receiver);
            return true;
        }
        // Late reloads still happen, but not for ever.
        let late = self.reloader.is_some() && self.begun < self.reloads && past < self.duration * 4;
        past < self.duration || late
    }
}

/// Runs it; whether nothing at all was lost.
pub fn run(arguments: &Arguments) -> Result<bool> {
    if arguments.gateway {
        return crate::bench::swap::demo(arguments.zdt.clone(), arguments.json);
    }
    let seed = arguments.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let options = Options {
        websockets: arguments.connections,
        http2: arguments.h2,
        kept: 32.min(arguments.connections.div_ceil(4)),
        fresh: 8,
        slow: 4,
        messages_per_s: arguments.messages_per_s,
        patience: Duration::from_secs(10),
        seed,
    };
    eprintln!("# seed {seed}");
    let mut schedule = Schedule {
        reloader: None,
        reloads: arguments.reloads,
        duration: Duration::from_secs_f64(arguments.seconds.clamp(0.1, 86_400.0)),
        ready: None,
        begun: 0,
        running: None,
        results: Vec::new(),
    };
    let (outcome, stopped) = match arguments.address {
        Some(address) => {
            schedule.reloads = 0;
            (traffic::run(address, &options, &mut schedule)?, Ok(()))
        }
        None => {
            let engine = Engine::start(EngineOptions {
                zdt: find_zdt(arguments.zdt.clone())?,
                workers: arguments.workers,
                steering: match arguments.steering.as_str() {
                    "ebpf" => "ebpf",
                    "off" => "off",
                    _ => "auto",
                },
                cpu: None,
                tls: arguments.tls,
                service: vec!["demo".to_owned()],
                answers_id: true,
                configuration: String::new(),
            })?;
            eprintln!("# engine on {}", engine.address);
            schedule.reloader = Some(engine.reloader());
            let outcome = traffic::run(engine.address, &options, &mut schedule)?;
            (outcome, engine.stop())
        }
    };
    let summary = Summary::new(&outcome, &schedule);
    if arguments.json {
        println!("{}", summary.json(&outcome, seed));
    } else {
        summary.print(&outcome);
    }
    for problem in &outcome.tally.problems {
        eprintln!("# {problem}");
    }
    stopped?;
    if schedule.begun < schedule.reloads {
        bail!("only {} of {} reloads were begun in time", schedule.begun, schedule.reloads);
    }
    Ok(outcome.tally.is_clean() && summary.failed_reloads == 0 && summary.lost == 0)
}

/// Figures of all reloads together.
struct Summary {
    reloads: usize,
    failed_reloads: usize,
    migrated: u64,
    drained: u64,
    lost: u64,
    /// Median of the medians, worst 99th percentile, largest.
    blackout_us: [f64; 3],
    /// Median and largest.
    reload_ms: [f64; 2],
}

impl Summary {
    fn new(_: &Outcome, schedule: &Schedule) -> Self {
        let verdicts: Vec<&Verdict> =
            schedule.results.iter().flatten().map(|(verdict, _)| verdict).collect();
        let took: Vec<f64> = verdicts.iter().map(|verdict| verdict.duration_ms).collect();
        let of =
            |f: fn(&Verdict) -> f64| verdicts.iter().map(|verdict| f(verdict)).collect::<Vec<_>>();
        let worst = |values: Vec<f64>| values.into_iter().fold(0.0, f64::max);
        let middle = |values: &[f64]| if values.is_empty() { 0.0 } else { median(values) };
        Self {
            reloads: verdicts.len(),
            failed_reloads: schedule.results.len() - verdicts.len(),
            migrated: verdicts.iter().map(|verdict| verdict.migrated_connections).sum(),
            drained: verdicts.iter().map(|verdict| verdict.drained_connections).sum(),
            lost: verdicts.iter().map(|verdict| verdict.lost_connections).sum(),
            blackout_us: [
                middle(&of(|verdict| verdict.blackout_us.p50)),
                worst(of(|verdict| verdict.blackout_us.p99)),
                worst(of(|verdict| verdict.blackout_us.max)),
            ],
            reload_ms: [middle(&took), worst(took)],
        }
    }

    fn json(&self, outcome: &Outcome, seed: u64) -> serde_json::Value {
        let Outcome { tally, rtt_us, clock_delay_us, generation_changes, connections, .. } =
            outcome;
        json!({
            "connections": connections,
            "http2_websockets": outcome.http2_websockets,
            "http2_connections": outcome.http2_connections,
            "reloads": self.reloads,
            "failed_reloads": self.failed_reloads,
            "migrated": self.migrated,
            "drained": self.drained,
            "dropped": tally.dropped,
            "lost_connections": self.lost,
            "corrupted": tally.corrupted + tally.wrong_counts + tally.mixed_up,
            "failed_requests": tally.failed_requests,
            "messages": tally.messages,
            "requests": tally.requests,
            "lost_messages": tally.lost,
            "doubled": tally.doubled,
            "reordered": tally.reordered,
            "wrong_counts": tally.wrong_counts,
            "mixed_up": tally.mixed_up,
            "generation_changes": generation_changes,
            "blackout_us": {
                "p50": self.blackout_us[0], "p99": self.blackout_us[1], "max": self.blackout_us[2],
            },
            "rtt_us": {
                "p50": rtt_us.value_at_quantile(0.5), "p99": rtt_us.value_at_quantile(0.99),
                "max": rtt_us.max(),
            },
            "clock_delay_us": {
                "p50": clock_delay_us.value_at_quantile(0.5),
                "p99": clock_delay_us.value_at_quantile(0.99), "max": clock_delay_us.max(),
            },
            "reload_ms": { "p50": self.reload_ms[0], "max": self.reload_ms[1] },
            "seed": seed,
        })
    }

    fn print(&self, outcome: &Outcome) {
        let Outcome { tally, rtt_us, clock_delay_us, generation_changes, connections, .. } =
            outcome;
        let line = |name: &str, value: String| println!("{name:28} {value}");
        line("connections", connections.to_string());
        if outcome.http2_websockets > 0 {
            let carriers = outcome.http2_connections;
            line("of them over HTTP/2", format!("{} on {carriers}", outcome.http2_websockets));
        }
        line("reloads", format!("{} ({} failed)", self.reloads, self.failed_reloads));
        line("migrated connections", format!("{} ({} drained)", self.migrated, self.drained));
        line("generation changes seen", generation_changes.to_string());
        line("messages checked", tally.messages.to_string());
        line("HTTP answers checked", tally.requests.to_string());
        line("dropped connections", (tally.dropped + self.lost).to_string());
        line(
            "lost, doubled, reordered",
            format!("{}, {}, {}", tally.lost, tally.doubled, tally.reordered),
        );
        line("corrupted, mixed up", format!("{}, {}", tally.corrupted, tally.mixed_up));
        line("wrong counts", tally.wrong_counts.to_string());
        line("failed requests", tally.failed_requests.to_string());
        let [p50, p99, max] = self.blackout_us;
        line("blackout p50, p99, max", format!("{p50:.0}, {p99:.0}, {max:.0} us"));
        let three = |histogram: &hdrhistogram::Histogram<u64>| {
            let at = |quantile| histogram.value_at_quantile(quantile);
            format!("{}, {}, {} us", at(0.5), at(0.99), histogram.max())
        };
        line("round trip p50, p99, max", three(rtt_us));
        line("clock delay p50, p99, max", three(clock_delay_us));
        line("reload p50, max", format!("{:.0}, {:.0} ms", self.reload_ms[0], self.reload_ms[1]));
        let clean = tally.is_clean() && self.failed_reloads == 0 && self.lost == 0;
        println!("{}", if clean { "nobody noticed" } else { "SOMETHING WAS LOST" });
    }
}
