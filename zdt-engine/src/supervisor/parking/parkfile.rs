//! The file of parked sessions: encrypted and authenticated, replaced as a whole.
//!
//! A header of 80 bytes, little-endian: magic `ZDTPARK\n`, version (u32), number of records (u32), salt
//! (32 bytes), the key's fingerprint (16 bytes), seconds since the epoch when it was written (u64),
//! bytes behind the header (u64). Then the records, each sealed as record number 1, 2, … of direction
//! 2, with a key derived from the state key, the salt and the whole header: a file of which anything
//! was changed, cut off or put in another order does not open.
//!
//! Must not know: what the records say, when it is written.

use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::state::parked::split_record;
use crate::state::{Opener, Sealer, Secret, derive, set_checksum};
use crate::sys;

const MAGIC: [u8; 8] = *b"ZDTPARK\n";
/// Version of the file that this build writes, and the only one that it reads.
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 80;
const SALT: std::ops::Range<usize> = 16..48;
const FINGERPRINT: std::ops::Range<usize> = 48..64;
const DIRECTION: u8 = 2;
/// Larger files are not read: somebody else's.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// Read at a time.
const READ_BYTES: usize = 4 << 20;

/// Why a file is not, or not wholly, read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be opened or read.
    #[error("the file of parked sessions cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Not one of ours.
    #[error("this is no file of parked sessions")]
    Foreign,
    /// Of another build.
    #[error("the file of parked sessions has version {0}, this build reads {VERSION}")]
    Version(u32),
    /// `CONNECTION_STATE_KEY` was another one.
    #[error("the parked sessions were written with another key (CONNECTION_STATE_KEY)")]
    OtherKey,
    /// A record does not open, or is not there.
    #[error("the file of parked sessions is damaged: record {record} of {count} does not open")]
    Damaged {
        /// Which one, from 1.
        record: u32,
        /// How many there should be.
        count: u32,
    },
}

/// What was read.
#[derive(Debug)]
pub struct Loaded {
    /// Records in their order, up to the first that does not open.
    pub records: Vec<Vec<u8>>,
    /// Why there are not more.
    pub problem: Option<FileError>,
}

/// Where the file is.
pub fn path(directory: &Path) -> PathBuf {
    directory.join("parked.zdts")
}

/// Makes the directory if it is not there.
pub fn prepare(directory: &Path) -> Result<(), String> {
    match std::fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(format!("{} cannot be made: {error}", directory.display()))
        }
        _ => Ok(()),
    }
}

fn fingerprint(key: &Secret, salt: &[u8]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&derive(key, salt, &[b"zdt parked sessions: which key"]).bytes()[..16]);
    bytes
}

fn file_key(key: &Secret, header: &[u8]) -> Secret {
    derive(key, &header[SALT], &[b"zdt parked sessions: records", header])
}

/// The bytes of a file.
///
/// # Errors
/// If the kernel has no random numbers.
pub fn encode<'a>(key: &Secret, records: impl Iterator<Item = &'a [u8]>) -> io::Result<Vec<u8>> {
    let salt: [u8; 32] = sys::random_bytes()?;
    let records: Vec<Vec<u8>> = records.map(<[u8]>::to_vec).collect();
    let body: usize = records.iter().map(|record| record.len() + crate::state::SEAL_BYTES).sum();
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&(records.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&salt);
    bytes.extend_from_slice(&fingerprint(key, &salt));
    bytes.extend_from_slice(&now_s.to_le_bytes());
    bytes.extend_from_slice(&(body as u64).to_le_bytes());
    let mut sealer = Sealer::new(&file_key(key, &bytes), DIRECTION);
    for (mut record, number) in records.into_iter().zip(1u64..) {
        if !sealer.seal(&mut record, number) {
            return Err(io::Error::other("a record cannot be sealed"));
        }
        bytes.extend_from_slice(&record);
    }
    Ok(bytes)
}

