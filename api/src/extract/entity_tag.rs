//! Entity tags and how they are compared (RFC 9110 sections 8.8.3 and 13.1).

use std::fmt;

use axum::http::{HeaderMap, HeaderName};
use sha2::{Digest as _, Sha256};

use crate::problem::{Problem, code};

/// How many bytes of a representation's digest its tag carries.
const DIGEST: usize = 8;

/// The tag of a representation: the version of what is shown and, in the answer to a query, a digest of everything that is shown of it. Two callers who see different
/// fields, and the same caller before and after an erasure, so have different tags. Commands read the version and no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntityTag {
    weak: bool,
    opaque: String,
}

impl EntityTag {
    /// The tag of a version, in the answer to a command, which shows nothing of it.
    pub fn of_version(version: i64) -> Self {
        Self { weak: false, opaque: format!("v{version}") }
    }

    /// The tag of a representation of a version.
    pub fn of(version: i64, representation: &[u8]) -> Self {
        let digest = Sha256::digest(representation);
        Self { weak: false, opaque: format!("v{version}.{}", hex::encode(&digest[..DIGEST])) }
    }

    /// The version that it names, if one of ours wrote it. A weak tag names none: it says nothing of each byte, and is never equal by the strong comparison.
    fn version(&self) -> Option<i64> {
        let named = self.opaque.strip_prefix('v').filter(|_| !self.weak)?;
        named.split_once('.').map_or(named, |(version, _)| version).parse().ok()
    }
}

impl fmt::Display for EntityTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\"{}\"", if self.weak { "W/" } else { "" }, self.opaque)
    }
}

/// The value of `If-Match` or `If-None-Match`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// `*`: whatever there is.
    Any,
    /// One of these.
    Tags(Vec<EntityTag>),
}

impl Condition {
    /// The condition in a header, of which there may be several lines; `None` where there is none.
    pub fn of(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Self>, Problem> {
        if !headers.contains_key(name) {
            return Ok(None);
        }
        let lines: Option<Vec<&str>> = headers.get_all(name).iter().map(|value| value.to_str().ok()).collect();
        lines.and_then(|lines| Self::parse(&lines.join(","))).map(Some).ok_or_else(|| {
            Problem::new(code::BAD_HEADER, format!("{name} must be `*` or entity tags with commas between, such as \"v3\" or W/\"v3\""))
        })
    }

    fn parse(text: &str) -> Option<Self> {
        if text.trim() == "*" {
            return Some(Self::Any);
        }
        let (mut rest, mut tags) = (text, Vec::new());
        loop {
            // Empty elements of a list are ignored (RFC 9110 section 5.6.1.2).
            rest = rest.trim_start_matches([' ', '\t', ',']);
            if rest.is_empty() {
                return (!tags.is_empty()).then_some(Self::Tags(tags));
            }
            let (weak, quoted) = rest.strip_prefix("W/").map_or((false, rest), |quoted| (true, quoted));
            let (opaque, after) = quoted.strip_prefix('"')?.split_once('"')?;
            if opaque.chars().any(|c| c == ' ' || c.is_control()) {
                return None;
            }
            tags.push(EntityTag { weak, opaque: opaque.to_owned() });
            rest = after.trim_start_matches([' ', '\t']);
            if !(rest.is_empty() || rest.starts_with(',')) {
                return None;
            }
        }
    }

    /// Whether a representation is among them, by the weak comparison: that of `If-None-Match`.
    pub fn names(&self, tag: &EntityTag) -> bool {
        match self {
            Self::Any => true,
            Self::Tags(tags) => tags.iter().any(|known| known.opaque == tag.opaque),
        }
    }

    /// The versions of which one has to be the current one, by the strong comparison: that of `If-Match`; `None`: any will do.
    pub fn versions(&self) -> Option<Vec<i64>> {
        match self {
            Self::Any => None,
            Self::Tags(tags) => Some(tags.iter().filter_map(EntityTag::version).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::option_option, reason = "no condition, any version, or these")]
    fn versions(text: &str) -> Option<Option<Vec<i64>>> {
        Condition::parse(text).map(|condition| condition.versions())
    }

    #[test]
    fn if_match_compares_strongly_lists_of_tags_and_refuses_no_tag_that_is_well_formed() {
        for (text, wanted) in [
            ("*", Some(None)),
            ("\"v3\"", Some(Some(vec![3]))),
            ("\"v3.0011223344556677\"", Some(Some(vec![3]))),
            (" \"v3\" , \"v4\",", Some(Some(vec![3, 4]))),
            ("W/\"v3\"", Some(Some(vec![]))),
            ("W/\"v3\", \"v2\"", Some(Some(vec![2]))),
            ("\"\"", Some(Some(vec![]))),
            ("\"of, another server\"", None),
            ("\"of,another-server\"", Some(Some(vec![]))),
            ("3", None),
            ("v3", None),
            ("\"v3", None),
            ("\"v3\" \"v4\"", None),
            ("w/\"v3\"", None),
            ("*, \"v3\"", None),
            ("", None),
        ] {
            assert_eq!(versions(text), wanted, "{text}");
        }
    }

    #[test]
    fn if_none_match_compares_weakly_and_a_tag_names_what_is_shown() {
        let tag = EntityTag::of(3, b"{}");
        for text in [tag.to_string(), format!("W/{tag}"), format!("\"v1\", W/{tag}"), "*".to_owned()] {
            assert!(Condition::parse(&text).unwrap().names(&tag), "{text}");
        }
        for other in [EntityTag::of(3, b"{ }"), EntityTag::of(4, b"{}"), EntityTag::of_version(3)] {
            assert!(!Condition::parse(&other.to_string()).unwrap().names(&tag), "{other}");
        }
    }
}
