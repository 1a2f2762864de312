//! Parked sessions: taken from the workers, given back once, kept within bounds, and on disk.
//!
//! A session is a record that nobody looks into here beyond its id and its end.
//!
//! Must not know: what a session is, what a token looks like.

mod keeping;
mod parkfile;

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use zeroize::Zeroizing;

use self::keeping::Keeping;
use self::parkfile::FileError;
use crate::config::{ParkingOptions, ParkingSettings};
use crate::control::{ToWorker, hex};
use crate::shm::{read_sealed, sealed_copy};
use crate::state::parked::{Parked, split_record};
use crate::state::{Integrity, Secret, Unpacker, derive};
use crate::supervisor::WorkerId;
use crate::supervisor::core::{Core, Inputs};
use crate::supervisor::repeats::Repeats;
use crate::supervisor::rundir;
use crate::supervisor::signals::SignalEvent;
use crate::sys;

/// Largest memfd that a worker may send.
const MAX_BATCH_BYTES: usize = 64 << 20;
/// What all sessions of such a memfd may be together once they are unpacked: that takes time.
const MAX_BATCH_PLAIN_BYTES: usize = 1 << 30;
/// Largest memfd that a predecessor may leave.
const MAX_ESTATE_BYTES: usize = 1 << 30;
/// How long a file that cannot be written is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(1);

type Id = [u8; 16];

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

struct Session {
    expires_unix_s: u64,
    record: Vec<u8>,
}

/// The sessions, within their bounds.
pub(in crate::supervisor) struct Store {
    max_sessions: usize,
    max_bytes: usize,
    sessions: HashMap<Id, Session>,
    /// The first to be over comes first.
    by_end: BTreeSet<(u64, Id)>,
    bytes: usize,
    evicted: u64,
    /// Something has come or gone that is not on disk.
    changed: bool,
}

impl Store {
    fn new(settings: &ParkingSettings) -> Self {
        Self {
            max_sessions: settings.max_sessions as usize,
            max_bytes: usize::try_from(settings.max_bytes).unwrap_or(usize::MAX),
            sessions: HashMap::new(),
            by_end: BTreeSet::new(),
            bytes: 0,
            evicted: 0,
            changed: false,
        }
    }

    /// Keeps a session; those that would be over first make room.
    fn insert(&mut self, id: Id, session: Session) {
        self.take(&id);
        self.changed = true;
        self.bytes += session.record.len();
        self.by_end.insert((session.expires_unix_s, id));
        self.sessions.insert(id, session);
        self.make_room();
    }

    fn make_room(&mut self) {
        while self.sessions.len() > self.max_sessions || self.bytes > self.max_bytes {
            let Some(&(_, first)) = self.by_end.first() else { break };
            self.take(&first);
            self.evicted += 1;
        }
    }

    fn bound(&mut self, settings: &ParkingSettings) {
        self.max_sessions = settings.max_sessions as usize;
        self.max_bytes = usize::try_from(settings.max_bytes).unwrap_or(usize::MAX);
        self.make_room();
    }

    fn take(&mut self, id: &Id) -> Option<Session> {
        let session = self.sessions.remove(id)?;
        self.by_end.remove(&(session.expires_unix_s, *id));
        self.bytes -= session.record.len();
        self.changed = true;
        Some(session)
    }

    fn clear(&mut self) {
        self.sessions.clear();
        self.by_end.clear();
        self.bytes = 0;
    }

    fn forget_expired(&mut self, now_unix_s: u64) {
        while let Some(&(end, id)) = self.by_end.first()
            && end <= now_unix_s
        {
            self.take(&id);
        }
    }

    /// Takes records that follow each other in; returns how many there were, and what was wrong.
    fn insert_all(&mut self, bytes: &[u8]) -> (u32, Result<(), String>) {
        self.insert_within(bytes, usize::MAX)
    }

    /// The same, with a bound for what they are unpacked.
    fn insert_within(&mut self, mut bytes: &[u8], most: usize) -> (u32, Result<(), String>) {
        let (mut count, mut plain_bytes) = (0, 0);
        let mut unpacker = Unpacker::default();
        while !bytes.is_empty() {
            let record = match split_record(bytes) {
                Ok((record, rest)) => {
                    bytes = rest;
                    record
                }
                Err(error) => return (count, Err(error.to_string())),
            };
            let mut plain = record.to_vec();
            match Parked::read(&mut plain, Integrity::Unknown, &mut unpacker) {
                Ok(parked) => {
                    let expires_unix_s = parked.head.expires_unix_s;
                    let session = Session { expires_unix_s, record: record.to_vec() };
                    self.insert(parked.head.id, session);
                    count += 1;
                }
                Err(error) => return (count, Err(error.to_string())),
            }
            plain_bytes += plain.len();
            if plain_bytes > most {
                return (count, Err(format!("more than {most} bytes at once")));
            }
        }
        (count, Ok(()))
    }
}

