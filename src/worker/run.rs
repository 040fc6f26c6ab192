//! A generation on the device: what the device is given, and what it is doing.

use std::time::Instant;

use worker_orcd_protocol::{
    ErrorCode, ErrorDetails, ErrorObject, GenerateParams, Speculation, SpeculationWord,
    TokenLogprob, TopLogprob, Usage,
};

use super::controls::{Controls, sampling_params};
use super::lifecycle::Serving;
use super::prompt_scores::{PromptScores, Target};
use super::queue::Job;
use crate::device::{Capacity, DeviceError, Output, PAGE_TOKENS, Rows, Step};
use crate::grammar::{Matcher, MatcherError};
use crate::limits;
use crate::pages::{PageTable, pages_for};
use crate::prefix::{PageCopy, Reused};
use crate::sampling::{
    SampleStep, Sampled, SamplingParams, TokenSet, TopLogprobs, uniform, uniform_for_xtc,
};
use crate::session::{Chunk, Drafter, Finish, Pace, Session, Then, TokenKind};
use crate::text::Tokenizer;

/// A generation on the device.
pub(super) struct Run {
    pub(super) session: Session,
    pub(super) pages: PageTable,
    pub(super) cache: Cache,
    /// Tokens of the prompt that were in the pages before.
    pub(super) cached_tokens: usize,
    pub(super) params: SamplingParams,
    pub(super) controls: Controls,
    /// Log-probabilities of the prompt, where they are wanted.
    pub(super) scores: Option<PromptScores>,
    /// Proposes tokens, where that is wanted.
    pub(super) drafter: Option<Drafter>,
    /// The row of the last step from which the next token is drawn.
    row: usize,
    /// The last tokens of the output, which nobody has been told of yet.
    pub(super) untold: Vec<Sampled>,
    pub(super) flight: Flight,
    pub(super) started: Instant,
    pub(super) prefilled: Option<Instant>,
    pub(super) first_token: Option<Instant>,
    pub(super) last_token: Option<Instant>,
    /// Text and log-probabilities for a response without streaming.
    pub(super) text: String,
    pub(super) entries: Vec<TokenLogprob>,
}

/// Whether a generation begins with what others have left, and leaves its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cache {
    Used,
    PassedBy,
}

/// What the device is doing.
pub(super) enum Flight {
    /// Nothing.
    Idle,
    /// A chunk of so many tokens; those that are only proposed do not count.
    Forward { tokens: usize, since: Instant },
    /// A token.
    Sample { since: Instant },
    /// What the prompt says of one of its tokens.
    Score { target: Target },
    /// It has done something that nobody has looked at: that happens when the time is known.
    Landed {
        output: Output,
        tokens: usize,
        since: Instant,
    },
    /// The same for a score.
    Scored { target: Target, output: Output },
}

impl Run {
    /// A generation that begins now, with what is in these pages.
    pub(super) fn new(
        now: Instant,
        mut session: Session,
        reused: Reused,
        params: &GenerateParams,
        controls: Controls,
    ) -> Self {
        session.reuse(reused.tokens);
        let mut pages = reused.pages;
        pages.reserve(pages_for(session.tokens_max()));
        let drafter = pace(params.speculation)
            .map(|pace| Drafter::new(pace, session.prompt_tokens(), session.tokens_max()));
        Self {
            session,
            pages,
            cache: cache(params),
            cached_tokens: reused.tokens,
            params: sampling_params(params),
            controls,
            scores: None,
            drafter,
            row: 0,
            untold: Vec::new(),
            flight: Flight::Idle,
            started: now,
            prefilled: None,
            first_token: None,
            last_token: None,
            text: String::new(),
            entries: Vec::new(),
        }
    }

    /// Gives the device its next piece where it has none.
    pub(super) fn launch(
        &mut self,
        serving: &mut Serving,
        job: &Job,
        now: Instant,
    ) -> Result<(), DeviceError> {
        let Flight::Idle = self.flight else {
            return Ok(());
        };
        let device = &mut serving.device;
        if let Some(target) = self.scores.as_ref().and_then(|s| s.next(&self.session)) {
            device.score(target.row, target.token, target.top)?;
            self.flight = Flight::Score { target };
            return Ok(());
        }
        let Some(chunk) = self.session.chunk(device.capacity().step_tokens_max) else {
            return self.launch_draw(serving, job, now);
        };
        let in_prompt = chunk.position < self.session.prompt_tokens();
        let rows = match chunk.then {
            _ if in_prompt && self.scores.is_some() => Rows::All,
            Then::Continue => Rows::None,
            Then::Sample => Rows::Last,
        };
        let (position, known) = (chunk.position, chunk.tokens.len());
        let proposal = propose(
            &mut self.drafter,
            &mut self.controls.form,
            &self.session,
            &chunk,
            &device.capacity(),
        )
        .map_err(not_followed)?;
        let (tokens, rows) = match proposal {
            [] => (chunk.tokens, rows),
            proposal => (proposal, Rows::All),
        };
        // Behind the last token that is certain; what is proposed comes after that.
        self.row = match rows {
            Rows::All => known - 1,
            Rows::None | Rows::Last => 0,
        };
        serving
            .prefixes
            .grow(&mut serving.pool, &mut self.pages, position + tokens.len())
            .map_err(|exhausted| DeviceError::Step(exhausted.to_string()))?;
        let pages = self.pages.as_slice();
        device.forward(Step {
            pages,
            tokens,
            position,
            rows,
        })?;
        self.flight = Flight::Forward {
            tokens: known,
            since: now,
        };
        Ok(())
    }

