//! Load that remembers: who was told what, and whether the log agrees afterwards.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;
use testing::{eventually, id};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How many callers there are.
const CALLERS: usize = 8;
/// Tags per ticket.
const TAGS: usize = 2;
/// How long one answer may take before the caller gives up on it and asks again.
const ANSWER: Duration = Duration::from_secs(10);
/// How long the callers may need, after the last fault, to get an answer to everything they have asked.
const SETTLE: Duration = Duration::from_secs(60);

/// What became of one command, by the mark that its event has in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Answered with this position.
    Acknowledged(i64),
    /// Answered with a refusal.
    Refused,
    /// Never answered, and not asked again.
    Unknown,
}

#[derive(Default)]
struct Shared {
    /// Where the processes are that answer commands.
    apis: Mutex<Vec<String>>,
    /// With the number of restores before the try that was answered.
    fates: Mutex<HashMap<String, (Fate, usize)>>,
    /// The head of the log after each restore to an earlier state.
    restored: Mutex<Vec<i64>>,
    wrong: Mutex<Vec<String>>,
    acknowledged: AtomicUsize,
    again: AtomicUsize,
    read: AtomicUsize,
}

/// Callers at work.
pub struct Load {
    shared: Arc<Shared>,
    stop: CancellationToken,
    callers: JoinSet<()>,
}

/// What all of it came to.
pub struct Counts {
    pub acknowledged: usize,
    pub refused: usize,
    pub unknown: usize,
    /// Commands that were sent again because there was no answer.
    pub again: usize,
    /// Queries that were answered with what had been written.
    pub read: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acknowledged, refused, unknown, again, read } = self;
        write!(
            f,
            "{acknowledged} commands acknowledged, {refused} refused, {unknown} never answered, {again} asked again; {read} queries answered"
        )
    }
}

impl Load {
    /// Callers who act for one tenant.
    pub fn start(token: &str, apis: Vec<String>) -> Self {
        let shared = Arc::new(Shared { apis: Mutex::new(apis), ..Shared::default() });
        let (stop, mut callers) = (CancellationToken::new(), JoinSet::new());
        let http = Client::builder().timeout(ANSWER).build().unwrap();
        for number in 0..CALLERS {
            let caller = Caller {
                shared: shared.clone(),
                http: http.clone(),
                token: token.to_owned(),
                stop: stop.clone(),
                number,
                sent: 0,
                restores: 0,
            };
            callers.spawn(caller.work());
        }
        Self { shared, stop, callers }
    }

    /// Where the commands go from now on.
    pub fn to(&self, apis: Vec<String>) {
        *self.shared.apis.lock().unwrap() = apis;
    }

    /// The log was restored to an earlier state, and ends here now. No process that answered before is there any more.
    pub fn restored(&self, head: i64) {
        self.shared.restored.lock().unwrap().push(head);
    }

    /// How many queries were answered with what had been written.
    pub fn read(&self) -> usize {
        self.shared.read.load(Ordering::Relaxed)
    }

    /// How many commands were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until so many more have been, which shows that work goes on.
    pub async fn progress(&self, more: usize) -> Duration {
        let (began, wanted) = (Instant::now(), self.acknowledged() + more);
        eventually(&format!("{more} more commands are acknowledged"), || async {
            assert_eq!(*self.shared.wrong.lock().unwrap(), Vec::<String>::new());
            (self.acknowledged() >= wanted).then_some(())
        })
        .await;
        began.elapsed()
    }

