//! Processes under measurement: starting them on a CPU, ending them, their CPU time and memory.
//!
//! Must not know: what they serve.

use std::fs;
use std::io;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// The CPUs that this process may use, ascending.
pub fn allowed_cpus() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else { return vec![0] };
    (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect()
}

/// CPU of the server and CPU of the client; the same one where there is only one.
pub fn server_and_client_cpus() -> (usize, usize) {
    let cpus = allowed_cpus();
    (cpus[0], cpus[1 % cpus.len()])
}

fn set_affinity(cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).context("sched_setaffinity")
}

/// Pins the calling thread until the value is dropped.
pub struct Pinned(Vec<usize>);

impl Pinned {
    /// To one CPU.
    pub fn to(cpu: usize) -> Result<Self> {
        let before = allowed_cpus();
        set_affinity(&[cpu])?;
        Ok(Self(before))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = set_affinity(&self.0);
    }
}

/// Raises the soft limit of open files to the hard one, for this process and its children.
pub fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// A child that does not outlive its owner.
pub struct Server {
    child: Child,
    name: String,
}

impl Server {
    /// Starts it, pinned to `cpu` with all its threads if one is given.
    pub fn start(name: &str, command: &mut Command, cpu: Option<usize>) -> Result<Self> {
        let _pinned = cpu.map(Pinned::to).transpose()?;
        let child = command.spawn().with_context(|| format!("cannot start {name}: {command:?}"))?;
        Ok(Self { child, name: name.to_owned() })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Of the server, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The child itself, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// An error if it has ended.
    pub fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} has ended: {status}", self.name),
        }
    }

    /// Waits for its end.
    pub fn wait(&mut self, timeout: Duration) -> Result<bool> {
        let end = Instant::now() + timeout;
        while self.child.try_wait()?.is_none() {
            if Instant::now() >= end {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(true)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The descendants first: a killed supervisor leaves its workers to themselves.
        let descendants = descendants(self.child.id());
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
            if !matches!(self.wait(Duration::from_secs(2)), Ok(true)) {
                let _ = self.child.kill();
            }
        }
        let _ = self.child.wait();
        for (pid, started) in descendants {
            // The start time guards against another process with the same number.
            if start_time(pid) == Some(started) {
                let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
                await_end(pid, started);
            }
        }
    }
}

/// Fields of /proc/PID/stat after the command: state, parent, …
fn stat_fields(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

fn start_time(pid: u32) -> Option<u64> {
    stat_fields(pid)?.get(19)?.parse().ok()
}

/// Waits, for two seconds at most, until a killed process that is not a child is gone.
fn await_end(pid: u32, started: u64) {
    let end = Instant::now() + Duration::from_secs(2);
    while start_time(pid) == Some(started)
        && stat_fields(pid).is_some_and(|fields| fields[0] != "Z")
        && Instant::now() < end
    {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// All processes below `root` with their start times, without itself.
pub fn descendants(root: u32) -> Vec<(u32, u64)> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Some(fields) = stat_fields(pid)
            && let (Ok(parent), Ok(started)) = (fields[1].parse::<u32>(), fields[19].parse())
            && fields[0] != "Z"
        {
            parents.push((pid, parent, started));
        }
    }
    let mut found: Vec<(u32, u64)> = Vec::new();
    let mut wanted = vec![root];
    while let Some(parent) = wanted.pop() {
        for &(pid, of, started) in &parents {
            if of == parent {
                found.push((pid, started));
                wanted.push(pid);
            }
        }
    }
    found
}

/// CPU time of a process so far, all its threads, user and system, in nanoseconds.
pub fn cpu_ns(pid: u32) -> io::Result<u64> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid as i32))?;
    let time = clock_gettime(clock)?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// CPU time of several processes; those that are gone count nothing.
pub fn total_cpu_ns(pids: &[u32]) -> u64 {
    pids.iter().filter_map(|&pid| cpu_ns(pid).ok()).sum()
}

/// Proportional set size of a process in bytes.
pub fn pss_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss line")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().context(path)?;
    Ok(kib * 1024)
}

/// Ticks in which any CPU was busy.
fn busy_ticks() -> Option<u64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // All but idle and waiting for I/O.
    Some(ticks.iter().sum::<u64>() - ticks.get(3)? - ticks.get(4)?)
}

/// Waits until nobody uses more than a few per cent of a CPU, at most for `timeout`; whether it is so.
pub fn wait_until_quiet(timeout: Duration) -> bool {
    let end = Instant::now() + timeout;
    while let Some(before) = busy_ticks() {
        std::thread::sleep(Duration::from_millis(250));
        if busy_ticks().is_some_and(|ticks| ticks <= before + 2) {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_figures_are_plausible() {
        let pid = std::process::id();
        let before = cpu_ns(pid).unwrap();
        let mut sum = 0u64;
        for i in 0..2_000_000u64 {
            sum = sum.wrapping_mul(31).wrapping_add(std::hint::black_box(i));
        }
        std::hint::black_box(sum);
        assert!(cpu_ns(pid).unwrap() > before);
        assert!(pss_bytes(pid).unwrap() > 100_000);
    }

    #[test]
    fn a_server_and_its_children_end_with_its_owner() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & echo; wait"]).stdout(std::process::Stdio::piped());
        let mut server = Server::start("sh", &mut command, None).unwrap();
        let mut line = [0u8];
        io::Read::read_exact(server.child().stdout.as_mut().unwrap(), &mut line).unwrap();
        let below = descendants(server.pid());
        assert_eq!(below.len(), 1, "the sleep");
        drop(server);
        // Nobody may have reaped it yet.
        let state = stat_fields(below[0].0).map(|fields| fields[0].clone());
        assert!(matches!(state.as_deref(), None | Some("Z" | "X")), "still there: {state:?}");
    }

    #[test]
    fn pinning_is_undone() {
        let before = allowed_cpus();
        let pinned = Pinned::to(before[0]).unwrap();
        assert_eq!(allowed_cpus(), before[..1]);
        drop(pinned);
        assert_eq!(allowed_cpus(), before);
    }
}
