//! Time-outs, what the supervisor says, and the figures.
//!
//! Must not know: sockets' operations, the client's protocol.

use super::core::{Core, SWEEP_MS};
use super::exchange::{Leaving, Link, LinkStage, Stage, Todo};
use crate::config::{RouteTarget, SwapPolicy};
use crate::control::{GatewayStatus, UpstreamStatus};
use crate::queue::Scope;
use crate::shm::SlotTotals;

impl Core {
    /// When [`Core::on_time`] has something to do.
    pub fn due_ms(&self) -> Option<u64> {
        let is_idle = self.links.is_empty() && self.exchanges.is_empty();
        (!is_idle || self.table.has_retired()).then_some(self.next_sweep_ms)
    }

    /// Looks for what has taken too long.
    pub fn on_time(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        if now_ms < self.next_sweep_ms {
            return;
        }
        self.next_sweep_ms = now_ms + SWEEP_MS;
        while let Some(held) = self.queue.pop_expired(now_ms) {
            self.drop_held(held.tag, "no upstream of its route came back in time");
        }
        self.leave_on_time();
        self.end_replays_on_time();
        if self.table.has_retired() {
            let Self { table, links, .. } = self;
            table.forget_retired(links.iter().map(|(_, link)| link.upstream));
        }
        self.probe();
        self.replay();
        let slow: Vec<usize> = self
            .links
            .iter()
            .filter(|(_, link)| self.is_overdue(link))
            .map(|(index, _)| index)
            .collect();
        for index in slow {
            let link = &self.links[index];
            match (link.exchange, link.stage) {
                (None, LinkStage::Ready) => self.close(index),
                (_, LinkStage::Making | LinkStage::Connecting) => {
                    let after = self.options.connect_timeout_ms;
                    self.on_link_failure(
                        index,
                        &format!("accepted no connection within {after} ms"),
                        true,
                    );
                }
                (Some(exchange), LinkStage::Ready) => {
                    let after = self.options.response_timeout_ms;
                    let upstream = link.upstream;
                    let url = self.table.upstreams[upstream].url.clone();
                    self.table.upstreams[upstream].on_failure(now_ms, false);
                    self.fail(
                        exchange,
                        504,
                        &format!("the upstream {url} answered nothing within {after} ms"),
                    );
                }
            }
        }
    }

    fn is_overdue(&self, link: &Link) -> bool {
        let past = |since_ms: u64, after_ms: u64| self.now_ms.saturating_sub(since_ms) >= after_ms;
        if link.closing || link.frozen {
            return false;
        }
        match (link.stage, link.exchange.map(|index| &self.exchanges[index])) {
            (LinkStage::Making | LinkStage::Connecting, _) => {
                past(link.since_ms, self.options.connect_timeout_ms)
            }
            (LinkStage::Ready, None) => past(link.since_ms, self.options.idle_timeout_ms),
            (LinkStage::Ready, Some(exchange)) => {
                // A client that sends its body slowly, or takes the answer slowly, has time-outs of its
                // own.
                let upstream_owes = match exchange.stage {
                    Stage::Sent | Stage::Responding | Stage::Reconnecting => {
                        let is_sending = !exchange.out.is_empty() || link.sending.is_some();
                        exchange.body_done && !link.paused || is_sending
                    }
                    // A tunnel may be silent for as long as it likes, but the rest of it is to be taken.
                    Stage::Tunnel => {
                        (exchange.half_closed || link.end_seen) && link.sending.is_some()
                    }
                    Stage::Held(_) | Stage::Opening | Stage::Failed => false,
                };
                upstream_owes && past(exchange.active_ms, self.options.response_timeout_ms)
            }
        }
    }

    /// The supervisor has changed routes, or what it knows of upstreams, and asks when nothing is left of those
    /// that are `leaving`.
    pub fn apply(&mut self, routes: &[RouteTarget], leaving: &[String]) {
        let retired = self.table.apply(routes);
        for route in 0..self.table.routes.len() {
            self.queue.start_upstream_buffering(route as u64);
        }
        for upstream in retired {
            for link in std::mem::take(&mut self.table.upstreams[upstream].idle) {
                self.close(link);
            }
            self.report_idle(upstream);
        }
        for url in leaving {
            // (Those that are known were retired.)
            if !self.table.upstreams.iter().any(|(_, upstream)| upstream.url == *url) {
                self.todo.push_back(Todo::Idle { url: url.clone() });
            }
        }
        self.probe();
        self.replay();
    }

    /// An application that is to end waits for this.
    pub(super) fn report_idle(&mut self, upstream: usize) {
        let upstream = &self.table.upstreams[upstream];
        if upstream.retired && upstream.outstanding == 0 {
            self.todo.push_back(Todo::Idle { url: upstream.url.clone() });
        }
    }

