//! Holds a value against the schema that is derived from its type and lists everything that is wrong at once.
//!
//! A schema is compiled when it is first used. A keyword that the checker does not know is refused there, so that
//! no attribute on a field can stand without being enforced.

use serde_json::Value;

use super::fault::{Faults, Path, quoted};
use super::json::Node;

/// A compiled schema.
#[derive(Debug, Default)]
pub(crate) struct Check {
    /// Kinds that are taken; empty: all.
    kinds: Vec<Kind>,
    /// Compare as the 32 bits that the field has, so that what rounds to a bound is at the bound.
    float32: bool,
    bounds: Vec<Bound>,
    min_chars: u64,
    max_chars: Option<u64>,
    max_bytes: Option<u64>,
    /// Words of which the string has to be one; empty: any.
    words: Vec<String>,
    /// What a boolean has to be.
    boolean: Option<bool>,
    min_items: u64,
    max_items: Option<u64>,
    items: Option<Box<Check>>,
    fields: Vec<(String, Check)>,
    required: Vec<String>,
    /// No fields but those listed.
    closed: bool,
    /// What fields that are not listed have to be.
    others: Option<Box<Check>>,
    max_fields: Option<u64>,
    max_key_bytes: Option<u64>,
    /// Of these fields exactly one; empty: no such rule.
    one_of_fields: Vec<String>,
    /// A field, and those that have to stand beside it.
    companions: Vec<(String, Vec<String>)>,
    /// Alternatives; empty: none.
    branches: Vec<Check>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Null,
    Boolean,
    Integer,
    Number,
    String,
    Array,
    Object,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Minimum,
    Maximum,
    ExclusiveMinimum,
    ExclusiveMaximum,
}

#[derive(Debug)]
struct Bound {
    side: Side,
    /// The bound where it is an integer: compared without rounding.
    integer: Option<i128>,
    value: f64,
}

/// How deep definitions may refer to each other; a schema that refers to itself comes to this.
const REFERENCES_MAX: usize = 32;

impl Check {
    /// Compiles a schema; the error names what the checker does not know.
    pub(crate) fn compile(schema: &Value) -> Result<Check, String> {
        Check::compile_at(schema, schema, REFERENCES_MAX)
    }

    fn compile_at(schema: &Value, root: &Value, budget: usize) -> Result<Check, String> {
        let budget = budget.checked_sub(1).ok_or("the schema refers to itself")?;
        let mut check = Check::default();
        let object = match schema {
            Value::Bool(true) => return Ok(check),
            Value::Object(object) => object,
            other => return Err(format!("a schema that is no object: {other}")),
        };
        for (keyword, value) in object {
            let inner = |schema: &Value| Check::compile_at(schema, root, budget);
            match keyword.as_str() {
                "$schema" | "$defs" | "title" | "description" | "default" => {}
                "$ref" => check.refer(inner(resolve(value, root)?)?)?,
                "type" => check.kinds = kinds(value)?,
                "format" => check.float32 = value == "float",
                "minimum" => check.bounds.push(Bound::new(Side::Minimum, value)?),
                "maximum" => check.bounds.push(Bound::new(Side::Maximum, value)?),
                "exclusiveMinimum" => check
                    .bounds
                    .push(Bound::new(Side::ExclusiveMinimum, value)?),
                "exclusiveMaximum" => check
                    .bounds
                    .push(Bound::new(Side::ExclusiveMaximum, value)?),
                "minLength" => check.min_chars = count(keyword, value)?,
                "maxLength" => check.max_chars = Some(count(keyword, value)?),
                "x-max-bytes" => check.max_bytes = Some(count(keyword, value)?),
                "const" => check.constant(value)?,
                "enum" => check.words = words(value)?,
                "minItems" => check.min_items = count(keyword, value)?,
                "maxItems" => check.max_items = Some(count(keyword, value)?),
                "items" => check.items = Some(Box::new(inner(value)?)),
                "properties" => {
                    for (name, schema) in value.as_object().ok_or("properties is no object")? {
                        check.fields.push((name.clone(), inner(schema)?));
                    }
                }
                "required" => check.required = words(value)?,
                "additionalProperties" => match value.as_bool() {
                    Some(open) => check.closed = !open,
                    None => check.others = Some(Box::new(inner(value)?)),
                },
                "maxProperties" => check.max_fields = Some(count(keyword, value)?),
                "x-max-key-bytes" => check.max_key_bytes = Some(count(keyword, value)?),
                "dependentRequired" => {
                    for (name, others) in
                        value.as_object().ok_or("dependentRequired is no object")?
                    {
                        check.companions.push((name.clone(), words(others)?));
                    }
                }
                "oneOf" | "anyOf" => {
                    let branches = value.as_array().ok_or("alternatives are no array")?;
                    check.alternatives(branches.iter().map(inner).collect::<Result<_, _>>()?);
                }
                other => return Err(format!("the keyword {other}")),
            }
        }
        Ok(check)
    }

