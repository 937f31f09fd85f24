//! JSON from outside: read without loss, and in the one form in which the tables hold it and give it back.
//!
//! A table of PostgreSQL holds a number of JSON as a decimal (`numeric`): `2.561422288066971e16` becomes `25614222880669710`, `100.0` is read back as `100`. So numbers have one
//! canonical form here, and numbers that are equal are equal in every comparison: what is written as an integer and fits into 64 bits is one, everything else is the nearest
//! IEEE 754 double (RFC 7493 section 2.2).

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};

use crate::text::TextError;

/// The most a free-form JSON object may take, in bytes: of compact JSON whose numbers are written out in decimal, as a table holds them.
pub const JSON_OBJECT_MAX: usize = 64 * 1024;
/// How deep a free-form JSON object may be nested.
pub const JSON_DEPTH_MAX: usize = 16;
/// The bound of a number's magnitude: beyond every single-precision float, and short when it is written out.
pub const NUMBER_MAX: f64 = 1e64;
/// The least magnitude of a number that is not zero.
pub const NUMBER_MIN: f64 = 1e-64;

/// Reads a field that may be left out, and that `null` is no value of: where leaving it out stands for a number, `null` would count as that number.
pub fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Why a text is not JSON, or none that can be held.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// Not JSON (RFC 8259).
    #[error("the body is not JSON: {0}")]
    Syntax(String),
    /// A value that cannot be held.
    #[error("{error}")]
    Value {
        /// Its JSON pointer (RFC 6901).
        pointer: String,
        /// What is wrong with it.
        error: TextError,
    },
}

/// Reads JSON, and refuses what would be read in two ways or cannot be held: a name that stands twice in an object, NUL, text that is not Unicode.
pub fn parse(bytes: &[u8]) -> Result<Value, JsonError> {
    let not_unicode =
        |pointer: String| JsonError::Value { pointer, error: TextError::Malformed("must be Unicode text: UTF-8, surrogates in pairs") };
    let text = std::str::from_utf8(bytes).map_err(|_| not_unicode(String::new()))?;
    let (path, fault) = (RefCell::new(Vec::new()), RefCell::new(None));
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = Strict { path: &path, fault: &fault }.deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    match value {
        Ok(value) => match fault.take() {
            Some((pointer, error)) => Err(JsonError::Value { pointer, error }),
            None => Ok(value),
        },
        // The parser has one kind of error for all that is no JSON; a surrogate without its pair is JSON, but no text.
        Err(error) if error.to_string().contains("surrogate") || error.to_string().contains("end of hex escape") => {
            Err(not_unicode(pointer(&path.borrow())))
        }
        Err(error) => Err(JsonError::Syntax(error.to_string())),
    }
}

/// A JSON Pointer (RFC 6901) of these steps.
fn pointer(path: &[String]) -> String {
    path.iter().fold(String::new(), |pointer, step| pointer + "/" + &step.replace('~', "~0").replace('/', "~1"))
}

/// Builds a value, and remembers the first fault in it.
#[derive(Clone, Copy)]
struct Strict<'a> {
    path: &'a RefCell<Vec<String>>,
    fault: &'a RefCell<Option<(String, TextError)>>,
}

impl Strict<'_> {
    fn report(self, error: TextError) {
        let path = self.path.borrow();
        let pointer = pointer(&path);
        self.fault.borrow_mut().get_or_insert((pointer, error));
    }

    fn text(self, text: &str) {
        if text.contains('\0') {
            self.report(TextError::Control);
        }
    }

    fn within<T, E>(self, step: String, read: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        self.path.borrow_mut().push(step);
        let value = read()?;
        self.path.borrow_mut().pop();
        Ok(value)
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        self.text(value);
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = self.within(all.len().to_string(), || items.next_element_seed(self))? {
            all.push(item);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let value = self.within(name.clone(), || {
                self.text(&name);
                if all.contains_key(&name) {
                    self.report(TextError::Malformed("must not stand twice in an object"));
                }
                members.next_value_seed(self)
            })?;
            all.insert(name, value);
        }
        Ok(Value::Object(all))
    }
}

