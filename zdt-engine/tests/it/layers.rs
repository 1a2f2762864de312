//! The layers of ARCHITECTURE.md, held against the sources of the engine; and the pages for users,
//! held against the code.
//!
//! The table under "Layers" in ARCHITECTURE.md is what is enforced: who stands above whom, and who may
//! use whom. A dependency that breaks it is mended or, for the time being, listed here with a reason.
//!
//! Must not know: what any module does.

mod pages;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use source::Source;

/// Dependencies that the table does not allow, and why they are there all the same. One that is gone
/// must go from here, too.
const EXCEPTIONS: [(&str, &str, &str); 1] = [(
    "supervisor/requests/reception.rs",
    "admin",
    "the supervisor starts its own admin endpoint; it should be handed one by `cli`, which is \
         above both",
)];

/// Files that do not say what they must not know, and why.
const WITHOUT_MUST_NOT_KNOW: [(&str, &str); 2] =
    [("lib.rs", "the root names every layer"), ("main.rs", "calls `cli`, and nothing else")];

/// Modules in which `unsafe` may occur.
const UNSAFE: [&str; 4] = ["sys", "uring", "shm", "fdpass"];

/// Crates that stand for a layer's task, and where that task is.
const CRATES: [(&str, &[&str]); 12] = [
    ("aya", &["steering"]),
    ("axum", &["admin"]),
    ("caps", &["supervisor"]),
    ("clap", &["cli", "config"]),
    ("io_uring", &["uring"]),
    ("memmap2", &["shm"]),
    ("seccompiler", &["sys"]),
    ("tokio", &["supervisor", "admin"]),
    ("tokio_uring", &["supervisor"]),
    ("toml", &["config"]),
    ("zdt_common", &["steering"]),
    ("zlib_rs", &["proto"]),
];

/// Layers without I/O, clock and randomness, and the words that would bring them in. Addresses and
/// durations are values like others.
const PURE: [&str; 3] = ["proto", "conn", "state"];
const IMPURE: [&str; 14] = [
    "Instant",
    "SystemTime",
    "TcpStream",
    "UdpSocket",
    "crossbeam",
    "fs",
    "libc",
    "nix",
    "process",
    "rand",
    "sleep",
    "slab",
    "thread",
    "tracing",
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("in the workspace").to_owned()
}

fn sources() -> Vec<Source> {
    Source::all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
}

/// What stands between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The table of ARCHITECTURE.md: layers from top to bottom, each with those that it may use.
fn table() -> Vec<(String, BTreeSet<String>)> {
    let page = std::fs::read_to_string(workspace().join("ARCHITECTURE.md")).expect("the page");
    let section = page
        .split("\n## ")
        .find(|section| section.starts_with("Layers\n"))
        .expect("ARCHITECTURE.md has a section \"Layers\"");
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        let [module, uses, _knows, _must_not_know] = cells[..] else {
            panic!("a row of four cells was expected: {row}");
        };
        let module = quoted(module).next().expect("a module").to_owned();
        (module, quoted(uses).map(str::to_owned).collect())
    })
    .collect()
}

fn fail_with(problems: &[String], advice: &str) {
    assert!(problems.is_empty(), "{advice}:\n  {}", problems.join("\n  "));
}

#[test]
fn the_table_points_down_and_is_complete() {
    let table = table();
    let rank: BTreeMap<&str, usize> =
        table.iter().enumerate().map(|(rank, (module, _))| (module.as_str(), rank)).collect();
    let mut problems = Vec::new();
    for (at, (module, uses)) in table.iter().enumerate() {
        for used in uses {
            match rank.get(used.as_str()) {
                None => problems.push(format!("`{module}` may use `{used}`, which has no row")),
                Some(&below) if below <= at => {
                    problems.push(format!("`{module}` may use `{used}`, which is above it"));
                }
                Some(_) => {}
            }
        }
    }
    let layers: BTreeSet<String> =
        sources().iter().filter_map(|source| source.layer().map(str::to_owned)).collect();
    let rows: BTreeSet<String> = table.iter().map(|(module, _)| module.clone()).collect();
    problems.extend(layers.difference(&rows).map(|layer| format!("`{layer}` has no row")));
    problems.extend(rows.difference(&layers).map(|row| format!("`{row}` does not exist")));
    fail_with(&problems, "mend the table of ARCHITECTURE.md");
}

