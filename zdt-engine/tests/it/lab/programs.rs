//! Programs of other people as clients: found, started, followed to their end.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use zdt_engine::service::demo::big_byte;

use super::{PATIENCE, eventually};
use crate::skip::skip;

/// True if the program is there; false with a line that says so. The argument is one that succeeds at once.
pub fn have(test: &str, program: &str, argument: &str) -> bool {
    let there = Command::new(program).arg(argument).output().is_ok_and(|out| out.status.success());
    if !there {
        skip(test, &format!("needs {program}"));
    }
    there
}

/// True if curl is there; false with a line that says so.
pub fn have_curl(test: &str) -> bool {
    have(test, "curl", "--version")
}

/// The Python with the clients that `cargo xtask test` fetches; `None`, with a line that says so,
/// where there is none.
pub fn python(test: &str) -> Option<PathBuf> {
    fetched(test, "ZDT_TEST_PYTHON")
}

/// The same, if it has that module, too.
pub fn python_with(test: &str, module: &str) -> Option<PathBuf> {
    let python = python(test)?;
    let import = Command::new(&python).args(["-c", &format!("import {module}")]).output();
    if import.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    skip(test, &format!("needs {module} in {}", python.display()));
    None
}

/// The modules for Node that `cargo xtask test` fetches; `None`, with a line that says so, where there are none.
pub fn node_modules(test: &str) -> Option<PathBuf> {
    if !have(test, "node", "--version") {
        return None;
    }
    fetched(test, "ZDT_TEST_NODE_MODULES")
}

fn fetched(test: &str, variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        skip(test, &format!("needs {variable}, which `cargo xtask test` sets"));
    }
    path
}

/// A curl that reads no user's configuration and no proxy from the environment, fails with the server, and
/// ends some time.
pub fn curl(arguments: &[&str]) -> Command {
    let mut command = Command::new("curl");
    command.args(["-q", "--noproxy", "*", "-sS", "--fail", "--max-time", "60"]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A child that does not outlive its test.
pub struct Guarded(pub Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The lines that a program writes, so that they can be awaited for a time.
pub fn lines_of(output: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        let all = BufReader::new(output).lines().map_while(Result::ok);
        all.map(|line| sender.send(line)).take_while(Result::is_ok).for_each(drop);
    });
    lines
}

/// A client that says `round` after each round, and ends with the one in which its standard input has ended.
pub struct Rounds {
    child: Guarded,
    lines: Receiver<String>,
}

impl Rounds {
    /// Starts it, and waits for its first round.
    #[track_caller]
    pub fn begin(command: &mut Command) -> Rounds {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = Guarded(command.spawn().expect("run the client"));
        let lines = lines_of(child.0.stdout.take().expect("stdout"));
        let mut rounds = Rounds { child, lines };
        rounds.next();
        rounds
    }

    /// Waits for another one.
    #[track_caller]
    pub fn next(&mut self) {
        let line = self.lines.recv_timeout(PATIENCE * 2).expect("another round of the client");
        assert_eq!(line, "round");
    }

    /// Lets it end. It must be content.
    #[track_caller]
    pub fn end(mut self) {
        drop(self.child.0.stdin.take());
        self.lines.iter().for_each(drop);
        let mut status = None;
        eventually("the client ends", || {
            status = self.child.0.try_wait().expect("wait");
            status.is_some()
        });
        assert!(status.expect("status").success(), "{status:?}");
    }
}

/// Reads the demo's `/big?n=TOTAL` from a client's output, and calls back `times` times between two reads,
/// `step` bytes apart.
#[track_caller]
pub fn read_big(
    mut client: Guarded,
    total: usize,
    step: usize,
    times: usize,
    mut between: impl FnMut(),
) {
    let mut stdout = client.0.stdout.take().expect("stdout");
    let mut buffer = vec![0; 64 << 10];
    let (mut at, mut called) = (0, 0);
    loop {
        let count = stdout.read(&mut buffer).expect("read");
        if count == 0 {
            break;
        }
        let wrong = (at..).zip(&buffer[..count]).find(|&(at, &byte)| byte != big_byte(at as u64));
        assert_eq!(wrong, None, "after {called} times");
        at += count;
        if at > (called + 1) * step && called < times {
            between();
            called += 1;
        }
    }
    assert_eq!((at, called), (total, times));
    assert!(client.0.wait().expect("wait").success());
}
