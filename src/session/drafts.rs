//! Speculation without a second model: what followed the last tokens where they stood before is likely to follow again.
//!
//! A proposal costs time where it is wrong and saves time where it is right, and nothing else hangs on it: the device draws every token
//! as it would without. So there is an account: it is charged for each proposal and its tokens, paid for each right one, and given a little
//! for every token drawn. Nothing is proposed while it is overdrawn, so that text without repetitions costs next to nothing.

/// Lengths of the sequences that are looked up, the longest first: two tokens say less than three of what follows.
const LENGTHS: [usize; 2] = [3, 2];

/// What a step of one token costs: the unit of the account.
const STEP: i64 = 64;

/// What a step with a proposal costs more, and each of its tokens on top. Measured on a processor: 4 rows take up to 2.7 steps of one, 8 up
/// to 2.8, 16 up to 4.8.
const PROPOSAL: i64 = 64;
const PROPOSED: i64 = 12;

/// What every drawn token brings: 1.6 % of its own cost.
const DRAWN: i64 = 1;

/// Most that can be saved up, so that a text which stops repeating itself is noticed soon.
const BALANCE_MAX: i64 = 8 * STEP;

/// Fewest and most tokens of an adaptive proposal. With the last token each size comes to whole blocks of four rows, 3 growing to 7 and 15.
const SIZE_MIN: usize = 3;
const SIZE_MAX: usize = 15;

/// Tokens that are entered in one go, so that a long prompt keeps nobody waiting.
const PIECE_TOKENS: usize = 4096;

/// Places of a table at least and at most; of sequences that meet in a place the later one is known.
const PLACES_MIN: usize = 256;
const PLACES_MAX: usize = 1 << 20;

/// How many tokens are proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// More where they are right, none for a while where they are not.
    Adaptive,
    /// So many wherever something matches.
    Fixed(usize),
}

/// Where sequences of one length stood last.
#[derive(Debug)]
struct Table {
    length: usize,
    /// By a hash of the sequence: the position behind it; 0 for none. What is found has to be compared.
    places: Vec<u32>,
}

impl Table {
    fn new(length: usize, places: usize) -> Self {
        let places = vec![0; places];
        Self { length, places }
    }

    /// The sequence that ends before `end`.
    fn sequence<'a>(&self, tokens: &'a [u32], end: usize) -> Option<&'a [u32]> {
        tokens.get(end.checked_sub(self.length)?..end)
    }

    fn place(&self, sequence: &[u32]) -> usize {
        let mix = |hash: u64, token: &u32| {
            (hash ^ u64::from(*token))
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(29)
        };
        let hash = sequence.iter().fold(0x517c_c1b7_2722_0a95, mix);
        // There are at most 2^20 places, a power of two.
        (hash as usize) & (self.places.len() - 1)
    }

    fn enter(&mut self, tokens: &[u32], end: usize) {
        let Some(sequence) = self.sequence(tokens, end) else {
            return;
        };
        let place = self.place(sequence);
        if let (Some(slot), Ok(end)) = (self.places.get_mut(place), u32::try_from(end)) {
            *slot = end;
        }
    }

    /// The position behind the last place where the sequence stood that ends the tokens now.
    fn find(&self, tokens: &[u32]) -> Option<usize> {
        let sequence = self.sequence(tokens, tokens.len())?;
        let end = *self.places.get(self.place(sequence))? as usize;
        (self.sequence(tokens, end)? == sequence).then_some(end)
    }
}

/// Proposes the tokens that may come next in one generation, and learns from what comes.
#[derive(Debug)]
pub struct Drafter {
    pace: Pace,
    tables: [Table; 2],
    /// Sequences that end up to here are in the tables.
    entered: usize,
    /// Tokens that the account was given something for.
    credited: usize,
    balance: i64,
    size: usize,
    /// The last token and those proposed to follow it; empty where nothing is proposed.
    step: Vec<u32>,
    /// Proposed tokens of this step that have come.
    agreed: usize,
    drafted: u64,
    accepted: u64,
}

