//! Mails: templates, and how they are sent.
//!
//! A mail is made when it is sent: where to, what to call them and the link's token come from the user's own events then, so the queue holds nothing personal and no secret,
//! and nobody who was erased meanwhile is written to.

use std::path::Path;

use access::links::{self, Purpose};
use chrono::{DateTime, Utc};
use domain::billing::quota::{Quota, Warning};
use domain::billing::subscription::{self, Subscription};
use domain::identity::tenant::Tenant;
use domain::identity::user::{Details, Link, User};
use domain::{StreamId, TenantId};
use futures::future::BoxFuture;
use lettre::message::header::{ContentTransferEncoding, ContentType};
use lettre::message::{Body, Mailbox};
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor};
use minijinja::{Environment, context};
use store::Store;

use crate::files::MailFiles;
use crate::queue::{Attempt, Due, MAIL};
use crate::worker::Channel;

/// What a mail says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Template {
    /// That somebody is asked to become a user.
    Invitation,
    /// That somebody is asked to show an address to be theirs.
    Verification,
    /// That somebody can set another password, or their first one.
    Reset,
    /// That the trial ends.
    TrialEnding,
    /// That much of a quota is used.
    QuotaWarning,
    /// That wrong passwords were tried on their account.
    LoginAttempts,
    /// That a payment is disputed.
    PaymentDisputed,
    /// That a dispute is lost.
    DisputeLost,
    /// That a payment was given back.
    PaymentRefunded,
    /// That a change of the subscription could not be paid.
    ChangeDeclined,
}

impl Template {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Invitation,
        Self::Verification,
        Self::Reset,
        Self::TrialEnding,
        Self::QuotaWarning,
        Self::LoginAttempts,
        Self::PaymentDisputed,
        Self::DisputeLost,
        Self::PaymentRefunded,
        Self::ChangeDeclined,
    ];

    /// As stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invitation => "invitation",
            Self::Verification => "verification",
            Self::Reset => "reset",
            Self::TrialEnding => "trial_ending",
            Self::QuotaWarning => "quota_warning",
            Self::LoginAttempts => "login_attempts",
            Self::PaymentDisputed => "payment_disputed",
            Self::DisputeLost => "dispute_lost",
            Self::PaymentRefunded => "payment_refunded",
            Self::ChangeDeclined => "change_declined",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|template| template.as_str() == text)
    }

    /// The subject on the first line, then an empty one, then the text.
    fn source(self, user: &Details) -> &'static str {
        match self {
            Self::Invitation => include_str!("templates/invitation.txt"),
            Self::Verification => include_str!("templates/verification.txt"),
            Self::Reset if user.welcome => include_str!("templates/welcome.txt"),
            Self::Reset => include_str!("templates/reset.txt"),
            Self::TrialEnding => include_str!("templates/trial_ending.txt"),
            Self::QuotaWarning => include_str!("templates/quota_warning.txt"),
            Self::LoginAttempts => include_str!("templates/login_attempts.txt"),
            Self::PaymentDisputed => include_str!("templates/payment_disputed.txt"),
            Self::DisputeLost => include_str!("templates/dispute_lost.txt"),
            Self::PaymentRefunded => include_str!("templates/payment_refunded.txt"),
            Self::ChangeDeclined => include_str!("templates/change_declined.txt"),
        }
    }

    /// The link that is good now, what it is for, and where under the address of the product it leads; `None` where there is none any more.
    fn link(self, user: &Details) -> Option<(Link, Purpose, &'static str)> {
        match self {
            Self::Invitation => user.invitation.map(|link| (link, Purpose::Invitation, "accept-invitation")),
            Self::Verification => user.verification.map(|link| (link, Purpose::Verification, "verify-email")),
            Self::Reset => user.reset.map(|link| (link, Purpose::Reset, "reset-password")),
            Self::TrialEnding
            | Self::QuotaWarning
            | Self::LoginAttempts
            | Self::PaymentDisputed
            | Self::DisputeLost
            | Self::PaymentRefunded
            | Self::ChangeDeclined => None,
        }
    }
}

#[derive(Clone)]
enum Transport {
    Smtp(AsyncSmtpTransport<Tokio1Executor>),
    File(MailFiles),
}

/// Sends mails.
#[derive(Clone)]
pub struct Mailer {
    transport: Transport,
    from: Mailbox,
    /// What links begin with.
    base: String,
    store: Store,
}

/// How mails are sent cannot be so.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct MailError(String);

