//! Requests that are held while no upstream of their route works, and their replay.
//!
//! Must not know: how a request is sent.

use super::core::Core;
use super::exchange::Stage;
use crate::queue::{self, HoldError, Scope};

/// How long a replayed request that is not answered counts as one.
const REPLAY_MS: u64 = 1_000;

impl Core {
    pub(super) fn hold(&mut self, index: usize) {
        if !self.options.hold.enabled {
            return self.fail(index, 503, "no upstream of this route works, and nothing is held");
        }
        let exchange = &mut self.exchanges[index];
        let out = std::mem::take(&mut exchange.out);
        let route = exchange.route as u64;
        let request = queue::Request {
            parts: [&out, &[]],
            upstream: Some(route),
            priority: exchange.priority,
            tag: index as u64,
            may_have_been_sent: exchange.may_have_been_sent,
        };
        let (held_ms, is_replay) = (exchange.held_ms, exchange.is_replay || exchange.is_adopted);
        exchange.held_ms = 0;
        if std::mem::take(&mut exchange.is_replay) {
            self.replaying -= 1;
        }
        let held = if held_ms > 0 || is_replay {
            // It has been accepted once.
            Ok(self.queue.adopt(self.now_ms, request, held_ms))
        } else {
            let held = self.queue.hold(self.now_ms, request);
            self.status.held_total += u64::from(held.is_ok());
            held
        };
        self.recycle(out);
        match held {
            Ok(id) => {
                self.exchanges[index].stage = Stage::Held(id);
                if self.takes_body(index) {
                    if self.exchanges[index].input_held {
                        self.hold_input(index, false);
                    }
                } else if !self.exchanges[index].body_done && !self.exchanges[index].input_held {
                    self.hold_input(index, true);
                }
                self.spill_later(index);
                while let Some(displaced) = self.queue.pop_displaced() {
                    self.drop_held(displaced.tag, "it had to make room for newer requests");
                }
                self.probe();
            }
            Err(HoldError::TooLarge { .. }) => {
                self.fail(
                    index,
                    503,
                    "no upstream of this route works, and the request is too large to be held",
                );
            }
            Err(_) => {
                self.fail(
                    index,
                    503,
                    "no upstream of this route works, and no more requests can be held",
                );
            }
        }
    }

    pub(super) fn drop_held(&mut self, tag: u64, why: &str) {
        if self.exchanges.contains(tag as usize) {
            self.unhold(tag as usize);
            self.exchanges[tag as usize].stage = Stage::Failed; // it is not in the queue any more
            self.fail(tag as usize, 503, &format!("the request was held, but {why}"));
        }
    }

    /// Sends what can be sent of what is held: by priority, so many at a time.
    pub fn replay(&mut self) {
        if self.queue.is_empty() {
            return;
        }
        for route in 0..self.table.routes.len() {
            let scope = Scope::Upstream(route as u64);
            while self.replaying < self.options.hold.replay_concurrency
                && self.queue.count(scope) > 0
                && self.table.is_open(route)
            {
                let mut bytes = self.buffer();
                let Some(held) = self.queue.take(self.now_ms, scope, &mut bytes) else { break };
                let index = held.tag as usize;
                self.unhold(index);
                let exchange = &mut self.exchanges[index];
                exchange.put_before(bytes);
                exchange.held_ms = held.age_ms;
                exchange.is_replay = true;
                exchange.stage = exchange.stage_to_be_sent();
                self.replaying += 1;
                self.replays.push_back((self.now_ms, index, exchange.serial));
                self.status.replayed += 1;
                self.dispatch(index, true);
                self.release_input(index);
            }
        }
    }

    /// The rest of an answer is still to come, which may be for hours.
    pub(super) fn end_begun_replay(&mut self, index: usize) {
        if self.exchanges[index].stage == Stage::Responding {
            self.end_replay(index);
        }
    }

    /// Those behind do not wait for a client that sends its body slowly, or for an application that takes its time.
    pub(super) fn end_replays_on_time(&mut self) {
        while let Some(&(since_ms, index, serial)) = self.replays.front()
            && self.now_ms.saturating_sub(since_ms) >= REPLAY_MS
        {
            self.replays.pop_front();
            if self.same(index, serial).is_some() {
                self.end_replay(index);
            }
        }
    }

    /// A request out of the queue is on its way for long, or its WebSocket is open: nobody waits for its end.
    pub(super) fn end_replay(&mut self, index: usize) {
        if std::mem::take(&mut self.exchanges[index].is_replay) {
            self.replaying -= 1;
            self.replay();
        }
    }

    /// Tries whether upstreams are back, first of all those for which requests are held.
    pub(super) fn probe(&mut self) {
        for route in 0..self.table.routes.len() {
            if self.table.routes[route].held {
                continue;
            }
            let awaited = self.queue.count(Scope::Upstream(route as u64)) > 0;
            for position in 0..self.table.routes[route].upstreams.len() {
                let upstream = self.table.routes[route].upstreams[position];
                if self.table.upstreams[upstream].wants_probe(self.now_ms, awaited) {
                    self.table.upstreams[upstream].probing = true;
                    self.open(upstream, None);
                }
            }
        }
    }

    /// Gives up everything that is held. Returns how many requests that were.
    pub fn flush(&mut self, route: Option<&str>) -> u64 {
        let mut count = 0;
        for index in 0..self.table.routes.len() {
            if route.is_none_or(|name| self.table.routes[index].name == name) {
                let scope = Scope::Upstream(index as u64);
                for (held, _) in self.queue.flush_buffer(self.now_ms, scope) {
                    self.drop_held(held.tag, "the queue was flushed");
                    count += 1;
                }
            }
        }
        count
    }
}
