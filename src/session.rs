//! One generation: its tokens, how many of them the device has seen, its text, and when it ends.
//!
//! Prefill and decode are the same thing here: tokens that the device has not seen yet are handed to it in chunks, and when
//! it has seen them all, one more is drawn.

mod drafts;
mod stop;

pub use drafts::{Drafter, Pace};
pub use stop::StopMatcher;

use crate::text::TextDecoder;

/// What a token of the model's kind means for a generation; the tokenizer knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind<'a> {
    /// Stands for these bytes of text, which need not be whole characters.
    Text(&'a [u8]),
    /// Stands for no text.
    Control,
    /// Says that the model has come to its end; stands for no text.
    EndOfGeneration,
}

/// What happens when the model says that it has come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtEnd {
    /// The generation ends.
    Finish,
    /// The token counts and the generation goes on.
    GoOn,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model said so.
    EndOfGeneration,
    /// A stop string is complete: its place in the request's list.
    StopString(usize),
    /// A stop token was drawn.
    StopToken(u32),
    /// A grammar leaves nothing more to say; whoever follows it knows.
    Grammar,
    /// As many tokens as were asked for.
    MaxTokens,
    /// The context is full.
    Context,
    /// Somebody asked for it.
    Cancelled,
    /// The request's time is over.
    Timeout,
}

/// What a generation starts from.
#[derive(Clone, Debug)]
pub struct SessionParams {
    /// The prompt; at least one token.
    pub prompt: Vec<u32>,
    /// Tokens that prompt and output together may have.
    pub context_length: usize,
    /// Tokens wanted; `None` for as many as fit.
    pub max_tokens: Option<usize>,
    /// Tokens in whose text no stop string is looked for: so many at the beginning of the output.
    pub min_tokens: usize,
    /// Strings that end the generation and are not part of its text.
    pub stop: Vec<String>,
    /// Tokens that end the generation and are not part of its text.
    pub stop_tokens: Vec<u32>,
    /// Whether the model's own end ends it.
    pub at_end: AtEnd,
}

/// Why a generation cannot start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// A model continues something.
    #[error("the prompt has no tokens; give at least one")]
    EmptyPrompt,
    /// A prompt is never cut.
    #[error(
        "the prompt has {prompt_tokens} tokens, the context holds {context_length} and one of them has to be new"
    )]
    ContextOverflow {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens that the context holds.
        context_length: usize,
    },
}

/// Tokens that the device has to see next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// The tokens, at least one.
    pub tokens: &'a [u32],
    /// Position of the first.
    pub position: usize,
    /// Whether a token can be drawn after them.
    pub then: Then,
}

/// What follows a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Another chunk.
    Continue,
    /// The next token is drawn.
    Sample,
}

/// What a token of the output says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Text that is now certain: whole characters, no part of a stop string. Often "".
    pub text: String,
    /// The stop string that is complete with it: its place in the request's list. Then the output ends with this token.
    pub stop: Option<usize>,
}

/// One generation.
#[derive(Debug)]
pub struct Session {
    /// Prompt and output.
    tokens: Vec<u32>,
    prompt_tokens: usize,
    /// Tokens that the device has seen: keys and values of `0..position` are in the pages.
    position: usize,
    /// Length of `tokens` at which the generation ends, and what the end is called then.
    tokens_max: usize,
    at_tokens_max: Finish,
    min_tokens: usize,
    stop_tokens: Vec<u32>,
    at_end: AtEnd,
    decoder: TextDecoder,
    stops: StopMatcher,
}

impl Session {
    /// A generation of which the device has seen nothing yet.
    ///
    /// # Errors
    ///
    /// An empty prompt, or one that leaves no room in the context for a single token.
    pub fn new(params: SessionParams) -> Result<Self, SessionError> {
        let SessionParams {
            prompt: mut tokens,
            context_length,
            max_tokens,
            min_tokens,
            stop,
            stop_tokens,
            at_end,
        } = params;
        let prompt_tokens = tokens.len();
        if prompt_tokens == 0 {
            return Err(SessionError::EmptyPrompt);
        }
        let room = match context_length.checked_sub(prompt_tokens) {
            None | Some(0) => {
                return Err(SessionError::ContextOverflow {
                    prompt_tokens,
                    context_length,
                });
            }
            Some(room) => room,
        };
        let (wanted, at_tokens_max) = match max_tokens {
            Some(wanted) if wanted <= room => (wanted, Finish::MaxTokens),
            Some(_) | None => (room, Finish::Context),
        };
        // All that the generation can need, so that no step allocates.
        tokens.reserve_exact(wanted);
        Ok(Self {
            tokens,
            prompt_tokens,
            position: 0,
            tokens_max: prompt_tokens + wanted,
            at_tokens_max,
            min_tokens,
            stop_tokens,
            at_end,
            decoder: TextDecoder::new(),
            stops: StopMatcher::new(stop),
        })
    }

    /// Prompt and output so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// Tokens drawn so far.
    pub fn completion_tokens(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }

