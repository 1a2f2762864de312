//! Steering as the supervisor needs it: with eBPF, or without and then doing nothing.
//!
//! Must not know: reloads, processes.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use super::listeners::Listener;
use crate::config::{Policy, SteeringMode};
use crate::steering::{self, BANKS, Bank, Steering, SteeringError};

/// Which generation new connections go to, and how.
pub enum Steer {
    /// By the kernel's hash over sockets that all generations share.
    Plain,
    /// By the eBPF program.
    Ebpf(Box<Ebpf>),
}

/// See [`Steer::Ebpf`].
pub struct Ebpf {
    steering: Steering,
    policy: Policy,
    pin_dir: PathBuf,
}

impl Steer {
    /// Sets steering up afresh.
    ///
    /// # Errors
    /// If eBPF is required and not to be had.
    pub fn load(
        mode: SteeringMode,
        policy: Policy,
        reuse_port: bool,
        max_workers: u32,
        run_dir: &Path,
    ) -> Result<Steer, String> {
        if mode == SteeringMode::Off {
            return Ok(Steer::Plain);
        }
        if !reuse_port {
            if mode == SteeringMode::Ebpf {
                return Err("steering = \"ebpf\" needs reuse_port = true".to_owned());
            }
            return Ok(Steer::Plain);
        }
        let pin_dir = steering::pin_directory(run_dir);
        match Steering::load(max_workers, Some(&pin_dir)) {
            Ok(steering) => Ok(Steer::Ebpf(Box::new(Ebpf { steering, policy, pin_dir }))),
            Err(error) if mode == SteeringMode::Ebpf => Err(format!(
                "eBPF steering: {error}; `zdt doctor` tells more, --steering auto goes on without"
            )),
            Err(error) => {
                tracing::warn!(
                    "no eBPF steering ({error}): generations share plain SO_REUSEPORT sockets; \
                     `zdt doctor` tells more"
                );
                Ok(Steer::Plain)
            }
        }
    }

    /// Takes up what an earlier supervisor of this run directory had set up.
    ///
    /// # Errors
    /// If it cannot be taken up.
    pub fn reopen(policy: Policy, run_dir: &Path) -> Result<Steer, SteeringError> {
        let pin_dir = steering::pin_directory(run_dir);
        let steering = Steering::open_pinned(&pin_dir)?;
        Ok(Steer::Ebpf(Box::new(Ebpf { steering, policy, pin_dir })))
    }

    /// Removes what a dead supervisor of this run directory had pinned.
    pub fn remove_stale(run_dir: &Path) {
        let pin_dir = steering::pin_directory(run_dir);
        if pin_dir.exists()
            && let Err(error) = steering::remove_pins(&pin_dir)
        {
            tracing::warn!(%error, "cannot remove the steering maps of an earlier supervisor");
        }
    }