/// All that the supervisor has for parked sessions.
pub(in crate::supervisor) struct Parking {
    pub store: Store,
    directory: PathBuf,
    /// Without, nothing is written.
    key: Option<Secret>,
    keeping: Keeping,
    /// What resume tokens are signed with: the same after a restart if there is a key.
    resume_secret: Secret,
    complaints: Repeats,
    eviction_words: Repeats,
    unsaid_evictions: u64,
}

impl Parking {
    /// With nothing in it yet.
    ///
    /// # Errors
    /// If the kernel has no random numbers.
    pub fn new(settings: &ParkingSettings, run_dir: &Path) -> Result<Self, String> {
        let directory = settings.path.clone().unwrap_or_else(|| run_dir.to_owned());
        let key = settings.key.as_ref().and_then(|key| Some(Secret::new(*key.key_bytes()?)));
        let resume_secret = match &key {
            Some(key) => derive(key, b"zdt resume tokens", &[b"version 1"]),
            None => Secret::new(sys::random_bytes().map_err(|error| error.to_string())?),
        };
        let (store, keeping) = (Store::new(settings), Keeping::new(Instant::now()));
        Ok(Self {
            store,
            directory,
            key,
            keeping,
            resume_secret,
            complaints: Repeats::default(),
            eviction_words: Repeats::default(),
            unsaid_evictions: 0,
        })
    }

    /// About what a worker has sent.
    fn complain(&mut self, worker: WorkerId, what: &str) {
        if let Some(unsaid) = self.complaints.may_say(Instant::now()) {
            tracing::error!(worker, unsaid, "parked sessions cannot be had: {what}");
        }
    }

    /// Whether there is a file.
    fn is_kept(&self) -> bool {
        self.key.is_some()
    }

    /// A worker needs it if it may park.
    pub fn resume_secret(&self, options: &ParkingOptions) -> Option<Secret> {
        options.enabled.then(|| self.resume_secret.clone())
    }

    /// Other bounds, from a reload.
    pub fn bound(&mut self, settings: &ParkingSettings) {
        self.store.bound(settings);
    }

    /// Sees to the directory.
    ///
    /// # Errors
    /// If it is not fit to be used.
    pub fn prepare(&self) -> Result<(), String> {
        if !self.is_kept() {
            return Ok(());
        }
        parkfile::prepare(&self.directory)
            .and_then(|()| rundir::check(&self.directory).map_err(|error| error.to_string()))
            .map_err(|error| format!("parking.path (CONNECTION_STATE_PATH): {error}"))
    }

    /// Reads what an earlier supervisor has left, stopped or killed. The run directory is locked by now.
    pub async fn open(&mut self) {
        if !self.is_kept() {
            return;
        }
        let Some(key) = &self.key else { return };
        let path = parkfile::path(&self.directory);
        let loaded = match parkfile::load(&path, key).await {
            Ok(None) => return,
            Ok(Some(loaded)) => loaded,
            Err(error) => parkfile::Loaded { records: Vec::new(), problem: Some(error) },
        };
        let total = loaded.records.len();
        let mut malformed = false;
        for record in &loaded.records {
            if let (_, Err(error)) = self.store.insert_all(record) {
                tracing::warn!(error, "a parked session cannot be read");
                malformed = true;
            }
        }
        self.store.forget_expired(unix_s());
        let kept = self.store.sessions.len();
        tracing::info!(path = %path.display(), kept, expired = total - kept.min(total), "parked sessions read");
        // Otherwise it is as it is on disk.
        self.store.changed = malformed || kept != total || total == 0;
        if let Some(problem) = loaded.problem {
            let aside = parkfile::set_aside(&path);
            let aside =
                aside.as_ref().map_or("where it is".into(), |path| path.display().to_string());
            tracing::error!(path = %path.display(), aside, "{problem}; what could not be read is lost to the clients, the file is kept");
            self.store.changed = kept > 0;
        }
    }

    /// Once more, after a successor that has died: it gave sessions away that are here still, and took
    /// others. Without a file nobody knows which.
    pub async fn open_again(&mut self) {
        if self.is_kept() && !self.store.changed {
            self.store.clear();
            self.open().await;
        }
    }

