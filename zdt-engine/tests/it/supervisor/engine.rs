//! A running `zdt serve` in a run directory of its own.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::lab::client::{self, Client};
use crate::lab::eventually;

/// How to start it.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `ZDT_FAULT`.
    pub faults: String,
    /// Text of the configuration file, behind what every test needs.
    pub config: String,
    /// More arguments.
    pub args: Vec<String>,
    /// Another program than the one under test.
    pub binary: Option<PathBuf>,
    /// More of the environment.
    pub environment: Vec<(String, String)>,
    /// Where it is started.
    pub directory: Option<PathBuf>,
    /// The run directory is a disk of its own, with so many bytes.
    pub disk_bytes: Option<u32>,
    /// No more memory than that may be locked, of all processes of a user together: it has not the capabilities to.
    pub locked_bytes: Option<u64>,
}

impl Options {
    /// With these faults.
    pub fn faults(list: &str) -> Options {
        Options { faults: list.to_owned(), ..Options::default() }
    }

    /// With this in the configuration file.
    pub fn config(text: &str) -> Options {
        Options { config: text.to_owned(), ..Options::default() }
    }

    /// With plain sockets.
    pub fn plain() -> Options {
        Options::default().and("--steering", "off")
    }

    /// And this variable.
    pub fn with(mut self, name: &str, value: &str) -> Options {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// And this flag.
    pub fn and(mut self, flag: &str, value: &str) -> Options {
        self.args.extend([flag.to_owned(), value.to_owned()]);
        self
    }
}

/// A supervisor under test. Dropping it ends it and all its workers.
pub struct Engine {
    dir: tempfile::TempDir,
    child: Child,
    options: Options,
    address: SocketAddr,
}

impl Engine {
    /// Starts one with two workers, and waits until it serves.
    #[track_caller]
    pub fn start(options: Options) -> Engine {
        Engine::launch(options).await_service()
    }

    /// Starts one that serves some time later.
    #[track_caller]
    pub fn launch(options: Options) -> Engine {
        let dir = tempfile::tempdir().expect("tempdir");
        write_config(dir.path(), &options.config, "127.0.0.1:0");
        if let Some(bytes) = options.disk_bytes {
            mount_disk(&dir.path().join("run"), bytes);
        }
        let child = spawn(dir.path(), &options);
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        Engine { dir, child, options, address }
    }

    /// Waits until one that was launched serves, and where.
    #[track_caller]
    pub fn await_service(mut self) -> Engine {
        self.wait_until_it_serves();
        let addresses = self.status()["socket_stats"]["addresses"].clone();
        self.address = addresses[0].as_str().expect("address").parse().expect("address");
        self
    }

    /// What the supervisor and its workers have logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).expect("log")
    }

    /// The public address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The run directory.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// The supervisor's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All processes that are, were or are to be supervisors of this run directory.
    pub fn supervisors(&self) -> Vec<u32> {
        supervisors_of(&self.run_dir())
    }

    /// Waits until there is one supervisor, which answers, and returns it.
    #[track_caller]
    pub fn only_supervisor(&mut self) -> u32 {
        let mut found = Vec::new();
        eventually("there is one supervisor", || {
            // A child that has ended is one until it is waited for.
            let _ = self.child.try_wait();
            found = self.supervisors();
            let status = self.zdt(&["status", "--json"]);
            let status: Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
            found.len() == 1 && status["pid"] == found[0] && status["status"] == "healthy"
        });
        found[0]
    }

    /// Rewrites the configuration file.
    pub fn configure(&self, text: &str) {
        write_config(self.dir.path(), text, &self.address.to_string());
    }

    /// Rewrites the configuration file with other addresses.
    pub fn configure_listen(&self, listen: &[SocketAddr]) {
        let list: Vec<String> = listen.iter().map(ToString::to_string).collect();
        write_config(self.dir.path(), "", &list.join("\", \""));
    }

    /// Runs another `zdt` command on the same run directory.
    #[track_caller]
    pub fn zdt(&self, args: &[&str]) -> Output {
        command(self.dir.path(), args).output().expect("run zdt")
    }

