//! Real proxies, in process, over loopback: what a user may rely on, and what an attacker tries.

mod attacks;
mod drain;
mod http;
mod program;
mod realm;
mod rotation;
mod streams;
mod world;
