//! Where settings come from: defaults, then the file, then the environment, then the command line.
//!
//! Kept by the supervisor and read again at every reload, so that a changed file counts.
//!
//! Must not know: what the settings do.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::Settings;
use super::environment::{self, ENVIRONMENT, is_secret};
use super::file;

/// A configuration that cannot be used. Whoever wrote it can mend it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {error}; check the path given with --config", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is not TOML, or has a key that does not exist, or a value of the wrong type.
    #[error("{}:{line}: {message}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key, and what is wrong with it.
        message: String,
    },
    /// An environment variable cannot be understood.
    #[error("environment variable {name}={value:?}: {reason}")]
    Environment {
        /// The variable.
        name: &'static str,
        /// What it holds, unless that is secret.
        value: String,
        /// What was expected.
        reason: String,
    },
    /// An environment variable that looks like one of zdt, and is not.
    #[error("environment variable {name}: there is no such variable{}", meant(suggestion.as_deref()))]
    UnknownVariable {
        /// The variable.
        name: String,
        /// What was probably meant.
        suggestion: Option<String>,
    },
    /// A value that makes no sense.
    #[error("{origin}{setting}: {reason}")]
    Invalid {
        /// Where the value stands, if that is known.
        origin: String,
        /// The setting.
        setting: String,
        /// Why.
        reason: String,
    },
}

fn meant(suggestion: Option<&str>) -> String {
    match suggestion {
        Some(name) => format!("; did you mean {name}?"),
        None => "; docs/operations.md lists all there are".to_owned(),
    }
}

/// Settings given on the command line; a dotted name each.
#[derive(Debug, Clone, Default)]
pub struct Overrides(Table);

impl Overrides {
    /// Adds one; a later one wins.
    pub fn set(&mut self, setting: &str, value: impl Into<Value>) {
        insert(&mut self.0, setting, value.into());
    }

    /// Adds a list of tables with paths in them.
    pub fn set_tables<'a, const N: usize>(
        &mut self,
        setting: &str,
        tables: impl Iterator<Item = [(&'a str, &'a PathBuf); N]>,
    ) {
        let path = |path: &PathBuf| Value::String(path.display().to_string());
        let table = |pairs: [(&str, &PathBuf); N]| {
            Value::Table(
                pairs.map(|(key, value)| (key.to_owned(), path(value))).into_iter().collect(),
            )
        };
        self.set(setting, tables.map(table).collect::<Vec<_>>());
    }
}

/// What settings are read from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file; without one the defaults are what the environment and the flags build on.
    pub file: Option<PathBuf>,
    /// What the program that embeds the engine has as defaults of its own.
    pub defaults: Overrides,
    /// The command line.
    pub overrides: Overrides,
}

/// Settings, and where each came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// Every one, in the order of their names.
    pub shown: Vec<ShownSetting>,
}

/// A setting as `zdt config show` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShownSetting {
    /// Its dotted name.
    pub setting: String,
    /// Its value; null if it has none, `"[secret]"` in place of a secret.
    pub value: serde_json::Value,
    /// `default`, `program` (the one that embeds the engine), `file`, `environment` or `flag`.
    pub source: String,
    /// File and line, variable or flag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    Program,
    File(String),
    Environment(&'static str),
    Flag(String),
}

impl Origin {
    fn name(&self) -> &'static str {
        match self {
            Origin::Program => "program",
            Origin::File(_) => "file",
            Origin::Environment(_) => "environment",
            Origin::Flag(_) => "flag",
        }
    }

    fn at(&self) -> Option<String> {
        match self {
            Origin::Program => None,
            Origin::File(at) | Origin::Flag(at) => Some(at.clone()),
            Origin::Environment(name) => Some((*name).to_owned()),
        }
    }
}

