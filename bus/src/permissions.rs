//! The accounts and users of a NATS server: only Tenure's own users may publish events.
//!
//! nats-server checks which subjects a client publishes and subscribes to, but not the subject that a client names for the reply: a subscriber in the account of the stream
//! could have the server answer into the stream. So subscribers have an account of their own. What they ask of JetStream reaches the stream through service imports, which send
//! every reply back into the account of whoever asked, and its events through stream imports, which go one way.
//!
//! The private server of `tenure up` has these accounts; `tenure bus permissions` prints them for a server of your own.

use serde_json::{Value, json};

/// The name of the user that the relay, and tools that rebuild the stream, connect as.
pub const RELAY: &str = "tenure";
/// The name of the user that Tenure's feeds connect as.
pub const FEED: &str = "tenure-feed";
/// The name of the user that outside subscribers connect as.
pub const SUBSCRIBER: &str = "subscriber";
/// The prefix of the inboxes of Tenure's own connections.
pub const INBOX: &str = "_INBOX_TENURE";

/// What a consumer of a stream asks of JetStream, once per answer: stream information, creating and deleting consumers, acknowledgements.
const REQUESTS: [&str; 9] = [
    "$JS.API.INFO",
    "$JS.API.STREAM.NAMES",
    "$JS.API.STREAM.INFO.*",
    "$JS.API.CONSUMER.CREATE.>",
    "$JS.API.CONSUMER.DURABLE.CREATE.>",
    "$JS.API.CONSUMER.DELETE.>",
    "$JS.API.CONSUMER.INFO.>",
    "$JS.API.CONSUMER.NAMES.*",
    "$JS.ACK.>",
];
/// The request that is answered by many messages.
const POLL: &str = "$JS.API.CONSUMER.MSG.NEXT.>";
/// What a push consumer, which Tenure's feed uses, acknowledges the flow of messages by.
const FLOW: &str = "$JS.FC.>";

/// The `accounts` block of a nats-server configuration, which is JSON. `password` tells the password of a user.
pub fn accounts(prefix: &str, mut password: impl FnMut(&str) -> String) -> Value {
    let heard = [format!("{prefix}.events.>"), format!("{prefix}.checkpoints.>")];
    let asked: Vec<&str> = REQUESTS.into_iter().chain([POLL]).collect();
    let mut exports: Vec<Value> = REQUESTS.iter().map(|subject| json!({"service": subject})).collect();
    exports.push(json!({"service": POLL, "response": "stream"}));
    exports.extend(heard.iter().map(|subject| json!({"stream": subject})));
    let from_tenure = |subject: &str| json!({"account": "TENURE", "subject": subject});
    let mut imports: Vec<Value> = asked.iter().map(|subject| json!({"service": from_tenure(subject)})).collect();
    imports.extend(heard.iter().map(|subject| json!({"stream": from_tenure(subject)})));
    let hint = format!("{prefix}.hint.*");
    let fed: Vec<&str> = asked.iter().copied().chain([FLOW, &hint]).collect();
    let subscribed: Vec<&str> = ["_INBOX.>"].into_iter().chain(heard.iter().map(String::as_str)).collect();
    let inbox = format!("{INBOX}.>");
    json!({
        "TENURE": {
            "jetstream": "enabled",
            "users": [
                {"user": RELAY, "password": password(RELAY)},
                user(FEED, &password(FEED), &fed, &[&inbox]),
            ],
            "exports": exports,
        },
        "SUBSCRIBERS": {
            "users": [user(SUBSCRIBER, &password(SUBSCRIBER), &asked, &subscribed)],
            "imports": imports,
        },
    })
}

fn user(name: &str, password: &str, publish: &[&str], subscribe: &[&str]) -> Value {
    json!({
        "user": name,
        "password": password,
        "permissions": {"publish": {"allow": publish}, "subscribe": {"allow": subscribe}},
    })
}
