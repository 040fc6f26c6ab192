//! JSON as a request needs it: strict about what parsers disagree on (keys that stand twice), bounded in depth and
//! number of values, compact for long arrays of token ids, and with strings borrowed from the line where they can be.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::fault::{Faults, Path, quoted};
use crate::limits;

/// A JSON value.
pub(crate) enum Node<'a> {
    Null,
    Bool(bool),
    /// An integer of 0 and above.
    UInt(u64),
    /// An integer below 0.
    Int(i64),
    /// A number with a fraction, an exponent, or too many digits for an integer.
    Float(f64),
    String(Cow<'a, str>),
    /// An array in which nothing but integers below 2^32 stand: 4 bytes each. The empty array is one too.
    Ids(Vec<u32>),
    Array(Vec<Node<'a>>),
    /// Each key once.
    Object(Vec<(Cow<'a, str>, Node<'a>)>),
    /// Something over a limit; the fault is on record.
    Dropped,
}

/// A line that is JSON, and what is wrong with it all the same.
pub(crate) struct Parsed<'a> {
    pub(crate) root: Node<'a>,
    /// Faults outside `params`.
    pub(crate) faults: Faults,
    /// Faults inside `params`; their paths begin there.
    pub(crate) params_faults: Faults,
    /// Whether `id` stands twice, so that nobody knows which one is meant.
    pub(crate) id_twice: bool,
}

/// Reads a line; the error says why it is not JSON.
pub(crate) fn parse(text: &str) -> Result<Parsed<'_>, serde_json::Error> {
    let context = Context::default();
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let root = Seed {
        context: &context,
        path: Path::ROOT,
        depth: 0,
        in_params: false,
    }
    .deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(Parsed {
        root,
        faults: context.faults.into_inner(),
        params_faults: context.params_faults.into_inner(),
        id_twice: context.id_twice.get(),
    })
}

/// What all values of a line share while it is read.
#[derive(Default)]
struct Context {
    faults: RefCell<Faults>,
    params_faults: RefCell<Faults>,
    id_twice: Cell<bool>,
    values: Cell<usize>,
    values_over: Cell<bool>,
}

/// Reads one value.
struct Seed<'c> {
    context: &'c Context,
    path: Path<'c>,
    /// Arrays and objects around the value.
    depth: usize,
    in_params: bool,
}

impl<'c> Seed<'c> {
    fn fault(&self, path: &Path<'_>, words: impl FnOnce() -> (String, String)) {
        let faults = if self.in_params {
            &self.context.params_faults
        } else {
            &self.context.faults
        };
        faults.borrow_mut().add(path, words);
    }

    /// Counts values; false says that there are too many.
    fn has_room(&self, values: usize) -> bool {
        let count = self.context.values.get().saturating_add(values);
        self.context.values.set(count);
        if count <= limits::VALUES_MAX {
            return true;
        }
        if !self.context.values_over.replace(true) {
            let max = limits::VALUES_MAX;
            self.fault(&self.path, || {
                (
                    format!("values {max}"),
                    format!(
                        "is where the line comes to more than {max} JSON values, which is the limit"
                    ),
                )
            });
        }
        false
    }

    /// Whether an array or object may stand here.
    fn has_depth(&self) -> bool {
        let max = limits::DEPTH_MAX;
        if self.depth >= max {
            self.fault(&self.path, || {
                (
                    format!("depth {max}"),
                    format!("is nested more than {max} levels deep, which is the limit"),
                )
            });
        }
        self.depth < max
    }

    fn for_item(&'c self, index: usize) -> Seed<'c> {
        Seed {
            path: self.path.index(index),
            depth: self.depth + 1,
            ..*self
        }
    }

    fn for_key(&'c self, key: &'c str) -> Seed<'c> {
        let enters_params = self.depth == 0 && key == "params";
        let path = if enters_params {
            Path::ROOT
        } else {
            self.path.key(key)
        };
        Seed {
            context: self.context,
            path,
            depth: self.depth + 1,
            in_params: self.in_params || enters_params,
        }
    }