    fn constant(&mut self, value: &Value) -> Result<(), String> {
        match value.as_bool() {
            Some(boolean) => {
                self.kinds = vec![Kind::Boolean];
                self.boolean = Some(boolean);
            }
            None => self.words = vec![word(value)?],
        }
        Ok(())
    }

    /// Takes over a definition; beside `$ref` only words for people stand.
    fn refer(&mut self, definition: Check) -> Result<(), String> {
        let own = self.kinds.is_empty()
            && self.bounds.is_empty()
            && self.fields.is_empty()
            && self.branches.is_empty();
        *self = definition;
        own.then_some(())
            .ok_or_else(|| "a $ref beside other keywords".to_owned())
    }

    /// Alternatives that are all words become a list of words, those that each ask for a field become a rule about fields.
    fn alternatives(&mut self, branches: Vec<Check>) {
        if branches.iter().all(|branch| !branch.words.is_empty()) {
            self.kinds = vec![Kind::String];
            self.words = branches
                .into_iter()
                .flat_map(|branch| branch.words)
                .collect();
        } else if branches
            .iter()
            .all(|branch| branch.kinds.is_empty() && branch.required.len() == 1)
        {
            self.one_of_fields = branches
                .into_iter()
                .flat_map(|branch| branch.required)
                .collect();
        } else {
            self.branches = branches;
        }
    }

    /// Adds everything that is wrong with `node`.
    pub(crate) fn run(&self, node: &Node<'_>, path: &Path<'_>, faults: &mut Faults) {
        if !self.branches.is_empty() {
            return self.run_branches(node, path, faults);
        }
        if !self.takes(node) {
            return wrong_kind(&self.kinds, node, path, faults);
        }
        match node {
            Node::Null | Node::Dropped => {}
            Node::Bool(value) => self.run_boolean(*value, path, faults),
            Node::UInt(value) => self.run_integer(i128::from(*value), path, faults),
            Node::Int(value) => self.run_integer(i128::from(*value), path, faults),
            Node::Float(value) => self.run_float(*value, path, faults),
            Node::String(text) => self.run_string(text, path, faults),
            Node::Ids(ids) => self.run_ids(ids, path, faults),
            Node::Array(nodes) => self.run_array(nodes, path, faults),
            Node::Object(entries) => self.run_object(entries, path, faults),
        }
    }

    fn takes(&self, node: &Node<'_>) -> bool {
        let kind = |kind| self.kinds.contains(&kind);
        self.kinds.is_empty()
            || match node {
                Node::Null => kind(Kind::Null),
                Node::Bool(_) => kind(Kind::Boolean),
                Node::UInt(_) | Node::Int(_) => kind(Kind::Integer) || kind(Kind::Number),
                Node::Float(_) => kind(Kind::Number),
                Node::String(_) => kind(Kind::String),
                Node::Ids(_) | Node::Array(_) => kind(Kind::Array),
                Node::Object(_) => kind(Kind::Object),
                Node::Dropped => true,
            }
    }

    /// One of the branches that take this kind of value has to be content; the faults are those of the branch that has fewest.
    fn run_branches(&self, node: &Node<'_>, path: &Path<'_>, faults: &mut Faults) {
        let tried = self
            .branches
            .iter()
            .filter(|branch| branch.takes(node))
            .map(|branch| {
                let mut faults = Faults::default();
                branch.run(node, path, &mut faults);
                faults
            });
        match tried.min_by_key(|faults| faults.count) {
            Some(fewest) => faults.append(fewest),
            None => {
                let kinds: Vec<Kind> = self
                    .branches
                    .iter()
                    .flat_map(|branch| branch.kinds.iter().copied())
                    .collect();
                wrong_kind(&kinds, node, path, faults);
            }
        }
    }

