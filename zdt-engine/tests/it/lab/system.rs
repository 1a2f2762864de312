//! What tests of the whole system share: reloads meanwhile, descriptors and memory of a process.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use serde_json::Value;

use crate::supervisor::engine::Engine;

use super::eventually;

/// Reloads, `pause` between two, for as long as `work` takes. Returns what that returned, and how
/// many reloads there were; every one of them succeeded and lost nothing.
#[track_caller]
pub fn while_reloading<T: Send>(
    engine: &Engine,
    pause: Duration,
    work: impl FnOnce() -> T + Send,
) -> (T, usize) {
    let (done, is_done): (Sender<()>, _) = channel();
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || {
            let _ends_with_the_work = done;
            work()
        });
        let mut reloads = 0;
        while is_done.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            engine.reload_well();
            reloads += 1;
        }
        let result = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (result, reloads)
    })
}

/// Waits until nothing of an earlier generation is left: processes, listeners, reload.
#[track_caller]
pub fn wait_until_settled(engine: &Engine) -> Value {
    let mut status = Value::Null;
    eventually("earlier generations are gone", || {
        status = engine.status();
        let workers = status["worker_stats"].as_object().map_or(0, |workers| workers.len());
        status["status"] == "healthy"
            && status["generations"].as_array().is_some_and(|all| all.len() == 1)
            && status["socket_stats"]["listeners"] == workers
    });
    status
}

/// Open descriptors of a process, with what they are.
#[track_caller]
pub fn descriptors(pid: u32) -> Vec<String> {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("descriptors")
        .filter_map(|entry| std::fs::read_link(entry.expect("descriptor").path()).ok())
        .map(|link| link.to_string_lossy().into_owned())
        .collect()
}

/// Threads of a process.
#[track_caller]
pub fn threads(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads").count()
}

/// Memory of a process, in bytes: its own and its share of what it shares, but not of files, since
/// every other test maps the same program.
#[track_caller]
pub fn pss(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup");
    let kib = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect(name);
        line.split_ascii_whitespace().next().and_then(|n| n.parse().ok()).expect("KiB")
    };
    (kib("Pss_Anon:") + kib("Pss_Shmem:")) << 10
}

/// A figure of the status, summed up over all workers.
#[track_caller]
pub fn sum(engine: &Engine, figure: &str) -> u64 {
    let status = engine.status();
    let workers = status["worker_stats"].as_object().expect("workers");
    workers.values().map(|worker| worker[figure].as_u64().expect("figure")).sum()
}
