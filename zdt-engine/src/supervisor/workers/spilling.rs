//! The directory for bodies of held requests: made, checked and opened here, for workers that could not even
//! reach it.
//!
//! What a worker makes in it never has a name (`O_TMPFILE`), so that it is gone with its last descriptor,
//! whoever is killed. Hence the directory is empty, for whoever looks.
//!
//! Must not know: what is written there, workers.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use super::process::User;
use crate::config::HoldOptions;
use crate::sys;

/// Its name in the run directory, where no other one was configured.
pub const NAME: &str = "spill";

/// Opens it, if there is to be one.
///
/// # Errors
/// What is wrong with it, and what to do.
pub fn open_spill_dir(
    options: &HoldOptions,
    run_dir: &Path,
    user: User,
) -> Result<Option<OwnedFd>, String> {
    if options.spill_bytes == 0 || !options.enabled {
        return Ok(None);
    }
    let default = run_dir.join(NAME);
    let path = options.spill_dir.as_deref().unwrap_or(&default);
    open(path, user)
        .map(Some)
        .map_err(|why| format!("gateway.hold.spill_dir: {}: {why}", path.display()))
}

fn open(path: &Path, user: User) -> Result<OwnedFd, String> {
    let text = |error: io::Error| error.to_string();
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(text(error)),
        _ => {}
    }
    let flags = nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW;
    let directory =
        fs::OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(text)?;
    let metadata = directory.metadata().map_err(text)?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(format!("others can reach it (mode {mode:04o}); `chmod 700` it"));
    }
    let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let (uid, gid) = user.unwrap_or(own);
    if metadata.uid() != uid {
        // Only what can be nothing else is given away.
        let is_empty = fs::read_dir(path).map_err(text)?.next().is_none();
        if own.0 != 0 || !is_empty {
            return Err(format!(
                "it belongs to user {}, and the workers run as {uid}; `chown {uid}` it, or name another",
                metadata.uid()
            ));
        }
        fchown(&directory, Some(uid), Some(gid))
            .map_err(|error| format!("cannot be given to the workers: {error}"))?;
    }
    sys::file::nameless(directory.as_fd()).map_err(|error| {
        format!("no file without a name can be made there ({error}): choose a file system that has O_TMPFILE")
    })?;
    Ok(directory.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(path: &Path) -> HoldOptions {
        HoldOptions { spill_bytes: 1, spill_dir: Some(path.to_owned()), ..HoldOptions::default() }
    }

    #[test]
    fn the_directory_is_the_workers_alone() {
        let parent = tempfile::tempdir().unwrap();
        let off = HoldOptions::default();
        assert!(open_spill_dir(&off, parent.path(), None).unwrap().is_none());
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0, "off makes nothing");
        let on = HoldOptions { spill_bytes: 1, ..HoldOptions::default() };
        let user = nix::unistd::geteuid().is_root().then_some((65_534, 65_534));
        for _ in 0..2 {
            open_spill_dir(&on, parent.path(), user).unwrap().expect("it is on");
            let metadata = fs::metadata(parent.path().join(NAME)).unwrap();
            assert_eq!(metadata.permissions().mode() & 0o7777, 0o700);
            let expected = user.map_or(nix::unistd::geteuid().as_raw(), |(uid, _)| uid);
            assert_eq!(metadata.uid(), expected);
            assert_eq!(fs::read_dir(parent.path().join(NAME)).unwrap().count(), 0);
        }
    }

    #[test]
    fn what_is_not_fit_is_refused_with_advice() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("d");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let why = open_spill_dir(&options(&path), parent.path(), None).unwrap_err();
        assert!(why.contains("chmod 700") && why.contains("gateway.hold.spill_dir"), "{why}");
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        open_spill_dir(&options(&link), parent.path(), None).unwrap_err();
        open_spill_dir(&options(&path.join("a/b")), parent.path(), None).unwrap_err();
        if nix::unistd::geteuid().is_root() {
            // Somebody's home, say.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
            fs::write(path.join("file"), "x").unwrap();
            let user = Some((65_534, 65_534));
            let why = open_spill_dir(&options(&path), parent.path(), user).unwrap_err();
            assert!(why.contains("chown"), "{why}");
            assert_eq!(fs::metadata(&path).unwrap().uid(), 0);
        }
        let proc = Path::new("/proc/self/fdinfo");
        open_spill_dir(&options(proc), parent.path(), None).unwrap_err();
    }
}