    /// The tunnels of an upstream leave it, spread over that time.
    pub fn leave(&mut self, url: &str, how: Leaving, over_ms: u64) {
        let tunnels: Vec<(usize, u64)> = self
            .exchanges
            .iter()
            .filter(|(_, exchange)| exchange.stage == Stage::Tunnel)
            .filter(|(_, exchange)| {
                exchange.upstream.is_some_and(|upstream| self.table.upstreams[upstream].url == url)
            })
            .map(|(index, exchange)| (index, exchange.serial))
            .collect();
        let count = tunnels.len().max(1) as u64;
        for (number, (index, serial)) in tunnels.into_iter().enumerate() {
            let due_ms = self.now_ms + over_ms * number as u64 / count;
            self.leave_at(due_ms, index, serial, how);
        }
        self.leave_on_time();
    }

    /// A tunnel that has come from another worker to an upstream that has been replaced: whoever it came from may
    /// not have got round to it.
    pub(super) fn leave_replaced(&mut self, index: usize) {
        let exchange = &self.exchanges[index];
        let is_replaced =
            exchange.upstream.is_some_and(|upstream| self.table.upstreams[upstream].retired);
        let policy = self.options.app.websockets;
        if is_replaced && exchange.stage == Stage::Tunnel && policy == SwapPolicy::Reconnect {
            self.leave_at(self.now_ms, index, exchange.serial, Leaving::Reconnect);
        }
    }

    fn leave_at(&mut self, due_ms: u64, index: usize, serial: u64, how: Leaving) {
        let place = self.leaving.partition_point(|&(known_ms, ..)| known_ms <= due_ms);
        self.leaving.insert(place, (due_ms, index, serial, how));
    }

    pub(super) fn leave_on_time(&mut self) {
        while let Some(&(due_ms, exchange, serial, how)) = self.leaving.front()
            && due_ms <= self.now_ms
        {
            self.leaving.pop_front();
            let known = self.exchanges.get_mut(exchange).filter(|known| known.serial == serial);
            let Some(tunnel) = known.and_then(|known| known.tunnel.as_mut()) else { continue };
            if how == Leaving::ReconnectNow && tunnel.leaving != Leaving::Reconnect {
                continue; // it has
            }
            tunnel.leaving = how;
            self.todo.push_back(Todo::Leave { exchange, serial });
            if how == Leaving::Reconnect {
                let patience_ms = self.options.app.stop_timeout_ms / 2;
                self.leave_at(self.now_ms + patience_ms, exchange, serial, Leaving::ReconnectNow);
            }
        }
    }

    /// Closes what nobody uses; this worker will not need it.
    pub fn close_idle(&mut self) {
        let idle: Vec<usize> = self
            .links
            .iter()
            .filter(|(_, link)| link.exchange.is_none())
            .map(|(index, _)| index)
            .collect();
        for link in idle {
            self.close(link);
        }
    }

    /// What goes on being counted when this worker is gone.
    pub fn publish(&self, totals: &SlotTotals) {
        use std::sync::atomic::Ordering::Relaxed;
        let metrics = self.queue.metrics();
        totals.held.store(self.status.held_total, Relaxed);
        totals.replayed.store(self.status.replayed, Relaxed);
        totals.not_held.store(metrics.rejected, Relaxed);
        totals.displaced.store(metrics.displaced, Relaxed);
        totals.expired.store(metrics.expired, Relaxed);
        totals.abandoned.store(self.status.abandoned, Relaxed);
        totals.spilled.store(self.status.spilled_total, Relaxed);
        totals.unspilled.store(self.status.unspilled, Relaxed);
    }

    /// The figures.
    pub fn full_status(&self) -> GatewayStatus {
        let stats = self.queue.stats(self.now_ms);
        let metrics = self.queue.metrics();
        let upstreams = self.table.upstreams.iter().map(|(_, upstream)| UpstreamStatus {
            url: upstream.url.clone(),
            healthy: upstream.healthy && !upstream.retired,
            outstanding: u64::from(upstream.outstanding),
            idle: upstream.idle.len() as u64,
        });
        let held = self.table.routes.iter().enumerate().map(|(index, route)| {
            (route.name.clone(), self.queue.count(Scope::Upstream(index as u64)) as u64)
        });
        GatewayStatus {
            held_requests: stats.total.requests,
            held_bytes: stats.memory_bytes + self.spills.beside_bytes() as u64,
            oldest_age_ms: stats.total.oldest_age_ms,
            by_priority: stats.by_priority.to_vec(),
            held_by_route: held.filter(|(_, count)| *count > 0).collect(),
            rejected: metrics.rejected,
            displaced: metrics.displaced,
            expired: metrics.expired,
            flushed: metrics.flushed,
            compressed: metrics.compressed,
            spilled_requests: self.spills.requests(),
            spilled_bytes: self.spills.bytes(),
            upstreams: upstreams.collect(),
            ..self.status.clone()
        }
    }
}
