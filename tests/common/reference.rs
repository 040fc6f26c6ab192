//! The exact float32 reference over the default model, and how far a device is from it.
#![allow(dead_code, reason = "each test file uses its own part")]

/// One prompt of the reference: its ids, its greedy continuation and the top log-probabilities at each step of it.
pub struct Case {
    pub id: String,
    pub prompt: Vec<u32>,
    pub generated: Vec<u32>,
    pub top: Vec<Vec<(u32, f64)>>,
}

fn ids(value: &serde_json::Value) -> Vec<u32> {
    value
        .as_array()
        .expect("ids")
        .iter()
        .map(|v| v.as_u64().expect("an id") as u32)
        .collect()
}

pub fn cases() -> Vec<Case> {
    let parse = |line: &str| {
        let v: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let entry = |e: &serde_json::Value| {
            (
                e[0].as_u64().expect("id") as u32,
                e[1].as_f64().expect("log p"),
            )
        };
        let step =
            |s: &serde_json::Value| s.as_array().expect("a list").iter().map(entry).collect();
        Case {
            id: v["id"].as_str().expect("id").to_owned(),
            prompt: ids(&v["token_ids"]),
            generated: ids(&v["generated"]),
            top: v["top"]
                .as_array()
                .expect("steps")
                .iter()
                .map(step)
                .collect(),
        }
    };
    include_str!("../data/smollm2-135m-instruct-q4_1.jsonl")
        .lines()
        .map(parse)
        .collect()
}

/// How far a device may be from the reference.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Share of positions where the likeliest token is the reference's, among those where its two likeliest are more than 0.05 apart.
    pub clear_min: f64,
    /// Share of positions where the likeliest token is the reference's.
    pub top1_min: f64,
    /// Mean absolute difference of log-probabilities.
    pub delta_max: f64,
    /// Mean of the differences weighted by probability.
    pub weighted_max: f64,
}

/// Sums over all positions.
#[derive(Default)]
pub struct Figures {
    positions: usize,
    agreed: usize,
    clear_positions: usize,
    clear_agreed: usize,
    delta_sum: f64,
    deltas: usize,
    weighted: f64,
}

impl Figures {
    pub fn add(&mut self, logits: &[f32], reference: &[(u32, f64)]) {
        let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let norm = largest
            + logits
                .iter()
                .map(|l| (f64::from(*l) - largest).exp())
                .sum::<f64>()
                .ln();
        let ours = (0..logits.len())
            .max_by(|a, b| logits[*a].total_cmp(&logits[*b]))
            .expect("a vocabulary");
        let agrees = ours == reference[0].0 as usize;
        self.positions += 1;
        self.agreed += usize::from(agrees);
        if reference[0].1 - reference[1].1 > 0.05 {
            self.clear_positions += 1;
            self.clear_agreed += usize::from(agrees);
        }
        let delta = |(id, p): &(u32, f64)| f64::from(logits[*id as usize]) - norm - p;
        self.delta_sum += reference.iter().map(|r| delta(r).abs()).sum::<f64>();
        self.deltas += reference.len();
        self.weighted += reference
            .iter()
            .map(|r| r.1.exp() * delta(r))
            .sum::<f64>()
            .abs();
    }

    /// Prints the figures and holds them against the bounds.
    pub fn check(&self, how: &str, bounds: Bounds) {
        let share = |a: usize, b: usize| a as f64 / b as f64;
        let (clear, all) = (
            share(self.clear_agreed, self.clear_positions),
            share(self.agreed, self.positions),
        );
        let (delta, weighted) = (
            self.delta_sum / self.deltas as f64,
            self.weighted / self.positions as f64,
        );
        super::say(&format!(
            "{how}: {} positions, top-1 {all:.4} (clear {clear:.4}), mean |dlogp| {delta:.5}, mean |sum p dlogp| {weighted:.2e}",
            self.positions
        ));
        assert!(
            clear >= bounds.clear_min,
            "{how}: top-1 is {clear} where the reference's top two are more than 0.05 apart"
        );
        assert!(all >= bounds.top1_min, "{how}: top-1 over all is {all}");
        assert!(delta <= bounds.delta_max, "{how}: mean |dlogp| is {delta}");
        assert!(
            weighted <= bounds.weighted_max,
            "{how}: mean |sum p dlogp| is {weighted}"
        );
    }
}
