//! Sealed memfds: made by the supervisor, mapped by workers, checked before they are mapped.
//!
//! Must not know: what is laid out in them.

use std::ffi::CString;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;

/// Seals that make a mapping safe: the file keeps its size, for good.
const SIZE_SEALS: SealFlag =
    SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_SEAL);

/// Why a received descriptor cannot be mapped or read.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// Not a memfd, or its owner could still cut it off under the mapping.
    #[error("the shared memory is not a memfd sealed against changes of its size")]
    NotSealed,
    /// Another size than agreed.
    #[error("the shared memory has {actual} bytes where {expected} were expected")]
    WrongSize {
        /// Agreed.
        expected: u64,
        /// Found.
        actual: u64,
    },
    /// What was laid out in it is not what this build expects.
    #[error("the shared memory has another layout: {0}")]
    WrongLayout(&'static str),
    /// The kernel refused.
    #[error("the shared memory cannot be mapped: {0}")]
    Kernel(#[from] io::Error),
}

impl From<Errno> for MapError {
    fn from(error: Errno) -> Self {
        Self::Kernel(error.into())
    }
}

fn new_memfd(name: &str) -> io::Result<OwnedFd> {
    let name = CString::new(name)?;
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    // Data, never code; kernels before 6.3 do not know the flag.
    match memfd_create(name.as_c_str(), flags | MFdFlags::from_bits_retain(0x8)) {
        Err(Errno::EINVAL) => Ok(memfd_create(name.as_c_str(), flags)?),
        result => Ok(result?),
    }
}

/// A shared mapping of a sealed memfd.
///
/// Only raw pointers into it are given out: whatever is read may change at any time.
#[derive(Debug)]
pub struct SharedMemory {
    mapping: MmapRaw,
}

impl SharedMemory {
    /// A zeroed memfd of `len` bytes, its pages allocated, its size sealed. It is not mapped here.
    ///
    /// # Errors
    /// When out of memory or descriptors.
    pub fn create(name: &str, len: usize) -> io::Result<OwnedFd> {
        let file = new_memfd(name)?;
        let len = libc::off_t::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        ftruncate(&file, len)?;
        fallocate(&file, FallocateFlags::empty(), 0, len)?;
        fcntl(&file, FcntlArg::F_ADD_SEALS(SIZE_SEALS))?;
        Ok(file)
    }

    /// Maps a memfd that somebody else made. Its pages are there already, and enter the mapping as they are
    /// touched: all at once they would stop a worker's loop for a millisecond. The descriptor can be closed
    /// afterwards.
    ///
    /// # Errors
    /// If it is not sealed, or has not exactly `expected_len` bytes.
    pub fn map(file: BorrowedFd<'_>, expected_len: usize) -> Result<Self, MapError> {
        let seals = match fcntl(file, FcntlArg::F_GET_SEALS) {
            Ok(bits) => SealFlag::from_bits_retain(bits),
            Err(Errno::EINVAL) => return Err(MapError::NotSealed),
            Err(error) => return Err(error.into()),
        };
        if !seals.contains(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW) {
            return Err(MapError::NotSealed);
        }
        let actual = fstat(file)?.st_size as u64;
        if actual != expected_len as u64 {
            return Err(MapError::WrongSize { expected: expected_len as u64, actual });
        }
        let mapping = MmapOptions::new().len(expected_len).map_raw(&file)?;
        Ok(Self { mapping })
    }

    /// Bytes mapped.
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Never true: an empty file cannot be mapped.
    pub fn is_empty(&self) -> bool {
        self.mapping.len() == 0
    }

    /// The address of `offset`, for `T`s up to `count`.
    ///
    /// # Panics
    /// If they would not lie within the mapping or not be aligned: layouts are constants.
    pub(super) fn at<T>(&self, offset: usize, count: usize) -> NonNull<T> {
        let end = count.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_add(offset));
        assert!(end.is_some_and(|end| end <= self.mapping.len()), "layout beyond the mapping");
        assert!(offset.is_multiple_of(align_of::<T>()), "layout not aligned");
        // SAFETY: `offset` is at most the mapping's length (checked above), and the mapping, which
        // is page-aligned and not at address 0, stays for as long as `self` lives.
        unsafe { NonNull::new_unchecked(self.mapping.as_mut_ptr().add(offset).cast()) }
    }
}

