//! The methods, in one table: names, the types of their params and results, and whether an id is needed.

use std::sync::OnceLock;

use schemars::JsonSchema;

use crate::codec::check::Check;
use crate::event::{
    ApplyTemplateResult, CancelResult, DetokenizeResult, Fatal, GenerateResult, HealthResult,
    MetricsResult, Progress, PromptLogprobs, Ready, ShutdownResult, Started, StateResult, Token,
    TokenizeResult,
};
use crate::request::{
    ApplyTemplateParams, CancelParams, CancelRequestParams, CancelledParams, DetokenizeParams,
    GenerateParams, InitializeParams, LoadStateParams, MetricsParams, NoParams, SaveStateParams,
    ShutdownParams, TokenizeParams,
};
use crate::schema;

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// `initialize`
    Initialize,
    /// `generate`
    Generate,
    /// `cancel`
    Cancel,
    /// `$/cancelRequest`, which does what `cancel` does.
    CancelRequest,
    /// `notifications/cancelled`, which does what `cancel` does.
    Cancelled,
    /// `health`
    Health,
    /// `tokenize`
    Tokenize,
    /// `detokenize`
    Detokenize,
    /// `apply_template`
    ApplyTemplate,
    /// `save_state`
    SaveState,
    /// `load_state`
    LoadState,
    /// `metrics`
    Metrics,
    /// `shutdown`
    Shutdown,
}

/// Whether a request of a method may come without id, and then gets no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdRule {
    /// Without id it is refused.
    Needed,
    /// Without id it is a notification.
    MayBeLeftOut,
}

/// Fills a generator with a type's schema.
pub(crate) type SchemaOf = fn(&mut schemars::SchemaGenerator) -> schemars::Schema;

fn schema_of<T: JsonSchema>(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    generator.subschema_for::<T>()
}

impl Method {
    /// Every method, in the order of the documentation.
    pub const ALL: [Method; 13] = [
        Method::Initialize,
        Method::Generate,
        Method::Cancel,
        Method::CancelRequest,
        Method::Cancelled,
        Method::Health,
        Method::Tokenize,
        Method::Detokenize,
        Method::ApplyTemplate,
        Method::SaveState,
        Method::LoadState,
        Method::Metrics,
        Method::Shutdown,
    ];

    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Method::Initialize => "initialize",
            Method::Generate => "generate",
            Method::Cancel => "cancel",
            Method::CancelRequest => "$/cancelRequest",
            Method::Cancelled => "notifications/cancelled",
            Method::Health => "health",
            Method::Tokenize => "tokenize",
            Method::Detokenize => "detokenize",
            Method::ApplyTemplate => "apply_template",
            Method::SaveState => "save_state",
            Method::LoadState => "load_state",
            Method::Metrics => "metrics",
            Method::Shutdown => "shutdown",
        }
    }

    /// The method of this name.
    pub fn from_name(name: &str) -> Option<Method> {
        Method::ALL.into_iter().find(|method| method.name() == name)
    }

    /// Whether the id may be left out.
    pub fn id_rule(self) -> IdRule {
        match self {
            Method::Cancel | Method::CancelRequest | Method::Cancelled => IdRule::MayBeLeftOut,
            Method::Initialize
            | Method::Generate
            | Method::Health
            | Method::Tokenize
            | Method::Detokenize
            | Method::ApplyTemplate
            | Method::SaveState
            | Method::LoadState
            | Method::Metrics
            | Method::Shutdown => IdRule::Needed,
        }
    }

    pub(crate) fn params_schema(self) -> SchemaOf {
        match self {
            Method::Initialize => schema_of::<InitializeParams>,
            Method::Generate => schema_of::<GenerateParams>,
            Method::Cancel => schema_of::<CancelParams>,
            Method::CancelRequest => schema_of::<CancelRequestParams>,
            Method::Cancelled => schema_of::<CancelledParams>,
            Method::Health => schema_of::<NoParams>,
            Method::Tokenize => schema_of::<TokenizeParams>,
            Method::Detokenize => schema_of::<DetokenizeParams>,
            Method::ApplyTemplate => schema_of::<ApplyTemplateParams>,
            Method::SaveState => schema_of::<SaveStateParams>,
            Method::LoadState => schema_of::<LoadStateParams>,
            Method::Metrics => schema_of::<MetricsParams>,
            Method::Shutdown => schema_of::<ShutdownParams>,
        }
    }

    pub(crate) fn result_schema(self) -> SchemaOf {
        match self {
            Method::Initialize => schema_of::<Ready>,
            Method::Generate => schema_of::<GenerateResult>,
            Method::Cancel | Method::CancelRequest | Method::Cancelled => schema_of::<CancelResult>,
            Method::Health => schema_of::<HealthResult>,
            Method::Tokenize => schema_of::<TokenizeResult>,
            Method::Detokenize => schema_of::<DetokenizeResult>,
            Method::ApplyTemplate => schema_of::<ApplyTemplateResult>,
            Method::SaveState | Method::LoadState => schema_of::<StateResult>,
            Method::Metrics => schema_of::<MetricsResult>,
            Method::Shutdown => schema_of::<ShutdownResult>,
        }
    }

    /// The compiled schema of the params, made when it is first asked for.
    pub(crate) fn check(self) -> &'static Check {
        static CHECKS: [OnceLock<Check>; Method::ALL.len()] =
            [const { OnceLock::new() }; Method::ALL.len()];
        CHECKS[self as usize].get_or_init(|| {
            // The schema comes from our own types; a test compiles every one of them.
            Check::compile(&schema::params(self)).unwrap_or_else(|unknown| {
                unreachable!(
                    "the schema of {} has what the checker does not know: {unknown}",
                    self.name()
                )
            })
        })
    }
}

/// The notifications that the worker sends, with the types of their params.
pub(crate) const NOTIFICATIONS: [(&str, SchemaOf); 6] = [
    ("progress", schema_of::<Progress>),
    ("ready", schema_of::<Ready>),
    ("started", schema_of::<Started>),
    ("prompt_logprobs", schema_of::<PromptLogprobs>),
    ("token", schema_of::<Token>),
    ("fatal", schema_of::<Fatal>),
];