    /// Lets every caller finish what they are at, and compares what they were told with the log: acknowledged is there once and where it was said, refused is not there,
    /// unknown at most once, and nothing else at all.
    pub async fn settle(&mut self, owner: &PgPool) -> Counts {
        self.stop.cancel();
        let ended = tokio::time::timeout(SETTLE, async {
            while let Some(ended) = self.callers.join_next().await {
                ended.unwrap();
            }
        });
        assert!(ended.await.is_ok(), "every caller gets an answer in the end");
        let wrong = std::mem::take(&mut *self.shared.wrong.lock().unwrap());
        assert_eq!(wrong, Vec::<String>::new());
        let events: Vec<(i64, String, String, Value)> = sqlx::query_as(
            "select position, event_type, aggregate_id, payload::jsonb from events where aggregate_type = 'ticket' order by position",
        )
        .fetch_all(owner)
        .await
        .unwrap();
        let (mut found, mut numbers): (HashMap<String, Vec<i64>>, Vec<i64>) = (HashMap::new(), Vec::new());
        for (position, event_type, aggregate_id, payload) in events {
            let mark = match event_type.as_str() {
                "ticket.opened" => {
                    numbers.extend(numbers_in(&payload));
                    aggregate_id.split('/').nth(1).unwrap().to_owned()
                }
                "ticket.tagged" => tag_in(&payload),
                "ticket.comment_added" => format!("comment on {}", aggregate_id.split('/').nth(1).unwrap()),
                other => panic!("nobody asked for {other}"),
            };
            found.entry(mark).or_default().push(position);
        }
        let mut fates: HashMap<String, Fate> = HashMap::new();
        let restored = self.shared.restored.lock().unwrap().clone();
        for (mark, (fate, restores)) in self.shared.fates.lock().unwrap().iter() {
            // A restore takes back commands that were acknowledged before it at positions beyond the restored head.
            let taken_back = |position: i64| restored[*restores..].iter().any(|head| position > *head);
            match fate {
                Fate::Acknowledged(position) if taken_back(*position) => {}
                Fate::Acknowledged(_) | Fate::Refused | Fate::Unknown => drop(fates.insert(mark.clone(), *fate)),
            }
        }
        for (mark, fate) in &fates {
            let there = found.remove(mark).unwrap_or_default();
            match fate {
                Fate::Acknowledged(position) => assert_eq!(there, [*position], "{mark} was acknowledged at {position}"),
                Fate::Refused => assert_eq!(there, [0; 0], "{mark} was refused"),
                Fate::Unknown => assert!(there.len() <= 1, "{mark} is there more than once: {there:?}"),
            }
        }
        assert_eq!(found, HashMap::new(), "nobody asked for these");
        assert!(numbers.iter().copied().eq(1..=i64::try_from(numbers.len()).unwrap()), "tickets are numbered without a gap");
        let count = |wanted: fn(&Fate) -> bool| fates.values().filter(|fate| wanted(fate)).count();
        Counts {
            acknowledged: count(|fate| matches!(fate, Fate::Acknowledged(_))),
            refused: count(|fate| *fate == Fate::Refused),
            unknown: count(|fate| *fate == Fate::Unknown),
            again: self.shared.again.load(Ordering::Relaxed),
            read: self.read(),
        }
    }
}

fn numbers_in(payload: &Value) -> Option<i64> {
    find(payload, "number")?.as_i64()
}

fn tag_in(payload: &Value) -> String {
    find(payload, "tag").and_then(Value::as_str).unwrap().to_owned()
}

/// The first field of this name at any depth.
fn find<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    let map = value.as_object()?;
    map.get(name).or_else(|| map.values().find_map(|value| find(value, name)))
}

/// Somebody who opens tickets and tags them.
struct Caller {
    shared: Arc<Shared>,
    http: Client,
    token: String,
    stop: CancellationToken,
    number: usize,
    sent: usize,
    /// How often the log had been restored when the present ticket was begun.
    restores: usize,
}