    fn run_boolean(&self, value: bool, path: &Path<'_>, faults: &mut Faults) {
        if let Some(wanted) = self.boolean.filter(|wanted| *wanted != value) {
            faults.add(path, || {
                (
                    format!("const {wanted}"),
                    format!("is {value}; of the two only {wanted} means something here"),
                )
            });
        }
    }

    fn run_integer(&self, value: i128, path: &Path<'_>, faults: &mut Faults) {
        for bound in &self.bounds {
            let holds = match bound.integer {
                Some(limit) => bound.side.holds(&value, &limit),
                None => bound.side.holds(&(value as f64), &bound.value),
            };
            if !holds {
                faults.add(path, || bound.broken(&value.to_string()));
            }
        }
    }

    fn run_float(&self, value: f64, path: &Path<'_>, faults: &mut Faults) {
        let compared = if self.float32 {
            f64::from(value as f32)
        } else {
            value
        };
        for bound in &self.bounds {
            if !bound.side.holds(&compared, &bound.value) {
                faults.add(path, || bound.broken(&format!("{value:?}")));
            }
        }
    }

    fn run_string(&self, text: &str, path: &Path<'_>, faults: &mut Faults) {
        if !self.words.is_empty() && !self.words.iter().any(|word| word == text) {
            let wanted = self
                .words
                .iter()
                .map(|word| format!("{word:?}"))
                .collect::<Vec<_>>()
                .join(", ");
            faults.add(path, || {
                (
                    format!("one of {wanted}"),
                    format!("is {}; it can be {wanted}", quoted(text)),
                )
            });
        }
        let bytes = text.len() as u64;
        if let Some(max) = self.max_bytes.filter(|&max| bytes > max) {
            faults.add(path, || {
                (
                    format!("bytes {max}"),
                    format!("is {bytes} bytes long; at most {max} are allowed"),
                )
            });
        }
        // Counting characters of a long text costs; bytes bound them from above.
        if bytes < self.min_chars || self.max_chars.is_some_and(|max| bytes > max) {
            self.run_length(text.chars().count() as u64, path, faults);
        }
    }

    fn run_length(&self, chars: u64, path: &Path<'_>, faults: &mut Faults) {
        let min = self.min_chars;
        if chars == 0 && min == 1 {
            faults.add(path, || {
                (
                    "minLength 1".to_owned(),
                    "is empty; at least one character is needed".to_owned(),
                )
            });
        } else if chars < min {
            faults.add(path, || {
                (
                    format!("minLength {min}"),
                    format!("is {chars} characters long; at least {min} are needed"),
                )
            });
        }
        if let Some(max) = self.max_chars.filter(|&max| chars > max) {
            faults.add(path, || {
                (
                    format!("maxLength {max}"),
                    format!("is {chars} characters long; at most {max} are allowed"),
                )
            });
        }
    }

    fn run_item_count(&self, items: usize, path: &Path<'_>, faults: &mut Faults) {
        let (items, min) = (items as u64, self.min_items);
        if items < min {
            faults.add(path, || {
                (
                    format!("minItems {min}"),
                    format!("has {items} entries; at least {min} is needed"),
                )
            });
        }
        if let Some(max) = self.max_items.filter(|&max| items > max) {
            faults.add(path, || {
                (
                    format!("maxItems {max}"),
                    format!("has {items} entries; at most {max} are allowed"),
                )
            });
        }
    }

    fn run_ids(&self, ids: &[u32], path: &Path<'_>, faults: &mut Faults) {
        self.run_item_count(ids.len(), path, faults);
        let Some(items) = self
            .items
            .as_deref()
            .filter(|items| !items.takes_every_u32())
        else {
            return;
        };
        for (index, id) in ids.iter().enumerate() {
            items.run(&Node::UInt(u64::from(*id)), &path.index(index), faults);
        }
    }

    /// Whether any integer of 32 bits without sign is right, so that a long array of them need not be looked at.
    fn takes_every_u32(&self) -> bool {
        let ends = [0, i128::from(u32::MAX)];
        let holds = |bound: &Bound| {
            bound
                .integer
                .is_some_and(|limit| ends.iter().all(|end| bound.side.holds(end, &limit)))
        };
        self.branches.is_empty() && self.takes(&Node::UInt(0)) && self.bounds.iter().all(holds)
    }

