//! nginx and HAProxy as reverse proxies of one worker, set up for kept connections on both sides.
//!
//! Must not know: who measures.

use std::net::SocketAddrV4;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::{Peer, TemporaryFile, await_listener, free_address};
use crate::process::Server;

fn nginx_configuration(directory: &str, address: SocketAddrV4, upstream: SocketAddrV4) -> String {
    format!(
        "daemon off; worker_processes 1; pid {directory}/pid; error_log {directory}/error.log crit;
events {{ worker_connections 4096; accept_mutex off; multi_accept on; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 3600s; tcp_nodelay on;
  client_body_temp_path {directory}/b; proxy_temp_path {directory}/p; fastcgi_temp_path {directory}/f;
  uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream app {{ server {upstream}; keepalive 512; keepalive_requests 1000000000; }}
  server {{
    listen {address} backlog=4096;
    location / {{
      proxy_pass http://app; proxy_http_version 1.1; proxy_buffering on; proxy_read_timeout 3600s;
      proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
    }}
  }}
}}
"
    )
}

/// Starts nginx on the CPU.
pub fn nginx(cpu: usize, upstream: SocketAddrV4, echo: Option<&'static str>) -> Result<Peer> {
    let address = free_address()?;
    let directory = TemporaryFile::new("nginx-proxy", None)?;
    let path = directory.path().to_str().context("temporary directory is not UTF-8")?;
    let text = nginx_configuration(path, address, upstream);
    let file = TemporaryFile::new("nginx-proxy.conf", Some(&text))?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(file.path()).arg("-p").arg(path).stdin(Stdio::null());
    let mut server = Server::start("nginx", &mut command, Some(cpu))?;
    await_listener(address, &mut server)?;
    Ok(Peer {
        name: "nginx",
        configuration: "one worker, HTTP/1.1 to the upstream, 512 kept connections".to_owned(),
        address,
        echo_target: echo,
        server,
        _files: vec![file, directory],
    })
}

/// Starts HAProxy on the CPU.
pub fn haproxy(cpu: usize, upstream: SocketAddrV4, echo: Option<&'static str>) -> Result<Peer> {
    let address = free_address()?;
    let text = format!(
        "global
  nbthread 1
  maxconn 8192
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout tunnel 1h
  option forwardfor
  http-reuse always
frontend front
  bind {address} backlog 4096
  default_backend app
backend app
  server app {upstream} pool-max-conn 512
"
    );
    let file = TemporaryFile::new("haproxy.cfg", Some(&text))?;
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-q").arg("-f").arg(file.path()).stdin(Stdio::null());
    let mut server = Server::start("haproxy", &mut command, Some(cpu))?;
    await_listener(address, &mut server)?;
    Ok(Peer {
        name: "HAProxy",
        configuration: "one thread, http-reuse always".to_owned(),
        address,
        echo_target: echo,
        server,
        _files: vec![file],
    })
}
