//! logit_bias: adds to the logits of single tokens, or forbids them.

/// Negative infinity forbids; of several entries for a token all count. A token that the vocabulary does not have is passed over.
pub(super) fn apply(logits: &mut [f32], bias: &[(u32, f32)]) {
    for &(token, bias) in bias {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit += bias;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_takes_away_and_forbids() {
        let mut logits = [1.0, 2.0, 3.0, f32::NEG_INFINITY];
        let entries = [
            (0, 0.5),
            (2, f32::NEG_INFINITY),
            (1, -1.0),
            (1, -2.0),
            (3, 100.0),
            (9, 1.0),
        ];
        apply(&mut logits, &entries);
        assert_eq!(logits, [1.5, -1.0, f32::NEG_INFINITY, f32::NEG_INFINITY]);
    }

    #[test]
    fn a_token_that_is_forbidden_stays_so_whatever_is_added() {
        let mut logits = [1.0];
        apply(&mut logits, &[(0, f32::NEG_INFINITY), (0, 100.0)]);
        assert_eq!(logits, [f32::NEG_INFINITY]);
    }

    #[test]
    fn nothing_and_zero_change_nothing() {
        let mut logits = [1.0, -2.0];
        apply(&mut logits, &[]);
        apply(&mut logits, &[(0, 0.0), (1, 0.0)]);
        assert_eq!(logits, [1.0, -2.0]);
    }
}
