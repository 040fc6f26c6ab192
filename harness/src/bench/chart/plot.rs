//! The two kinds of chart: lines over an axis of numbers or names, and horizontal bars.

use super::png::text_width;
use super::{Anchor, Drawing, FAINT, GRID, INK, PAPER, colour};

const WIDTH: f64 = 860.0;
const TITLE: f64 = 17.0;
const NOTE: f64 = 12.0;
const LABEL: f64 = 12.5;

/// How an axis grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// From 0 on.
    Linear,
    /// By factors of 2.
    Binary,
    /// By factors of 10.
    Decimal,
    /// 0, 1, 2 …, each with a name.
    Named,
}

/// A line with a name.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// What the legend says.
    pub name: String,
    /// (x, y), by x.
    pub points: Vec<(f64, f64)>,
}

/// A chart of lines.
#[derive(Clone, Debug, PartialEq)]
pub struct Lines {
    /// What it shows.
    pub title: String,
    /// Where it was measured.
    pub note: String,
    /// What x is, with its unit.
    pub x: String,
    /// What y is, with its unit.
    pub y: String,
    /// How x grows, and the names of its places.
    pub x_scale: (Scale, Vec<String>),
    /// How y grows.
    pub y_scale: Scale,
    /// The lines.
    pub series: Vec<Series>,
    /// Whether each point has a dot and its number.
    pub dots: bool,
}

/// A bar, where there is one: its length and what is written at its end.
pub type Bar = Option<(f64, String)>;

/// A chart of bars.
#[derive(Clone, Debug, PartialEq)]
pub struct Bars {
    /// What it shows.
    pub title: String,
    /// Where it was measured.
    pub note: String,
    /// What the length is, with its unit.
    pub x: String,
    /// What the bars of each group stand for.
    pub legend: Vec<String>,
    /// A name, and a bar for each entry of the legend.
    pub groups: Vec<(String, Vec<Bar>)>,
    /// The end of the axis.
    pub most: f64,
}

/// An axis on the sheet: from where to where, and which numbers are there.
struct Axis {
    scale: Scale,
    numbers: (f64, f64),
    pixels: (f64, f64),
}

impl Axis {
    /// One that has room for these values.
    fn of(scale: Scale, values: impl Iterator<Item = f64> + Clone, pixels: (f64, f64)) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(f64::NEG_INFINITY, f64::max);
        let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
        let numbers = match scale {
            Scale::Linear => (0.0, if high > 0.0 { high * 1.12 } else { 1.0 }),
            Scale::Binary => (low.max(1e-6) / 1.25, high.max(1e-6) * 1.25),
            Scale::Decimal => {
                let low = low.max(1e-6);
                (low / 1.5, (high * 1.5).max(low * 10.0))
            }
            Scale::Named => (-0.5, high.max(0.0) + 0.5),
        };
        Axis {
            scale,
            numbers,
            pixels,
        }
    }

    fn at(&self, value: f64) -> f64 {
        let line = |v: f64| match self.scale {
            Scale::Linear | Scale::Named => v,
            Scale::Binary | Scale::Decimal => v.max(1e-9).ln(),
        };
        let (low, high) = (line(self.numbers.0), line(self.numbers.1));
        let share = (line(value) - low) / (high - low);
        self.pixels.0 + share * (self.pixels.1 - self.pixels.0)
    }

    /// Numbers that are written beside it.
    fn ticks(&self) -> Vec<f64> {
        let (low, high) = self.numbers;
        let inside = |v: &f64| (low..=high).contains(v);
        match self.scale {
            Scale::Linear => {
                let step = round_step(high / 6.0);
                (0..=20)
                    .map(|i| f64::from(i) * step)
                    .filter(inside)
                    .collect()
            }
            Scale::Binary => {
                let all: Vec<f64> = (-10..31)
                    .map(f64::from)
                    .map(f64::exp2)
                    .filter(inside)
                    .collect();
                let every = all.len().div_ceil(10).max(1);
                all.into_iter().step_by(every).collect()
            }
            Scale::Decimal => {
                let powers = (-6..10).map(|p| 10f64.powi(p));
                let some: &[f64] = if high / low > 1000.0 {
                    &[1.0]
                } else {
                    &[1.0, 2.0, 5.0]
                };
                powers
                    .flat_map(|power| some.iter().map(move |n| n * power))
                    .filter(inside)
                    .collect()
            }
            Scale::Named => (0..=high as u32).map(f64::from).collect(),
        }
    }
}

