//! Drawing a token: the card looks for the largest logits of a row, the host draws among them.
//!
//! What is looked for depends on the request alone, so that it is enqueued with the step itself, for what the last draw wanted; the results
//! lie in page-locked memory when the step is done, and a draw waits for nothing. Where the next draw wants something else, or a part of
//! the row does not decide, the card is asked again. The token is that of the whole row in every case; see `sampling/part.rs`.

use bytemuck::Zeroable;
use cudarc::driver::DriverError;

use super::args::{Address, FoundBlock, FoundEntry, FoundHead, Search};
use super::driver::Pinned;
use super::launch::{CANDIDATES, Kernels, SEARCH_BLOCKS, SEARCH_THREADS};
use super::sizes::{Area, SEARCH_COUNTS_BYTES, SEARCH_LARGEST_BYTES};
use super::{CudaDevice, Logits};
use crate::device::DeviceError;
use crate::sampling::{
    self, Decision, Need, PART_TOKENS_MAX, RowPart, SampleStep, Sampled, Scored, TokenSet,
    TopLogprobs,
};

/// Tokens whose logits are asked for, at most.
const TOUCHED_MAX: usize = 4096;

/// What the card looks for in a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Ask {
    /// The likeliest token.
    Likeliest,
    /// The largest logits, what the others weigh at a temperature (0: not wanted), and at 1.
    Part { temperature: f32, at_one: bool },
}

impl Ask {
    fn of(step: &SampleStep<'_>) -> Self {
        if is_plainly_greedy(step) {
            return Ask::Likeliest;
        }
        Ask::Part {
            temperature: step.params.temperature.max(0.0),
            at_one: step.logprobs.is_some(),
        }
    }

    /// Whether what was found says all that is asked.
    fn says(self, wanted: Self) -> bool {
        match (self, wanted) {
            (
                Ask::Part {
                    temperature: has,
                    at_one,
                },
                Ask::Part {
                    temperature,
                    at_one: wants_one,
                },
            ) => (temperature == has || temperature == 0.0) && (at_one || !wants_one),
            (has, wanted) => has == wanted,
        }
    }
}

/// Whether the likeliest token of the row as it is will be drawn.
fn is_plainly_greedy(step: &SampleStep<'_>) -> bool {
    let p = step.params;
    let greedy = p.temperature <= 0.0;
    let plain = p.repetition_penalty == 1.0
        && p.presence_penalty == 0.0
        && p.frequency_penalty == 0.0
        && p.dry.is_none();
    greedy
        && plain
        && step.bias.is_empty()
        && step.banned.is_empty()
        && step.allowed.is_none()
        && step.logprobs.is_none()
}

/// Finds the kernels.
pub(super) fn prepare(kernels: &mut Kernels) -> Result<(), DriverError> {
    for name in CANDIDATES {
        kernels.prepare(name)?;
    }
    kernels.prepare("candidates_gather")
}

/// Where results lie in page-locked memory.
#[derive(Clone, Copy, Debug)]
struct Places {
    head: usize,
    chosen: usize,
    blocks: usize,
    entries: usize,
    ids: usize,
    logits: usize,
    mask: usize,
    range: usize,
    end: usize,
}

impl Places {
    fn new(vocab: usize) -> Self {
        let mut end = 0;
        let mut take = |bytes: usize| {
            let at = end;
            end = (end + bytes).next_multiple_of(64);
            at
        };
        Self {
            head: take(size_of::<FoundHead>()),
            chosen: take(8),
            blocks: take(SEARCH_BLOCKS * size_of::<FoundBlock>()),
            entries: take(PART_TOKENS_MAX * size_of::<FoundEntry>()),
            ids: take(TOUCHED_MAX * 4),
            logits: take(TOUCHED_MAX * 4),
            mask: take(TokenSet::words(vocab) * 4),
            range: take(range_tokens(vocab) * 4),
            end,
        }
    }
}

/// Ids that one thread looks at.
fn run(vocab: usize) -> usize {
    vocab.div_ceil(SEARCH_BLOCKS * SEARCH_THREADS as usize)
}

/// Ids that one block looks at: a range.
fn range_tokens(vocab: usize) -> usize {
    run(vocab) * SEARCH_THREADS as usize
}

/// What was found of a row of logits.
pub(super) struct Finder {
    pinned: Pinned,
    places: Places,
    vocab: usize,
    /// What is looked for as soon as a step is done: what the last draw wanted.
    next: Ask,
    /// What page-locked memory holds: of the logits at this place, and when the step is done that wrote it.
    holds: Option<(usize, Ask)>,
    /// The part, put together.
    tokens: Vec<u32>,
    logits: Vec<f32>,
    rest: Vec<f64>,
    rest_at_one: f64,
    least: f32,
    is_whole: bool,
    temperature: f32,
    has_one: bool,
    lists_touched: bool,
    is_masked: bool,
    range: Option<(usize, usize)>,
}

