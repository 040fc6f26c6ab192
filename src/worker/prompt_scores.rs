//! Log-probabilities of a prompt's tokens: which rows of a step are to be scored, and what came of them.

use std::ops::Range;

use worker_orcd_protocol::{
    GenerateParams, Id, Notification, PromptLogprob, PromptLogprobs, limits as wire,
};

use super::run::{token_text, top_logprobs};
use crate::limits;
use crate::sampling::Scored;
use crate::session::Session;
use crate::text::Tokenizer;

/// What is known of a prompt's tokens so far.
pub(super) struct PromptScores {
    /// Alternatives that are wanted.
    top: usize,
    /// Rows of the last step that are still to be scored.
    rows: Range<usize>,
    /// Position of the last step's first row.
    position: usize,
    /// Number of the first of `entries` in the prompt.
    from: usize,
    entries: Vec<PromptLogprob>,
    /// Bytes of `entries` on the wire.
    bytes: usize,
}

/// A row that is to be scored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub(super) row: usize,
    /// The token that stands after the row's.
    pub(super) token: u32,
    pub(super) top: usize,
}

impl PromptScores {
    /// Where they are wanted: nothing is known but the first token, before which there is nothing.
    pub(super) fn wanted(
        params: &GenerateParams,
        session: &Session,
        tokenizer: &Tokenizer,
    ) -> Option<Self> {
        let first = *session.tokens().first()?;
        let mut scores = Self {
            top: params.prompt_logprobs? as usize,
            rows: 0..0,
            position: 0,
            from: 0,
            entries: Vec::new(),
            bytes: 0,
        };
        scores.push(PromptLogprob {
            token_id: first,
            text: token_text(tokenizer, first),
            logprob: None,
            top_logprobs: Vec::new(),
        });
        Some(scores)
    }

    /// A step of so many tokens from `position` on is done: a row says something of the token after it, if that is the prompt's.
    pub(super) fn begin(&mut self, position: usize, tokens: usize, prompt_tokens: usize) {
        self.position = position;
        self.rows = 0..tokens.min(prompt_tokens.saturating_sub(position + 1));
    }

    /// What is to be scored next.
    pub(super) fn next(&self, session: &Session) -> Option<Target> {
        let row = self.rows.clone().next()?;
        let token = *session.tokens().get(self.position + row + 1)?;
        Some(Target {
            row,
            token,
            top: self.top,
        })
    }

    /// What came of [`PromptScores::next`].
    pub(super) fn scored(
        &mut self,
        target: Target,
        scored: &Scored,
        tokenizer: &Tokenizer,
    ) -> PromptLogprob {
        self.rows.start = target.row + 1;
        PromptLogprob {
            token_id: target.token,
            text: token_text(tokenizer, target.token),
            logprob: Some(scored.logprob),
            top_logprobs: match target.top {
                0 => Vec::new(),
                _ => top_logprobs(tokenizer, &scored.top),
            },
        }
    }

    /// Whether one more entry can be told in the same line as those that wait.
    pub(super) fn has_room(&self, entry: &PromptLogprob) -> bool {
        let most = wire::STREAM_LINE_BYTES_MAX - limits::PROMPT_LOGPROBS_FRAME_BYTES;
        self.bytes + wire_bytes(entry) <= most
    }

    pub(super) fn push(&mut self, entry: PromptLogprob) {
        self.bytes += wire_bytes(&entry);
        self.entries.push(entry);
    }

    /// The entries since the last call, as a notification; `None` where there are none.
    pub(super) fn take_notification(&mut self, request_id: &Id) -> Option<Notification> {
        let entries = std::mem::take(&mut self.entries);
        if entries.is_empty() {
            return None;
        }
        let from = self.from as u64;
        self.from += entries.len();
        self.bytes = 0;
        Some(Notification::PromptLogprobs(PromptLogprobs {
            request_id: request_id.clone(),
            from,
            entries,
        }))
    }

    /// All entries, for a response without streaming.
    pub(super) fn into_entries(self) -> Vec<PromptLogprob> {
        self.entries
    }
}

/// Bytes of an entry and the comma after it.
fn wire_bytes(entry: &PromptLogprob) -> usize {
    serde_json::to_vec(entry).map_or(0, |json| json.len()) + 1
}
