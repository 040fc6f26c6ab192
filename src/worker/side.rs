//! What the host answers without the device: `tokenize`, `detokenize`, `apply_template`. It is done in pieces that take turns
//! with those of the `generate` that runs.

use std::time::{Instant, SystemTime};

use worker_orcd_protocol::{
    ApplyTemplateParams, ApplyTemplateResult, DetokenizeParams, DetokenizeResult, ErrorObject, Id,
    MethodResult, TokenizeParams, TokenizeResult,
};

use super::Worker;
use super::lifecycle::{Serving, Stage, device_error};
use super::state::StateWork;
use super::{chat, prompt};
use crate::limits;
use crate::state::StateStore;
use crate::text::{AddSpecial, Encoding, EncodingStep, ParseSpecial, TextDecoder, Tokenizer};

/// A request that waits for the host or is being worked on.
pub(super) struct SideJob {
    pub(super) id: Id,
    pub(super) bytes: usize,
    work: SideWork,
}

/// How far it is.
pub(super) enum SideWork {
    Tokenize(Box<TokenizeParams>),
    Encode {
        encoding: Box<Encoding>,
        /// `Some` where the text of each token is wanted too.
        pieces: Option<Vec<String>>,
    },
    Pieces {
        token_ids: Vec<u32>,
        pieces: Vec<String>,
    },
    Detokenize {
        token_ids: Vec<u32>,
        done: usize,
        decoder: TextDecoder,
        content: String,
    },
    ApplyTemplate(Box<ApplyTemplateParams>),
    State(StateWork),
}

/// What a piece of it came to.
pub(super) enum SideStep {
    GoesOn(SideWork),
    Done(MethodResult),
    Failed(ErrorObject),
    DeviceLost(String),
}

impl SideWork {
    pub(super) fn tokenize(params: TokenizeParams) -> Self {
        SideWork::Tokenize(Box::new(params))
    }

    pub(super) fn detokenize(params: DetokenizeParams) -> Self {
        let decoder = TextDecoder::new();
        SideWork::Detokenize {
            token_ids: params.token_ids,
            done: 0,
            decoder,
            content: String::new(),
        }
    }

    pub(super) fn apply_template(params: ApplyTemplateParams) -> Self {
        SideWork::ApplyTemplate(Box::new(params))
    }

    /// One piece of about a millisecond; the rendering of a template is one piece and bounded by its fuel.
    fn step(self, serving: &mut Serving, states: &dyn StateStore, wall: SystemTime) -> SideStep {
        match self {
            SideWork::Tokenize(params) => {
                let TokenizeParams {
                    content,
                    add_special,
                    parse_special,
                    with_pieces,
                } = *params;
                let add_special = if add_special {
                    AddSpecial::Yes
                } else {
                    AddSpecial::No
                };
                let parse_special = if parse_special {
                    ParseSpecial::Yes
                } else {
                    ParseSpecial::No
                };
                let encoding =
                    serving
                        .tokenizer
                        .start_encoding(content, add_special, parse_special);
                SideStep::GoesOn(SideWork::Encode {
                    encoding: Box::new(encoding),
                    pieces: with_pieces.then(Vec::new),
                })
            }
            SideWork::Encode { encoding, pieces } => encode(encoding, pieces, &serving.tokenizer),
            SideWork::Pieces { token_ids, pieces } => {
                pieces_of(token_ids, pieces, &serving.tokenizer)
            }
            SideWork::Detokenize {
                token_ids,
                done,
                decoder,
                content,
            } => detokenize(token_ids, done, decoder, content, &serving.tokenizer),
            SideWork::ApplyTemplate(params) => match chat::render(serving, *params, wall) {
                Ok(prompt) => {
                    SideStep::Done(MethodResult::ApplyTemplate(ApplyTemplateResult { prompt }))
                }
                Err(error) => SideStep::Failed(error),
            },
            SideWork::State(work) => work.step(serving, states),
        }
    }
}

