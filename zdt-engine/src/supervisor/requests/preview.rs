//! What a reload would do, found out without doing any of it.
//!
//! Must not know: how a reload proceeds.

use crate::supervisor::core::Core;
use crate::supervisor::handle::Plan;
use crate::supervisor::workers::process::{Executable, check_executable, find_user};

impl Core {
    /// What a reload would change, and what would stop it before it began.
    pub fn preview(&self) -> Plan {
        let mut plan = Plan {
            generation: self.current.unwrap_or_default(),
            next_generation: self.last_generation + 1,
            strategy: self.settings.strategy.name().to_owned(),
            workers: self.serving().map_or(0, |of| of.places.len() as u32),
            ..Plan::default()
        };
        if self.stopping.is_some() {
            plan.problems.push("the supervisor is stopping".to_owned());
        }
        if self.reload.as_ref().is_some_and(|reload| reload.blue.is_some()) {
            plan.problems
                .push("a reload is going on; another would wait for it, or replace it".into());
        }
        let settings = match self.sources.load() {
            Ok(settings) => settings,
            Err(error) => {
                plan.problems.push(error.to_string());
                plan.next_workers = plan.workers;
                return plan;
            }
        };
        plan.next_workers = settings.worker_count();
        plan.strategy = match settings.zero_downtime {
            true => settings.strategy.name().to_owned(),
            false => crate::supervisor::reloading::restart::NAME.to_owned(),
        };
        plan.migrates = settings.zero_downtime && settings.migrate_connections;
        plan.changes = self.settings.changes_to(&settings);
        plan.restart_required = self.settings.restart_required_for(&settings);
        let path = settings.executable.as_ref().unwrap_or(&self.executable_path);
        plan.executable = path.display().to_string();
        if let Err(message) = check_executable(path) {
            plan.problems.push(message);
        }
        if let Err(message) = find_user(&settings.user, settings.group.as_deref()) {
            plan.problems.push(message);
        }
        if let Some(serving) = self.serving() {
            plan.running_executable = serving.executable.path().display().to_string();
            plan.executable_changed =
                Executable::open(path).is_ok_and(|new| !new.is_same_file(&serving.executable));
        }
        plan.ready = plan.problems.is_empty();
        plan
    }
}
