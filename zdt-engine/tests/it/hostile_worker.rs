//! A worker in which somebody else executes code: what it says to the supervisor, writes into memory that it shares, and
//! does to sockets that others have as well. The supervisor and the other workers carry on.
//!
//! The test does it in the worker's place, with duplicates of its descriptors (pidfd_getfd(2)).

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::sys::signal::Signal;
use nix::sys::socket::{SockType, getsockopt, sockopt};
use zdt_engine::{fdpass, sys};

use crate::lab::eventually;
use crate::skip::have_root;
use crate::supervisor::engine::{Engine, Options};

/// All descriptors of a process, by what /proc says that they are.
fn descriptors(pid: u32) -> Vec<(String, OwnedFd)> {
    let process = sys::pidfd_open(pid).expect("pidfd");
    let listed = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors");
    let mut found = Vec::new();
    for entry in listed {
        let entry = entry.expect("an entry");
        let number: i32 = entry.file_name().to_str().expect("a number").parse().expect("a number");
        let Ok(name) = std::fs::read_link(entry.path()) else { continue };
        // SAFETY: the call takes three integers and opens a descriptor.
        let fd =
            unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) as i32 };
        if fd >= 0 {
            // SAFETY: the kernel has just opened this descriptor for us alone.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            found.push((name.to_string_lossy().into_owned(), fd));
        }
    }
    found
}

/// The worker's end of its control connection.
fn control(pid: u32) -> OwnedFd {
    let is_it = |fd: &OwnedFd| {
        getsockopt(fd, sockopt::SockType) == Ok(SockType::SeqPacket)
            && getsockopt(fd, sockopt::AcceptConn) == Ok(false)
    };
    descriptors(pid).into_iter().map(|(_, fd)| fd).find(is_it).expect("a control connection")
}

fn is_gone(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionReset)
}

/// Says it as the worker, whatever it is; waits while the supervisor does not read.
fn say(control: &OwnedFd, bytes: &[u8], fds: usize) {
    let null = std::fs::File::open("/dev/null").expect("a file");
    let fds = vec![null.as_fd(); if bytes.is_empty() { 0 } else { fds }];
    eventually("it is sent", || {
        match fdpass::send(control.as_fd(), &[IoSlice::new(bytes)], &fds) {
            Ok(_) => true,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => false,
            // The supervisor has ended this worker.
            Err(error) if is_gone(&error) => true,
            Err(error) => panic!("{error}"),
        }
    });
}

/// An engine with two workers, which are restarted as often as it takes.
fn engine() -> Option<Engine> {
    have_root("hostile_worker").then(|| Engine::start(Options::config("[respawn]\nlimit = 100\n")))
}

/// The worker has been ended and replaced; the other one and the supervisor are the same as before.
#[track_caller]
fn check_replaced(engine: &mut Engine, before: &[u32], what: &str) {
    let mut now = Vec::new();
    eventually(&format!("{what}: it is replaced"), || {
        now = engine.workers(1);
        now.len() == 2 && !now.contains(&before[0])
    });
    assert!(now.contains(&before[1]), "{what}: {before:?}, {now:?}");
    assert_eq!(engine.only_supervisor(), engine.pid(), "{what}");
    for number in 0..10 {
        engine.ask(&number.to_string());
    }
}

#[test]
fn nonsense_ends_the_worker_that_says_it() {
    let Some(mut engine) = engine() else { return };
    let deep = [b"{\"type\":".as_slice(), &b"[".repeat(100_000)].concat();
    let long = [b"{\"type\":\"failed\",\"message\":\"".as_slice(), &b"x".repeat(140_000)].concat();
    let nonsense: [(&str, &[u8]); 5] = [
        ("half a message", b"{\"type\":\"status\",\"request\":"),
        ("bytes", b"\xff\0\x80"),
        ("depth", &deep),
        ("length", &long),
        ("a number below zero", b"{\"type\":\"parked\",\"count\":-1}"),
    ];
    for (count, (what, bytes)) in (1..).zip(nonsense) {
        let before = engine.workers(1);
        say(&control(before[0]), bytes, 3);
        check_replaced(&mut engine, &before, what);
        assert_eq!(engine.log().matches("speaks nonsense; ending it").count(), count, "{what}");
    }
}

