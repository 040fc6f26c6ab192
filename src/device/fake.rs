//! A device without a model: its logits are made up, everything else is real. It lets an orchestrator be tested against the real
//! process, with the speed and the failures that it asks for.
//!
//! The logits after a sequence are a pure function of the seed and of every token of the sequence. What a position depends on is kept
//! in the KV pages, as a model's keys and values are, so that a wrong page table gives a wrong text here too.

use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rustix::event::{Timespec, poll};

use super::{
    Capacity, Device, DeviceError, LoadProgress, Memory, Output, PAGE_TOKENS, PageId, Rows, Step,
    check_pages, page_range,
};
use crate::sampling::{self, SampleStep, Sampler};

/// The token that ends a generation; those below it are bytes.
pub const END: u32 = 256;

/// Most tokens that one step takes.
const STEP_TOKENS_MAX: usize = 256;

/// Bytes of a page of its pool.
pub const PAGE_BYTES: u64 = (PAGE_TOKENS * size_of::<u64>()) as u64;

/// The logit of what never comes.
const NEVER: f32 = -30.0;

/// The first byte of "é", and the one that always follows.
const E_ACUTE: [u32; 2] = [0xc3, 0xa9];

/// How a fake device behaves. Counts are of the tokens that it draws in its life, from 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FakeOptions {
    /// Another seed, another text.
    pub seed: u64,
    /// Speed of steps of one token; 0 for as fast as possible.
    pub tokens_per_second: f64,
    /// Speed of steps of several tokens; 0 for as fast as possible.
    pub prompt_tokens_per_second: f64,
    /// The token whose drawing fails.
    pub fail_at: Option<u64>,
    /// The token at which the device is lost.
    pub lose_at: Option<u64>,
    /// The token at which the process meets a bug.
    pub panic_at: Option<u64>,
}

/// What the device does until the next `poll` finds it done.
struct Job {
    due: Instant,
    output: Output,
}

/// The device.
pub struct FakeDevice {
    options: FakeOptions,
    capacity: Capacity,
    /// What each position depends on: pages one after the other, a number a position.
    pool: Vec<u64>,
    /// The same for each row of the last step; the first `rows` count.
    states: Vec<Row>,
    logits: Vec<f32>,
    sampler: Sampler,
    job: Option<Job>,
    /// When the last step of one token was due: the next one follows it, so that speed does not drift.
    last_due: Option<Instant>,
    drawn: u64,
}

/// What the logits after a token depend on.
#[derive(Clone, Copy)]
struct Row {
    state: u64,
    token: u32,
}

impl FakeDevice {
    /// A device whose pool holds `tokens` tokens, out of `vocab`, of which those from [`END`] on are control tokens.
    pub fn new(options: FakeOptions, tokens: usize, vocab: usize) -> Self {
        let pages = tokens.div_ceil(PAGE_TOKENS);
        Self {
            options,
            capacity: Capacity {
                step_tokens_max: STEP_TOKENS_MAX,
                exact_tokens_max: STEP_TOKENS_MAX,
                pages,
                vocab,
            },
            pool: vec![0; pages * PAGE_TOKENS],
            states: Vec::with_capacity(STEP_TOKENS_MAX),
            logits: vec![NEVER; vocab],
            sampler: Sampler::new(vocab),
            job: None,
            last_due: None,
            drawn: 0,
        }
    }

    fn at(&mut self, pages: &[PageId], position: usize) -> Option<&mut u64> {
        let page = pages.get(position / PAGE_TOKENS)?;
        self.pool
            .get_mut(page.0 as usize * PAGE_TOKENS + position % PAGE_TOKENS)
    }

    /// When a step of so many tokens is done that begins now.
    fn due(&mut self, tokens: usize) -> Instant {
        let now = Instant::now();
        let (rate, begin) = match tokens {
            1 => (self.options.tokens_per_second, self.last_due),
            _ => (self.options.prompt_tokens_per_second, None),
        };
        if rate <= 0.0 {
            return now;
        }
        let took = Duration::try_from_secs_f64(tokens as f64 / rate).unwrap_or(Duration::MAX);
        // A step that begins a little late because of the loop does not end later for it; one after a pause does.
        let begin = begin.filter(|last| now.saturating_duration_since(*last) < took);
        let due = begin.unwrap_or(now).checked_add(took).unwrap_or(now);
        self.last_due = (tokens == 1).then_some(due);
        due
    }

    /// What was asked to go wrong with the token that is drawn next.
    fn fault(&self) -> Result<(), DeviceError> {
        let is_next = |at: Option<u64>| at == Some(self.drawn);
        if is_next(self.options.panic_at) {
            panic!("the fake model was asked to panic here");
        }
        if is_next(self.options.lose_at) {
            return Err(DeviceError::Lost(
                "the fake model was asked to lose its device here".into(),
            ));
        }
        if is_next(self.options.fail_at) {
            return Err(DeviceError::Step(
                "the fake model was asked to fail here".into(),
            ));
        }
        Ok(())
    }

