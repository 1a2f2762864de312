//! What another configuration would change, and what of it has to wait for a new supervisor.
//!
//! Must not know: how a setting is put into effect.

use serde::{Deserialize, Serialize};
use toml::Table;

use super::Settings;
use super::file::known_settings;
use super::sources::{insert, values};

/// Settings that count only at the start of a supervisor; a reload leaves them as they were.
pub const FIXED: &[&str] = &[
    "admin",
    "run_dir",
    "steering",
    "policy",
    "reuse_port",
    "log_format",
    "parking.path",
    "parking.key",
    "parking.key_file",
];

/// A setting that is another than before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Its dotted name.
    pub setting: String,
    /// What is in force; null if nothing, `"[secret]"` in place of a secret.
    pub from: serde_json::Value,
    /// What it is to be.
    pub to: serde_json::Value,
    /// A reload will not bring it about.
    pub needs_restart: bool,
}

impl Settings {
    /// What `wanted` changes, in the order of the names.
    pub fn changes_to(&self, wanted: &Settings) -> Vec<Change> {
        let (have, want) = (values(self), values(wanted));
        let raw = |settings: &Settings| Table::try_from(settings).expect("settings are a table");
        let (raw_have, raw_want) = (raw(self), raw(wanted));
        known_settings()
            .into_keys()
            .filter_map(|setting| {
                let from = have.get(&setting).cloned().unwrap_or_default();
                let to = want.get(&setting).cloned().unwrap_or_default();
                // Two secrets are shown alike.
                let differ = lookup(&raw_have, &setting) != lookup(&raw_want, &setting);
                let needs_restart = FIXED.contains(&setting.as_str());
                differ.then_some(Change { setting, from, to, needs_restart })
            })
            .collect()
    }

    /// The names of the settings that `wanted` changes and a reload cannot.
    pub fn restart_required_for(&self, wanted: &Settings) -> Vec<String> {
        let changes = self.changes_to(wanted).into_iter();
        changes.filter(|one| one.needs_restart).map(|one| one.setting).collect()
    }

    /// `wanted`, but for what cannot change while a supervisor lives.
    #[must_use]
    pub fn keep_fixed(&self, wanted: &Settings) -> Settings {
        let have = Table::try_from(self).expect("settings are a table");
        let mut merged = Table::try_from(wanted).expect("settings are a table");
        for setting in FIXED {
            match lookup(&have, setting) {
                Some(value) => insert(&mut merged, setting, value.clone()),
                None => remove(&mut merged, setting),
            }
        }
        merged.try_into().expect("values of settings are settings")
    }
}

fn lookup<'a>(table: &'a Table, setting: &str) -> Option<&'a toml::Value> {
    match setting.split_once('.') {
        None => table.get(setting),
        Some((section, rest)) => lookup(table.get(section)?.as_table()?, rest),
    }
}

fn remove(table: &mut Table, setting: &str) {
    match setting.split_once('.') {
        None => drop(table.remove(setting)),
        Some((section, rest)) => {
            if let Some(section) = table.get_mut(section).and_then(toml::Value::as_table_mut) {
                remove(section, rest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_named_and_what_needs_a_restart_is_told() {
        let old = Settings::default();
        assert_eq!(old.changes_to(&old), []);
        let mut new = old.clone();
        new.workers = 7;
        new.limits.max_head_bytes = 1;
        new.admin = "off".parse().unwrap();
        new.run_dir = Some("/r".into());
        new.admin_token = Some("a-secret-of-good-length".to_owned().into());
        let changes = old.changes_to(&new);
        let names: Vec<_> =
            changes.iter().map(|one| (one.setting.as_str(), one.needs_restart)).collect();
        assert_eq!(
            names,
            [
                ("admin", true),
                ("admin_token", false),
                ("limits.max_head_bytes", false),
                ("run_dir", true),
                ("workers", false),
            ]
        );
        assert!(!format!("{changes:?}").contains("a-secret"));
        let mut rotated = new.clone();
        rotated.admin_token = Some("another-of-good-length".to_owned().into());
        assert_eq!(new.changes_to(&rotated).len(), 1);

        let kept = old.keep_fixed(&new);
        assert_eq!((kept.admin, &kept.run_dir), (old.admin, &old.run_dir));
        assert_eq!((kept.workers, kept.limits.max_head_bytes), (7, 1));
        assert_eq!(new.keep_fixed(&old).run_dir, new.run_dir);
    }

    #[test]
    fn what_is_fixed_exists() {
        for setting in FIXED {
            assert!(known_settings().contains_key(*setting), "{setting}");
        }
    }
}
