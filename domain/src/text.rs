//! The kinds of text that come from outside, each with its one parser: every field of a kind has the same type, wherever it stands. Events hold plain strings, so a stricter
//! rule tomorrow never stops yesterday's event from loading.
//!
//! All text is normalised to NFC (Unicode Standard Annex 15), so that names which look the same are the same: in unique keys, in searches and on the page.

use std::fmt::Write as _;

use serde::Deserialize;
use unicode_normalization::UnicodeNormalization as _;
use unicode_normalization::char::is_combining_mark;

/// Why a text was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Nothing that can be seen.
    #[error("must not be empty")]
    Empty,
    /// More than `0` characters.
    #[error("must not be longer than {0} characters")]
    TooLong(usize),
    /// A control character, NUL included.
    #[error("must not contain control characters")]
    Control,
    /// A character that is invisible, or changes how its neighbours are shown.
    #[error("must not contain the invisible character U+{0:04X}")]
    Invisible(u32),
    /// Something else, in words.
    #[error("{0}")]
    Malformed(&'static str),
}

/// Whether a character is not shown by itself: the default-ignorable code points of the Unicode Character Database, and the blank of Braille.
fn is_invisible(c: char) -> bool {
    matches!(
        u32::from(c),
        0xAD | 0x34F | 0x61C | 0x115F..=0x1160 | 0x17B4..=0x17B5 | 0x180B..=0x180F | 0x200B..=0x200F | 0x2028..=0x202E | 0x2060..=0x206F | 0x2800 | 0x3164
            | 0xFE00..=0xFE0F | 0xFEFF | 0xFFA0 | 0xFFF0..=0xFFFB | 0x1_BCA0..=0x1_BCA3 | 0x1_D173..=0x1_D17A | 0xE_0000..=0xE_0FFF
    )
}

/// Whether a character is a noncharacter, which no text is interchanged with (Unicode Standard, section 23.7).
fn is_noncharacter(c: char) -> bool {
    let code = u32::from(c);
    (0xFDD0..=0xFDEF).contains(&code) || code & 0xFFFE == 0xFFFE
}

/// Whether there is anything to see in a text.
fn is_visible(text: &str) -> bool {
    text.chars().any(|c| !c.is_whitespace() && !c.is_control() && !is_invisible(c) && !is_combining_mark(c))
}

/// The first character that one line must not contain. Joiners stay between letters of scripts that need them and within emoji, variation selectors after what they vary; every
/// other invisible character would make two names of what looks like one, or turn its neighbours around.
fn misplaced(text: &str) -> Option<char> {
    let mut before = None;
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let joins = |other: Option<char>| other.is_some_and(|c| !c.is_ascii() && !c.is_whitespace());
        let fine = match u32::from(c) {
            0x200C | 0x200D => joins(before) && joins(rest.peek().copied()),
            0xFE00..=0xFE0F => before.is_some_and(|c| !c.is_whitespace() && !is_invisible(c)),
            // The flags of England, Scotland and Wales.
            0xE_0020..=0xE_007F => before.is_some_and(|c| c == '\u{1F3F4}' || (0xE_0020..=0xE_007E).contains(&u32::from(c))),
            _ => !is_invisible(c) && !is_noncharacter(c),
        };
        if !fine {
            return Some(c);
        }
        before = Some(c);
    }
    None
}

/// One line of text: trimmed, in NFC, at most `max` characters (Unicode scalar values), something to see, no control and no invisible characters.
pub fn line(text: &str, max: usize) -> Result<String, TextError> {
    let text = text.trim();
    // Composing never makes more characters than a few times as many: what is much too long is not composed at all.
    if text.chars().take(4 * max + 1).count() > 4 * max {
        return Err(TextError::TooLong(max));
    }
    if text.chars().any(char::is_control) {
        return Err(TextError::Control);
    }
    let text: String = text.nfc().collect();
    if text.is_empty() {
        return Err(TextError::Empty);
    }
    if text.chars().count() > max {
        return Err(TextError::TooLong(max));
    }
    if let Some(c) = misplaced(&text) {
        return Err(TextError::Invisible(c.into()));
    }
    if is_visible(&text) { Ok(text) } else { Err(TextError::Empty) }
}

