//! Clients whose requests have numbers: each gets the answer to what it has asked, once.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::gateway::{Answer, read_answer};
use crate::lab::{client, eventually};

/// How a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    /// GET.
    Gets,
    /// GET and POST in turn: a POST may reach an application once, and no more.
    GetsAndPosts,
}

/// The text that answers a request, from its method, target and body.
pub type Expected = fn(&str, &str, &str) -> String;

/// Clients on kept connections, which go on until they are ended.
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    processes: Arc<Mutex<BTreeSet<String>>>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

/// What they have seen.
pub struct Seen {
    /// Method and target of every request; all were answered.
    pub requests: Vec<String>,
    /// The processes that answered.
    pub processes: BTreeSet<String>,
}

impl Load {
    /// Four clients.
    pub fn begin(address: SocketAddr, asks: Asks, expected: Expected) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let processes = Arc::new(Mutex::new(BTreeSet::new()));
        let clients = (0..4)
            .map(|name| {
                let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
                let processes = Arc::clone(&processes);
                std::thread::spawn(move || {
                    let mut stream = client::connect(address);
                    let mut asked = Vec::new();
                    while !stop.load(Ordering::SeqCst) {
                        let number = asked.len();
                        let posts = asks == Asks::GetsAndPosts && number % 2 == 1;
                        let method = if posts { "POST" } else { "GET" };
                        let target = format!("/{name}/{number}");
                        let body =
                            if posts { format!("body-{name}-{number}") } else { String::new() };
                        let length = match posts {
                            true => format!("Content-Length: {}\r\n", body.len()),
                            false => String::new(),
                        };
                        write!(
                            stream,
                            "{method} {target} HTTP/1.1\r\nHost: test\r\n{length}\r\n{body}"
                        )
                        .expect("write");
                        let answer = read_answer(&mut stream);
                        assert_eq!(
                            (answer.status, answer.text()),
                            (200, expected(method, &target, &body)),
                            "{method} {target}: {answer:?}"
                        );
                        if let Some(process) = process(&answer) {
                            processes.lock().expect("lock").insert(process);
                        }
                        asked.push(format!("{method} {target}"));
                        answered.fetch_add(1, Ordering::SeqCst);
                    }
                    asked
                })
            })
            .collect();
        Load { stop, answered, processes, clients }
    }

    /// Waits until so many more have been answered.
    #[track_caller]
    pub fn goes_on(&self, requests: u64) {
        let before = self.answered.load(Ordering::SeqCst);
        eventually("the clients go on", || {
            let ended = self.clients.iter().any(JoinHandle::is_finished);
            ended || self.answered.load(Ordering::SeqCst) >= before + requests
        });
    }

    /// Ends them; fails if one of them has failed.
    #[track_caller]
    pub fn end(self) -> Seen {
        self.stop.store(true, Ordering::SeqCst);
        let requests =
            self.clients.into_iter().flat_map(|client| client.join().expect("a client")).collect();
        let processes = self.processes.lock().expect("lock").clone();
        Seen { requests, processes }
    }
}

fn process(answer: &Answer) -> Option<String> {
    let line = answer.head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("x-process").then_some(value)
    });
    line.map(str::to_owned)
}

/// Every request has arrived, and what must not be repeated has not been.
#[track_caller]
pub fn check_notes(seen: &Seen, notes: &[String]) {
    let mut left: std::collections::HashMap<&str, usize> = std::collections::HashMap::new();
    for note in notes {
        *left.entry(note).or_default() += 1;
    }
    for request in &seen.requests {
        let times = left.remove(request.as_str()).unwrap_or_default();
        assert!(times >= 1, "{request} was answered and never arrived");
        assert!(times == 1 || request.starts_with("GET "), "{request} arrived {times} times");
    }
    left.retain(|note, _| !note.contains("/health"));
    assert!(left.is_empty(), "arrived, and nobody asked: {left:?}");
}
