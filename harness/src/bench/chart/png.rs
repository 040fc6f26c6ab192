//! A drawing as pixels. The letters come from a font in this file's folder, so that no machine needs one.

use anyhow::{Context, Result};
use tiny_skia::{
    Color, FillRule, LineJoin, Paint, Path, PathBuilder, Pixmap, Rect, Stroke, Transform,
};
use ttf_parser::{Face, OutlineBuilder};

use super::{Anchor, Colour, Drawing, Shape};

const FONT: &[u8] = include_bytes!("../font/DejaVuSans.ttf");

pub fn write(drawing: &Drawing, scale: f64) -> Result<Vec<u8>> {
    let pixels = |length: f64| (length * scale).ceil() as u32;
    let mut sheet = Pixmap::new(pixels(drawing.width), pixels(drawing.height))
        .context("a chart that is too large")?;
    sheet.fill(Color::WHITE);
    let face = Face::parse(FONT, 0).context("the font of the charts is damaged")?;
    let zoom = Transform::from_scale(scale as f32, scale as f32);
    for shape in &drawing.shapes {
        draw(&mut sheet, &face, zoom, shape);
    }
    sheet.encode_png().context("the chart cannot be encoded")
}

fn draw(sheet: &mut Pixmap, face: &Face<'_>, zoom: Transform, shape: &Shape) {
    let fill = |sheet: &mut Pixmap, path: Option<Path>, colour: Colour, at: Transform| {
        if let Some(path) = path {
            sheet.fill_path(&path, &paint(colour), FillRule::Winding, at, None);
        }
    };
    match shape {
        Shape::Rect {
            at,
            size,
            fill: colour,
        } => {
            let rect = Rect::from_xywh(at.0 as f32, at.1 as f32, size.0 as f32, size.1 as f32);
            fill(sheet, rect.map(PathBuilder::from_rect), *colour, zoom);
        }
        Shape::Dot {
            at,
            radius,
            fill: colour,
        } => {
            let dot = PathBuilder::from_circle(at.0 as f32, at.1 as f32, *radius as f32);
            fill(sheet, dot, *colour, zoom);
        }
        Shape::Path {
            points,
            width,
            stroke,
        } => {
            let mut path = PathBuilder::new();
            for (i, (x, y)) in points.iter().enumerate() {
                match i {
                    0 => path.move_to(*x as f32, *y as f32),
                    _ => path.line_to(*x as f32, *y as f32),
                }
            }
            let line = Stroke {
                width: *width as f32,
                line_join: LineJoin::Round,
                ..Stroke::default()
            };
            if let Some(path) = path.finish() {
                sheet.stroke_path(&path, &paint(*stroke), &line, zoom, None);
            }
        }
        Shape::Text {
            at,
            size,
            anchor,
            fill: colour,
            text,
        } => {
            let (path, place) = placed(face, text, *size, *anchor, *at);
            fill(sheet, path, *colour, place.post_concat(zoom));
        }
    }
}

/// A text's outlines, and what brings them to their place and size.
fn placed(
    face: &Face<'_>,
    text: &str,
    size: f64,
    anchor: Anchor,
    at: (f64, f64),
) -> (Option<Path>, Transform) {
    let (path, width) = letters(face, text);
    let unit = (size / f64::from(face.units_per_em())) as f32;
    let before = match anchor {
        Anchor::Start => 0.0,
        Anchor::Middle => width / 2.0,
        Anchor::End => width,
    };
    let x = at.0 as f32 - before * unit;
    let place = Transform::from_row(unit, 0.0, 0.0, -unit, x, at.1 as f32);
    (path, place)
}

fn paint([red, green, blue]: Colour) -> Paint<'static> {
    let mut paint = Paint::default();
    paint.set_color_rgba8(red, green, blue, 255);
    paint
}

/// The outlines of a text in the font's units, and its width.
fn letters(face: &Face<'_>, text: &str) -> (Option<Path>, f32) {
    let mut pen = Pen {
        path: PathBuilder::new(),
        x: 0.0,
    };
    for letter in text.chars() {
        let glyph = face.glyph_index(letter).or_else(|| face.glyph_index('?'));
        let Some(glyph) = glyph else { continue };
        // A space has no outline.
        let _ = face.outline_glyph(glyph, &mut pen);
        pen.x += f32::from(face.glyph_hor_advance(glyph).unwrap_or_default());
    }
    (pen.path.finish(), pen.x)
}

/// The width of a text of size 1.
pub fn text_width(text: &str) -> f64 {
    let Ok(face) = Face::parse(FONT, 0) else {
        return 0.6 * text.chars().count() as f64;
    };
    f64::from(letters(&face, text).1) / f64::from(face.units_per_em())
}

/// Collects outlines, each letter further to the right.
struct Pen {
    path: PathBuilder,
    x: f32,
}

impl OutlineBuilder for Pen {
    fn move_to(&mut self, x: f32, y: f32) {
        self.path.move_to(self.x + x, y);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        self.path.line_to(self.x + x, y);
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        self.path.quad_to(self.x + x1, y1, self.x + x, y);
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        self.path
            .cubic_to(self.x + x1, y1, self.x + x2, y2, self.x + x, y);
    }

    fn close(&mut self) {
        self.path.close();
    }
}
