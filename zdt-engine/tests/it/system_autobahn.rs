//! The cases of the Autobahn test suite, run by kosoku against `/ws/echo`: at rest, and while the
//! workers are replaced under them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::lab::programs::python;
use crate::lab::system::while_reloading;
use crate::supervisor::engine::{Engine, Options};

/// Compression in bulk: nearly half of the cases, and nearly all of the time.
const IN_BULK: [&str; 2] = ["12.*", "13.*"];

/// What is left without those, and all.
const CASES: usize = 301;
const ALL_CASES: usize = 517;

/// Which cases a run of the suite is made of.
enum Part {
    Only(&'static str),
    NotInBulk,
}

/// How many cases behaved how.
type Behaviours = BTreeMap<String, usize>;

/// Runs a part of the suite.
fn run_suite(python: &Path, engine: &Engine, part: &Part) -> Behaviours {
    let report = tempfile::tempdir().expect("tempdir");
    let mut command = Command::new(python.with_file_name("kosoku"));
    command.args(["-m", "fuzzingclient", "-p", "4", "-o"]).arg(report.path());
    match part {
        Part::Only(cases) => {
            command.args(["-i", cases]);
        }
        Part::NotInBulk => {
            command.args(IN_BULK.iter().flat_map(|cases| ["-x", cases]));
        }
    }
    let output =
        command.arg(format!("ws://{}/ws/echo", engine.address())).output().expect("run kosoku");
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let index = std::fs::read(report.path().join("index.json")).expect("the report");
    let index: Value = serde_json::from_slice(&index).expect("JSON");
    let mut behaviours = Behaviours::new();
    for agent in index.as_object().expect("agents").values() {
        for (case, result) in agent.as_object().expect("cases") {
            for aspect in ["behavior", "behaviorClose"] {
                let behaviour = result[aspect].as_str().expect("behaviour");
                assert!(
                    ["OK", "INFORMATIONAL"].contains(&behaviour),
                    "case {case}: {aspect} {behaviour}: {result}\n{said}"
                );
            }
            let behaviour = result["behavior"].as_str().expect("behaviour").to_owned();
            *behaviours.entry(behaviour).or_default() += 1;
        }
    }
    assert!(output.status.success(), "{}\n{said}", output.status);
    behaviours
}

#[test]
fn every_case_passes() {
    let Some(python) = python("system_autobahn::every_case_passes") else { return };
    let engine = Engine::start(Options::default());
    let behaviours = run_suite(&python, &engine, &Part::NotInBulk);
    assert_eq!(behaviours.values().sum::<usize>(), CASES, "{behaviours:?}");
}

/// All of the suite, those in bulk beside the others: a client takes longer for them than the engine.
#[test]
fn every_case_passes_while_workers_are_replaced() {
    let test = "system_autobahn::every_case_passes_while_workers_are_replaced";
    let Some(python) = python(test) else { return };
    let engine = Engine::start(Options::default());
    let parts = [Part::NotInBulk, Part::Only(IN_BULK[0]), Part::Only(IN_BULK[1])];
    let (behaviours, reloads) = while_reloading(&engine, Duration::from_millis(100), || {
        std::thread::scope(|scope| {
            let runs: Vec<_> = parts
                .iter()
                .map(|part| scope.spawn(|| run_suite(&python, &engine, part)))
                .collect();
            let mut all = Behaviours::new();
            for run in runs {
                let behaviours =
                    run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                for (behaviour, count) in behaviours {
                    *all.entry(behaviour).or_default() += count;
                }
            }
            all
        })
    });
    assert_eq!(behaviours.values().sum::<usize>(), ALL_CASES, "{behaviours:?}");
    assert!(reloads >= 20, "only {reloads} reloads");
}
