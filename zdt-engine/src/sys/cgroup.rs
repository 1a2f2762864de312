//! Control groups, version 2: one below ours for each process that is to be limited.
//!
//! A group that has processes of its own cannot give controllers to groups below it, so this process first
//! moves into a group `supervisor` beside those of its workers. That is done only where the group is ours alone:
//! one that systemd delegates (`Delegate=yes`), or the root of a container's hierarchy. Version 1 is not used.
//!
//! Must not know: who is limited, and to what.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Where this process lives while groups beside it have limits.
const OWN_GROUP: &str = "supervisor";

/// A group below which this process can make others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegation {
    base: PathBuf,
}

/// A group of one process.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
}

impl Delegation {
    /// Finds the group of this process, and whether groups with these controllers can be made there.
    ///
    /// # Errors
    /// Says what is in the way.
    pub fn find(controllers: &[&str]) -> Result<Delegation, String> {
        let read =
            |path: &str| fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
        let group = own_group(&read("/proc/self/mounts")?, &read("/proc/self/cgroup")?)?;
        Self::at(&group, controllers)
    }

    fn at(group: &Path, controllers: &[&str]) -> Result<Delegation, String> {
        let mut base = group.to_owned();
        if group.file_name().is_some_and(|name| name == OWN_GROUP) {
            base.pop();
        }
        let available = words(&base.join("cgroup.controllers"))?;
        let missing: Vec<&str> =
            controllers.iter().copied().filter(|name| !available.contains(*name)).collect();
        if !missing.is_empty() {
            return Err(format!(
                "{} has no controller {} (its parent does not hand it on, or version 1 has it)",
                base.display(),
                missing.join(", ")
            ));
        }
        nix::unistd::access(&base, nix::unistd::AccessFlags::W_OK).map_err(|error| {
            format!("{} is not delegated to this user: {error}", base.display())
        })?;
        Ok(Delegation { base })
    }

    /// The group below which others are made.
    pub fn path(&self) -> &Path {
        &self.base
    }

    /// Makes it possible to limit groups below: moves this process aside, with `others` that are its own
    /// as well, and turns the controllers on.
    ///
    /// # Errors
    /// Says what is in the way; then nothing is limited.
    pub fn prepare(mut self, controllers: &[&str], others: &[u32]) -> Result<Self, String> {
        let is_root = !self.base.join("cgroup.type").exists();
        if is_root {
            // Everybody's: the groups get one of their own around them. Old ones go, if they are empty.
            self.turn_on(controllers)?;
            for entry in fs::read_dir(&self.base).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().starts_with("zdt-") {
                    let _ = fs::remove_dir(entry.path());
                }
            }
            self.base.push(format!("zdt-{}", std::process::id()));
            make(&self.base).map_err(|error| format!("{}: {error}", self.base.display()))?;
        } else {
            let base = self.base.display();
            let at = |error: io::Error| format!("{base}: {error}");
            let inside = words(&self.base.join("cgroup.procs"))?;
            let ours: BTreeSet<String> =
                others.iter().chain([&std::process::id()]).map(u32::to_string).collect();
            if let Some(stranger) = inside.iter().find(|pid| !ours.contains(*pid)) {
                return Err(format!(
                    "{base} has other processes, such as {stranger}: give zdt a group of its own \
                     (Delegate=yes in its systemd unit)"
                ));
            }
            if !inside.is_empty() {
                let aside = self.base.join(OWN_GROUP);
                make(&aside).map_err(at)?;
                for pid in inside {
                    fs::write(aside.join("cgroup.procs"), pid).map_err(at)?;
                }
            }
        }
        self.turn_on(controllers)?;
        Ok(self)
    }

    fn turn_on(&self, controllers: &[&str]) -> Result<(), String> {
        let control = self.base.join("cgroup.subtree_control");
        for controller in controllers {
            fs::write(&control, format!("+{controller}")).map_err(|error| {
                format!("{}: cannot turn on {controller}: {error}", control.display())
            })?;
        }
        Ok(())
    }

    /// Makes a group with these values (a file's name, and what to write), or takes over the one of this
    /// name. Files that this kernel does not have are left out if their name is followed by `?`.
    ///
    /// # Errors
    /// Says which value was not taken.
    pub fn group(&self, name: &str, values: &[(&str, String)]) -> Result<Group, String> {
        let group = Group { path: self.base.join(name) };
        make(&group.path).map_err(|error| format!("{}: {error}", group.path.display()))?;
        for (file, value) in values {
            let path = group.path.join(file.trim_end_matches('?'));
            if file.ends_with('?') && !path.exists() {
                continue;
            }
            fs::write(&path, value).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        Ok(group)
    }

    /// The group in which a process already is, if it is one of those made here.
    pub fn adopt(name: &str, pid: u32) -> Option<Group> {
        let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = own_group(&mounts, &groups).ok()?;
        (path.file_name()? == name).then_some(Group { path })
    }
}

