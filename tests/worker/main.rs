//! The worker as a state machine: a scripted device, a fake clock, and what a client would see.

mod ends;
mod generate;
mod invariants;
mod queue;
mod requests;
mod script;
mod support;
