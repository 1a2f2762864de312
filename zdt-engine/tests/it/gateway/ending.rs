//! The old application ends as soon as no worker has anything left of it, whichever workers have come and gone
//! meanwhile; at a stop it has as long for its end as at a swap.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::takeover::Scene;
use super::{begin, get, read_answer};
use crate::lab::eventually;
use crate::supervisor::engine::{Engine, Options, verdict};

/// Longer than any test waits.
const STOP_MS: u64 = 600_000;

#[test]
fn workers_that_began_after_a_swap_do_not_keep_the_old_application() {
    for how in ["reload", "rolling", "crash", "supervisor"] {
        let Some(mut scene) = Scene::with("gateway::ending", "", "", STOP_MS) else { return };
        let old = scene.serving();
        // Half a request is at the old one.
        let head = "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4";
        let mut unfinished = begin(scene.engine.address(), head);
        unfinished.write_all(b"ab").expect("write");
        eventually("it is there", || {
            let stats = scene.engine.zdt(&["queue", "stats", "--json"]);
            let stats: serde_json::Value = serde_json::from_slice(&stats.stdout).expect("JSON");
            stats["upstreams"][0]["outstanding"] == 1
        });
        scene.swap_well();
        match how {
            "reload" => drop(scene.engine.reload_well()),
            "rolling" => {
                let output = scene.engine.zdt(&["reload", "--json", "--strategy", "rolling"]);
                let verdict = verdict(&output);
                assert_eq!(verdict["reload_successful"], true, "{verdict}");
            }
            "supervisor" => {
                scene.engine.signal(Signal::SIGKILL);
                scene.engine.wait();
                scene.engine.restart();
            }
            _ => {
                let mut idle = None;
                eventually("one of them has nothing to do", || {
                    let status = scene.engine.status();
                    let workers = status["worker_stats"].as_object().cloned().unwrap_or_default();
                    let is_busy = |one: &serde_json::Value| {
                        let upstreams = one["gateway"]["upstreams"].as_array();
                        upstreams.is_some_and(|all| all.iter().any(|up| up["outstanding"] == 1))
                    };
                    let rest = workers.values().find(|one| !is_busy(one));
                    idle = rest.and_then(|one| one["pid"].as_u64());
                    workers.len() == 2 && workers.values().any(is_busy)
                });
                let idle = idle.expect("the other one");
                assert!(scene.engine.workers(1).contains(&(idle as u32)), "{idle} is a worker");
                kill(Pid::from_raw(idle as i32), Signal::SIGKILL).expect("kill");
                eventually("there is another one", || {
                    let workers = scene.engine.workers(1);
                    workers.len() == 2 && !workers.contains(&(idle as u32))
                });
            }
        }
        assert!(scene.processes().contains(&old), "{how}: it has something to do");
        unfinished.write_all(b"cd").expect("write");
        assert_eq!(read_answer(&mut unfinished).text(), "abcd", "{how}");
        drop(unfinished);
        eventually(&format!("{how}: the old one ends"), || !scene.processes().contains(&old));
        scene.end();
    }
}

#[test]
fn at_a_stop_the_application_has_its_time_and_a_second_stop_cuts_it_short() {
    for is_cut_short in [false, true] {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).expect("mode");
        let path = |name: &str| dir.path().join(name).display().to_string();
        let (told, go, done) = (path("told"), path("go"), path("done"));
        // It answers, and finishes its work once it is told to end and that can be done.
        let program = path("application.py");
        let text = format!(
            "import http.server, os, signal, threading, time\n\
             server = http.server.HTTPServer(('127.0.0.1', int(os.environ['PORT'])), http.server.SimpleHTTPRequestHandler)\n\
             def end(*_):\n    open({told:?}, 'w')\n    while not os.path.exists({go:?}): time.sleep(.01)\n    open({done:?}, 'w')\n    os._exit(0)\n\
             signal.signal(signal.SIGTERM, end)\n\
             server.serve_forever()\n"
        );
        std::fs::write(&program, text).expect("write");
        let config = format!(
            "workers = 1\n[gateway.app]\nstop_timeout_ms = {STOP_MS}\ncommand = \"cd {} && exec python3 {program}\"",
            dir.path().display()
        );
        if !crate::lab::programs::have("gateway::ending", "python3", "--version") {
            return;
        }
        let options = Options::config(&config).and("--steering", "off").and("--service", "proxy");
        let mut engine = Engine::start(options);
        assert_eq!(get(engine.address(), "/").status, 200);
        let application = engine.status()["applications"][0]["pid"].as_i64().expect("a number");
        engine.signal(Signal::SIGTERM);
        let exists = |path: &str| std::path::Path::new(path).exists();
        eventually("it is told to end", || exists(&told));
        if is_cut_short {
            engine.signal(Signal::SIGQUIT);
        } else {
            // Longer than the two seconds that it has when everything ends now.
            std::thread::sleep(std::time::Duration::from_millis(2_500));
            std::fs::write(&go, "").expect("write");
        }
        assert!(engine.wait().success());
        assert_eq!(exists(&done), !is_cut_short);
        assert!(!exists(&format!("/proc/{application}")), "nothing of it is left");
    }
}