impl Group {
    /// Opens the file that takes a process in when it writes 0 to it.
    ///
    /// # Errors
    /// What open(2) says.
    pub fn entrance(&self) -> io::Result<OwnedFd> {
        let file = fs::OpenOptions::new().write(true).open(self.path.join("cgroup.procs"))?;
        Ok(file.into())
    }

    /// How many processes of it the kernel has killed because of the memory limit.
    pub fn memory_kills(&self) -> u64 {
        let Ok(events) = fs::read_to_string(self.path.join("memory.events")) else { return 0 };
        let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }
}

impl Drop for Group {
    /// Removes it. One that still has processes stays.
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}

fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn words(path: &Path) -> Result<BTreeSet<String>, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

/// The directory of a process' group, from the mounts and its `/proc/PID/cgroup`.
fn own_group(mounts: &str, groups: &str) -> Result<PathBuf, String> {
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let group = group.ok_or("there are no control groups of version 2")?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then_some(path)
    });
    let mount = mount.ok_or("control groups of version 2 are not mounted")?;
    Ok(Path::new(mount).join(group.trim_start_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that looks like a delegated group.
    fn fake(controllers: &str, procs: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            ("cgroup.controllers", controllers),
            ("cgroup.procs", procs),
            ("cgroup.subtree_control", ""),
            ("cgroup.type", "domain"),
        ];
        for (file, text) in files {
            fs::write(dir.path().join(file), text).unwrap();
        }
        dir
    }

    #[test]
    fn the_own_group_is_found() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
        let path = own_group(mounts, "4:memory:/x\n0::/system.slice/zdt.service\n").unwrap();
        assert_eq!(path, Path::new("/sys/fs/cgroup/unified/system.slice/zdt.service"));
        assert!(own_group(mounts, "4:memory:/x\n").unwrap_err().contains("version 2"));
        assert!(own_group("", "0::/\n").unwrap_err().contains("not mounted"));
    }

    #[test]
    fn a_group_of_its_own_is_prepared_and_filled() {
        let own = std::process::id();
        let dir = fake("cpu memory pids", &format!("{own}\n4242\n"));
        let delegation = Delegation::at(dir.path(), &["memory", "cpu"]).unwrap();
        let stranger = delegation.clone().prepare(&["memory", "cpu"], &[]).unwrap_err();
        assert!(stranger.contains("4242") && stranger.contains("Delegate=yes"), "{stranger}");
        let delegation = delegation.prepare(&["memory", "cpu"], &[4242]).unwrap();
        assert!(dir.path().join("supervisor/cgroup.procs").exists());
        let control = fs::read_to_string(dir.path().join("cgroup.subtree_control")).unwrap();
        assert_eq!(control, "+cpu", "the last that was written");
        // The next supervisor, which finds itself inside, means the same base.
        let inside = Delegation::at(&dir.path().join("supervisor"), &["memory"]).unwrap();
        assert_eq!(inside, delegation);

        let values = [("memory.max", "1048576".to_owned()), ("memory.zswap.max?", "0".to_owned())];
        let group = delegation.group("worker-7", &values).unwrap();
        let path = dir.path().join("worker-7");
        assert_eq!(fs::read_to_string(path.join("memory.max")).unwrap(), "1048576");
        assert!(!path.join("memory.zswap.max").exists());
        fs::write(path.join("memory.events"), "low 0\noom 1\noom_kill 2\n").unwrap();
        assert_eq!(group.memory_kills(), 2);
    }

    #[test]
    fn what_is_missing_is_named() {
        let dir = fake("cpu", "");
        let error = Delegation::at(dir.path(), &["cpu", "memory"]).unwrap_err();
        assert!(error.contains("no controller memory"), "{error}");
        assert!(
            Delegation::at(Path::new("/nonexistent"), &[]).unwrap_err().contains("/nonexistent")
        );
    }

    #[test]
    fn a_child_is_born_in_its_group() {
        // On the real hierarchy, where this machine lets one; controllers are not needed for that.
        let Ok(delegation) = Delegation::find(&[]) else { return };
        let name = format!("zdt-test-{}", std::process::id());
        let Ok(group) = delegation.group(&name, &[]) else { return };
        let mut command = std::process::Command::new("/bin/cat");
        command.arg("/proc/self/cgroup");
        let birth = super::super::birth::Birth {
            group: Some(group.entrance().unwrap()),
            ..Default::default()
        };
        birth.of(&mut command);
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.lines().any(|line| line.starts_with("0::") && line.ends_with(&name)),
            "{text}"
        );
        let path = group.path.clone();
        assert!(path.exists());
        drop(group);
        assert!(!path.exists());
    }
}
