//! The answer comes before its speed: the same request gives the same tokens twice, the tokens of a decode are those that the prompt's way
//! of computing finds likeliest, and the default model says what it is known to say.

use std::time::Duration;

use anyhow::{Result, ensure};
use worker_orcd_protocol::{GenerateParams, GenerateResult, Ready, Request};

use super::peer;
use crate::client::Client;

/// Tokens that are generated.
const TOKENS: u32 = 32;

/// Two ways to compute may differ about tokens that are nearer to each other than this, in log-probability.
const CLEAR: f32 = 0.05;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// A prompt for SmolLM2-135M-Instruct Q4_1 ("Write a haiku about GPU computing") and how the reference goes on.
const KNOWN_MODEL: (&str, &str) = ("Smollm2 135M", "Q4_1");
const KNOWN_PROMPT: [u32; 37] = [
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407,
    19712, 8182, 2, 198, 1, 4093, 198, 19161, 253, 421, 30614, 563, 29593, 7867, 2, 198, 1, 520,
    9531, 198,
];
const KNOWN_ANSWER: [u32; 16] = [
    788, 260, 16862, 282, 260, 29593, 28, 253, 14886, 282, 1420, 28, 253, 14886, 282, 1420,
];

/// Checks the answers of a worker; a sentence that says what was seen.
///
/// # Errors
/// When an answer is wrong, or the worker refuses.
pub fn check(client: &mut Client, ready: &Ready) -> Result<String> {
    let model = ready.model.as_ref();
    let vocab = model.map_or(1, |model| model.vocab_size);
    let known =
        model.is_some_and(|m| m.name.starts_with(KNOWN_MODEL.0) && m.quant_kind == KNOWN_MODEL.1);
    let prompt: Vec<u32> = if known {
        KNOWN_PROMPT.to_vec()
    } else {
        (0..37).map(|i| peer::id(i, vocab)).collect()
    };
    let mut said = Vec::new();
    for _ in 0..2 {
        let params = GenerateParams {
            ignore_eos: true,
            max_tokens: Some(TOKENS),
            ..plain(&prompt)
        };
        let result: GenerateResult =
            client.call(Request::Generate(Box::new(params)), Some(PATIENCE))?;
        said.push(result.token_ids.unwrap_or_default());
    }
    let answer = said.swap_remove(0);
    ensure!(
        said.first() == Some(&answer),
        "the answer is wrong: the same request gave {answer:?} and then {said:?}"
    );
    ensure!(
        !known || answer.starts_with(&KNOWN_ANSWER),
        "the answer is wrong: {answer:?} instead of {KNOWN_ANSWER:?} from the reference"
    );
    let agreed = agreement(client, &prompt, &answer)?;
    let reference = if known {
        ", as the reference has it"
    } else {
        ""
    };
    Ok(format!(
        "twice the same {} tokens{reference}; {agreed} of them are the likeliest when read as a prompt",
        answer.len()
    ))
}

fn plain(prompt: &[u32]) -> GenerateParams {
    GenerateParams {
        prompt_token_ids: Some(prompt.to_vec()),
        temperature: 0.0,
        stream: false,
        cache_prompt: false,
        return_token_ids: true,
        ..GenerateParams::default()
    }
}

/// How many tokens of the answer are the likeliest in their place when the whole is read as a prompt; each of the others must be almost.
fn agreement(client: &mut Client, prompt: &[u32], answer: &[u32]) -> Result<usize> {
    let params = GenerateParams {
        max_tokens: Some(1),
        prompt_logprobs: Some(1),
        ..plain(&[prompt, answer].concat())
    };
    let result: GenerateResult =
        client.call(Request::Generate(Box::new(params)), Some(PATIENCE))?;
    let entries = result.prompt_logprobs.unwrap_or_default();
    ensure!(
        entries.len() == prompt.len() + answer.len(),
        "the worker scored {} tokens of {}",
        entries.len(),
        prompt.len() + answer.len()
    );
    let mut agreed = 0;
    for (i, entry) in entries[prompt.len()..].iter().enumerate() {
        let best = entry.top_logprobs.first();
        if best.is_some_and(|best| best.token_id == entry.token_id) {
            agreed += 1;
            continue;
        }
        let behind = best.map_or(f32::MAX, |best| best.logprob) - entry.logprob.unwrap_or(f32::MIN);
        ensure!(
            behind <= CLEAR,
            "the answer is wrong: its token {i}, {}, is {behind:.3} behind the likeliest when it is read as a prompt",
            entry.token_id
        );
    }
    Ok(agreed)
}
