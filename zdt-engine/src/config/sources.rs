//! Where settings come from: defaults, then the file, then the environment, then the command line.
//!
//! Kept by the supervisor and read again at every reload, so that a changed file counts.
//!
//! Must not know: what the settings do.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::settings::Settings;

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
    #[error("{}: {message}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
    /// An environment variable cannot be understood.
    #[error("environment variable {name}={value:?}: {reason}")]
    Environment {
        /// The variable.
        name: &'static str,
        /// What it holds.
        value: String,
        /// What was expected.
        reason: String,
    },
    /// A value that makes no sense.
    #[error("{setting}: {reason}")]
    Invalid {
        /// The setting.
        setting: String,
        /// Why.
        reason: String,
    },
}

/// How the text of an environment variable becomes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As it is.
    Text,
    /// Text in lower case with dashes.
    Name,
    /// An integer.
    Integer,
    /// Seconds, fractions allowed, that become milliseconds.
    Seconds,
    /// true, false, 1, 0, yes, no, on, off.
    Boolean,
}

/// An environment variable and the setting that it overrides.
#[derive(Debug, Clone, Copy)]
pub struct EnvironmentName {
    /// The variable.
    pub name: &'static str,
    /// The setting, dotted.
    pub setting: &'static str,
    /// How it is read.
    pub form: Form,
}

/// Every environment variable that is read.
pub const ENVIRONMENT: &[EnvironmentName] = &[
    EnvironmentName { name: "ZERO_DOWNTIME_STRATEGY", setting: "strategy", form: Form::Name },
    EnvironmentName {
        name: "ENABLE_CONNECTION_MIGRATION",
        setting: "migrate_connections",
        form: Form::Boolean,
    },
    EnvironmentName { name: "WORKER_COUNT", setting: "workers", form: Form::Integer },
    EnvironmentName {
        name: "GRACEFUL_SHUTDOWN_TIMEOUT",
        setting: "drain_timeout_ms",
        form: Form::Seconds,
    },
    EnvironmentName {
        name: "AUTO_RESTART_WORKERS",
        setting: "respawn.enabled",
        form: Form::Boolean,
    },
    EnvironmentName { name: "WORKER_RESPAWN_LIMIT", setting: "respawn.limit", form: Form::Integer },
    EnvironmentName {
        name: "WORKER_RESPAWN_WINDOW",
        setting: "respawn.window_ms",
        form: Form::Seconds,
    },
    EnvironmentName {
        name: "HANDOFF_TIMEOUT",
        setting: "reload.handoff_timeout_ms",
        form: Form::Seconds,
    },
    EnvironmentName { name: "SOCKET_REUSE_PORT", setting: "reuse_port", form: Form::Boolean },
];

/// Settings given on the command line; a dotted name each.
#[derive(Debug, Clone, Default)]
pub struct Overrides(Table);

impl Overrides {
    /// Adds one; a later one wins.
    pub fn set(&mut self, setting: &str, value: impl Into<Value>) {
        insert(&mut self.0, setting, value.into());
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

impl Sources {
    /// Reads the file and this process's environment, and checks the result.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(&self) -> Result<Settings, ConfigError> {
        self.load_with(|name| std::env::var(name).ok())
    }

    /// Like [`Sources::load`] with another environment.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load_with(
        &self,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Settings, ConfigError> {
        let mut table = self.defaults.0.clone();
        if let Some(path) = &self.file {
            merge(&mut table, &read_file(path)?);
        }
        for variable in ENVIRONMENT {
            if let Some(text) = environment(variable.name).filter(|text| !text.is_empty()) {
                let value = parse(variable.form, &text).map_err(|reason| {
                    ConfigError::Environment { name: variable.name, value: text.clone(), reason }
                })?;
                insert(&mut table, variable.setting, value);
                // A wrong value is reported here, by the name the user knows.
                Settings::try_from_table(table.clone()).map_err(|reason| {
                    ConfigError::Environment { name: variable.name, value: text, reason }
                })?;
            }
        }
        merge(&mut table, &self.overrides.0);
        let settings = Settings::try_from_table(table).map_err(|reason| ConfigError::Invalid {
            setting: "command line".to_owned(),
            reason,
        })?;
        settings.check().map_err(|(setting, reason)| ConfigError::Invalid {
            setting: setting.to_owned(),
            reason,
        })?;
        Ok(settings)
    }
}

impl Settings {
    fn try_from_table(table: Table) -> Result<Settings, String> {
        table.try_into().map_err(|error: toml::de::Error| error.message().to_owned())
    }
}

fn read_file(path: &Path) -> Result<Table, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error })?;
    let malformed = |error: toml::de::Error| ConfigError::Malformed {
        path: path.to_owned(),
        message: error.to_string().trim_end().to_owned(),
    };
    // Once typed, for an error that shows the line; once as a table, which the others override.
    toml::from_str::<Settings>(&text).map_err(malformed)?;
    let table = text.parse::<Table>().map_err(malformed)?;
    let known = Table::try_from(Settings::default()).expect("the defaults are a table");
    for (section, keys) in &table {
        let (Value::Table(keys), Some(Value::Table(known))) = (keys, known.get(section)) else {
            continue;
        };
        if let Some(key) = keys.keys().find(|key| !known.contains_key(*key)) {
            let line = text.lines().position(|line| line.trim_start().starts_with(key.as_str()));
            let known: Vec<&str> = known.keys().map(String::as_str).collect();
            return Err(ConfigError::Malformed {
                path: path.to_owned(),
                message: format!(
                    "line {}: unknown field `{key}` in [{section}], expected one of {}",
                    line.map_or(0, |line| line + 1),
                    known.join(", ")
                ),
            });
        }
    }
    Ok(table)
}

