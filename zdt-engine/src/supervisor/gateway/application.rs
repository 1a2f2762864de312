//! One application: a group of processes that this supervisor has started, or one before it.
//!
//! It outlives its supervisor, and the next one must find it. So it does nothing before it is written down: it waits
//! at a pipe, and ends by itself if nobody who could write it down is left.
//!
//! Must not know: what it serves, when it is to end.

use std::io::{PipeWriter, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::config::{AppOptions, ENVIRONMENT, Form, UpstreamTarget};
use crate::supervisor::successor::PREDECESSOR;
use crate::supervisor::takeover::store;
use crate::supervisor::workers::process::{Process, User};
use crate::sys;

/// Waits for the word to begin, and becomes the application's command. Nobody left to say it is the end of input.
const GATE: &str = "read -r go && exec /bin/sh -c \"$1\" </dev/null";

/// See the module.
#[derive(Debug)]
pub(in crate::supervisor) struct Application {
    process: Process,
    /// With the number of the process a name that no other process has.
    start_ticks: u64,
    pub url: String,
    /// The swap that brought it.
    pub generation: u64,
    /// It waits for a word here.
    gate: Option<PipeWriter>,
}

impl Application {
    /// Starts one. It waits until [`Application::begin`].
    pub fn start(
        options: &AppOptions,
        owner: User,
        generation: u64,
    ) -> Result<(Application, UpstreamTarget), String> {
        let explain = |error: std::io::Error| format!("cannot start the application: {error}");
        let port = free_port().map_err(explain)?;
        let url = format!("http://127.0.0.1:{port}");
        let target = UpstreamTarget::parse(&url)?;
        let (gate, word) = std::io::pipe().map_err(explain)?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", GATE, "sh", &options.command]).stdin(Stdio::from(gate));
        command.env("PORT", port.to_string()).env("ZDT", "1").process_group(0);
        for variable in ENVIRONMENT.iter().filter(|variable| variable.form == Form::Secret) {
            // The supervisor's own; the application has the rest of its environment.
            command.env_remove(variable.name);
        }
        command.env_remove(PREDECESSOR);
        if let Some((user, group)) = owner {
            as_user(&mut command, user, group);
        }
        let process = Process::start_command(&mut command).map_err(explain)?;
        let pid = process.pid();
        let start_ticks = sys::process::start_ticks(pid).map_err(explain)?;
        tracing::info!(pid, port, generation, "started the application");
        fault_point!("application.started");
        Ok((Application { process, start_ticks, url, generation, gate: Some(word) }, target))
    }

    /// It is written down, and may begin.
    pub fn begin(&mut self) {
        let Some(mut gate) = self.gate.take() else { return };
        fault_point!("application.written");
        // If it is dead already, that is noticed by whoever waits for its answer.
        let _ = gate.write_all(b"go\n");
    }

    /// Takes over one that another supervisor has started; `None` if it is dead. What is left of its group is ended
    /// then.
    pub fn adopt(saved: &store::Application) -> Option<Application> {
        let store::Application { pid, start_ticks, ref url, generation } = *saved;
        // First the handle, then the proof: whoever had the number when the handle was made has it still, or is dead.
        let process = Process::adopt(pid).ok();
        let is_same = sys::process::start_ticks(pid).is_ok_and(|ticks| ticks == start_ticks);
        match process.filter(|process| is_same && !process.has_ended()) {
            Some(process) => {
                Some(Application { process, start_ticks, url: url.clone(), generation, gate: None })
            }
            None => {
                end_rest(pid, start_ticks);
                None
            }
        }
    }

    /// For the next supervisor.
    pub fn durable(&self) -> store::Application {
        store::Application {
            pid: self.process.pid(),
            start_ticks: self.start_ticks,
            url: self.url.clone(),
            generation: self.generation,
        }
    }

    /// The process that leads its group.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Sends the whole group a signal.
    pub fn signal(&self, signal: Signal) {
        if !self.process.has_ended() {
            signal_group(self.pid(), signal);
        }
    }

    /// How it ended, if it has. What is left of its group has ended then, too.
    pub fn end(&mut self) -> Option<String> {
        if !self.process.has_ended() {
            return None;
        }
        end_rest(self.pid(), self.start_ticks);
        Some(explained(self.process.reap()))
    }
}

/// What the shell means by it (sh(1), EXIT STATUS).
fn explained(how: String) -> String {
    match how.as_str() {
        "exited with code 126" => {
            format!(
                "{how} (its command may not be executed: gateway.app.user says as whom it runs)"
            )
        }
        "exited with code 127" => format!("{how} (its command is not found)"),
        _ => how,
    }
}

/// A port that nobody uses now.
fn free_port() -> std::io::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// As a service manager does it.
fn as_user(command: &mut Command, user: u32, group: u32) {
    command.uid(user).gid(group);
    if let Ok(Some(known)) = nix::unistd::User::from_uid(user.into()) {
        command.env("HOME", known.dir).env("USER", &known.name).env("LOGNAME", known.name);
    }
}

fn signal_group(leader: u32, signal: Signal) {
    if let Ok(group @ 2..) = i32::try_from(leader) {
        // Nobody is left, or they are somebody else's now.
        let _ = killpg(Pid::from_raw(group), signal);
    }
}

/// Kills those of a group whose leader is dead. Its number is not given to another process while the group has members.
fn end_rest(leader: u32, start_ticks: u64) {
    let is_another = sys::process::start_ticks(leader).is_ok_and(|ticks| ticks != start_ticks);
    if !is_another {
        signal_group(leader, Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn started(command: &str) -> Application {
        let options = AppOptions { command: command.to_owned(), ..AppOptions::default() };
        Application::start(&options, None, 1).unwrap().0
    }

    #[track_caller]
    fn ending(application: &mut Application) -> String {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            assert!(Instant::now() < until, "it goes on");
            match application.end() {
                Some(how) => return how,
                None => std::thread::yield_now(),
            }
        }
    }

    #[test]
    fn it_begins_only_when_it_is_told_to() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark");
        let command = format!("echo $PORT > {}; exit 7", mark.display());
        let mut never = started(&command);
        never.gate = None; // as if its supervisor had been killed
        assert_eq!(ending(&mut never), "exited with code 1");
        assert!(!mark.exists());
        let mut begun = started(&command);
        begun.begin();
        assert_eq!(ending(&mut begun), "exited with code 7");
        let port = std::fs::read_to_string(mark).unwrap();
        assert_eq!(begun.url, format!("http://127.0.0.1:{}", port.trim()));
    }

    #[test]
    fn another_supervisor_knows_it_by_number_and_start() {
        let mut first = started("exec sleep 1000");
        first.begin();
        let saved = first.durable();
        assert!(
            Application::adopt(&store::Application { start_ticks: 1, ..saved.clone() }).is_none()
        );
        assert!(first.end().is_none(), "it is nobody's but its own");
        let mut second = Application::adopt(&saved).unwrap();
        second.signal(Signal::SIGTERM);
        assert!(ending(&mut second).contains("SIGTERM"));
        assert!(Application::adopt(&saved).is_none());
    }

    #[test]
    fn nothing_of_a_group_outlives_its_leader() {
        let mut application = started("(trap '' TERM; sleep 1000) & exit 0");
        application.begin();
        let group = application.pid() as i32;
        assert_eq!(ending(&mut application), "exited with code 0");
        let until = Instant::now() + Duration::from_secs(20);
        // Killed, they are gone once whoever inherited them has looked.
        let is_alive = || {
            std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
                let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
                let fields: Vec<&str> = stat
                    .rsplit_once(") ")
                    .map_or(Vec::new(), |(_, rest)| rest.split(' ').collect());
                fields.len() > 2 && fields[2] == group.to_string() && fields[0] != "Z"
            })
        };
        while is_alive() {
            assert!(Instant::now() < until, "a child goes on");
            std::thread::yield_now();
        }
    }
}
