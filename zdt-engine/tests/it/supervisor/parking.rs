//! Sessions whose clients are away: after a broken connection, across reloads, and across a stop.

use std::path::Path;

use nix::sys::signal::Signal;
use tungstenite::client::IntoClientRequest;

use super::engine::{Engine, Options};
use crate::lab::client::{self, Client};
use crate::lab::eventually;
use crate::skip::skip;

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// With a key file, and this in `[parking]`.
fn options(dir: &Path, key: &str, parking: &str) -> Options {
    let file = dir.join("state.key");
    std::fs::write(&file, key).expect("key");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&file, mode).expect("mode");
    Options::config(&format!("drain_timeout_ms = 4000\n[parking]\nkey_file = {file:?}\n{parking}"))
}

/// An engine that keeps its address over a stop.
fn start(options: Options) -> Engine {
    let engine = Engine::start(options.clone());
    engine.configure(&options.config);
    engine
}

/// Opens `/ws/counter`, with a token or without; the new token comes with it.
fn open(engine: &Engine, token: Option<&str>, as_cookie: bool) -> (Client, String) {
    let url = format!("ws://{}/ws/counter", engine.address());
    let mut request = url.into_client_request().expect("request");
    if let Some(token) = token {
        let (name, value) = match as_cookie {
            true => ("cookie", format!("a=b; zdt_resume={token}; c=d")),
            false => ("zdt-resume", token.to_owned()),
        };
        request.headers_mut().insert(name, value.parse().expect("a header value"));
    }
    let stream = client::Steady(client::connect(engine.address()));
    let (client, answer) = tungstenite::client(request, stream).expect("handshake");
    let token = answer.headers()["zdt-resume"].to_str().expect("text").to_owned();
    let cookie = answer.headers()["set-cookie"].to_str().expect("text");
    assert!(cookie.starts_with(&format!("zdt_resume={token}; ")), "{cookie}");
    (client, token)
}

fn n(client: &mut Client) -> u64 {
    client::count(client).0
}

/// Opens, and sends the message that is to be answered by this number.
#[track_caller]
fn counted(engine: &Engine, token: Option<&str>, expected: u64) -> (Client, String) {
    let (mut client, token) = open(engine, token, false);
    assert_eq!(n(&mut client), expected);
    (client, token)
}

fn wait_for_parked(engine: &Engine, count: u64) {
    eventually("sessions are parked", || engine.status()["parked_sessions"] == count);
}

#[test]
fn a_broken_connection_is_resumed_once() {
    let engine = Engine::start(Options::default());
    let (mut client, token) = open(&engine, None, false);
    assert_eq!((n(&mut client), n(&mut client)), (1, 2));
    drop(client); // without a close frame
    wait_for_parked(&engine, 1);
    // The first message may overtake the session.
    let (mut client, _) = open(&engine, Some(&token), true);
    assert_eq!(n(&mut client), 3);
    assert_eq!(engine.status()["parked_sessions"], 0);
    let (_other, _) = counted(&engine, Some(&token), 1); // a token is good once
    assert_eq!(n(&mut client), 4);
    let (mut again, _) = open(&engine, Some("v1.junk.junk"), false);
    assert_eq!(n(&mut again), 1);
}

#[test]
fn a_closed_websocket_is_not_kept() {
    let engine = Engine::start(Options::default());
    let (mut client, token) = counted(&engine, None, 1);
    client.close(None).expect("close");
    while client.read().is_ok() {}
    counted(&engine, Some(&token), 1);
}

#[test]
fn parked_sessions_and_tickets_survive_reloads() {
    let engine = Engine::start(Options::default());
    let (mut away, token_of_away) = open(&engine, None, false);
    let (mut moved, token_of_moved) = open(&engine, None, false);
    assert_eq!((n(&mut away), n(&mut moved)), (1, 1));
    drop(away);
    wait_for_parked(&engine, 1);
    engine.reload_well();
    assert_eq!(client::count(&mut moved), (2, 2));
    drop(moved);
    wait_for_parked(&engine, 2);
    engine.reload_well();
    let (mut away, _) = open(&engine, Some(&token_of_away), false);
    assert_eq!(client::count(&mut away), (2, 3));
    let (mut moved, _) = open(&engine, Some(&token_of_moved), false);
    assert_eq!(client::count(&mut moved), (3, 3));
}