    /// `ebpf` or `plain`.
    pub fn name(&self) -> &'static str {
        match self {
            Steer::Plain => "plain",
            Steer::Ebpf(_) => "ebpf",
        }
    }

    /// True if every worker has sockets of its own.
    pub fn is_ebpf(&self) -> bool {
        matches!(self, Steer::Ebpf(_))
    }

    /// Banks of slots.
    pub fn banks() -> u32 {
        BANKS
    }

    /// The load array for the workers.
    pub fn load_map(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Steer::Plain => None,
            Steer::Ebpf(ebpf) => Some(ebpf.steering.load_map()),
        }
    }

    /// Puts a worker's listener into its slot; not ready yet.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn place(&mut self, listener: &Listener, slot: u32) -> Result<(), SteeringError> {
        let Steer::Ebpf(ebpf) = self else { return Ok(()) };
        match ebpf.steering.find_group(listener.address) {
            Some(group) => ebpf.steering.set_slot(group, slot, listener),
            None => self.place_again(listener, slot),
        }
    }

    /// Like [`Steer::place`], of one that may be the only one left of its address: the program is the group's, which
    /// goes with the last of its sockets.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn place_again(&mut self, listener: &Listener, slot: u32) -> Result<(), SteeringError> {
        let Steer::Ebpf(ebpf) = self else { return Ok(()) };
        let policy = match ebpf.policy {
            Policy::Hash => steering::Policy::Hash,
            Policy::RoundRobin => steering::Policy::RoundRobin,
            Policy::LeastLoaded => steering::Policy::LeastLoaded,
        };
        let group = ebpf.steering.add_listener_group(listener, policy)?;
        ebpf.steering.set_slot(group, slot, listener)
    }

    /// Says whether a slot takes new connections.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_ready(&mut self, slot: u32, ready: bool) -> Result<(), SteeringError> {
        match self {
            Steer::Plain => Ok(()),
            Steer::Ebpf(ebpf) => ebpf.steering.set_ready_everywhere(slot, ready),
        }
    }

    /// Takes a slot out of every map.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn clear(&mut self, slot: u32) -> Result<(), SteeringError> {
        match self {
            Steer::Plain => Ok(()),
            Steer::Ebpf(ebpf) => ebpf.steering.clear_slot_everywhere(slot),
        }
    }

    /// So many of 1,000 new connections go to the bank `to`; `from` is where they went.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn flip(&mut self, from: u32, to: u32, permille: u16) -> Result<(), SteeringError> {
        let Steer::Ebpf(ebpf) = self else { return Ok(()) };
        let epoch = ebpf.steering.current()?.epoch.wrapping_add(1);
        ebpf.steering.flip(Bank { epoch, blue: from, green: to, canary_permille: permille })
    }

    /// How many of 1,000 new connections this bank gets; `None` where that is not steered.
    pub fn share_of(&self, bank: u32) -> Option<u16> {
        let Steer::Ebpf(ebpf) = self else { return None };
        let route = ebpf.steering.current().ok()?;
        Some(match (route.blue == bank, route.green == bank) {
            (true, true) => 1_000,
            (true, false) => 1_000 - route.canary_permille.min(1_000),
            (false, true) => route.canary_permille,
            (false, false) => 0,
        })
    }

    /// The connection from `source_port` to `address` goes to `slot`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_probe(
        &mut self,
        source_port: u16,
        address: SocketAddr,
        slot: u32,
    ) -> Result<(), SteeringError> {
        let Steer::Ebpf(ebpf) = self else { return Ok(()) };
        let group = ebpf
            .steering
            .find_group(address)
            .ok_or(SteeringError::NoSuchGroup { group: u32::MAX })?;
        ebpf.steering.set_probe(source_port, group, slot)
    }

    /// Ends the probe.
    pub fn clear_probe(&mut self) {
        if let Steer::Ebpf(ebpf) = self
            && let Err(error) = ebpf.steering.clear_probe()
        {
            tracing::error!(%error, "cannot end the steering probe");
        }
    }

    /// Forgets the groups of addresses on which nobody listens any more.
    pub fn retain_groups(&mut self, used: &[SocketAddr]) {
        let Steer::Ebpf(ebpf) = self else { return };
        for group in ebpf.steering.listener_groups() {
            if !used.contains(&group.address)
                && let Err(error) = ebpf.steering.remove_listener_group(group.id)
            {
                tracing::error!(%error, address = %group.address, "cannot forget a steering group");
            }
        }
    }

    /// The program's counters as JSON, for the status.
    pub fn counters(&self) -> serde_json::Value {
        let Steer::Ebpf(ebpf) = self else { return serde_json::Value::Null };
        let addresses = ebpf.steering.listener_groups();
        let Ok(counters) = ebpf.steering.counters() else { return serde_json::Value::Null };
        let groups = counters.iter().map(|group| {
            let info = addresses.iter().find(|info| info.id == group.group);
            let slots: serde_json::Map<_, _> = (0u32..)
                .zip(&group.slots)
                .filter(|(_, one)| one.selected + one.migrated + one.fallback + one.dropped > 0)
                .map(|(slot, one)| {
                    let figures = serde_json::json!({
                        "selected": one.selected,
                        "migrated": one.migrated,
                        "fallback": one.fallback,
                        "dropped": one.dropped,
                    });
                    (slot.to_string(), figures)
                })
                .collect();
            serde_json::json!({
                "address": info.map(|info| info.address.to_string()),
                "slots": slots,
                "dropped_without_slot": group.dropped_without_slot,
            })
        });
        groups.collect()
    }

    /// Removes the pins: the supervisor stops for good.
    pub fn remove(&mut self) {
        if let Steer::Ebpf(ebpf) = self
            && let Err(error) = steering::remove_pins(&ebpf.pin_dir)
        {
            tracing::warn!(%error, "cannot remove the pinned steering maps");
        }
    }
}