    /// Reads the rest of an array in which something other than token ids stands.
    fn mixed<'de, A: SeqAccess<'de>>(
        &self,
        ids: Vec<u32>,
        first: Node<'de>,
        mut seq: A,
    ) -> Result<Node<'de>, A::Error> {
        let mut nodes = Vec::new();
        let mut room = self.has_room(ids.len().saturating_add(1));
        if room {
            nodes.extend(ids.into_iter().map(|id| Node::UInt(u64::from(id))));
            nodes.push(first);
        }
        while room {
            match seq.next_element_seed(self.for_item(nodes.len()))? {
                None => return Ok(Node::Array(nodes)),
                Some(node) => nodes.push(node),
            }
            room = self.has_room(1);
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Node::Dropped)
    }

    /// Records a key that stands twice.
    fn twice(&self, key: &str) {
        if self.depth == 0 && key == "id" {
            self.context.id_twice.set(true);
        }
        let inner = self.for_key(key);
        // `params` that stands twice is a fault of the request, not one inside the params.
        let path = if self.depth == 0 {
            self.path.key(key)
        } else {
            inner.path
        };
        self.fault(&path, || {
            (
                "unique key".to_owned(),
                format!(
                    "stands twice: the key {} is given more than once",
                    quoted(key)
                ),
            )
        });
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Node<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Node<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Node<'de>, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node<'de>, E> {
        Ok(Node::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node<'de>, E> {
        Ok(Node::UInt(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node<'de>, E> {
        Ok(u64::try_from(value).map_or(Node::Int(value), Node::UInt))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node<'de>, E> {
        Ok(Node::Float(value))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Node<'de>, E> {
        Ok(Node::String(Cow::Borrowed(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node<'de>, E> {
        Ok(Node::String(Cow::Owned(value.to_owned())))
    }

    fn visit_string<E>(self, value: String) -> Result<Node<'de>, E> {
        Ok(Node::String(Cow::Owned(value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node<'de>, A::Error> {
        if self.context.values_over.get() || !self.has_depth() {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(Node::Dropped);
        }
        let mut ids = Vec::new();
        loop {
            match seq.next_element_seed(self.for_item(ids.len()))? {
                None => return Ok(Node::Ids(ids)),
                Some(Node::UInt(value)) if value <= u64::from(u32::MAX) => ids.push(value as u32),
                Some(other) => return self.mixed(ids, other, seq),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node<'de>, A::Error> {
        let mut room = !self.context.values_over.get() && self.has_depth();
        let mut entries: Vec<(Cow<'de, str>, Node<'de>)> = Vec::new();
        let mut keys = Keys::default();
        while room {
            let Some(key) = map.next_key_seed(Key)? else {
                return Ok(Node::Object(entries));
            };
            if keys.is_new(&key, &entries) {
                let value = map.next_value_seed(self.for_key(&key))?;
                entries.push((key, value));
            } else {
                self.twice(&key);
                map.next_value::<IgnoredAny>()?;
            }
            // The first fields of a request are read come what may, so that its id is known when its params are over.
            room = (self.depth == 0 && entries.len() < FEW_KEYS) || self.has_room(1);
        }
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Node::Dropped)
    }
}

/// Finds keys that stand twice: by looking through them while they are few, by a set when they are many.
#[derive(Default)]
struct Keys {
    many: HashSet<String>,
}

/// Objects with more keys than this are searched by a set.
const FEW_KEYS: usize = 32;

impl Keys {
    fn is_new(&mut self, key: &str, entries: &[(Cow<'_, str>, Node<'_>)]) -> bool {
        if entries.len() < FEW_KEYS {
            return entries.iter().all(|(other, _)| other != key);
        }
        if self.many.is_empty() {
            self.many
                .extend(entries.iter().map(|(other, _)| other.to_string()));
        }
        self.many.insert(key.to_owned())
    }
}

/// Reads a key, borrowed where it holds no escapes.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(value.to_owned()))
    }
}