    fn run_array(&self, nodes: &[Node<'_>], path: &Path<'_>, faults: &mut Faults) {
        self.run_item_count(nodes.len(), path, faults);
        if let Some(items) = &self.items {
            for (index, node) in nodes.iter().enumerate() {
                items.run(node, &path.index(index), faults);
            }
        }
    }

    fn run_entry_count(&self, entries: usize, path: &Path<'_>, faults: &mut Faults) {
        if let Some(max) = self.max_fields.filter(|&max| entries as u64 > max) {
            faults.add(path, || {
                (
                    format!("maxProperties {max}"),
                    format!("has {entries} entries; at most {max} are allowed"),
                )
            });
        }
    }

    fn run_key(&self, key: &str, path: &Path<'_>, faults: &mut Faults) {
        let bytes = key.len() as u64;
        if let Some(max) = self.max_key_bytes.filter(|&max| bytes > max) {
            faults.add(path, || {
                (
                    format!("bytes {max}"),
                    format!("has a key of {bytes} bytes; at most {max} are allowed"),
                )
            });
        }
    }

    fn run_object(
        &self,
        entries: &[(std::borrow::Cow<'_, str>, Node<'_>)],
        path: &Path<'_>,
        faults: &mut Faults,
    ) {
        let has = |name: &String| entries.iter().any(|(key, _)| key == name);
        self.run_entry_count(entries.len(), path, faults);
        for (key, node) in entries {
            let known = self.fields.iter().find(|(name, _)| name == key);
            match known.map(|(_, check)| check).or(self.others.as_deref()) {
                Some(check) => {
                    self.run_key(key, &path.key(key), faults);
                    check.run(node, &path.key(key), faults);
                }
                None if self.closed => {
                    faults.add(&path.key(key), || {
                        (
                            "unknown".to_owned(),
                            "is no field that is known here".to_owned(),
                        )
                    });
                }
                None => {}
            }
        }
        for name in self.required.iter().filter(|name| !has(name)) {
            faults.add(&path.key(name), || {
                ("required".to_owned(), "is missing".to_owned())
            });
        }
        for (name, others) in self.companions.iter().filter(|(name, _)| has(name)) {
            for other in others.iter().filter(|other| !has(other)) {
                faults.add(&path.key(name), || {
                    (
                        format!("only with {other}"),
                        format!("is only taken together with {other}"),
                    )
                });
            }
        }
        self.run_one_of(has, path, faults);
    }

    /// Whether exactly one of some fields is there.
    fn run_one_of(&self, has: impl Fn(&String) -> bool, path: &Path<'_>, faults: &mut Faults) {
        let given: Vec<&str> = self
            .one_of_fields
            .iter()
            .filter(|name| has(name))
            .map(String::as_str)
            .collect();
        if let (Some(first), true) = (self.one_of_fields.first(), given.len() != 1) {
            let names = self.one_of_fields.join(", ");
            let found = if given.is_empty() {
                "none is".to_owned()
            } else {
                format!("{} are", given.join(" and "))
            };
            let field = path.key(given.first().unwrap_or(&first.as_str()));
            faults.add_sentence(&field, |_| {
                (
                    format!("exactly one of {names}"),
                    format!("exactly one of {names} has to be given; {found}"),
                )
            });
        }
    }
}

impl Side {
    fn holds<T: PartialOrd>(self, value: &T, limit: &T) -> bool {
        match self {
            Side::Minimum => value >= limit,
            Side::Maximum => value <= limit,
            Side::ExclusiveMinimum => value > limit,
            Side::ExclusiveMaximum => value < limit,
        }
    }
}

impl Bound {
    fn new(side: Side, value: &Value) -> Result<Bound, String> {
        let integer = value
            .as_i64()
            .map(i128::from)
            .or_else(|| value.as_u64().map(i128::from));
        let float = value
            .as_f64()
            .ok_or_else(|| format!("a bound that is no number: {value}"))?;
        Ok(Bound {
            side,
            integer,
            value: float,
        })
    }

