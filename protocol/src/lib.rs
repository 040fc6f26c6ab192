//! The wire of worker-orcd: its types, its codec, its schema. It knows no engine.
//!
//! [`codec::LineReader`] cuts bytes into lines, [`codec::decode_line`] makes a [`Call`] of a line or a [`Reject`]
//! that is ready to be sent, [`codec::encode_line`] writes what the worker says.

pub mod codec;
pub mod error;
pub mod event;
pub mod exit;
pub mod grammar;
pub mod limits;
pub mod method;
pub mod metrics;
pub mod request;
pub mod sampling;
pub mod schema;

pub use codec::{Reject, entry_path};
pub use error::*;
pub use event::*;
pub use exit::*;
pub use grammar::*;
pub use method::{IdRule, Method};
pub use metrics::*;
pub use request::*;
pub use sampling::*;
