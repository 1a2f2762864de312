//! What a supervisor leaves to its successor: all that a killed one would have taken along.
//!
//! What a killed one leaves as well (`state.json`, the workers, the pinned maps) is found by the
//! successor in the same places; the state is here once more because a disk may be full.
//!
//! Must not know: when it is handed over.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Channel, FromSuccessor, ToSuccessor};
use crate::config::{Policy, Settings, SteeringMode, Strategy};
use crate::control::MAX_MESSAGE_FDS;
use crate::shm::{read_sealed, sealed_copy};
use crate::supervisor::core::Core;
use crate::supervisor::handle::ReloadRequest;
use crate::supervisor::reload::Verdict;
use crate::supervisor::takeover::store;
use crate::supervisor::workers::generations::Phase;

/// Longest text of a will; that of a full house (512 workers, 4,096 listeners) has a tenth of it.
const MAX_WILL_BYTES: usize = 16 << 20;
/// Most listening sockets: 32 addresses, four generations of 128 workers, and as many that linger.
const MAX_LISTENERS: usize = 32 * 128 * 8;

/// What is written down of it. Durations, never instants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Will {
    /// Where all of it is.
    pub run_dir: PathBuf,
    /// As `state.json` has it.
    pub state: store::State,
    /// By listener, in the order of the state: since when it has been out of the maps.
    #[serde(default)]
    pub out_ms: Vec<Option<u64>>,
    /// Generations that drain.
    #[serde(default)]
    pub drains: BTreeMap<u32, Drain>,
    /// Settings that cannot change while workers live.
    pub steering: SteeringMode,
    pub policy: Policy,
    pub reuse_port: bool,
    /// Where the admin endpoint is.
    #[serde(default)]
    pub admin: Option<SocketAddr>,
    /// Whether the scoreboard has room for the workers' totals.
    #[serde(default)]
    pub board_has_totals: bool,
    /// Of the last reload.
    #[serde(default)]
    pub last_verdict: Option<Verdict>,
    /// Since the first of the line took over.
    #[serde(default)]
    pub up_ms: u64,
    /// Since the replacement was asked for.
    #[serde(default)]
    pub asked_ms_ago: u64,
    /// The reload that follows.
    #[serde(default)]
    pub request: ReloadRequest,
}

impl Will {
    /// The settings of the successor, as far as they can be its own.
    pub fn keep_fixed(&self, settings: &mut Settings) {
        let Will { steering, policy, reuse_port, .. } = *self;
        let wanted = (settings.steering, settings.policy, settings.reuse_port);
        if wanted != (steering, policy, reuse_port) {
            tracing::warn!(
                "steering, policy and reuse_port stay as they are: {steering:?}, {policy:?}, \
                 {reuse_port}; what the configuration says takes a stop and a start"
            );
        }
        (settings.steering, settings.policy, settings.reuse_port) = (steering, policy, reuse_port);
    }
}

/// A generation that drains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Until its deadline.
    pub left_ms: u64,
    /// Why connections stayed behind.
    pub reasons: BTreeMap<String, u64>,
}

/// The will, and the descriptors that go with it.
#[derive(Debug)]
pub struct Estate {
    /// See [`Will`].
    pub will: Will,
    /// Of the run directory.
    pub lock: OwnedFd,
    /// The scoreboard.
    pub board: OwnedFd,
    /// The control socket.
    pub control: OwnedFd,
    /// The admin endpoint's listener.
    pub admin: Option<OwnedFd>,
    /// Parked sessions, if any are kept.
    pub parked: Option<OwnedFd>,
    /// In the order of the will's state.
    pub listeners: Vec<OwnedFd>,
}

impl Estate {
    /// Sends it.
    ///
    /// # Errors
    /// If the peer is gone, or descriptors are short.
    pub async fn send(&self, channel: &Channel<ToSuccessor, FromSuccessor>) -> io::Result<()> {
        let will = sealed_copy("zdt-will", &[&serde_json::to_vec(&self.will)?])?;
        let mut fds: Vec<BorrowedFd<'_>> =
            vec![will.as_fd(), self.lock.as_fd(), self.board.as_fd(), self.control.as_fd()];
        fds.extend(self.admin.as_ref().map(AsFd::as_fd));
        fds.extend(self.parked.as_ref().map(AsFd::as_fd));
        let (has_admin, listeners) = (self.admin.is_some(), self.listeners.len());
        let has_parked = self.parked.is_some();
        let message = ToSuccessor::Estate { has_admin, has_parked, listeners };
        channel.send(&message, &fds).await?;
        for part in self.listeners.chunks(MAX_MESSAGE_FDS) {
            let fds: Vec<BorrowedFd<'_>> = part.iter().map(AsFd::as_fd).collect();
            channel.send(&ToSuccessor::Listeners, &fds).await?;
        }
        Ok(())
    }

