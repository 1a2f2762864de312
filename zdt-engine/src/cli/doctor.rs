//! `zdt doctor`: what this machine allows, and what to do about what it does not.
//!
//! Must not know: what the features are used for, beyond a sentence.

use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use super::DoctorArgs;
use crate::config::{RING_ENTRIES, Sources};
use crate::credentials::{Credentials, Validity};
use crate::sys::ring::Shape;
use crate::{steering, supervisor, sys, uring};

/// Oldest kernel with everything that a worker needs.
const OLDEST_KERNEL: (u32, u32) = (6, 1);
/// A worker opens one descriptor a connection.
const ENOUGH_FILES: u64 = 16_384;

const CAP_NET_ADMIN: u32 = 12;
const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;
const CAP_BPF: u32 = 39;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Level {
    /// As it should be.
    Ok,
    /// zdt works, with less.
    Warning,
    /// zdt does not work.
    Error,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    level: Level,
    /// What was found.
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, level: Level::Ok, found: found.into(), advice: None }
    }

    fn warning(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, level: Level::Warning, found: found.into(), advice: Some(advice.into()) }
    }

    fn error(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, level: Level::Error, found: found.into(), advice: Some(advice.into()) }
    }
}

pub(super) fn run(args: &DoctorArgs) -> Result<ExitCode, String> {
    let root = nix::unistd::geteuid().is_root();
    let capabilities = sys::kernel::effective_capabilities().unwrap_or(0);
    let checks = [
        kernel(sys::kernel::version()),
        privileges(root, capabilities),
        io_uring_allowed(
            capabilities,
            sys::kernel::sysctl("kernel.io_uring_disabled").ok().flatten().as_deref(),
        ),
        io_uring_complete(uring::probe()),
        bpf(steering::probe_support()),
        bpffs(root),
        open_files(sys::process::raise_open_files()),
        locked_memory(args),
        worker_user(args),
        seccomp(sys::seccomp::is_supported()),
        control_groups(sys::cgroup::Delegation::find(&["memory", "cpu"])),
        run_dir(args),
        certificates(args),
    ];
    let worst = checks.iter().map(|check| check.level).max_by_key(|level| *level as u8);
    let healthy = worst != Some(Level::Error);
    if args.json {
        let result = serde_json::json!({ "healthy": healthy, "checks": checks });
        println!("{result}");
    } else {
        for check in &checks {
            let mark = match check.level {
                Level::Ok => "ok     ",
                Level::Warning => "warning",
                Level::Error => "ERROR  ",
            };
            println!("{mark}  {}: {}", check.name, check.found);
            if let Some(advice) = &check.advice {
                println!("         {advice}");
            }
        }
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn kernel(version: std::io::Result<(u32, u32)>) -> Check {
    let (oldest_major, oldest_minor) = OLDEST_KERNEL;
    match version {
        Ok((major, minor)) if (major, minor) >= OLDEST_KERNEL => {
            Check::ok("kernel", format!("Linux {major}.{minor}"))
        }
        Ok((major, minor)) => Check::error(
            "kernel",
            format!("Linux {major}.{minor}"),
            format!("zdt needs Linux {oldest_major}.{oldest_minor} or newer"),
        ),
        Err(error) => Check::warning(
            "kernel",
            format!("version unknown: {error}"),
            format!("make sure that it is Linux {oldest_major}.{oldest_minor} or newer"),
        ),
    }
}

fn privileges(root: bool, capabilities: u64) -> Check {
    let has = |capability: u32| capabilities >> capability & 1 == 1;
    let missing: Vec<&str> =
        [(CAP_BPF, "CAP_BPF"), (CAP_NET_ADMIN, "CAP_NET_ADMIN"), (CAP_SYS_ADMIN, "CAP_SYS_ADMIN")]
            .iter()
            .filter(|(capability, _)| !has(*capability))
            .map(|(_, name)| *name)
            .collect();
    match (root, missing.is_empty()) {
        (true, true) => Check::ok("privileges", "root with all capabilities that steering needs"),
        (false, true) => Check::ok("privileges", "all capabilities that steering needs"),
        _ => Check::warning(
            "privileges",
            format!("{}without {}", if root { "root " } else { "" }, missing.join(", ")),
            "steering by eBPF needs them: run `zdt serve` as root. Workers drop to the configured \
             user either way. Without, generations share plain SO_REUSEPORT sockets",
        ),
    }
}

fn io_uring_allowed(capabilities: u64, setting: Option<&str>) -> Check {
    let name = "io_uring allowed";
    // With the first a supervisor makes its workers' rings; at 1 the kernel asks for the second there.
    let makes_rings =
        [CAP_IPC_LOCK, CAP_SYS_ADMIN].iter().all(|capability| capabilities >> capability & 1 == 1);
    match setting {
        None | Some("0") => Check::ok(name, "kernel.io_uring_disabled is 0"),
        Some("1") if makes_rings => Check::ok(
            name,
            "kernel.io_uring_disabled is 1: the supervisor may, and makes its workers' rings",
        ),
        Some("1") => Check::error(
            name,
            "kernel.io_uring_disabled is 1: this user may not",
            "run `zdt serve` as root (or with CAP_IPC_LOCK and CAP_SYS_ADMIN), which makes its workers' rings; or set it \
             to 0 (`sysctl -w kernel.io_uring_disabled=0`, and in /etc/sysctl.d); or put the workers' group into \
             kernel.io_uring_group",
        ),
        Some(other) => Check::error(
            name,
            format!("kernel.io_uring_disabled is {other}"),
            "set it to 0: `sysctl -w kernel.io_uring_disabled=0`, and in /etc/sysctl.d. In a \
             container, its host decides",
        ),
    }
}

fn io_uring_complete(result: Result<(), uring::SetupError>) -> Check {
    match result {
        Ok(()) => Check::ok(
            "io_uring features",
            format!("all {} operations that a worker needs", uring::NEEDED_OPCODES.len()),
        ),
        Err(error) => Check::error(
            "io_uring features",
            error.to_string(),
            "use a newer kernel; in a container, its seccomp profile must allow io_uring_setup, \
             io_uring_enter and io_uring_register",
        ),
    }
}

fn bpf(result: Result<(), steering::SteeringError>) -> Check {
    match result {
        Ok(()) => Check::ok("eBPF steering", "the program loads"),
        Err(error) => Check::warning(
            "eBPF steering",
            error.to_string(),
            "`zdt serve --steering auto` goes on without: generations share plain SO_REUSEPORT \
             sockets, and the kernel's hash chooses the worker",
        ),
    }
}

fn bpffs(root: bool) -> Check {
    let mounted = std::fs::read_to_string("/proc/self/mounts").is_ok_and(|mounts| {
        mounts.lines().any(|line| line.split(' ').skip(1).take(2).eq(["/sys/fs/bpf", "bpf"]))
    });
    match (mounted, root) {
        (true, _) => Check::ok("bpffs", "mounted on /sys/fs/bpf"),
        (false, true) => {
            Check::ok("bpffs", "not on /sys/fs/bpf; the supervisor mounts one in its run directory")
        }
        (false, false) => Check::warning(
            "bpffs",
            "not mounted on /sys/fs/bpf",
            "steering maps are pinned there for the next supervisor: \
             `mount -t bpf bpf /sys/fs/bpf` as root",
        ),
    }
}

fn open_files(limit: std::io::Result<u64>) -> Check {
    match limit {
        Ok(limit) if limit >= ENOUGH_FILES => Check::ok("open files", format!("{limit} a process")),
        Ok(limit) => Check::warning(
            "open files",
            format!("{limit} a process"),
            format!(
                "a connection takes one, and a handoff holds some twice: raise the hard limit \
                 above {ENOUGH_FILES} (LimitNOFILE= in the systemd unit, or /etc/security/limits.conf)"
            ),
        ),
        Err(error) => Check::warning("open files", format!("unknown: {error}"), "see `ulimit -Hn`"),
    }
}

/// What is counted is what io_uring has, of all workers of one user, in a reload those of both generations.
fn locked_memory(args: &DoctorArgs) -> Check {
    let sources = Sources { file: args.config.clone(), ..Sources::default() };
    let (workers, buffers) = sources.load().map_or_else(
        |_| (1, crate::config::ReceiveBuffers::default().count), // which "worker user" complains of
        |settings| (u64::from(settings.worker_count()), settings.receive_buffers.count),
    );
    let each = Shape::new(RING_ENTRIES, buffers).locked_bytes();
    let capabilities = sys::kernel::effective_capabilities().unwrap_or(0);
    judge_locked_memory(capabilities, sys::process::locked_memory(), workers, each)
}

fn judge_locked_memory(
    capabilities: u64,
    limit: std::io::Result<Option<u64>>,
    workers: u64,
    each: u64,
) -> Check {
    let name = "locked memory";
    let advice = "the rings of all workers of one user count, in a reload those of both generations: raise the limit \
                  (LimitMEMLOCK=infinity in the systemd unit, --ulimit memlock=-1 in a container), or give the supervisor \
                  CAP_IPC_LOCK, whose workers' rings do not count";
    match limit {
        _ if capabilities >> CAP_IPC_LOCK & 1 == 1 => {
            Check::ok(name, "workers' rings do not count (CAP_IPC_LOCK)")
        }
        _ if capabilities >> CAP_SYS_RESOURCE & 1 == 1 => {
            Check::ok(name, "workers have no limit (CAP_SYS_RESOURCE)")
        }
        Ok(None) => Check::ok(name, "unlimited"),
        Ok(Some(limit)) => {
            let room = limit / each;
            let found = format!(
                "{} KiB, enough for the rings of {room} workers, with {} KiB each; {workers} are configured",
                limit >> 10,
                each >> 10
            );
            if room >= 2 * workers {
                Check::ok(name, found)
            } else if room >= workers {
                Check::warning(name, found, advice)
            } else {
                Check::error(name, found, advice)
            }
        }
        Err(error) => Check::warning(name, format!("limit unknown: {error}"), advice),
    }
}

fn worker_user(args: &DoctorArgs) -> Check {
    let name = "worker user";
    let sources = Sources { file: args.config.clone(), ..Sources::default() };
    match sources.load() {
        Err(error) => Check::error(name, error.to_string(), "mend the configuration"),
        Ok(settings) => match supervisor::find_user(&settings.user, settings.group.as_deref()) {
            Ok(None) => Check::ok(name, "this one, since it is not root"),
            Ok(Some((0, _))) => Check::warning(
                name,
                format!("{} is root", settings.user),
                "choose an unprivileged user; workers read what clients send",
            ),
            Ok(Some((uid, gid))) => {
                Check::ok(name, format!("{} (user {uid}, group {gid})", settings.user))
            }
            Err(message) => {
                Check::error(name, message, "create it, or name another with `user` or --user")
            }
        },
    }
}

fn control_groups(found: Result<sys::cgroup::Delegation, String>) -> Check {
    let name = "control groups";
    match found {
        Ok(delegation) => Check::ok(
            name,
            format!("worker_limits by groups below {}", delegation.path().display()),
        ),
        Err(why) => Check::warning(
            name,
            why,
            "worker_limits are kept by RLIMIT_DATA and by the workers themselves instead. For control groups: \
             version 2, and `Delegate=yes` in the systemd unit",
        ),
    }
}

fn seccomp(supported: bool) -> Check {
    let name = "seccomp";
    if supported {
        return Check::ok(name, "workers filter their system calls");
    }
    Check::warning(
        name,
        "this kernel has no seccomp filters that tell what they refuse",
        "workers do not start unless `seccomp = \"off\"` stands under [supervision]; better is a kernel \
         with CONFIG_SECCOMP_FILTER",
    )
}

fn certificates(args: &DoctorArgs) -> Check {
    let name = "certificates";
    let sources = Sources { file: args.config.clone(), ..Sources::default() };
    let settings = match sources.load() {
        Ok(settings) => settings,
        Err(error) => return Check::error(name, error.to_string(), "mend the configuration"),
    };
    let credentials = match Credentials::read(&settings.tls) {
        Ok(None) => return Check::ok(name, "none: TLS is not spoken"),
        Ok(Some(credentials)) => credentials,
        Err(error) => return Check::error(name, error, "see [tls] in the configuration"),
    };
    let now_s = sys::wall_clock_s().cast_signed();
    let validities: Vec<_> = credentials
        .validities()
        .map(|(path, validity)| (path.display().to_string(), validity))
        .collect();
    judge_validities(name, &validities, now_s)
}

/// The worst of them.
fn judge_validities(
    name: &'static str,
    validities: &[(String, Option<Validity>)],
    now_s: i64,
) -> Check {
    const DAY_S: i64 = 86_400;
    let mut soonest = i64::MAX;
    for (path, validity) in validities {
        let Some(validity) = validity else {
            return Check::warning(
                name,
                format!("{path}: its validity cannot be read"),
                "look at it with `openssl x509 -noout -dates -in FILE`",
            );
        };
        if validity.until_s < now_s || validity.from_s > now_s {
            let found = if validity.from_s > now_s { "is not valid yet" } else { "has expired" };
            return Check::error(
                name,
                format!("{path} {found}"),
                "clients refuse it: renew it, then `zdt reload`",
            );
        }
        soonest = soonest.min((validity.until_s - now_s) / DAY_S);
    }
    let found = format!("{} fit their keys; the next expires in {soonest} days", validities.len());
    if soonest < 14 {
        return Check::warning(name, found, "renew it, then `zdt reload`");
    }
    Check::ok(name, found)
}

fn run_dir(args: &DoctorArgs) -> Check {
    let name = "run directory";
    let path = match args.run_dir.path() {
        Ok(path) => path,
        Err(message) => return Check::error(name, message, "give --run-dir"),
    };
    if path.exists() {
        return match supervisor::check_run_dir(&path) {
            Ok(()) => Check::ok(name, format!("{} is private", path.display())),
            Err(error) => Check::error(name, error.to_string(), "see there"),
        };
    }
    let parent = path.parent().unwrap_or(Path::new("/"));
    let writable = nix::unistd::access(parent, nix::unistd::AccessFlags::W_OK).is_ok();
    if writable {
        Check::ok(name, format!("{} can be made", path.display()))
    } else {
        Check::error(
            name,
            format!("{} cannot be made in {}", path.display(), parent.display()),
            "choose another with --run-dir",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_is_an_error() {
        assert_eq!(kernel(Ok((6, 1))).level, Level::Ok);
        assert_eq!(kernel(Ok((5, 19))).level, Level::Error);
    }

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(privileges(true, u64::MAX).level, Level::Ok);
        let check = privileges(false, 1 << CAP_NET_ADMIN);
        assert_eq!(check.level, Level::Warning);
        assert!(check.found.contains("CAP_BPF") && !check.found.contains("CAP_NET_ADMIN"));
    }

    #[test]
    fn a_forbidden_io_uring_is_an_error() {
        let both = 1 << CAP_IPC_LOCK | 1 << CAP_SYS_ADMIN;
        assert_eq!(io_uring_allowed(0, None).level, Level::Ok);
        assert_eq!(io_uring_allowed(both, Some("1")).level, Level::Ok);
        assert_eq!(io_uring_allowed(1 << CAP_SYS_ADMIN, Some("1")).level, Level::Error);
        assert_eq!(io_uring_allowed(1 << CAP_IPC_LOCK, Some("1")).level, Level::Error);
        assert_eq!(io_uring_allowed(u64::MAX, Some("2")).level, Level::Error);
    }

    #[test]
    fn room_for_the_rings_of_both_generations_is_asked_for() {
        let level = |capabilities, limit, workers| {
            judge_locked_memory(capabilities, Ok(limit), workers, 300 << 10).level
        };
        assert_eq!(level(0, Some(8 << 20), 13), Level::Ok);
        assert_eq!(level(0, Some(8 << 20), 14), Level::Warning);
        assert_eq!(level(0, Some(8 << 20), 28), Level::Error);
        assert_eq!(level(1 << CAP_IPC_LOCK, Some(8 << 20), 128), Level::Ok);
        assert_eq!(level(1 << CAP_SYS_RESOURCE, Some(8 << 20), 128), Level::Ok);
        assert_eq!(level(0, None, 128), Level::Ok);
    }

    #[test]
    fn certificates_are_judged_by_the_worst() {
        const DAY_S: i64 = 86_400;
        let valid = |from_s, until_s| ("f".to_owned(), Some(Validity { from_s, until_s }));
        let level = |list: &[(String, Option<Validity>)]| {
            judge_validities("certificates", list, 1_000 * DAY_S).level
        };
        let good = valid(0, 2_000 * DAY_S);
        assert_eq!(level(std::slice::from_ref(&good)), Level::Ok);
        assert_eq!(level(&[good.clone(), valid(0, 1_007 * DAY_S)]), Level::Warning);
        assert_eq!(level(&[good.clone(), valid(0, 999 * DAY_S)]), Level::Error);
        assert_eq!(level(&[valid(1_001 * DAY_S, 2_000 * DAY_S), good.clone()]), Level::Error);
        assert_eq!(level(&[good, ("f".to_owned(), None)]), Level::Warning);
    }

    #[test]
    fn everything_but_ok_comes_with_advice() {
        for check in [
            kernel(Ok((4, 0))),
            privileges(false, 0),
            io_uring_allowed(0, Some("1")),
            io_uring_allowed(u64::MAX, Some("1")),
            open_files(Ok(100)),
            judge_locked_memory(0, Ok(Some(8 << 20)), 20, 300 << 10),
            judge_locked_memory(0, Ok(Some(64 << 20)), 20, 300 << 10),
            bpffs(false),
            seccomp(false),
            seccomp(true),
            control_groups(Err("none".to_owned())),
        ] {
            assert_eq!(check.level == Level::Ok, check.advice.is_none(), "{check:?}");
        }
    }
}
