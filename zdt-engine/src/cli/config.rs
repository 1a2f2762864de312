//! `zdt config check` and `zdt config show`.
//!
//! Must not know: what the settings do.

use std::process::ExitCode;

use super::client::Client;
use super::serve::{check_service, sources};
use super::{ConfigArgs, ConfigCommand};
use crate::config::{Loaded, ShownSetting};
use crate::credentials::Credentials;
use crate::service::Services;
use crate::supervisor;
use crate::supervisor::handle::{Reply, Request};

pub(super) fn run(args: ConfigArgs, services: &Services) -> Result<ExitCode, String> {
    match args.command {
        ConfigCommand::Check { settings, json } => {
            let result = sources(settings, services).and_then(|sources| check(&sources, services));
            if json {
                let error = result.as_ref().err();
                println!("{}", serde_json::json!({ "valid": error.is_none(), "error": error }));
                return Ok(if error.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
            let loaded = result?;
            let given = loaded.shown.iter().filter(|one| one.source != "default").count();
            println!("the configuration can be used: {given} settings given, the others default");
            Ok(ExitCode::SUCCESS)
        }
        ConfigCommand::Show { settings, running, json } => {
            let shown = if running {
                running_settings(&settings.run_dir())?
            } else {
                let loaded = sources(settings, services)?.load_shown();
                loaded.map_err(|error| error.to_string())?.shown
            };
            print(&shown, json)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// What `serve` and a reload would find out, before they do.
fn check(sources: &crate::config::Sources, services: &Services) -> Result<Loaded, String> {
    let loaded = sources.load_shown().map_err(|error| error.to_string())?;
    check_service(&loaded.settings, services)?;
    supervisor::find_user(&loaded.settings.user, loaded.settings.group.as_deref())?;
    Credentials::read(&loaded.settings.tls)
        .map_err(|reason| format!("tls.certificates: {reason}"))?;
    if let Some(path) = &loaded.settings.executable {
        supervisor::check_executable(path)?;
    }
    Ok(loaded)
}

fn running_settings(run_dir: &super::RunDirArg) -> Result<Vec<ShownSetting>, String> {
    let mut client = Client::connect(&run_dir.path()?)?;
    match client.ask(&Request::Config)? {
        Reply::Config(shown) => Ok(shown),
        _ => Err("the supervisor did not answer".to_owned()),
    }
}

fn print(shown: &[ShownSetting], json: bool) -> Result<(), String> {
    if json {
        println!("{}", serde_json::to_string(shown).map_err(|error| error.to_string())?);
        return Ok(());
    }
    let width = shown.iter().map(|one| one.setting.len()).max().unwrap_or(0);
    for one in shown {
        let value = match &one.value {
            serde_json::Value::Null => "(none)".to_owned(),
            value => value.to_string(),
        };
        let source = match (one.source.as_str(), &one.at) {
            ("default", _) => String::new(),
            (source, None) => format!("  # {source}"),
            (source, Some(at)) => format!("  # {source} {at}"),
        };
        println!("{:width$} = {value}{source}", one.setting);
    }
    Ok(())
}