    /// Starts another `zdt` command on the same run directory.
    #[track_caller]
    pub fn zdt_in_background(&self, args: &[&str]) -> Child {
        command(self.dir.path(), args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run zdt")
    }

    /// Reloads and returns the verdict, whatever it is.
    #[track_caller]
    pub fn reload(&self) -> Value {
        verdict(&self.zdt(&["reload", "--json"]))
    }

    /// Reloads, and fails if that does.
    #[track_caller]
    pub fn reload_well(&self) -> Value {
        let verdict = self.reload();
        assert_eq!(verdict["reload_successful"], true, "{verdict}");
        assert_eq!(verdict["lost_connections"], 0, "{verdict}");
        verdict
    }

    /// The status.
    #[track_caller]
    pub fn status(&self) -> Value {
        let output = self.zdt(&["status", "--json"]);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// Processes of the workers of a generation.
    #[track_caller]
    pub fn workers(&self, generation: u64) -> Vec<u32> {
        let status = self.status();
        let workers = status["worker_stats"].as_object().expect("workers");
        workers
            .values()
            .filter(|worker| worker["generation"] == generation)
            .map(|worker| worker["pid"].as_u64().expect("pid") as u32)
            .collect()
    }

    /// Opens clients on `/ws/counter`, each at 1.
    #[track_caller]
    pub fn clients(&self, count: usize) -> Clients {
        let mut clients = Clients { clients: Vec::new(), at: 0 };
        for _ in 0..count {
            clients.clients.push(client::websocket(self.address, "/ws/counter"));
        }
        clients.count_all();
        clients
    }

    /// Sends the supervisor a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("signal");
    }

    /// Waits for the supervisor's end.
    #[track_caller]
    pub fn wait(&mut self) -> std::process::ExitStatus {
        let mut status = None;
        eventually("the supervisor ends", || {
            status = self.child.try_wait().expect("wait");
            status.is_some()
        });
        status.expect("status")
    }

    /// Starts another supervisor on the run directory of one that has ended, without faults.
    #[track_caller]
    pub fn restart(&mut self) {
        self.spawn_successor();
        self.wait_until_it_serves();
    }

    /// Starts another supervisor on the run directory of one that has ended, without faults.
    pub fn spawn_successor(&mut self) {
        self.spawn_successor_with("");
    }

    /// The same, with these faults.
    pub fn spawn_successor_with(&mut self, faults: &str) {
        let options = Options { faults: faults.to_owned(), ..self.options.clone() };
        self.child = spawn(self.dir.path(), &options);
    }

    /// Waits until the supervisor's generation serves with all its workers, and no reload runs.
    #[track_caller]
    pub fn wait_until_it_serves(&mut self) {
        eventually("the engine serves", || {
            if let Some(status) = self.child.try_wait().expect("wait") {
                panic!("the supervisor ended: {status}");
            }
            let output = self.zdt(&["status", "--json"]);
            let Ok(status) = serde_json::from_slice::<Value>(&output.stdout) else { return false };
            status["status"] == "healthy" && status["generation"].as_u64() > Some(0)
        });
    }

    /// Asks `/id` on a connection of its own.
    #[track_caller]
    pub fn ask(&self, id: &str) {
        ask(client::connect(self.address), id);
    }
}

/// One request on a connection that ends with it.
#[track_caller]
pub fn ask(mut stream: TcpStream, id: &str) {
    let request = format!("GET /id?id={id} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("write");
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut stream, &mut answer).expect("read");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(id), "{answer:?}");
}

/// The verdict that a `zdt reload --json` printed; its exit code must agree.
#[track_caller]
pub fn verdict(output: &Output) -> Value {
    let verdict: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("no verdict: {error}: {output:?}"));
    assert_eq!(verdict["reload_successful"], output.status.success(), "{output:?}");
    verdict
}

