//! What workers are born with, and what they may do, read back from `/proc`.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::engine::{Engine, Options, output_of, verdict};
use crate::lab::eventually;
use crate::skip::have_root;

/// capabilities(7): limits above the inherited ones.
const CAP_SYS_RESOURCE: u32 = 24;

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
        eventually("it has come to the fault point", || status_line(green, "State")[0] == "T");
        assert_eq!(nice(green), own + 7);
        kill(Pid::from_raw(green as i32), Signal::SIGCONT).expect("signal");
    }
    let verdict = verdict(&output_of(reload));
    assert_eq!(verdict["outcome"], "committed", "{verdict}");
    assert!(engine.workers(2).into_iter().all(|pid| nice(pid) == own));
}

/// A line of `/proc/PID/status`, in words.
fn status_line(pid: u32, name: &str) -> Vec<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    line.expect(name).split_whitespace().map(str::to_owned).collect()
}

#[test]
fn workers_have_no_privileges() {
    if !have_root("supervisor::privileges::workers_have_no_privileges") {
        return;
    }
    let engine = Engine::start(Options::config("group = \"daemon\"\n"));
    engine.reload_well();
    let workers = engine.workers(2);
    assert_eq!(workers.len(), 2);
    for pid in workers {
        assert_eq!(status_line(pid, "Uid"), ["65534"; 4]);
        assert_eq!(status_line(pid, "Gid"), ["1"; 4]);
        assert!(status_line(pid, "Groups").is_empty());
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status_line(pid, set), ["0000000000000000"], "{set}");
        }
        assert_eq!(status_line(pid, "NoNewPrivs"), ["1"]);
        assert_eq!(status_line(pid, "Seccomp"), ["2"], "a filter");
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
        let core = limits.lines().find(|line| line.starts_with("Max core file size"));
        assert_eq!(
            core.map(|line| line.split_whitespace().skip(4).take(2).collect()),
            Some(vec!["0"; 2])
        );
        let locked = limits.lines().find(|line| line.starts_with("Max locked memory"));
        let locked: Vec<&str> =
            locked.expect("a line").split_whitespace().skip(3).take(2).collect();
        let own = u64::from_str_radix(&status_line(std::process::id(), "CapEff")[0], 16);
        let may_lift = own.expect("hexadecimal") >> CAP_SYS_RESOURCE & 1 == 1;
        assert!(locked == ["unlimited"; 2] || !may_lift, "{locked:?}");
        // Of a process that may be dumped or traced, they belong to its user.
        use std::os::unix::fs::MetadataExt;
        let memory = std::fs::metadata(format!("/proc/{pid}/mem")).expect("mem");
        assert_eq!(memory.uid(), 0, "not dumpable");
        let environment = std::fs::read(format!("/proc/{pid}/environ")).expect("environ");
        let names: Vec<_> = environment
            .split(|byte| *byte == 0)
            .filter(|entry| !entry.is_empty())
            .map(|entry| String::from_utf8_lossy(entry).split('=').next().unwrap_or("").to_owned())
            .collect();
        let known = ["ZDT_FAULT", "RUST_LOG", "ZDT_RING_FD"];
        assert!(names.iter().all(|name| known.contains(&name.as_str())), "{names:?}");
    }
}

#[test]
fn what_a_worker_must_not_do_is_refused_and_named() {
    let engine = Engine::start(Options::faults("worker.violate@1=fail"));
    let log = engine.log();
    let refused = log.lines().find(|line| line.contains("seccomp: system call"));
    assert!(refused.is_some_and(|line| line.contains("(socket, arch 0x")), "{refused:?}");
    assert!(log.contains("fault point worker.violate: Err(Os { code: 1"), "{log}");
    engine.ask("it-serves-on");
    assert_eq!(engine.status()["totals"]["crashes"], 0);
    engine.reload_well();
}

#[test]
fn the_filter_can_be_widened_or_switched_off() {
    for (setting, filters) in [
        ("seccomp_allow = [\"socket\", \"bind\", \"listen\"]", "2"),
        ("seccomp = \"log\"", "2"),
        ("seccomp = \"off\"", "0"),
    ] {
        let engine = Engine::start(Options {
            config: format!("workers = 1\n[supervision]\n{setting}\n"),
            ..Options::faults("worker.violate@1=fail")
        });
        let log = engine.log();
        assert!(log.contains("fault point worker.violate: Ok("), "{setting}: {log}");
        assert_eq!(status_line(engine.workers(1)[0], "Seccomp"), [filters], "{setting}");
    }
}

