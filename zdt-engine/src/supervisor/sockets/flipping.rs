//! Who accepts from which sockets while a reload goes on, and the channels between the generations.
//!
//! Must not know: in which order a reload proceeds.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::AsFd;
use std::time::Instant;

use super::listeners::Role;
use super::plan::{self, Batch, ChannelPlan};
use crate::control::{OpenChannel, ToWorker};
use crate::shm::ChannelMemory;
use crate::state::{FORMAT_WRAPPED, Secret};
use crate::supervisor::WorkerId;
use crate::supervisor::core::Core;
use crate::supervisor::reload::Event;
use crate::supervisor::workers::generations::{Generation, Place, WorkerPhase};
use crate::sys;

/// The green places of a step.
fn places_in<'a>(places: &'a mut [Place], batch: &Batch) -> impl Iterator<Item = &'a mut Place> {
    let among = batch.green.clone();
    (0u32..).zip(places).filter(move |(index, _)| among.contains(index)).map(|(_, place)| place)
}

impl Core {
    /// Gives a green worker listeners of its own; without eBPF one that only proves it.
    pub fn listen_green(&mut self, id: WorkerId) -> Result<(), String> {
        let Some((number, index)) = self.place_of(id) else { return Ok(()) };
        let Some(generation) = self.generations.get_mut(&number) else { return Ok(()) };
        let slot = generation.bank * self.max_workers + index;
        if !self.steer.is_ebpf() {
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            let role = Role::Proof { generation: number, index };
            let proof = self.listeners.create(any, role, false, 16)?;
            generation.places[index as usize].foreign.push(proof);
            self.listen(id, &[proof], false);
            return Ok(());
        }
        let mut own = Vec::with_capacity(generation.listen.len());
        for address in &mut generation.listen {
            let role = Role::Own { generation: number, index };
            let listener = self.listeners.create(*address, role, true, self.settings.backlog)?;
            own.push(listener);
            if let Some(listener) = self.listeners.find(listener) {
                *address = listener.address;
                self.steer
                    .place(listener, slot)
                    .map_err(|error| format!("steering of {}: {error}", listener.address))?;
            }
        }
        generation.places[index as usize].own.clone_from(&own);
        self.listen(id, &own, true);
        Ok(())
    }

    pub fn flip(&mut self, batch: &Batch, permille: u16) {
        if fault_point!("supervisor.before_flip") {
            let message = "fault point supervisor.before_flip".to_owned();
            self.machine_events.push_back(Event::NotFlipped { message });
            return;
        }
        let Some(reload) = &self.reload else { return };
        let (blue, green) = (reload.blue, reload.green);
        if blue.is_some() {
            let proven = self.generations.get(&green).into_iter().flat_map(Generation::workers);
            self.restore_priority(proven);
        }
        let done = if self.steer.is_ebpf() {
            let slots: Vec<u32> = reload
                .green_workers
                .iter()
                .filter_map(|id| Some(self.workers.get(id)?.identity.slot))
                .collect();
            for slot in slots {
                self.set_ready(slot, true);
            }
            let bank = |number: u32| self.generations.get(&number).map(|of| of.bank);
            let to = bank(green).unwrap_or_default();
            let from = blue.and_then(bank).unwrap_or(to);
            self.steer.flip(from, to, permille).map_err(|error| format!("the flip: {error}"))
        } else {
            self.share_sockets(blue, green, batch)
        };
        if let (Ok(()), Some(blue), false) = (&done, blue, batch.is_last) {
            // The others of blue get their share; those that are replaced now get none.
            let slots: Vec<u32> = self.slots_of(blue, &batch.blue);
            for slot in slots {
                self.set_ready(slot, false);
            }
        }
        if let Err(message) = done {
            // Also without eBPF: no socket was given to anybody before all were there.
            self.machine_events.push_back(Event::NotFlipped { message });
            return;
        }
        tracing::info!(generation = green, "flip");
        if fault_point!("supervisor.after_flip") {
            self.fail_reload("fault point supervisor.after_flip");
            return;
        }
        if self.reload.as_ref().is_some_and(|reload| reload.arming_shared.is_empty()) {
            self.machine_events.push_back(Event::Flipped);
        }
    }

