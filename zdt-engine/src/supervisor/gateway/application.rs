//! The application behind the gateway: started, proven, swapped, ended.
//!
//! A deploy brings new upstreams for a route: an application that zdt starts, or addresses of one that
//! something else runs. Either way the new ones must answer before they get a request, and the old ones
//! finish what they have.
//!
//! Must not know: what a request is.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::{GatewayAnswer, GatewayEvent, check};
use crate::config::{AppOptions, ENVIRONMENT, Form, GatewayOptions, SwapPolicy, UpstreamTarget};
use crate::supervisor::core::Core;
use crate::supervisor::handle::{GatewayReply, Swapped};

/// How often the end of an application is looked for.
const LOOK: Duration = Duration::from_millis(100);

/// From the end of an application that nobody asked for to the start of the next.
const RESTART: Duration = Duration::from_secs(1);

/// From attempt to attempt of a proof.
const PROOF_PAUSE: Duration = Duration::from_millis(50);

/// One process group of an application.
#[derive(Debug)]
pub(in crate::supervisor) struct Application {
    child: Child,
    url: String,
}

impl Application {
    fn signal(&self, signal: Signal) {
        // It is the leader of a group of its own, and has not been waited for.
        let _ = killpg(Pid::from_raw(self.child.id() as i32), signal);
    }
}

/// New upstreams that are being proven.
#[derive(Debug)]
pub(in crate::supervisor) struct Deploy {
    id: u64,
    route: String,
    targets: Vec<UpstreamTarget>,
    application: Option<Application>,
    answer: Option<GatewayAnswer>,
    begun: Instant,
}

impl Deploy {
    pub fn of(
        route: String,
        targets: Vec<UpstreamTarget>,
        application: Option<Application>,
    ) -> Self {
        Self { id: 0, route, targets, application, answer: None, begun: Instant::now() }
    }
}

/// Upstreams that have been replaced.
#[derive(Debug)]
struct Ending {
    urls: Vec<String>,
    application: Option<Application>,
    /// When what is left is told to go.
    leave_at: Option<Instant>,
    term_at: Instant,
    kill_at: Instant,
    termed: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct Applications {
    next_deploy: u64,
    current: Option<Application>,
    deploys: Vec<Deploy>,
    ending: Vec<Ending>,
    next_look: Option<Instant>,
    restart_at: Option<Instant>,
}

impl Applications {
    pub fn deadline(&self) -> Option<Instant> {
        self.next_look
    }

