//! The configuration file: its values, each with the line that it stands on.
//!
//! Must not know: what the settings do, what overrides them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::Settings;
use super::environment::{ENVIRONMENT, is_secret};
use super::settings::OPTIONAL;
use super::sources::ConfigError;
use super::suggest::{ALIKE, SIMILAR, closest};

/// Longest file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// What a file says.
#[derive(Debug, Default, PartialEq)]
pub(super) struct FileValues {
    pub table: Table,
    /// By dotted name.
    pub lines: BTreeMap<String, usize>,
}

/// Every setting with its dotted name and its default; those without one have none.
pub(super) fn known_settings() -> BTreeMap<String, Option<Value>> {
    let defaults = Table::try_from(Settings::default()).expect("the defaults are a table");
    let mut known = BTreeMap::new();
    flatten("", &defaults, &mut |name, value| {
        known.insert(name.to_owned(), Some(value.clone()));
    });
    known.extend(OPTIONAL.iter().map(|name| ((*name).to_owned(), None)));
    known
}

/// Visits every value that is not a table.
pub(super) fn flatten(prefix: &str, table: &Table, visit: &mut impl FnMut(&str, &Value)) {
    for (name, value) in table {
        let name = join(prefix, name);
        match value {
            Value::Table(inner) => flatten(&name, inner, visit),
            value => visit(&name, value),
        }
    }
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

pub(super) fn read(path: &Path) -> Result<FileValues, ConfigError> {
    let unreadable =
        |error: std::io::Error| ConfigError::Unreadable { path: path.to_owned(), error };
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        // A FIFO would block the supervisor, and a device never end.
        return Err(unreadable(std::io::Error::other("not a regular file")));
    }
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(unreadable(std::io::Error::other("larger than 1 MiB")));
    }
    parse(&text).map_err(|(line, message)| ConfigError::Malformed {
        path: path.to_owned(),
        line,
        message,
    })
}

impl Settings {
    /// The settings of a file's text, the others at their default.
    ///
    /// # Errors
    /// The line, and the key with what is wrong with it.
    pub fn from_text(text: &str) -> Result<Settings, (usize, String)> {
        let values = parse(text)?;
        let settings = values.table.try_into::<Settings>();
        let settings = settings.map_err(|error| (1, error.message().to_owned()))?;
        settings.check().map_err(|(setting, reason)| {
            (values.lines.get(setting).copied().unwrap_or(1), format!("{setting}: {reason}"))
        })?;
        Ok(settings)
    }
}

/// Parses a file's text; an error is a line and what is wrong there.
pub(super) fn parse(text: &str) -> Result<FileValues, (usize, String)> {
    let syntax = |error: toml::de::Error| {
        // The error's own form would quote the line, which may hold a secret.
        let at = error.span().map_or(0, |span| span.start);
        (line_of(text, at), error.message().to_owned())
    };
    let spanned = DeTable::parse(text).map_err(syntax)?;
    let mut values = FileValues { table: text.parse().map_err(syntax)?, ..FileValues::default() };
    let known = known_settings();
    // Of `a.b.c`: `a` and `a.b`.
    let sections: BTreeSet<&str> =
        known.keys().flat_map(|name| name.match_indices('.').map(|(at, _)| &name[..at])).collect();
    let reader = Reader { text, known: &known, sections: &sections };
    reader.walk("", spanned.get_ref(), &values.table, &mut values.lines)?;
    Ok(values)
}

struct Reader<'a> {
    text: &'a str,
    known: &'a BTreeMap<String, Option<Value>>,
    sections: &'a BTreeSet<&'a str>,
}

impl Reader<'_> {
    fn walk(
        &self,
        prefix: &str,
        spanned: &DeTable<'_>,
        table: &Table,
        lines: &mut BTreeMap<String, usize>,
    ) -> Result<(), (usize, String)> {
        for (key, value) in spanned {
            let line = line_of(self.text, key.span().start);
            let key: &str = key.get_ref();
            let name = join(prefix, key);
            let Some(plain) = table.get(key) else { continue };
            if self.sections.contains(name.as_str()) {
                let (DeValue::Table(inner), Value::Table(plain)) = (Spanned::get_ref(value), plain)
                else {
                    return Err((line, format!("{name}: a section was expected, not a value")));
                };
                self.walk(&name, inner, plain, lines)?;
            } else if self.known.contains_key(&name) {
                if is_secret(&name) {
                    return Err((line, not_here(&name)));
                }
                check_type(&name, plain).map_err(|reason| (line, format!("{name}: {reason}")))?;
                lines.insert(name, line);
            } else {
                return Err((line, self.unknown(&name)));
            }
        }
        Ok(())
    }

    /// A name that does not exist, and what was probably meant: one of the same section, or the same
    /// name in another one.
    fn unknown(&self, name: &str) -> String {
        let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
        let names = || self.known.keys().map(String::as_str).chain(self.sections.iter().copied());
        let elsewhere = || names().find(|known| last(known) == last(name));
        let meant = closest(name, names(), ALIKE)
            .or_else(elsewhere)
            .or_else(|| closest(name, names(), SIMILAR));
        let kind =
            if name.contains('.') || self.known.contains_key(name) { "setting" } else { "key" };
        match meant {
            Some(meant) => format!("unknown {kind} `{name}`; did you mean `{meant}`?"),
            None => {
                format!("unknown {kind} `{name}`; zdt.toml of this version lists all there are")
            }
        }
    }
}