    /// Without eBPF: the new workers accept from the sockets of those that they replace, and at last
    /// from all that are left.
    fn share_sockets(
        &mut self,
        blue: Option<u32>,
        green: u32,
        batch: &Batch,
    ) -> Result<(), String> {
        let replaced: BTreeSet<u64> = blue
            .and_then(|blue| self.generations.get(&blue))
            .into_iter()
            .flat_map(|of| (0u32..).zip(&of.places))
            .filter(|(index, _)| batch.blue.contains(index))
            .flat_map(|(_, place)| place.own.iter().copied())
            .collect();
        let Some(generation) = self.generations.get_mut(&green) else { return Ok(()) };
        let workers = batch.green.len();
        let reuse_port = self.settings.reuse_port;
        let wanted = if reuse_port { workers } else { 1 };
        let taken: BTreeSet<u64> =
            generation.places.iter().flat_map(|place| &place.own).copied().collect();
        let mut made = Vec::new();
        for address in &mut generation.listen {
            let mut sockets = self.listeners.shared(*address);
            // One socket for all is one for all steps, too.
            sockets.retain(|id| {
                !reuse_port || !taken.contains(id) && (batch.is_last || replaced.contains(id))
            });
            while sockets.len() < wanted {
                let (reuse, backlog) = (self.settings.reuse_port, self.settings.backlog);
                let created = self.listeners.create(*address, Role::Shared, reuse, backlog);
                let id = created.inspect_err(|_| {
                    // Nobody accepts from them: clients would wait in their queues for ever.
                    made.iter().for_each(|id| self.listeners.remove(*id));
                })?;
                made.push(id);
                *address = self.listeners.find(id).map_or(*address, |listener| listener.address);
                sockets.push(id);
            }
            let shares = plan::shared_sockets(sockets.len(), workers);
            for (place, share) in places_in(&mut generation.places, batch).zip(shares) {
                place.own.extend(share.into_iter().map(|k| sockets[k]));
            }
        }
        let given: Vec<_> = places_in(&mut generation.places, batch)
            .filter_map(|place| Some((place.worker?, place.own.clone())))
            .collect();
        for (worker, own) in given {
            own.iter().for_each(|id| self.listeners.take_in(*id));
            self.listen(worker, &own, true);
            if let Some(reload) = &mut self.reload {
                reload.arming_shared.insert(worker);
            }
        }
        Ok(())
    }

    /// A worker that serves already has armed the listeners that it was given later.
    pub fn on_armed_again(&mut self, worker: WorkerId) {
        if let Some(reload) = &mut self.reload
            && reload.arming_shared.remove(&worker)
            && reload.arming_shared.is_empty()
        {
            self.machine_events.push_back(Event::Flipped);
        }
    }

    pub fn flip_back(&mut self) {
        let Some(reload) = &self.reload else { return };
        let (Some(blue), green) = (reload.blue, reload.green) else { return };
        tracing::warn!(generation = blue, "flip back");
        let bank = |number: u32| self.generations.get(&number).map_or(0, |of| of.bank);
        let (from, to) = (bank(green), bank(blue));
        // Those that were replaced in a step of its own.
        let back: Vec<u32> = self
            .workers
            .values()
            .filter(|one| one.identity.generation == blue && one.phase == WorkerPhase::Serving)
            .map(|worker| worker.identity.slot)
            .collect();
        for slot in back {
            self.set_ready(slot, true);
        }
        if let Err(error) = self.steer.flip(from, to, 1_000) {
            tracing::error!(%error, "cannot flip back");
        }
        for slot in self.slots_of(green, &(0..u32::MAX)) {
            self.set_ready(slot, false);
        }
        // Places of blue whose worker died during the handoff.
        let vacant: Vec<u32> = self.vacant_places(blue);
        for index in vacant {
            self.fill_place(blue, index);
        }
        let parked: Vec<WorkerId> = self
            .generations
            .get(&blue)
            .into_iter()
            .flat_map(Generation::workers)
            .filter(|id| self.workers.get(id).is_some_and(|w| w.phase == WorkerPhase::Greeted))
            .collect();
        for worker in parked {
            self.arm_place(worker);
        }
        self.blue_takes_listeners(blue, green);
    }