impl Finder {
    /// Allocates all that it will need.
    pub(super) fn new(vocab: usize) -> Result<Self, DriverError> {
        let places = Places::new(vocab);
        Ok(Self {
            pinned: Pinned::zeroed(places.end)?,
            places,
            vocab,
            next: Ask::Likeliest,
            holds: None,
            tokens: Vec::with_capacity(PART_TOKENS_MAX + TOUCHED_MAX),
            logits: Vec::with_capacity(PART_TOKENS_MAX + TOUCHED_MAX),
            rest: Vec::with_capacity(SEARCH_BLOCKS),
            rest_at_one: 0.0,
            least: 0.0,
            is_whole: false,
            temperature: 0.0,
            has_one: false,
            lists_touched: false,
            is_masked: false,
            range: None,
        })
    }

    /// Nothing is known of the logits any more.
    pub(super) fn forget(&mut self) {
        self.holds = None;
    }

    fn read<T: bytemuck::Pod>(&self, at: usize, n: usize) -> &[T] {
        bytemuck::cast_slice(&self.pinned.as_slice()[at..at + n * size_of::<T>()])
    }

    fn write(&mut self, at: usize, words: &[u32]) {
        let bytes = size_of_val(words);
        self.pinned.as_mut_slice()[at..at + bytes].copy_from_slice(bytemuck::cast_slice(words));
    }

    fn head(&self) -> FoundHead {
        self.read(self.places.head, 1)[0]
    }

    /// Puts the part together from what the blocks have left: their tokens in the order of the blocks. `false` where a logit is no number
    /// or nothing is left.
    fn put_together(&mut self, temperature: f32, has_one: bool, is_masked: bool) -> bool {
        let head = self.head();
        let n_blocks = self.vocab.div_ceil(range_tokens(self.vocab));
        (self.temperature, self.has_one) = (temperature, has_one);
        (self.is_masked, self.is_whole) = (is_masked, head.whole != 0);
        (self.lists_touched, self.range) = (false, None);
        self.tokens.clear();
        self.logits.clear();
        self.rest.clear();
        self.rest_at_one = 0.0;
        let (at, entries_at) = (self.places.blocks, self.places.entries);
        let bytes = self.pinned.as_slice();
        let blocks = &bytes[at..at + n_blocks * size_of::<FoundBlock>()];
        let entries = &bytes[entries_at..entries_at + PART_TOKENS_MAX * size_of::<FoundEntry>()];
        let entries: &[FoundEntry] = bytemuck::cast_slice(entries);
        for block in bytemuck::cast_slice::<u8, FoundBlock>(blocks) {
            self.rest.push(block.rest);
            self.rest_at_one += block.rest_at_one;
            let (first, n) = (block.first as usize, block.entries as usize);
            for entry in entries.get(first..first + n).unwrap_or_default() {
                self.tokens.push(entry.id);
                self.logits.push(entry.logit);
            }
        }
        self.least = self.logits.iter().copied().fold(f32::INFINITY, f32::min);
        head.bad == u32::MAX && !self.tokens.is_empty()
    }

    /// Adds tokens whose logits have been asked for.
    fn add(&mut self, n: usize) {
        let (ids, values) = (self.places.ids, self.places.logits);
        let bytes = self.pinned.as_slice();
        let ids: &[u32] = bytemuck::cast_slice(&bytes[ids..ids + n * 4]);
        let values: &[f32] = bytemuck::cast_slice(&bytes[values..values + n * 4]);
        let first = self.tokens.len();
        for (token, logit) in ids.iter().zip(values) {
            if *logit > f32::NEG_INFINITY && self.tokens[..first].binary_search(token).is_err() {
                self.tokens.push(*token);
                self.logits.push(*logit);
            }
        }
        let mut both: Vec<(u32, f32)> = self
            .tokens
            .iter()
            .copied()
            .zip(self.logits.iter().copied())
            .collect();
        both.sort_unstable_by_key(|entry| entry.0);
        for (at, (token, logit)) in both.into_iter().enumerate() {
            (self.tokens[at], self.logits[at]) = (token, logit);
        }
        self.lists_touched = true;
    }

