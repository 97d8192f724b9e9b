//! Real proxies, in process, over loopback: what a user may rely on, and what an attacker tries.

mod answers;
mod attacks;
mod balancer;
mod calls;
mod certificate;
mod configured;
mod corpus;
mod crowd;
mod drain;
mod flood;
mod http;
mod keep_alive;
mod moves;
mod profiles;
mod program;
mod realm;
mod recorder;
mod reproof;
mod rest;
mod revocation;
mod rotation;
mod streams;
mod superseded;
mod world;