/// Reads the bytes of a file.
///
/// # Errors
/// If nothing in it can be read.
pub fn decode(bytes: &[u8], key: &Secret) -> Result<Loaded, FileError> {
    let (header, mut rest) = bytes.split_at_checked(HEADER_BYTES).ok_or(FileError::Foreign)?;
    let u32_at = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    if header[..8] != MAGIC {
        return Err(FileError::Foreign);
    }
    if u32_at(8) != VERSION {
        return Err(FileError::Version(u32_at(8)));
    }
    if header[FINGERPRINT] != fingerprint(key, &header[SALT]) {
        return Err(FileError::OtherKey);
    }
    let count = u32_at(12);
    let mut opener = Opener::new(&file_key(key, header), DIRECTION);
    let mut records = Vec::new();
    let damaged = |record: usize| Some(FileError::Damaged { record: record as u32 + 1, count });
    while records.len() < count as usize {
        let Ok((record, behind)) = split_record(rest) else {
            return Ok(Loaded { problem: damaged(records.len()), records });
        };
        let mut record = record.to_vec();
        if opener.open(&mut record, records.len() as u64 + 1).is_err() {
            return Ok(Loaded { problem: damaged(records.len()), records });
        }
        set_checksum(&mut record);
        records.push(record);
        rest = behind;
    }
    let problem = if rest.is_empty() { None } else { damaged(records.len()) };
    Ok(Loaded { records, problem })
}

/// Reads a file; `None` if there is none.
///
/// # Errors
/// If nothing in it can be read.
pub async fn load(path: &Path, key: &Secret) -> Result<Option<Loaded>, FileError> {
    // A FIFO without a writer would not open otherwise.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = match std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => return Err(FileError::Foreign),
        other => other?,
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MAX_FILE_BYTES {
        return Err(FileError::Foreign);
    }
    let file = tokio_uring::fs::File::from_std(file);
    let bytes = read(&file, metadata.len() as usize).await;
    file.close().await?;
    decode(&bytes?, key).map(Some)
}

/// So many bytes, or fewer if the file has become shorter.
async fn read(file: &tokio_uring::fs::File, bytes: usize) -> io::Result<Vec<u8>> {
    let mut all = Vec::with_capacity(bytes);
    while all.len() < bytes {
        let part = Vec::with_capacity(READ_BYTES.min(bytes - all.len()));
        let (outcome, part) = file.read_at(part, all.len() as u64).await;
        if outcome? == 0 {
            break;
        }
        all.extend_from_slice(&part);
    }
    Ok(all)
}

/// Writes the file: the old one or the new one is there, whatever happens, and the new one is on the
/// disk when this returns.
///
/// # Errors
/// What the file system says; the old file is as it was.
pub async fn replace(directory: &Path, bytes: Vec<u8>) -> io::Result<()> {
    let path = path(directory);
    let next = path.with_extension("zdts.next");
    let written = write(&next, bytes).await;
    let replaced = match written {
        Ok(()) => tokio_uring::fs::rename(&next, &path).await,
        Err(error) => Err(error),
    };
    if let Err(error) = replaced {
        let _ = std::fs::remove_file(&next);
        return Err(error);
    }
    sync(directory).await
}

/// Removes the file, if there is one: nothing is parked.
///
/// # Errors
/// What the file system says.
pub async fn remove(directory: &Path) -> io::Result<()> {
    match tokio_uring::fs::remove_file(path(directory)).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync(directory).await,
    }
}

async fn sync(directory: &Path) -> io::Result<()> {
    let directory = tokio_uring::fs::File::from_std(std::fs::File::open(directory)?);
    let synced = directory.sync_all().await;
    directory.close().await?;
    synced
}

async fn write(path: &Path, bytes: Vec<u8>) -> io::Result<()> {
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    let file = tokio_uring::fs::File::from_std(file);
    let (written, _) = file.write_all_at(bytes, 0).await;
    let synced = match written {
        Ok(()) => file.sync_all().await,
        Err(error) => Err(error),
    };
    file.close().await?;
    synced
}