    fn part(&self) -> RowPart<'_> {
        let run = self.range.map(|(first, n)| {
            let logits: &[f32] = self.read(self.places.range, n);
            (first as u32, logits)
        });
        RowPart {
            tokens: &self.tokens,
            logits: &self.logits,
            least: self.least,
            is_whole: self.is_whole,
            rest: &self.rest,
            range_tokens: range_tokens(self.vocab),
            temperature: self.temperature,
            rest_at_one: self.has_one.then_some(self.rest_at_one),
            lists_touched: self.lists_touched,
            is_masked: self.is_masked,
            run,
        }
    }
}

impl CudaDevice {
    /// Enqueues what the next draw will probably want of the step's last row.
    pub(super) fn look_ahead(&mut self) -> Result<(), DriverError> {
        let (at, ask) = (self.sizes.offset(Area::Logits), self.finder.next);
        self.look(at, ask, false)?;
        self.finder.holds = Some((at, ask));
        Ok(())
    }

    /// Enqueues a search of the logits at this place.
    fn look(&self, at: usize, ask: Ask, masked: bool) -> Result<(), DriverError> {
        let (found, base) = (&self.finder, self.scratch.at());
        let (logits, places) = (base + at as u64, found.places);
        let vocab = self.capacity.vocab;
        let to = |place: usize| found.pinned.at() + place as Address;
        let (temperature, at_one) = match ask {
            Ask::Likeliest => {
                let parts = self.at(Area::Choose);
                let to = (parts, to(places.chosen));
                return self.kernels.choose(&self.stream, logits, vocab as u32, to);
            }
            Ask::Part {
                temperature,
                at_one,
            } => (temperature, at_one),
        };
        let search = self.at(Area::Search);
        let counts = search + SEARCH_LARGEST_BYTES as u64;
        let mask = counts + SEARCH_COUNTS_BYTES as u64;
        let blocks = vocab.div_ceil(range_tokens(vocab));
        let args = Search {
            logits,
            allowed: if masked { mask } else { 0 },
            largest: search,
            counts,
            head: to(places.head),
            blocks: to(places.blocks),
            entries: to(places.entries),
            n_vocab: vocab as u32,
            n_words: TokenSet::words(vocab) as u32,
            run: run(vocab) as u32,
            temperature,
            wants_one: u32::from(at_one),
            ..Search::zeroed()
        };
        self.kernels.candidates(&self.stream, blocks, &args)
    }

    /// Draws a token from the logits of a row.
    pub(super) fn draw(&mut self, step: &SampleStep<'_>) -> Result<Sampled, DeviceError> {
        let ask = Ask::of(step);
        self.finder.next = ask;
        let at = self.logits_at(step.row)?;
        let found = match ask {
            Ask::Likeliest => self.likeliest(at)?,
            Ask::Part {
                temperature,
                at_one,
            } => self.draw_part(at, (temperature, at_one), step)?,
        };
        match found {
            Some(sampled) => Ok(sampled),
            None => {
                self.fetch_row(step.row)?;
                let drawn = self.sampler.sample(&self.row, step);
                drawn.map_err(|e| DeviceError::Step(e.to_string()))
            }
        }
    }

    /// Makes sure that page-locked memory holds what is asked of the logits at this place, for a search without a mask.
    fn find(&mut self, at: usize, ask: Ask) -> Result<(), DriverError> {
        let held = self.finder.holds.filter(|(place, _)| *place == at);
        if !held.is_some_and(|(_, has)| has.says(ask)) {
            self.finder.holds = None;
            self.look(at, ask, false)?;
            self.stream.wait()?;
            self.finder.holds = Some((at, ask));
        }
        Ok(())
    }

    /// The likeliest token, found on the card; `None` where a logit is no number: the host then says which.
    fn likeliest(&mut self, at: usize) -> Result<Option<Sampled>, DeviceError> {
        self.find(at, Ask::Likeliest)?;
        let [token, bad] = self.finder.read::<[u32; 2]>(self.finder.places.chosen, 1)[0];
        Ok((bad == u32::MAX && token != u32::MAX).then(|| Sampled {
            token,
            logprob: None,
            top: TopLogprobs::default(),
        }))
    }

    /// Draws from parts of the row as long as they decide; `None` where the row is needed.
    fn draw_part(
        &mut self,
        at: usize,
        (temperature, at_one): (f32, bool),
        step: &SampleStep<'_>,
    ) -> Result<Option<Sampled>, DeviceError> {
        let ask = Ask::Part {
            temperature,
            at_one,
        };
        self.find(at, ask)?;
        let mut sound = self.finder.put_together(temperature, at_one, false);
        // each need is met once: the mask, then what is touched, then a range
        while sound {
            let need = match self.sampler.sample_part(&self.finder.part(), step) {
                Decision::Drawn(sampled) => return Ok(Some(sampled)),
                Decision::Undecided(need) => need,
            };
            sound = match (need, step.allowed) {
                (Need::Mask, Some(allowed)) if !self.finder.is_masked => {
                    self.look_with_mask(at, ask, allowed)?;
                    self.finder.put_together(temperature, at_one, true)
                }
                (Need::Touched, _) if !self.finder.lists_touched => {
                    self.gather_touched(at, step)?
                }
                (Need::Range(range), _) if self.finder.range.is_none() => {
                    self.fetch_range(at, range)?
                }
                (Need::Mask | Need::Touched | Need::Range(_) | Need::Row, _) => false,
            };
        }
        Ok(None)
    }

