//! The masks: what a grammar allows, and what must not come before min_tokens.

/// A set of tokens, one bit a token: bit `token % 32` of word `token / 32`. Tokens beyond its words are not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenSet<'a>(pub &'a [u32]);

impl TokenSet<'_> {
    /// No token.
    pub const EMPTY: TokenSet<'static> = TokenSet(&[]);

    /// Words that a set over a vocabulary of this size needs.
    pub fn words(vocab: usize) -> usize {
        vocab.div_ceil(32)
    }

    /// Puts a token into the set that `words` holds; one beyond them is passed over.
    pub fn insert(words: &mut [u32], token: u32) {
        if let Some(word) = words.get_mut(token as usize / 32) {
            *word |= 1 << (token % 32);
        }
    }

    /// Whether a token is in it.
    pub fn contains(&self, token: u32) -> bool {
        let word = self.0.get(token as usize / 32).copied().unwrap_or(0);
        word >> (token % 32) & 1 == 1
    }
}

/// Forbids what is not allowed and what is banned. `None` allows all.
pub(super) fn apply(logits: &mut [f32], allowed: Option<TokenSet<'_>>, banned: &[u32]) {
    if let Some(allowed) = allowed {
        let words = allowed.0.iter().copied().chain(std::iter::repeat(0));
        for (logits, word) in logits.chunks_mut(32).zip(words) {
            forbid(logits, word);
        }
    }
    for &token in banned {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// Forbids those of up to 32 tokens whose bit is 0.
fn forbid(logits: &mut [f32], word: u32) {
    if word == u32::MAX {
        return;
    }
    for (bit, logit) in logits.iter_mut().enumerate() {
        if word >> bit & 1 == 0 {
            *logit = f32::NEG_INFINITY;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO: f32 = f32::NEG_INFINITY;

    #[test]
    fn what_is_not_allowed_and_what_is_banned_is_forbidden() {
        let mut logits = [1.0, 2.0, 3.0, 4.0];
        apply(&mut logits, Some(TokenSet(&[0b1011])), &[3, 99]);
        assert_eq!(logits, [1.0, 2.0, NO, NO]);
    }

    #[test]
    fn a_set_goes_over_words_and_ends_with_them() {
        let mut words = vec![0; TokenSet::words(70)];
        for token in [0, 31, 32, 65, 1000] {
            TokenSet::insert(&mut words, token);
        }
        let mut logits = [1.0; 100];
        apply(&mut logits, Some(TokenSet(&words)), &[]);
        let left: Vec<u32> = (0..100).filter(|t| logits[*t as usize] > NO).collect();
        assert_eq!(left, [0, 31, 32, 65]);
        let set = TokenSet(&words);
        assert!(left.iter().all(|t| set.contains(*t)) && !set.contains(33) && !set.contains(1000));
    }

    #[test]
    fn all_and_none_change_nothing() {
        let mut logits = [1.0, -2.0];
        apply(&mut logits, None, &[]);
        apply(&mut logits, Some(TokenSet(&[u32::MAX])), &[]);
        assert_eq!(logits, [1.0, -2.0]);
    }
}
