//! Rows as JSON text. The projector writes each row's text once, beside its columns; queries pass it on without parsing it.

use std::marker::PhantomData;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::query::QueryError;

/// What of a row `t` is selected: its text, or its columns as JSON where it was written before rows had a text.
pub(crate) const COLUMNS: &str = "t.doc, case when t.doc is null then to_json(t)::text end";

/// The JSON text of a `T`.
#[derive(Debug, PartialEq, Eq)]
pub struct Doc<T> {
    text: String,
    of: PhantomData<fn() -> T>,
}

impl<T> Clone for Doc<T> {
    fn clone(&self) -> Self {
        Self::from_text(self.text.clone())
    }
}

impl<T> Doc<T> {
    fn from_text(text: String) -> Self {
        Self { text, of: PhantomData }
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text, to be sent.
    pub fn into_text(self) -> String {
        self.text
    }

    /// The member `version` of the object.
    pub fn version(&self) -> Result<i64, QueryError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: i64,
        }
        Ok(serde_json::from_str::<Versioned>(&self.text)?.version)
    }

    /// The same object with the members of another one after its own. Neither is parsed.
    pub fn with<U>(mut self, more: &impl Serialize) -> Result<Doc<U>, QueryError> {
        let more = serde_json::to_string(more)?;
        if more.len() > 2 {
            self.text.pop();
            if self.text.len() > 1 {
                self.text.push(',');
            }
            self.text.push_str(&more[1..]);
        }
        Ok(Doc::from_text(self.text))
    }
}

impl<T: Serialize> Doc<T> {
    /// The text of a row.
    pub fn of(row: &T) -> Result<Self, QueryError> {
        Ok(Self::from_text(serde_json::to_string(row)?))
    }
}

impl<T: DeserializeOwned> Doc<T> {
    /// The row.
    pub fn read(&self) -> Result<T, QueryError> {
        Ok(serde_json::from_str(&self.text)?)
    }
}

impl<T: DeserializeOwned + Serialize> Doc<T> {
    /// The text of a row as it was selected by [`COLUMNS`].
    pub(crate) fn selected(doc: Option<String>, columns: Option<&str>) -> Result<Self, QueryError> {
        match (doc, columns) {
            (Some(doc), _) => Ok(Self::from_text(doc)),
            (None, columns) => Self::of(&serde_json::from_str(columns.unwrap_or("null"))?),
        }
    }
}
