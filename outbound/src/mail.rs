//! Mails: templates, and how they are sent.
//!
//! A mail is made when it is sent: where to, what to call them and the link's token come from the user's own events then, so the queue holds nothing personal and no secret,
//! and nobody who was erased meanwhile is written to.

use std::path::Path;

use access::links::{self, Purpose};
use domain::identity::tenant::Tenant;
use domain::identity::user::{Details, User};
use domain::{StreamId, TenantId};
use lettre::message::header::{ContentTransferEncoding, ContentType};
use lettre::message::{Body, Mailbox};
use lettre::transport::file::AsyncFileTransport;
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor};
use minijinja::{Environment, context};
use store::Store;

use crate::queue::{Attempt, Due};

/// What a mail says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Template {
    /// That somebody is asked to become a user.
    Invitation,
    /// That somebody is asked to show an address to be theirs.
    Verification,
    /// That somebody can set another password.
    Reset,
}

impl Template {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Invitation, Self::Verification, Self::Reset];

    /// As stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invitation => "invitation",
            Self::Verification => "verification",
            Self::Reset => "reset",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|template| template.as_str() == text)
    }

    /// The subject on the first line, then an empty one, then the text.
    fn source(self) -> &'static str {
        match self {
            Self::Invitation => include_str!("templates/invitation.txt"),
            Self::Verification => include_str!("templates/verification.txt"),
            Self::Reset => include_str!("templates/reset.txt"),
        }
    }

    fn purpose(self) -> Purpose {
        match self {
            Self::Invitation => Purpose::Invitation,
            Self::Verification => Purpose::Verification,
            Self::Reset => Purpose::Reset,
        }
    }

    /// What a link leads to, under the address of the product.
    fn path(self) -> &'static str {
        match self {
            Self::Invitation => "accept-invitation",
            Self::Verification => "verify-email",
            Self::Reset => "reset-password",
        }
    }

    /// The link that is good now, if there is one.
    fn link(self, user: &Details) -> Option<domain::identity::user::Link> {
        match self {
            Self::Invitation => user.invitation,
            Self::Verification => user.verification,
            Self::Reset => user.reset,
        }
    }
}

#[derive(Clone)]
enum Transport {
    Smtp(AsyncSmtpTransport<Tokio1Executor>),
    File(AsyncFileTransport<Tokio1Executor>),
}

/// Sends mails.
#[derive(Clone)]
pub struct Mailer {
    transport: Transport,
    from: Mailbox,
    /// What links begin with.
    base: String,
}

/// How mails are sent cannot be so.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct MailError(String);

impl Mailer {
    /// By SMTP: `smtp://` or `smtps://`, with a user and a password, and `?tls=required` or `?tls=opportunistic` (lettre's connection URLs). Links begin with `base`.
    pub fn smtp(url: &str, from: &str, base: &str) -> Result<Self, MailError> {
        let transport = AsyncSmtpTransport::<Tokio1Executor>::from_url(url).map_err(|e| MailError(e.to_string()))?;
        let transport = transport.timeout(Some(std::time::Duration::from_secs(20))).build();
        Self::with(Transport::Smtp(transport), from, base)
    }

    /// Into files of a directory, for development: each mail as an `.eml` file.
    pub fn files(directory: &Path, from: &str, base: &str) -> Result<Self, MailError> {
        std::fs::create_dir_all(directory).map_err(|e| MailError(e.to_string()))?;
        Self::with(Transport::File(AsyncFileTransport::new(directory)), from, base)
    }

    fn with(transport: Transport, from: &str, base: &str) -> Result<Self, MailError> {
        let from = from.parse().map_err(|_| MailError(format!("{from} is no mail address")))?;
        Ok(Self { transport, from, base: base.trim_end_matches('/').to_owned() })
    }

    /// Attempts a delivery.
    pub(crate) async fn send(&self, store: &Store, due: &Due) -> Attempt {
        let message = match self.message(store, due).await {
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
            Transport::File(transport) => match transport.send(message).await {
                Ok(_) => Attempt::Delivered,
                Err(_) => Attempt::Failed("the file could not be written".into()),
            },
        }
    }

    async fn message(&self, store: &Store, due: &Due) -> Result<Message, Attempt> {
        let failed = |why: &str| Attempt::Failed(why.to_owned());
        let template = Template::parse(&due.template).ok_or_else(|| failed("the template is not known to this version"))?;
        let tenant = TenantId(due.tenant_id);
        let stream = StreamId::new(tenant, due.subject_id);
        let loaded = store.current::<User>(stream).await.map_err(|_| failed("the user cannot be read"))?;
        let user = loaded.state.details().ok_or_else(|| failed("the user cannot be read"))?;
        let link = template.link(user).filter(|link| link.token == due.intent && store.clock().now() < link.expires_at);
        let link = link.ok_or_else(|| Attempt::Dropped("its link is not good any more".into()))?;
        let address = user.email.known().ok_or_else(|| Attempt::Dropped("the receiver was erased".into()))?;
        let organisation =
            store.current::<Tenant>(StreamId::new(tenant, tenant.0)).await.map_err(|_| failed("the tenant cannot be read"))?;
        let token = links::write(store, template.purpose(), stream, link.token);
        let said = render(
            template,
            &context! {
                name => user.name.as_ref().and_then(|name| name.known()),
                organisation => organisation.state.name().unwrap_or("Tenure"),
                link => format!("{}/{}?token={token}", self.base, template.path()),
                until => link.expires_at.format("%-d %B %Y, %H:%M UTC").to_string(),
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

/// Subject and text.
fn render(template: Template, values: &minijinja::Value) -> Result<(String, String), minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
    let said = environment.render_str(template.source(), values)?;
    let (subject, text) = said.split_once("\n\n").unwrap_or((&said, ""));
    Ok((subject.trim().replace(['\r', '\n'], " "), text.to_owned()))
}