fn not_here(name: &str) -> String {
    let variable = ENVIRONMENT.iter().find(|variable| variable.setting == name);
    let variable = variable.map_or("", |variable| variable.name);
    let file = format!("{name}_file");
    let file = if OPTIONAL.contains(&file.as_str()) {
        format!(" or put it into a file of its own and name that with `{file}`")
    } else {
        String::new()
    };
    format!("{name}: a secret may not stand in this file; set {variable} in the environment{file}")
}

/// What is wrong with one value on its own.
pub(super) fn check_type(name: &str, value: &Value) -> Result<(), String> {
    let mut alone = Table::new();
    super::sources::insert(&mut alone, name, value.clone());
    match alone.try_into::<Settings>() {
        Ok(_) => Ok(()),
        Err(_) if is_secret(name) => Err("not a text".to_owned()),
        Err(error) => Err(error.message().trim_end().to_owned()),
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn errors_name_line_and_key_and_suggest() {
        for (text, line, key, meant) in [
            ("workers = 1\nworker = 2\n", 2, "worker", "`workers`"),
            (
                "[limits]\n\nmax_conections = 1\n",
                3,
                "limits.max_conections",
                "limits.max_connections",
            ),
            ("max_connections = 1\n", 1, "max_connections", "`limits.max_connections`"),
            ("[limit]\nmax_connections = 1\n", 1, "limit", "`limits`"),
            ("limits = 3", 1, "limits", "section"),
            ("\nworkers = \"many\"", 2, "workers", "invalid type"),
            ("limits.max_connections = true", 1, "limits.max_connections", "invalid type"),
            ("[workers]\nx = 1", 1, "workers", "invalid type"),
            ("strategy = 'big-bang'", 1, "strategy", "unknown variant"),
            ("admin_token = 'x'", 1, "admin_token", "ZERO_DOWNTIME_ADMIN_TOKEN"),
            ("workers = 1\nworkers = 2", 2, "workers", "duplicate"),
            ("a = \n", 1, "", "expected"),
        ] {
            let (at, message) = parse(text).expect_err(text);
            assert_eq!(at, line, "{text}: {message}");
            assert!(message.contains(meant), "{text}: {message}");
            assert!(message.contains(key) || meant == "duplicate", "{text}: {message}");
        }
    }

    #[test]
    fn lines_are_those_of_the_keys() {
        let values = parse("# a\nworkers = 1 # b\n[limits]\n\nmax_head_bytes = 1_0\n").unwrap();
        assert_eq!(values.lines["workers"], 2);
        assert_eq!(values.lines["limits.max_head_bytes"], 5);
        assert_eq!(values.lines.len(), 2);
    }

    #[test]
    fn a_syntax_error_does_not_quote_the_file() {
        let (_, message) = parse("admin_token = \"hunter2\nworkers = 1").unwrap_err();
        assert!(!message.contains("hunter2"), "{message}");
    }

    /// Texts that are nearly configurations.
    fn nearly() -> impl Strategy<Value = String> {
        let key = prop_oneof![
            proptest::sample::select(known_settings().into_keys().collect::<Vec<_>>()),
            "[a-z_.]{0,12}",
        ];
        let value = prop_oneof![
            "-?[0-9]{1,20}",
            Just("true".to_owned()),
            "\"[ -~]{0,12}\"",
            Just("[]".to_owned()),
            Just("{ a = 1 }".to_owned()),
            "[ -~]{0,8}",
        ];
        let line = prop_oneof![
            (key.clone(), value).prop_map(|(key, value)| format!("{key} = {value}")),
            key.prop_map(|key| format!("[{key}]")),
            "[ -~]{0,20}",
        ];
        proptest::collection::vec(line, 0..8).prop_map(|lines| lines.join("\n"))
    }

    proptest! {
        #[test]
        fn any_text_is_settings_or_an_error_at_one_of_its_lines(text in nearly()) {
            match parse(&text) {
                Ok(values) => {
                    let mut count = 0;
                    flatten("", &values.table, &mut |name, _| {
                        assert!(values.lines.contains_key(name), "{name} came from nowhere");
                        count += 1;
                    });
                    prop_assert_eq!(count, values.lines.len());
                    // What is right one by one is right together.
                    prop_assert!(values.table.try_into::<Settings>().is_ok());
                }
                Err((line, message)) => {
                    prop_assert!((1..=text.lines().count().max(1) + 1).contains(&line), "{}", line);
                    prop_assert!(!message.is_empty());
                }
            }
        }

        #[test]
        fn bytes_do_not_panic(text in "\\PC{0,200}") {
            let _ = parse(&text);
        }
    }
}
