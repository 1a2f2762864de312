//! What a handoff needs of the gateway: a client's upstream sockets, and the files of what is held for it, are frozen
//! with it, travel beside its own socket, and start again where it does.
//!
//! Must not know: channels, offers.

use std::os::fd::{AsFd, OwnedFd};

use super::core::{Core, WINDOW_BYTES};
use super::exchange::{Exchange, Leaving, LinkStage, NONE, Stage, Todo};
use super::spill::Doing;
use crate::service::{ConnectionId, StreamId};
use crate::sys;
use crate::uring::Operation;
use crate::worker::Worker;
use crate::worker::tokens::Token;

impl Core {
    /// The exchanges of a client's connection.
    fn of_client(&self, key: usize) -> impl Iterator<Item = usize> + '_ {
        let mut next = self.by_key.get(key).copied().unwrap_or(NONE);
        std::iter::from_fn(move || {
            let index = (next != NONE).then_some(next as usize)?;
            next = self.exchanges[index].next_of_client;
            Some(index)
        })
    }

    /// Stops an exchange wherever it is. What is not on its way goes back to the beginning.
    fn freeze(&mut self, index: usize) {
        let exchange = &mut self.exchanges[index];
        exchange.frozen = true;
        self.unhold(index);
        let exchange = &mut self.exchanges[index];
        if let Stage::Held(id) = exchange.stage {
            let mut bytes = Vec::new();
            if let Some(held) = self.queue.extract(self.now_ms, id, &mut bytes) {
                exchange.held_ms = held.age_ms;
                exchange.is_adopted = true;
                exchange.put_before(bytes);
            }
            exchange.stage = exchange.stage_to_be_sent();
            return;
        }
        let Some(link) = exchange.link else { return };
        if self.links[link].stage == LinkStage::Ready && exchange.stage != Stage::Failed {
            self.links[link].frozen = true;
            return;
        }
        exchange.link = None;
        if let Some(upstream) = exchange.upstream.take() {
            self.table.upstreams[upstream].outstanding -= 1;
            self.report_idle(upstream);
        }
        self.links[link].exchange = None;
        self.close(link);
    }

    /// Goes on with an exchange that was frozen, here or elsewhere.
    pub fn resume(&mut self, index: usize) {
        let exchange = &mut self.exchanges[index];
        if !std::mem::take(&mut exchange.frozen) {
            return;
        }
        exchange.active_ms = self.now_ms;
        exchange.input_held |= exchange.awaits_tunnel() || exchange.out.len() > WINDOW_BYTES;
        if let Some((status, reason)) = exchange.failure.take() {
            return self.fail(index, status, &reason);
        }
        if exchange.stage == Stage::Reconnecting {
            // Until the next application has agreed, it would take messages for the rest of the handshake.
            self.hold_input(index, true);
        }
        self.leave_replaced(index);
        self.spill_later(index);
        let exchange = &self.exchanges[index];
        match exchange.link {
            Some(link) => {
                let link_index = link;
                let link = &mut self.links[link_index];
                link.frozen = false;
                link.paused = false;
                link.send_due = true;
                self.todo.push_back(Todo::Send(link_index));
                self.todo.push_back(Todo::Receive(link_index));
            }
            None if exchange.stage == Stage::Reconnecting => self.dispatch(index, true),
            None if exchange.stage == Stage::Opening => self.dispatch(index, false),
            None => {}
        }
    }

    /// The tunnel on a client's stream is closed with 1012 at the next frame boundary.
    fn close_tunnel(&mut self, key: usize, stream: StreamId) {
        let found = self.of_client(key).find(|&index| self.exchanges[index].stream == stream);
        let Some(index) = found else { return };
        let exchange = &mut self.exchanges[index];
        if let Some(tunnel) = &mut exchange.tunnel {
            tunnel.leaving = Leaving::Close;
            let serial = exchange.serial;
            self.todo.push_back(Todo::Leave { exchange: index, serial });
        }
    }

    /// The client has room again.
    pub fn on_room(&mut self, index: usize) {
        if let Some(link) = self.exchanges[index].link {
            self.links[link].paused = false;
            self.exchanges[index].active_ms = self.now_ms; // from now on its upstream is waited for
            self.todo.push_back(Todo::Receive(link));
        }
    }

    /// True if the exchange has something in a file that is not in memory: that travels, too.
    fn unread_spill(&self, index: usize) -> Option<usize> {
        self.exchanges[index].spill.filter(|&spill| self.spills.files[spill].unread() > 0)
    }

    /// How many descriptors an exchange needs beside its client's.
    pub(super) fn count_descriptors(&self, index: usize) -> usize {
        usize::from(self.exchanges[index].link.is_some())
            + usize::from(self.unread_spill(index).is_some())
    }

    /// Where the descriptors of a client's exchanges are, in the order in which they travel: by stream, an upstream's
    /// socket before the file.
    fn descriptors(&mut self, key: usize, mut visit: impl FnMut(&mut Option<OwnedFd>)) {
        let mut exchanges: Vec<(StreamId, usize)> =
            self.of_client(key).map(|index| (self.exchanges[index].stream, index)).collect();
        exchanges.sort_unstable();
        for (_, index) in exchanges {
            self.descriptors_of(index, &mut visit);
        }
    }

    fn descriptors_of(&mut self, index: usize, visit: &mut impl FnMut(&mut Option<OwnedFd>)) {
        if let Some(link) = self.exchanges[index].link {
            visit(&mut self.links[link].socket);
        }
        if let Some(spill) = self.unread_spill(index) {
            visit(&mut self.spills.files[spill].file);
        }
    }

    /// True if these are what the exchanges need that were restored last: as many, and files where there are to be
    /// files.
    pub(super) fn expects(&self, descriptors: &[OwnedFd]) -> bool {
        let mut descriptors = descriptors.iter();
        let fits = self.restored.iter().all(|&index| {
            let exchange = &self.exchanges[index];
            let has_socket = exchange.link.is_none() || descriptors.next().is_some();
            let has_file = self.unread_spill(index).is_none_or(|spill| {
                let bytes = self.spills.files[spill].written;
                descriptors.next().is_some_and(|file| sys::file::is_file_of(file.as_fd(), bytes))
            });
            has_socket && has_file
        });
        fits && descriptors.next().is_none()
    }

    /// Gives the exchanges that were restored last their client and their descriptors.
    pub fn attach(&mut self, key: usize, connection: ConnectionId, descriptors: Vec<OwnedFd>) {
        let mut descriptors = descriptors.into_iter();
        for index in std::mem::take(&mut self.restored) {
            self.exchanges[index].key = key;
            self.exchanges[index].connection = connection;
            self.join_client(index);
            self.descriptors_of(index, &mut |place| *place = descriptors.next());
        }
    }
}

