//! When the file of parked sessions is written: as soon as something has changed, but not more often
//! than once in a while, so that a killed supervisor loses little and a busy one writes little.
//!
//! One write at a time. What it does not get done, a full disk for instance, is tried again until it is.
//!
//! Must not know: what is in the file.

use std::io;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{Parking, parkfile, unix_s};

/// Least time between the beginnings of two writes.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// How long a write that is going on is left alone before it is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Ends that are further away are not waited for: the clock may be changed meanwhile.
const LONGEST_WAIT_S: u64 = 3_600;

/// Of the writing.
#[derive(Debug)]
pub(super) struct Keeping {
    /// The outcome of the write that is going on.
    writing: Option<oneshot::Receiver<io::Result<()>>>,
    /// Nothing is written before.
    not_before: Instant,
    /// The last one failed, and this has been said.
    fails: bool,
}

impl Keeping {
    pub fn new(now: Instant) -> Self {
        Self { writing: None, not_before: now, fails: false }
    }
}

impl Parking {
    /// When [`Parking::on_time`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let write = (self.is_kept() && self.store.changed) || self.keeping.writing.is_some();
        let end = self.store.by_end.first().map(|&(end, _)| {
            let left_s = end.saturating_sub(unix_s()).min(LONGEST_WAIT_S);
            Instant::now() + Duration::from_secs(left_s)
        });
        write.then_some(self.keeping.not_before).into_iter().chain(end).min()
    }

    /// Forgets what is over, and begins to write what has changed.
    pub fn on_time(&mut self, now: Instant) {
        self.store.forget_expired(unix_s());
        if now < self.keeping.not_before {
            return;
        }
        match self.keeping.writing.as_mut().map(oneshot::Receiver::try_recv) {
            Some(Err(oneshot::error::TryRecvError::Empty)) => {
                self.keeping.not_before = now + LOOK_AGAIN;
                return;
            }
            Some(Ok(outcome)) => self.note(outcome),
            Some(Err(oneshot::error::TryRecvError::Closed)) | None => {}
        }
        self.keeping.writing = None;
        if self.is_kept() && self.store.changed {
            self.begin_write(now);
        }
    }

    fn begin_write(&mut self, now: Instant) {
        let Some(key) = &self.key else { return };
        self.keeping.not_before = now + WRITE_EVERY;
        self.store.changed = false;
        let records = self.store.sessions.values().map(|session| &session.record[..]);
        // Sealed at once, since the sessions may change; what takes time is the disk.
        let bytes = match self.store.sessions.is_empty() {
            true => Ok(None),
            false => parkfile::encode(key, records).map(Some),
        };
        let directory = self.directory.clone();
        let (done, outcome) = oneshot::channel();
        self.keeping.writing = Some(outcome);
        tokio::task::spawn_local(async move {
            let outcome = match bytes {
                Ok(Some(bytes)) => parkfile::replace(&directory, bytes).await,
                Ok(None) => parkfile::remove(&directory).await,
                Err(error) => Err(error),
            };
            let _ = done.send(outcome);
        });
    }

    fn note(&mut self, outcome: io::Result<()>) {
        let failed = outcome.is_err();
        if let Err(error) = outcome {
            self.store.changed = true;
            if !self.keeping.fails {
                let path = parkfile::path(&self.directory);
                tracing::error!(path = %path.display(), %error, "parked sessions cannot be written; a killed supervisor would lose them. It is tried again");
            }
        } else if self.keeping.fails {
            tracing::info!("parked sessions are written again");
        }
        self.keeping.fails = failed;
    }

    /// Waits for a write that is going on, and then writes what has changed.
    ///
    /// # Errors
    /// What the file system says.
    pub async fn write_now(&mut self) -> io::Result<()> {
        if let Some(writing) = self.keeping.writing.take()
            && let Ok(outcome) = writing.await
        {
            self.note(outcome);
        }
        if !self.is_kept() || !self.store.changed {
            return Ok(());
        }
        self.begin_write(Instant::now());
        match self.keeping.writing.take() {
            None => Ok(()),
            Some(writing) => {
                let outcome = writing.await.unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
                self.store.changed |= outcome.is_err();
                outcome
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parkfile::load;
    use super::*;
    use crate::config::ParkingSettings;
    use crate::state::parked::{ParkedHead, ParkedSessionHead, TAG_PARKED, TAG_PARKED_SESSION};
    use crate::state::{FreezeInstant, Secret, Writer};

    fn parking(directory: &std::path::Path) -> Parking {
        let mut parking = Parking::new(&ParkingSettings::default(), directory).unwrap();
        parking.key = Some(Secret::new([7; 32]));
        parking
    }

    fn park(parking: &mut Parking, id: u8) {
        let head =
            ParkedHead { id: [id; 16], expires_unix_s: unix_s() + 60, timer_remaining_ms: 0 };
        let session = ParkedSessionHead { kind_bytes: 1, version: 1 };
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes, FreezeInstant { boot_hash: 0, boottime_ns: 0 });
        writer.section(TAG_PARKED, 1, false, &head, &[]);
        writer.section(TAG_PARKED_SESSION, 1, false, &session, &[b"k", &[id; 40]]);
        writer.finish(2);
        assert_eq!(parking.store.insert_all(&bytes), (1, Ok(())));
    }

    async fn on_disk(parking: &Parking) -> Option<usize> {
        let key = parking.key.as_ref().unwrap();
        let loaded = load(&parkfile::path(&parking.directory), key).await.unwrap();
        loaded.map(|loaded| loaded.records.len())
    }

    #[test]
    fn changes_are_written_at_once_and_then_at_a_bounded_rate() {
        let dir = tempfile::tempdir().unwrap();
        tokio_uring::start(async {
            let mut parking = parking(dir.path());
            let start = Instant::now();
            assert_eq!(parking.deadline(), None);
            park(&mut parking, 1);
            assert!(parking.deadline() <= Some(Instant::now()));
            parking.on_time(start);
            let first = parking.keeping.writing.take().unwrap();
            first.await.unwrap().unwrap();
            assert_eq!(on_disk(&parking).await, Some(1));
            park(&mut parking, 2);
            parking.on_time(start + WRITE_EVERY / 2);
            assert!(parking.keeping.writing.is_none(), "not yet");
            parking.on_time(start + WRITE_EVERY);
            assert!(parking.keeping.writing.is_some());
            // What changes meanwhile is not forgotten, and one write runs at a time.
            park(&mut parking, 3);
            parking.write_now().await.unwrap();
            assert_eq!(on_disk(&parking).await, Some(3));
            for id in 1..=3 {
                assert!(parking.store.take(&[id; 16]).is_some());
            }
            parking.write_now().await.unwrap();
            assert_eq!(on_disk(&parking).await, None, "nothing is parked");
            parking.on_time(Instant::now() + WRITE_EVERY);
            assert_eq!(parking.deadline(), None, "nothing more to do");
        });
    }

    #[test]
    fn what_cannot_be_written_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        tokio_uring::start(async {
            let mut parking = parking(dir.path());
            let in_the_way = parkfile::path(dir.path()).with_extension("zdts.next");
            std::fs::create_dir(&in_the_way).unwrap();
            park(&mut parking, 1);
            assert!(parking.write_now().await.is_err());
            std::fs::remove_dir(&in_the_way).unwrap();
            assert!(parking.store.changed && parking.deadline().is_some());
            let later = Instant::now() + WRITE_EVERY;
            parking.on_time(later);
            parking.write_now().await.unwrap();
            assert_eq!(on_disk(&parking).await, Some(1));
        });
    }
}
