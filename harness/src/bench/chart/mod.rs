//! Charts: shapes on a sheet, which becomes an SVG or a PNG of the same look, and the two kinds of chart that are made of them.

mod plot;
mod png;
mod svg;

pub use plot::{Bar, Bars, Lines, Scale, Series};

/// A colour: red, green, blue.
pub type Colour = [u8; 3];

const PAPER: Colour = [0xff, 0xff, 0xff];
const INK: Colour = [0x22, 0x26, 0x2e];
const FAINT: Colour = [0x6b, 0x72, 0x80];
const GRID: Colour = [0xe3, 0xe6, 0xeb];

/// For the series, told apart by people of any sight (Okabe and Ito).
const SERIES: [Colour; 7] = [
    [0x00, 0x72, 0xb2],
    [0xe6, 0x9f, 0x00],
    [0x00, 0x9e, 0x73],
    [0xcc, 0x79, 0xa7],
    [0xd5, 0x5e, 0x00],
    [0x56, 0xb4, 0xe9],
    [0x4d, 0x4d, 0x4d],
];

fn colour(series: usize) -> Colour {
    SERIES[series % SERIES.len()]
}

/// Which point of a text stands where it is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Anchor {
    Start,
    Middle,
    End,
}

/// Something on the sheet; lengths in pixels, y downwards.
#[derive(Clone, Debug, PartialEq)]
enum Shape {
    Rect {
        at: (f64, f64),
        size: (f64, f64),
        fill: Colour,
    },
    Path {
        points: Vec<(f64, f64)>,
        width: f64,
        stroke: Colour,
    },
    Dot {
        at: (f64, f64),
        radius: f64,
        fill: Colour,
    },
    /// `at` is on the base line.
    Text {
        at: (f64, f64),
        size: f64,
        anchor: Anchor,
        fill: Colour,
        text: String,
    },
}

/// A white sheet with shapes on it.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawing {
    width: f64,
    height: f64,
    shapes: Vec<Shape>,
}

impl Drawing {
    fn new(width: f64, height: f64) -> Self {
        Drawing {
            width,
            height,
            shapes: Vec::new(),
        }
    }

    fn rect(&mut self, at: (f64, f64), size: (f64, f64), fill: Colour) {
        self.shapes.push(Shape::Rect { at, size, fill });
    }

    fn path(&mut self, points: Vec<(f64, f64)>, width: f64, stroke: Colour) {
        self.shapes.push(Shape::Path {
            points,
            width,
            stroke,
        });
    }

    fn dot(&mut self, at: (f64, f64), radius: f64, fill: Colour) {
        self.shapes.push(Shape::Dot { at, radius, fill });
    }

    fn text(&mut self, at: (f64, f64), size: f64, anchor: Anchor, fill: Colour, text: &str) {
        self.shapes.push(Shape::Text {
            at,
            size,
            anchor,
            fill,
            text: text.to_owned(),
        });
    }

    /// The drawing as an SVG document.
    pub fn svg(&self) -> String {
        svg::write(self)
    }

    /// The drawing as a PNG file, twice as large for sharp screens.
    ///
    /// # Errors
    /// When there is no memory for it, which a chart does not need much of.
    pub fn png(&self) -> anyhow::Result<Vec<u8>> {
        png::write(self, 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_show_the_same() {
        let mut drawing = Drawing::new(60.0, 40.0);
        drawing.rect((10.0, 10.0), (20.0, 20.0), colour(0));
        drawing.path(vec![(0.0, 35.0), (60.0, 35.0)], 2.0, INK);
        drawing.dot((50.0, 10.0), 4.0, colour(1));
        drawing.text((30.0, 30.0), 20.0, Anchor::Start, INK, "<M&");
        let svg = drawing.svg();
        for part in ["<rect", "<polyline", "<circle", "&lt;M&amp;"] {
            assert!(svg.contains(part), "{part}: {svg}");
        }
        let png = drawing.png().unwrap();
        let image = tiny_skia::Pixmap::decode_png(&png).unwrap();
        assert_eq!((image.width(), image.height()), (120, 80));
        let at = |x, y| {
            let c = image.pixel(x, y).unwrap();
            [c.red(), c.green(), c.blue()]
        };
        assert_eq!(at(40, 40), colour(0));
        assert_eq!(at(60, 70), INK);
        assert_eq!(at(100, 20), colour(1));
        assert_eq!(at(118, 2), [255, 255, 255]);
        let dark = (60..120).flat_map(|x| (30..64).map(move |y| (x, y)));
        assert!(
            dark.filter(|(x, y)| at(*x, *y)[0] < 100).count() > 50,
            "no letters"
        );
    }
}
