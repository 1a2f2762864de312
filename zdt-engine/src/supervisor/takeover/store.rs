//! What a supervisor writes down for its successor.
//!
//! Written to a new file that then takes the old one's name, so that the successor reads one state
//! or the other. It need not survive a reboot, and says which boot it is of.
//!
//! Must not know: what the state is used for.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::{UpstreamTarget, WorkerConfig};
use crate::control::Hello;
use crate::supervisor::WorkerId;
use crate::supervisor::handle::{Counters, Totals};
use crate::supervisor::reload::Mark;
use crate::supervisor::sockets::listeners::{ListenerId, Role};
use crate::supervisor::workers::history::Crashes;

/// Version of [`State`] that this build writes. One that it does not know it refuses.
pub const VERSION: u32 = 1;

/// See the module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// [`VERSION`].
    pub version: u32,
    /// The boot that it belongs to.
    pub boot_id: String,
    /// The supervisor that wrote it.
    pub pid: u32,
    /// The highest generation so far.
    pub last_generation: u32,
    /// The number of the next worker.
    pub next_worker: WorkerId,
    /// The number of the next listener.
    pub next_listener: ListenerId,
    /// The number of the next reload.
    pub next_reload: u64,
    /// `ebpf` or `plain`.
    pub steering: String,
    /// Slots of a bank.
    pub max_workers: u32,
    /// The generation that serves.
    pub current: Option<u32>,
    /// All that live.
    pub generations: Vec<Generation>,
    /// All listening sockets.
    pub listeners: Vec<Listener>,
    /// The reload that is going on.
    pub reload: Option<Reload>,
    /// Places whose workers have ended unasked.
    #[serde(default)]
    pub crashes: Vec<Crashes>,
    /// What workers that are gone have counted.
    #[serde(default)]
    pub counters: Counters,
    /// What supervisors have counted.
    #[serde(default)]
    pub totals: Totals,
    /// What the gateway has beyond its configuration.
    #[serde(default)]
    pub gateway: Gateway,
}

/// What the gateway has beyond its configuration: what commands have changed, and applications.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gateway {
    /// Routes that are held by command.
    pub held: BTreeSet<String>,
    /// Upstreams that are in force instead of the configured ones, by route.
    pub replaced: BTreeMap<String, Replaced>,
    /// What the health checks have found to be so.
    pub unhealthy: BTreeSet<String>,
    /// The number of the last swap, or attempt at one.
    pub last_swap: u64,
    /// The application that serves.
    pub application: Option<Application>,
    /// One that was started, and that no worker knows of yet.
    pub starting: Vec<Application>,
    /// What has been replaced, and finishes what it has.
    pub ending: Vec<Leaving>,
}

/// See [`Gateway::replaced`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replaced {
    /// The configured ones; if the configuration names others, those are in force.
    pub instead_of: Vec<String>,
    /// Those in force.
    pub upstreams: Vec<UpstreamTarget>,
}

/// An application that zdt has started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Application {
    /// Its process, which leads a group of its own.
    pub pid: u32,
    /// When that was started: proof that it is the same.
    pub start_ticks: u64,
    /// Where it listens.
    pub url: String,
    /// The swap that brought it.
    pub generation: u64,
}

/// See [`Gateway::ending`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    /// Upstreams that are in no route any more.
    pub urls: Vec<String>,
    /// Who listens there, if zdt has started it.
    pub application: Option<Application>,
    /// Its WebSockets go on elsewhere at once.
    pub reconnect: bool,
}

/// A generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// Its number.
    pub number: u32,
    /// Its bank of slots.
    pub bank: u32,
    /// Its addresses.
    pub listen: Vec<SocketAddr>,
    /// How many workers it is to have.
    pub size: u32,
    /// What they were told.
    pub config: WorkerConfig,
    /// Whom they run as.
    pub user: Option<(u32, u32)>,
    /// Its workers.
    pub workers: Vec<Worker>,
}

/// A worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    /// Its number.
    pub id: WorkerId,
    /// Its index in its generation.
    pub index: u32,
    /// Its process.
    pub pid: u32,
    /// What it said when it started.
    pub hello: Option<Hello>,
}

/// A listening socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listener {
    /// Its number.
    pub id: ListenerId,
    /// Its address.
    pub address: SocketAddr,
    /// Whose it is.
    pub role: Role,
}

/// A reload that is going on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reload {
    /// Its number.
    pub id: u64,
    /// The outgoing generation.
    pub blue: Option<u32>,
    /// The incoming one.
    pub green: u32,
    /// How far it is.
    pub mark: Mark,
    /// Whether connections are handed off.
    pub migrate: bool,
    /// In steps.
    #[serde(default)]
    pub rolling: bool,
    /// Green drained before: what it has kept is not lost with the reload.
    #[serde(default)]
    pub revived: bool,
    /// The blue workers that take part in the handoff.
    pub blue_workers: Vec<WorkerId>,
    /// The green ones.
    pub green_workers: Vec<WorkerId>,
}

