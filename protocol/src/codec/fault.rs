//! What is wrong with a request and where: faults are collected, counted, and quoted with bounds.

use crate::error::Fault;
use crate::limits;

/// Longest path that is written out, in bytes.
const PATH_BYTES_MAX: usize = 160;

/// Where in a request a value stands: a chain of borrowed steps that costs nothing until a fault is written.
#[derive(Clone, Copy)]
pub(crate) struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Key(&'a str),
    Index(usize),
}

impl<'a> Path<'a> {
    /// The request itself, or its params.
    pub(crate) const ROOT: Path<'static> = Path {
        parent: None,
        step: Step::Root,
    };

    pub(crate) fn key(&'a self, key: &'a str) -> Path<'a> {
        Path {
            parent: Some(self),
            step: Step::Key(key),
        }
    }

    pub(crate) fn index(&'a self, index: usize) -> Path<'a> {
        Path {
            parent: Some(self),
            step: Step::Index(index),
        }
    }

    /// "messages[0].role"; names that are no plain words in quotes and cut, long paths cut.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text);
        if text.len() > PATH_BYTES_MAX {
            text = cut(&text, PATH_BYTES_MAX);
        }
        text
    }

    fn write(&self, out: &mut String) {
        if let Some(parent) = self.parent {
            parent.write(out);
        }
        match self.step {
            Step::Root => {}
            Step::Index(index) => out.push_str(&format!("[{index}]")),
            Step::Key(key) if is_plain(key) => {
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(key);
            }
            Step::Key(key) => out.push_str(&format!("[{}]", quoted(key))),
        }
    }
}

fn is_plain(key: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    !key.is_empty() && key.len() <= limits::QUOTE_BYTES_MAX && key.bytes().all(plain)
}

/// The beginning of a text, with "…" where something is left out; `max` bytes and the "…" at most.
pub(crate) fn cut(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let end = (0..=max)
        .rev()
        .find(|&end| text.is_char_boundary(end))
        .unwrap_or(0);
    format!("{}…", &text[..end])
}

/// A name or word of the request in quotes, cut, with control characters escaped.
pub(crate) fn quoted(text: &str) -> String {
    format!("{:?}", cut(text, limits::QUOTE_BYTES_MAX))
}

/// Faults in the order in which they are found; [`limits::FAULTS_MAX`] of them are kept, all are counted.
#[derive(Default)]
pub(crate) struct Faults {
    /// The first faults.
    pub(crate) list: Vec<Fault>,
    /// How many there are.
    pub(crate) count: usize,
}

impl Faults {
    /// Adds a fault. `words` gives its constraint and what is said after the field's name; it is only asked while
    /// faults are kept.
    pub(crate) fn add(&mut self, path: &Path<'_>, words: impl FnOnce() -> (String, String)) {
        self.add_sentence(path, |field| {
            let (constraint, said) = words();
            let subject = if field.is_empty() {
                "the request"
            } else {
                field
            };
            (constraint, format!("{subject} {said}"))
        });
    }

    /// Adds a fault whose sentence does not begin with the field's name. `words` is given the name and gives the
    /// constraint and the sentence.
    pub(crate) fn add_sentence(
        &mut self,
        path: &Path<'_>,
        words: impl FnOnce(&str) -> (String, String),
    ) {
        self.count += 1;
        if self.list.len() < limits::FAULTS_MAX {
            let field = path.text();
            let (constraint, message) = words(&field);
            self.list.push(Fault {
                field,
                constraint,
                message,
            });
        }
    }

    /// Adds the faults of `other` after these.
    pub(crate) fn append(&mut self, other: Faults) {
        self.count += other.count;
        self.list.extend(other.list);
        self.list.truncate(limits::FAULTS_MAX);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }
}