impl Drafter {
    /// A drafter for a generation of which `prompt_tokens` tokens are there and that ends at `tokens_max`.
    pub fn new(pace: Pace, prompt_tokens: usize, tokens_max: usize) -> Self {
        let places = tokens_max.saturating_mul(2).min(PLACES_MAX);
        let places = places.next_power_of_two().max(PLACES_MIN);
        let most = match pace {
            Pace::Adaptive => SIZE_MAX,
            Pace::Fixed(size) => size,
        };
        Self {
            pace,
            tables: LENGTHS.map(|length| Table::new(length, places)),
            entered: 0,
            credited: prompt_tokens,
            balance: 0,
            size: SIZE_MIN,
            step: Vec::with_capacity(most + 1),
            agreed: 0,
            drafted: 0,
            accepted: 0,
        }
    }

    /// The last of `tokens` and at most `room` tokens that may follow it, or nothing where there is no reason for any.
    pub fn propose(&mut self, tokens: &[u32], room: usize) -> &[u32] {
        self.step.clear();
        self.agreed = 0;
        self.credit(tokens.len());
        let size = match self.pace {
            Pace::Adaptive if self.balance < 0 => 0,
            Pace::Adaptive => self.size,
            Pace::Fixed(size) => size,
        };
        let size = size.min(room);
        self.enter(tokens);
        if size == 0 || self.entered + 1 < tokens.len() {
            return &self.step;
        }
        let found = self.tables.iter().find_map(|table| table.find(tokens));
        let rest = found.and_then(|from| tokens.get(from..));
        if let (Some(rest), Some(last)) = (rest, tokens.last()) {
            // Where the sequence has only just ended, what followed is taken for a period.
            self.step.push(*last);
            self.step.extend(rest.iter().cycle().take(size));
            self.drafted += self.step.len() as u64 - 1;
        }
        &self.step
    }

    /// Leaves only the first `tokens` of those proposed, where it is known that the next one cannot come.
    pub fn keep(&mut self, tokens: usize) -> &[u32] {
        let proposed = self.step.len().saturating_sub(1);
        self.drafted -= proposed.saturating_sub(tokens) as u64;
        match tokens {
            0 => self.step.clear(),
            tokens => self.step.truncate(tokens + 1),
        }
        &self.step
    }

    /// The last token and those that are proposed to follow it; nothing where none are.
    pub fn step(&self) -> &[u32] {
        &self.step
    }

    /// Compares a drawn token with the one proposed for its place. `true`: the device has seen this token already, and what the model
    /// says after it is there.
    pub fn foresaw(&mut self, token: u32) -> bool {
        let foreseen = self.step.get(self.agreed + 1) == Some(&token);
        if foreseen {
            self.agreed += 1;
            self.accepted += 1;
        } else {
            self.settle();
        }
        foreseen
    }

    /// Tokens proposed so far.
    pub fn drafted(&self) -> u64 {
        self.drafted
    }

    /// How many of them came.
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    fn credit(&mut self, tokens: usize) {
        let drawn = tokens.saturating_sub(self.credited) as i64;
        self.credited = tokens;
        self.balance = (self.balance + drawn * DRAWN).min(BALANCE_MAX);
    }

    /// A proposal has been looked at to its end, or to the first token that came otherwise.
    fn settle(&mut self) {
        let Some(proposed) = self.step.len().checked_sub(1) else {
            return;
        };
        self.balance += self.agreed as i64 * STEP - PROPOSAL - proposed as i64 * PROPOSED;
        self.size = if self.agreed == proposed {
            (2 * self.size + 1).min(SIZE_MAX)
        } else {
            (self.size / 2).max(SIZE_MIN)
        };
        self.step.clear();
    }

