//! worker-orcd as a library: everything but the process itself (`main.rs`), so that tests can drive each floor of the house alone.
//!
//! `ARCHITECTURE.md` is the map. A request goes down once and a token comes up once:
//! protocol → [`worker`] → [`session`] → [`device`] → token → [`text`] → event.

pub mod device;
pub mod gguf;
pub mod grammar;
pub mod io;
pub mod limits;
pub mod load;
pub mod log;
pub mod model;
pub mod pages;
pub mod prefix;
pub mod quant;
pub mod sampling;
pub mod session;
pub mod state;
pub mod text;
pub mod trace;
pub mod worker;