#[test]
fn dependencies_point_down() {
    let table: BTreeMap<String, BTreeSet<String>> = table().into_iter().collect();
    let mut exceptions: BTreeSet<(&str, &str)> =
        EXCEPTIONS.iter().map(|&(file, layer, _)| (file, layer)).collect();
    let mut problems = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test) {
        let Some(layer) = source.layer() else { continue };
        let allowed = &table[layer];
        for named in source.named() {
            let used = named.path[0].as_str();
            if used == layer || allowed.contains(used) {
                continue;
            }
            let known = EXCEPTIONS.iter().any(|&(file, to, _)| file == source.name && to == used);
            exceptions.retain(|&(file, to)| (file, to) != (source.name.as_str(), used));
            if !known {
                let path = named.path.join("::");
                problems.push(format!("src/{}:{}: {path}", source.name, named.line));
            }
        }
    }
    for (file, layer) in exceptions {
        problems.push(format!("src/{file} no longer uses `{layer}`: remove the exception"));
    }
    fail_with(&problems, "not allowed by the table under \"Layers\" in ARCHITECTURE.md");
}

#[test]
fn protocol_machines_do_not_know_each_other() {
    let mut problems = Vec::new();
    for source in sources().iter().filter(|source| source.layer() == Some("proto")) {
        let Some(machine) = source.module.get(1) else { continue };
        for named in source.named() {
            let other = named.path.get(1).filter(|_| named.path[0] == "proto");
            // HPACK is the encoding of HTTP/2's header fields, and apart only because it can be.
            if machine == "http2" && other.is_some_and(|other| other == "hpack") {
                continue;
            }
            // In lower case: a machine's module, not a type that all share.
            if other.is_some_and(|other| other != machine && other.starts_with(char::is_lowercase))
            {
                let path = named.path.join("::");
                problems.push(format!("src/{}:{}: {path}", source.name, named.line));
            }
        }
    }
    fail_with(&problems, "a protocol machine knows another one");
}

#[test]
fn every_file_says_what_it_is_for() {
    let mut problems = Vec::new();
    for source in sources() {
        let name = source.name.as_str();
        let opening: Vec<&str> =
            source.text.lines().take_while(|line| line.starts_with("//!")).collect();
        if opening.is_empty() {
            problems.push(format!("src/{name} does not open with //!"));
        }
        // Over line breaks.
        let text: String = opening.iter().map(|line| line.trim_start_matches("//!")).collect();
        let says = text.contains("Must not know:");
        let excused = WITHOUT_MUST_NOT_KNOW.iter().any(|&(file, _)| file == name);
        if says == excused && !source.is_test {
            let what = if says { "does, so it needs no excuse" } else { "does not" };
            problems.push(format!("src/{name} {what} say what it must not know"));
        }
    }
    fail_with(&problems, "each file says what it is for and what it must not know");
}

#[test]
fn unsafe_stays_with_the_kernel() {
    let mut problems = Vec::new();
    for source in sources() {
        if source.layer().is_some_and(|layer| UNSAFE.contains(&layer)) {
            continue;
        }
        for line in source.lines_with_word("unsafe") {
            problems.push(format!("src/{}:{line}: unsafe", source.name));
        }
        // The root denies it; nobody else allows it again.
        if source.layer().is_some() {
            for line in source.lines_with_word("unsafe_code") {
                problems.push(format!("src/{}:{line}: unsafe_code", source.name));
            }
        }
    }
    let root = sources().into_iter().find(|source| source.name == "lib.rs").expect("lib.rs");
    assert!(root.code.contains("#![deny(unsafe_code)]"), "lib.rs denies unsafe code");
    fail_with(&problems, "unsafe belongs into sys, uring, shm and fdpass");
}

#[test]
fn tasks_stay_in_their_layer() {
    let mut problems = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test) {
        let Some(layer) = source.layer() else { continue };
        for (name, layers) in CRATES.iter().filter(|(_, layers)| !layers.contains(&layer)) {
            for line in source.lines_with_word(name) {
                let only = layers.join(", ");
                problems.push(format!("src/{}:{line}: {name} is for {only}", source.name));
            }
        }
        for word in IMPURE.iter().filter(|_| PURE.contains(&layer)) {
            for line in source.lines_with_word(word) {
                problems.push(format!("src/{}:{line}: {word} in `{layer}`", source.name));
            }
        }
    }
    fail_with(&problems, "a task in a layer that must not know it");
}