fn parse(form: Form, text: &str) -> Result<Value, String> {
    let text = text.trim();
    Ok(match form {
        Form::Text => Value::String(text.to_owned()),
        Form::Name => Value::String(text.to_ascii_lowercase().replace('_', "-")),
        Form::Integer => {
            Value::Integer(text.parse().map_err(|_| "expected a whole number".to_owned())?)
        }
        Form::Seconds => {
            let seconds: f64 = text.parse().map_err(|_| "expected seconds".to_owned())?;
            if !(0.0..=1e9).contains(&seconds) {
                return Err("expected seconds, between 0 and a thousand million".to_owned());
            }
            #[expect(clippy::cast_possible_truncation, reason = "checked just above")]
            let milliseconds = (seconds * 1_000.0).round() as i64;
            Value::Integer(milliseconds)
        }
        Form::Boolean => Value::Boolean(match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => true,
            "false" | "0" | "no" | "off" => false,
            _ => return Err("expected true or false".to_owned()),
        }),
    })
}

fn insert(table: &mut Table, setting: &str, value: Value) {
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

fn merge(table: &mut Table, over: &Table) {
    for (name, value) in over {
        match (table.get_mut(name), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            _ => {
                table.insert(name.clone(), value.clone());
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

    #[test]
    fn flags_win_over_environment_over_file_over_defaults() {
        let (_file, mut sources) =
            file("workers = 3\ndrain_timeout_ms = 7\nbacklog = 9\n[respawn]\nlimit = 1\n");
        sources.overrides.set("workers", 5);
        sources.overrides.set("reload.settle_ms", 1);
        let environment = |name: &str| match name {
            "WORKER_COUNT" => Some("4".to_owned()),
            "GRACEFUL_SHUTDOWN_TIMEOUT" => Some("1.5".to_owned()),
            "ZERO_DOWNTIME_STRATEGY" => Some("BLUE_GREEN".to_owned()),
            "AUTO_RESTART_WORKERS" => Some("off".to_owned()),
            _ => None,
        };
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
    fn an_unknown_key_is_an_error_that_shows_where() {
        for (text, line) in
            [("listen = []\nworker = 2\n", 2), ("[limits]\nmax_conections = 1\n", 2)]
        {
            let (file, sources) = file(text);
            let message = sources.load_with(|_| None).unwrap_err().to_string();
            assert!(message.contains(&format!("line {line}")), "{message}");
            assert!(message.contains("unknown field"), "{message}");
            assert!(message.contains(&file.path().display().to_string()), "{message}");
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
        let defaults = Table::try_from(Settings::default()).unwrap();
        for variable in ENVIRONMENT {
            let mut value = None;
            let mut table = &defaults;
            for part in variable.setting.split('.') {
                value = table.get(part);
                if let Some(Value::Table(inner)) = value {
                    table = inner;
                }
            }
            assert!(value.is_some(), "{} overrides nothing", variable.name);
        }
    }

    #[test]
    fn a_missing_file_says_which() {
        let sources = Sources { file: Some("/nonexistent/zdt.toml".into()), ..Sources::default() };
        let message = sources.load_with(|_| None).unwrap_err().to_string();
        assert!(message.contains("/nonexistent/zdt.toml"), "{message}");
    }
}
