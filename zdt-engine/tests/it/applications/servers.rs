//! Servers of other people behind the gateway, replaced under load: what a client asks arrives, once, and is answered.

use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::load::{Asks, Load, check_notes};
use super::{Place, run, swap};
use crate::lab::eventually;
use crate::lab::programs::{have, node_modules, python};
use crate::skip::skip;
use crate::supervisor::engine::Engine;

fn echoed(method: &str, target: &str, body: &str) -> String {
    format!("{method} {target} {body}\n")
}

/// The application is replaced three times, and zdt in between.
#[track_caller]
fn survives_replacement(place: &Place, config: &str, command: &str) {
    let engine = run(place.gateway(config), command);
    let load = Load::begin(engine.address(), Asks::GetsAndPosts, echoed);
    load.goes_on(20);
    for turn in 0..3 {
        swap(&engine);
        load.goes_on(20);
        if turn < 2 {
            engine.reload_well();
            load.goes_on(20);
        }
    }
    let seen = load.end();
    assert!(seen.processes.len() >= 4, "{:?}", seen.processes);
    check_notes(&seen, &place.notes());
}

#[test]
fn uvicorn() {
    if python("applications::servers::uvicorn").is_none() {
        return;
    }
    let command = "exec uvicorn app:app --host 127.0.0.1 --port $PORT --log-level warning";
    survives_replacement(&Place::with(&["app.py"]), "", command);
}

/// Its workers end the connection behind each answer.
#[test]
fn gunicorn() {
    if python("applications::servers::gunicorn").is_none() {
        return;
    }
    let command = "exec gunicorn --bind 127.0.0.1:$PORT --workers 2 app:wsgi";
    let config = "[gateway.health]\npath = \"/health\"\ninterval_ms = 200";
    survives_replacement(&Place::with(&["app.py"]), config, command);
}

#[test]
fn node() {
    if node_modules("applications::servers::node").is_none() {
        return;
    }
    survives_replacement(&Place::with(&["app.js"]), "", "exec node app.js");
}

#[test]
fn php() {
    if !have("applications::servers::php", "php", "--version") {
        return;
    }
    survives_replacement(&Place::with(&["app.php"]), "", "exec php -S 127.0.0.1:$PORT app.php");
}

/// A server that something else runs, on a Unix socket in the test's place.
struct Running {
    name: String,
    children: Vec<Child>,
}

impl Running {
    /// nginx, which answers by itself, or asks PHP.
    #[track_caller]
    fn nginx(place: &Place, name: &str, location: &str) -> Running {
        let directory = place.text(name);
        std::fs::create_dir(&directory).expect("create");
        let config = format!(
            "daemon off; pid {directory}/pid; error_log {directory}/error.log; worker_processes 1;\n\
             events {{ worker_connections 256; }}\n\
             http {{\n\
               log_format note '$request_method $request_uri';\n\
               client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;\n\
               fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi;\n\
               scgi_temp_path {directory}/scgi;\n\
               keepalive_requests 50;\n\
               server {{ listen unix:{directory}/socket; location / {{ {location} }} }}\n\
             }}\n"
        );
        std::fs::write(format!("{directory}/nginx.conf"), config).expect("write");
        let mut command = Command::new("nginx");
        command.args(["-c", &format!("{directory}/nginx.conf"), "-e", "stderr"]);
        Running { name: directory, children: vec![start(&mut command)] }
    }

    fn url(&self) -> String {
        format!("unix:{}/socket", self.name)
    }

    /// As its operator would: it finishes what it has.
    #[track_caller]
    fn quit(mut self) {
        for child in &mut self.children {
            kill(Pid::from_raw(child.id() as i32), Signal::SIGQUIT).expect("signal");
            eventually("the server ends", || child.try_wait().expect("wait").is_some());
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.children {
            // nginx's own children end with it if it is asked.
            if matches!(child.try_wait(), Ok(None)) {
                let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
                let _ = child.wait();
            }
        }
    }
}

fn start(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("start the server")
}

/// `zdt upstream set`, again and again, and the old server is told to go as soon as the command has ended.
#[track_caller]
fn survives_upstream_set(
    place: &Place,
    expected: super::load::Expected,
    new: impl Fn(&str) -> Running,
) {
    let mut server = new("0");
    let engine = Engine::start(place.gateway("").and("--upstream", &server.url()));
    let load = Load::begin(engine.address(), Asks::GetsAndPosts, expected);
    for number in 1..4 {
        load.goes_on(60);
        let next = new(&number.to_string());
        let output = engine.zdt(&["upstream", "set", "default", &next.url()]);
        assert!(output.status.success(), "{output:?}");
        std::mem::replace(&mut server, next).quit();
        load.goes_on(60);
        engine.reload_well();
    }
    let seen = load.end();
    assert!(seen.processes.len() >= 4, "{:?}", seen.processes);
    server.quit();
    check_notes(&seen, &place.notes());
}

#[test]
fn nginx() {
    if !have("applications::servers::nginx", "nginx", "-v") {
        return;
    }
    let place = Place::with(&[]);
    let location = format!(
        "access_log {} note; add_header X-Process $pid; return 200 '$request_method $request_uri\\n';",
        place.text("notes")
    );
    // It does not read the body.
    let answered = |method: &str, target: &str, _: &str| format!("{method} {target}\n");
    survives_upstream_set(&place, answered, |name| Running::nginx(&place, name, &location));
}

#[test]
fn nginx_and_php_fpm() {
    let test = "applications::servers::nginx_and_php_fpm";
    let Some(fpm) = php_fpm() else { return skip(test, "needs php-fpm") };
    if !have(test, "nginx", "-v") {
        return;
    }
    let place = Place::with(&["app.php"]);
    survives_upstream_set(&place, echoed, |name| {
        let socket = place.text(&format!("{name}.fpm"));
        let location = format!(
            "include /etc/nginx/fastcgi_params; fastcgi_param SCRIPT_FILENAME {}; fastcgi_pass unix:{socket};",
            place.text("app.php")
        );
        let config = place.text(&format!("{name}.conf"));
        let text = format!(
            "[global]\ndaemonize = no\nerror_log = {socket}.log\n\
             [www]\nuser = www-data\nlisten = {socket}\nlisten.mode = 0666\n\
             pm = static\npm.max_children = 2\nenv[NOTES] = {}\n",
            place.text("notes")
        );
        std::fs::write(&config, text).expect("write");
        let child = start(Command::new(&fpm).args(["-n", "-y", &config]));
        let mut server = Running::nginx(&place, name, &location);
        server.children.push(child);
        eventually("PHP listens", || std::path::Path::new(&socket).exists());
        server
    });
}

/// Debian's has its version in its name.
fn php_fpm() -> Option<std::path::PathBuf> {
    let programs = std::fs::read_dir("/usr/sbin").ok()?;
    let mut found = programs.filter_map(|entry| Some(entry.ok()?.path()));
    found.find(|path| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"php-fpm"))
    })
}
