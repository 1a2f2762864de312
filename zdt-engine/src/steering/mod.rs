//! Steering: which worker gets a new connection, decided by an eBPF program in the kernel.
//!
//! [`Steering`] is the supervisor's handle on the program and its maps. A *group* is one listening
//! address with the sockets that share it through `SO_REUSEPORT`; a *slot* is
//! `bank × max_workers + worker`, the same in every group. One [`flip`](Steering::flip) writes the one
//! word that every group's program reads once per decision.
//!
//! Order that a user of this module keeps: a socket is put into its slot after `listen`, its slot is
//! marked ready when its worker accepts; when a worker dies its slots are cleared first, because a
//! duplicate that somebody still holds keeps the dead worker's queue alive. A socket can be in one map
//! only; the kernel takes a socket out by itself when its last duplicate is closed.
//!
//! Must not know: workers as processes, reloads, configuration.

mod error;
mod groups;
mod object;
mod pins;

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use aya::maps::{Array, MapData, PerCpuArray, ReusePortSockArray};
use zdt_common::{Group, Probe, Route};

pub use error::SteeringError;
pub use pins::{pin_directory, remove_pins};
pub use zdt_common::{BANKS, Counters, MAX_GROUPS, MAX_WORKERS, Policy};

/// The supervisor's handle on the steering program and its maps.
///
/// Dropping it changes nothing in the kernel: programs belong to their groups, and live as long as
/// the listening sockets do. What is pinned can be opened again.
pub struct Steering {
    max_workers: u32,
    pin_dir: Option<PathBuf>,
    programs: object::Programs,
    route: Array<MapData, Route>,
    probe: Array<MapData, Probe>,
    groups: Array<MapData, Group>,
    sockets: ReusePortSockArray<MapData>,
    counters: PerCpuArray<MapData, Counters>,
    loads: MapData,
    /// What [`Steering::groups`] holds; this process is its only writer.
    mirror: Vec<Group>,
}

impl std::fmt::Debug for Steering {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Steering")
            .field("max_workers", &self.max_workers)
            .field("pin_dir", &self.pin_dir)
            .field("groups", &self.listener_groups())
            .finish_non_exhaustive()
    }
}

/// Names a listening address (see [`Steering::add_listener_group`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(u32);

impl GroupId {
    /// Its number, below [`MAX_GROUPS`].
    pub fn index(self) -> u32 {
        self.0
    }
}

/// Which generations new connections go to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bank {
    /// Counts the flips; the caller's business, except that it salts the canary draw.
    pub epoch: u32,
    /// Bank of the outgoing generation. Outside a reload the same as `green`.
    pub blue: u32,
    /// Bank of the incoming generation.
    pub green: u32,
    /// How many of 1,000 new connections go to green; the others go to blue.
    pub canary_permille: u16,
}

impl Bank {
    /// All new connections go to one bank: before a reload, and from the flip on.
    pub fn only(epoch: u32, bank: u32) -> Self {
        Self { epoch, blue: bank, green: bank, canary_permille: 0 }
    }
}

/// A group as [`Steering::listener_groups`] reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupInfo {
    /// To name it.
    pub id: GroupId,
    /// The listening address.
    pub address: SocketAddr,
    /// How a worker is chosen.
    pub policy: Policy,
}

/// The counters of one group. They count from the making of the maps, over all generations that
/// had the slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupCounters {
    /// The group.
    pub group: GroupId,
    /// By slot; every slot is there.
    pub slots: Vec<Counters>,
    /// Connections that came when no slot had a socket, so that they were meant for nobody.
    pub dropped_without_slot: u64,
}

impl Steering {
    /// Loads the program and makes its maps, for at most `max_workers` workers a generation.
    ///
    /// With `pin_dir` they are pinned there, for [`Steering::open_pinned`]; what an earlier supervisor
    /// had pinned there is removed first. The directory is made, and a bpffs is mounted on it where
    /// it is not on one already (see [`pin_directory`] for a good place).
    ///
    /// # Errors
    /// [`SteeringError::NotPermitted`] without root (or CAP_BPF and CAP_NET_ADMIN, and CAP_SYS_ADMIN to
    /// mount); [`SteeringError::Limit`] if `max_workers` is 0 or above [`MAX_WORKERS`].
    pub fn load(max_workers: u32, pin_dir: Option<&Path>) -> Result<Self, SteeringError> {
        if max_workers == 0 || max_workers > MAX_WORKERS {
            return Err(SteeringError::Limit {
                what: "workers",
                wanted: max_workers,
                most: MAX_WORKERS,
            });
        }
        let pins = match pin_dir {
            Some(dir) => {
                pins::retire(dir)?;
                Some(pins::prepare(dir)?)
            }
            None => None,
        };
        Self::from_object(object::load(max_workers, pins.as_deref())?, max_workers, pins)
    }

