//! The schema of the wire, derived from the types: what the checker enforces and what `--print-schema` prints.

use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::codec::check::Check;
use crate::codec::fault::Path;
use crate::codec::json;
use crate::error::{ErrorCode, ErrorObject, Fault};
use crate::limits;
use crate::method::{IdRule, Method, NOTIFICATIONS};
use crate::request::Id;

/// The schema of a method's params, definitions included.
pub fn params(method: Method) -> Value {
    let mut generator = params_generator();
    let reference = method.params_schema()(&mut generator);
    let mut root = Map::new();
    root.extend(reference.as_object().cloned().unwrap_or_default());
    root.insert(
        "$defs".to_owned(),
        Value::Object(generator.take_definitions(true)),
    );
    Value::Object(root)
}

/// The fields that `generate` takes, in the order of the documentation.
pub fn generate_fields() -> Vec<String> {
    let schema = params(Method::Generate);
    let properties = schema
        .pointer("/$defs/GenerateParams/properties")
        .and_then(Value::as_object);
    properties
        .map(|fields| fields.keys().cloned().collect())
        .unwrap_or_default()
}

/// The schema of every line, in and out, with all definitions. `InputLine` and `OutputLine` are the roots.
pub fn document() -> Value {
    let mut hearing = params_generator();
    let mut saying = results_generator();
    let mut methods = Map::new();
    let mut inputs = Vec::new();
    let mut outputs = vec![error_line(&mut saying)];
    for method in Method::ALL {
        let params = method.params_schema()(&mut hearing).to_value();
        let result = method.result_schema()(&mut saying).to_value();
        inputs.push(request_line(method, &params));
        if method.id_rule() == IdRule::Needed || method == Method::Cancel {
            outputs.push(result_line(&result));
        }
        methods.insert(
            method.name().to_owned(),
            json!({"params": params, "result": result}),
        );
    }
    let mut notifications = Map::new();
    for (name, schema) in NOTIFICATIONS {
        let params = schema(&mut saying).to_value();
        outputs.push(notification_line(name, &params));
        notifications.insert(name.to_owned(), json!({"params": params}));
    }
    hearing.subschema_for::<Id>();
    let mut definitions = Map::new();
    definitions.insert(
        "InputLine".to_owned(),
        json!({"description": "What the worker hears.", "oneOf": inputs}),
    );
    definitions.insert(
        "OutputLine".to_owned(),
        json!({"description": "What the worker says.", "anyOf": outputs}),
    );
    definitions.extend(hearing.take_definitions(true));
    for (name, schema) in saying.take_definitions(true) {
        definitions.entry(name).or_insert(schema);
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The wire of worker-orcd",
        "protocol_version": limits::PROTOCOL_VERSION,
        "methods": methods,
        "notifications": notifications,
        "errors": errors(),
        "limits": limits(),
        "$defs": definitions,
    })
}

/// Holds a JSON text against a definition of [`document`] by its name, such as "Token" or "OutputLine"; for tests. Who has many
/// texts makes [`Definitions`] once. The faults are all that is wrong with it.
pub fn check(definition: &str, text: &str) -> Result<(), Vec<Fault>> {
    let found = Definitions::new().named(definition);
    found.map_err(|fault| vec![fault])?.check(text)
}

/// All definitions of [`document`], for whoever holds many texts against them.
#[derive(Debug)]
pub struct Definitions {
    document: Value,
}

/// One definition, ready to hold texts against it.
#[derive(Debug)]
pub struct Definition {
    check: Check,
}

impl Definitions {
    /// Derives the document from the types.
    pub fn new() -> Self {
        Definitions {
            document: document(),
        }
    }

    /// The definition of this name, such as "Token" or "OutputLine".
    ///
    /// # Errors
    /// When there is none.
    pub fn named(&self, name: &str) -> Result<Definition, Fault> {
        self.compile(json!({"$ref": format!("#/$defs/{name}")}))
            .map_err(|unknown| fault("definition", format!("{name}: {unknown}")))
    }

    /// What the results of a method are held against.
    ///
    /// # Errors
    /// None in fact: every method has a result.
    pub fn result_of(&self, method: Method) -> Result<Definition, Fault> {
        let name = method.name();
        self.compile(self.document["methods"][name]["result"].clone())
            .map_err(|unknown| fault("definition", format!("the result of {name}: {unknown}")))
    }

    /// Whether this version of the protocol has a notification of this name.
    pub fn has_notification(&self, name: &str) -> bool {
        self.document["notifications"].get(name).is_some()
    }

    fn compile(&self, mut root: Value) -> Result<Definition, String> {
        root["$defs"] = self.document["$defs"].clone();
        Check::compile(&root).map(|check| Definition { check })
    }
}

impl Default for Definitions {
    fn default() -> Self {
        Self::new()
    }
}

