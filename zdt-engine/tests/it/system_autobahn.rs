//! The cases of the Autobahn test suite, run by kosoku against `/ws/echo`: at rest, and while the
//! workers are replaced under them.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::lab::system::{python, while_reloading};
use crate::supervisor::engine::{Engine, Options};

/// 9 measures; 12 and 13 are compression in bulk. All of them pass too, in minutes.
const TOO_LONG: [&str; 3] = ["9.*", "12.*", "13.*"];

/// What is left without those.
const CASES: usize = 247;

/// Runs the suite; returns how many cases behaved how.
fn run_suite(python: &std::path::Path, engine: &Engine) -> BTreeMap<String, usize> {
    let report = tempfile::tempdir().expect("tempdir");
    let mut command = Command::new(python.with_file_name("kosoku"));
    command.args(["-m", "fuzzingclient", "-p", "4", "-o"]).arg(report.path());
    for case in TOO_LONG {
        command.args(["-x", case]);
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
    let mut behaviours = BTreeMap::new();
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
    let behaviours = run_suite(&python, &engine);
    assert_eq!(behaviours.values().sum::<usize>(), CASES, "{behaviours:?}");
}

#[test]
fn every_case_passes_while_workers_are_replaced() {
    let test = "system_autobahn::every_case_passes_while_workers_are_replaced";
    let Some(python) = python(test) else { return };
    let engine = Engine::start(Options::default());
    let (behaviours, reloads) =
        while_reloading(&engine, Duration::from_millis(200), || run_suite(&python, &engine));
    assert_eq!(behaviours.values().sum::<usize>(), CASES, "{behaviours:?}");
    assert!(reloads >= 3, "only {reloads} reloads");
}