    /// Receives it; `None` if the peer closed its end before all was there.
    ///
    /// # Errors
    /// If something else came.
    pub async fn receive(
        channel: &Channel<FromSuccessor, ToSuccessor>,
    ) -> Result<Option<Estate>, String> {
        let broken = |error: io::Error| format!("the handoff socket: {error}");
        let (has_admin, has_parked, count, mut fds) =
            match channel.receive().await.map_err(broken)? {
                None => return Ok(None),
                Some((ToSuccessor::Estate { has_admin, has_parked, listeners }, fds)) => {
                    (has_admin, has_parked, listeners, fds)
                }
                Some((other, _)) => return Err(format!("the estate was expected, not {other:?}")),
            };
        let expected = 4 + usize::from(has_admin) + usize::from(has_parked);
        if fds.len() != expected || count > MAX_LISTENERS {
            return Err(format!("an estate of {} descriptors and {count} listeners", fds.len()));
        }
        let parked = if has_parked { fds.pop() } else { None };
        let admin = has_admin.then(|| fds.remove(4));
        let [will, lock, board, control] = <[OwnedFd; 4]>::try_from(fds)
            .map_err(|fds| format!("{} descriptors where 4 were expected", fds.len()))?;
        let mut listeners = Vec::new();
        while listeners.len() < count {
            match channel.receive().await.map_err(broken)? {
                None => return Ok(None),
                Some((ToSuccessor::Listeners, fds)) if !fds.is_empty() => listeners.extend(fds),
                Some((other, _)) => return Err(format!("listeners were expected, not {other:?}")),
            }
        }
        let text = read_sealed(will.as_fd(), MAX_WILL_BYTES).map_err(|error| error.to_string())?;
        let will: Will = serde_json::from_slice(&text)
            .map_err(|error| format!("the predecessor's will is not understood: {error}"))?;
        if will.state.listeners.len() != listeners.len() {
            return Err(format!(
                "{} listeners are named, {} came",
                will.state.listeners.len(),
                listeners.len()
            ));
        }
        Ok(Some(Estate { will, lock, board, control, admin, parked, listeners }))
    }
}

/// As milliseconds.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The instant that was so long ago, or as far back as the clock goes.
pub fn ago(ms: u64) -> Instant {
    let now = Instant::now();
    now.checked_sub(Duration::from_millis(ms)).unwrap_or(now)
}

