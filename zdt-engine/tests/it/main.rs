//! Integration tests: one binary, a module per scenario. Real processes, real sockets.

mod lab;
mod skip;

mod access_log;
mod admin;
mod allocations;
mod freeze;
mod gateway;
mod handoff_basic;
mod handoff_faults;
mod handoff_sealed;
mod hostile_admin;
mod hostile_back_pressure;
mod hostile_descriptors;
mod hostile_half_closed;
mod hostile_port;
mod http1_differential;
mod http2_clients;
mod http2_freeze;
mod http2_spec;
mod layers;
mod library;
mod proxy_protocol;
mod push;
mod steering;
mod supervisor;
mod system_adder;
mod system_autobahn;
mod system_curl;
mod system_formats;
mod system_leaks;
mod system_limits;
mod system_load;
mod system_python;
mod system_slow_clients;
mod tls;
