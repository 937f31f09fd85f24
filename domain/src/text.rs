//! Validated text and JSON that commands are made of: parse, don't validate. Events hold plain strings, so a stricter rule tomorrow never stops yesterday's event from
//! loading.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Why a text was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Nothing but white space.
    #[error("must not be empty")]
    Empty,
    /// More than `0` characters.
    #[error("must not be longer than {0} characters")]
    TooLong(usize),
    /// A control character, NUL included.
    #[error("must not contain control characters")]
    Control,
    /// Something else, in words.
    #[error("{0}")]
    Malformed(&'static str),
}

/// One line of text: trimmed, not empty, at most `max` characters (Unicode scalar values), no control characters.
pub fn line(text: &str, max: usize) -> Result<String, TextError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(TextError::Empty);
    }
    if text.chars().count() > max {
        return Err(TextError::TooLong(max));
    }
    if text.chars().any(char::is_control) {
        return Err(TextError::Control);
    }
    Ok(text.to_owned())
}

/// Text of several lines: not empty, at most `max` characters, no control characters but line feeds (made of whatever line ends there were) and tabs.
pub fn block(text: &str, max: usize) -> Result<String, TextError> {
    let text = text.replace("\r\n", "\n");
    if text.trim().is_empty() {
        return Err(TextError::Empty);
    }
    if text.chars().count() > max {
        return Err(TextError::TooLong(max));
    }
    if text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t')) {
        return Err(TextError::Control);
    }
    Ok(text)
}

/// For a field of a merge patch (RFC 7396) that can be changed but not removed: `null` is refused, a missing field leaves things as they are.
pub fn not_null<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// For a field of a merge patch (RFC 7396) that can be removed: `null` removes it, a missing field leaves things as they are.
pub fn removable<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Declares string newtypes that can only be made by a parsing function `fn(&str) -> Result<String, TextError>`.
#[macro_export]
macro_rules! text_types {
    ($($(#[$doc:meta])* $name:ident { max: $max:tt, example: $example:tt, parse: $parse:expr })*) => { $(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String, max_length = $max, example = $example)]
        pub struct $name(String);

        impl $name {
            /// Checks and normalises `text`.
            pub fn parse(text: &str) -> Result<Self, $crate::text::TextError> {
                let parse: fn(&str) -> Result<String, $crate::text::TextError> = $parse;
                parse(text).map(Self)
            }

            /// The text.
            pub fn as_str(&self) -> &str { &self.0 }
        }

        impl TryFrom<String> for $name {
            type Error = $crate::text::TextError;
            fn try_from(text: String) -> Result<Self, Self::Error> { Self::parse(&text) }
        }

        impl From<$name> for String {
            fn from(text: $name) -> Self { text.0 }
        }
    )* };
}

text_types! {
    /// What people call something.
    DisplayName { max: 200, example: "Acme GmbH", parse: |t| line(t, 200) }
    /// A reason given by a person, kept in the history.
    Reason { max: 500, example: "invoice 2041 unpaid", parse: |t| line(t, 500) }
    /// An e-mail address as typed; checked for its shape only, since nothing but a mail proves one.
    Email { max: 254, example: "ada@example.com", parse: |t| {
        let text = line(t, 254)?;
        // Letters that only look like others would make two addresses of one, or one of two.
        if !text.is_ascii() {
            return Err(TextError::Malformed("must be written in ASCII; a domain in another script as punycode"));
        }
        match text.rsplit_once('@') {
            Some((local, host)) if !local.is_empty() && host.contains('.') && !host.starts_with('.') && !host.ends_with('.') && !text.contains(char::is_whitespace) => Ok(text),
            _ => Err(TextError::Malformed("must be an e-mail address")),
        }
    } }
    /// Where a secret is kept, such as `vault:llm/acme` or `env:LLM_KEY`; never the secret.
    SecretRef { max: 300, example: "vault:llm/acme", parse: |t| {
        let text = line(t, 300)?;
        match text.split_once(':') {
            Some(("vault" | "env" | "file" | "aws-sm" | "gcp-sm" | "azure-kv" | "k8s", path)) if !path.is_empty() => Ok(text),
            _ => Err(TextError::Malformed("must be a reference <vault|env|file|aws-sm|gcp-sm|azure-kv|k8s>:<path>, never the secret itself")),
        }
    } }
    /// A word to file things under: lower-case letters and digits in words joined by single hyphens.
    Tag { max: 50, example: "billing", parse: |t| slug(t, 1, 50) }
    /// The code of a plan.
    PlanCode { max: 40, example: "growth", parse: |t| slug(t, 1, 40) }
}

/// Lower-case words joined by single hyphens: `^[a-z0-9](-?[a-z0-9])*$`.
pub fn slug(text: &str, min: usize, max: usize) -> Result<String, TextError> {
    let shape = text.split('-').all(|word| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
    if text.is_empty() {
        Err(TextError::Empty)
    } else if text.len() > max {
        Err(TextError::TooLong(max))
    } else if !shape || text.len() < min {
        Err(TextError::Malformed("must be lower-case letters and digits in words joined by single hyphens, of the minimum length"))
    } else {
        Ok(text.to_owned())
    }
}

/// The most a free-form JSON object may take, in bytes of compact JSON.
pub const JSON_OBJECT_MAX: usize = 64 * 1024;

/// A free-form JSON object from outside: at most [`JSON_OBJECT_MAX`] bytes and 16 levels deep, no NUL, and no key that begins with `$` (those are Tenure's own, see
/// [`crate::personal`]).
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
            Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
        }
    }
}

impl TryFrom<Value> for JsonObject {
    type Error = TextError;

    fn try_from(value: Value) -> Result<Self, Self::Error> {
        Self::check(&value, 16)?;
        if value.to_string().len() > JSON_OBJECT_MAX {
            return Err(TextError::Malformed("must not be larger than 64 KiB"));
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
