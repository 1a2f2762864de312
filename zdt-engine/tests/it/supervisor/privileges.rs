//! What workers are born with, and what they may do, read back from `/proc`.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::engine::{Engine, Options, output_of, verdict};
use crate::lab::eventually;
use crate::skip::have_root;

/// The nice value of a process' first thread, as proc(5) has it.
fn nice(pid: u32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("stat").1.split(' ').collect();
    fields[16].parse().expect("nice")
}

#[test]
fn green_starts_at_a_lower_priority() {
    if !have_root("supervisor::privileges::green_starts_at_a_lower_priority") {
        return;
    }
    let engine = Engine::start(Options {
        config: "[supervision]\ngreen_nice = 7\n".into(),
        ..Options::faults("worker.start@2=stop")
    });
    let own = nice(engine.pid());
    assert!(engine.workers(1).into_iter().all(|pid| nice(pid) == own), "there was no blue");
    let reload = engine.zdt_in_background(&["reload", "--json"]);
    eventually("green is there", || engine.workers(2).len() == 2);
    for green in engine.workers(2) {
        assert_eq!(nice(green), own + 7);
        kill(Pid::from_raw(green as i32), Signal::SIGCONT).expect("signal");
    }
    let verdict = verdict(&output_of(reload));
    assert_eq!(verdict["outcome"], "committed", "{verdict}");
    assert!(engine.workers(2).into_iter().all(|pid| nice(pid) == own));
}
