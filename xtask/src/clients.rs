//! Third-party clients for the tests, fetched into `target/clients`.
//!
//! Must not know: which test uses which.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::process::{output_of, run, target_dir};

/// From PyPI, and what each is for. Versions are fixed so that a test fails for our reasons only.
const PYTHON_PACKAGES: [(&str, &str); 6] = [
    ("h11==0.16.0", "another HTTP/1.1 parser, to compare verdicts with"),
    ("h2==4.3.0", "an HTTP/2 client that is not ours, with WebSockets (RFC 8441)"),
    ("hpack==4.1.0", "another HPACK encoder, to compare with"),
    ("websockets==15.0.1", "a WebSocket client that is not ours, with compression"),
    ("prometheus_client==0.21.1", "reads the metrics as Prometheus does"),
    ("kosoku==0.1.0", "runs the cases of the Autobahn test suite"),
];

/// Programs that tests use if they are there, a flag that asks whether they are, and what each is for.
const PROGRAMS: [(&str, &str, &str); 4] = [
    ("curl", "--version", "an HTTP client that is not ours"),
    ("nghttp", "--version", "another HTTP/2 client that is not ours"),
    ("h2load", "--version", "an HTTP/2 load generator that is not ours"),
    ("haproxy", "-v", "a proxy in front that tells who its clients are"),
];

/// What the tests are told, and what they have to do without.
pub struct Clients {
    pub environment: Vec<(&'static str, OsString)>,
    pub missing: Vec<String>,
}

/// Fetches what is not there yet.
pub fn fetch() -> Clients {
    let mut clients = Clients { environment: Vec::new(), missing: Vec::new() };
    let venv = target_dir().join("clients/python");
    match python(&venv) {
        Ok(()) => {
            clients.environment.push(("ZDT_TEST_PYTHON", venv.join("bin/python").into()));
        }
        Err(error) => {
            let purposes: Vec<_> = PYTHON_PACKAGES
                .iter()
                .map(|(package, purpose)| format!("{package} ({purpose})"))
                .collect();
            clients.missing.push(format!("Python clients {}: {error:#}", purposes.join(", ")));
        }
    }
    for (program, flag, purpose) in PROGRAMS {
        if output_of(program, [flag]).is_none() {
            clients.missing.push(format!("{program} ({purpose}): not installed"));
        }
    }
    clients
}

fn python(venv: &Path) -> Result<()> {
    // Written last, so that a broken installation is tried again.
    let stamp = venv.join("zdt-packages");
    let wanted: String =
        PYTHON_PACKAGES.iter().map(|(package, _)| format!("{package}\n")).collect();
    if fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return Ok(());
    }
    if venv.exists() {
        fs::remove_dir_all(venv)?;
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(venv))?;
    run(Command::new(venv.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check"])
        .args(PYTHON_PACKAGES.map(|(package, _)| package)))?;
    fs::write(stamp, wanted)?;
    Ok(())
}