impl Caller {
    async fn work(mut self) {
        while !self.stop.is_cancelled() {
            let ticket = id();
            self.restores = self.restores();
            let opening = json!({"id": ticket, "subject": "It broke", "body": "again"});
            if !matches!(self.ask(&ticket.to_string(), "/v1/tickets", &opening).await, Fate::Acknowledged(_)) {
                continue;
            }
            let (path, mut tagged) = (format!("/v1/tickets/{ticket}/tag"), None);
            for n in 0..TAGS {
                let mark = format!("t-{}-{}-{n}", self.number, self.sent);
                if self.restores() > self.restores {
                    break;
                }
                if let Fate::Acknowledged(position) = self.ask(&mark, &path, &json!({"tag": mark})).await {
                    tagged = Some((mark, position));
                }
            }
            if self.restores() > self.restores {
                continue;
            }
            // Unlike the others, this would be done again if it came again.
            let path = format!("/v1/tickets/{ticket}/comments");
            self.ask(&format!("comment on {ticket}"), &path, &json!({"body": "And again"})).await;
            if let Some((mark, position)) = tagged {
                self.read(ticket, &mark, position).await;
            }
            // Nobody may be told that this was done.
            let nowhere = Uuid::from_u128(u128::try_from(self.sent).unwrap());
            self.ask(&format!("t-refused-{}-{}", self.number, self.sent), &format!("/v1/tickets/{nowhere}/tag"), &json!({"tag": "x"}))
                .await;
        }
    }

    /// Sends a command until it is answered, with the same key and to one process after another; once in a while gives up.
    async fn ask(&mut self, mark: &str, path: &str, body: &Value) -> Fate {
        self.sent += 1;
        let (key, gives_up) = (id().to_string(), self.sent.is_multiple_of(3));
        let (mut tries, mut restores) = (0, self.restores());
        let fate = loop {
            if tries > 0 && gives_up {
                break Fate::Unknown;
            }
            restores = self.restores();
            if let Some(fate) = self.try_once(mark, path, &key, body, tries).await {
                break fate;
            }
            tries += 1;
            self.shared.again.fetch_add(1, Ordering::Relaxed);
            pause().await;
        };
        self.shared.fates.lock().unwrap().insert(mark.to_owned(), (fate, restores));
        fate
    }

    /// Reads what was written. There may be no answer, but no wrong one.
    async fn read(&self, ticket: Uuid, mark: &str, position: i64) {
        let Some(base) = self.api(0) else { return };
        let request = self.http.get(format!("{base}/v1/tickets/{ticket}?after={position}")).bearer_auth(&self.token);
        let Ok(answer) = request.send().await else { return };
        let status = answer.status();
        let Ok(body) = answer.json::<Value>().await else { return };
        if status == StatusCode::OK && body["tags"].as_array().is_some_and(|tags| tags.contains(&json!(mark))) {
            self.shared.read.fetch_add(1, Ordering::Relaxed);
        } else if !matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT) && self.restores() == self.restores {
            self.shared.wrong.lock().unwrap().push(format!("{ticket} at {position}: {status} {body}"));
        }
    }

    /// How often the log has been restored to an earlier state.
    fn restores(&self) -> usize {
        self.shared.restored.lock().unwrap().len()
    }

    /// Which process to ask at the n-th try.
    fn api(&self, tries: usize) -> Option<String> {
        let apis = self.shared.apis.lock().unwrap();
        apis.get((self.number + tries) % apis.len().max(1)).cloned()
    }

    async fn try_once(&self, mark: &str, path: &str, key: &str, body: &Value, tries: usize) -> Option<Fate> {
        let base = self.api(tries)?;
        let request = self.http.post(format!("{base}{path}")).bearer_auth(&self.token).header("idempotency-key", key).json(body);
        let answer = request.send().await.ok()?;
        let status = answer.status();
        let body = answer.json::<Value>().await.ok()?;
        match status {
            StatusCode::OK | StatusCode::CREATED => {
                self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                Some(Fate::Acknowledged(body["position"].as_i64()?))
            }
            // Nothing is there, or not any more.
            StatusCode::NOT_FOUND if mark.starts_with("t-refused") || self.restores() > self.restores => Some(Fate::Refused),
            status if status.is_server_error() && body["code"] != "internal" => None,
            status => {
                self.shared.wrong.lock().unwrap().push(format!("{path}: {status} {body}"));
                Some(Fate::Refused)
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a client that waits before it asks again")]
async fn pause() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}
