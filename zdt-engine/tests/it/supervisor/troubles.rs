//! What surrounds a supervisor is not as it should be: a run directory of somebody else, a full disk,
//! a port that is taken, commands that say nothing.

use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::engine::{Engine, Options, verdict};
use crate::skip::have_root;

const NOBODY: u32 = 65_534;

/// Runs `zdt` and returns what it said about why it did not work.
#[track_caller]
fn fails(command: &mut Command) -> String {
    let output = command.output().expect("run zdt");
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn zdt(run_dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zdt"));
    command.arg(arguments[0]).arg("--run-dir").arg(run_dir).args(&arguments[1..]);
    command
}

fn serve(run_dir: &Path) -> Command {
    zdt(run_dir, &["serve", "--listen", "127.0.0.1:0", "--admin", "off", "--workers", "1"])
}

#[test]
fn a_run_directory_of_somebody_else_is_refused() {
    if !have_root("supervisor::troubles::a_run_directory_of_somebody_else_is_refused") {
        return;
    }
    let parent = tempfile::tempdir().expect("tempdir");
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
    };
    mode(parent.path(), 0o755);
    let run_dir = parent.path().join("run");
    std::fs::create_dir(&run_dir).expect("mkdir");
    mode(&run_dir, 0o700);
    // Somebody has prepared it for root.
    chown(&run_dir, Some(NOBODY), None).expect("chown");
    let message = fails(&mut serve(&run_dir));
    assert!(
        message.contains("belongs to user 65534") && message.contains("--run-dir"),
        "{message}"
    );
    // Root's, for somebody else.
    chown(&run_dir, Some(0), None).expect("chown");
    let message = fails(serve(&run_dir).uid(NOBODY));
    assert!(message.contains("belongs to user 0"), "{message}");
    let message = fails(zdt(&run_dir, &["status"]).uid(NOBODY));
    assert!(message.contains("belongs to user 0"), "{message}");
    // Root's, and others can write it.
    mode(&run_dir, 0o770);
    let message = fails(&mut serve(&run_dir));
    assert!(message.contains("mode 770") && message.contains("chmod 700"), "{message}");
    // A link to a good one may be turned round later.
    mode(&run_dir, 0o700);
    let link = parent.path().join("link");
    std::os::unix::fs::symlink(&run_dir, &link).expect("symlink");
    let message = fails(&mut serve(&link));
    assert!(message.contains("links are not followed"), "{message}");
    let left = std::fs::read_dir(&run_dir).expect("run directory").count();
    assert_eq!(left, 0, "nothing was put there");
}

#[test]
fn a_failed_start_leaves_nothing_behind() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = taken.local_addr().expect("address").to_string();
    let parent = tempfile::tempdir().expect("tempdir");
    let run_dir = parent.path().join("run");
    let start = ["serve", "--admin", "off", "--workers", "1", "--listen", &address];
    let message = fails(&mut zdt(&run_dir, &start));
    assert!(message.contains("cannot start") && message.contains(&address), "{message}");
    let left: Vec<_> = std::fs::read_dir(&run_dir)
        .expect("run directory")
        .filter_map(|entry| entry.ok().map(|entry| entry.file_name()))
        .collect();
    assert_eq!(left, ["lock"]);
    let mounts = std::fs::read_to_string("/proc/mounts").expect("mounts");
    let mount = run_dir.join("bpf").display().to_string();
    assert!(!mounts.contains(&mount), "{mount} is mounted still");
}

/// Fills the disk of the run directory; the file that does it.
fn fill(run_dir: &Path) -> std::path::PathBuf {
    let path = run_dir.join("filler");
    let mut file = std::fs::File::create(&path).expect("create");
    while file.write_all(&[7; 1024]).is_ok() {}
    path
}

#[test]
fn on_a_full_disk_nothing_new_begins_and_nothing_is_lost() {
    if !have_root("supervisor::troubles::on_a_full_disk_nothing_new_begins_and_nothing_is_lost") {
        return;
    }
    for strategy in ["blue-green", "rolling", "socket-handoff"] {
        let mut engine =
            Engine::start(Options { disk_bytes: Some(128 << 10), ..Options::default() });
        let mut clients = engine.clients(6);
        let before = engine.pid();
        let filler = fill(&engine.run_dir());
        let verdict = verdict(&engine.zdt(&["reload", "--json", "--strategy", strategy]));
        assert_eq!(verdict["outcome"], "failed_before_flip", "{strategy}: {verdict}");
        let why = verdict["error"].as_str().expect("error");
        assert!(why.contains("state.json"), "{strategy}: {why}");
        assert_eq!(engine.only_supervisor() == before, strategy != "socket-handoff");
        clients.count_all_in(1);
        engine.ask("full");
        std::fs::remove_file(filler).expect("remove");
        let verdict = engine.reload_well();
        assert_eq!(verdict["migrated_connections"], 6, "{strategy}: {verdict}");
        clients.count_all();
    }
}

#[test]
fn commands_that_say_nothing_do_not_keep_others_out() {
    let engine = Engine::start(Options::default());
    let socket = engine.run_dir().join("control.sock");
    let connect = || UnixStream::connect(&socket).expect("connect");
    let silent: Vec<UnixStream> = (0..100).map(|_| connect()).collect();
    let half_a_line: Vec<UnixStream> = (0..100)
        .map(|_| {
            let mut stream = connect();
            // One that has given way to a later one is closed already.
            let _ = stream.write_all(b"{\"command\":");
            stream
        })
        .collect();
    let asked = Instant::now();
    assert_eq!(engine.status()["status"], "healthy");
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    engine.reload_well();
    drop((silent, half_a_line));
}