impl Core {
    /// Everything as it is now. Descriptors are duplicates: nothing changes here.
    pub fn draw_up_estate(&self, requested: Instant, request: ReloadRequest) -> io::Result<Estate> {
        let now = Instant::now();
        let drains = self.generations.values().filter_map(|generation| {
            let Phase::Draining { until } = generation.phase else { return None };
            let left_ms = millis(until.saturating_duration_since(now));
            let reasons = generation.drain_reasons.clone();
            Some((generation.number, Drain { left_ms, reasons }))
        });
        let out_ms = self.listeners.iter().map(|listener| {
            listener.out_since.map(|since| millis(now.saturating_duration_since(since)))
        });
        let will = Will {
            run_dir: self.run_dir.path().to_owned(),
            state: self.durable_state(),
            out_ms: out_ms.collect(),
            drains: drains.collect(),
            steering: self.settings.steering,
            policy: self.settings.policy,
            reuse_port: self.settings.reuse_port,
            admin: self.doors.as_ref().and_then(|doors| doors.admin_address),
            board_has_totals: self.scoreboard.has_totals(),
            last_verdict: self.last_verdict.clone(),
            up_ms: millis(self.started.elapsed()),
            asked_ms_ago: millis(requested.elapsed()),
            request: ReloadRequest { strategy: Some(Strategy::SocketHandoff), ..request },
        };
        let listeners = self.listeners.iter().map(|listener| listener.as_fd().try_clone_to_owned());
        let doors = self.doors.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        Ok(Estate {
            will,
            lock: self.run_dir.lock().try_clone_to_owned()?,
            board: self.scoreboard.as_fd().try_clone_to_owned()?,
            control: doors.control.try_clone()?,
            admin: doors.admin.as_ref().map(OwnedFd::try_clone).transpose()?,
            parked: self.parking.leave()?,
            listeners: listeners.collect::<io::Result<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::handle::{Counters, Totals};
    use super::*;
    use crate::sys::socket::seqpacket_pair;

    fn will(listeners: usize) -> Will {
        let any: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let listener = |id| store::Listener {
            id,
            address: any,
            role: crate::supervisor::sockets::listeners::Role::Shared,
        };
        let state = store::State {
            version: store::VERSION,
            boot_id: String::new(),
            pid: 1,
            last_generation: 2,
            next_worker: 3,
            next_listener: 4,
            next_reload: 5,
            steering: "plain".into(),
            max_workers: 6,
            current: Some(2),
            generations: Vec::new(),
            listeners: (0..listeners as u64).map(listener).collect(),
            reload: None,
            totals: Totals { reloads: 3, ..Totals::default() },
            crashes: Vec::new(),
            counters: Counters::default(),
            gateway: store::Gateway::default(),
        };
        Will {
            run_dir: "/run/x".into(),
            state,
            out_ms: vec![None, Some(7)],
            drains: BTreeMap::from([(
                1,
                Drain { left_ms: 9, reasons: BTreeMap::from([("busy".into(), 1)]) },
            )]),
            steering: SteeringMode::Auto,
            policy: Policy::Hash,
            reuse_port: true,
            admin: Some(any),
            board_has_totals: true,
            last_verdict: Some(Verdict::default()),
            up_ms: 10,
            asked_ms_ago: 11,
            request: ReloadRequest { no_rollback: true, ..ReloadRequest::default() },
        }
    }

    fn estate(listeners: usize) -> Estate {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        Estate {
            will: will(listeners),
            lock: null(),
            board: null(),
            control: null(),
            admin: Some(null()),
            parked: None,
            listeners: (0..listeners).map(|_| null()).collect(),
        }
    }

    fn run<F: Future>(future: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(future)
    }

    type Ends = (Channel<ToSuccessor, FromSuccessor>, Channel<FromSuccessor, ToSuccessor>);

    fn ends() -> Ends {
        let (ours, theirs) = seqpacket_pair().unwrap();
        (Channel::new(ours).unwrap(), Channel::new(theirs).unwrap())
    }

    #[test]
    fn an_estate_arrives_as_it_was_left() {
        run(async {
            for listeners in [0, 1, MAX_MESSAGE_FDS, 3 * MAX_MESSAGE_FDS + 1] {
                let (ours, theirs) = ends();
                let left = estate(listeners);
                let (sent, received) = tokio::join!(left.send(&ours), Estate::receive(&theirs));
                sent.unwrap();
                let received = received.unwrap().unwrap();
                assert_eq!(received.will, left.will);
                assert_eq!(received.listeners.len(), listeners);
                assert!(received.admin.is_some());
            }
        });
    }

    #[test]
    fn half_an_estate_is_none_and_a_wrong_one_an_error() {
        run(async {
            let (ours, theirs) = ends();
            drop(ours);
            assert!(Estate::receive(&theirs).await.unwrap().is_none());

            let (ours, theirs) = ends();
            let mut left = estate(2);
            left.listeners.pop();
            left.send(&ours).await.unwrap();
            let error = Estate::receive(&theirs).await.unwrap_err();
            assert!(error.contains("2 listeners are named, 1 came"), "{error}");

            let (ours, theirs) = ends();
            let message =
                ToSuccessor::Estate { has_admin: false, has_parked: false, listeners: usize::MAX };
            ours.send(&message, &[]).await.unwrap();
            assert!(Estate::receive(&theirs).await.is_err());

            let (ours, theirs) = ends();
            ours.send(&ToSuccessor::TakeOver, &[]).await.unwrap();
            assert!(Estate::receive(&theirs).await.is_err());
        });
    }
}
