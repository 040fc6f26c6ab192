//! The real process at its real descriptors: what an orchestrator sees of it. Tests that need the model say SKIP where it is missing.

#[path = "../common/mod.rs"]
mod common;
mod descriptors;
mod ends;
mod flags;
mod flows;
mod support;