    /// For a successor: the secret of the tokens, then all records. What is written later is up to it.
    ///
    /// # Errors
    /// When out of memory or descriptors.
    pub fn leave(&self) -> std::io::Result<Option<OwnedFd>> {
        let mut parts: Vec<&[u8]> = vec![self.resume_secret.bytes()];
        parts.extend(self.store.sessions.values().map(|session| &session.record[..]));
        // One write takes so many parts at most.
        let bytes = Zeroizing::new(parts.concat());
        sealed_copy("zdt-parked", &[&bytes]).map(Some)
    }

    /// Takes over what a predecessor has left.
    pub fn inherit(&mut self, memfd: &OwnedFd) {
        let bytes = match read_sealed(memfd.as_fd(), MAX_ESTATE_BYTES) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(error) => return tracing::error!(%error, "the predecessor's parked sessions"),
        };
        let Some((secret, records)) = bytes.split_first_chunk() else { return };
        if self.key.is_none() {
            self.resume_secret = Secret::new(*secret); // its clients' tokens stay good
        }
        if let (taken, Err(error)) = self.store.insert_all(records) {
            tracing::error!(taken, error, "the predecessor's parked sessions");
        }
    }
}

/// For fuzzing: what a supervisor keeps of a file with these bytes, which it says are sound or not.
#[doc(hidden)]
pub fn try_parked_file(bytes: &[u8], key: &Secret) -> Option<(usize, bool)> {
    let loaded = parkfile::decode(bytes, key).ok()?;
    let settings = ParkingSettings { max_sessions: 64, max_bytes: 1 << 20, ..Default::default() };
    let mut store = Store::new(&settings);
    for record in &loaded.records {
        let _ = store.insert_all(record);
    }
    store.forget_expired(u64::MAX / 2);
    let listed = store.sessions.values().map(|session| session.record.len()).sum::<usize>();
    assert_eq!((listed, store.by_end.len()), (store.bytes, store.sessions.len()));
    assert!(store.sessions.len() <= 64 && store.bytes <= 1 << 20);
    Some((loaded.records.len(), loaded.problem.is_none()))
}

/// For fuzzing: a file with these records; `None` if one of them cannot be sealed.
#[doc(hidden)]
pub fn parked_file(key: &Secret, records: &[Vec<u8>]) -> Option<Vec<u8>> {
    parkfile::encode(key, records.iter().map(Vec::as_slice)).ok()
}

impl Core {
    /// Sessions from a worker.
    pub fn on_parked(&mut self, worker: WorkerId, count: u32, fds: &[OwnedFd]) {
        let Some(memfd) = fds.first() else {
            self.parking.complain(worker, "their descriptor is missing");
            return;
        };
        let bytes = match read_sealed(memfd.as_fd(), MAX_BATCH_BYTES) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.parking.complain(worker, &error.to_string());
                return;
            }
        };
        let store = &mut self.parking.store;
        store.forget_expired(unix_s());
        let evicted = store.evicted;
        let (taken, outcome) = store.insert_within(&bytes, MAX_BATCH_PLAIN_BYTES);
        if let Err(error) = outcome {
            self.parking.complain(worker, &format!("{taken} of {count} taken: {error}"));
        }
        let parking = &mut self.parking;
        parking.unsaid_evictions += parking.store.evicted - evicted;
        if parking.unsaid_evictions > 0 && parking.eviction_words.may_say(Instant::now()).is_some()
        {
            tracing::warn!(
                dropped = std::mem::take(&mut parking.unsaid_evictions),
                "parked sessions made room for others (parking.max_sessions, max_bytes)"
            );
        }
        let kept = parking.store.sessions.len();
        tracing::debug!(worker, taken, kept, "sessions parked");
    }

    /// A worker asks for a session.
    pub fn on_unpark(&mut self, worker: WorkerId, request: u64, id: &str) {
        let session = parse_id(id)
            .and_then(|id| self.parking.store.take(&id))
            .filter(|session| session.expires_unix_s > unix_s());
        let memfd = session.and_then(|session| sealed_copy("zdt-parked", &[&session.record]).ok());
        let message = ToWorker::Unparked { request, found: memfd.is_some() };
        let fds: Vec<_> = memfd.iter().map(AsFd::as_fd).collect();
        self.send_with(worker, &message, &fds);
    }

    /// How many sessions are parked.
    pub fn parked_sessions(&self) -> usize {
        self.parking.store.sessions.len()
    }

    /// The last thing before the end: parked sessions are written down. A disk that takes them not is
    /// tried again until the time for draining is over, or until the operator does not want to wait.
    pub(in crate::supervisor) async fn save_parked(
        &mut self,
        inputs: &mut Inputs,
    ) -> Result<(), String> {
        self.parking.store.forget_expired(unix_s());
        let count = self.parking.store.sessions.len();
        if !self.parking.is_kept() {
            if count > 0 {
                tracing::warn!(
                    count,
                    "parked sessions end here: without CONNECTION_STATE_KEY nothing is written"
                );
            }
            return Ok(());
        }
        let give_up = Instant::now() + Duration::from_millis(self.settings.drain_timeout_ms);
        let path = parkfile::path(&self.parking.directory);
        loop {
            let error = match self.parking.write_now().await {
                Ok(()) => {
                    if count > 0 {
                        tracing::info!(count, path = %path.display(), "parked sessions written");
                    }
                    return Ok(());
                }
                Err(error) => error,
            };
            let lost =
                format!("{count} parked sessions cannot be written to {}: {error}", path.display());
            if Instant::now() >= give_up {
                return Err(format!("{lost}; they are lost"));
            }
            tracing::error!(
                "{lost}; they are still in memory: make room, or stop once more to lose them"
            );
            tokio::select! {
                () = tokio::time::sleep(RETRY_EVERY) => {}
                signal = inputs.signals.next() => {
                    if !matches!(signal, SignalEvent::Reload) {
                        return Err(format!("{lost}; they are lost"));
                    }
                }
            }
        }
    }
}