fn encode(
    mut encoding: Box<Encoding>,
    pieces: Option<Vec<String>>,
    tokenizer: &Tokenizer,
) -> SideStep {
    match (encoding.step(tokenizer), pieces) {
        (Ok(EncodingStep::Working), pieces) => {
            SideStep::GoesOn(SideWork::Encode { encoding, pieces })
        }
        (Ok(EncodingStep::Done(token_ids)), Some(pieces)) => {
            SideStep::GoesOn(SideWork::Pieces { token_ids, pieces })
        }
        (Ok(EncodingStep::Done(token_ids)), None) => {
            SideStep::Done(MethodResult::Tokenize(TokenizeResult {
                token_ids,
                pieces: None,
            }))
        }
        (Err(error), _) => SideStep::Failed(prompt::tokenizer_error("content", &error)),
    }
}

fn pieces_of(token_ids: Vec<u32>, mut pieces: Vec<String>, tokenizer: &Tokenizer) -> SideStep {
    for &token in token_ids
        .iter()
        .skip(pieces.len())
        .take(limits::DETOKENIZE_PIECE_TOKENS)
    {
        let bytes = tokenizer.token_bytes(token).unwrap_or_default();
        pieces.push(String::from_utf8_lossy(bytes).into_owned());
    }
    if pieces.len() < token_ids.len() {
        return SideStep::GoesOn(SideWork::Pieces { token_ids, pieces });
    }
    SideStep::Done(MethodResult::Tokenize(TokenizeResult {
        token_ids,
        pieces: Some(pieces),
    }))
}

fn detokenize(
    token_ids: Vec<u32>,
    mut done: usize,
    mut decoder: TextDecoder,
    mut content: String,
    tokenizer: &Tokenizer,
) -> SideStep {
    if done == 0
        && let Err(error) = prompt::check_token_ids("token_ids", &token_ids, tokenizer.vocab_size())
    {
        return SideStep::Failed(error);
    }
    let mut before = done.checked_sub(1).map(|last| token_ids[last]);
    for &token in token_ids
        .iter()
        .skip(done)
        .take(limits::DETOKENIZE_PIECE_TOKENS)
    {
        let bytes = tokenizer.text_bytes(token, before).unwrap_or_default();
        content.push_str(&decoder.push(bytes));
        before = Some(token);
        done += 1;
    }
    if done < token_ids.len() {
        return SideStep::GoesOn(SideWork::Detokenize {
            token_ids,
            done,
            decoder,
            content,
        });
    }
    content.push_str(&decoder.finish());
    SideStep::Done(MethodResult::Detokenize(DetokenizeResult { content }))
}

impl Worker {
    /// Takes a request into the side queue, or says why not.
    pub(super) fn accept_side(&mut self, id: Id, work: SideWork, bytes: usize) {
        match self.check_room(bytes, self.side.len(), limits::SIDE_QUEUE_MAX) {
            Err(error) => self.answer_error(Some(id), error),
            Ok(()) => {
                self.queued_bytes += bytes;
                self.side.push_back(SideJob { id, bytes, work });
            }
        }
    }

    /// Whether the first side job is one that a `generate` has to wait for.
    pub(super) fn has_state_work(&self) -> bool {
        let first = self.side.front();
        first.is_some_and(|job| matches!(job.work, SideWork::State(_)))
    }

    /// Does one piece of the first side job.
    pub(super) fn side_piece(&mut self, now: Instant) {
        let Stage::Serving(serving) = &mut self.stage else {
            return;
        };
        let Some(SideJob { id, bytes, work }) = self.side.pop_front() else {
            return;
        };
        let step = work.step(serving, &*self.states, self.config.clock.wall(now));
        match step {
            SideStep::GoesOn(work) => return self.side.push_front(SideJob { id, bytes, work }),
            SideStep::Done(result) => self.answer(id, result),
            SideStep::Failed(error) => self.answer_error(Some(id), error),
            SideStep::DeviceLost(reason) => {
                self.answer_error(Some(id), device_error(&reason, &self.config.device_name));
                self.device_lost(now, &reason);
            }
        }
        self.queued_bytes = self.queued_bytes.saturating_sub(bytes);
    }
}