impl Worker {
    /// Begins to freeze what belongs to a client's connection.
    pub(in crate::worker) fn freeze_upstreams(&mut self, key: usize) {
        let Some(core) = self.gateway.clone() else { return };
        let mut core = core.borrow_mut();
        let exchanges: Vec<usize> = core.of_client(key).collect();
        for index in exchanges {
            core.freeze(index);
            let Some(link_index) = core.exchanges[index].link else { continue };
            let link = &core.links[link_index];
            if link.receiving {
                self.ring.cancel(Operation::receive(Token::LinkReceive(link_index).pack()));
            }
            if let Some(sending) = link.sending {
                self.ring.cancel(sending);
            }
        }
        drop(core);
        // Links that were not connected yet are closed.
        self.run_gateway();
    }

    /// How many descriptors travel with a client's: upstreams' sockets, and files of what is held.
    pub(in crate::worker) fn count_upstreams(&self, key: usize) -> usize {
        let Some(core) = &self.gateway else { return 0 };
        let core = core.borrow();
        core.of_client(key).map(|index| core.count_descriptors(index)).sum()
    }

    /// True while no operation names one of them.
    pub(in crate::worker) fn upstreams_are_quiet(&self, key: usize) -> bool {
        let Some(core) = &self.gateway else { return true };
        let core = core.borrow();
        core.of_client(key).all(|index| {
            let Exchange { link, spill, .. } = &core.exchanges[index];
            link.is_none_or(|link| core.links[link].is_quiet())
                && spill.is_none_or(|spill| core.spills.files[spill].doing == Doing::Nothing)
        })
    }

    /// Those descriptors.
    pub(in crate::worker) fn take_upstreams(&mut self, key: usize) -> Vec<OwnedFd> {
        let mut taken = Vec::new();
        if let Some(core) = &self.gateway {
            core.borrow_mut().descriptors(key, |place| taken.extend(place.take()));
        }
        taken
    }

    /// Nobody took them.
    pub(in crate::worker) fn give_upstreams_back(&mut self, key: usize, given: Vec<OwnedFd>) {
        let mut given = given.into_iter();
        if let Some(core) = &self.gateway {
            core.borrow_mut().descriptors(key, |place| *place = given.next());
        }
    }

    /// True if these descriptors belong to the connection that was restored last.
    pub(in crate::worker) fn expects_upstreams(&self, descriptors: &[OwnedFd]) -> bool {
        match &self.gateway {
            Some(core) => core.borrow().expects(descriptors),
            None => descriptors.is_empty(),
        }
    }

    /// The connection that was restored last is at `key`.
    pub(in crate::worker) fn attach_upstreams(&mut self, key: usize, descriptors: Vec<OwnedFd>) {
        if let Some(core) = &self.gateway {
            core.borrow_mut().attach(key, self.entries[key].id, descriptors);
        }
    }

    /// This worker is to end: what nobody uses is closed.
    pub(in crate::worker) fn close_idle_upstreams(&mut self) {
        if let Some(core) = &self.gateway {
            core.borrow_mut().close_idle();
            self.run_gateway();
        }
    }

    /// Closes a WebSocket that passes through, where its frames allow that.
    pub(in crate::worker) fn close_tunnel(&mut self, key: usize, stream: StreamId) {
        if let Some(core) = &self.gateway {
            core.borrow_mut().close_tunnel(key, stream);
            self.run_gateway();
        }
    }
}