    /// What was given to green, or made for it, blue accepts from as well: nothing that is queued
    /// there, or ends its handshake there, is lost. Without eBPF it stays blue's, but for addresses that
    /// only green was to serve: those are closed like what is out of the maps.
    fn blue_takes_listeners(&mut self, blue: u32, green: u32) {
        let own = !self.steer.is_ebpf();
        let served: Vec<SocketAddr> =
            self.generations.get(&blue).map(|of| of.listen.clone()).unwrap_or_default();
        let held: BTreeSet<u64> = self
            .generations
            .get(&blue)
            .into_iter()
            .flat_map(|of| &of.places)
            .flat_map(|place| &place.own)
            .copied()
            .collect();
        let orphans: Vec<u64> = self
            .listeners
            .iter()
            .filter(|listener| match listener.role {
                Role::Own { generation, .. } => generation == green,
                Role::Shared => own && !held.contains(&listener.id),
                Role::Proof { .. } => false,
            })
            .map(|listener| listener.id)
            .collect();
        let (kept, left): (Vec<u64>, Vec<u64>) = orphans.into_iter().partition(|id| {
            self.listeners.find(*id).is_some_and(|listener| served.contains(&listener.address))
        });
        if own {
            let now = Instant::now();
            left.iter().for_each(|id| self.listeners.set_out_since(*id, now));
        }
        self.deal_listeners(blue, &(0..u32::MAX), kept, own);
        self.deal_listeners(blue, &(0..u32::MAX), left, false);
    }

    /// The green workers of a step also accept from the listeners of the places that they replace, and
    /// in the last step from those of all generations before.
    pub fn share_listeners(&mut self, batch: &Batch) {
        let Some(reload) = &self.reload else { return };
        let (blue, green) = (reload.blue, reload.green);
        let held: BTreeSet<u64> = self
            .generations
            .get(&green)
            .into_iter()
            .flat_map(|of| &of.places)
            .flat_map(|place| &place.foreign)
            .copied()
            .collect();
        let others: Vec<u64> = self
            .listeners
            .iter()
            .filter(|one| match one.role {
                Role::Own { generation, .. } if generation == green || held.contains(&one.id) => {
                    false
                }
                Role::Own { generation, index } => {
                    batch.is_last || Some(generation) == blue && batch.blue.contains(&index)
                }
                Role::Shared | Role::Proof { .. } => false,
            })
            .map(|listener| listener.id)
            .collect();
        self.deal_listeners(green, &batch.green, others, false);
    }

    fn deal_listeners(&mut self, number: u32, among: &Range<u32>, listeners: Vec<u64>, own: bool) {
        let Some(generation) = self.generations.get_mut(&number) else { return };
        let mut places: Vec<(WorkerId, &mut Place)> = (0u32..)
            .zip(&mut generation.places)
            .filter(|(index, _)| among.contains(index))
            .filter_map(|(_, place)| {
                let worker = place.worker?;
                let serves = self
                    .workers
                    .get(&worker)
                    .is_some_and(|worker| worker.phase == WorkerPhase::Serving);
                serves.then_some((worker, place))
            })
            .collect();
        let shares = plan::deal(listeners, places.len());
        let mut given = Vec::new();
        for ((worker, place), share) in places.iter_mut().zip(shares) {
            let list = if own { &mut place.own } else { &mut place.foreign };
            list.extend(&share);
            given.push((*worker, share));
        }
        for (worker, share) in given {
            self.listen(worker, &share, own);
        }
    }

    pub fn open_channels(&mut self, plan: &[ChannelPlan]) -> Result<(), String> {
        let Some(reload) = self.reload.as_ref().map(|reload| reload.machine.id()) else {
            return Ok(());
        };
        for channel in plan {
            self.open_channel(reload, *channel).map_err(|error| {
                format!("cannot make channel {} of the handoff: {error}", channel.channel)
            })?;
        }
        Ok(())
    }