impl Mailer {
    /// By SMTP: `smtp://` or `smtps://`, with a user and a password, and `?tls=required` or `?tls=opportunistic` (lettre's connection URLs). Links begin with `base`.
    pub fn smtp(store: &Store, url: &str, from: &str, base: &str) -> Result<Self, MailError> {
        let transport = AsyncSmtpTransport::<Tokio1Executor>::from_url(url).map_err(|e| MailError(e.to_string()))?;
        let transport = transport.timeout(Some(std::time::Duration::from_secs(20))).build();
        Self::with(store, Transport::Smtp(transport), from, base)
    }

    /// Into files of a directory, for development: each mail as an `.eml` file, which only its owner can read.
    pub fn files(store: &Store, directory: &Path, from: &str, base: &str) -> Result<Self, MailError> {
        let files = MailFiles::open(directory).map_err(|e| MailError(e.to_string()))?;
        Self::with(store, Transport::File(files), from, base)
    }

    /// The files that mails are written into, if they are.
    pub fn written_to(&self) -> Option<MailFiles> {
        match &self.transport {
            Transport::Smtp(_) => None,
            Transport::File(files) => Some(files.clone()),
        }
    }

    fn with(store: &Store, transport: Transport, from: &str, base: &str) -> Result<Self, MailError> {
        let from = from.parse().map_err(|_| MailError(format!("{from} is no mail address")))?;
        Ok(Self { transport, from, base: base.trim_end_matches('/').to_owned(), store: store.clone() })
    }

    /// Attempts a delivery.
    async fn send(&self, due: &Due) -> Attempt {
        let message = match self.message(due).await {
            Ok(message) => message,
            Err(attempt) => return attempt,
        };
        match &self.transport {
            Transport::Smtp(transport) => match transport.send(message).await {
                Ok(_) => Attempt::Delivered,
                // What the server says may quote the address.
                Err(error) => {
                    let code = error.status().map(|code| format!("the server answered {code}"));
                    if error.is_permanent() {
                        Attempt::Refused(code.unwrap_or_else(|| "the server refused it for good".into()))
                    } else {
                        Attempt::Failed(code.unwrap_or_else(|| kind(&error).into()))
                    }
                }
            },
            Transport::File(files) => {
                let written = files.write(due, &message.formatted()).await;
                if written.is_err() {
                    return Attempt::Failed("the file could not be written".into());
                }
                // Of a person who was erased just now there was no file yet that could be removed.
                match files.forget_erased(&self.store).await {
                    Ok(()) => Attempt::Delivered,
                    Err(_) => Attempt::Failed("the files of erased people could not be removed".into()),
                }
            }
        }
    }

    async fn message(&self, due: &Due) -> Result<Message, Attempt> {
        let (store, failed) = (&self.store, |why: &str| Attempt::Failed(why.to_owned()));
        let template = Template::parse(&due.template).ok_or_else(|| failed("the template is not known to this version"))?;
        let tenant = TenantId(due.tenant_id);
        let stream = StreamId::new(tenant, due.subject_id);
        let loaded = store.current::<User>(stream).await.map_err(|_| failed("the user cannot be read"))?;
        let user = loaded.state.details().ok_or_else(|| failed("the user cannot be read"))?;
        let about = StreamId::new(tenant, due.intent);
        let (link, until, warning) = match template {
            Template::TrialEnding => {
                let (link, until) = self.trial(about).await?;
                (link, Some(until), None)
            }
            Template::QuotaWarning => {
                let warning = self.warning(about).await?;
                (format!("{}/billing", self.base), warning.resets_at, Some(warning))
            }
            Template::PaymentDisputed | Template::DisputeLost | Template::PaymentRefunded | Template::ChangeDeclined => {
                (format!("{}/billing", self.base), None, None)
            }
            Template::LoginAttempts => (format!("{}/forgot-password", self.base), None, None),
            Template::Invitation | Template::Verification | Template::Reset => {
                let (link, until) = self.link(template, user, stream, due)?;
                (link, Some(until), None)
            }
        };
        let address = user.email.known().ok_or_else(|| Attempt::Dropped("the receiver was erased".into()))?;
        let organisation =
            store.current::<Tenant>(StreamId::new(tenant, tenant.0)).await.map_err(|_| failed("the tenant cannot be read"))?;
        let said = render(
            template.source(user),
            &context! {
                name => user.name.as_ref().and_then(|name| name.known()).and_then(|name| plain_name(name)),
                organisation => plain_name(organisation.state.name().unwrap_or("Tenure")).unwrap_or_else(|| NEUTRAL.to_owned()),
                link,
                until => until.map(|until| until.format("%-d %B %Y, %H:%M UTC").to_string()),
                warning,
            },
        );
        let (subject, text) = said.map_err(|_| failed("the template cannot be filled in"))?;
        let to = address.parse().map(|address| Mailbox::new(None, address)).map_err(|_| Attempt::Refused("no mail address".into()))?;
        Message::builder()
            .message_id(Some(format!("<{}@{}>", due.id, store.installation())))
            .from(self.from.clone())
            .to(to)
            .subject(subject)
            .header(ContentType::TEXT_PLAIN)
            .body(encoded(&text))
            .map_err(|_| Attempt::Refused("the mail cannot be written".into()))
    }

