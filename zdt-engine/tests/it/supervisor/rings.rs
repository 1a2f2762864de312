//! Rings count as locked memory, of all processes of a user together: that of workers should not, and where it has to, they
//! wait for a while, since the kernel gives it back late.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use nix::fcntl::{Flock, FlockArg};
use zdt_engine::config::RING_ENTRIES;
use zdt_engine::sys::birth::Birth;
use zdt_engine::sys::ring::Shape;
use zdt_engine::uring::{Ring, SetupError};

use super::engine::{Engine, Options};
use crate::lab::eventually;
use crate::skip::have_root;

/// Set in the process that takes all that may be locked.
const HOARD: &str = "ZDT_TEST_HOARD";

/// What is to be locked of a user's memory by default (`DefaultLimitMEMLOCK=`).
const LOCKED_BYTES: u64 = 8 << 20;

/// A user who has none of the other tests' workers.
struct User {
    name: &'static str,
    id: u32,
}

const GAMES: User = User { name: "games", id: 5 };
const NEWS: User = User { name: "news", id: 9 };
const UUCP: User = User { name: "uucp", id: 10 };

impl User {
    /// Nobody else uses up the user's locked memory, or waits for it, while this is held: another run of these tests, say.
    #[must_use]
    fn alone(&self) -> Flock<std::fs::File> {
        let path = std::env::temp_dir().join(format!("zdt-test-user-{}.lock", self.name));
        let file = std::fs::File::create(path).expect("create");
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error).expect("lock")
    }
}

/// A process of that user who has so many rings, as large as those of workers, that there is no room for another two.
struct Hoard(Child);

impl Hoard {
    /// Beside so many of others.
    fn of(user: &User, others: u64) -> Hoard {
        let wanted = LOCKED_BYTES / Shape::new(RING_ENTRIES, 1).locked_bytes() - others;
        let found = nix::unistd::User::from_name(user.name).expect("look-up").expect(user.name);
        assert_eq!(found.uid.as_raw(), user.id);
        // Executable for everybody, wherever this one lies.
        let itself = std::fs::File::open("/proc/self/exe").expect("this program");
        let number = std::os::fd::AsRawFd::as_raw_fd(&itself);
        let mut command = Command::new(format!("/proc/self/fd/{number}"));
        command
            .args(["--exact", "supervisor::rings::the_hoard", "--nocapture"])
            .env(HOARD, wanted.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let user = Some((user.id, user.id));
        Birth { user, open_files: Some(4_096), ..Birth::default() }.of(&mut command);
        let mut child = command.spawn().expect("start this program as another user");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let said: Vec<String> =
            lines.map_while(Result::ok).take_while(|line| line != "full").collect();
        assert!(child.try_wait().expect("wait").is_none(), "it has ended: {said:?}");
        Hoard(child)
    }
}

impl Drop for Hoard {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// No test of its own: what [`Hoard`] executes.
#[test]
fn the_hoard() {
    let Some(wanted) = std::env::var_os(HOARD) else {
        let ring = Ring::new(8, 2, 64).expect("one is to be had");
        assert_eq!(ring.outstanding(), 0);
        return;
    };
    use nix::sys::resource::{Resource, setrlimit};
    setrlimit(Resource::RLIMIT_MEMLOCK, LOCKED_BYTES, LOCKED_BYTES).expect("no higher limit");
    let wanted: usize = wanted.to_str().and_then(|text| text.parse().ok()).expect("a number");
    let mut rings = Vec::new();
    let error = loop {
        match Ring::new(RING_ENTRIES, 1, 64) {
            Ok(ring) => rings.push(ring),
            Err(error) if rings.len() >= wanted => break error,
            // Others, which have ended, have it still.
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(5)),
        }
    };
    assert!(matches!(error, SetupError::Memory { .. }), "{error}");
    assert!(error.to_string().contains("8192 KiB may be locked memory"), "{error}");
    let mut out = std::io::stdout();
    out.write_all(b"\nfull\n").and_then(|()| out.flush()).expect("write");
    let _ = std::io::stdin().read_line(&mut String::new());
    std::process::exit(0);
}

/// The engine, whose workers are this user's.
fn options(user: &User) -> Options {
    Options::config("[receive_buffers]\ncount = 16\n").and("--user", user.name)
}

#[test]
fn workers_rings_take_nothing_of_the_locked_memory_of_their_user() {
    if !have_root("supervisor::rings") {
        return;
    }
    let _alone = GAMES.alone();
    let _hoard = Hoard::of(&GAMES, 0);
    let engine = Engine::start(options(&GAMES));
    let mut clients = engine.clients(4);
    engine.reload_well();
    clients.count_all_in(2);
    for pid in engine.workers(2) {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        assert!(status.contains("\nUid:\t5\t5\t5\t5\n"), "{status}");
        assert!(status.contains("\nCapEff:\t0000000000000000\n"), "{status}");
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
        let own = std::fs::read_to_string("/proc/self/limits").expect("limits");
        let locked = |limits: &str| {
            limits.lines().find(|line| line.starts_with("Max locked memory")).map(str::to_owned)
        };
        assert_eq!(locked(&limits), locked(&own), "no more may be locked than before");
    }
    let pid = engine.workers(2)[0];
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid as i32),
        nix::sys::signal::Signal::SIGKILL,
    )
    .expect("kill");
    eventually("another is there", || {
        let now = engine.workers(2);
        now.len() == 2 && !now.contains(&pid)
    });
    engine.ask("it-serves-on");
    let log = engine.log();
    assert!(!log.contains("io_uring"), "{log}");
}

/// The engine, whose workers have to make their rings themselves.
fn counted(user: &User) -> Options {
    Options { locked_bytes: Some(LOCKED_BYTES), ..options(user) }
}

#[test]
fn a_worker_waits_for_locked_memory_that_is_yet_to_be_given_back() {
    if !have_root("supervisor::rings") {
        return;
    }
    let _alone = NEWS.alone();
    let hoard = Hoard::of(&NEWS, 0);
    let engine = Engine::launch(counted(&NEWS));
    eventually("a worker waits", || engine.log().contains("8192 KiB may be locked memory"));
    drop(hoard);
    let engine = engine.await_service();
    assert_eq!(engine.status()["totals"]["crashes"], 0, "it has waited");
    engine.reload_well();
}

#[test]
fn a_worker_without_locked_memory_says_what_to_do() {
    if !have_root("supervisor::rings") {
        return;
    }
    let _alone = UUCP.alone();
    let engine = Engine::start(counted(&UUCP));
    let _hoard = Hoard::of(&UUCP, 2);
    let verdict = engine.reload();
    assert_eq!(verdict["outcome"], "failed_before_flip", "{verdict}");
    let error = verdict["error"].to_string();
    assert!(error.contains("CAP_IPC_LOCK") && error.contains("LimitMEMLOCK="), "{verdict}");
    engine.ask("the-old-ones-serve-on");
}
