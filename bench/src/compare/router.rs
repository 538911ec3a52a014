//! The router beside HAProxy and nginx, in front of the floor server: the proxy on the servers' core, the client
//! and the floor on the client's.

pub(super) mod placement;

use std::net::SocketAddr;
use std::path::Path;

use crate::client::Role;
use crate::publish::Pace;

use super::launch::{Launch, Places, Running, ServerError, free_address, launch, system_program, write};
use super::plan::{Measure, Sizes};
use super::process::{family, pss_bytes};
use super::rig::{MeasureError, Reading, Rig, cpu_of, one_channel, publisher, wait_quiet};
use super::servers::{Server, start_floor, start_router};

/// Handshakes, memory, messages: on one ramp of connections.
pub(super) fn run(server: Server, places: &Places, sizes: &Sizes) -> Result<Vec<Reading>, MeasureError> {
    let floor = start_floor(places, places.client_core)?;
    let proxy = start_proxy(server, places, floor.address)?;
    let mut rig = Rig::new()?;
    rig.warm_up(&proxy.target(), &floor.target())?;
    wait_quiet(proxy.pid())?;
    let pids = family(proxy.pid());
    let (memory, cpu) = (pss_of(&pids)?, cpu_of(&pids)?);
    let mut fleet = rig.open(&proxy.target(), Role::Subscribe, sizes.subscribers)?;
    let connections = f64::from(fleet.open());
    let handshake_us = (cpu_of(&pids)? - cpu) as f64 / 1e3 / connections;
    let per_connection = (pss_of(&pids)? as f64 - memory as f64) / connections;
    // Published at the floor itself, so that only deliveries pass the proxy.
    let mut publisher = publisher(&floor.target(), 1, Pace::OnDemand, &one_channel())?;
    let (usage, _, deliveries) = rig.one_at_a_time(&mut publisher, &mut fleet, &pids, sizes.window)?;
    Ok(vec![
        Reading::of(Measure::ProxyHandshakeCpu, handshake_us),
        Reading::of(Measure::ProxyMemory, per_connection),
        Reading {
            order: fleet.stats().order,
            client_busy: Some(usage.client_busy),
            ..Reading::of(Measure::ProxyMessageCpu, usage.cpu_us(deliveries))
        },
    ])
}

/// User memory of several processes together.
pub(super) fn pss_of(pids: &[u32]) -> Result<u64, MeasureError> {
    Ok(pids.iter().map(|&pid| pss_bytes(pid)).sum::<Result<u64, _>>()?)
}

fn start_proxy(server: Server, places: &Places, upstream: SocketAddr) -> Result<Running, ServerError> {
    let (address, core) = (free_address()?, places.server_core);
    let directory = places.logs.join("proxies");
    let (program, arguments) = match server {
        Server::Haproxy => {
            let file = write(&directory, "haproxy.cfg", &haproxy_configuration(address, upstream))?;
            ("haproxy", vec!["-db".to_owned(), "-f".to_owned(), file])
        }
        Server::Nginx => {
            let configuration = nginx_configuration(&directory, address, upstream);
            let file = write(&directory, "nginx.conf", &configuration)?;
            ("nginx", vec!["-c".to_owned(), file, "-e".to_owned(), "stderr".to_owned()])
        }
        _ => {
            let members = format!("static:{upstream}");
            let more = ["--members", &members, "--key", "query:channel"];
            return start_router(places, core, [address, free_address()?], &more);
        }
    };
    let name = server.name();
    launch(
        places,
        Launch {
            name,
            program: system_program(program),
            arguments,
            environment: Vec::new(),
            address,
            core: Some(core),
        },
    )
}

/// Defaults, but for what WebSockets and 5,000 connections need.
fn haproxy_configuration(address: SocketAddr, upstream: SocketAddr) -> String {
    format!(
        "global
  maxconn 9000
  nbthread 1
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout tunnel 1h
frontend clients
  bind {address} backlog 4096
  default_backend servers
backend servers
  balance url_param channel
  hash-type consistent
  server upstream {upstream}
"
    )
}

fn nginx_configuration(directory: &Path, address: SocketAddr, upstream: SocketAddr) -> String {
    let directory = directory.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("  {kind}_temp_path {directory}/{kind};\n"))
        .collect();
    format!(
        "daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
worker_rlimit_nofile 20000;
events {{ worker_connections 20000; }}
http {{
  access_log off;
{temporary}  upstream servers {{
    hash $arg_channel consistent;
    server {upstream};
  }}
  server {{
    listen {address} backlog=4096;
    location / {{
      proxy_pass http://servers;
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection upgrade;
      proxy_read_timeout 1h;
      proxy_send_timeout 1h;
    }}
  }}
}}
"
    )
}
