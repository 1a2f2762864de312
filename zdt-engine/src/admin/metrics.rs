//! `/metrics`: the status in Prometheus's text format 0.0.4.
//!
//! No label takes more than a handful of values, so that nothing grows with the number of reloads: workers and
//! generations are summed by what they do.
//!
//! Must not know: where the figures come from.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::supervisor::handle::{Readiness, Status};

/// The media type of [`render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics.
pub fn render(status: &Status, readiness: Readiness) -> String {
    let mut page = Page::default();
    page.gauge("zdt_build_info", "The supervisor's build.")
        .labelled(&[("version", &status.version)], 1.0);
    let mut health = page.gauge("zdt_status", "1 for what the status is, 0 for the others.");
    for name in ["healthy", "reloading", "degraded"] {
        health.labelled(&[("status", name)], if status.status == name { 1.0 } else { 0.0 });
    }
    let ready = matches!(readiness, Readiness::Ready | Readiness::Degraded);
    let ready = if ready { 1.0 } else { 0.0 };
    page.gauge("zdt_ready", "1 while new connections are welcome.").plain(ready);
    page.gauge("zdt_uptime_seconds", "Since the supervisor took over.")
        .plain(status.uptime_seconds);
    page.gauge("zdt_generation", "The generation that serves.").plain(status.generation.into());
    generations(&mut page, status);
    connections(&mut page, status);
    counters(&mut page, status);
    reloads(&mut page, status);
    page.gauge("zdt_listeners", "Listening sockets, those that linger after a reload included.")
        .plain(status.socket_stats.listeners.into());
    page.gauge("zdt_steering_info", "How new connections are steered.")
        .labelled(&[("mode", &status.socket_stats.steering)], 1.0);
    page.gauge("zdt_buffered_requests", "Requests that are held.")
        .plain(float(status.buffered_requests));
    page.text
}

fn generations(page: &mut Page, status: &Status) {
    let mut generations = BTreeMap::from([("serving", 0.0), ("starting", 0.0), ("draining", 0.0)]);
    for generation in &status.generations {
        *generations.entry(&generation.state).or_default() += 1.0;
    }
    let mut metric = page.gauge("zdt_generations", "Living generations, by what they do.");
    for (state, count) in generations {
        metric.labelled(&[("state", state)], count);
    }
    let states = ["starting", "serving", "draining", "ending"];
    let mut workers = BTreeMap::from(states.map(|state| (state, 0.0)));
    for worker in status.worker_stats.values() {
        *workers.entry(&worker.state).or_default() += 1.0;
    }
    let mut metric = page.gauge("zdt_workers", "Living workers, by what they do.");
    for (state, count) in workers {
        metric.labelled(&[("state", state)], count);
    }
    let silent = status.worker_stats.values().filter(|worker| !worker.answers).count();
    page.gauge("zdt_silent_workers", "Workers that did not answer within 500 ms.")
        .plain(float(silent as u64));
    let workers = status.worker_stats.values();
    let resident: f64 = workers.map(|worker| worker.memory_usage_mb).sum();
    page.gauge("zdt_resident_memory_bytes", "Resident memory of the supervisor and all workers.")
        .labelled(&[("process", "workers")], resident * MEBIBYTE)
        .labelled(&[("process", "supervisor")], (status.memory_usage_mb - resident) * MEBIBYTE);
}

fn connections(page: &mut Page, status: &Status) {
    let workers = status.worker_stats.values();
    let buffered: f64 = workers.map(|worker| float(worker.figures.buffered_bytes)).sum();
    page.gauge("zdt_buffered_bytes", "What clients make the workers hold.").plain(buffered);
    let gateways = status.worker_stats.values().filter_map(|one| one.figures.gateway.as_deref());
    let spilled: f64 = gateways.map(|gateway| float(gateway.spilled_bytes)).sum();
    page.gauge("zdt_spilled_bytes", "Bodies of held requests on the disk.").plain(spilled);
    let mut by_kind: BTreeMap<(&str, &str), f64> = BTreeMap::new();
    let mut draining: BTreeMap<&str, f64> = BTreeMap::new();
    for worker in status.worker_stats.values() {
        let mut known = 0u64;
        for (protocol, count) in &worker.figures.by_protocol {
            *by_kind.entry((&worker.state, protocol)).or_default() += float(*count);
            known = known.saturating_add(*count);
        }
        let unknown = worker.figures.connections.saturating_sub(known);
        if unknown > 0 {
            *by_kind.entry((&worker.state, "unknown")).or_default() += float(unknown);
        }
        for (reason, count) in &worker.figures.draining {
            *draining.entry(reason).or_default() += float(*count);
        }
    }
    let help = "Open connections, by what their worker does and by protocol.";
    let mut metric = page.gauge("zdt_connections", help);
    for ((state, protocol), count) in by_kind {
        metric.labelled(&[("state", state), ("protocol", protocol)], count);
    }
    let mut by_transport: BTreeMap<&str, f64> = BTreeMap::new();
    for worker in status.worker_stats.values() {
        for (transport, count) in &worker.figures.by_transport {
            *by_transport.entry(transport).or_default() += float(*count);
        }
    }
    let mut metric = page.gauge("zdt_transports", "Open connections, by what they go over.");
    for (transport, count) in by_transport {
        metric.labelled(&[("transport", transport)], count);
    }
    let help = "Connections that could not be handed over and drain, by reason.";
    let mut metric = page.gauge("zdt_draining_connections", help);
    for (reason, count) in draining {
        metric.labelled(&[("reason", reason)], count);
    }
}