/// This boot's name.
///
/// # Errors
/// If `/proc` is not mounted.
pub fn boot_id() -> io::Result<String> {
    Ok(crate::sys::boot_id()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Writes the state, durably as far as a crash of the supervisor goes.
///
/// # Errors
/// What the file system says.
pub async fn save(path: &Path, state: &State) -> io::Result<()> {
    let text = serde_json::to_vec(state)?;
    let next = path.with_extension("json.next");
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&next)?;
    let file = tokio_uring::fs::File::from_std(file);
    let (written, _) = file.write_all_at(text, 0).await;
    file.close().await?;
    written?;
    tokio_uring::fs::rename(&next, path).await
}

/// Reads what a predecessor wrote in this boot; `None` if there is nothing of use.
pub fn load(path: &Path) -> Option<State> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "cannot read the earlier state");
            }
            return None;
        }
    };
    let state: State = match serde_json::from_slice(&text) {
        Ok(state) => state,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the earlier state is unreadable");
            return None;
        }
    };
    (state.version == VERSION && boot_id().is_ok_and(|boot| boot == state.boot_id)).then_some(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::workers::respawn::Ending;

    fn state() -> State {
        State {
            version: VERSION,
            boot_id: boot_id().unwrap(),
            pid: 1,
            last_generation: 2,
            next_worker: 3,
            next_listener: 4,
            next_reload: 5,
            steering: "ebpf".into(),
            max_workers: 6,
            current: Some(2),
            generations: vec![Generation {
                number: 2,
                bank: 2,
                listen: vec!["[::1]:80".parse().unwrap()],
                size: 1,
                config: WorkerConfig::default(),
                user: Some((65_534, 65_534)),
                workers: vec![Worker { id: 2, index: 0, pid: 99, hello: None }],
            }],
            listeners: vec![Listener {
                id: 1,
                address: "[::1]:80".parse().unwrap(),
                role: Role::Own { generation: 2, index: 0 },
            }],
            reload: Some(Reload {
                id: 4,
                blue: Some(1),
                green: 2,
                mark: Mark::Flipped,
                migrate: true,
                rolling: false,
                revived: false,
                blue_workers: vec![1],
                green_workers: vec![2],
            }),
            crashes: vec![Crashes {
                generation: 2,
                index: 0,
                endings: vec![(5, Ending::Crash), (6, Ending::FailedStart)],
                restart_ms: Some(7),
                given_up: Some("crashed twice".into()),
            }],
            counters: Counters { requests: 7, ..Counters::default() },
            totals: Totals { reloads: 3, ..Totals::default() },
            gateway: gateway(),
        }
    }

    fn gateway() -> Gateway {
        let application = |pid| Application {
            pid,
            start_ticks: 7,
            url: format!("http://127.0.0.1:{pid}"),
            generation: 3,
        };
        let target = UpstreamTarget::parse("http://127.0.0.1:1").unwrap();
        let replaced = Replaced { instead_of: Vec::new(), upstreams: vec![target] };
        Gateway {
            held: BTreeSet::from(["default".to_owned()]),
            replaced: BTreeMap::from([("default".to_owned(), replaced)]),
            unhealthy: BTreeSet::from(["http://127.0.0.1:2".to_owned()]),
            last_swap: 4,
            application: Some(application(5)),
            starting: vec![application(6)],
            ending: vec![Leaving {
                urls: vec!["unix:/x".to_owned()],
                application: None,
                reconnect: true,
            }],
        }
    }

    #[test]
    fn a_state_of_before_the_gateway_had_one_is_read() {
        let mut old = serde_json::to_value(state()).unwrap();
        old.as_object_mut().unwrap().remove("gateway");
        let read: State = serde_json::from_value(old).unwrap();
        assert_eq!(read, State { gateway: Gateway::default(), ..state() });
    }

    #[test]
    fn the_state_survives_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        assert_eq!(load(&path), None);
        tokio_uring::start(async {
            save(&path, &state()).await.unwrap();
            save(&path, &State { pid: 2, ..state() }).await.unwrap();
        });
        assert_eq!(load(&path), Some(State { pid: 2, ..state() }));
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "no temporary file is left");
    }

    #[test]
    fn states_of_no_use_are_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        for useless in [
            serde_json::to_string(&State { boot_id: "other".into(), ..state() }).unwrap(),
            serde_json::to_string(&State { version: VERSION + 1, ..state() }).unwrap(),
            "{".to_owned(),
        ] {
            std::fs::write(&path, useless).unwrap();
            assert_eq!(load(&path), None);
        }
    }
}