impl Definition {
    /// Everything that is wrong with a JSON text.
    ///
    /// # Errors
    /// The faults, where there are any.
    pub fn check(&self, text: &str) -> Result<(), Vec<Fault>> {
        let parsed = json::parse(text).map_err(|error| vec![fault("JSON", error.to_string())])?;
        let mut faults = parsed.faults;
        faults.append(parsed.params_faults);
        self.check.run(&parsed.root, &Path::ROOT, &mut faults);
        if faults.is_empty() {
            Ok(())
        } else {
            Err(faults.list)
        }
    }
}

fn fault(constraint: &str, message: String) -> Fault {
    Fault {
        field: String::new(),
        constraint: constraint.to_owned(),
        message,
    }
}

fn errors() -> Map<String, Value> {
    let entry = |code: ErrorCode| {
        (
            code.name().to_owned(),
            json!({"code": code.number(), "retriable": code.retriable()}),
        )
    };
    ErrorCode::ALL.into_iter().map(entry).collect()
}

fn limits() -> Map<String, Value> {
    limits::ALL
        .iter()
        .map(|limit| (limit.name.to_owned(), limit.value.clone().into()))
        .collect()
}

fn request_line(method: Method, params: &Value) -> Value {
    let mut required = vec!["method"];
    if method.id_rule() == IdRule::Needed {
        required.push("id");
    }
    let name = method.name();
    json!({
        "type": "object",
        "properties": {"jsonrpc": {"const": "2.0"}, "id": {"$ref": "#/$defs/Id"}, "method": {"const": name}, "params": params},
        "required": required,
        "additionalProperties": false,
    })
}

fn result_line(result: &Value) -> Value {
    json!({
        "type": "object",
        "properties": {"jsonrpc": {"const": "2.0"}, "id": {"$ref": "#/$defs/Id"}, "result": result},
        "required": ["jsonrpc", "id", "result"],
    })
}

fn error_line(generator: &mut SchemaGenerator) -> Value {
    let error = generator.subschema_for::<ErrorObject>().to_value();
    let id = json!({"anyOf": [{"$ref": "#/$defs/Id"}, {"type": "null"}]});
    json!({
        "type": "object",
        "properties": {"jsonrpc": {"const": "2.0"}, "id": id, "error": error},
        "required": ["jsonrpc", "id", "error"],
    })
}

fn notification_line(name: &str, params: &Value) -> Value {
    json!({
        "type": "object",
        "properties": {"jsonrpc": {"const": "2.0"}, "method": {"const": name}, "params": params},
        "required": ["jsonrpc", "method", "params"],
    })
}

fn params_generator() -> SchemaGenerator {
    settings().for_deserialize().into_generator()
}

fn results_generator() -> SchemaGenerator {
    settings().for_serialize().into_generator()
}

fn settings() -> SchemaSettings {
    SchemaSettings::draft2020_12()
        .with_transform(RecursiveTransform(no_null_for_absent))
        .with_transform(RecursiveTransform(bounds_of_integers))
}

/// A field that may be left out is never null: there is one way to say nothing.
fn no_null_for_absent(schema: &mut Schema) {
    let required = schema.get("required").cloned().unwrap_or_default();
    let required: Vec<&str> = required
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else {
        return;
    };
    for (_, field) in properties
        .iter_mut()
        .filter(|(name, _)| !required.contains(&name.as_str()))
    {
        if let Some(field) = field.as_object_mut() {
            without_null(field);
        }
    }
}

fn without_null(field: &mut Map<String, Value>) {
    if let Some(Value::Array(kinds)) = field.get_mut("type") {
        kinds.retain(|kind| kind != "null");
        if let [kind] = kinds.as_slice() {
            let kind = kind.clone();
            field.insert("type".to_owned(), kind);
        }
    }
    if let Some(Value::Array(branches)) = field.get_mut("anyOf") {
        branches.retain(|branch| branch.get("type").is_none_or(|kind| kind != "null"));
        if let [Value::Object(only)] = branches.as_slice() {
            let only = only.clone();
            field.shift_remove("anyOf");
            for (keyword, value) in only {
                field.entry(keyword).or_insert(value);
            }
        }
    }
}

/// Integers have the bounds of their type where no narrower ones are given.
fn bounds_of_integers(schema: &mut Schema) {
    let (minimum, maximum): (Value, Value) = match schema.get("format").and_then(Value::as_str) {
        Some("uint32") => (0.into(), u32::MAX.into()),
        Some("int32") => (i32::MIN.into(), i32::MAX.into()),
        Some("uint64") => (0.into(), u64::MAX.into()),
        Some("int64") => (i64::MIN.into(), i64::MAX.into()),
        _ => return,
    };
    let object = schema.ensure_object();
    object.entry("minimum").or_insert(minimum);
    object.entry("maximum").or_insert(maximum);
}