/// 1, 2 or 5 times a power of ten, about as large.
fn round_step(about: f64) -> f64 {
    let power = 10f64.powf(about.max(1e-9).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    let found = steps.iter().find(|s| *s * power >= about);
    found.unwrap_or(&10.0) * power
}

/// "12,500", "0.25".
pub fn number(value: f64) -> String {
    if value.abs() >= 1000.0 {
        let digits = format!("{value:.0}");
        let groups: Vec<&str> = digits
            .as_bytes()
            .rchunks(3)
            .rev()
            .filter_map(|group| std::str::from_utf8(group).ok())
            .collect();
        return groups.join(",");
    }
    let text = match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// Title and note; where the chart begins.
fn heading(drawing: &mut Drawing, title: &str, note: &str) -> f64 {
    drawing.text((24.0, 34.0), TITLE, Anchor::Start, INK, title);
    drawing.text((24.0, 54.0), NOTE, Anchor::Start, FAINT, note);
    72.0
}

/// Coloured marks and what they stand for, in as many lines as it takes from `top` on; where it ends.
fn legend(drawing: &mut Drawing, names: &[&str], top: f64) -> f64 {
    let (mut x, mut y) = (24.0, top + 10.0);
    for (i, name) in names.iter().enumerate() {
        let width = 20.0 + text_width(name) * LABEL;
        if x + width > WIDTH - 24.0 && x > 24.0 {
            (x, y) = (24.0, y + 20.0);
        }
        drawing.rect((x, y - 9.0), (12.0, 10.0), colour(i));
        drawing.text((x + 18.0, y), LABEL, Anchor::Start, INK, name);
        x += width + 22.0;
    }
    y + 14.0
}

impl Lines {
    /// Draws it.
    pub fn draw(&self) -> Drawing {
        let mut drawing = Drawing::new(WIDTH, 470.0);
        let top = heading(&mut drawing, &self.title, &self.note);
        let names: Vec<&str> = self.series.iter().map(|s| s.name.as_str()).collect();
        let top = legend(&mut drawing, &names, top) + 26.0;
        let bottom = drawing.height - 62.0;
        let right = WIDTH - if self.dots { 64.0 } else { 40.0 };
        let left = 84.0;
        let points = self.series.iter().flat_map(|s| s.points.iter());
        let x = Axis::of(self.x_scale.0, points.clone().map(|p| p.0), (left, right));
        let y = Axis::of(self.y_scale, points.map(|p| p.1), (bottom, top));
        drawing.text((24.0, top - 14.0), LABEL, Anchor::Start, FAINT, &self.y);
        let middle = (left + right) / 2.0;
        let under = (middle, drawing.height - 16.0);
        drawing.text(under, LABEL, Anchor::Middle, FAINT, &self.x);
        for tick in y.ticks() {
            let at = y.at(tick);
            drawing.path(vec![(left, at), (right, at)], 1.0, GRID);
            let place = (left - 8.0, at + 4.0);
            drawing.text(place, LABEL, Anchor::End, INK, &number(tick));
        }
        self.x_labels(&mut drawing, &x, bottom);
        drawing.path(vec![(left, bottom), (right, bottom)], 1.0, FAINT);
        for (i, series) in self.series.iter().enumerate() {
            let on_sheet = series.points.iter().map(|p| (x.at(p.0), y.at(p.1)));
            drawing.path(on_sheet.clone().collect(), 2.2, colour(i));
            if !self.dots {
                continue;
            }
            for at in on_sheet {
                drawing.dot(at, 3.6, colour(i));
            }
        }
        if self.dots {
            self.values(&mut drawing, &x, &y);
        }
        drawing
    }

    /// The number of each point, to its right: numbers over one place of the axis make room for each other.
    fn values(&self, drawing: &mut Drawing, x: &Axis, y: &Axis) {
        const SIZE: f64 = 11.0;
        const APART: f64 = 13.0;
        let mut all: Vec<(f64, f64, usize, String)> = Vec::new();
        for (i, series) in self.series.iter().enumerate() {
            let points = series.points.iter();
            all.extend(points.map(|p| (x.at(p.0), y.at(p.1), i, number(p.1))));
        }
        all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        for column in all.chunk_by_mut(|a, b| a.0 == b.0) {
            // Neighbours that are too near are pushed apart, each by half, until none is.
            for _ in 0..100 {
                for i in 1..column.len() {
                    let lack = APART - (column[i].1 - column[i - 1].1);
                    if lack > 0.0 {
                        column[i - 1].1 -= lack / 2.0;
                        column[i].1 += lack / 2.0;
                    }
                }
            }
            for (x, y, i, text) in column {
                let width = text_width(text) * SIZE;
                let corner = (*x + 6.0, *y - SIZE / 2.0 - 0.5);
                drawing.rect(corner, (width + 3.0, SIZE + 1.0), PAPER);
                let at = (*x + 7.5, *y + SIZE * 0.36);
                drawing.text(at, SIZE, Anchor::Start, colour(*i), text);
            }
        }
    }

    /// What stands under the axis; of many names only some.
    fn x_labels(&self, drawing: &mut Drawing, x: &Axis, bottom: f64) {
        let ticks = x.ticks();
        let names = &self.x_scale.1;
        let widest = names.iter().map(|name| text_width(name) * 11.0);
        let room = widest.fold(40.0, f64::max) + 14.0;
        let fit = ((x.pixels.1 - x.pixels.0) / room).max(1.0) as usize;
        let every = match x.scale {
            Scale::Named => ticks.len().div_ceil(fit.max(1)).max(1),
            Scale::Linear | Scale::Binary | Scale::Decimal => 1,
        };
        for (i, tick) in ticks.iter().enumerate() {
            let at = x.at(*tick);
            drawing.path(vec![(at, bottom), (at, bottom + 5.0)], 1.0, FAINT);
            let text = match x.scale {
                Scale::Named => names.get(i).cloned().unwrap_or_default(),
                Scale::Linear | Scale::Binary | Scale::Decimal => number(*tick),
            };
            // The last one is the newest, and is always named.
            if (ticks.len() - 1 - i).is_multiple_of(every) {
                let under = (at, bottom + 20.0);
                drawing.text(under, 11.0, Anchor::Middle, INK, &text);
            }
        }
    }
}

impl Bars {
    /// Draws it.
    pub fn draw(&self) -> Drawing {
        const BAR: f64 = 17.0;
        let group = self.legend.len().max(1) as f64 * (BAR + 3.0) + 16.0;
        let mut drawing = Drawing::new(WIDTH, 0.0);
        let top = heading(&mut drawing, &self.title, &self.note);
        let names: Vec<&str> = self.legend.iter().map(String::as_str).collect();
        let top = legend(&mut drawing, &names, top) + 6.0;
        let bottom = top + group * self.groups.len() as f64;
        drawing.height = bottom + 58.0;
        let names = self.groups.iter().map(|g| text_width(&g.0) * LABEL);
        let left = 24.0 + names.fold(60.0, f64::max).min(320.0) + 12.0;
        let axis = Axis {
            scale: Scale::Linear,
            numbers: (0.0, self.most),
            pixels: (left, WIDTH - 150.0),
        };
        for tick in axis.ticks() {
            let at = axis.at(tick);
            drawing.path(vec![(at, top), (at, bottom)], 1.0, GRID);
            let under = (at, bottom + 18.0);
            drawing.text(under, LABEL, Anchor::Middle, INK, &number(tick));
        }
        drawing.path(vec![(left, top), (left, bottom)], 1.0, FAINT);
        let middle = (axis.pixels.0 + axis.pixels.1) / 2.0;
        drawing.text(
            (middle, bottom + 42.0),
            LABEL,
            Anchor::Middle,
            FAINT,
            &self.x,
        );
        for (i, (name, bars)) in self.groups.iter().enumerate() {
            let begin = top + group * i as f64 + 8.0;
            let centre = begin + (group - 16.0) / 2.0 + 3.0;
            drawing.text((left - 10.0, centre), LABEL, Anchor::End, INK, name);
            for (j, bar) in bars.iter().enumerate() {
                let Some((value, text)) = bar else { continue };
                let y = begin + j as f64 * (BAR + 3.0);
                let length = (axis.at(value.min(self.most)) - left).max(1.0);
                drawing.rect((left, y), (length, BAR), colour(j));
                let end = (left + length + 7.0, y + BAR - 4.5);
                drawing.text(end, 11.5, Anchor::Start, INK, text);
            }
        }
        drawing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let known = [
            (0.0, "0"),
            (0.25, "0.25"),
            (12.5, "12.5"),
            (20.0, "20"),
            (100.0, "100"),
            (26_000.0, "26,000"),
            (1_234_567.0, "1,234,567"),
        ];
        for (value, text) in known {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let axis = |scale, low: f64, high: f64| {
            Axis::of(scale, [low, high].into_iter(), (0.0, 100.0)).ticks()
        };
        let linear = axis(Scale::Linear, 3.0, 93.0);
        assert_eq!(linear, [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(
            axis(Scale::Decimal, 100.0, 900.0),
            [100.0, 200.0, 500.0, 1000.0]
        );
        assert_eq!(axis(Scale::Named, 0.0, 2.0).len(), 3);
        assert_eq!(axis(Scale::Binary, 16.0, 64.0), [16.0, 32.0, 64.0]);
    }

    #[test]
    fn a_chart_of_nothing_is_a_chart() {
        let lines = Lines {
            title: String::new(),
            note: String::new(),
            x: String::new(),
            y: String::new(),
            x_scale: (Scale::Named, Vec::new()),
            y_scale: Scale::Decimal,
            series: Vec::new(),
            dots: true,
        };
        assert!(lines.draw().svg().ends_with("</svg>\n"));
        let bars = Bars {
            title: String::new(),
            note: String::new(),
            x: String::new(),
            legend: Vec::new(),
            groups: Vec::new(),
            most: 100.0,
        };
        assert!(!bars.draw().png().unwrap().is_empty());
    }
}