    fn compute_logits(&mut self, row: usize) -> bool {
        let Some(Row { state, token }) = self.states.get(row).copied() else {
            return false;
        };
        let mut noise = stream(self.options.seed, state, u32::MAX, 0);
        for (candidate, logit) in self.logits.iter_mut().enumerate() {
            // 24 bits, so that every number is exact.
            let unit = (noise.next_u32() >> 8) as f32 / (1u32 << 24) as f32;
            *logit = preference(token, candidate as u32) + 3.0 * unit;
        }
        true
    }
}

/// How likely a token is after another before chance has its say: consonants and vowels take turns, words have about four letters,
/// and after some thirty of them comes the end.
fn preference(last: u32, candidate: u32) -> f32 {
    let vowel = |token: u32| b"aeiou".iter().any(|vowel| u32::from(*vowel) == token);
    let letter = |token: u32| (u32::from(b'a')..=u32::from(b'z')).contains(&token);
    let space = u32::from(b' ');
    if last == E_ACUTE[0] {
        return if candidate == E_ACUTE[1] { 10.0 } else { NEVER };
    }
    match candidate {
        END => 3.9,
        _ if candidate == space => {
            if letter(last) || last == E_ACUTE[1] {
                4.6
            } else {
                NEVER
            }
        }
        _ if candidate == E_ACUTE[0] => 3.95,
        _ if letter(candidate) && vowel(candidate) != (vowel(last) || last == E_ACUTE[1]) => 4.0,
        _ if letter(candidate) => 0.0,
        _ => NEVER,
    }
}

