//! The kinds of values from outside: what each accepts, what it makes of it, and that no command and no query takes anything else.

use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use domain::instant::{Day, Instant, InstantError};
use domain::json::{JSON_OBJECT_MAX, JsonError, JsonObject, canonicalise, parse, size};
use domain::text::{DisplayName, Email, FileName, HttpsUrl, Locale, Reason, SearchText, TextError, TimeZone};
use proptest::prelude::*;
use serde_json::Value;

#[test]
fn an_instant_is_in_whole_microseconds_and_in_the_years_1_to_9999_of_utc() {
    let parsed = |text: &str| Instant::parse(text).map(|instant| instant.time().to_rfc3339());
    for (text, is) in [
        ("2026-11-30T02:39:03.123456789Z", "2026-11-30T02:39:03.123456+00:00"),
        ("2026-11-30T02:39:03+14:00", "2026-11-29T12:39:03+00:00"),
        ("9999-12-31T23:59:59.999999999Z", "9999-12-31T23:59:59.999999+00:00"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00+00:00"),
    ] {
        assert_eq!(parsed(text).as_deref(), Ok(is), "{text}");
    }
    for (text, error) in [
        ("2026-12-31T23:59:60Z", InstantError::LeapSecond),
        ("2026-11-30T02:39:60.5Z", InstantError::LeapSecond),
        ("9999-12-31T23:59:59-01:00", InstantError::OutOfRange),
        ("0001-01-01T00:00:00+00:01", InstantError::OutOfRange),
        ("0000-06-01T00:00:00Z", InstantError::OutOfRange),
        ("+12026-01-01T00:00:00Z", InstantError::Malformed),
        ("2026-11-30T02:39:03", InstantError::Malformed),
        ("2026-11-30", InstantError::Malformed),
        ("", InstantError::Malformed),
    ] {
        assert_eq!(parsed(text), Err(error), "{text}");
    }
    for bad in ["0000-01-01", "10000-01-01", "-0001-01-01", "2026-1-1", "2026-02-30", "+2026-01-01"] {
        assert_eq!(Day::parse(bad), Err(InstantError::NoDay), "{bad}");
    }
    assert!(Day::parse("9999-12-31").is_ok());
}

#[expect(clippy::unwrap_used, reason = "a test")]
fn object(text: &str) -> Result<Value, TextError> {
    JsonObject::try_from(parse(text.as_bytes()).unwrap()).map(JsonObject::into_value)
}

#[test]
fn numbers_that_are_equal_have_one_form() {
    for (one, other) in [
        ("2.561422288066971e+16", "25614222880669710"),
        ("100.0", "100"),
        ("1e2", "100"),
        ("-0.0", "0"),
        ("-0", "0"),
        ("1.50", "1.5"),
        ("1e19", "10000000000000000000"),
        ("1E-2", "0.01"),
    ] {
        let [one, other] = [one, other].map(|number| object(&format!(r#"{{"a": [{{"b": {number}}}]}}"#)).unwrap());
        assert_eq!(one, other);
        assert_eq!(one.to_string(), other.to_string());
    }
    for exact in ["9223372036854775807", "-9223372036854775808", "18446744073709551615"] {
        assert_eq!(object(&format!(r#"{{"a":{exact}}}"#)).unwrap().to_string(), format!(r#"{{"a":{exact}}}"#));
    }
}

#[test]
fn an_object_is_bounded_as_a_table_holds_it() {
    for bad in ["1e64", "-1e308", "1e-65", "5e-324"] {
        assert!(object(&format!(r#"{{"a": {bad}}}"#)).is_err(), "{bad}");
    }
    assert!(object(r#"{"a": 3.4028235e38, "b": 1.4e-45}"#).is_ok(), "every single-precision float");
    let many = |number: &str, n| format!(r#"{{"a": [{}]}}"#, vec![number; n].join(","));
    assert!(object(&many("1e63", 1000)).is_ok());
    assert!(object(&many("1e63", 1100)).is_err(), "64 digits each, although 4 are written");
    for bad in [r#"{"a\u0000": 1}"#, r#"{"$a": 1}"#, r#"{"a": {"$sealed": 1}}"#] {
        assert!(parse(bad.as_bytes()).is_err() || object(bad).is_err(), "{bad}");
    }
}

#[test]
fn json_that_reads_in_two_ways_is_refused_where_it_stands() {
    let at = |bytes: &[u8]| match parse(bytes) {
        Err(JsonError::Value { pointer, .. }) => Some(pointer),
        Err(JsonError::Syntax(error)) => panic!("{error}"),
        Ok(_) => None,
    };
    assert_eq!(at(br#"{"a": {"b": [1, "\u0000"]}}"#).as_deref(), Some("/a/b/1"));
    assert_eq!(at(br#"{"a": 1, "b": 2, "a": 3}"#).as_deref(), Some("/a"));
    assert_eq!(at(br#"{"x": [{"a/b": 1, "a/b": 1}]}"#).as_deref(), Some("/x/0/a~1b"));
    assert_eq!(at(br#"{"a\u0000": 1}"#).as_deref(), Some("/a\0"));
    for text in [r#"{"a": "\ud800"}"#, r#"{"a": "\udc00"}"#, r#"{"a": "\ud800x"}"#, r#"{"a": "\ud800\u0041"}"#] {
        assert!(at(text.as_bytes()).is_some(), "{text}");
    }
    assert!(at(b"{\"a\": \"\xff\"}").is_some());
    assert_eq!(at(r#"{"a": "\ud83d\ude00 é"}"#.as_bytes()), None);
    assert!(matches!(parse(b"{"), Err(JsonError::Syntax(_))));
    assert!(matches!(parse(b"{} {}"), Err(JsonError::Syntax(_))));
    assert!(matches!(parse(br#"{"a": 1e400}"#), Err(JsonError::Syntax(_))));
}

#[test]
fn an_address_is_one_that_mail_can_be_sent_to() {
    for good in ["ada@example.com", "o'brien+tag@mail.acme.example", "a@xn--mnchen-3ya.example", &format!("{}@x.example", "a".repeat(64))] {
        assert!(Email::parse(good).is_ok(), "{good}");
    }
    let long = [format!("{}@x.example", "a".repeat(65)), format!("a@{}.example", "b".repeat(64))];
    for bad in [
        "a@x.example,b@evil.example",
        "a..b@x.example",
        ".a@x.example",
        "a.@x.example",
        "a@x..example",
        "a@-x.example",
        "a@localhost",
        "a@[127.0.0.1]",
        "\"a b\"@x.example",
        "Ada <a@x.example>",
        "a b@x.example",
        "a@x.example\nbcc: b@x.example",
        "a@b@x.example",
        "a;b@x.example",
        "a@x_y.example",
        "ä@x.example",
        &long[0],
        &long[1],
    ] {
        assert!(Email::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_name_can_be_seen_and_looks_like_itself_only() {
    let names = [
        "\u{200B}",
        "\u{2060}\u{FEFF}",
        "\u{3164}",
        "\u{2800}",
        "\u{301}",
        "\u{AD}",
        " \u{A0} ",
        "a\u{202E}b",
        "a\u{2066}b",
        "Ada\u{200B}",
        "Ada\u{200D}",
        "a\u{2028}b",
        "a\0b",
        "a\u{FFFF}b",
        "\u{FE0F}",
        "a\u{E0041}",
    ];
    for bad in names {
        assert!(DisplayName::parse(bad).is_err(), "{bad:?}");
    }
    for good in [
        "Ada",
        "Ακμή",
        "می\u{200C}خواهم",
        "👩\u{200D}👩\u{200D}👧",
        "❤\u{FE0F}",
        "🏴\u{E0067}\u{E0062}\u{E0065}\u{E006E}\u{E0067}\u{E007F}",
        "नमस्ते",
    ] {
        assert_eq!(DisplayName::parse(good).unwrap().as_str(), good);
    }
    assert_eq!(DisplayName::parse("Cafe\u{301}").unwrap(), DisplayName::parse("Café").unwrap());
    assert_eq!(SearchText::parse("Cafe\u{301}").unwrap().as_str(), "Café");
    assert!(Reason::parse(&"e\u{301}".repeat(500)).is_ok(), "counted as it is kept");
    assert!(Reason::parse(&"e\u{301}".repeat(501)).is_err());
}

#[test]
fn a_file_name_is_no_path_and_no_device() {
    for bad in [
        "../../etc/passwd",
        "..",
        ".",
        "...",
        "a/b",
        "a\\b",
        "c:a",
        "NUL",
        "nul.txt",
        "Com1.log",
        "LPT9",
        "aux .txt",
        "com²",
        "invoice\u{202E}fdp.exe",
        "a\nb",
        "\u{200B}",
    ] {
        assert!(FileName::parse(bad).is_err(), "{bad:?}");
    }
    for good in ["invoice-2041.pdf", "請求書.pdf", ".env", "console.log", "com10.txt", "a..b", "null"] {
        assert!(FileName::parse(good).is_ok(), "{good}");
    }
}

#[test]
fn a_url_a_language_and_a_time_zone_are_ones() {
    for bad in [
        "https://\"onload=alert(1)",
        "https://",
        "https:///a",
        "http://a.example",
        "javascript:alert(1)",
        "https://a b.example",
        "https://user:pw@a.example",
        "https://u@a.example",
        "https://a.example/'x'",
        "https://a.example\\b",
        "https:a.example",
        "https://a.example/<b>",
        "//a.example",
        "https://a.example:99999",
    ] {
        assert!(HttpsUrl::parse(bad).is_err(), "{bad}");
    }
    assert_eq!(HttpsUrl::parse("HTTPS://CDN.Example.com/logo.svg?x=1#y").unwrap().as_str(), "https://cdn.example.com/logo.svg?x=1#y");
    for bad in ["Mars/Base", "europe", "", "UTC+25", "Europe/Vienna\0"] {
        assert!(TimeZone::parse(bad).is_err(), "{bad}");
    }
    assert!(TimeZone::parse("Europe/Vienna").is_ok());
    for bad in ["123", "e", "en_GB", "en-", "-en", "en-toolongsubtag"] {
        assert!(Locale::parse(bad).is_err(), "{bad}");
    }
    assert_eq!(Locale::parse("EN-gb").unwrap().as_str(), "en-GB");
}

#[expect(clippy::cast_precision_loss, reason = "any number will do")]
fn json() -> impl Strategy<Value = Value> {
    let number = prop_oneof![
        any::<f64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-100_000_i64..100_000, -30_i32..30).prop_map(|(digits, exponent)| Value::from(digits as f64 * 10_f64.powi(exponent)))
    ];
    let leaf = prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), number, ".{0,12}".prop_map(Value::from)];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(".{0,8}", inner, 0..6).prop_map(|map| Value::Object(map.into_iter().collect()))
        ]
    })
}

proptest! {
    #[test]
    fn a_number_in_its_form_keeps_it_and_denotes_the_same_double(value in json()) {
        let mut once = value.clone();
        canonicalise(&mut once);
        let mut twice = once.clone();
        canonicalise(&mut twice);
        prop_assert_eq!(&once, &twice);
        prop_assert_eq!(parse(once.to_string().as_bytes()).map_err(|error| error.to_string()).ok(), (!once.to_string().contains("\\u0000")).then(|| once.clone()));
        prop_assert!(size(&once) >= once.to_string().len().min(JSON_OBJECT_MAX));
        if let (Some(before), Some(after)) = (value.as_f64(), once.as_f64()) {
            prop_assert!((before - after).abs() <= 0.0);
        }
    }

    #[test]
    fn what_an_instant_is_read_from_it_is_written_as(seconds in -62_135_596_800_i64..253_402_300_800, nanos in 0_u32..1_000_000_000) {
        let time: DateTime<Utc> = DateTime::from_timestamp(seconds, nanos).unwrap();
        let instant = Instant::try_from(time).unwrap();
        prop_assert_eq!(instant.time().timestamp_subsec_nanos() % 1000, 0);
        let text = serde_json::to_value(instant).unwrap();
        prop_assert_eq!(serde_json::from_value::<Instant>(text).unwrap(), instant);
    }

    #[test]
    fn what_a_kind_of_text_accepts_it_accepts_again(text in "\\PC{0,40}") {
        if let Ok(name) = DisplayName::parse(&text) {
            prop_assert_eq!(DisplayName::parse(name.as_str()).unwrap(), name);
        }
        if let Ok(name) = FileName::parse(&text) {
            prop_assert_eq!(FileName::parse(name.as_str()).unwrap(), name);
        }
        if let Ok(url) = HttpsUrl::parse(&format!("https://a.example/{text}")) {
            prop_assert_eq!(HttpsUrl::parse(url.as_str()).unwrap(), url);
        }
    }
}

#[expect(clippy::unwrap_used, reason = "a test")]
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The structs and enums of a source file that begin with one of these lines, each with its fields.
fn declarations(text: &str, begins: impl Fn(&str) -> bool) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let at = (0..lines.len()).filter(|n| begins(lines[*n]));
    let end = |n: usize| if lines[n].ends_with(';') { n + 1 } else { (n..lines.len()).find(|at| lines[*at] == "}").unwrap_or(lines.len()) };
    at.map(|n| lines[n..end(n)].iter().filter(|line| !line.trim_start().starts_with("//")).copied().collect::<Vec<_>>().join("\n"))
        .collect()
}

#[test]
fn no_command_query_or_provider_message_takes_a_raw_value() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = vec![root.join("payments/src/provider.rs")];
    sources(&root.join("domain/src"), &mut files);
    sources(&root.join("api/src"), &mut files);
    let (mut seen, mut raw) = (0, Vec::new());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let declared = if file.ends_with("command.rs") {
            declarations(&text, |line| line.starts_with("pub struct ") || line.starts_with("pub enum "))
        } else if file.ends_with("provider.rs") && text.contains("pub struct Message") {
            declarations(&text, |line| line.starts_with("pub struct Message "))
        } else if file.starts_with(root.join("api")) {
            declarations(&text, |line| line.starts_with("#[derive(") && line.contains("Deserialize"))
                .into_iter()
                // An answer of Tenure itself, read back from its own table.
                .filter(|declaration| !declaration.contains("struct Answer {"))
                .collect()
        } else {
            vec![]
        };
        for declaration in declared {
            seen += 1;
            for field in declaration.lines().filter(|line| !line.trim_start().starts_with('#')) {
                let kind = field.split_once(": ").map_or(field, |(_, kind)| kind);
                let words: Vec<&str> = kind.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
                if ["String", "str", "DateTime", "NaiveDate", "NaiveDateTime", "Value", "Map", "f32", "f64"]
                    .iter()
                    .any(|bare| words.contains(bare))
                {
                    raw.push(format!("{}: {}", file.display(), field.trim()));
                }
            }
        }
    }
    assert!(seen > 120, "only {seen} were found");
    assert_eq!(raw, Vec::<String>::new(), "these take values that no kind has checked");
}
