//! Third-party clients and applications for the tests, fetched into `target/clients`.
//!
//! Must not know: which test uses which.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::process::{output_of, run, target_dir};

/// From PyPI, and what each is for. Versions are fixed so that a test fails for our reasons only.
const PYTHON_PACKAGES: [(&str, &str); 8] = [
    ("h11==0.16.0", "another HTTP/1.1 parser, to compare verdicts with"),
    ("h2==4.3.0", "an HTTP/2 client that is not ours, with WebSockets (RFC 8441)"),
    ("hpack==4.1.0", "another HPACK encoder, to compare with"),
    ("websockets==15.0.1", "a WebSocket client that is not ours, with compression"),
    ("prometheus_client==0.21.1", "reads the metrics as Prometheus does"),
    ("kosoku==0.1.0", "runs the cases of the Autobahn test suite"),
    ("uvicorn==0.54.0", "an application server behind the gateway"),
    ("gunicorn==27.0.1", "another application server behind the gateway"),
];

/// From npm, likewise.
const NODE_PACKAGES: [(&str, &str); 1] =
    [("ws@8.23.0", "WebSockets for Node, as a client and behind the gateway")];

/// Programs that tests use if they are there, a flag that asks whether they are, and what each is for.
const PROGRAMS: [(&str, &str, &str); 8] = [
    ("curl", "--version", "an HTTP client that is not ours"),
    ("nghttp", "--version", "another HTTP/2 client that is not ours"),
    ("h2load", "--version", "an HTTP/2 load generator that is not ours"),
    ("haproxy", "-v", "a proxy in front that tells who its clients are"),
    ("node", "--version", "an application behind the gateway, and clients that are not ours"),
    ("php", "--version", "an application behind the gateway"),
    ("nginx", "-v", "a server behind the gateway"),
    ("chromium", "--version", "a browser"),
];

/// What the tests are told, and what they have to do without.
pub struct Clients {
    pub environment: Vec<(&'static str, OsString)>,
    pub missing: Vec<String>,
}

/// Fetches what is not there yet.
pub fn fetch() -> Clients {
    let mut clients = Clients { environment: Vec::new(), missing: Vec::new() };
    let directory = target_dir().join("clients");
    let venv = directory.join("python");
    clients.add("ZDT_TEST_PYTHON", venv.join("bin/python"), &PYTHON_PACKAGES, python(&venv));
    let prefix = directory.join("node");
    let modules = prefix.join("node_modules");
    clients.add("ZDT_TEST_NODE_MODULES", modules, &NODE_PACKAGES, node(&prefix));
    for (program, flag, purpose) in PROGRAMS {
        if output_of(program, [flag]).is_none() {
            clients.missing.push(format!("{program} ({purpose}): not installed"));
        }
    }
    clients
}

impl Clients {
    fn add(
        &mut self,
        variable: &'static str,
        path: PathBuf,
        packages: &[(&str, &str)],
        fetched: Result<()>,
    ) {
        match fetched {
            Ok(()) => self.environment.push((variable, path.into())),
            Err(error) => {
                let purposes: Vec<_> = packages
                    .iter()
                    .map(|(package, purpose)| format!("{package} ({purpose})"))
                    .collect();
                self.missing.push(format!("{}: {error:#}", purposes.join(", ")));
            }
        }
    }
}

/// Fills a directory with packages, unless it has just these.
fn fill(
    directory: &Path,
    packages: &[(&str, &str)],
    install: impl FnOnce() -> Result<()>,
) -> Result<()> {
    // Written last, so that a broken installation is tried again.
    let stamp = directory.join("zdt-packages");
    let wanted: String = packages.iter().map(|(package, _)| format!("{package}\n")).collect();
    if fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return Ok(());
    }
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    install()?;
    fs::write(stamp, wanted)?;
    Ok(())
}

fn python(venv: &Path) -> Result<()> {
    fill(venv, &PYTHON_PACKAGES, || {
        run(Command::new("python3").args(["-m", "venv"]).arg(venv))?;
        run(Command::new(venv.join("bin/pip"))
            .args(["install", "--quiet", "--disable-pip-version-check"])
            .args(PYTHON_PACKAGES.map(|(package, _)| package)))
    })
}

fn node(prefix: &Path) -> Result<()> {
    fill(prefix, &NODE_PACKAGES, || {
        fs::create_dir_all(prefix)?;
        run(Command::new("npm")
            .args(["install", "--silent", "--no-audit", "--no-fund", "--no-save", "--prefix"])
            .arg(prefix)
            .args(NODE_PACKAGES.map(|(package, _)| package)))
    })
}