    fn broken(&self, found: &str) -> (String, String) {
        let limit = self
            .integer
            .map_or_else(|| self.value.to_string(), |limit| limit.to_string());
        match self.side {
            Side::Minimum => (
                format!("minimum {limit}"),
                format!("is {found}; at least {limit} is needed"),
            ),
            Side::Maximum => (
                format!("maximum {limit}"),
                format!("is {found}; at most {limit} is allowed"),
            ),
            Side::ExclusiveMinimum => (
                format!("above {limit}"),
                format!("is {found}; it has to be above {limit}"),
            ),
            Side::ExclusiveMaximum => (
                format!("below {limit}"),
                format!("is {found}; it has to be below {limit}"),
            ),
        }
    }
}

/// Numbers that an integer of 64 bits cannot hold, whichever sign it has.
const BEYOND_INTEGERS: f64 = 9_223_372_036_854_775_808.0;

/// Says what was found and what is wanted. The value itself is never quoted: it may be part of a prompt.
pub(super) fn wrong_kind_words(wanted: &str, node: &Node<'_>) -> (String, String) {
    let said = match node {
        Node::Null => {
            format!("is null; {wanted} is wanted (an optional field is left out, it is never null)")
        }
        Node::Float(value)
            if wanted.contains("integer")
                && value.fract() == 0.0
                && value.abs() >= BEYOND_INTEGERS =>
        {
            format!("is a number too large for an integer of 64 bits; {wanted} is wanted")
        }
        Node::Float(_) if wanted.contains("integer") => {
            format!(
                "is a number with a decimal point, an exponent or a negative zero; {wanted} is wanted"
            )
        }
        other => format!("is {}; {wanted} is wanted", found(other)),
    };
    let bare: Vec<&str> = wanted
        .split(' ')
        .filter(|word| !matches!(*word, "a" | "an"))
        .collect();
    (format!("type {}", bare.join(" ")), said)
}

fn wrong_kind(kinds: &[Kind], node: &Node<'_>, path: &Path<'_>, faults: &mut Faults) {
    faults.add(path, || {
        let wanted = kinds
            .iter()
            .map(|kind| kind.words())
            .collect::<Vec<_>>()
            .join(" or ");
        wrong_kind_words(&wanted, node)
    });
}

fn found(node: &Node<'_>) -> &'static str {
    match node {
        Node::Null => "null",
        Node::Bool(_) => "a boolean",
        Node::UInt(_) | Node::Int(_) | Node::Float(_) => "a number",
        Node::String(_) => "a string",
        Node::Ids(_) | Node::Array(_) => "an array",
        Node::Object(_) => "an object",
        Node::Dropped => "over a limit",
    }
}

impl Kind {
    fn words(self) -> &'static str {
        match self {
            Kind::Null => "null",
            Kind::Boolean => "a boolean",
            Kind::Integer => "an integer",
            Kind::Number => "a number",
            Kind::String => "a string",
            Kind::Array => "an array",
            Kind::Object => "an object",
        }
    }
}

fn kinds(value: &Value) -> Result<Vec<Kind>, String> {
    let names = if value.is_string() {
        vec![word(value)?]
    } else {
        words(value)?
    };
    names
        .iter()
        .map(|name| match name.as_str() {
            "null" => Ok(Kind::Null),
            "boolean" => Ok(Kind::Boolean),
            "integer" => Ok(Kind::Integer),
            "number" => Ok(Kind::Number),
            "string" => Ok(Kind::String),
            "array" => Ok(Kind::Array),
            "object" => Ok(Kind::Object),
            other => Err(format!("the type {other}")),
        })
        .collect()
}

fn resolve<'s>(reference: &Value, root: &'s Value) -> Result<&'s Value, String> {
    let pointer = reference.as_str().and_then(|text| text.strip_prefix('#'));
    pointer
        .and_then(|pointer| root.pointer(pointer))
        .ok_or_else(|| format!("the reference {reference}"))
}

fn count(keyword: &str, value: &Value) -> Result<u64, String> {
    value
        .as_u64()
        .ok_or_else(|| format!("{keyword} that is no count: {value}"))
}

fn word(value: &Value) -> Result<String, String> {
    value
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| format!("a word that is no string: {value}"))
}

fn words(value: &Value) -> Result<Vec<String>, String> {
    value
        .as_array()
        .ok_or("words that are no array")?
        .iter()
        .map(word)
        .collect()
}