impl Sources {
    /// Reads the file and this process's environment, and checks the result.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(&self) -> Result<Settings, ConfigError> {
        Ok(self.load_shown()?.settings)
    }

    /// Like [`Sources::load`], and says where each value came from.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load_shown(&self) -> Result<Loaded, ConfigError> {
        let names: Vec<String> =
            std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect();
        environment::refuse_unknown(names.iter().map(String::as_str))?;
        self.resolve(|name| std::env::var(name).ok())
    }

    /// Like [`Sources::load`] with another environment.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load_with(
        &self,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Settings, ConfigError> {
        Ok(self.resolve(environment)?.settings)
    }

    fn resolve(&self, environment: impl Fn(&str) -> Option<String>) -> Result<Loaded, ConfigError> {
        let mut table = Table::new();
        let mut origins = BTreeMap::new();
        let mut over = |from: &Table, origin: &dyn Fn(&str) -> Origin| {
            file::flatten("", from, &mut |name, value| {
                insert(&mut table, name, value.clone());
                origins.insert(name.to_owned(), origin(name));
            });
        };
        over(&self.defaults.0, &|_| Origin::Program);
        if let Some(path) = &self.file {
            let values = file::read(path)?;
            let at = |name: &str| format!("{}:{}", path.display(), values.lines[name]);
            over(&values.table, &|name| Origin::File(at(name)));
        }
        for variable in ENVIRONMENT {
            let Some(text) = environment(variable.name).filter(|text| !text.is_empty()) else {
                continue;
            };
            let read = environment::parse(variable.form, &text).and_then(|value| {
                file::check_type(variable.setting, &value)?;
                Ok(value)
            });
            let value = read.map_err(|reason| ConfigError::Environment {
                name: variable.name,
                value: if is_secret(variable.setting) { "[secret]".to_owned() } else { text },
                reason,
            })?;
            let mut one = Table::new();
            insert(&mut one, variable.setting, value);
            over(&one, &|_| Origin::Environment(variable.name));
        }
        // Flags are named as their settings are, without the section.
        over(&self.overrides.0, &|name| {
            let flag = match name {
                "gateway.upstream" => "upstream",
                "gateway.app.command" => "app",
                name => name,
            };
            Origin::Flag(format!("--{}", flag.replace('_', "-")))
        });

        let invalid = |setting: &str, reason: String| ConfigError::Invalid {
            origin: origins
                .get(setting)
                .and_then(|origin: &Origin| Some(format!("{}: ", origin.at()?)))
                .unwrap_or_default(),
            setting: setting.to_owned(),
            reason,
        };
        let mut settings: Settings = table
            .try_into()
            .map_err(|error: toml::de::Error| invalid("settings", error.message().to_owned()))?;
        settings.check().map_err(|(setting, reason)| invalid(setting, reason))?;
        settings.read_files().map_err(|(setting, reason)| invalid(setting, reason))?;
        if let Some(path) = &settings.admin_token_file {
            origins.insert("admin_token".to_owned(), Origin::File(path.display().to_string()));
        }
        if let Some(path) = &settings.parking.key_file {
            origins.insert("parking.key".to_owned(), Origin::File(path.display().to_string()));
        }
        let shown = show(&settings, &origins);
        Ok(Loaded { settings, shown })
    }
}

fn show(settings: &Settings, origins: &BTreeMap<String, Origin>) -> Vec<ShownSetting> {
    let values = values(settings);
    let shown = file::known_settings().into_keys().map(|setting| {
        let origin = origins.get(&setting);
        ShownSetting {
            value: values.get(&setting).cloned().unwrap_or_default(),
            source: origin.map_or("default", Origin::name).to_owned(),
            at: origin.and_then(Origin::at),
            setting,
        }
    });
    shown.collect()
}

/// Every value that there is, by dotted name; secrets as `[secret]`.
pub(super) fn values(settings: &Settings) -> BTreeMap<String, serde_json::Value> {
    let table = Table::try_from(settings).expect("settings are a table");
    let mut values = BTreeMap::new();
    file::flatten("", &table, &mut |name, value| {
        let value = if is_secret(name) {
            "[secret]".into()
        } else {
            serde_json::to_value(value).unwrap_or_default()
        };
        values.insert(name.to_owned(), value);
    });
    values
}

