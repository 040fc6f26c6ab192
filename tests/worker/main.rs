//! The worker as a state machine: a scripted device, a fake clock, and what a client would see.

mod chat;
mod ends;
mod generate;
mod queue;
mod requests;
mod simulation;
mod speculation;
mod support;