    /// Ends everything, for a supervisor that ends.
    pub async fn end_all(&mut self, patience: Duration) {
        let ending = std::mem::take(&mut self.ending);
        let deploys = std::mem::take(&mut self.deploys);
        let mut left: Vec<Application> = ending
            .into_iter()
            .filter_map(|ending| ending.application)
            .chain(deploys.into_iter().filter_map(|deploy| deploy.application))
            .chain(self.current.take())
            .collect();
        left.iter().for_each(|application| application.signal(Signal::SIGTERM));
        let until = Instant::now() + patience;
        while !left.is_empty() {
            left.retain_mut(|application| matches!(application.child.try_wait(), Ok(None)));
            if Instant::now() >= until {
                left.iter().for_each(|application| application.signal(Signal::SIGKILL));
                left.iter_mut().for_each(|application| drop(application.child.wait()));
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A port that nobody uses now.
fn free_port() -> std::io::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn start(
    options: &AppOptions,
    owner: crate::supervisor::workers::process::User,
) -> Result<(Application, UpstreamTarget), String> {
    let port = free_port().map_err(|error| format!("no free port for the application: {error}"))?;
    let url = format!("http://127.0.0.1:{port}");
    let target = UpstreamTarget::parse(&url)?;
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(&options.command).env("PORT", port.to_string()).env("ZDT", "1");
    command.stdin(Stdio::null()).process_group(0);
    for variable in ENVIRONMENT.iter().filter(|variable| variable.form == Form::Secret) {
        // The supervisor's own; the application has the rest of its environment.
        command.env_remove(variable.name);
    }
    if let Some((user, group)) = owner {
        command.uid(user).gid(group);
    }
    let child =
        command.spawn().map_err(|error| format!("cannot start the application: {error}"))?;
    tracing::info!(pid = child.id(), port, "started the application");
    Ok((Application { child, url }, target))
}

impl Core {
    /// Starts the configured application; once it answers, it takes its route over.
    pub fn start_application(&mut self, answer: Option<GatewayAnswer>) {
        let Some(config) = self.gateway_config() else { return };
        let options = config.options.app.clone();
        let owner = match options.user.is_empty() {
            true => Ok(None),
            false => crate::supervisor::workers::process::find_user(&options.user, None),
        };
        let started = owner.and_then(|owner| start(&options, owner));
        match started {
            Ok((application, target)) => {
                let route = Self::application_route().to_owned();
                self.begin_deploy(Deploy::of(route, vec![target], Some(application)), answer);
            }
            Err(why) => {
                tracing::error!("{why}");
                self.gateway.applications.restart_at = Some(Instant::now() + RESTART);
                if let Some(answer) = answer {
                    let _ = answer.send(Err(why));
                }
            }
        }
    }

    /// Proves new upstreams.
    pub fn begin_deploy(&mut self, mut deploy: Deploy, answer: Option<GatewayAnswer>) {
        let Some(config) = self.gateway_config() else { return };
        let GatewayOptions { health, app, .. } = config.options.clone();
        let applications = &mut self.gateway.applications;
        applications.next_deploy += 1;
        deploy.id = applications.next_deploy;
        deploy.answer = answer;
        let (id, targets) = (deploy.id, deploy.targets.clone());
        applications.deploys.push(deploy);
        applications.next_look = Some(Instant::now() + LOOK);
        let events = self.gateway.events.clone();
        let until = Instant::now() + Duration::from_millis(app.start_timeout_ms);
        let timeout = Duration::from_millis(health.timeout_ms.max(1));
        tokio::task::spawn_local(async move {
            for target in &targets {
                while !check(target, &health.path, timeout).await {
                    if Instant::now() >= until {
                        let why = format!(
                            "{} has not answered within {} ms; nothing has changed",
                            target.url, app.start_timeout_ms
                        );
                        let _ = events.send(GatewayEvent::Proven { deploy: id, result: Err(why) });
                        return;
                    }
                    tokio::time::sleep(PROOF_PAUSE).await;
                }
            }
            let _ = events.send(GatewayEvent::Proven { deploy: id, result: Ok(()) });
        });
    }

    pub fn on_proven(&mut self, id: u64, result: Result<(), String>) {
        let deploys = &mut self.gateway.applications.deploys;
        let Some(position) = deploys.iter().position(|deploy| deploy.id == id) else { return };
        let deploy = deploys.remove(position);
        if let Err(why) = result {
            return self.fail_deploy(deploy, &why);
        }
        let Deploy { route, targets, application, answer, begun, .. } = deploy;
        let urls: Vec<String> = targets.iter().map(|target| target.url.clone()).collect();
        let left = self.replace_upstreams(&route, targets);
        let ready_ms = begun.elapsed().as_secs_f64() * 1_000.0;
        tracing::info!(route, upstreams = urls.join(", "), "new upstreams");
        let policy = self.swap_policy();
        let stop_ms = self.gateway_config().map_or(0, |config| config.options.app.stop_timeout_ms);
        if policy == SwapPolicy::Reconnect {
            self.leave_upstreams(&left, true, (stop_ms / 4).min(1_000));
        }
        let applications = &mut self.gateway.applications;
        let old = match application {
            Some(application) => applications.current.replace(application),
            None => applications.current.take_if(|old| left.contains(&old.url)),
        };
        let now = Instant::now();
        let part = |percent: u64| now + Duration::from_millis(stop_ms * percent / 100);
        applications.ending.push(Ending {
            urls: left.clone(),
            application: old,
            // The last third is for their clients to go, spread.
            leave_at: (policy == SwapPolicy::Drain).then(|| part(66)),
            term_at: part(100),
            kill_at: part(200),
            termed: false,
        });
        applications.next_look = Some(now + LOOK);
        if let Some(answer) = answer {
            let swapped =
                Swapped { swap_successful: true, route, upstreams: urls, replaced: left, ready_ms };
            let _ = answer.send(Ok(GatewayReply::Swapped(swapped)));
        }
    }

    fn fail_deploy(&mut self, mut deploy: Deploy, why: &str) {
        tracing::error!("{why}");
        if let Some(application) = &mut deploy.application {
            application.signal(Signal::SIGKILL);
            let _ = application.child.wait();
        }
        if self.gateway.applications.current.is_none() {
            self.gateway.applications.restart_at = Some(Instant::now() + RESTART);
        }
        if let Some(answer) = deploy.answer.take() {
            let _ = answer.send(Err(why.to_owned()));
        }
    }

    /// Every worker has been told that an upstream is idle, or is gone.
    pub fn on_upstream_idle(&mut self, url: &str) {
        let busy: Vec<String> = vec![url.to_owned()];
        let now = Instant::now();
        for ending in &mut self.gateway.applications.ending {
            if ending.urls == busy {
                ending.term_at = ending.term_at.min(now);
            }
        }
        self.gateway.applications.next_look = Some(now);
    }

    pub fn applications_on_time(&mut self, now: Instant) {
        let Some(config) = self.gateway_config() else { return };
        let has_command = !config.options.app.command.is_empty();
        let stop_ms = config.options.app.stop_timeout_ms;
        let applications = &mut self.gateway.applications;
        let is_due = applications.restart_at.is_none_or(|at| now >= at);
        let wanted = has_command && self.stopping.is_none();
        if wanted && is_due && applications.current.is_none() && applications.deploys.is_empty() {
            applications.restart_at = None;
            self.start_application(None);
        }
        let applications = &mut self.gateway.applications;
        if applications.next_look.is_some_and(|at| now < at) {
            return;
        }
        // One that ends before it is proven never will be.
        let mut failed = Vec::new();
        for deploy in &mut applications.deploys {
            if let Some(application) = &mut deploy.application
                && let Ok(Some(status)) = application.child.try_wait()
            {
                failed.push((deploy.id, describe(status)));
            }
        }
        if let Some(current) = &mut applications.current
            && let Ok(Some(status)) = current.child.try_wait()
        {
            tracing::error!("the application {}; starting it again", describe(status));
            applications.current = None;
            applications.restart_at = Some(now + RESTART);
        }
        let mut leaving = Vec::new();
        applications.ending.retain_mut(|ending| {
            if let Some(application) = &mut ending.application
                && !matches!(application.child.try_wait(), Ok(None))
            {
                return false;
            }
            if ending.leave_at.is_some_and(|at| now >= at) {
                ending.leave_at = None;
                leaving.extend(ending.urls.iter().cloned());
            }
            let Some(application) = &ending.application else { return now < ending.term_at };
            if now >= ending.term_at && !std::mem::replace(&mut ending.termed, true) {
                application.signal(Signal::SIGTERM);
                ending.kill_at = now + Duration::from_millis(stop_ms);
            }
            if now >= ending.kill_at {
                tracing::warn!(
                    pid = application.child.id(),
                    "the old application did not end; killing it"
                );
                application.signal(Signal::SIGKILL);
            }
            true
        });
        let is_busy = applications.current.is_some()
            || applications.restart_at.is_some()
            || !applications.deploys.is_empty()
            || !applications.ending.is_empty();
        applications.next_look = is_busy.then(|| now + LOOK);
        self.leave_upstreams(&leaving, false, stop_ms / 4);
        for (id, why) in failed {
            self.on_proven(id, Err(format!("the new application {why}; nothing has changed")));
        }
    }
}

fn describe(status: std::process::ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (_, Some(signal)) => format!("was ended by signal {signal}"),
        _ => "has ended".to_owned(),
    }
}
