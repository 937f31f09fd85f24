//! Permissions of the users of a NATS server: only the relay may publish events.
//!
//! The private server of `tenure up` has these users; `tenure bus permissions` prints them for a server of your own.

use serde_json::{Value, json};

/// The subjects that a user may publish to and subscribe to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// The name of the user.
    pub name: &'static str,
    /// Subjects to publish to.
    pub publish: Vec<String>,
    /// Subjects to subscribe to.
    pub subscribe: Vec<String>,
}

/// The name of the user that Tenure's feeds connect as.
pub const FEED: &str = "tenure-feed";
/// The name of the user that outside subscribers connect as.
pub const SUBSCRIBER: &str = "subscriber";
/// The prefix of the inboxes of Tenure's own connections, which no subscriber may listen to.
pub const INBOX: &str = "_INBOX_TENURE";

/// Subjects that a consumer of a stream has to publish to: stream information, creating and polling consumers, acknowledgements.
const CONSUMING: [&str; 11] = [
    "$JS.API.INFO",
    "$JS.API.STREAM.NAMES",
    "$JS.API.STREAM.INFO.*",
    "$JS.API.CONSUMER.CREATE.>",
    "$JS.API.CONSUMER.DURABLE.CREATE.>",
    "$JS.API.CONSUMER.DELETE.>",
    "$JS.API.CONSUMER.INFO.>",
    "$JS.API.CONSUMER.NAMES.*",
    "$JS.API.CONSUMER.MSG.NEXT.>",
    "$JS.ACK.>",
    "$JS.FC.>",
];

/// The permissions of a process without a relay: it consumes the stream, and tells relays that the log has grown.
pub fn feed(prefix: &str) -> Permissions {
    let mut publish: Vec<String> = CONSUMING.map(str::to_owned).to_vec();
    publish.push(format!("{prefix}.hint.*"));
    Permissions { name: FEED, publish, subscribe: vec![format!("{INBOX}.>")] }
}

/// The permissions of an outside subscriber: it consumes the stream, and hears events and signed checkpoints as they are published.
pub fn subscriber(prefix: &str) -> Permissions {
    let subscribe = ["_INBOX.>".to_owned(), format!("{prefix}.events.>"), format!("{prefix}.checkpoints.>")];
    Permissions { name: SUBSCRIBER, publish: CONSUMING.map(str::to_owned).to_vec(), subscribe: subscribe.to_vec() }
}

/// The `authorization` block of a nats-server configuration, with passwords to be filled in. The relay, and tools that rebuild the stream, connect as `tenure`.
pub fn configuration(prefix: &str) -> String {
    let user = |permissions: &Permissions| {
        json!({
            "user": permissions.name,
            "password": format!("<password of {}>", permissions.name),
            "permissions": {"publish": {"allow": permissions.publish}, "subscribe": {"allow": permissions.subscribe}},
        })
    };
    let users: Vec<Value> =
        vec![json!({"user": "tenure", "password": "<password of tenure>"}), user(&feed(prefix)), user(&subscriber(prefix))];
    format!("authorization {{ users: {:#} }}", Value::from(users))
}
