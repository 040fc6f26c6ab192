//! The harness: everything that speaks to worker-orcd the way an orchestrator does, through `protocol` and a pipe.
//!
//! [`client`] and [`restart`] are for programs that spawn a worker; the rest is the program `orcd`. It uses no engine
//! code, no thread and no async runtime. A further command gets a module of its own here and a line in `main.rs`.

pub mod args;
pub mod ask;
pub mod bench;
pub mod bundle;
pub mod chat;
pub mod client;
pub mod conformance;
pub mod fetch;
pub mod golden;
pub mod lines;
pub mod locate;
pub mod out;
pub mod pipe;
pub mod progress;
pub mod restart;
pub mod synth;
pub mod talk;
pub mod trace;