    /// Tokens that the device has seen.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Most tokens that prompt and output together can come to: what the pages have to hold.
    pub fn tokens_max(&self) -> usize {
        self.tokens_max
    }

    /// The next tokens for the device, at most `tokens_max`; `None` when it has seen all and a token is to be drawn.
    pub fn chunk(&self, tokens_max: usize) -> Option<Chunk<'_>> {
        let rest = self.tokens.get(self.position..)?;
        let len = rest.len().min(tokens_max.max(1));
        let tokens = rest.get(..len).filter(|tokens| !tokens.is_empty())?;
        let then = if len == rest.len() {
            Then::Sample
        } else {
            Then::Continue
        };
        Some(Chunk {
            tokens,
            position: self.position,
            then,
        })
    }

    /// Notes that the device has seen the first `tokens` tokens of the prompt before; the last one is always to be seen.
    pub fn reuse(&mut self, tokens: usize) {
        self.position = tokens.min(self.prompt_tokens - 1);
    }

    /// Prompt and output as far as the device has seen them.
    pub fn seen(&self) -> &[u32] {
        self.tokens.get(..self.position).unwrap_or_default()
    }

    /// Notes that the device has seen `tokens` more.
    pub fn advance(&mut self, tokens: usize) {
        self.position = (self.position + tokens).min(self.tokens.len());
    }

    /// Notes a drawn token, whose text is read later: `Some` when it is the last one, unless a stop string in the text that is not read
    /// yet comes first. Then [`Session::end`] is to follow.
    pub fn push(&mut self, token: u32, kind: TokenKind<'_>) -> Option<Finish> {
        self.tokens.push(token);
        if self.stop_tokens.contains(&token) {
            return Some(Finish::StopToken(token));
        }
        if kind == TokenKind::EndOfGeneration && self.at_end == AtEnd::Finish {
            return Some(Finish::EndOfGeneration);
        }
        (self.tokens.len() >= self.tokens_max).then_some(self.at_tokens_max)
    }

    /// Reads the text of token number `index` of the output, which was pushed. Tokens are read once each, in their order. Where a stop
    /// string is complete, what was pushed after the token is no part of the output any more.
    pub fn read(&mut self, index: usize, kind: TokenKind<'_>) -> Read {
        let mut text = String::new();
        let at = self.prompt_tokens + index;
        let is_stop = |token| self.stop_tokens.contains(token);
        let stop = match kind {
            TokenKind::Text(_) if self.tokens.get(at).is_some_and(is_stop) => None,
            TokenKind::Text(bytes) if index < self.min_tokens => {
                text = self.decoder.push(bytes);
                None
            }
            TokenKind::Text(bytes) => self.stops.push(&self.decoder.push(bytes), &mut text),
            TokenKind::Control | TokenKind::EndOfGeneration => None,
        };
        if stop.is_some() {
            self.tokens.truncate(at + 1);
            self.position = self.position.min(at + 1);
        }
        Read { text, stop }
    }

    /// Ends the generation: the text still held back. Half a character that was left completes to
    /// U+FFFD, and should that complete a stop string, then the text ends before it.
    pub fn end(&mut self, finish: Finish) -> String {
        let mut tail = String::new();
        match finish {
            Finish::StopString(_) => {}
            Finish::EndOfGeneration
            | Finish::StopToken(_)
            | Finish::Grammar
            | Finish::MaxTokens
            | Finish::Context
            | Finish::Cancelled
            | Finish::Timeout => {
                let rest = self.decoder.finish();
                if self.stops.push(&rest, &mut tail).is_none() {
                    tail.push_str(&self.stops.finish());
                }
            }
        }
        tail
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(prompt: usize, context_length: usize, max_tokens: Option<usize>) -> Session {
        let (prompt, stop) = (vec![7; prompt], vec!["stop".to_owned()]);
        Session::new(SessionParams {
            prompt,
            context_length,
            max_tokens,
            min_tokens: 0,
            stop,
            stop_tokens: vec![8],
            at_end: AtEnd::Finish,
        })
        .unwrap()
    }

    #[test]
    fn the_prompt_goes_in_chunks_and_then_each_token_alone() {
        let mut session = session(5, 100, None);
        let mut seen = Vec::new();
        while let Some(Chunk {
            tokens,
            position,
            then,
        }) = session.chunk(2)
        {
            seen.push((position, tokens.len(), then));
            let tokens = tokens.len();
            session.advance(tokens);
        }
        assert_eq!(
            seen,
            [
                (0, 2, Then::Continue),
                (2, 2, Then::Continue),
                (4, 1, Then::Sample)
            ]
        );
        session.push(9, TokenKind::Text(b"x"));
        assert_eq!(
            session.chunk(2),
            Some(Chunk {
                tokens: &[9],
                position: 5,
                then: Then::Sample
            })
        );
        session.advance(1);
        assert_eq!(session.chunk(2), None);
        assert_eq!((session.position(), session.completion_tokens()), (6, 1));
    }

    #[test]
    fn a_prompt_that_leaves_no_room_is_an_error_with_both_numbers() {
        let params = |prompt: usize| SessionParams {
            prompt: vec![7; prompt],
            context_length: 4,
            max_tokens: Some(1),
            min_tokens: 0,
            stop: Vec::new(),
            stop_tokens: Vec::new(),
            at_end: AtEnd::Finish,
        };
        for prompt_tokens in [4, 5] {
            let want = SessionError::ContextOverflow {
                prompt_tokens,
                context_length: 4,
            };
            assert_eq!(Session::new(params(prompt_tokens)).unwrap_err(), want);
        }
        assert_eq!(
            Session::new(params(0)).unwrap_err(),
            SessionError::EmptyPrompt
        );
        assert!(Session::new(params(3)).is_ok());
    }

    #[test]
    fn the_end_is_called_by_what_was_asked_for() {
        for (max_tokens, tokens, want) in [
            (Some(2), 2, Finish::MaxTokens),
            (Some(3), 3, Finish::MaxTokens),
            (Some(4), 3, Finish::Context),
            (None, 3, Finish::Context),
        ] {
            let mut session = session(5, 8, max_tokens);
            let finishes: Vec<_> = (0..tokens)
                .map(|_| session.push(1, TokenKind::Text(b"x")))
                .collect();
            assert_eq!(finishes.last(), Some(&Some(want)), "{max_tokens:?}");
            assert!(finishes.iter().rev().skip(1).all(Option::is_none));
        }
    }

    /// Pushes a token and reads it.
    fn say(session: &mut Session, token: u32, kind: TokenKind<'_>) -> (String, Option<Finish>) {
        let finish = session.push(token, kind);
        let Read { text, stop } = session.read(session.completion_tokens() - 1, kind);
        (text, stop.map(Finish::StopString).or(finish))
    }

    #[test]
    fn the_models_end_comes_before_the_limit_and_a_stop_string_before_both() {
        let mut ended = session(5, 100, Some(1));
        assert_eq!(
            say(&mut ended, 1, TokenKind::EndOfGeneration).1,
            Some(Finish::EndOfGeneration)
        );
        let mut stopped = session(5, 100, Some(1));
        assert_eq!(
            say(&mut stopped, 1, TokenKind::Text(b"a stop b")).1,
            Some(Finish::StopString(0))
        );
        assert_eq!(stopped.end(Finish::StopString(0)), "");
    }

    #[test]
    fn a_stop_token_ends_it_before_everything_else_and_has_no_text() {
        let mut session = session(5, 100, Some(2));
        assert_eq!(say(&mut session, 1, TokenKind::Text(b"a st")).0, "a ");
        let (text, finish) = say(&mut session, 8, TokenKind::Text(b"op"));
        assert_eq!((text.as_str(), finish), ("", Some(Finish::StopToken(8))));
        assert_eq!(session.end(Finish::StopToken(8)), "st");
        assert_eq!(session.completion_tokens(), 2);
    }

    #[test]
    fn what_was_pushed_after_a_stop_string_is_no_part_of_the_output() {
        let mut session = session(5, 100, None);
        let kinds = ["a", "st", "op", "b"].map(|text| TokenKind::Text(text.as_bytes()));
        for (token, kind) in (1..).zip(kinds) {
            assert_eq!(session.push(token, kind), None);
        }
        let read: Vec<Read> = (0..3).map(|i| session.read(i, kinds[i])).collect();
        let texts: Vec<&str> = read.iter().map(|read| read.text.as_str()).collect();
        assert_eq!((texts, read[2].stop), (vec!["a", "", ""], Some(0)));
        assert_eq!(session.completion_tokens(), 3);
        assert_eq!(session.tokens()[5..], [1, 2, 3]);
    }

    #[test]
    fn no_stop_string_is_looked_for_in_the_first_tokens() {
        let run = |min_tokens: usize, pieces: &[&str]| -> (String, bool) {
            let mut session = session(5, 100, None);
            session.min_tokens = min_tokens;
            let mut text = String::new();
            for piece in pieces {
                let (said, finish) = say(&mut session, 1, TokenKind::Text(piece.as_bytes()));
                text.push_str(&said);
                if finish.is_some() {
                    return (text, true);
                }
            }
            (text + &session.end(Finish::Cancelled), false)
        };
        assert_eq!(run(0, &["stop", "x"]), (String::new(), true));
        assert_eq!(run(1, &["stop", "x"]), ("stopx".into(), false));
        assert_eq!(run(1, &["stop", "x stop"]), ("stopx ".into(), true));
        // One that begins in them is none.
        assert_eq!(run(1, &["st", "op", "x"]), ("stopx".into(), false));
        assert_eq!(run(1, &["a", "st", "op"]), ("a".into(), true));
    }

    #[test]
    fn what_is_held_back_comes_with_the_end() {
        let mut session = session(5, 100, None);
        assert_eq!(say(&mut session, 1, TokenKind::Text(b"a st")).0, "a ");
        assert_eq!(say(&mut session, 1, TokenKind::Text(b"\xc3")).0, "");
        assert_eq!(say(&mut session, 1, TokenKind::Control).0, "");
        assert_eq!(session.end(Finish::Cancelled), "st\u{fffd}");
    }
}