    /// Lets the device draw a token from what it has computed.
    fn launch_draw(
        &mut self,
        serving: &mut Serving,
        job: &Job,
        now: Instant,
    ) -> Result<(), DeviceError> {
        if let Some(form) = &mut self.controls.form {
            form.prepare().map_err(not_followed)?;
        }
        serving.device.sample(self.sample_step(job))?;
        self.flight = Flight::Sample { since: now };
        // Most devices have drawn by now; the token is looked at when the time is known.
        self.poll(serving, now)
    }

    /// Puts a token into the output; it is told later. `Some` when it is the last one, unless its text says so before.
    pub(super) fn push(&mut self, tokenizer: &Tokenizer, sampled: Sampled) -> Option<Finish> {
        let before = self.session.tokens().last().copied();
        let kind = self.kind(tokenizer, sampled.token, before);
        let finish = self.session.push(sampled.token, kind);
        if finish.is_none() {
            self.drawn(sampled.token);
        }
        self.untold.push(sampled);
        finish
    }

    /// Whether the device has not seen all tokens, so that its next piece is a step and no draw.
    pub(super) fn has_unseen(&self) -> bool {
        self.session.position() < self.session.tokens().len()
    }

    /// Notes that a token was drawn after which the generation goes on. Where it was foreseen, the device has seen it.
    fn drawn(&mut self, token: u32) {
        let drafter = self.drafter.as_mut();
        if drafter.is_some_and(|drafter| drafter.foresaw(token)) {
            self.session.advance(1);
            self.row += 1;
        }
    }

    /// What the device needs for the next token.
    fn sample_step(&self, job: &Job) -> SampleStep<'_> {
        let drawn = self.session.completion_tokens();
        let too_early = drawn < job.params.min_tokens as usize;
        SampleStep {
            row: self.row,
            params: &self.params,
            uniform: uniform(job.seed, drawn as u64),
            xtc_uniform: uniform_for_xtc(job.seed, drawn as u64),
            history: self.session.tokens(),
            bias: &self.controls.bias,
            allowed: self.controls.form.as_ref().map(|f| TokenSet(f.allowed())),
            banned: if too_early {
                &self.controls.endings
            } else {
                &[]
            },
            breakers: TokenSet(&self.controls.breakers),
            logprobs: job.params.logprobs.map(|n| n as usize),
        }
    }

    /// Finds out what the next token may be while the device works on the last ones.
    pub(super) fn look_ahead(&mut self) -> Result<(), DeviceError> {
        match (&self.flight, &mut self.controls.form) {
            (Flight::Forward { .. }, Some(form)) => form.prepare().map_err(not_followed),
            (_, Some(_) | None) => Ok(()),
        }
    }

    /// Whether the form leaves nothing more to say.
    pub(super) fn is_over(&self) -> bool {
        self.controls.form.as_ref().is_some_and(Matcher::is_over)
    }

    /// What a token means when it comes after this one.
    pub(super) fn kind<'a>(
        &self,
        tokenizer: &'a Tokenizer,
        token: u32,
        before: Option<u32>,
    ) -> TokenKind<'a> {
        if tokenizer.is_end_of_generation(token) {
            TokenKind::EndOfGeneration
        } else if tokenizer.is_control(token) {
            TokenKind::Control
        } else {
            let bytes = match &self.controls.form {
                // A space that belongs to the form is not the one that encoding adds.
                Some(_) => tokenizer.token_bytes(token),
                None => tokenizer.text_bytes(token, before),
            };
            TokenKind::Text(bytes.unwrap_or_default())
        }
    }

    /// Notes a drawn token where the output has a form. What only ends the generation is no part of it.
    pub(super) fn follow(
        &mut self,
        job: &Job,
        token: u32,
        kind: TokenKind<'_>,
    ) -> Result<(), DeviceError> {
        let ends = kind == TokenKind::EndOfGeneration && job.params.ignore_eos
            || job.params.stop_token_ids.contains(&token);
        match &mut self.controls.form {
            Some(form) if !ends => form.take(token).map_err(not_followed),
            Some(_) | None => Ok(()),
        }
    }

    /// Some tokens that have to come next, where the device need not be asked.
    pub(super) fn forced(&mut self, job: &Job) -> Result<Vec<u32>, DeviceError> {
        let early = self.session.completion_tokens() < job.params.min_tokens as usize;
        match &mut self.controls.form {
            Some(form) if !early && self.prefilled.is_some() => form
                .force(limits::FORCED_PIECE_TOKENS)
                .map_err(not_followed),
            Some(_) | None => Ok(Vec::new()),
        }
    }

    /// Lets the device work until `until`.
    pub(super) fn poll(
        &mut self,
        serving: &mut Serving,
        until: Instant,
    ) -> Result<(), DeviceError> {
        let (tokens, since) = match self.flight {
            Flight::Forward { tokens, since } => (tokens, since),
            Flight::Sample { since } => (0, since),
            Flight::Score { target } => {
                if let Some(output) = serving.device.poll(until)? {
                    self.flight = Flight::Scored { target, output };
                }
                return Ok(());
            }
            Flight::Idle | Flight::Landed { .. } | Flight::Scored { .. } => return Ok(()),
        };
        if let Some(output) = serving.device.poll(until)? {
            self.flight = Flight::Landed {
                output,
                tokens,
                since,
            };
        }
        Ok(())
    }

    pub(super) fn usage(&self) -> Usage {
        Usage::new(
            self.session.prompt_tokens() as u64,
            self.cached_tokens as u64,
            self.session.completion_tokens() as u64,
        )
    }
}