    /// Opens what another supervisor, of this build or another, loaded and pinned in `pin_dir`.
    ///
    /// # Errors
    /// [`SteeringError::NotPinned`] if nothing is there, [`SteeringError::OtherLayout`] if it is from a
    /// build whose maps this one does not understand; [`Steering::load`] then starts afresh.
    pub fn open_pinned(pin_dir: &Path) -> Result<Self, SteeringError> {
        let pins = pins::existing(pin_dir)?;
        let max_workers = object::pinned_max_workers(&pins)?;
        Self::from_object(object::load(max_workers, Some(&pins))?, max_workers, Some(pins))
    }

    fn from_object(
        loaded: object::Loaded,
        max_workers: u32,
        pin_dir: Option<PathBuf>,
    ) -> Result<Self, SteeringError> {
        let object::Loaded { programs, route, probe, groups, sockets, counters, loads } = loaded;
        let mirror = (0..MAX_GROUPS)
            .map(|index| groups.get(&index, 0).map_err(SteeringError::map("read a group")))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            max_workers,
            pin_dir,
            programs,
            route,
            probe,
            groups,
            sockets,
            counters,
            loads,
            mirror,
        })
    }

    /// Workers of a bank.
    pub fn max_workers(&self) -> u32 {
        self.max_workers
    }

    /// The slot of a worker (0, 1, …) of a bank.
    ///
    /// # Panics
    /// If there is no such bank or worker.
    pub fn slot(&self, bank: u32, worker: u32) -> u32 {
        assert!(bank < BANKS && worker < self.max_workers, "no worker {worker} in bank {bank}");
        zdt_common::slot(bank, worker, self.max_workers)
    }

    /// Writes the word that decides where new connections go: the flip. The next SYN of any group is
    /// decided by it; handshakes that have begun end where they began.
    pub fn flip(&mut self, bank: Bank) -> Result<(), SteeringError> {
        for number in [bank.blue, bank.green] {
            if number >= BANKS {
                return Err(SteeringError::Limit { what: "bank", wanted: number, most: BANKS - 1 });
            }
        }
        let route = Route::new(bank.epoch, bank.blue, bank.green, bank.canary_permille);
        self.route.set(0, route, 0).map_err(SteeringError::map("write the route"))
    }

    /// Where new connections go now.
    pub fn current(&self) -> Result<Bank, SteeringError> {
        let route = self.route.get(&0, 0).map_err(SteeringError::map("read the route"))?;
        Ok(Bank {
            epoch: route.epoch(),
            blue: route.blue(),
            green: route.green(),
            canary_permille: route.canary_permille() as u16,
        })
    }

    /// Sends the connection that comes to `group` from `source_port` to `slot`, ready or not. There is
    /// one probe at a time; a new one replaces the old.
    pub fn set_probe(
        &mut self,
        source_port: u16,
        group: GroupId,
        slot: u32,
    ) -> Result<(), SteeringError> {
        self.check_slot(group, slot)?;
        let probe = Probe::new(source_port, group.0, slot);
        self.probe.set(0, probe, 0).map_err(SteeringError::map("write the probe"))
    }

    /// Ends the probe.
    pub fn clear_probe(&mut self) -> Result<(), SteeringError> {
        self.probe.set(0, Probe::default(), 0).map_err(SteeringError::map("clear the probe"))
    }

    /// The load array, for workers to map: one u32 per slot, 8 bytes apart, 4 × `max_workers` of them.
    /// The policy `LeastLoaded` reads it; any measure will do, as long as all workers use the same.
    pub fn load_map(&self) -> BorrowedFd<'_> {
        self.loads.fd().as_fd()
    }

    /// The counters of every group that is in use.
    pub fn counters(&self) -> Result<Vec<GroupCounters>, SteeringError> {
        let sum = |key: u32| -> Result<Counters, SteeringError> {
            let by_cpu =
                self.counters.get(&key, 0).map_err(SteeringError::map("read the counters"))?;
            Ok(by_cpu.iter().fold(Counters::default(), |sum, one| Counters {
                selected: sum.selected + one.selected,
                migrated: sum.migrated + one.migrated,
                fallback: sum.fallback + one.fallback,
                dropped: sum.dropped + one.dropped,
            }))
        };
        self.listener_groups()
            .iter()
            .map(|info| {
                let key = |slot| zdt_common::group_key(info.id.0, slot, self.max_workers);
                let slots = (0..BANKS * self.max_workers)
                    .map(|slot| sum(key(slot)))
                    .collect::<Result<Vec<_>, _>>()?;
                let behind = zdt_common::group_entries(self.max_workers) + info.id.0;
                Ok(GroupCounters {
                    group: info.id,
                    slots,
                    dropped_without_slot: sum(behind)?.dropped,
                })
            })
            .collect()
    }
}

/// Says whether this process may steer, and this kernel can: loads the program, and forgets it.
///
/// # Errors
/// Says what is missing and what to do about it.
pub fn probe_support() -> Result<(), SteeringError> {
    let mut loaded = object::load(1, None)?;
    loaded.programs.get(0).map(|_| ())
}