/// Puts bytes into a memfd that nobody can change any more: for records too large for a ring.
///
/// # Errors
/// When out of memory or descriptors.
pub fn sealed_copy(name: &str, parts: &[&[u8]]) -> io::Result<OwnedFd> {
    let mut file = std::fs::File::from(new_memfd(name)?);
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut rest = &mut slices[..];
    while rest.iter().any(|part| !part.is_empty()) {
        match file.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut rest, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    fcntl(file.as_fd(), FcntlArg::F_ADD_SEALS(SIZE_SEALS | SealFlag::F_SEAL_WRITE))?;
    Ok(file.into())
}

/// Reads what [`sealed_copy`] wrote. The bytes are copied: it does not matter whether the sender
/// keeps its word, and it can make this process hold `max_bytes` at most.
///
/// # Errors
/// If the descriptor is no memfd with these seals, or holds more than `max_bytes`.
pub fn read_sealed(file: BorrowedFd<'_>, max_bytes: usize) -> Result<Vec<u8>, MapError> {
    let seals = match fcntl(file, FcntlArg::F_GET_SEALS) {
        Ok(bits) => SealFlag::from_bits_retain(bits),
        Err(Errno::EINVAL) => return Err(MapError::NotSealed),
        Err(error) => return Err(error.into()),
    };
    if !seals.contains(SIZE_SEALS | SealFlag::F_SEAL_WRITE) {
        return Err(MapError::NotSealed);
    }
    let size = fstat(file)?.st_size as u64;
    if size > max_bytes as u64 {
        return Err(MapError::WrongSize { expected: max_bytes as u64, actual: size });
    }
    let mut bytes = vec![0u8; size as usize];
    let mut filled = 0;
    while filled < bytes.len() {
        match nix::sys::uio::pread(file, &mut bytes[filled..], filled as libc::off_t) {
            Ok(0) => {
                return Err(MapError::WrongSize { expected: size, actual: filled as u64 });
            }
            Ok(count) => filled += count,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_sealed() {
        let file = SharedMemory::create("test", 8192).unwrap();
        assert!(ftruncate(&file, 4096).is_err());
        assert!(ftruncate(&file, 16384).is_err());
        let memory = SharedMemory::map(file.as_fd(), 8192).unwrap();
        assert_eq!(memory.len(), 8192);
        let wrong = SharedMemory::map(file.as_fd(), 4096).unwrap_err();
        assert!(matches!(wrong, MapError::WrongSize { expected: 4096, actual: 8192 }));
        drop(file);
        // SAFETY: within the mapping, which nobody else uses.
        assert_eq!(unsafe { memory.at::<u64>(8184, 1).as_ptr().read_volatile() }, 0);
    }

    #[test]
    fn what_is_not_sealed_is_not_mapped() {
        let file = new_memfd("test").unwrap();
        ftruncate(&file, 4096).unwrap();
        for seals in [SealFlag::empty(), SealFlag::F_SEAL_GROW] {
            fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
            let refused = SharedMemory::map(file.as_fd(), 4096).unwrap_err();
            assert!(matches!(refused, MapError::NotSealed));
        }
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(4096).unwrap();
        let refused = SharedMemory::map(disk.as_fd(), 4096).unwrap_err();
        assert!(matches!(refused, MapError::NotSealed));
        let pipe = nix::unistd::pipe().unwrap().0;
        assert!(SharedMemory::map(pipe.as_fd(), 4096).is_err());
    }

    #[test]
    #[should_panic(expected = "beyond the mapping")]
    fn layouts_are_checked() {
        let file = SharedMemory::create("test", 4096).unwrap();
        SharedMemory::map(file.as_fd(), 4096).unwrap().at::<u64>(4096, 1);
    }

    #[test]
    fn large_records_travel_sealed() {
        let part = vec![7u8; 3 << 20];
        let file = sealed_copy("record", &[b"head", b"", &part]).unwrap();
        assert!(nix::unistd::write(&file, b"x").is_err(), "nobody can change it");
        let bytes = read_sealed(file.as_fd(), 4 << 20).unwrap();
        assert!(bytes.starts_with(b"head\x07") && bytes.len() == part.len() + 4);
        let refused = read_sealed(file.as_fd(), 1 << 20).unwrap_err();
        assert!(matches!(refused, MapError::WrongSize { .. }));
        let open = SharedMemory::create("open", 4096).unwrap();
        let refused = read_sealed(open.as_fd(), 4096).unwrap_err();
        assert!(matches!(refused, MapError::NotSealed), "its owner could still write");
        assert_eq!(read_sealed(sealed_copy("e", &[]).unwrap().as_fd(), 0).unwrap(), b"");
    }
}
