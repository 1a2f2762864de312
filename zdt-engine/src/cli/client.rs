//! The supervisor that a command is meant for.
//!
//! Must not know: what the commands are for.

use std::path::PathBuf;

use super::RunDirArg;
use crate::supervisor::default_run_dir;

pub use crate::client::Client;

impl RunDirArg {
    /// The directory that is meant.
    pub fn path(&self) -> Result<PathBuf, String> {
        match &self.run_dir {
            Some(path) => Ok(path.clone()),
            None => default_run_dir(),
        }
    }
}
