//! The pages for users, held against the code: every command, flag, variable, address, fault point and
//! section of a record is described, and every link leads somewhere.
//!
//! Must not know: whether what is described is right.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{fail_with, sources, workspace};

fn page(name: &str) -> String {
    std::fs::read_to_string(workspace().join(name))
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What `zdt ARGUMENTS --help` prints.
fn help(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_zdt"))
        .args(arguments)
        .arg("--help")
        .output()
        .expect("zdt runs");
    assert!(output.status.success(), "zdt {arguments:?} --help");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The commands that the help lists.
fn commands(help: &str) -> Vec<String> {
    let listed = help.split_once("Commands:\n").expect("a list of commands").1;
    listed
        .lines()
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .map(str::to_owned)
        .collect()
}

/// The long flags of a command.
fn flags(help: &str) -> BTreeSet<String> {
    help.lines()
        .map(str::trim_start)
        .filter(|line| line.starts_with('-'))
        .filter_map(|line| line.split([' ', ',']).find(|word| word.starts_with("--")))
        .filter(|flag| !["--help", "--version"].contains(flag))
        .map(str::to_owned)
        .collect()
}

#[test]
fn operations_describes_every_command_and_flag() {
    let operations = page("docs/operations.md");
    let commands = commands(&help(&[]));
    assert!(commands.len() >= 5, "{commands:?}");
    let mut problems = Vec::new();
    for command in commands {
        let title = format!("\n### zdt {command}\n");
        let Some((_, section)) = operations.split_once(&title) else {
            problems.push(format!("zdt {command} has no section"));
            continue;
        };
        let section = section.split("\n##").next().expect("at least one piece");
        for flag in flags(&help(&[&command])) {
            if !section.contains(&format!("`{flag}`")) && !section.contains(&format!("`{flag} ")) {
                problems.push(format!("zdt {command} {flag} is not described there"));
            }
        }
    }
    fail_with(&problems, "docs/operations.md is not complete");
}

#[test]
fn operations_describes_every_variable_and_path() {
    let operations = page("docs/operations.md");
    let mut problems = Vec::new();
    for variable in zdt_engine::config::ENVIRONMENT {
        if !operations.contains(&format!("`{}`", variable.name)) {
            problems.push(format!("environment variable {}", variable.name));
        }
    }
    for source in sources().iter().filter(|source| source.layer() == Some("admin")) {
        for path in between(&source.text, ".route(\"", "\"") {
            if !operations.contains(&format!("{path}`")) {
                problems.push(format!("admin path {path}"));
            }
        }
    }
    fail_with(&problems, "docs/operations.md is not complete");
}

#[test]
fn the_handoff_page_names_every_fault_point() {
    let handoff = page("docs/handoff-protocol.md");
    let all = sources();
    let mut points: Vec<&str> = all
        .iter()
        .filter(|source| !source.is_test)
        .flat_map(|source| between(&source.text, "fault_point!(\"", "\""))
        .collect();
    points.retain(|point| !handoff.contains(&format!("`{point}`")));
    let problems: Vec<String> = points.into_iter().map(str::to_owned).collect();
    fail_with(&problems, "docs/handoff-protocol.md lacks fault points");
}

#[test]
fn the_state_page_names_every_section() {
    let state = page("docs/state-format.md");
    let mut problems = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test) {
        for declaration in between(&source.text, "const TAG_", ";") {
            let (name, tag) = declaration.split_once(": u16 = ").expect("a tag");
            let row = format!("| {tag} | `TAG_{name}` |");
            if !state.contains(&row) {
                problems.push(format!("src/{}: TAG_{name} = {tag}", source.name));
            }
        }
    }
    fail_with(&problems, "docs/state-format.md lacks sections");
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Vec<&'a str> {
    text.split(start).skip(1).filter_map(|rest| Some(rest.split_once(end)?.0)).collect()
}

/// All pages below a directory, what is built or fetched aside.
fn pages_below(directory: &Path, pages: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let skipped = ["target", "node_modules"].contains(&name.as_str());
        if path.is_dir() && !skipped && !name.starts_with('.') {
            pages_below(&path, pages);
        } else if name.ends_with(".md") {
            pages.push(path);
        }
    }
}

/// A heading as it is linked to.
fn anchor(heading: &str) -> String {
    heading
        .trim()
        .to_lowercase()
        .chars()
        .filter(|one| one.is_alphanumeric() || " -_".contains(*one))
        .map(|one| if one == ' ' { '-' } else { one })
        .collect()
}

#[test]
fn links_lead_somewhere() {
    let mut pages = Vec::new();
    pages_below(&workspace(), &mut pages);
    assert!(pages.len() > 5, "{pages:?}");
    let mut problems = Vec::new();
    for page in &pages {
        let text = std::fs::read_to_string(page).expect("a page");
        // Of a fenced block, nothing is a link.
        let prose: String = text.split("```").step_by(2).collect();
        for target in between(&prose, "](", ")") {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let to = if file.is_empty() {
                page.clone()
            } else {
                page.parent().expect("in a directory").join(file)
            };
            let there = to.exists()
                && (heading.is_empty()
                    || std::fs::read_to_string(&to).is_ok_and(|text| {
                        let headings = text.lines().filter(|line| line.starts_with('#'));
                        headings.map(|l| anchor(l.trim_start_matches('#'))).any(|a| a == heading)
                    }));
            if !there {
                problems.push(format!("{}: {target}", page.display()));
            }
        }
    }
    fail_with(&problems, "links that lead nowhere");
}