#[test]
fn the_supervisor_keeps_what_it_needs() {
    if !have_root("supervisor::privileges::the_supervisor_keeps_what_it_needs") {
        return;
    }
    let engine = Engine::start(Options::default());
    let bits =
        |set: &str| u64::from_str_radix(&status_line(engine.pid(), set)[0], 16).expect("mask");
    const NET_RAW: u64 = 1 << 13;
    const SYS_MODULE: u64 = 1 << 16;
    const SYS_BOOT: u64 = 1 << 22;
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(bits(set) & (NET_RAW | SYS_MODULE | SYS_BOOT), 0, "{set}");
    }
    const SETUID: u64 = 1 << 7;
    assert_ne!(bits("CapEff") & SETUID, 0);
    // And it is enough for what it does.
    engine.reload_well();
}

/// Whether the bytes are anywhere in what a process has written to of its memory.
fn remembers(pid: u32, wanted: &[u8]) -> bool {
    use std::os::unix::fs::FileExt;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).expect("mem");
    // Its own, and not rings and scoreboards, which have no names of their own either way.
    let own = maps.lines().filter(|line| line.contains(" rw-p "));
    own.into_iter().any(|line| {
        let (start, end) = line.split(' ').next().and_then(|one| one.split_once('-')).expect("map");
        let [start, end] = [start, end].map(|at| u64::from_str_radix(at, 16).expect("address"));
        let mut bytes = vec![0; (end - start) as usize];
        memory.read_exact_at(&mut bytes, start).is_ok()
            && bytes.windows(wanted.len()).any(|window| window == wanted)
    })
}

/// The key of parked sessions comes with the supervisor's environment, and gets into no other process: not into its
/// environment, not into its memory. Nobody logs it or writes it down.
#[test]
fn the_state_key_stays_with_the_supervisor() {
    if !have_root("supervisor::privileges::the_state_key_stays_with_the_supervisor") {
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let key: Vec<u8> = (0..32).map(|at| 0xa0 ^ (at * 7)).collect();
    let text: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let app = format!(
        "exec {} serve --service demo --workers 1 --steering off --admin off --user root \
         --listen 127.0.0.1:$PORT --run-dir {}/$PORT 2>>{}/log",
        env!("CARGO_BIN_EXE_zdt"),
        dir.path().display(),
        dir.path().display()
    );
    let config = format!(
        "workers = 2\n[parking]\npath = {:?}\n[gateway.app]\nuser = \"root\"\n",
        dir.path().join("parked")
    );
    let options = Options::config(&config).and("--service", "proxy").and("--app", &app);
    let engine = Engine::start(options.with("CONNECTION_STATE_KEY", &text));
    engine.ask("an-application-answers");
    engine.reload_well();
    let output = engine.zdt(&["reload", "--json", "--strategy", "socket-handoff"]);
    assert!(output.status.success(), "{output:?}");
    engine.ask("an-application-answers");
    let state = std::fs::read(engine.run_dir().join("state.json")).expect("state");
    let state: serde_json::Value = serde_json::from_slice(&state).expect("JSON");
    let application = state["gateway"]["application"]["pid"].as_u64().expect("pid") as u32;
    let supervisor = engine.status()["pid"].as_u64().expect("pid") as u32;
    let environment = |pid: u32| std::fs::read(format!("/proc/{pid}/environ")).expect("environ");
    let has = |bytes: &[u8], wanted: &[u8]| bytes.windows(wanted.len()).any(|part| part == wanted);
    assert!(has(&environment(supervisor), text.as_bytes()), "the test looks in the right way");
    assert!(remembers(supervisor, &key), "the test looks in the right way");
    let mut others = engine.workers(3);
    assert_eq!(others.len(), 2);
    others.push(application);
    for pid in others {
        let environment = environment(pid);
        assert!(!has(&environment, text.as_bytes()) && !has(&environment, b"STATE_KEY"), "{pid}");
        assert!(!remembers(pid, &key) && !remembers(pid, text.as_bytes()), "{pid}");
    }
    for args in [&["status", "--json"][..], &["config", "show"], &["config", "show", "--json"]] {
        assert!(!has(&engine.zdt(args).stdout, text.as_bytes()), "{args:?}");
    }
    assert!(!engine.log().contains(&text));
    let files = std::fs::read_dir(engine.run_dir()).expect("run directory");
    for file in files.filter_map(|one| std::fs::read(one.ok()?.path()).ok()) {
        assert!(!has(&file, text.as_bytes()) && !has(&file, &key));
    }
}

/// A supervisor that crashes leaves no dump, however large a one its limits allow.
#[test]
fn a_supervisor_leaves_no_core_dump() {
    use std::os::unix::process::ExitStatusExt;
    let mut engine = Engine::start(Options::default());
    let pid = engine.pid().to_string();
    let limited = std::process::Command::new("prlimit")
        .args(["--pid", &pid, "--core=unlimited:unlimited"])
        .status()
        .expect("prlimit, of util-linux");
    assert!(limited.success());
    engine.signal(Signal::SIGABRT);
    let status = engine.wait();
    assert_eq!((status.signal(), status.core_dumped()), (Some(6), false), "{status:?}");
}