#[test]
fn the_end_of_a_drain_that_nobody_asked_for_leaves_no_place_empty() {
    let Some(mut engine) = engine() else { return };
    let before = engine.workers(1);
    say(&control(before[0]), br#"{"type":"drained"}"#, 0);
    check_replaced(&mut engine, &before, "it has drained");
    assert!(engine.log().contains("has drained, for which nobody has asked"));
}

#[test]
fn a_worker_that_fails_again_and_again_fails_once() {
    let Some(mut engine) = engine() else { return };
    let before = engine.workers(1);
    let control = control(before[0]);
    let mut said = 0;
    eventually("it is ended, whatever it says", || {
        let failed = br#"{"type":"failed","message":"the sky falls"}"#;
        let sent = fdpass::send(control.as_fd(), &[IoSlice::new(failed)], &[]);
        said += usize::from(sent.is_ok());
        !std::path::Path::new(&format!("/proc/{}", before[0])).exists()
    });
    check_replaced(&mut engine, &before, "it fails");
    assert!(said > 1);
    assert_eq!(engine.log().matches("the sky falls").count(), 2, "it, and its end");
}

/// Nobody has asked for any of it, and no figure can be.
#[test]
fn reloads_succeed_whatever_a_worker_claims_and_passes() {
    let Some(mut engine) = engine() else { return };
    let mut clients = engine.clients(6);
    let supervisor = engine.pid();
    for generation in 1..4 {
        let control = control(engine.workers(generation)[0]);
        let reload = engine.zdt_in_background(&["reload", "--json"]);
        let most = u64::MAX;
        for turn in 0..3_000 {
            let number = turn % 5;
            let claim = match turn % 9 {
                0 => r#"{"type":"ready"}"#.to_owned(),
                1 => format!(r#"{{"type":"probe_seen","nonce":{turn}}}"#),
                2 => format!(
                    r#"{{"type":"progress","reload":{number},"moved":{most},"remaining":{most},"refused":{most},"reclaimed":{most},"staying":{{"a\u001b[2J":{most},"b":{most}}}}}"#
                ),
                3 => format!(
                    r#"{{"type":"status","request":{number},"status":{{"connections":{most},"buffered_bytes":{most},"by_protocol":{{"x\"}}":{most},"y":{most}}},"draining":{{"\n":{most}}},"service_us":[{most},{most}]}}}}"#
                ),
                4 => format!(
                    r#"{{"type":"committed","reload":{},"incoming":{{"adopted":{most},"blackout_us":[[{most},{most}],[0,{most}]]}}}}"#,
                    most - number
                ),
                5 => format!(
                    r#"{{"type":"rehearsed","request":{number},"report":{{"tested":{most},"bytes":{most},"reasons":{{"a":{most},"b":{most}}}}}}}"#
                ),
                6 => r#"{"type":"parked","count":4294967295}"#.to_owned(),
                7 => format!(r#"{{"type":"unpark","request":{turn},"id":"../../etc/passwd"}}"#),
                _ => r#"{"type":"upstream_idle","url":"http://127.0.0.1:1"}"#.to_owned(),
            };
            say(&control, claim.as_bytes(), turn as usize % 64);
        }
        let verdict =
            crate::supervisor::engine::verdict(&crate::supervisor::engine::output_of(reload));
        assert_eq!(verdict["outcome"], "committed", "{verdict}");
        clients.count_all();
        assert!(engine.zdt(&["status"]).status.success());
        engine.zdt(&["test-migration"]);
    }
    assert_eq!(engine.only_supervisor(), supervisor);
}

#[test]
fn figures_that_a_worker_has_overwritten_hurt_nobody() {
    use std::os::unix::fs::FileExt;
    let Some(mut engine) = engine() else { return };
    let mut clients = engine.clients(6);
    let worker = engine.workers(1)[0];
    let board = descriptors(worker).into_iter().find(|(name, _)| name.contains("zdt-scoreboard"));
    let board = std::fs::File::from(board.expect("the scoreboard").1);
    let bytes = vec![0xff; board.metadata().expect("metadata").len() as usize];
    for _ in 0..3 {
        board.write_all_at(&bytes, 0).expect("write");
        let verdict = engine.reload();
        assert_eq!(verdict["outcome"], "committed", "{verdict}");
        assert!(engine.zdt(&["status"]).status.success());
        clients.count_all();
    }
    let before = engine.workers(4);
    for pid in &before {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid as i32), Signal::SIGKILL)
            .expect("kill");
    }
    eventually("both are replaced", || {
        let now = engine.workers(4);
        now.len() == 2 && now.iter().all(|pid| !before.contains(pid))
    });
    assert_eq!(engine.only_supervisor(), engine.pid());
    engine.ask("after");
}

/// An empty message looks like the end of the connection. No command would reach it, and no reload would succeed.
#[test]
fn a_worker_that_hangs_up_is_replaced() {
    let Some(mut engine) = engine() else { return };
    let before = engine.workers(1);
    say(&control(before[0]), b"", 0);
    check_replaced(&mut engine, &before, "it hangs up");
    assert!(engine.log().contains("has hung up on the supervisor; ending it"));
    engine.reload_well();
}

/// Shuts down every listener that a worker has.
fn shut_listeners(pid: u32) {
    for (_, fd) in descriptors(pid) {
        let is_tcp = getsockopt(&fd, sockopt::SockType) == Ok(SockType::Stream);
        if is_tcp && getsockopt(&fd, sockopt::AcceptConn) == Ok(true) {
            let how = nix::sys::socket::Shutdown::Both;
            nix::sys::socket::shutdown(fd.as_raw_fd(), how).expect("shutdown");
        }
    }
}

/// It lives on. All listeners of the port are gone at once, and with them the group that the program was attached to.
#[test]
fn listeners_that_a_worker_has_shut_down_listen_again() {
    for options in [Options::plain(), Options::default()] {
        if !have_root("hostile_worker") {
            return;
        }
        let mut engine = Engine::start(options);
        let mut clients = engine.clients(4);
        for turn in 1..=2 {
            let before = engine.workers(turn);
            before.iter().for_each(|pid| shut_listeners(*pid));
            let address = engine.address();
            let mended = "has shut down a listening socket; it listens again";
            eventually("they listen again", || {
                engine.log().matches(mended).count() >= 2 * turn as usize
                    && std::net::TcpStream::connect(address).is_ok()
            });
            for number in 0..20 {
                engine.ask(&number.to_string());
            }
            clients.count_all();
            assert_eq!(engine.workers(turn), before, "nobody was ended");
            engine.reload_well();
            clients.count_all_in(turn + 1);
        }
        assert_eq!(engine.only_supervisor(), engine.pid());
    }
}

#[test]
fn what_a_worker_complains_of_fills_no_log() {
    let Some(mut engine) = engine() else { return };
    let before = engine.workers(1);
    let control = control(before[0]);
    let start = std::time::Instant::now();
    for turn in 0..2_000 {
        let (bytes, fds): (&[u8], usize) = match turn % 2 {
            0 => (br#"{"type":"parked","count":1}"#, 0),
            _ => (br#"{"type":"parked","count":1}"#, 1), // what comes is no memory
        };
        say(&control, bytes, fds);
    }
    engine.ask("it-serves-on");
    say(&control, b"{}", 0);
    check_replaced(&mut engine, &before, "it ends with nonsense");
    let said = engine.log().matches("parked sessions cannot be had").count();
    let seconds = start.elapsed().as_secs() as usize;
    assert!((1..=seconds + 2).contains(&said), "{said} times in {seconds} s");
}

#[test]
fn what_a_worker_names_is_not_kept_for_good() {
    let Some(mut engine) = engine() else { return };
    let resident_kib = |pid: u32| -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("KiB")
    };
    let before = engine.workers(1);
    let control = control(before[0]);
    let at_first = resident_kib(engine.pid());
    for turn in 0..2_000 {
        let name = format!("http://127.0.0.1:1/{turn}/{}", "x".repeat(60_000));
        say(&control, format!(r#"{{"type":"upstream_idle","url":"{name}"}}"#).as_bytes(), 0);
    }
    say(&control, b"{}", 0);
    check_replaced(&mut engine, &before, "it ends with nonsense");
    let more = resident_kib(engine.pid()).saturating_sub(at_first);
    assert!(more < 48 << 10, "{more} KiB more, of 120,000 that were named");
}

#[test]
fn a_listener_that_a_worker_has_shut_down_costs_nobody_a_request() {
    for options in [Options::plain(), Options::default()] {
        if !have_root("hostile_worker") {
            return;
        }
        let mut engine = Engine::start(options);
        let before = engine.workers(1);
        shut_listeners(before[0]);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(before[0] as i32), Signal::SIGKILL)
            .expect("kill");
        check_replaced(&mut engine, &before, "its listener is gone");
        engine.reload_well();
        for number in 0..10 {
            engine.ask(&number.to_string());
        }
    }
}

/// Where a process has mapped the memory of channels.
fn channel_memory(pid: u32) -> Vec<std::ops::Range<u64>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let channels = maps.lines().filter(|line| line.contains("memfd:zdt-channel"));
    let address = |text: &str| u64::from_str_radix(text, 16).expect("address");
    channels
        .filter_map(|line| line.split(' ').next()?.split_once('-'))
        .map(|(start, end)| address(start)..address(end))
        .collect()
}

/// In the middle of a handoff, when one connection is frozen or offered, somebody in one of the two workers writes over all
/// that they share: records, indices, ownership words. Connections may get lost, to the attacker's own as much as to others;
/// but nobody hangs, reads wrong figures or ends, and the next reload finds all in order.
#[test]
fn junk_in_the_rings_of_a_reload_breaks_its_channels_and_nothing_else() {
    use std::os::unix::fs::FileExt;
    if !have_root("hostile_worker") {
        return;
    }
    let random = |seed: u64, bytes: u64| {
        let mut state = seed;
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        std::iter::repeat_with(next).take(bytes as usize).collect::<Vec<u8>>()
    };
    let points = ["freeze.saved@1", "offer.published@1", "adopt.received@2", "adopt.adopted@2"];
    for (turn, point) in points.into_iter().enumerate() {
        let ones = turn % 2 == 1;
        let mut engine = Engine::start(Options {
            config: "workers = 1\n[reload]\nhandoff_timeout_ms = 1000\n".into(),
            ..Options::faults(&format!("{point}=stop"))
        });
        let mut clients = engine.clients(6);
        let reload = engine.zdt_in_background(&["reload", "--json"]);
        let mut stopped = 0;
        eventually("a worker has come to the point", || {
            let workers = [engine.workers(1), engine.workers(2)].concat();
            let is_stopped = |pid: &&u32| {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
                stat.is_ok_and(|stat| stat.contains(") T "))
            };
            stopped = workers.iter().find(is_stopped).copied().unwrap_or_default();
            stopped > 0
        });
        let memory = std::fs::File::options()
            .write(true)
            .open(format!("/proc/{stopped}/mem"))
            .expect("its memory");
        let mapped = channel_memory(stopped);
        assert!(!mapped.is_empty(), "{point}: it has a channel");
        for range in mapped {
            let bytes = range.end - range.start;
            let junk = if ones { vec![0xff; bytes as usize] } else { random(turn as u64, bytes) };
            memory.write_all_at(&junk, range.start).expect("write over it");
        }
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(stopped as i32), Signal::SIGCONT)
            .expect("continue");
        let verdict =
            crate::supervisor::engine::verdict(&crate::supervisor::engine::output_of(reload));
        let left = clients.count_survivors();
        let lost = verdict["lost_connections"].as_u64().expect("a number");
        assert!(left > 0 || lost > 0, "{point}: {verdict}");
        assert_eq!(engine.only_supervisor(), engine.pid());
        engine.reload();
        let before = clients.len();
        assert_eq!(clients.count_survivors(), before, "{point}: nobody is lost later");
        engine.ask("after");
        let log = engine.log();
        assert!(!log.contains("panicked"), "{point}: {log}");
    }
}