    /// Searches again, without what is not allowed.
    fn look_with_mask(
        &mut self,
        at: usize,
        ask: Ask,
        allowed: TokenSet<'_>,
    ) -> Result<(), DriverError> {
        let words = TokenSet::words(self.capacity.vocab);
        let (place, given) = (self.finder.places.mask, allowed.0.len().min(words));
        self.finder.write(place, &allowed.0[..given]);
        let beyond = place + given * 4..place + words * 4;
        self.finder.pinned.as_mut_slice()[beyond].fill(0);
        let to = self.sizes.offset(Area::Search) + SEARCH_LARGEST_BYTES + SEARCH_COUNTS_BYTES;
        self.finder.holds = None;
        let pinned = &self.finder.pinned;
        pinned.send_from(&self.stream, place, &self.scratch, to, words * 4)?;
        self.look(at, ask, true)?;
        self.stream.wait()
    }

    /// Asks for the logits of the tokens that the step changes. `false` where they are too many.
    fn gather_touched(&mut self, at: usize, step: &SampleStep<'_>) -> Result<bool, DriverError> {
        let touched = self.sampler.touched(step);
        let n = touched.len();
        if n > TOUCHED_MAX {
            return Ok(false);
        }
        let place = self.finder.places.ids;
        self.finder.write(place, touched);
        self.gather(at, n)?;
        self.stream.wait()?;
        self.finder.add(n);
        Ok(true)
    }

    fn gather(&self, at: usize, n: usize) -> Result<(), DriverError> {
        let to = |place: usize| self.finder.pinned.at() + place as Address;
        let places = self.finder.places;
        let logits = self.scratch.at() + at as u64;
        let lists = (to(places.ids), to(places.logits));
        self.kernels.gather(&self.stream, logits, n, lists)
    }

    /// Asks for all logits of a range of ids.
    fn fetch_range(&mut self, at: usize, range: usize) -> Result<bool, DriverError> {
        let first = range * range_tokens(self.capacity.vocab);
        let n = range_tokens(self.capacity.vocab).min(self.capacity.vocab.saturating_sub(first));
        let (place, from) = (self.finder.places.range, at + first * 4);
        let pinned = &mut self.finder.pinned;
        pinned.receive_to(&self.stream, place, &self.scratch, from, n * 4)?;
        self.stream.wait()?;
        self.finder.range = Some((first, n));
        Ok(true)
    }

    /// What a row says of a token.
    pub(super) fn score_row(
        &mut self,
        row: usize,
        token: u32,
        top: usize,
    ) -> Result<Scored, DeviceError> {
        let vocab = self.capacity.vocab;
        if (token as usize) < vocab {
            let at = self.logits_at(row)?;
            let ask = Ask::Part {
                temperature: 0.0,
                at_one: true,
            };
            let place = self.finder.places.ids;
            self.finder.write(place, &[token]);
            self.finder.holds = None;
            self.gather(at, 1)?;
            self.look(at, ask, false)?;
            self.stream.wait()?;
            if self.finder.put_together(0.0, true, false) {
                let logit = self.finder.read::<f32>(self.finder.places.logits, 1)[0];
                let scored = sampling::score_part(&self.finder.part(), logit, top, vocab);
                if let Some(scored) = scored {
                    return Ok(scored);
                }
            }
        }
        self.fetch_row(row)?;
        sampling::score(&self.row, token, top).map_err(|e| DeviceError::Step(e.to_string()))
    }

    /// Copies a row of logits to the host.
    pub(super) fn fetch_row(&mut self, row: usize) -> Result<(), DeviceError> {
        let at = self.logits_at(row)?;
        let bytes = self.capacity.vocab * size_of::<f32>();
        self.staging
            .receive(&self.stream, &self.scratch, at, bytes)?;
        self.stream.wait()?;
        self.row
            .copy_from_slice(bytemuck::cast_slice(&self.staging.as_slice()[..bytes]));
        Ok(())
    }

    /// Forgets what is known of the last step's logits.
    pub(super) fn forget_logits(&mut self) {
        self.logits = Logits::Stale;
        self.finder.forget();
    }
}
