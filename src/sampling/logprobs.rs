//! Log-probabilities of the unmodified distribution: what the model said, whatever the sampling does with it.

use super::exp::exp;
use super::{RowPart, SampleError, Scored, TOP_LOGPROBS_MAX, TopLogprobs, check_row, sum};

/// What a row of logits says of `token`, and the `n` likeliest tokens, `n` ≤ [`TOP_LOGPROBS_MAX`] (more are not given).
///
/// # Errors
///
/// A logit that is NaN or positive infinity, a row of nothing but negative infinity, a token that the row does not have.
pub fn score(logits: &[f32], token: u32, n: usize) -> Result<Scored, SampleError> {
    let vocab = logits.len();
    if token as usize >= vocab {
        return Err(SampleError::UnknownToken { token, vocab });
    }
    check_row(logits)?;
    if logits.iter().all(|logit| *logit == f32::NEG_INFINITY) {
        return Err(SampleError::NothingLeft);
    }
    let (logprob, top) = of(logits, token, n);
    Ok(Scored { logprob, top })
}

/// The log-probability of `token` and the `n` likeliest tokens with theirs, `n` ≤ [`TOP_LOGPROBS_MAX`] (more are not given).
///
/// `logits` holds no NaN and no positive infinity, and at least one finite value. Summed in f64: 150,000 terms.
pub(super) fn of(logits: &[f32], token: u32, n: usize) -> (f32, TopLogprobs) {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let total = sum(logits, |logit| exp(f64::from(logit) - largest));
    let normaliser = largest + libm::log(total);
    let logprob = |id: u32| match logits.get(id as usize) {
        Some(&logit) => (f64::from(logit) - normaliser) as f32,
        None => f32::NEG_INFINITY,
    };
    let mut top = TopLogprobs::default();
    for &id in likeliest(logits, n, &mut [0; TOP_LOGPROBS_MAX]).iter() {
        top.push(id, logprob(id));
    }
    (logprob(token), top)
}

/// The same from a part of a row, for a token whose logit is `logit`; `None` where the part does not say, or where sums that differ by
/// the share `margin` would be rounded to different numbers.
pub(super) fn of_part(
    part: &RowPart<'_>,
    logit: f32,
    n: usize,
    margin: f64,
) -> Option<(f32, TopLogprobs)> {
    let rest = part.rest_at_one.filter(|_| !part.is_masked)?;
    let counts = |logit: &&f32| **logit >= part.least;
    let largest = f64::from(
        part.logits
            .iter()
            .copied()
            .fold(f32::NEG_INFINITY, f32::max),
    );
    let listed = part.logits.iter().filter(counts);
    let total = listed.map(|l| exp(f64::from(*l) - largest)).sum::<f64>() + rest;
    let normaliser = |total: f64| largest + libm::log(total);
    let between = (
        normaliser(total * (1.0 - margin)),
        normaliser(total * (1.0 + margin)),
    );
    let logprob = |logit: f32| {
        let (most, least) = (f64::from(logit) - between.0, f64::from(logit) - between.1);
        (most as f32 == least as f32).then_some(most as f32)
    };
    if part.logits.iter().filter(counts).count() < n.min(TOP_LOGPROBS_MAX) {
        return None;
    }
    let mut top = TopLogprobs::default();
    for &at in likeliest(part.logits, n, &mut [0; TOP_LOGPROBS_MAX]) {
        let at = at as usize;
        top.push(*part.tokens.get(at)?, logprob(*part.logits.get(at)?)?);
    }
    Some((logprob(logit)?, top))
}

/// Ids of the `n` largest logits, largest first; of equal ones the lower id first. By insertion: `n` is small.
fn likeliest<'a>(logits: &[f32], n: usize, ids: &'a mut [u32; TOP_LOGPROBS_MAX]) -> &'a [u32] {
    let n = n.min(TOP_LOGPROBS_MAX);
    let mut values = [f32::NEG_INFINITY; TOP_LOGPROBS_MAX];
    let mut len = 0;
    for (id, &logit) in (0u32..).zip(logits) {
        if n == 0 || (len == n && logit <= values[n - 1]) {
            continue;
        }
        let at = values[..len].partition_point(|&v| v >= logit);
        len = (len + 1).min(n);
        values[at..len].rotate_right(1);
        ids[at..len].rotate_right(1);
        values[at] = logit;
        ids[at] = id;
    }
    &ids[..len]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hand_computed() {
        // Probabilities 1/2, 1/4, 1/4 at ids 2, 0, 3; id 1 cannot occur.
        let ln2 = std::f32::consts::LN_2;
        let logits = [1.0, f32::NEG_INFINITY, 1.0 + ln2, 1.0];
        let (logprob, top) = of(&logits, 3, 3);
        assert!((logprob + 2.0 * ln2).abs() < 1e-6);
        let ids: Vec<u32> = top.as_slice().iter().map(|e| e.0).collect();
        assert_eq!(ids, [2, 0, 3]);
        assert!((top.as_slice()[0].1 + ln2).abs() < 1e-6);
        assert_eq!(
            of(&logits, 1, 0),
            (f32::NEG_INFINITY, TopLogprobs::default())
        );
    }

    #[test]
    fn agrees_with_sorting_and_sums_to_one() {
        let logits: Vec<f32> = (0..200_000u64)
            .map(|i| ((i * 2_654_435 % 1_000_003) as f32) / 60_000.0)
            .collect();
        let mut order: Vec<u32> = (0..200_000).collect();
        order.sort_by(|a, b| {
            logits[*b as usize]
                .total_cmp(&logits[*a as usize])
                .then(a.cmp(b))
        });
        let mut ids = [0; TOP_LOGPROBS_MAX];
        assert_eq!(likeliest(&logits, 20, &mut ids), &order[..20]);
        let largest = f64::from(logits[order[0] as usize]);
        let (of_largest, _) = of(&logits, order[0], 0);
        let sum: f64 = logits
            .iter()
            .map(|&l| (f64::from(l) - largest + f64::from(of_largest)).exp())
            .sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
    }

    #[test]
    fn more_than_the_vocabulary_gives_the_vocabulary() {
        assert_eq!(of(&[0.0, 1.0], 0, 20).1.as_slice().len(), 2);
    }
}
