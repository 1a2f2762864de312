//! placeholder
use super::*;
use crate::config::*;
use tokio::sync::{mpsc, watch};
pub struct Predecessor;
pub async fn find(_r: &rundir::RunDir, _s: Option<store::State>) -> Option<Predecessor> {
    None
}
pub async fn take_over(
    _p: Predecessor,
    _s: Settings,
    _so: Sources,
    _e: std::path::PathBuf,
    _r: rundir::RunDir,
    _l: mpsc::Sender<(WorkerId, link::LinkEvent)>,
    _re: watch::Sender<handle::Readiness>,
) -> Result<core::Core, String> {
    Err(String::new())
}
