//! The environment variables: one table, how their texts are read, and which names are mistakes.
//!
//! Must not know: what the settings do, where else values come from.

use toml::Value;

use super::sources::ConfigError;
use super::suggest::{SIMILAR, closest};

/// How the text of an environment variable becomes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As it is.
    Text,
    /// Text that is never printed, and that the configuration file may not hold.
    Secret,
    /// Text in lower case with dashes.
    Name,
    /// Texts, separated by commas.
    List,
    /// An integer.
    Integer,
    /// Seconds, fractions allowed, that become milliseconds.
    Seconds,
    /// Mebibytes that become bytes.
    Mebibytes,
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

const fn variable(name: &'static str, setting: &'static str, form: Form) -> EnvironmentName {
    EnvironmentName { name, setting, form }
}

/// Every environment variable that is read. A new one is a line here, a line in `zdt.toml`, and one in
/// docs/operations.md.
pub const ENVIRONMENT: &[EnvironmentName] = &[
    variable("ENABLE_ZERO_DOWNTIME", "zero_downtime", Form::Boolean),
    variable("ZERO_DOWNTIME_STRATEGY", "strategy", Form::Name),
    variable("ENABLE_CONNECTION_MIGRATION", "migrate_connections", Form::Boolean),
    variable("WORKER_COUNT", "workers", Form::Integer),
    variable("GRACEFUL_SHUTDOWN_TIMEOUT", "drain_timeout_ms", Form::Seconds),
    variable("AUTO_RESTART_WORKERS", "respawn.enabled", Form::Boolean),
    variable("WORKER_RESPAWN_LIMIT", "respawn.limit", Form::Integer),
    variable("WORKER_RESPAWN_WINDOW", "respawn.window_ms", Form::Seconds),
    variable("MAX_WORKER_MEMORY_MB", "worker_limits.memory_bytes", Form::Mebibytes),
    variable("WORKER_CPU_LIMIT", "worker_limits.cpu_percent", Form::Integer),
    variable("WORKER_FILE_DESCRIPTOR_LIMIT", "worker_limits.open_files", Form::Integer),
    variable("CONNECTION_BUFFER_SIZE_MB", "limits.worker_buffer_bytes", Form::Mebibytes),
    variable("ENABLE_REQUEST_BUFFERING", "gateway.hold.enabled", Form::Boolean),
    variable("REQUEST_BUFFER_SIZE_MB", "gateway.hold.bytes", Form::Mebibytes),
    variable("REQUEST_BUFFER_TIME", "gateway.hold.time_ms", Form::Seconds),
    variable("REQUEST_OVERFLOW_STRATEGY", "gateway.hold.overflow", Form::Name),
    variable("REQUEST_PRIORITY_HEADERS", "gateway.hold.priority_headers", Form::List),
    variable("REQUEST_SPILL_SIZE_MB", "gateway.hold.spill_bytes", Form::Mebibytes),
    variable("REQUEST_SPILL_PATH", "gateway.hold.spill_dir", Form::Text),
    variable("HANDOFF_TIMEOUT", "reload.handoff_timeout_ms", Form::Seconds),
    variable("CONNECTION_SERIALIZATION_FORMAT", "state.encoding", Form::Name),
    variable("CONNECTION_COMPRESSION", "state.compression", Form::Boolean),
    variable("HANDOFF_SOCKET_PATH", "handoff_socket", Form::Text),
    variable("CONNECTION_STATE_PATH", "parking.path", Form::Text),
    variable("CONNECTION_STATE_KEY", "parking.key", Form::Secret),
    variable("CONNECTION_STATE_KEY_FILE", "parking.key_file", Form::Text),
    variable("SOCKET_REUSE_PORT", "reuse_port", Form::Boolean),
    variable("ZERO_DOWNTIME_ADMIN_TOKEN", "admin_token", Form::Secret),
    variable("ZERO_DOWNTIME_ADMIN_TOKEN_FILE", "admin_token_file", Form::Text),
];

/// Names that begin like variables of zdt and are something else.
const FOREIGN: &[&str] = &[
    "ZDT_FAULT",
    "ZDT_PREDECESSOR",
    "ZDT_STEERING_OBJECT",
    "ZDT_WRITE_GOLDEN",
    "ZDT_SEED",
    "ZDT_NONCES",
];
const FOREIGN_PREFIXES: &[&str] = &["ZDT_TEST_", "ZDT_BENCH_"];
/// Nobody else uses names that begin so.
const OWN_PREFIXES: &[&str] = &["ZDT_", "ZERO_DOWNTIME_"];
/// A name so close to one of the table is a slip. Other programs' variables are not zdt's business.
const MOST_SLIPS: usize = 2;

