//! The gateway in front of applications and servers of other people, which are replaced, as zdt is, under load.

mod examples;
mod load;
mod servers;
mod websockets;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::supervisor::engine::{Engine, Options};

/// Files of a test: the application's, and what it writes.
struct Place(tempfile::TempDir);

impl Place {
    /// With these files of this directory.
    #[track_caller]
    fn with(files: &[&str]) -> Place {
        let place = Place(tempfile::tempdir().expect("tempdir"));
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/applications");
        for file in files {
            std::fs::copy(from.join(file), place.path(file)).expect("copy");
        }
        std::fs::create_dir(place.path("sessions")).expect("create");
        std::fs::write(place.path("notes"), "").expect("write");
        // Some servers give up their privileges.
        for (name, mode) in [("", 0o755), ("notes", 0o666), ("sessions", 0o777)] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(place.path(name), mode).expect("chmod");
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    /// What the applications have written down: a line for each request that has arrived.
    #[track_caller]
    fn notes(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("notes")).expect("notes");
        text.lines().map(str::to_owned).collect()
    }

    /// A gateway that is started here, as a user would who has installed what it needs.
    #[track_caller]
    fn gateway(&self, config: &str) -> Options {
        let mut options = Options::config(&format!("workers = 2\n{config}"))
            .and("--steering", "off")
            .and("--service", "proxy")
            // The Python of whoever runs the tests may be nobody else's to read.
            .and("--user", "root")
            .with("NOTES", &self.text("notes"))
            .with("SESSIONS", &self.text("sessions"));
        if let Some(modules) = std::env::var_os("ZDT_TEST_NODE_MODULES") {
            options = options.with("NODE_PATH", &modules.to_string_lossy());
        }
        if let Some(python) = std::env::var_os("ZDT_TEST_PYTHON") {
            let beside = Path::new(&python).parent().expect("a directory").to_owned();
            let known = std::env::var_os("PATH").unwrap_or_default();
            let paths = [beside].into_iter().chain(std::env::split_paths(&known));
            let paths: OsString = std::env::join_paths(paths).expect("PATH");
            options = options.with("PATH", &paths.to_string_lossy());
        }
        options.directory = Some(self.path(""));
        options
    }
}

/// A gateway that runs this application.
#[track_caller]
fn run(options: Options, command: &str) -> Engine {
    Engine::start(options.and("--app", command))
}

/// Replaces the application. The new one answers, or this fails.
#[track_caller]
fn swap(engine: &Engine) {
    let output = engine.zdt(&["reload", "--app", "--json"]);
    let swapped: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}\n{}", engine.log()));
    assert_eq!(swapped["swap_successful"], true, "{swapped}");
}
