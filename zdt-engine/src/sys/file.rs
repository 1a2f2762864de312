//! Files without a name, for what memory is too small for.
//!
//! Must not know: what is written to them.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat};

/// Makes a file in that directory that never has a name: it is gone with its last descriptor.
///
/// # Errors
/// `EOPNOTSUPP` or `EISDIR` where the file system has none; else what open(2) says.
pub fn nameless(directory: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // O_EXCL: nor can it be given one.
    let flags = OFlag::O_TMPFILE | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    Ok(openat(directory, ".", flags, Mode::S_IRUSR | Mode::S_IWUSR)?)
}

/// True for a plain file of at least so many bytes.
pub fn is_file_of(descriptor: BorrowedFd<'_>, bytes: u64) -> bool {
    fstat(descriptor).is_ok_and(|stat| {
        SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG
            && u64::try_from(stat.st_size).is_ok_and(|size| size >= bytes)
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_nameless_file_is_a_file_without_a_trace() {
        let directory = tempfile::tempdir().unwrap();
        let opened = std::fs::File::open(directory.path()).unwrap();
        let file = nameless(opened.as_fd()).unwrap();
        let mut file = std::fs::File::from(file);
        file.seek(SeekFrom::Start(10)).unwrap();
        file.write_all(b"12345").unwrap();
        assert!(is_file_of(file.as_fd(), 15));
        assert!(!is_file_of(file.as_fd(), 16));
        assert!(!is_file_of(opened.as_fd(), 0), "a directory");
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(!is_file_of(socket.as_fd(), 0));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
