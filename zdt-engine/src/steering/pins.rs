//! Where maps and programs are pinned, so that they outlive the supervisor.
//!
//! Pins are in a directory of their own for each layout of the maps, below the directory that the
//! supervisor names; a build sees at once whether it understands what is there.
//!
//! Must not know: what is in the maps.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData, ReusePortSockArray};
use aya::programs::SkReuseport;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::statfs;

use super::SteeringError;
use super::object::MAPS;

const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
const SYSTEM_BPFFS: &str = "/sys/fs/bpf";

/// A good place for the pins of the supervisor of this run directory: below `/sys/fs/bpf` where that
/// is mounted, else `bpf` in the run directory, on which [`super::Steering::load`] mounts a bpffs.
pub fn pin_directory(run_dir: &Path) -> PathBuf {
    let run_dir = fs::canonicalize(run_dir).unwrap_or_else(|_| run_dir.to_owned());
    let own = run_dir.join("bpf");
    if is_bpffs(&own) || !is_bpffs(Path::new(SYSTEM_BPFFS)) {
        return own;
    }
    // The path itself, as a file name: a bpffs takes no dots, and names of up to 255 bytes.
    let name: String = run_dir
        .as_os_str()
        .as_bytes()
        .iter()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => (*byte as char).to_string(),
            other => format!("_{other:02x}"),
        })
        .collect();
    if name.len() > 200 { own } else { Path::new(SYSTEM_BPFFS).join(format!("zdt{name}")) }
}

/// Removes all pins from the directory, and the bpffs that was mounted on it. What is attached to
/// sockets goes on working until they are closed.
///
/// # Errors
/// [`SteeringError::Pin`], except where there was nothing.
pub fn remove_pins(pin_dir: &Path) -> Result<(), SteeringError> {
    if !is_bpffs(pin_dir) {
        return Ok(());
    }
    remove_layouts(pin_dir)?;
    if pin_dir.parent().is_some_and(is_bpffs) {
        return fs::remove_dir(pin_dir).map_err(SteeringError::pin(pin_dir));
    }
    // It is the root of a bpffs: mounted by us, or by the operator on this very directory, whose
    // intention was the same. Detached, because another process may be looking at it.
    umount2(pin_dir, MntFlags::MNT_DETACH)
        .map_err(io::Error::from)
        .map_err(SteeringError::pin(pin_dir))
}

/// The directory of this build's layout.
fn layout_dir(pin_dir: &Path) -> PathBuf {
    pin_dir.join(format!("layout-{}", zdt_common::LAYOUT_VERSION))
}

/// Makes the directory for this build's pins, on a bpffs.
pub(super) fn prepare(pin_dir: &Path) -> Result<PathBuf, SteeringError> {
    fs::create_dir_all(pin_dir).map_err(SteeringError::pin(pin_dir))?;
    if !is_bpffs(pin_dir) {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("bpf"), pin_dir, Some("bpf"), flags, Some("mode=0700"))
            .map_err(io::Error::from)
            .map_err(SteeringError::pin(pin_dir))?;
    }
    let dir = layout_dir(pin_dir);
    fs::create_dir_all(&dir).map_err(SteeringError::pin(&dir))?;
    Ok(dir)
}

/// The directory with this build's pins.
pub(super) fn existing(pin_dir: &Path) -> Result<PathBuf, SteeringError> {
    let dir = layout_dir(pin_dir);
    if is_bpffs(pin_dir) && MAPS.iter().all(|name| dir.join(name).exists()) {
        return Ok(dir);
    }
    let found = layouts(pin_dir).iter().find_map(|other| {
        (*other != dir).then(|| other.file_name().unwrap_or_default().to_string_lossy().into())
    });
    match found {
        Some(found) => Err(SteeringError::OtherLayout { dir: pin_dir.to_owned(), found }),
        None => Err(SteeringError::NotPinned { dir: pin_dir.to_owned() }),
    }
}

/// Takes what an earlier supervisor pinned out of use: its sockets out of its map, so that they may
/// enter another one, and its pins away.
pub(super) fn retire(pin_dir: &Path) -> Result<(), SteeringError> {
    if !is_bpffs(pin_dir) {
        return Ok(());
    }
    for dir in layouts(pin_dir) {
        let path = dir.join("SOCKETS");
        let Ok(data) = MapData::from_pin(&path) else { continue };
        let Ok(Map::ReusePortSockArray(data)) = Map::from_map_data(data) else { continue };
        let Ok(mut sockets) =
            ReusePortSockArray::<MapData>::try_from(Map::ReusePortSockArray(data))
        else {
            continue;
        };
        let used: Vec<u32> = sockets.indices().filter_map(Result::ok).collect();
        for index in used {
            // An index without a socket, most likely: the array lists them all.
            let _ = sockets.clear_index(&index);
        }
    }
    remove_layouts(pin_dir)
}

/// Pins a program, in place of the one that was there.
pub(super) fn pin_program(program: &mut SkReuseport, path: &Path) -> Result<(), SteeringError> {
    remove_pin(path)?;
    program.pin(path).map_err(SteeringError::pin(path))
}

/// Removes one pin; one that is not there is no error.
pub(super) fn remove_pin(path: &Path) -> Result<(), SteeringError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(SteeringError::pin(path)(error))
        }
        _ => Ok(()),
    }
}

fn layouts(pin_dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(pin_dir) else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().as_bytes().starts_with(b"layout-"))
        .map(|entry| entry.path())
        .collect()
}

fn remove_layouts(pin_dir: &Path) -> Result<(), SteeringError> {
    for dir in layouts(pin_dir) {
        fs::remove_dir_all(&dir).map_err(SteeringError::pin(&dir))?;
    }
    Ok(())
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|status| status.filesystem_type().0 as u64 & 0xffff_ffff == BPF_FS_MAGIC)
}