impl Drop for Engine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(80)..];
            eprintln!("the engine's log:\n{}", last.join("\n"));
        }
        // An application would outlive a supervisor that is killed.
        if self.options.args.iter().any(|flag| flag == "--app") {
            let _ = self.zdt(&["stop", "--now"]);
        }
        // The one that was started, and whoever has replaced it, or would now that it is dead.
        let _ = self.child.kill();
        let _ = self.child.wait();
        loop {
            let left = supervisors_of(&self.run_dir());
            if left.is_empty() {
                break;
            }
            for pid in left {
                let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
            }
            std::thread::yield_now();
        }
        // Workers survive their supervisor; by the numbers that it wrote down, if they still are.
        let state = std::fs::read(self.run_dir().join("state.json")).unwrap_or_default();
        let state: Value = serde_json::from_slice(&state).unwrap_or_default();
        for generation in state["generations"].as_array().into_iter().flatten() {
            for worker in generation["workers"].as_array().into_iter().flatten() {
                let pid = worker["pid"].as_i64().unwrap_or_default() as i32;
                let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
                if pid > 1 && name.is_ok_and(|name| name.trim() == "zdt-worker") {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
        }
        // So do applications of a gateway.
        let gateway = &state["gateway"];
        let ending = gateway["ending"].as_array().into_iter().flatten();
        for application in std::iter::once(&gateway["application"])
            .chain(gateway["starting"].as_array().into_iter().flatten())
            .chain(ending.map(|ending| &ending["application"]))
        {
            let pid = application["pid"].as_i64().unwrap_or_default() as i32;
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let start = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(19));
            if pid > 1 && start == Some(application["start_ticks"].to_string().as_str()) {
                let _ = nix::sys::signal::killpg(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        if !std::thread::panicking() && !self.options.faults.contains("worker.violate") {
            // Whatever a worker does must be in the table of its filter.
            let log = self.log();
            let refused = log.lines().find(|line| line.contains("seccomp: system call"));
            assert_eq!(refused, None);
        }
        let mounted = self.run_dir().join("bpf");
        if mounted.exists() {
            let _ = nix::mount::umount2(&mounted, nix::mount::MntFlags::MNT_DETACH);
        }
        if self.options.disk_bytes.is_some() {
            let _ = nix::mount::umount2(&self.run_dir(), nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

fn write_config(dir: &Path, text: &str, listen: &str) {
    let config = format!("listen = [\"{listen}\"]\nadmin = \"off\"\n{text}");
    std::fs::write(dir.join("zdt.toml"), config).expect("write the configuration");
}

fn command(dir: &Path, args: &[&str]) -> Command {
    command_of(Path::new(env!("CARGO_BIN_EXE_zdt")), dir, args)
}

fn command_of(binary: &Path, dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(binary);
    command.arg(args[0]).arg("--run-dir").arg(dir.join("run")).args(&args[1..]);
    command.stdin(Stdio::null());
    command
}

fn spawn(dir: &Path, options: &Options) -> Child {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"))
        .expect("open the log");
    let default_binary = Path::new(env!("CARGO_BIN_EXE_zdt"));
    let binary = options.binary.as_deref().unwrap_or(default_binary);
    let mut command = command_of(binary, dir, &["serve", "--config"]);
    command.arg(dir.join("zdt.toml"));
    if !options.config.contains("workers =") {
        command.args(["--workers", "2"]);
    }
    if let Some(directory) = &options.directory {
        command.current_dir(directory);
    }
    if let Some(bytes) = options.locked_bytes {
        limit_locked_memory(&mut command, bytes);
    }
    command
        .args(&options.args)
        .env("ZDT_FAULT", &options.faults)
        .env("RUST_LOG", "debug")
        .envs(options.environment.iter().map(|(name, value)| (name, value)))
        .env_remove("WORKER_COUNT")
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("start the supervisor")
}

/// Takes the capabilities that lift the limit, too.
fn limit_locked_memory(command: &mut Command, bytes: u64) {
    use std::os::unix::process::CommandExt;
    const CAP_IPC_LOCK: libc::c_ulong = 14;
    const CAP_SYS_RESOURCE: libc::c_ulong = 24;
    let limit = move || {
        use nix::sys::resource::{Resource, setrlimit};
        setrlimit(Resource::RLIMIT_MEMLOCK, bytes, bytes)?;
        for capability in [CAP_IPC_LOCK, CAP_SYS_RESOURCE] {
            // SAFETY: integers only. What is executed as root has no more than this set.
            if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: system calls only, between fork and exec.
    unsafe { command.pre_exec(limit) };
}

/// Requests on connections of their own, one after the other, until it is ended; none may fail.
pub struct Storm {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<u64>>,
}

impl Storm {
    /// Two clients.
    pub fn begin(address: SocketAddr) -> Storm {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |number: u64| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    ask(client::connect(address), &format!("{number}-{count}"));
                    count += 1;
                }
                count
            })
        };
        let threads = (0..2).map(client).collect();
        Storm { stop, threads }
    }

    /// Ends it; how many requests there were.
    #[track_caller]
    pub fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().expect("no request failed")).sum()
    }
}

/// Clients that count along with their session; no number may be skipped, repeated or lost.
pub struct Clients {
    clients: Vec<Client>,
    at: u64,
}

impl Clients {
    /// Every client gets its next number. Returns how many were answered by each generation.
    #[track_caller]
    pub fn count_all(&mut self) -> std::collections::BTreeMap<u64, usize> {
        self.at += 1;
        let mut by_generation = std::collections::BTreeMap::new();
        for client in &mut self.clients {
            let (n, generation) = client::count(client);
            assert_eq!(n, self.at, "generation {generation}");
            *by_generation.entry(generation).or_default() += 1;
        }
        by_generation
    }

    /// Every client gets its next number from this generation.
    #[track_caller]
    pub fn count_all_in(&mut self, generation: u64) {
        let by_generation = self.count_all();
        assert_eq!(by_generation.keys().copied().collect::<Vec<_>>(), [generation]);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Asks every client's server for the next number; returns how many are left, and keeps those.
    #[track_caller]
    pub fn count_survivors(&mut self) -> usize {
        self.at += 1;
        let at = self.at;
        self.clients.retain_mut(|client| {
            let answer =
                client.send(tungstenite::Message::text("tick")).and_then(|()| client.read());
            match answer {
                Ok(tungstenite::Message::Text(text)) => {
                    let answer: Value = serde_json::from_str(&text).expect("JSON");
                    assert_eq!(answer["n"].as_u64(), Some(at), "{text}");
                    true
                }
                Ok(other) => panic!("not an answer: {other:?}"),
                Err(tungstenite::Error::Io(error)) => {
                    let silent = [std::io::ErrorKind::WouldBlock, std::io::ErrorKind::TimedOut];
                    assert!(!silent.contains(&error.kind()), "a client waits in vain: {error}");
                    false
                }
                Err(_) => false,
            }
        });
        self.clients.len()
    }

    /// Takes one out.
    pub fn pop(&mut self) -> Client {
        self.clients.pop().expect("a client")
    }
}

/// Makes the run directory, on a small disk of its own.
fn mount_disk(run_dir: &Path, bytes: u32) {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().mode(0o700).create(run_dir).expect("run directory");
    let options = format!("size={bytes},mode=0700");
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("zdt"), run_dir, Some("tmpfs"), flags, Some(options.as_str()))
        .expect("mount a tmpfs");
}

/// Processes that serve this run directory, dead ones aside.
fn supervisors_of(run_dir: &Path) -> Vec<u32> {
    let is_one = |pid: u32| {
        let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let arguments = read("cmdline");
        let arguments: Vec<&[u8]> = arguments.split(|byte| *byte == 0).collect();
        let stat = String::from_utf8_lossy(&read("stat")).into_owned();
        let is_zombie = stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" Z"));
        let run_dir = run_dir.as_os_str().as_encoded_bytes();
        arguments.contains(&&b"serve"[..]) && arguments.contains(&run_dir) && !is_zombie
    };
    let processes = std::fs::read_dir("/proc").expect("proc");
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| is_one(*pid)).collect()
}

/// Waits for a child with a bound.
#[track_caller]
pub fn output_of(mut child: Child) -> Output {
    eventually("a command ends", || child.try_wait().expect("wait").is_some());
    child.wait_with_output().expect("output")
}
