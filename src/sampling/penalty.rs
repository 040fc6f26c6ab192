//! Repetition penalty: each token that occurs in the prompt or the output, however often, has its logit divided by the
//! penalty where it is positive and multiplied where it is negative.

use super::Candidate;

/// Which tokens have been met: one bit a token, all zero between two calls.
pub(super) struct Seen {
    words: Vec<u64>, // (vocab / 64, rounded up)
}

impl Seen {
    pub(super) fn new(vocab: usize) -> Self {
        Self {
            words: vec![0; vocab.div_ceil(64)],
        }
    }

    /// Notes a token; `true` the first time.
    fn insert(&mut self, token: u32) -> bool {
        let bit = 1u64 << (token % 64);
        match self.words.get_mut(token as usize / 64) {
            Some(word) => {
                let first = *word & bit == 0;
                *word |= bit;
                first
            }
            None => false,
        }
    }

    /// Forgets the tokens of `history`: as long as the history, not as long as the vocabulary.
    fn clear(&mut self, history: &[u32]) {
        for &token in history {
            if let Some(word) = self.words.get_mut(token as usize / 64) {
                *word = 0;
            }
        }
    }
}

/// `candidates` are all tokens in the order of their ids. A penalty of 1 changes nothing.
pub(super) fn apply(candidates: &mut [Candidate], history: &[u32], penalty: f32, seen: &mut Seen) {
    if penalty == 1.0 {
        return;
    }
    for &token in history {
        if seen.insert(token)
            && let Some(candidate) = candidates.get_mut(token as usize)
        {
            let logit = candidate.score as f32;
            // In f32, as the reference implementations do it.
            candidate.score = f64::from(if logit > 0.0 {
                logit / penalty
            } else {
                logit * penalty
            });
        }
    }
    seen.clear(history);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(logits: &[f32], history: &[u32], penalty: f32) -> Vec<f64> {
        let mut all: Vec<Candidate> = (0u32..)
            .zip(logits)
            .map(|(token, &l)| Candidate {
                token,
                score: f64::from(l),
            })
            .collect();
        apply(&mut all, history, penalty, &mut Seen::new(logits.len()));
        all.iter().map(|c| c.score).collect()
    }

    #[test]
    fn positive_logits_are_divided_and_negative_ones_multiplied_once() {
        assert_eq!(
            run(&[3.0, -1.0, 0.0, 2.0], &[0, 1, 0, 2, 1], 2.0),
            [1.5, -2.0, 0.0, 2.0]
        );
    }

    #[test]
    fn a_penalty_of_one_changes_nothing() {
        assert_eq!(run(&[3.0, -1.0], &[0, 1], 1.0), [3.0, -1.0]);
    }

    #[test]
    fn one_call_leaves_nothing_behind_for_the_next() {
        let mut seen = Seen::new(200);
        let mut all: Vec<Candidate> = (0..200)
            .map(|token| Candidate { token, score: 1.0 })
            .collect();
        apply(&mut all, &[3, 130, 199], 2.0, &mut seen);
        assert!(seen.words.iter().all(|w| *w == 0));
        apply(&mut all, &[130], 2.0, &mut seen);
        assert_eq!(
            (all[3].score, all[130].score, all[199].score),
            (0.5, 0.25, 0.5)
        );
    }
}
