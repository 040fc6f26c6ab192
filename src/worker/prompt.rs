//! From what a request gives (text, token ids, messages) to the tokens of a prompt, in pieces.

use std::time::SystemTime;

use sha2::{Digest, Sha256};
use worker_orcd_protocol::{ErrorCode, ErrorObject, GenerateInput, GenerateParams};

use super::lifecycle::Serving;
use crate::limits;
use crate::text::{AddSpecial, Encoding, EncodingStep, ParseSpecial, Tokenizer, TokenizerError};

/// A prompt in the making.
pub(super) enum Preparation {
    /// Nothing is done yet.
    Given,
    /// It is hashed for the log.
    Hashing {
        source: Source,
        hasher: Sha256,
        done: usize,
    },
    /// Text becomes tokens.
    Encoding {
        encoding: Box<Encoding>,
        facts: PromptFacts,
    },
}

/// What the prompt is made of.
pub(super) enum Source {
    Text {
        text: String,
        add_special: AddSpecial,
        parse_special: ParseSpecial,
        field: &'static str,
    },
    TokenIds(Vec<u32>),
}

/// What the log says of a prompt.
#[derive(Clone, Debug, Default)]
pub(super) struct PromptFacts {
    /// Length of its text; `None` where token ids were given.
    pub(super) bytes: Option<usize>,
    /// SHA-256 of its text, or of its token ids as little-endian u32.
    pub(super) sha256: String,
    /// The request's field that it came from.
    field: &'static str,
}

/// What a piece of the preparation came to.
pub(super) enum Prepared {
    GoesOn(Preparation),
    Done {
        tokens: Vec<u32>,
        facts: PromptFacts,
    },
}

impl Preparation {
    /// One piece. The request's texts are taken out of `params`, since nobody needs them afterwards.
    pub(super) fn step(
        self,
        params: &mut GenerateParams,
        serving: &Serving,
        wall: SystemTime,
    ) -> Result<Prepared, ErrorObject> {
        match self {
            Preparation::Given => {
                let source = Source::of(params, serving, wall)?;
                Ok(Prepared::GoesOn(Preparation::Hashing {
                    source,
                    hasher: Sha256::new(),
                    done: 0,
                }))
            }
            Preparation::Hashing {
                source,
                mut hasher,
                done,
            } => {
                let done = source.hash_piece(&mut hasher, done);
                if done < source.len() {
                    return Ok(Prepared::GoesOn(Preparation::Hashing {
                        source,
                        hasher,
                        done,
                    }));
                }
                Ok(source.hashed(hasher, &serving.tokenizer))
            }
            Preparation::Encoding {
                mut encoding,
                facts,
            } => match encoding.step(&serving.tokenizer) {
                Ok(EncodingStep::Working) => {
                    Ok(Prepared::GoesOn(Preparation::Encoding { encoding, facts }))
                }
                Ok(EncodingStep::Done(tokens)) => Ok(Prepared::Done { tokens, facts }),
                Err(error) => Err(tokenizer_error(facts.field, &error)),
            },
        }
    }
}

impl Source {
    fn of(
        params: &mut GenerateParams,
        serving: &Serving,
        wall: SystemTime,
    ) -> Result<Self, ErrorObject> {
        match params.take_input() {
            Some(GenerateInput::Prompt {
                text,
                add_special,
                parse_special,
            }) => Ok(Source::Text {
                text,
                add_special: if add_special {
                    AddSpecial::Yes
                } else {
                    AddSpecial::No
                },
                parse_special: if parse_special {
                    ParseSpecial::Yes
                } else {
                    ParseSpecial::No
                },
                field: "prompt",
            }),
            Some(GenerateInput::TokenIds(token_ids)) => {
                check_token_ids(
                    "prompt_token_ids",
                    &token_ids,
                    serving.device.capacity().vocab,
                )?;
                Ok(Source::TokenIds(token_ids))
            }
            Some(GenerateInput::Messages(conversation)) => {
                // The template writes the special tokens itself, by name.
                Ok(Source::Text {
                    text: super::chat::render(serving, *conversation, wall)?,
                    add_special: AddSpecial::No,
                    parse_special: ParseSpecial::Yes,
                    field: "messages",
                })
            }
            None => Err(ErrorObject::new(
                ErrorCode::InvalidParams,
                "there is no prompt",
            )),
        }
    }

    /// Bytes of text, or token ids.
    fn len(&self) -> usize {
        match self {
            Source::Text { text, .. } => text.len(),
            Source::TokenIds(ids) => ids.len(),
        }
    }

    fn hash_piece(&self, hasher: &mut Sha256, done: usize) -> usize {
        match self {
            Source::Text { text, .. } => {
                let end = (done + limits::HASH_PIECE_BYTES).min(text.len());
                hasher.update(text.as_bytes().get(done..end).unwrap_or_default());
                end
            }
            Source::TokenIds(ids) => {
                let end = (done + limits::HASH_PIECE_BYTES / 16).min(ids.len());
                for id in ids.get(done..end).unwrap_or_default() {
                    hasher.update(id.to_le_bytes());
                }
                end
            }
        }
    }

    fn hashed(self, hasher: Sha256, tokenizer: &Tokenizer) -> Prepared {
        let sha256 = hasher
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        match self {
            Source::TokenIds(tokens) => Prepared::Done {
                tokens,
                facts: PromptFacts {
                    bytes: None,
                    sha256,
                    field: "prompt_token_ids",
                },
            },
            Source::Text {
                text,
                add_special,
                parse_special,
                field,
            } => {
                let facts = PromptFacts {
                    bytes: Some(text.len()),
                    sha256,
                    field,
                };
                let encoding = tokenizer.start_encoding(text, add_special, parse_special);
                let encoding = Box::new(encoding);
                Prepared::GoesOn(Preparation::Encoding { encoding, facts })
            }
        }
    }
}

/// Refuses token ids that the vocabulary does not have.
pub(super) fn check_token_ids(
    field: &str,
    token_ids: &[u32],
    vocab: usize,
) -> Result<(), ErrorObject> {
    match token_ids
        .iter()
        .enumerate()
        .find(|(_, id)| **id as usize >= vocab)
    {
        None => Ok(()),
        Some((at, id)) => Err(ErrorObject::invalid_param(
            format!("{field}[{at}]"),
            format!("maximum {}", vocab.saturating_sub(1)),
            format!("{field}[{at}] is {id}, the vocabulary has {vocab} tokens"),
        )),
    }
}

/// What a text is answered that the tokenizer cannot take.
pub(super) fn tokenizer_error(field: &str, error: &TokenizerError) -> ErrorObject {
    ErrorObject::new(ErrorCode::InvalidParams, error.to_string()).with_param(field)
}