pub(super) fn insert(table: &mut Table, setting: &str, value: Value) {
    match setting.split_once('.') {
        None => {
            table.insert(setting.to_owned(), value);
        }
        Some((section, rest)) => {
            let section = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            if !section.is_table() {
                *section = Value::Table(Table::new());
            }
            if let Value::Table(section) = section {
                insert(section, rest, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::super::settings::Strategy;
    use super::*;

    fn file(text: &str) -> (tempfile::NamedTempFile, Sources) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let sources = Sources { file: Some(file.path().to_owned()), ..Sources::default() };
        (file, sources)
    }

    fn environment(name: &str) -> Option<String> {
        let value = match name {
            "WORKER_COUNT" => "4",
            "GRACEFUL_SHUTDOWN_TIMEOUT" => "1.5",
            "ZERO_DOWNTIME_STRATEGY" => "BLUE_GREEN",
            "AUTO_RESTART_WORKERS" => "off",
            _ => return None,
        };
        Some(value.to_owned())
    }

    #[test]
    fn flags_win_over_environment_over_file_over_defaults() {
        let (_file, mut sources) =
            file("workers = 3\ndrain_timeout_ms = 7\nbacklog = 9\n[respawn]\nlimit = 1\n");
        sources.overrides.set("workers", 5);
        sources.overrides.set("reload.settle_ms", 1);
        let settings = sources.load_with(environment).unwrap();
        assert_eq!(settings.workers, 5, "the flag");
        assert_eq!(settings.drain_timeout_ms, 1_500, "the environment");
        assert_eq!(settings.backlog, 9, "the file");
        assert_eq!(settings.drain_delay_ms, 0, "the default");
        assert_eq!(settings.strategy, Strategy::BlueGreen);
        assert_eq!((settings.respawn.enabled, settings.respawn.limit), (false, 1));
        assert_eq!(settings.reload.settle_ms, 1);
        assert_eq!(settings.reload.handoff_timeout_ms, 30_000);
    }

    #[test]
    fn every_value_says_where_it_came_from() {
        let (path, mut sources) = file("workers = 3\nlisten = ['127.0.0.1:1']\nbacklog = 9\n");
        sources.overrides.set("log_format", "json");
        sources.defaults.set("service", "mine");
        let shown = sources.resolve(environment).unwrap().shown;
        let of = |name: &str| shown.iter().find(|one| one.setting == name).unwrap().clone();
        let line = |line| Some(format!("{}:{line}", path.path().display()));
        assert_eq!((of("workers").source.as_str(), of("workers").value), ("environment", 4.into()));
        assert_eq!(of("workers").at.as_deref(), Some("WORKER_COUNT"));
        assert_eq!((of("backlog").source.as_str(), of("backlog").at), ("file", line(3)));
        assert_eq!((of("listen").source.as_str(), of("listen").at), ("file", line(2)));
        assert_eq!(of("log_format").at.as_deref(), Some("--log-format"));
        assert_eq!((of("service").source.as_str(), of("service").at), ("program", None));
        assert_eq!((of("policy").source.as_str(), of("policy").at), ("default", None));
        assert_eq!(of("run_dir").value, serde_json::Value::Null);
    }

    #[test]
    fn secrets_are_neither_shown_nor_quoted() {
        let secret = |asked: &str| {
            (asked == "ZERO_DOWNTIME_ADMIN_TOKEN").then(|| "correct-horse-battery".to_owned())
        };
        let loaded = Sources::default().resolve(secret).unwrap();
        assert_eq!(loaded.settings.admin_token.as_ref().unwrap().expose(), "correct-horse-battery");
        let text = format!("{loaded:?} {}", serde_json::to_string(&loaded.shown).unwrap());
        assert!(!text.contains("horse") && text.contains("[secret]"), "{text}");
        let bad =
            |asked: &str| (asked == "ZERO_DOWNTIME_ADMIN_TOKEN").then(|| "short horse".to_owned());
        let error = Sources::default().resolve(bad).unwrap_err().to_string();
        assert!(error.contains("ZERO_DOWNTIME_ADMIN_TOKEN") && !error.contains("horse"), "{error}");
    }

    #[test]
    fn an_error_shows_file_line_and_key() {
        for (text, line, key) in [
            ("listen = []\nworker = 2\n", 2, "worker"),
            ("[limits]\nmax_conections = 1\n", 2, "limits.max_conections"),
            // Understood, and of no use.
            ("\n\nworkers = 129\n", 3, "workers"),
            ("[handoff]\nwindow = 0\n", 2, "handoff.window"),
        ] {
            let (file, sources) = file(text);
            let message = sources.load_with(|_| None).unwrap_err().to_string();
            assert!(message.contains(&format!("{}:{line}", file.path().display())), "{message}");
            assert!(message.contains(key), "{message}");
        }
    }

    #[test]
    fn a_bad_variable_is_reported_by_its_name() {
        for (name, value) in [
            ("WORKER_COUNT", "many"),
            ("WORKER_COUNT", "-1"),
            ("GRACEFUL_SHUTDOWN_TIMEOUT", "-3"),
            ("SOCKET_REUSE_PORT", "maybe"),
            ("ZERO_DOWNTIME_STRATEGY", "big-bang"),
        ] {
            let environment = |asked: &str| (asked == name).then(|| value.to_owned());
            let message = Sources::default().load_with(environment).unwrap_err().to_string();
            assert!(message.contains(name) && message.contains(value), "{message}");
        }
    }

    #[test]
    fn every_variable_names_a_setting() {
        let known = file::known_settings();
        for variable in ENVIRONMENT {
            assert!(known.contains_key(variable.setting), "{} overrides nothing", variable.name);
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_says_which() {
        for path in ["/nonexistent/zdt.toml", "/dev/zero", "/"] {
            let sources = Sources { file: Some(path.into()), ..Sources::default() };
            let message = sources.load_with(|_| None).unwrap_err().to_string();
            assert!(message.contains(path), "{message}");
        }
    }
}