    /// The link of a mail and until when it is good, if it is the one that the mail was queued for.
    fn link(&self, template: Template, user: &Details, stream: StreamId, due: &Due) -> Result<(String, DateTime<Utc>), Attempt> {
        let good = |link: &Link| link.token == due.intent && self.store.clock().now() < link.expires_at;
        let (link, purpose, path) =
            template.link(user).filter(|(link, ..)| good(link)).ok_or_else(|| Attempt::Dropped("its link is not good any more".into()))?;
        let token = links::write(&self.store, purpose, stream, link.token);
        Ok((format!("{}/{path}?token={token}", self.base), link.expires_at))
    }

    /// Where there is to pay, and when the trial ends, if it is one still.
    async fn trial(&self, subscription: StreamId) -> Result<(String, DateTime<Utc>), Attempt> {
        let loaded = self.store.current::<Subscription>(subscription).await;
        let loaded = loaded.map_err(|_| Attempt::Failed("the subscription cannot be read".into()))?;
        let trialing = loaded.state.details().filter(|details| details.status == subscription::Status::Trialing);
        let trial = trialing.and_then(|details| details.trial).filter(|trial| self.store.clock().now() < trial.ends_at);
        let trial = trial.ok_or_else(|| Attempt::Dropped("it is no trial any more".into()))?;
        Ok((format!("{}/billing", self.base), trial.ends_at))
    }
}

impl Mailer {
    /// What there is to be said of a quota.
    async fn warning(&self, quota: StreamId) -> Result<Warning, Attempt> {
        let loaded = self.store.current::<Quota>(quota).await.map_err(|_| Attempt::Failed("the quota cannot be read".into()))?;
        loaded.state.warning().ok_or_else(|| Attempt::Dropped("there is nothing to warn of".into()))
    }
}

impl Channel for Mailer {
    fn kind(&self) -> &'static str {
        MAIL
    }

    fn attempt<'a>(&'a self, due: &'a Due) -> BoxFuture<'a, Attempt> {
        Box::pin(self.send(due))
    }
}

/// The longest line of a mail (RFC 5321 section 4.5.3.1.6), with something to spare.
const LINE: usize = 900;

/// A text as it is sent: as it is where that can be, so that links stay in one piece for whoever reads a mail as a file.
fn encoded(text: &str) -> Body {
    if text.is_ascii() && text.lines().all(|line| line.len() <= LINE) {
        let lines: String = text.lines().flat_map(|line| [line, "\r\n"]).collect();
        return Body::dangerous_pre_encoded(lines.into_bytes(), ContentTransferEncoding::SevenBit);
    }
    Body::new(text.to_owned())
}

/// What kind of failure it was, without what the server said.
fn kind(error: &lettre::transport::smtp::Error) -> &'static str {
    if error.is_timeout() {
        "no answer in time"
    } else if error.is_tls() {
        "no secure connection"
    } else if error.is_response() {
        "an answer that makes no sense"
    } else {
        "no connection, or it broke"
    }
}

/// An organisation whose name a mail cannot carry.
const NEUTRAL: &str = "your organisation";
/// The most of a name in a mail, in characters.
const NAME: usize = 80;

/// A name as a mail may carry it, in its subject and in its text: one line without control and formatting characters. `None` for a name that mail programs would make a
/// link of: its author writes to strangers in our name.
pub(crate) fn plain_name(name: &str) -> Option<String> {
    // Formatting characters that turn text around or hide it: Unicode category Cf, as far as names need none of them, and separators of lines.
    let is_hidden = |c: char| matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    let visible: String = name.chars().filter(|c| !is_hidden(*c)).map(|c| if c.is_control() { ' ' } else { c }).collect();
    let line = visible.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.is_empty() || carries_link(&line) {
        return None;
    }
    let short: String = line.chars().take(NAME).collect();
    Some(if short.len() < line.len() { format!("{}…", short.trim_end()) } else { short })
}