/// True for settings that are never printed.
pub fn is_secret(setting: &str) -> bool {
    ENVIRONMENT.iter().any(|variable| variable.form == Form::Secret && variable.setting == setting)
}

/// A variable that is meant for zdt and means nothing to it.
///
/// # Errors
/// The first such name, with what was probably meant.
pub fn refuse_unknown<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<(), ConfigError> {
    let known = || ENVIRONMENT.iter().map(|variable| variable.name);
    for name in names {
        let foreign = FOREIGN.contains(&name)
            || FOREIGN_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        if foreign || known().any(|known| known == name) {
            continue;
        }
        let own = OWN_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        let slip = known().find(|known| {
            name.len() >= 8 && strsim::damerau_levenshtein(known, name) <= MOST_SLIPS
        });
        if own || slip.is_some() {
            let bare = name.strip_prefix("ZDT_").unwrap_or(name);
            return Err(ConfigError::UnknownVariable {
                name: name.to_owned(),
                suggestion: slip.or_else(|| closest(bare, known(), SIMILAR)).map(str::to_owned),
            });
        }
    }
    Ok(())
}

/// Reads the text of a variable.
pub(super) fn parse(form: Form, text: &str) -> Result<Value, String> {
    let text = text.trim();
    Ok(match form {
        Form::Text | Form::Secret => Value::String(text.to_owned()),
        Form::Name => Value::String(text.to_ascii_lowercase().replace('_', "-")),
        Form::List => {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            Value::Array(parts.map(|part| Value::String(part.to_owned())).collect())
        }
        Form::Integer => {
            Value::Integer(text.parse().map_err(|_| "expected a whole number".to_owned())?)
        }
        Form::Seconds => scaled(text, 1e9, 1_000.0, "seconds")?,
        Form::Mebibytes => scaled(text, 1e9, 1_048_576.0, "mebibytes")?,
        Form::Boolean => Value::Boolean(match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => true,
            "false" | "0" | "no" | "off" => false,
            _ => return Err("expected true or false".to_owned()),
        }),
    })
}

fn scaled(text: &str, most: f64, factor: f64, unit: &str) -> Result<Value, String> {
    let number: f64 = text.parse().map_err(|_| format!("expected {unit}"))?;
    if !(0.0..=most).contains(&number) {
        return Err(format!("expected {unit}, between 0 and a thousand million"));
    }
    #[expect(clippy::cast_possible_truncation, reason = "checked just above")]
    let scaled = (number * factor).round() as i64;
    Ok(Value::Integer(scaled))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(name: &str) -> String {
        refuse_unknown([name]).expect_err(name).to_string()
    }

    #[test]
    fn slips_are_noticed_and_foreign_names_are_not() {
        assert!(refused("WORKER_COUNTS").contains("WORKER_COUNT"));
        assert!(refused("GRACEFUL_SHUTDOWN_TIMOUT").contains("GRACEFUL_SHUTDOWN_TIMEOUT"));
        assert!(refused("ENABLE_ZERO_DOWN_TIME").contains("ENABLE_ZERO_DOWNTIME"));
        assert!(refused("ZERO_DOWNTIME_STATEGY").contains("ZERO_DOWNTIME_STRATEGY"));
        assert!(refused("ZDT_WORKER_COUNT").contains("WORKER_COUNT"));
        assert!(refused("ZERO_DOWNTIME_COLOUR").contains("no such variable"));
        for name in ["PATH", "WORKER_CLASS", "CONNECTION_STRING", "ZDT_FAULT", "ZDT_TEST_SEED", ""]
        {
            refuse_unknown([name]).unwrap_or_else(|error| panic!("{error}"));
        }
        let known = ENVIRONMENT.iter().map(|variable| variable.name);
        refuse_unknown(known).expect("known ones");
    }

    #[test]
    fn forms_are_read_as_described() {
        assert_eq!(parse(Form::Seconds, " 1.5 "), Ok(Value::Integer(1_500)));
        assert_eq!(parse(Form::Mebibytes, "10"), Ok(Value::Integer(10 << 20)));
        assert_eq!(parse(Form::Boolean, "Off"), Ok(Value::Boolean(false)));
        assert_eq!(parse(Form::Name, "BLUE_GREEN"), Ok(Value::String("blue-green".into())));
        let list = Value::Array(vec!["x-a".into(), "x-b".into()]);
        assert_eq!(parse(Form::List, "x-a, x-b,"), Ok(list));
        for bad in ["nan", "inf", "-1", "", "1e10"] {
            assert!(parse(Form::Seconds, bad).is_err(), "{bad}");
        }
    }
}