    fn open_channel(&mut self, reload: u64, plan: ChannelPlan) -> std::io::Result<()> {
        let (Some(blue), Some(green)) =
            (self.workers.get(&plan.blue), self.workers.get(&plan.green))
        else {
            // One has died; the machine hears of it.
            return Ok(());
        };
        let (Some(blue_hello), Some(green_hello)) = (&blue.hello, &green.hello) else {
            return Ok(());
        };
        let forward = blue_hello.state_writes.newest_common(green_hello.state_reads);
        let back = green_hello.state_writes.newest_common(blue_hello.state_reads);
        // For each direction a secret of its own, which nobody but the two ends ever has.
        let encrypts = |worker: &crate::supervisor::workers::generations::Worker| {
            let generation = self.generations.get(&worker.identity.generation);
            generation.is_some_and(|generation| generation.config.state.encryption)
        };
        let secret = |format: Option<u16>| -> std::io::Result<Option<Secret>> {
            let seals = encrypts(green) && format.is_some_and(|format| format >= FORMAT_WRAPPED);
            seals.then(|| sys::random_bytes().map(Secret::new)).transpose()
        };
        let (forward_secret, back_secret) = (secret(forward)?, secret(back)?);
        let memory = ChannelMemory::create()?;
        let (blue_end, green_end) = sys::socket::seqpacket_pair()?;
        let (wakes_blue, wakes_green) = (sys::EventFd::new()?, sys::EventFd::new()?);
        let open = |is_blue: bool,
                    peer: &crate::supervisor::workers::generations::Worker,
                    write_format| {
            let (outgoing_secret, incoming_secret) = match is_blue {
                true => (forward_secret.clone(), back_secret.clone()),
                false => (back_secret.clone(), forward_secret.clone()),
            };
            ToWorker::OpenChannel(OpenChannel {
                reload,
                channel: plan.channel,
                is_blue,
                peer: peer.identity.clone(),
                write_format,
                outgoing_secret,
                incoming_secret,
            })
        };
        self.send_with(
            plan.blue,
            &open(true, green, forward),
            &[
                memory.as_fd(),
                blue_end.as_fd(),
                wakes_blue.as_fd(),
                wakes_green.as_fd(),
                green.process.pidfd().as_fd(),
            ],
        );
        self.send_with(
            plan.green,
            &open(false, blue, back),
            &[
                memory.as_fd(),
                green_end.as_fd(),
                wakes_green.as_fd(),
                wakes_blue.as_fd(),
                blue.process.pidfd().as_fd(),
            ],
        );
        // The copies here are closed now: each end lives in one process.
        Ok(())
    }

    /// The slots of some places of a generation.
    pub fn slots_of(&self, number: u32, places: &Range<u32>) -> Vec<u32> {
        let Some(generation) = self.generations.get(&number) else { return Vec::new() };
        let count = u32::try_from(generation.places.len()).unwrap_or(u32::MAX);
        (places.start..places.end.min(count))
            .map(|index| generation.bank * self.max_workers + index)
            .collect()
    }

    pub fn vacant_places(&self, number: u32) -> Vec<u32> {
        let Some(generation) = self.generations.get(&number) else { return Vec::new() };
        let scheduled =
            |index: u32| self.respawns.iter().any(|&(_, of, at)| (of, at) == (number, index));
        (0u32..)
            .zip(&generation.places)
            .filter(|(index, place)| {
                place.worker.is_none() && place.given_up.is_none() && !scheduled(*index)
            })
            .map(|(index, _)| index)
            .collect()
    }

    /// A generation gets nothing new any more, for good.
    pub fn retire_slots(&mut self, number: Option<u32>) {
        let Some(number) = number else { return };
        for slot in self.slots_of(number, &(0..u32::MAX)) {
            self.clear_slot(slot);
        }
        self.listeners.take_out(number, Instant::now());
    }
}