/// The form cannot be kept: that ends this request and nothing else.
fn not_followed(error: MatcherError) -> DeviceError {
    DeviceError::Step(error.to_string())
}

/// VRAM_OOM where the pool is too small for a sequence of so many tokens. What earlier requests have left in it does not count: it
/// makes room.
pub(super) fn check_room(serving: &Serving, tokens: usize) -> Result<(), ErrorObject> {
    let (wanted, total) = (pages_for(tokens), serving.pool.total());
    if wanted <= total {
        return Ok(());
    }
    let page_bytes = serving.device.memory().kv_bytes / (total.max(1) as u64);
    let details = ErrorDetails {
        required_bytes: Some(wanted as u64 * page_bytes),
        available_bytes: Some(total as u64 * page_bytes),
        ..ErrorDetails::default()
    };
    let message = format!(
        "{wanted} KV pages of {PAGE_TOKENS} tokens are needed, there are {total}; lower max_tokens, shorten the prompt, or start the worker \
         with more --kv-bytes"
    );
    Err(ErrorObject::new(ErrorCode::VramOom, message).with_details(details))
}

/// What of a prompt is in the pool already.
pub(super) fn reuse(
    serving: &mut Serving,
    prompt: &[u32],
    params: &GenerateParams,
) -> Result<Reused, DeviceError> {
    let reused = match cache(params) {
        // Every token is scored by a row, and what is in the pool has none.
        Cache::Used if params.prompt_logprobs.is_some() => Reused::default(),
        Cache::Used => serving.prefixes.begin(&mut serving.pool, prompt),
        Cache::PassedBy => Reused::default(),
    };
    let Some(PageCopy { from, to }) = reused.copy else {
        return Ok(reused);
    };
    match serving.device.copy_page(from, to) {
        Ok(()) => Ok(reused),
        Err(error) => {
            serving.pool.give_back(reused.pages);
            Err(error)
        }
    }
}

fn pace(speculation: Speculation) -> Option<Pace> {
    match speculation {
        Speculation::Word(SpeculationWord::Off) => None,
        Speculation::Word(SpeculationWord::Auto) => Some(Pace::Adaptive),
        Speculation::Tokens(tokens) => Some(Pace::Fixed(tokens as usize)),
    }
}

/// The next step with tokens that may follow, where the chunk is a token that was just drawn; nothing where it goes alone. Every
/// proposed token is drawn like any other; the list ends before the first one that the form of the output rules out.
fn propose<'a>(
    drafter: &'a mut Option<Drafter>,
    form: &mut Option<Matcher>,
    session: &Session,
    chunk: &Chunk<'_>,
    capacity: &Capacity,
) -> Result<&'a [u32], MatcherError> {
    let is_drawn = chunk.position >= session.prompt_tokens() && chunk.tokens.len() == 1;
    let Some(drafter) = drafter.as_mut().filter(|_| is_drawn) else {
        return Ok(&[]);
    };
    // What is drawn after the last proposed token has to have a place too.
    let left = session.tokens_max() - session.tokens().len();
    let step = capacity.exact_tokens_max.min(capacity.step_tokens_max);
    let room = left.min(step).saturating_sub(1);
    let proposed = drafter.propose(session.tokens(), room);
    match (form, proposed.get(1..)) {
        (Some(form), Some(following)) => {
            let possible = form.possible(following)?;
            Ok(drafter.keep(possible))
        }
        (Some(_), None) | (None, _) => Ok(drafter.step()),
    }
}

fn cache(params: &GenerateParams) -> Cache {
    if params.cache_prompt {
        Cache::Used
    } else {
        Cache::PassedBy
    }
}

/// Alternatives as the wire has them.
pub(super) fn top_logprobs(tokenizer: &Tokenizer, top: &TopLogprobs) -> Vec<TopLogprob> {
    let entry = |&(token_id, logprob): &(u32, f32)| TopLogprob {
        token_id,
        text: token_text(tokenizer, token_id),
        logprob,
    };
    top.as_slice().iter().map(entry).collect()
}

/// A token's own bytes as text.
pub(super) fn token_text(tokenizer: &Tokenizer, token: u32) -> String {
    let bytes = tokenizer.token_bytes(token).unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}
