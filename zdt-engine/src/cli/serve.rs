//! `zdt serve`.
//!
//! Must not know: how a supervisor works.

use std::process::ExitCode;

use super::{ServeArgs, SettingsArgs};
use crate::config::{Overrides, PROXY_SERVICE, Settings, Sources};
use crate::service::Services;
use crate::supervisor;

pub(super) fn run(args: ServeArgs, services: &Services) -> Result<ExitCode, String> {
    // A supervisor that has started this process hears why it will have no successor.
    serve(args, services).inspect_err(|message| supervisor::decline(message))
}

fn serve(args: ServeArgs, services: &Services) -> Result<ExitCode, String> {
    let sources = sources(args.settings, services)?;
    let settings = sources.load().map_err(|error| error.to_string())?;
    check_service(&settings, services)?;
    super::start_log(settings.log_format);
    supervisor::run(sources).map_err(|error| error.to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// The service must be one of this program's.
pub(super) fn check_service(settings: &Settings, services: &Services) -> Result<(), String> {
    if services.names().chain([PROXY_SERVICE]).any(|name| name == settings.service) {
        return Ok(());
    }
    let known: Vec<&str> = [PROXY_SERVICE].into_iter().chain(services.names()).collect();
    Err(format!(
        "service: this program has no service {:?}; it has: {}",
        settings.service,
        known.join(", ")
    ))
}

/// What the command line says, over everything else.
///
/// # Errors
/// If certificates and keys do not come in pairs.
pub(super) fn sources(args: SettingsArgs, services: &Services) -> Result<Sources, String> {
    let mut overrides = Overrides::default();
    if !args.listen.is_empty() {
        let listen: Vec<String> = args.listen.iter().map(ToString::to_string).collect();
        overrides.set("listen", listen);
    }
    if args.tls_cert.len() != args.tls_key.len() {
        return Err(format!(
            "--tls-cert is given {} times and --tls-key {} times: each certificate needs its key",
            args.tls_cert.len(),
            args.tls_key.len()
        ));
    }
    if !args.tls_cert.is_empty() {
        let pairs = args.tls_cert.iter().zip(&args.tls_key);
        overrides.set_tables(
            "tls.certificates",
            pairs.map(|(certificate, key)| [("certificate", certificate), ("key", key)]),
        );
    }
    if let Some(client_ca) = &args.tls_client_ca {
        overrides.set("tls.client_ca", client_ca.display().to_string());
    }
    if let Some(admin) = args.admin {
        overrides.set("admin", String::from(admin));
    }
    if let Some(run_dir) = &args.run_dir {
        overrides.set("run_dir", run_dir.display().to_string());
    }
    if let Some(workers) = args.workers {
        overrides.set("workers", i64::from(workers));
    }
    if let Some(service) = args.service {
        overrides.set("service", service);
    }
    if let Some(group) = args.group {
        overrides.set("group", group);
    }
    if !args.upstream.is_empty() {
        overrides.set("gateway.upstream", args.upstream);
    }
    if let Some(command) = args.app {
        overrides.set("gateway.app.command", command);
    }
    if let Some(user) = args.user {
        overrides.set("user", user);
    }
    if let Some(steering) = args.steering {
        overrides.set("steering", name_of(steering));
    }
    if let Some(strategy) = args.strategy {
        overrides.set("strategy", strategy.name());
    }
    if let Some(format) = args.log_format {
        overrides.set("log_format", name_of(format));
    }
    let mut defaults = Overrides::default();
    defaults.set("service", services.default_name());
    Ok(Sources { file: args.config, defaults, overrides })
}

fn name_of(value: impl clap::ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command};
    use super::*;
    use crate::config::SteeringMode;

    fn settings(line: &str) -> crate::config::Settings {
        let cli = Cli::try_parse_from(line.split(' ')).expect("a command line");
        let Command::Serve(args) = cli.command else { panic!("not serve") };
        sources(args.settings, &Services::builtin())
            .expect("pairs")
            .load_with(|_| None)
            .expect("settings")
    }

    #[test]
    fn certificates_come_with_their_keys() {
        let settings = settings(
            "zdt serve --tls-cert a.pem --tls-key a.key --tls-cert b.pem --tls-key b.key \
             --tls-client-ca ca.pem",
        );
        let pairs: Vec<_> =
            settings.tls.certificates.iter().map(|pair| (&pair.certificate, &pair.key)).collect();
        assert_eq!(pairs, [(&"a.pem".into(), &"a.key".into()), (&"b.pem".into(), &"b.key".into())]);
        assert_eq!(settings.tls.client_ca, std::path::Path::new("ca.pem"));
        for line in ["zdt serve --tls-cert a.pem", "zdt serve --tls-client-ca ca.pem"] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
        let line = "zdt serve --tls-cert a --tls-cert b --tls-key c";
        let Command::Serve(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else {
            panic!("not serve")
        };
        assert!(sources(args.settings, &Services::builtin()).unwrap_err().contains("its key"));
    }

    #[test]
    fn flags_become_settings() {
        let settings = settings(
            "zdt serve --listen 127.0.0.1:1 --listen [::1]:2 --admin off --workers 3 --user me \
             --steering off --log-format json --run-dir /r --strategy blue-green",
        );
        assert_eq!(settings.listen.len(), 2);
        assert_eq!(settings.admin.0, None);
        assert_eq!((settings.workers, settings.user.as_str()), (3, "me"));
        assert_eq!(settings.steering, SteeringMode::Off);
        assert_eq!(settings.run_dir.as_deref(), Some(std::path::Path::new("/r")));
        assert_eq!(settings.service, "demo");
    }
}
