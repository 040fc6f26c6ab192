//! What a request says of single tokens, found out against the model's vocabulary before anything else is done for it, and how its
//! tokens are drawn.

use std::collections::btree_map;

use aho_corasick::AhoCorasick;
use worker_orcd_protocol::{
    Dry, ErrorCode, ErrorObject, Fault, GenerateParams, LogitBias, entry_path,
};

use super::form::{Formed, Forming, wrong_forms};
use super::lifecycle::Serving;
use crate::grammar::Matcher;
use crate::limits;
use crate::sampling::{DryParams, SamplingParams, TokenSet, Window, XtcParams};
use crate::text::{AddSpecial, ParseSpecial, Tokenizer};

/// What a request says of single tokens.
#[derive(Debug, Default)]
pub(super) struct Controls {
    /// What is added to logits, by token, each token once.
    pub(super) bias: Vec<(u32, f32)>,
    /// What would end the generation; none of them is drawn before `min_tokens`.
    pub(super) endings: Vec<u32>,
    /// What ends a sequence for dry: the words of a [`TokenSet`].
    pub(super) breakers: Vec<u32>,
    /// What form the output has.
    pub(super) form: Option<Matcher>,
}

/// Finds it out, in pieces of work of about a millisecond.
pub(super) struct Resolving {
    controls: Controls,
    faults: Vec<Fault>,
    stage: Stage,
}

enum Stage {
    Given,
    /// Entries of `logit_bias` that are still to be looked at.
    Bias(btree_map::IntoIter<String, LogitBias>),
    Endings,
    /// The vocabulary is searched for the texts that break sequences.
    Breakers(Box<Search>),
    /// What form the output has; `None` once that is known.
    Form(Option<Box<Forming>>),
}

/// A search for breakers.
struct Search {
    texts: Vec<String>,
    finder: AhoCorasick,
    /// Which of the texts some token contains.
    found: Vec<bool>,
    /// The token that is looked at next.
    token: u32,
}

/// What a piece of it came to.
pub(super) enum Resolved {
    GoesOn(Resolving),
    Done(Controls),
}

impl Stage {
    fn form(params: &mut GenerateParams, controls: &Controls) -> Self {
        Stage::Form(Forming::of(params, &controls.bias).map(Box::new))
    }
}

impl Resolving {
    pub(super) fn new() -> Self {
        Self {
            controls: Controls::default(),
            faults: Vec::new(),
            stage: Stage::Given,
        }
    }

    /// One piece. What is needed once only is taken out of `params`. All faults of the request come in one error.
    pub(super) fn step(
        mut self,
        params: &mut GenerateParams,
        serving: &mut Serving,
    ) -> Result<Resolved, ErrorObject> {
        let tokenizer = &serving.tokenizer;
        let vocab = serving.device.capacity().vocab;
        self.stage = match self.stage {
            Stage::Given => {
                self.faults.extend(wrong_fields(params, vocab));
                Stage::Bias(std::mem::take(&mut params.logit_bias).into_iter())
            }
            Stage::Bias(mut entries) => {
                let piece = entries.by_ref().take(limits::LOGIT_BIAS_PIECE_ENTRIES);
                for (key, bias) in piece {
                    match tokens_of(&key, tokenizer, vocab) {
                        Ok(tokens) => self.controls.add_bias(&tokens, bias),
                        Err(fault) => self.faults.push(fault),
                    }
                }
                match entries.len() {
                    0 => Stage::Endings,
                    _ => Stage::Bias(entries),
                }
            }
            Stage::Endings => {
                refuse(self.faults)?;
                self.faults = Vec::new();
                self.controls.merge_bias();
                if params.min_tokens > 0 {
                    self.controls.endings = endings(&params.stop_token_ids, tokenizer, vocab);
                }
                match params.dry.as_ref().and_then(Search::new) {
                    Some(search) => {
                        self.controls.breakers = vec![0; TokenSet::words(vocab)];
                        Stage::Breakers(Box::new(search?))
                    }
                    None => Stage::form(params, &self.controls),
                }
            }
            Stage::Breakers(mut search) => {
                search.piece(tokenizer, &mut self.controls.breakers);
                if search.token as usize >= tokenizer.vocab_size() {
                    search.finish(tokenizer, &mut self.controls.breakers)?;
                    Stage::form(params, &self.controls)
                } else {
                    Stage::Breakers(search)
                }
            }
            Stage::Form(None) => return Ok(Resolved::Done(self.controls)),
            Stage::Form(Some(forming)) => match forming.step(serving)? {
                Formed::GoesOn(next) => Stage::Form(Some(Box::new(next))),
                Formed::Done(matcher) => {
                    self.controls.form = Some(matcher);
                    Stage::Form(None)
                }
            },
        };
        Ok(Resolved::GoesOn(self))
    }
}