/// Keeps a file that could not be read under another name; `None` if that is not possible.
pub fn set_aside(path: &Path) -> Option<PathBuf> {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let aside = path.with_extension(format!("zdts.bad-{now_s}"));
    std::fs::rename(path, &aside).ok()?;
    Some(aside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{FreezeInstant, Writer};

    fn key(byte: u8) -> Secret {
        Secret::new([byte; 32])
    }

    fn records() -> Vec<Vec<u8>> {
        let record = |tail: &[u8]| {
            let mut bytes = Vec::new();
            let freeze = FreezeInstant { boot_hash: 0, boottime_ns: 0 };
            let mut writer = Writer::new(&mut bytes, freeze);
            writer.section(30, 1, false, &7u64, &[tail]);
            writer.finish(2);
            bytes
        };
        vec![record(b"first secret"), record(b""), record(&[3; 500])]
    }

    fn file() -> Vec<u8> {
        encode(&key(1), records().iter().map(Vec::as_slice)).unwrap()
    }

    #[test]
    fn a_file_gives_back_what_was_written() {
        let bytes = file();
        assert!(!bytes.windows(6).any(|window| window == b"secret"));
        assert_ne!(bytes, file(), "another salt each time");
        let loaded = decode(&bytes, &key(1)).unwrap();
        assert!(loaded.problem.is_none());
        assert_eq!(loaded.records, records());
    }

    #[test]
    fn whatever_is_changed_is_noticed() {
        let bytes = file();
        for index in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[index] ^= 0x40;
            let sound = matches!(decode(&bad, &key(1)), Ok(Loaded { problem: None, .. }));
            assert!(!sound, "byte {index}");
        }
        for len in 0..bytes.len() {
            let sound = matches!(decode(&bytes[..len], &key(1)), Ok(Loaded { problem: None, .. }));
            assert!(!sound, "cut at {len}");
        }
        let longer = [&bytes[..], b"x"].concat();
        assert!(decode(&longer, &key(1)).unwrap().problem.is_some());
    }

    #[test]
    fn what_is_sound_before_the_damage_is_read() {
        let mut bytes = file();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        let loaded = decode(&bytes, &key(1)).unwrap();
        assert!(matches!(loaded.problem, Some(FileError::Damaged { record: 3, count: 3 })));
        assert_eq!(loaded.records, records()[..2]);
    }

    #[test]
    fn foreign_files_are_told_apart() {
        assert!(matches!(decode(b"", &key(1)), Err(FileError::Foreign)));
        assert!(matches!(decode(&[b'x'; 200], &key(1)), Err(FileError::Foreign)));
        assert!(matches!(decode(&file(), &key(2)), Err(FileError::OtherKey)));
        let mut next = file();
        next[8] = 2;
        assert!(matches!(decode(&next, &key(1)), Err(FileError::Version(2))));
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path());
        let count = async || {
            let loaded = load(&path, &key(1)).await.unwrap();
            loaded.map(|loaded| loaded.records.len())
        };
        tokio_uring::start(async {
            assert_eq!(count().await, None);
            for some in [3, 1] {
                let records = records();
                let bytes = encode(&key(1), records.iter().take(some).map(Vec::as_slice)).unwrap();
                replace(dir.path(), bytes).await.unwrap();
                assert_eq!(count().await, Some(some));
            }
            // Something is in the way: the old file stays, and no temporary one.
            let next = path.with_extension("zdts.next");
            std::fs::create_dir(&next).unwrap();
            assert!(replace(dir.path(), file()).await.is_err());
            assert_eq!(count().await, Some(1));
            std::fs::remove_dir(&next).unwrap();
            // More than is read at a time.
            let large = vec![records()[2].clone(); 2 * READ_BYTES / records()[2].len()];
            let bytes = encode(&key(1), large.iter().map(Vec::as_slice)).unwrap();
            replace(dir.path(), bytes).await.unwrap();
            assert_eq!(count().await, Some(large.len()));
            remove(dir.path()).await.unwrap();
            remove(dir.path()).await.unwrap();
            assert_eq!(count().await, None);
            replace(dir.path(), file()).await.unwrap();
            let aside = set_aside(&path).unwrap();
            assert!(!path.exists() && aside.exists());
            std::os::unix::fs::symlink(&aside, &path).unwrap();
            assert!(matches!(load(&path, &key(1)).await, Err(FileError::Foreign)));
            std::fs::remove_file(&path).unwrap();
            std::fs::create_dir(&path).unwrap();
            assert!(matches!(load(&path, &key(1)).await, Err(FileError::Foreign)));
        });
    }
}