/// A number in its canonical form: the same value always looks the same.
fn canonical_number(number: &Number) -> Number {
    let Some(float) = number.as_f64().filter(|_| number.is_f64()) else { return number.clone() };
    // The shortest decimal that denotes the double, written out: as a table holds it. Negative zero is zero.
    let text = if float == 0.0 { "0".to_owned() } else { float.to_string() };
    let integer = text.parse::<i64>().map(Number::from).or_else(|_| text.parse::<u64>().map(Number::from));
    integer.unwrap_or_else(|_| number.clone())
}

/// Puts all numbers of a value into their canonical form.
pub fn canonicalise(value: &mut Value) {
    match value {
        Value::Number(number) => *number = canonical_number(number),
        Value::Array(items) => items.iter_mut().for_each(canonicalise),
        Value::Object(members) => members.values_mut().for_each(canonicalise),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// For a JSON field of an event: events that were stored before numbers had a canonical form are folded as those are that have it.
pub fn stored<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    let mut value = Value::deserialize(deserializer)?;
    canonicalise(&mut value);
    Ok(value)
}

/// How many bytes a value takes as compact JSON whose numbers are written out in decimal, as a table holds them.
pub fn size(value: &Value) -> usize {
    match value {
        Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(float) => float.to_string().len(),
            None => number.to_string().len(),
        },
        Value::Array(items) => 1 + items.len().max(1) + items.iter().map(size).sum::<usize>(),
        Value::Object(members) => {
            1 + members.len().max(1) + members.iter().map(|(name, value)| text_size(name) + 1 + size(value)).sum::<usize>()
        }
        Value::String(text) => text_size(text),
        Value::Null | Value::Bool(_) => value.to_string().len(),
    }
}

/// How many bytes a text takes between quotes (RFC 8259 section 7).
fn text_size(text: &str) -> usize {
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' | 0x08 | 0x09 | 0x0A | 0x0C | 0x0D => 2,
        0x00..=0x1F => 6,
        _ => 1,
    };
    2 + text.bytes().map(escaped).sum::<usize>()
}

/// A free-form JSON object from outside, its numbers in their canonical form: at most [`JSON_OBJECT_MAX`] bytes and [`JSON_DEPTH_MAX`] levels deep, numbers between 1e-64 and
/// 1e64, no NUL, and no name that begins with `$` (those are Tenure's own, see [`crate::personal`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(try_from = "Value", into = "Value")]
#[schema(value_type = Object)]
pub struct JsonObject(Map<String, Value>);

impl JsonObject {
    /// The object.
    pub fn into_value(self) -> Value {
        Value::Object(self.0)
    }

    fn check(value: &Value, depth: usize) -> Result<(), TextError> {
        let text = |t: &str| if t.contains('\0') { Err(TextError::Control) } else { Ok(()) };
        if depth == 0 {
            return Err(TextError::Malformed("must not be nested deeper than 16 levels"));
        }
        match value {
            Value::Object(map) => map.iter().try_for_each(|(key, value)| {
                text(key)?;
                if key.starts_with('$') {
                    return Err(TextError::Malformed("keys must not begin with `$`"));
                }
                Self::check(value, depth - 1)
            }),
            Value::Array(items) => items.iter().try_for_each(|item| Self::check(item, depth - 1)),
            Value::String(s) => text(s),
            Value::Number(number) => match number.as_f64().map(f64::abs) {
                Some(size) if size > 0.0 && !(NUMBER_MIN..NUMBER_MAX).contains(&size) => {
                    Err(TextError::Malformed("numbers must be 0 or of a magnitude between 1e-64 and 1e64"))
                }
                Some(_) | None => Ok(()),
            },
            Value::Null | Value::Bool(_) => Ok(()),
        }
    }
}

impl TryFrom<Value> for JsonObject {
    type Error = TextError;

    fn try_from(mut value: Value) -> Result<Self, Self::Error> {
        Self::check(&value, JSON_DEPTH_MAX)?;
        canonicalise(&mut value);
        if size(&value) > JSON_OBJECT_MAX {
            return Err(TextError::Malformed("must not be larger than 64 KiB, its numbers written out in decimal"));
        }
        match value {
            Value::Object(map) => Ok(Self(map)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                Err(TextError::Malformed("must be an object"))
            }
        }
    }
}

impl From<JsonObject> for Value {
    fn from(object: JsonObject) -> Self {
        object.into_value()
    }
}
