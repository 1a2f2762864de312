//! nginx with one worker, set up for small answers on kept connections.
//!
//! Must not know: who measures.

use std::net::SocketAddrV4;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::{Peer, TemporaryFile, await_listener, free_address};
use crate::process::Server;

fn configuration(directory: &str, address: SocketAddrV4, http2: bool) -> String {
    let http2 = if http2 { " http2" } else { "" };
    format!(
        "daemon off; worker_processes 1; pid {directory}/pid; error_log {directory}/error.log crit;
events {{ worker_connections 4096; accept_mutex off; multi_accept on; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 3600s; tcp_nodelay on;
  client_body_temp_path {directory}/b; proxy_temp_path {directory}/p; fastcgi_temp_path {directory}/f;
  uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
  server {{ listen {address}{http2} backlog=4096; location = /id {{ default_type text/plain; return 200 $arg_id; }} }}
}}
"
    )
}

/// Starts it on the CPU, for HTTP/1.1 or for HTTP/2 by prior knowledge.
pub fn start(cpu: usize, http2: bool) -> Result<Peer> {
    let address = free_address()?;
    let directory = TemporaryFile::new("nginx", None)?;
    let path = directory.path().to_str().context("temporary directory is not UTF-8")?;
    let file = TemporaryFile::new("nginx.conf", Some(&configuration(path, address, http2)))?;
    let version = Command::new("nginx")
        .arg("-v")
        .output()
        .context("nginx is not there: apt-get install nginx-light")?;
    let version = String::from_utf8_lossy(&version.stderr).trim().to_owned();
    let mut command = Command::new("nginx");
    command.arg("-c").arg(file.path()).arg("-p").arg(path).stdin(Stdio::null());
    let mut server = Server::start("nginx", &mut command, Some(cpu))?;
    await_listener(address, &mut server)?;
    Ok(Peer {
        name: "nginx",
        configuration: format!(
            "{version}, one worker, keepalive_requests 1e9, access_log off, return 200 $arg_id"
        ),
        address,
        echo_target: None,
        server,
        _files: vec![file, directory],
    })
}