impl Controls {
    fn add_bias(&mut self, tokens: &[u32], bias: LogitBias) {
        let bias = match bias {
            LogitBias::Add(bias) => bias,
            LogitBias::Forbid => f32::NEG_INFINITY,
        };
        self.bias.extend(tokens.iter().map(|token| (*token, bias)));
    }

    /// Each token once, with the sum of its entries.
    fn merge_bias(&mut self) {
        self.bias.sort_by_key(|entry| entry.0);
        self.bias.dedup_by(|later, first| {
            let same = later.0 == first.0;
            if same {
                first.1 += later.1;
            }
            same
        });
    }
}

impl Search {
    /// `None` where nothing is to be searched for.
    fn new(dry: &Dry) -> Option<Result<Self, ErrorObject>> {
        if dry.multiplier <= 0.0 || dry.sequence_breakers.is_empty() {
            return None;
        }
        let texts = dry.sequence_breakers.clone();
        let finder = AhoCorasick::new(&texts).map_err(|error| {
            ErrorObject::new(ErrorCode::Internal, format!("sequence_breakers: {error}"))
        });
        Some(finder.map(|finder| Self {
            found: vec![false; texts.len()],
            texts,
            finder,
            token: 0,
        }))
    }

    /// Looks at some tokens. Control tokens have no text.
    fn piece(&mut self, tokenizer: &Tokenizer, breakers: &mut [u32]) {
        let end = tokenizer.vocab_size().try_into().unwrap_or(u32::MAX);
        let end = end.min(self.token.saturating_add(limits::BREAKERS_PIECE_TOKENS));
        for token in self.token..end {
            if tokenizer.is_control(token) || tokenizer.is_end_of_generation(token) {
                continue;
            }
            let text = tokenizer.token_bytes(token).unwrap_or_default();
            for found in self.finder.find_overlapping_iter(text) {
                TokenSet::insert(breakers, token);
                if let Some(found) = self.found.get_mut(found.pattern().as_usize()) {
                    *found = true;
                }
            }
        }
        self.token = end;
    }

    /// Of a text that no token contains the last of its tokens breaks a sequence.
    fn finish(&self, tokenizer: &Tokenizer, breakers: &mut [u32]) -> Result<(), ErrorObject> {
        let missing = self.texts.iter().zip(&self.found).enumerate();
        for (at, (text, _)) in missing.filter(|(_, (_, found))| !**found) {
            let tokens = tokenizer
                .encode(text, AddSpecial::No, ParseSpecial::No)
                .map_err(|error| {
                    let field = format!("dry.sequence_breakers[{at}]");
                    ErrorObject::invalid_param(&field, "text", format!("{field}: {error}"))
                })?;
            if let Some(last) = tokens.last() {
                TokenSet::insert(breakers, *last);
            }
        }
        Ok(())
    }
}

/// All faults in one error, where there are any.
fn refuse(faults: Vec<Fault>) -> Result<(), ErrorObject> {
    match faults.len() {
        0 => Ok(()),
        count => Err(ErrorObject::with_faults(
            ErrorCode::InvalidParams,
            faults,
            count,
        )),
    }
}