#[test]
fn tickets_of_http2_streams_move_along() {
    use crate::freeze::frame;
    use crate::lab::http2::*;
    let engine = Engine::start(Options::default());
    let mut client = Http2Client::greet(engine.address());
    let tick = |client: &mut Http2Client, stream, n: u64| {
        client.send(DATA, 0, stream, &frame(0x81, b"tick"));
        let answer =
            client.read_until(|f| f.kind == DATA && f.stream == stream).expect("an answer");
        let text = String::from_utf8_lossy(&answer.payload).into_owned();
        assert!(text.contains(&format!("\"n\": {n}, ")), "{text}");
    };
    let mut tokens = Vec::new();
    for stream in [1, 3] {
        client.send(HEADERS, END_HEADERS, stream, &websocket_at("/ws/counter"));
        let head =
            client.read_until(|f| f.kind == HEADERS && f.stream == stream).expect("an answer");
        let fields = client.decode(&head.payload);
        let token = fields.into_iter().find(|(name, _)| name == "zdt-resume").expect("a token");
        tokens.push(token.1);
        tick(&mut client, stream, 1);
    }
    for n in 2..4 {
        engine.reload_well();
        tick(&mut client, 1, n);
        tick(&mut client, 3, n);
    }
    drop(client);
    wait_for_parked(&engine, 2);
    for token in tokens {
        let (mut client, _) = open(&engine, Some(&token), false);
        assert_eq!(client::count(&mut client), (4, 3));
    }
}

#[test]
fn parked_sessions_survive_the_replacement_of_the_supervisor() {
    let engine = Engine::start(Options::default());
    let (client, token) = counted(&engine, None, 1);
    drop(client);
    wait_for_parked(&engine, 1);
    let output = engine.zdt(&["reload", "--json", "--strategy", "socket-handoff"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(engine.status()["parked_sessions"], 1);
    counted(&engine, Some(&token), 2);
}

fn stop(engine: &mut Engine) {
    engine.signal(Signal::SIGTERM);
    assert!(engine.wait().success(), "{}", engine.log());
}

#[test]
fn sessions_go_on_after_a_stop_and_a_start() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("states");
    let parking = format!("path = {path:?}\n");
    let mut engine = start(options(dir.path(), KEY, &parking));
    let mut tokens = Vec::new();
    let mut clients = Vec::new();
    for turn in 0..20u64 {
        let (mut client, token) = open(&engine, None, false);
        assert_eq!((0..=turn).map(|_| n(&mut client)).last(), Some(turn + 1));
        tokens.push(token);
        clients.push(client);
    }
    drop(clients.split_off(10)); // half of them are away before the stop
    stop(&mut engine);
    let file = std::fs::read(path.join("parked.zdts")).expect("the file");
    assert!(!String::from_utf8_lossy(&file).contains("demo.ws.counter"), "it is encrypted");
    engine.restart();
    wait_for_parked(&engine, 20);
    let mut clients = Vec::new();
    for (token, turn) in tokens.iter().zip(0..) {
        let (mut client, _) = open(&engine, Some(token), turn % 2 == 0);
        assert_eq!(n(&mut client), turn + 2);
        clients.push(client);
    }
    eventually("each is good for one return", || !path.join("parked.zdts").exists());
    assert!(!engine.log().contains(KEY));
}

fn kill_supervisor(engine: &mut Engine) {
    engine.signal(Signal::SIGKILL);
    engine.wait();
}

#[test]
fn a_killed_supervisor_leaves_what_is_parked_on_disk() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut engine = start(options(dir.path(), KEY, ""));
    let file = engine.run_dir().join("parked.zdts");
    let (mut away, token) = open(&engine, None, false);
    let (mut other, other_token) = open(&engine, None, false);
    assert_eq!((n(&mut away), n(&mut away), n(&mut other)), (1, 2, 1));
    drop(away);
    eventually("the session is on disk", || file.exists());
    kill_supervisor(&mut engine);
    engine.restart();
    wait_for_parked(&engine, 1);
    let (mut back, token) = counted(&engine, Some(&token), 3);
    assert_eq!(n(&mut other), 2, "the workers have served on");
    eventually("what was given back is not on disk", || !file.exists());
    // And not again: neither of the two is there twice, whoever dies.
    drop(other);
    eventually("the other one is on disk", || file.exists());
    kill_supervisor(&mut engine);
    engine.restart();
    assert_eq!(n(&mut back), 4);
    let (_other, _) = counted(&engine, Some(&other_token), 2 + 1);
    drop(back);
    wait_for_parked(&engine, 1);
    let (mut back, _) = open(&engine, Some(&token), true);
    assert_eq!(n(&mut back), 5);
}

#[test]
fn a_replaced_supervisor_keeps_the_file_up_to_date() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut engine = start(options(dir.path(), KEY, ""));
    let file = engine.run_dir().join("parked.zdts");
    let (client, token) = counted(&engine, None, 1);
    drop(client);
    wait_for_parked(&engine, 1);
    let output = engine.zdt(&["reload", "--json", "--strategy", "socket-handoff"]);
    assert!(output.status.success(), "{output:?}");
    let (client, token) = counted(&engine, Some(&token), 2);
    eventually("it was given back", || !file.exists());
    drop(client);
    eventually("it is on disk", || file.exists());
    let successor = engine.only_supervisor();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(successor as i32), Signal::SIGKILL)
        .expect("kill");
    eventually("it is dead", || engine.supervisors().is_empty());
    engine.restart();
    counted(&engine, Some(&token), 3);
}