fn counters(page: &mut Page, status: &Status) {
    let (counters, totals) = (&status.counters, &status.totals);
    for (name, help, value) in [
        (
            "accepted_connections",
            "Connections accepted, the proofs of a reload included.",
            counters.accepted,
        ),
        ("rejected_connections", "Connections closed because of a limit.", counters.rejected),
        (
            "squeezed_connections",
            "How often a connection had to wait because all of them held too much.",
            counters.squeezed,
        ),
        ("shed_connections", "Connections given up for their buffers.", counters.shed),
        ("adopted_connections", "Connections taken over from other workers.", counters.adopted),
        ("moved_connections", "Connections handed to other workers.", counters.moved),
        (
            "migrated_connections",
            "Connections that changed their generation.",
            totals.migrated_connections,
        ),
        ("lost_connections", "Connections that died with a worker.", totals.lost_connections),
        ("http_requests", "HTTP requests.", counters.requests),
        ("websocket_messages_received", "WebSocket messages received.", counters.messages_received),
        ("websocket_messages_sent", "WebSocket messages sent.", counters.messages_sent),
        ("received_bytes", "Bytes received from clients.", counters.bytes_received),
        ("sent_bytes", "Bytes sent to clients.", counters.bytes_sent),
        ("held_requests", "Requests that the gateway has held.", counters.held_requests),
        ("replayed_requests", "Held requests that were sent.", counters.replayed_requests),
        (
            "unheld_requests",
            "Requests that the gateway could not hold for want of room.",
            counters.unheld_requests,
        ),
        (
            "displaced_requests",
            "Held requests that were given up for newer ones.",
            counters.displaced_requests,
        ),
        ("expired_requests", "Held requests whose time was over.", counters.expired_requests),
        (
            "abandoned_requests",
            "Held requests whose client went away.",
            counters.abandoned_requests,
        ),
        (
            "spilled_requests",
            "Held requests whose bodies have gone to the disk.",
            counters.spilled_requests,
        ),
        (
            "unspilled_requests",
            "Held requests whose bodies found no room on the disk.",
            counters.unspilled_requests,
        ),
        ("worker_crashes", "Workers that died after they had served.", totals.crashes),
        (
            "worker_failed_starts",
            "Workers that died before they could serve.",
            totals.failed_starts,
        ),
        ("worker_hangs", "Workers that did not come round and were killed.", totals.hung),
        ("worker_respawns", "Workers that were restarted.", totals.respawns),
    ] {
        page.counter(&format!("zdt_{name}_total"), help).plain(float(value));
    }
    page.counter("zdt_reloads_total", "Reloads, by how they ended.")
        .labelled(&[("result", "committed")], float(totals.reloads))
        .labelled(&[("result", "failed")], float(totals.failed_reloads));
}

fn reloads(page: &mut Page, status: &Status) {
    let running = if status.reload_in_progress { 1.0 } else { 0.0 };
    page.gauge("zdt_reload_in_progress", "1 while a reload is going on.").plain(running);
    let Some(last) = &status.last_reload else { return };
    let succeeded = if last.reload_successful { 1.0 } else { 0.0 };
    page.gauge("zdt_last_reload_successful", "Whether the last reload was committed.")
        .plain(succeeded);
    page.gauge("zdt_last_reload_duration_seconds", "From its request to its verdict.")
        .plain(last.duration_ms / 1_000.0);
    let help = "Connections of the last reload, by what became of them.";
    page.gauge("zdt_last_reload_connections", help)
        .labelled(&[("fate", "migrated")], float(last.migrated_connections))
        .labelled(&[("fate", "drained")], float(last.drained_connections))
        .labelled(&[("fate", "returned")], float(last.returned_connections))
        .labelled(&[("fate", "lost")], float(last.lost_connections));
    let blackout = &last.blackout_us;
    let help = "How long moved connections were not served in the last reload.";
    page.gauge("zdt_last_reload_blackout_seconds", help)
        .labelled(&[("quantile", "0.5")], float(blackout.p50) / 1e6)
        .labelled(&[("quantile", "0.99")], float(blackout.p99) / 1e6)
        .labelled(&[("quantile", "1")], float(blackout.max) / 1e6);
}

const MEBIBYTE: f64 = 1_048_576.0;

/// Counts are below 2^53 for some centuries.
fn float(count: u64) -> f64 {
    count as f64
}

#[derive(Default)]
struct Page {
    text: String,
}

/// One metric: its head is written, its samples follow.
struct Metric<'a> {
    text: &'a mut String,
    name: String,
}

impl Page {
    fn gauge(&mut self, name: &str, help: &str) -> Metric<'_> {
        self.metric(name, help, "gauge")
    }

    fn counter(&mut self, name: &str, help: &str) -> Metric<'_> {
        self.metric(name, help, "counter")
    }

    fn metric(&mut self, name: &str, help: &str, kind: &str) -> Metric<'_> {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Metric { text: &mut self.text, name: name.to_owned() }
    }
}

impl Metric<'_> {
    fn plain(&mut self, value: f64) -> &mut Self {
        let _ = writeln!(self.text, "{} {value}", self.name);
        self
    }

    fn labelled(&mut self, labels: &[(&str, &str)], value: f64) -> &mut Self {
        self.text.push_str(&self.name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{before}{label}=\"{}\"", escaped(text));
        }
        let _ = writeln!(self.text, "}} {value}");
        self
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_cannot_break_out() {
        let status = Status { version: "1\"}\n\\evil 1".to_owned(), ..Status::default() };
        let page = render(&status, Readiness::Ready);
        assert!(page.contains(r#"zdt_build_info{version="1\"}\n\\evil 1"} 1"#), "{page}");
        assert!(
            page.lines().all(|line| line.starts_with("zdt_") || line.starts_with("# ")),
            "{page}"
        );
    }
}