/// Random numbers that depend on all of these.
fn stream(seed: u64, state: u64, token: u32, position: usize) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&state.to_le_bytes());
    key[16..24].copy_from_slice(&(position as u64).to_le_bytes());
    key[24..28].copy_from_slice(&token.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// Sleeps until `until`, a few milliseconds as a rule: what a real device computes in.
pub fn nap(until: Instant) {
    let left = until.saturating_duration_since(Instant::now());
    if let Ok(timeout) = Timespec::try_from(left) {
        // A signal ends the nap early, which only makes a piece of work shorter.
        poll(&mut [], Some(&timeout)).ok();
    }
}

impl Device for FakeDevice {
    fn load_some(&mut self, _until: Instant) -> Result<LoadProgress, DeviceError> {
        Ok(LoadProgress::default())
    }

    fn forward(&mut self, step: Step<'_>) -> Result<(), DeviceError> {
        step.check(&self.capacity)?;
        let mut state = match step.position.checked_sub(1) {
            None => 0,
            Some(before) => self.at(step.pages, before).copied().unwrap_or_default(),
        };
        self.states.clear();
        for (position, token) in (step.position..).zip(step.tokens) {
            state = stream(self.options.seed, state, *token, position).next_u64();
            if let Some(slot) = self.at(step.pages, position) {
                *slot = state;
            }
            self.states.push(Row {
                state,
                token: *token,
            });
        }
        match step.rows {
            Rows::All => {}
            Rows::None => self.states.clear(),
            Rows::Last => drop(self.states.drain(..self.states.len() - 1)),
        }
        self.job = Some(Job {
            due: self.due(step.tokens.len()),
            output: Output::Forwarded,
        });
        Ok(())
    }

    fn sample(&mut self, step: SampleStep<'_>) -> Result<(), DeviceError> {
        self.drawn += 1;
        self.fault()?;
        if !self.compute_logits(step.row) {
            return Err(DeviceError::Step("there are no logits to draw from".into()));
        }
        let sampled = self.sampler.sample(&self.logits, &step);
        self.job = Some(Job {
            due: Instant::now(),
            output: Output::Sampled(sampled.map_err(|e| DeviceError::Step(e.to_string()))?),
        });
        Ok(())
    }

    fn score(&mut self, row: usize, token: u32, top: usize) -> Result<(), DeviceError> {
        if !self.compute_logits(row) {
            return Err(DeviceError::Step("there are no logits of this row".into()));
        }
        let scored = sampling::score(&self.logits, token, top);
        self.job = Some(Job {
            due: Instant::now(),
            output: Output::Scored(scored.map_err(|e| DeviceError::Step(e.to_string()))?),
        });
        Ok(())
    }

    fn poll(&mut self, until: Instant) -> Result<Option<Output>, DeviceError> {
        if let Some(job) = &self.job {
            nap(job.due.min(until));
        }
        let is_done = |job: &mut Job| Instant::now() >= job.due;
        Ok(self.job.take_if(is_done).map(|job| job.output))
    }

    fn abort(&mut self) {
        self.job = None;
    }

    fn read_logits(&mut self, row: usize, out: &mut [f32]) {
        self.compute_logits(row);
        out.copy_from_slice(&self.logits);
    }

    fn copy_page(&mut self, from: PageId, to: PageId) -> Result<(), DeviceError> {
        check_pages(&[from, to], &self.capacity)?;
        let begin = |page: PageId| page.0 as usize * PAGE_TOKENS;
        self.pool
            .copy_within(begin(from)..begin(from) + PAGE_TOKENS, begin(to));
        Ok(())
    }

    fn page_bytes(&self) -> usize {
        PAGE_BYTES as usize
    }

    fn read_page(
        &mut self,
        page: PageId,
        offset: usize,
        out: &mut [u8],
    ) -> Result<(), DeviceError> {
        let range = page_range(page, offset, out.len(), self.page_bytes(), &self.capacity)?;
        out.copy_from_slice(&bytemuck::cast_slice(&self.pool)[range]);
        Ok(())
    }

    fn write_page(&mut self, page: PageId, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        let range = page_range(page, offset, bytes.len(), self.page_bytes(), &self.capacity)?;
        bytemuck::cast_slice_mut(&mut self.pool)[range].copy_from_slice(bytes);
        Ok(())
    }

    fn state_id(&self) -> String {
        format!("fake, seed {}", self.options.seed)
    }

    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn memory(&self) -> Memory {
        Memory {
            weights_bytes: 0,
            kv_bytes: size_of_val(self.pool.as_slice()) as u64,
            scratch_bytes: size_of_val(self.logits.as_slice()) as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::SamplingParams;

    const GREEDY: SamplingParams = SamplingParams::GREEDY;

    fn device(options: FakeOptions) -> FakeDevice {
        FakeDevice::new(options, 1024, 262)
    }

    fn wait(device: &mut FakeDevice) -> Output {
        loop {
            let until = Instant::now() + Duration::from_millis(5);
            if let Some(output) = device.poll(until).unwrap() {
                return output;
            }
        }
    }

    fn logits_after(device: &mut FakeDevice, pages: &[PageId], chunks: &[&[u32]]) -> Vec<f32> {
        let mut position = 0;
        for tokens in chunks {
            let rows = Rows::Last;
            let step = Step {
                pages,
                tokens,
                position,
                rows,
            };
            device.forward(step).unwrap();
            assert_eq!(wait(device), Output::Forwarded);
            position += tokens.len();
        }
        let mut logits = vec![0.0; device.capacity().vocab];
        device.read_logits(0, &mut logits);
        logits
    }

    #[test]
    fn logits_depend_on_the_whole_sequence_and_not_on_how_it_is_cut_or_where_it_lies() {
        let pages = [PageId(0), PageId(1)];
        let turned = [PageId(3), PageId(2)];
        let text: Vec<u32> = (0..300).map(|i| 97 + i % 26).collect();
        let mut device = device(FakeOptions::default());
        let whole = logits_after(&mut device, &pages, &[&text[..256], &text[256..]]);
        let cut = logits_after(
            &mut device,
            &turned,
            &[&text[..7], &text[7..260], &text[260..]],
        );
        assert_eq!(whole, cut);
        let mut other = text.clone();
        other[0] += 1;
        assert_ne!(
            whole,
            logits_after(&mut device, &pages, &[&other[..256], &other[256..]])
        );
    }

    #[test]
    fn it_speaks_in_words_and_comes_to_an_end() {
        let mut device = device(FakeOptions::default());
        let pages: Vec<PageId> = (0..4).map(PageId).collect();
        let mut tokens = vec![u32::from(b'h')];
        let mut done = 0;
        while tokens.last() != Some(&END) {
            let step = Step {
                pages: &pages,
                tokens: &tokens[done..],
                position: done,
                rows: Rows::Last,
            };
            device.forward(step).unwrap();
            wait(&mut device);
            done = tokens.len();
            device
                .sample(SampleStep::new(&GREEDY, 0.0, &tokens))
                .unwrap();
            match wait(&mut device) {
                Output::Sampled(sampled) => tokens.push(sampled.token),
                other => panic!("{other:?} instead of a token"),
            }
        }
        tokens.pop();
        let bytes: Vec<u8> = tokens.iter().map(|t| u8::try_from(*t).unwrap()).collect();
        let text = String::from_utf8(bytes).expect("whole characters");
        assert!(text.len() > 8 && text.contains(' '), "{text}");
        assert!(
            text.chars().all(|c| c.is_alphabetic() || c == ' '),
            "{text}"
        );
    }

    #[test]
    fn it_fails_where_it_was_asked_to() {
        let mut device = device(FakeOptions {
            fail_at: Some(2),
            lose_at: Some(3),
            ..FakeOptions::default()
        });
        let step = Step {
            pages: &[PageId(0)],
            tokens: &[97],
            position: 0,
            rows: Rows::Last,
        };
        device.forward(step).unwrap();
        wait(&mut device);
        let mut draw = || device.sample(SampleStep::new(&GREEDY, 0.0, &[97]));
        assert!(draw().is_ok());
        assert!(matches!(draw(), Err(DeviceError::Step(_))));
        assert!(matches!(draw(), Err(DeviceError::Lost(_))));
        assert!(draw().is_ok());
    }
}
