//! The real process at its real descriptors: what an orchestrator sees of it. Tests that need the model say SKIP where it is missing.

mod backpressure;
#[path = "../common/mod.rs"]
mod common;
mod descriptors;
mod ends;
mod flags;
mod flows;
mod lines;
mod log;
mod matrix;
mod parent;
mod purity;
mod sampling;
mod signals;
mod speculation;
mod support;
mod terminal;
