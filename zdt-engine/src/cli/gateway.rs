//! `zdt hold`, `resume`, `queue`, `upstream` and `reload --app`.
//!
//! Must not know: how the gateway does what it is told.

use std::process::ExitCode;

use super::client::Client;
use super::{
    QueueArgs, QueueCommand, ReloadArgs, RouteArgs, RunDirArg, UpstreamArgs, UpstreamCommand,
};
use crate::config::RouteTarget;
use crate::control::GatewayStatus;
use crate::supervisor::handle::{GatewayReply, GatewayRequest, Reply, Request};

/// `slow`: a new application may take its time to start; the supervisor's own bound on it holds.
fn ask(run_dir: &RunDirArg, request: GatewayRequest, slow: bool) -> Result<GatewayReply, String> {
    let mut client = Client::connect(&run_dir.path()?).map_err(|error| error.to_string())?;
    let request = Request::Gateway(request);
    client.send(&request).map_err(|error| error.to_string())?;
    let reply = if slow { client.next_when_it_comes() } else { client.next_soon() };
    match reply.map_err(|error| error.to_string())? {
        Some(Reply::Gateway(reply)) => Ok(*reply),
        Some(Reply::Error { message }) => Err(message),
        Some(_) => Err("the supervisor answered something else; is it of another version?".into()),
        None => Err("the supervisor closed the connection without an answer".into()),
    }
}

fn print_json(value: &impl serde::Serialize) -> Result<(), String> {
    println!("{}", serde_json::to_string(value).map_err(|error| error.to_string())?);
    Ok(())
}

fn print_routes(routes: &[RouteTarget]) {
    for route in routes {
        let upstreams: Vec<String> = route
            .upstreams
            .iter()
            .map(|one| format!("{}{}", one.url, if one.healthy { "" } else { " (unhealthy)" }))
            .collect();
        let held = if route.held { ", held" } else { "" };
        println!("{}{held}: {}", route.name, upstreams.join(", "));
    }
}

pub(super) fn hold(args: &RouteArgs, held: bool) -> Result<ExitCode, String> {
    let request = GatewayRequest::Hold { route: args.route.clone(), held };
    if let GatewayReply::Routes(routes) = ask(&args.run_dir, request, false)? {
        if args.json {
            print_json(&routes)?;
        } else {
            print_routes(&routes);
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn queue(args: &QueueArgs) -> Result<ExitCode, String> {
    match &args.command {
        QueueCommand::Flush { route, json } => {
            let request = GatewayRequest::Flush { route: route.clone() };
            if let GatewayReply::Flushed { workers, flushed_requests, buffered_requests } =
                ask(&args.run_dir, request, false)?
            {
                if *json {
                    print_json(&serde_json::json!({
                        "flushed": true,
                        "workers": workers,
                        "flushed_requests": flushed_requests,
                        "buffered_requests": buffered_requests,
                    }))?;
                } else {
                    println!(
                        "{flushed_requests} requests of {workers} workers were answered with 503; \
                         {buffered_requests} are held"
                    );
                }
            }
        }
        QueueCommand::Stats { json } => {
            let total = stats(&args.run_dir)?;
            if *json {
                print_json(&total)?;
            } else {
                print_stats(&total);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The figures of all workers, added up.
fn stats(run_dir: &RunDirArg) -> Result<GatewayStatus, String> {
    let mut client = Client::connect(&run_dir.path()?).map_err(|error| error.to_string())?;
    let status = match client.ask(&Request::Status).map_err(|error| error.to_string())? {
        Reply::Status(status) => status,
        Reply::Error { message } => return Err(message),
        _ => return Err("the supervisor answered something else".to_owned()),
    };
    let mut total: Option<GatewayStatus> = None;
    for one in status.worker_stats.into_values().filter_map(|worker| worker.figures.gateway) {
        match &mut total {
            None => total = Some(*one),
            Some(total) => total.add(&one),
        }
    }
    let mut total = total.ok_or("no worker is a gateway; `--service proxy` makes them so")?;
    // Not of these workers only: of all that there ever were.
    let counters = status.counters;
    total.held_total = counters.held_requests;
    total.replayed = counters.replayed_requests;
    total.rejected = counters.unheld_requests;
    total.displaced = counters.displaced_requests;
    total.expired = counters.expired_requests;
    total.abandoned = counters.abandoned_requests;
    total.spilled_total = counters.spilled_requests;
    total.unspilled = counters.unspilled_requests;
    Ok(total)
}

fn print_stats(total: &GatewayStatus) {
    println!(
        "held: {} requests, {} bytes, the oldest for {} ms",
        total.held_requests, total.held_bytes, total.oldest_age_ms
    );
    for (route, held) in &total.held_by_route {
        println!("  {route}: {held}");
    }
    if total.spilled_total > 0 {
        println!(
            "on disk: {} bodies, {} bytes; {} since the start, and {} for which there was no room",
            total.spilled_requests, total.spilled_bytes, total.spilled_total, total.unspilled
        );
    }
    println!(
        "since the start: {} held, {} replayed, {} rejected, {} displaced, {} expired, {} abandoned, \
         {} flushed",
        total.held_total,
        total.replayed,
        total.rejected,
        total.displaced,
        total.expired,
        total.abandoned,
        total.flushed
    );
    for upstream in &total.upstreams {
        let health = if upstream.healthy { "healthy" } else { "not in use" };
        println!(
            "{}: {health}, {} in flight, {} idle connections",
            upstream.url, upstream.outstanding, upstream.idle
        );
    }
}

pub(super) fn upstream(args: &UpstreamArgs) -> Result<ExitCode, String> {
    let UpstreamCommand::Set { route, urls, json } = &args.command;
    let request = GatewayRequest::SetUpstreams { route: route.clone(), urls: urls.clone() };
    print_swap(&ask(&args.run_dir, request, true)?, *json)
}

pub(super) fn reload_app(args: &ReloadArgs) -> Result<ExitCode, String> {
    print_swap(&ask(&args.run_dir, GatewayRequest::ReloadApp, true)?, args.json)
}

fn print_swap(reply: &GatewayReply, json: bool) -> Result<ExitCode, String> {
    if let GatewayReply::Swapped(swapped) = reply {
        if json {
            print_json(swapped)?;
        } else {
            println!(
                "{} is served by {} after {:.0} ms",
                swapped.route,
                swapped.upstreams.join(", "),
                swapped.ready_ms
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}