/// Text of several lines: in NFC, something to see, at most `max` characters, no control characters but line feeds (made of whatever line ends there were) and tabs.
pub fn block(text: &str, max: usize) -> Result<String, TextError> {
    if text.chars().take(4 * max + 1).count() > 4 * max {
        return Err(TextError::TooLong(max));
    }
    let text: String = text.replace("\r\n", "\n").nfc().collect();
    if !is_visible(&text) {
        return Err(TextError::Empty);
    }
    if text.chars().count() > max {
        return Err(TextError::TooLong(max));
    }
    if text.chars().any(|c| (c.is_control() && !matches!(c, '\n' | '\t')) || is_noncharacter(c)) {
        return Err(TextError::Control);
    }
    Ok(text)
}

/// Text that something stored is compared with: in NFC, at most `max` characters, no control characters. It may be empty.
pub fn sought(text: &str, max: usize) -> Result<String, TextError> {
    if text.chars().take(4 * max + 1).count() > 4 * max {
        return Err(TextError::TooLong(max));
    }
    let text: String = text.nfc().collect();
    if text.chars().count() > max {
        return Err(TextError::TooLong(max));
    }
    if text.chars().any(|c| c.is_control() && c != '\t') {
        return Err(TextError::Control);
    }
    Ok(text)
}

/// A domain name in ASCII and in lower case: labels of letters, digits and hyphens, at least two of them (RFC 1035 section 2.3.1, RFC 1123 section 2.1).
pub fn domain_name(text: &str) -> Result<String, TextError> {
    let text = line(text, 253)?.to_ascii_lowercase();
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let top = text.rsplit('.').next().unwrap_or_default();
    let fine = text.contains('.') && text.split('.').all(label) && top.bytes().any(|b| b.is_ascii_alphabetic());
    if fine { Ok(text) } else { Err(TextError::Malformed("must be a domain name, such as acme.example")) }
}

/// An e-mail address that mail can be sent to, by the parser of the mail library and the lengths of RFC 5321 section 4.5.3.1. Quoted local parts and addresses of hosts
/// without a name are refused.
fn email(text: &str) -> Result<String, TextError> {
    let text = line(text, 254)?;
    // Letters that only look like others would make two addresses of one, or one of two.
    if !text.is_ascii() {
        return Err(TextError::Malformed("must be written in ASCII; a domain in another script as punycode"));
    }
    let malformed = Err(TextError::Malformed("must be an e-mail address"));
    let Some((local, host)) = text.rsplit_once('@') else { return malformed };
    let options = email_address::Options::default().without_display_text().without_domain_literal().with_required_tld();
    let parsed = email_address::EmailAddress::parse_with_options(&text, options);
    if local.len() > 64 || local.starts_with('"') || parsed.is_err() || domain_name(host).is_err() { malformed } else { Ok(text) }
}

/// The name of a file on any system: one line without path separators, neither `.` nor `..`, and not the name of a device.
fn file_name(text: &str) -> Result<String, TextError> {
    const DEVICES: [&str; 6] = ["con", "prn", "aux", "nul", "conin$", "conout$"];
    let text = line(text, 255)?;
    if text.contains(['/', '\\', ':']) {
        return Err(TextError::Malformed("must be the name of a file, without a path: no / \\ or :"));
    }
    if text.chars().all(|c| c == '.') {
        return Err(TextError::Malformed("must be the name of a file, not of a directory"));
    }
    let stem = text.split('.').next().unwrap_or_default().trim_end().to_lowercase();
    let numbered = ["com", "lpt"].iter().any(|port| {
        stem.strip_prefix(port).is_some_and(|n| n.chars().count() == 1 && n.chars().all(|c| c.is_ascii_digit() || "¹²³".contains(c)))
    });
    if numbered || DEVICES.contains(&stem.as_str()) {
        return Err(TextError::Malformed("must not be the name of a device, such as NUL or COM1"));
    }
    Ok(text)
}

