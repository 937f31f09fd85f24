//! Statements that are put together from parts, with values that are no part of their text.

use std::borrow::Cow;

use chrono::{DateTime, NaiveDate, Utc};
use domain::{TenantId, UserId};
use uuid::Uuid;

use crate::row::COLUMNS;

/// A value in a statement.
pub trait Value {
    /// Its SQL type.
    const KIND: &'static str;

    /// It as PostgreSQL reads it.
    fn text(&self) -> String;
}

macro_rules! values {
    ($($type:ty, $kind:literal, |$value:ident| $text:expr;)*) => {
        $(impl Value for $type {
            const KIND: &'static str = $kind;

            fn text(&self) -> String {
                let $value = self;
                $text
            }
        })*
    };
}

values! {
    Uuid, "uuid", |value| value.to_string();
    TenantId, "uuid", |value| value.0.to_string();
    UserId, "uuid", |value| value.0.to_string();
    str, "text", |value| value.to_owned();
    String, "text", |value| value.clone();
    bool, "boolean", |value| value.to_string();
    i64, "bigint", |value| value.to_string();
    NaiveDate, "date", |value| value.to_string();
    DateTime<Utc>, "timestamptz", |value| value.to_rfc3339();
}

impl<V: Value + ?Sized> Value for &V {
    const KIND: &'static str = V::KIND;

    fn text(&self) -> String {
        V::text(self)
    }
}

/// A statement that selects rows, for [`crate::Read`]. All values go beside its text, as one array of texts.
#[derive(Clone, Debug, Default)]
pub struct Sql {
    text: String,
    values: Vec<String>,
    search: Option<Search>,
}

/// A condition that is looked up where it holds for few rows, and tried row by row where it holds for many.
#[derive(Clone, Debug)]
struct Search {
    /// The function of the schema `read` that tells, and what it is asked about.
    probe: &'static str,
    probed: String,
    /// Where in the text the condition stands, and its two forms.
    at: usize,
    few: String,
    many: String,
}

/// The parts of a statement.
pub(crate) struct Parts<'a> {
    pub(crate) text: Cow<'a, str>,
    pub(crate) values: &'a [String],
    /// The probe, what it is asked about, and the statement for few rows.
    pub(crate) few: Option<(&'static str, &'a str, String)>,
}

impl Sql {
    /// One that selects the rows of a read model as they are shown, with nothing beside them. Conditions are appended, each as ` and …`.
    pub fn rows(model: &str) -> Self {
        Self::rows_beside(model, "null")
    }

    /// The same with something of each row `t` beside it, as an SQL expression of JSON text.
    pub(crate) fn rows_beside(model: &str, beside: &str) -> Self {
        Self::new(&format!("select {COLUMNS}, null, null, {beside} from read.{model} t where true"))
    }

    /// One that begins like this.
    pub fn new(text: &str) -> Self {
        Self { text: text.to_owned(), ..Self::default() }
    }

    /// Appends text, which is never input.
    pub fn push(&mut self, text: &str) -> &mut Self {
        self.text.push_str(text);
        self
    }

    /// Appends a value.
    pub fn bind<V: Value>(&mut self, value: V) -> &mut Self {
        self.bind_as(value.text(), V::KIND)
    }

    /// Appends a value of an SQL type.
    pub(crate) fn bind_as(&mut self, value: String, kind: &str) -> &mut Self {
        self.values.push(value);
        let place = self.values.len();
        self.push(&format!("($1[{place}])::{kind}"))
    }

    /// Appends a condition on a value that no index can be asked under row-level security: `few` where the function `read.<probe>` says that it holds for few rows, `many` where it holds for
    /// many. In both the value is called `$value`. A statement has one such condition; others are always tried row by row.
    pub(crate) fn search(&mut self, probe: &'static str, value: &str, few: &str, many: &str) -> &mut Self {
        self.values.push(value.to_owned());
        let of = |condition: &str| condition.replace("$value", &format!("($1[{}])", self.values.len()));
        let (few, many) = (of(few), of(many));
        if self.search.is_some() {
            return self.push(&many);
        }
        self.search = Some(Search { probe, probed: value.to_owned(), at: self.text.len(), few, many });
        self
    }

    pub(crate) fn parts(&self) -> Parts<'_> {
        let Some(Search { probe, probed, at, few, many }) = &self.search else {
            return Parts { text: Cow::Borrowed(&self.text), values: &self.values, few: None };
        };
        let (before, after) = self.text.split_at(*at);
        let with = |condition: &str| [before, condition, after].concat();
        Parts { text: Cow::Owned(with(many)), values: &self.values, few: Some((probe, probed, with(few))) }
    }
}