/// Whether a text has something in it that mail programs turn into a link: a scheme, an address, or a host's name.
fn carries_link(line: &str) -> bool {
    // Full-width and ideographic dots are dots to a resolver (UTS #46 section 4.2).
    let line: String =
        line.to_lowercase().chars().map(|c| if matches!(c, '\u{ff0e}' | '\u{3002}' | '\u{ff61}' | '\u{2024}') { '.' } else { c }).collect();
    let is_host = |(before, after): (&str, &str)| {
        let top: String = after.chars().take_while(|c| c.is_alphanumeric() || *c == '-').collect();
        before.chars().next_back().is_some_and(char::is_alphanumeric) && top.chars().count() >= 2 && top.chars().any(char::is_alphabetic)
    };
    let hosts = line.match_indices('.').any(|(at, dot)| is_host((&line[..at], &line[at + dot.len()..])));
    hosts
        || line.contains("://")
        || line.contains('@')
        || ["http:", "https:", "mailto:", "javascript:", "tel:", "data:"].iter().any(|scheme| line.contains(scheme))
}

/// Subject and text.
fn render(source: &str, values: &minijinja::Value) -> Result<(String, String), minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
    let said = environment.render_str(source, values)?;
    let (subject, text) = said.split_once("\n\n").unwrap_or((&said, ""));
    Ok((subject.trim().replace(['\r', '\n'], " "), text.to_owned()))
}

#[cfg(test)]
mod tests {
    use domain::text::Email;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_in_a_mail_is_one_line_without_links_and_hidden_characters() {
        let kept = |name: &str| plain_name(name).unwrap_or_default();
        for plain in ["Acme GmbH", "Łódź & Söhne", "株式会社アクメ", "Dr. Who", "A. B. Smith", "No. 5", "U.S. Steel", "12.50 Club"]
        {
            assert_eq!(kept(plain), plain);
        }
        assert_eq!(kept("Acme\r\nBcc: x\tGmbH"), "Acme Bcc: x GmbH");
        assert_eq!(kept("Ac\u{202e}me\u{200b} \u{2028}Ltd\u{feff}"), "Acme Ltd");
        assert_eq!(kept(&"long ".repeat(50)).chars().count(), NAME);
        for link in [
            "ACTION REQUIRED: see http://evil.example/pay",
            "see HTTPS://evil",
            "evil.example",
            "Pay at evil.example now",
            "www.evil",
            "write to ada@evil",
            "mailto:ada",
            "evil\u{200b}.example",
            "evil．example",
            "evil。example",
            "пример.рф",
            "javascript:alert(1)",
        ] {
            assert_eq!(plain_name(link), None, "{link}");
        }
    }

    #[test]
    fn every_template_shows_names_only_as_mails_may_carry_them() {
        for source in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/templates")).unwrap() {
            let source = std::fs::read_to_string(source.unwrap().path()).unwrap();
            let shown: Vec<_> = source.split("{{").skip(1).map(|rest| rest.split("}}").next().unwrap().trim()).collect();
            let known = ["name", "organisation", "link", "until", "warning.threshold", "warning.meter", "warning.used", "warning.quota"];
            assert!(shown.iter().all(|value| known.contains(value)), "{shown:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_as_an_address_can_be_mailed(local in "[ -~]{1,70}", host in "[ -~]{1,12}(\\.[a-z0-9-]{1,8}){0,3}", fine in "[a-z0-9!#$%&'*+/=?^_`{|}~-]{1,20}(\\.[a-z0-9+]{1,9}){0,2}") {
            for text in [format!("{local}@{host}"), format!("{fine}@{host}"), format!("{fine}@x.example"), local] {
                let Ok(address) = Email::parse(&text) else { continue };
                let to = Mailbox::new(None, address.as_str().parse().expect("an address of the mail library"));
                let mail = Message::builder().from(to.clone()).to(to).subject("s").header(ContentType::TEXT_PLAIN).body(encoded("b"));
                let envelope = mail.expect("a mail").envelope().clone();
                prop_assert_eq!(envelope.to().len(), 1);
                prop_assert_eq!(envelope.to()[0].to_string(), address.as_str());
            }
        }
    }
}