/// An `https` URL with a host and without credentials, in the form that the WHATWG URL standard serialises it in.
fn https_url(text: &str, max: usize) -> Result<String, TextError> {
    let text = line(text, max)?;
    let odd = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | '\\' | '^' | '`' | '{' | '|' | '}');
    if text.contains(odd) {
        return Err(TextError::Malformed("must be an https:// URL without spaces, quotes and brackets"));
    }
    let malformed = TextError::Malformed("must be an https:// URL with a host");
    let has_authority = text.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("https://")) && !text[8..].starts_with('/');
    let url = url::Url::parse(&text).map_err(|_| malformed.clone())?;
    if !has_authority || url.scheme() != "https" || url.host_str().is_none_or(str::is_empty) {
        return Err(malformed);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(TextError::Malformed("must not contain a user name or a password"));
    }
    let text = String::from(url);
    if text.len() > max { Err(TextError::TooLong(max)) } else { Ok(text) }
}

/// A language tag in the canonical case (BCP 47: RFC 5646 section 2.1).
fn language_tag(text: &str) -> Result<String, TextError> {
    let text = line(text, 35)?;
    let tag = oxilangtag::LanguageTag::parse_and_normalize(&text);
    tag.map(oxilangtag::LanguageTag::into_inner).map_err(|_| TextError::Malformed("must be a language tag, such as en-GB"))
}

/// A time zone of the IANA database, by its name there.
fn time_zone(text: &str) -> Result<String, TextError> {
    let text = line(text, 60)?;
    let zone: Result<chrono_tz::Tz, _> = text.parse();
    zone.map(|zone| zone.name().to_owned())
        .map_err(|_| TextError::Malformed("must be a time zone of the IANA database, such as Europe/Vienna"))
}

fn sha256(text: &str) -> Result<String, TextError> {
    let fine = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if fine { Ok(text.to_ascii_lowercase()) } else { Err(TextError::Malformed("must be 64 hexadecimal digits")) }
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
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
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

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(&self.0) }
        }

        impl std::ops::Deref for $name {
            type Target = str;
            fn deref(&self) -> &str { &self.0 }
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
    /// An e-mail address in ASCII; nothing but a mail proves that somebody reads what is sent to it.
    Email { max: 254, example: "ada@example.com", parse: email }
    /// A domain name in ASCII (one in another script as punycode): labels of letters, digits and hyphens, at least two of them.
    DomainName { max: 253, example: "acme.example", parse: domain_name }
    /// An `https` URL with a host, without credentials, spaces and quotes.
    HttpsUrl { max: 2000, example: "https://cdn.example.com/logo.svg", parse: |t| https_url(t, 2000) }
    /// A language, as a BCP 47 tag.
    Locale { max: 35, example: "en-GB", parse: language_tag }
    /// A time zone of the IANA database.
    TimeZone { max: 60, example: "Europe/Vienna", parse: time_zone }
    /// The name of a file, without a path.
    FileName { max: 255, example: "invoice-2041.pdf", parse: file_name }
    /// A SHA-256 in hexadecimal.
    Sha256 { max: 64, example: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", parse: sha256 }
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
    /// The name of a permission, `<resource>:<action>`. Whether there is one of that name is a rule of its own.
    Permission { max: 100, example: "user:read", parse: |t| line(t, 100) }
    /// What something outside calls a thing: a message, a customer, a payment method, a secret's beginning. Never a card's number.
    Reference { max: 255, example: "pm_1NXWPnLkdIwHu7ixHnJqNDrP", parse: |t| line(t, 255) }
    /// What a list is searched or filtered by. It may be empty.
    SearchText { max: 200, example: "invoice 2041", parse: |t| sought(t, 200) }
    /// What somebody types to say who they are: a tenant, an address. It may be anything, since it is only compared.
    LoginName { max: 300, example: "acme", parse: |t| sought(t, 300) }
    /// A token, a code of a link or a cursor, as it was issued.
    TokenText { max: 4096, example: "AZr8TVh4cf2C", parse: |t| sought(t, 4096) }
    /// The text of a DNS record, as a server answers it.
    TxtRecord { max: 65535, example: "tenure-verification=AZr8TVh4cf2C", parse: |t| if t.len() <= 65_535 { Ok(t.to_owned()) } else { Err(TextError::TooLong(65_535)) } }
}

impl From<[u8; 32]> for Sha256 {
    fn from(digest: [u8; 32]) -> Self {
        let mut text = String::with_capacity(64);
        for byte in digest {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Self(text)
    }
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