fn parse_id(text: &str) -> Option<Id> {
    let mut id = [0; 16];
    if text.len() != 32 {
        return None;
    }
    for (byte, pair) in id.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = (digit(0)? << 4 | digit(1)?) as u8;
    }
    debug_assert_eq!(hex(&id), text.to_ascii_lowercase());
    Some(id)
}

impl std::fmt::Debug for Parking {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Parking").field("sessions", &self.store.sessions.len()).finish()
    }
}

impl From<FileError> for String {
    fn from(error: FileError) -> String {
        error.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(expires_unix_s: u64, bytes: usize) -> Session {
        Session { expires_unix_s, record: vec![0; bytes] }
    }

    fn store(max_sessions: u32, max_bytes: u64) -> Store {
        Store::new(&ParkingSettings { max_sessions, max_bytes, ..ParkingSettings::default() })
    }

    #[test]
    fn sessions_are_given_back_once() {
        let mut store = store(10, 1_000);
        store.insert([1; 16], session(5, 10));
        store.insert([2; 16], session(5, 10));
        assert_eq!(store.take(&[1; 16]).unwrap().record.len(), 10);
        assert!(store.take(&[1; 16]).is_none());
        store.forget_expired(4);
        assert_eq!((store.sessions.len(), store.bytes), (1, 10));
        store.forget_expired(5);
        assert_eq!((store.sessions.len(), store.bytes, store.by_end.len()), (0, 0, 0));
    }

    #[test]
    fn bounds_hold_and_the_first_to_end_goes_first() {
        let mut store = store(3, 100);
        for (id, end) in [(1, 30), (2, 10), (3, 20), (4, 40)] {
            store.insert([id; 16], session(end, 20));
        }
        assert!(store.take(&[2; 16]).is_none(), "its end was the nearest");
        assert_eq!(store.sessions.len(), 3);
        store.insert([5; 16], session(50, 70));
        assert!(store.bytes <= 100 && store.sessions.contains_key(&[5; 16]));
        store.insert([5; 16], session(60, 10));
        assert_eq!(store.bytes, store.sessions.values().map(|one| one.record.len()).sum::<usize>());
        store.bound(&ParkingSettings { max_bytes: 50, ..ParkingSettings::default() });
        assert!(store.bytes <= 50, "a reload may ask for less");
        store.insert([6; 16], session(99, 101));
        assert!(store.bytes <= 100, "one that does not fit at all is not kept");
        assert_eq!(store.by_end.len(), store.sessions.len());
    }

    #[test]
    fn junk_from_a_worker_is_an_error() {
        let mut store = store(3, 100);
        for junk in [&b"x"[..], &[0; 100], b"ZDTS"] {
            assert!(store.insert_all(junk).1.is_err());
        }
        assert_eq!(parse_id(&"0a".repeat(16)), Some([10; 16]));
        for bad in ["", "0a", &"zz".repeat(16), &"é".repeat(16)] {
            assert_eq!(parse_id(bad), None);
        }
    }
}