/// What is wrong with fields that need not be searched for.
fn wrong_fields(params: &GenerateParams, vocab: usize) -> impl Iterator<Item = Fault> {
    let lengths = wrong_lengths(params).into_iter();
    let forms = wrong_forms(params).into_iter();
    lengths
        .chain(forms)
        .chain(wrong_ids(&params.stop_token_ids, vocab))
}

/// `min_tokens` above `max_tokens`.
fn wrong_lengths(params: &GenerateParams) -> Option<Fault> {
    let (min, max) = (params.min_tokens, params.max_tokens?);
    (min > max).then(|| Fault {
        field: "min_tokens".to_owned(),
        constraint: "at most max_tokens".to_owned(),
        message: format!("min_tokens is {min}, which is more than max_tokens, {max}"),
    })
}

/// Stop tokens that the vocabulary does not have.
fn wrong_ids(ids: &[u32], vocab: usize) -> impl Iterator<Item = Fault> {
    let wrong = ids.iter().enumerate();
    let wrong = wrong.filter(move |(_, id)| **id as usize >= vocab);
    wrong.map(move |(at, _)| beyond_vocabulary(format!("stop_token_ids[{at}]"), vocab))
}

fn beyond_vocabulary(field: String, vocab: usize) -> Fault {
    Fault {
        constraint: format!("maximum {}", vocab.saturating_sub(1)),
        message: format!("{field} names no token; the vocabulary has {vocab} of them"),
        field,
    }
}

/// The tokens that a key of `logit_bias` means, each once.
fn tokens_of(key: &str, tokenizer: &Tokenizer, vocab: usize) -> Result<Vec<u32>, Fault> {
    let field = || entry_path("logit_bias", key);
    if !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_digit()) {
        return match key.parse::<u32>() {
            Ok(id) if (id as usize) < vocab => Ok(vec![id]),
            Ok(_) | Err(_) => Err(beyond_vocabulary(field(), vocab)),
        };
    }
    let wrong = |said: String| Fault {
        field: field(),
        constraint: "a token id, or a text".to_owned(),
        message: format!("{} {said}", field()),
    };
    let mut tokens = tokenizer
        .encode(key, AddSpecial::No, ParseSpecial::No)
        .map_err(|error| wrong(format!("is no text that can be cut into tokens: {error}")))?;
    if tokens.is_empty() {
        return Err(wrong("is a text of no tokens".to_owned()));
    }
    tokens.sort_unstable();
    tokens.dedup();
    Ok(tokens)
}

/// Every token that would end the generation.
fn endings(stop_token_ids: &[u32], tokenizer: &Tokenizer, vocab: usize) -> Vec<u32> {
    let vocab = vocab.try_into().unwrap_or(u32::MAX);
    let ends = (0..vocab).filter(|token| tokenizer.is_end_of_generation(*token));
    ends.chain(stop_token_ids.iter().copied()).collect()
}

/// How tokens are drawn, in sampling's own words.
pub(super) fn sampling_params(params: &GenerateParams) -> SamplingParams {
    SamplingParams {
        repetition_penalty: params.repetition_penalty,
        presence_penalty: params.presence_penalty,
        frequency_penalty: params.frequency_penalty,
        penalty_window: window(params.penalty_last_n),
        dry: params.dry.as_ref().map(|dry| DryParams {
            multiplier: dry.multiplier,
            base: dry.base,
            allowed_length: dry.allowed_length,
            window: window(dry.last_n),
        }),
        temperature: params.temperature,
        top_n_sigma: params.top_n_sigma,
        top_k: params.top_k,
        typical_p: params.typical_p,
        top_p: params.top_p,
        min_p: params.min_p,
        xtc: params.xtc.map(|xtc| XtcParams {
            probability: xtc.probability,
            threshold: xtc.threshold,
        }),
    }
}

/// The wire says -1 for prompt and output.
fn window(last_n: i32) -> Window {
    usize::try_from(last_n).map_or(Window::All, Window::Last)
}