    /// Enters what has something behind it, a piece at a time.
    fn enter(&mut self, tokens: &[u32]) {
        let last = tokens.len().saturating_sub(1);
        let to = last.min(self.entered + PIECE_TOKENS);
        for end in self.entered + 1..=to {
            for table in &mut self.tables {
                table.enter(tokens, end);
            }
        }
        self.entered = self.entered.max(to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drafter(pace: Pace) -> Drafter {
        Drafter::new(pace, 0, 4096)
    }

    fn proposed(tokens: &[u32], room: usize) -> Vec<u32> {
        drafter(Pace::Fixed(4)).propose(tokens, room).to_vec()
    }

    #[test]
    fn what_followed_the_last_place_is_proposed_and_three_tokens_count_before_two() {
        assert_eq!(
            proposed(&[1, 2, 3, 4, 5, 6, 7, 1, 2, 3], 9),
            [3, 4, 5, 6, 7]
        );
        assert_eq!(
            proposed(&[2, 3, 8, 8, 1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3], 1),
            [3, 4]
        );
        assert_eq!(proposed(&[2, 3, 8, 8, 9, 2, 3], 2), [3, 8, 8]);
        assert!(proposed(&[1, 2, 3, 4, 5], 9).is_empty());
        assert!(proposed(&[1, 2, 1, 2], 0).is_empty());
    }

    #[test]
    fn what_has_just_begun_to_repeat_itself_is_taken_for_a_period() {
        assert_eq!(proposed(&[7, 7, 7], 9), [7, 7, 7, 7, 7]);
        assert_eq!(proposed(&[1, 2, 3, 1, 2], 9), [2, 3, 1, 2, 3]);
    }

    #[test]
    fn a_long_prompt_is_entered_in_pieces_and_nothing_is_proposed_before() {
        let tokens: Vec<u32> = (0..10_000).map(|i| i % 5000).collect();
        let mut drafter = Drafter::new(Pace::Fixed(2), 10_000, 20_000);
        assert!(drafter.propose(&tokens, 9).is_empty());
        assert!(drafter.propose(&tokens, 9).is_empty());
        assert_eq!(drafter.propose(&tokens, 9), [4999, 0, 1]);
    }

    /// Lets a drafter accompany a text, and counts steps as a device would need them: (steps, what they cost in steps of one token).
    fn accompany(text: &[u32], prompt: usize) -> (usize, f64) {
        let mut drafter = Drafter::new(Pace::Adaptive, prompt, text.len());
        let (mut at, mut steps, mut cost) = (prompt, 0, 0.0);
        while at < text.len() {
            let more = drafter
                .propose(&text[..at], text.len() - at - 1)
                .len()
                .saturating_sub(1);
            steps += 1;
            cost += 1.0;
            if more > 0 {
                cost += (PROPOSAL + more as i64 * PROPOSED) as f64 / STEP as f64;
            }
            at += 1;
            while drafter.foresaw(text[at - 1]) {
                at += 1;
            }
        }
        (steps, cost)
    }

    #[test]
    fn where_nothing_that_matches_goes_on_the_same_it_costs_less_than_three_percent() {
        // Every pair comes up again and again, and always with another token behind it.
        let mut text = Vec::new();
        for i in 0..2000 {
            text.extend([1, 2, 100 + i]);
        }
        let (_, cost) = accompany(&text, 100);
        let tokens = (text.len() - 100) as f64;
        assert!(
            cost > tokens && cost <= 1.03 * tokens,
            "{cost} for {tokens}"
        );
    }

    #[test]
    fn a_copy_needs_few_steps_from_the_start_and_after_a_part_without_repetition() {
        let page: Vec<u32> = (0..400).collect();
        let fresh: Vec<u32> = (1000..1400).collect();
        let (steps, _) = accompany(&[&page[..], &[999, 0, 1], &page[2..]].concat(), 403);
        assert!(steps < 400 / 10, "{steps}");
        let text = [&page[..], &fresh, &[0, 1], &page[2..]].concat();
        let (steps, _) = accompany(&text, 400);
        assert!((400..440).contains(&steps), "{steps}");
    }

    #[test]
    fn what_is_told_is_what_was_proposed_and_what_came() {
        let mut drafter = drafter(Pace::Fixed(3));
        assert_eq!(drafter.propose(&[1, 2, 3, 4, 1, 2], 9), [2, 3, 4, 1]);
        assert!(drafter.foresaw(3));
        assert!(!drafter.foresaw(9));
        assert!(!drafter.foresaw(1), "what is left was for another text");
        assert_eq!((drafter.drafted(), drafter.accepted()), (3, 1));
    }

    #[test]
    fn what_cannot_come_is_neither_proposed_nor_charged() {
        let mut drafter = drafter(Pace::Fixed(3));
        drafter.propose(&[1, 2, 3, 4, 1, 2], 9);
        assert_eq!(drafter.keep(1), [2, 3]);
        assert!(drafter.foresaw(3));
        assert!(!drafter.foresaw(4));
        drafter.propose(&[1, 2, 3, 4, 1, 2, 3, 4], 9);
        assert!(drafter.keep(0).is_empty());
        assert_eq!((drafter.drafted(), drafter.accepted()), (1, 1));
    }
}
