//! The build that served before the present one, kept so that it can be started again.
//!
//! Its program stays open: a file that has been replaced, or removed, can still be executed through
//! the descriptor. Its settings are those that it ran with, whatever the configuration says now.
//!
//! Must not know: in which order a reload proceeds.

use tokio::sync::mpsc;

use super::Wanted;
use crate::config::Loaded;
use crate::supervisor::core::Core;
use crate::supervisor::handle::Reply;
use crate::supervisor::reload::Event;
use crate::supervisor::workers::process::Executable;

/// What a generation is started from.
#[derive(Debug)]
pub(in crate::supervisor) struct Build {
    /// The generation that it served as; it may be gone.
    pub generation: u32,
    pub executable: Executable,
    pub loaded: Loaded,
}

impl Core {
    /// Back to what served before: by undoing the reload that is going on, as long as that is
    /// possible, and otherwise by a reload to the generation before, or, where that has ended, to its build.
    pub fn request_rollback(&mut self, waiter: mpsc::Sender<Reply>) {
        if let Some(reload) = &mut self.reload
            && reload.blue.is_some()
            && !reload.machine.is_committed()
        {
            tracing::warn!(reload = reload.machine.id(), "is to be undone");
            reload.undo.push(waiter);
            self.machine_events.push_back(Event::RollBack);
            return;
        }
        self.request_reload(Wanted::Rollback, Some(waiter));
    }

    /// What there is to go back to.
    pub fn previous_build(&self) -> Result<Build, String> {
        let previous = self.previous.as_ref().ok_or(
            "there is no earlier build to go back to: nothing was replaced since this supervisor \
             started",
        )?;
        let executable = previous
            .executable
            .try_clone()
            .map_err(|error| format!("the program of the earlier build: {error}"))?;
        let (generation, loaded) = (previous.generation, previous.loaded.clone());
        Ok(Build { generation, executable, loaded })
    }

    /// Keeps what the outgoing generation of a committed reload was started from; before the
    /// supervisor's settings become those of the incoming one.
    pub fn keep_previous(&mut self, blue: Option<u32>) {
        let Some(generation) = blue.and_then(|number| self.generations.get(&number)) else {
            return;
        };
        match generation.executable.try_clone() {
            Ok(executable) => {
                let (settings, shown) = (self.settings.clone(), self.shown.clone());
                let (generation, loaded) = (generation.number, Loaded { settings, shown });
                self.previous = Some(Build { generation, executable, loaded });
            }
            Err(error) => {
                tracing::error!(%error, "cannot keep the old build: no rollback to it is possible");
                self.previous = None;
            }
        }
    }
}