#[test]
fn without_a_key_nothing_is_written() {
    let mut engine = start(Options::config("drain_timeout_ms = 4000\n"));
    let (_client, token) = counted(&engine, None, 1);
    stop(&mut engine);
    assert!(engine.log().contains("without CONNECTION_STATE_KEY"), "{}", engine.log());
    assert!(!engine.run_dir().join("parked.zdts").exists());
    engine.restart();
    counted(&engine, Some(&token), 1);
}

#[test]
fn a_file_that_cannot_be_read_is_set_aside() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut engine = start(options(dir.path(), KEY, ""));
    let file = engine.run_dir().join("parked.zdts");
    type Damage = fn(&mut Vec<u8>);
    let problems: [(&str, Damage); 3] = [
        ("is damaged", |bytes| *bytes.last_mut().expect("bytes") ^= 1),
        ("no file of parked sessions", |bytes| bytes[0] ^= 1),
        ("another key", |bytes| bytes[50] ^= 1),
    ];
    for (message, damage) in problems {
        let (_client, token) = counted(&engine, None, 1);
        stop(&mut engine);
        let mut bytes = std::fs::read(&file).expect("the file");
        damage(&mut bytes);
        std::fs::write(&file, &bytes).expect("write");
        engine.restart();
        assert!(engine.log().contains(message), "{message}: {}", engine.log());
        assert!(!file.exists(), "{message}: it is under another name");
        let (mut client, _) = counted(&engine, Some(&token), 1);
        client.close(None).expect("close");
        while client.read().is_ok() {}
    }
    let names = std::fs::read_dir(engine.run_dir()).expect("run directory");
    let aside = names.filter(|name| {
        name.as_ref().is_ok_and(|n| n.file_name().to_string_lossy().contains(".bad-"))
    });
    assert!(aside.count() >= 1, "they are kept");
}

/// A file system of 64 KiB; unmounted at the end.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(path: std::path::PathBuf) -> Option<Self> {
        use nix::mount::{MsFlags, mount};
        std::fs::create_dir(&path).expect("mkdir");
        let options = Some("size=64k,mode=0700");
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), options).ok()?;
        Some(Self(path))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Takes all room that the disk has left.
fn fill(path: &std::path::Path) {
    use std::io::{ErrorKind, Write};
    let mut file = std::fs::File::create(path).expect("create");
    loop {
        match file.write(&[7; 4096]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => return,
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }
}

#[test]
fn a_full_disk_loses_nothing_while_there_is_hope() {
    let test = "supervisor::parking::a_full_disk_loses_nothing_while_there_is_hope";
    let dir = tempfile::tempdir().expect("tempdir");
    let Some(disk) = SmallDisk::mount(dir.path().join("disk")) else {
        return skip(test, "needs root, to mount a small file system");
    };
    let parking = format!("path = {:?}\n", disk.0);
    let mut engine = start(options(dir.path(), KEY, &parking));
    let (_client, token) = counted(&engine, None, 1);
    let filler = disk.0.join("filler");
    fill(&filler);
    engine.signal(Signal::SIGTERM);
    eventually("it says so", || engine.log().contains("still in memory"));
    assert!(!disk.0.join("parked.zdts.next").exists());
    std::fs::remove_file(&filler).expect("make room");
    assert!(engine.wait().success(), "{}", engine.log());
    engine.restart();
    let (_client, _) = counted(&engine, Some(&token), 2);
    // And without hope: one more signal, and it ends, badly. The file goes with its only session, and would make room.
    eventually("the file is removed", || !disk.0.join("parked.zdts").exists());
    fill(&filler);
    engine.signal(Signal::SIGTERM);
    eventually("it says so", || engine.log().matches("still in memory").count() >= 2);
    engine.signal(Signal::SIGTERM);
    assert!(!engine.wait().success());
    assert!(engine.log().contains("they are lost"), "{}", engine.log());
}

#[test]
fn a_directory_that_others_can_reach_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let open = dir.path().join("open");
    std::fs::create_dir(&open).expect("mkdir");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&open, mode).expect("mode");
    let engine = start(options(dir.path(), KEY, ""));
    let config = dir.path().join("other.toml");
    let text = format!(
        "admin = \"off\"\nlisten = [\"127.0.0.1:0\"]\nrun_dir = {:?}\n[parking]\npath = {open:?}\nkey_file = {:?}\n",
        dir.path().join("other"),
        dir.path().join("state.key"),
    );
    std::fs::write(&config, text).expect("write");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_zdt"))
        .args(["serve", "--config", config.to_str().expect("text")])
        .output()
        .expect("zdt");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("CONNECTION_STATE_PATH"), "{said}");
    assert!(!said.contains(KEY));
    drop(engine);
}
