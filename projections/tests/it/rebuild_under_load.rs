//! Rebuilding a large read model while tickets are written and queried. `TENURE_TEST_HEAVY=1` does it with 200 000 events instead of 20 000.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use cqrs_es::{Aggregate as _, DomainEvent as _};
use domain::support::ticket::{AddComment, Channel, Event, Message, OpenTicket, Priority, Subject, Ticket, Visibility};
use domain::{Actor, Aggregate as _, Personal, Role, StreamId, TenantId, UserId};
use projections::cursor::CursorKey;
use projections::list::Paging;
use projections::rebuild::{Purpose, rebuild};
use projections::support::ticket::{self, Audience, Filter, Tickets};
use projections::support::ticket_thread::{self, Thread};
use projections::{ReadModel, View};
use store::{Append, DbRole, Expected, Metadata, NewEvent, StreamAppend};
use testing::node::{Node, system};
use testing::{Env, id};

/// Comments per ticket; with the opening ten events.
const COMMENTS: usize = 9;

/// Ten events of one ticket, as the executor would write them.
fn history(tenant: TenantId, requester: UserId) -> StreamAppend {
    let personal = |text: &str| Personal::new(requester.into(), text.to_owned());
    let opened = Event::Opened {
        number: 0,
        subject: personal("Help"),
        body: personal("It is broken."),
        priority: Priority::Normal,
        channel: Channel::Api,
        requester,
        opened_by: Some(requester),
        tags: vec!["hardware".into()],
    };
    let comments = (0..COMMENTS).map(|n| Event::CommentAdded {
        comment: id(),
        body: personal("Have you tried turning it off?"),
        visibility: if n % 3 == 0 { Visibility::Internal } else { Visibility::Public },
        author: None,
        by_agent: n % 2 == 0,
        first_response: n == 2,
    });
    let (mut state, mut events) = (Ticket::default(), Vec::new());
    for event in [opened].into_iter().chain(comments) {
        events.push(NewEvent {
            event_id: id(),
            event_type: event.event_type(),
            event_version: event.event_version(),
            payload: serde_json::to_value(&event).unwrap(),
            effects: state.effects(&event),
        });
        state.apply(event);
    }
    StreamAppend { aggregate: Ticket::TYPE, stream: StreamId::new(tenant, id()), expected: Expected::Exact(0), events }
}

async fn fill(node: &Node, tenant: TenantId, events: usize) -> Vec<StreamId> {
    let mut streams = Vec::new();
    while streams.len() * (COMMENTS + 1) < events {
        let requester = UserId(id());
        let batch: Vec<_> = (0..50).map(|_| history(tenant, requester)).collect();
        streams.extend(batch.iter().map(|append| append.stream));
        let metadata =
            Metadata { actor: system(), command_id: id(), correlation_id: id(), causation_id: None, traceparent: None, erases: None };
        node.store.append(Append { tenant, streams: batch, preconditions: vec![], keys: vec![], metadata }).await.unwrap();
    }
    streams
}

/// Until told to stop: opens tickets and comments on them.
async fn write(node: Arc<Node>, streams: Vec<StreamId>, stop: Arc<AtomicBool>) -> usize {
    let (mut written, requester) = (0, UserId(id()));
    while !stop.load(Ordering::SeqCst) {
        let stream = streams[written * 7919 % streams.len()];
        let body = Message::parse("And now?").unwrap();
        node.execute_on::<Ticket>(stream, AddComment { id: None, body: body.clone(), visibility: Visibility::Public }).await.unwrap();
        let open = OpenTicket {
            id: None,
            subject: Subject::parse("More").unwrap(),
            body,
            priority: Priority::Low,
            channel: Channel::Web,
            requester: None,
            tags: vec![],
        };
        let by = Actor::person(requester.to_string(), stream.tenant, Role::SupportAgent);
        node.executor.execute(commands::Request::<Ticket>::new(StreamId::new(stream.tenant, id()), open, by, id())).await.unwrap();
        written += 2;
    }
    written
}

/// Until told to stop: asks, and sees to it that no answer fails or is older than the one before.
async fn ask(node: Arc<Node>, streams: Vec<StreamId>, stop: Arc<AtomicBool>) -> usize {
    let (mut asked, mut position, mut versions) = (0, 0, vec![0; streams.len()]);
    let key = CursorKey([7; 32]);
    let paging = Paging { sort: Audience::Agent.ticket_orders().parse(None).unwrap(), limit: 20, cursor: None };
    let entries = Paging { sort: ticket_thread::ORDERS.parse(None).unwrap(), ..paging.clone() };
    let view = View::Tenant(streams[0].tenant);
    while !stop.load(Ordering::SeqCst) {
        let at = asked * 7907 % streams.len();
        let mut read = node.reads.begin(view, &[Tickets::NAME, Thread::NAME], None);
        let row = ticket::by_id(&mut read, Audience::Agent, streams[at].id).await.expect("no query fails").expect("no row is missing");
        let row = row.read().expect("a row");
        assert!(read.position >= position, "a query went backwards");
        position = read.position;
        assert!(row.version >= versions[at], "a row went backwards");
        versions[at] = row.version;
        let filter = Filter { q: Some("broken".into()), ..Filter::default() };
        let page = ticket::list(&mut read, &key, Audience::Agent, &filter, &paging).await.expect("no query fails");
        assert_eq!(page.rows.len(), 20);
        let thread = ticket_thread::list(&mut read, &key, Audience::Agent, streams[at].id, &entries).await.expect("no query fails");
        assert!(thread.rows.len() > COMMENTS);
        asked += 1;
    }
    asked
}

async fn rebuilt<M: ReadModel>(env: &Env, node: &Node, purpose: Purpose) {
    let heard = AtomicUsize::new(0);
    let report = |_: i64, _: i64| {
        heard.fetch_add(1, Ordering::SeqCst);
    };
    let built = rebuild::<M>(&node.store, &env.database.pool(DbRole::Projector, 4), purpose, None, &report).await.unwrap();
    assert_eq!(built.switched, purpose != Purpose::Verify, "{purpose:?}: {built:?}");
    assert!(built.differences.unwrap_or(0) == 0, "{purpose:?}: {built:?}");
    assert!(heard.load(Ordering::SeqCst) > 1, "it tells how far it is");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_rebuild_under_load_keeps_parity_and_switches_there_and_back_without_a_query_that_fails_or_goes_backwards() {
    let events = if std::env::var_os("TENURE_TEST_HEAVY").is_some() { 200_000 } else { 20_000 };
    let env = Env::new().await;
    let node = Arc::new(Node::start(&env).await);
    let tenant = node.provision("acme").await;
    let streams = fill(&node, tenant, events).await;
    node.settled().await;
    let stop = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn(write(node.clone(), streams.clone(), stop.clone()));
    let asking: Vec<_> = (0..3).map(|_| tokio::spawn(ask(node.clone(), streams.clone(), stop.clone()))).collect();
    rebuilt::<Tickets>(&env, &node, Purpose::Switch).await;
    rebuilt::<Thread>(&env, &node, Purpose::Switch).await;
    rebuilt::<Tickets>(&env, &node, Purpose::Back).await;
    rebuilt::<Thread>(&env, &node, Purpose::Back).await;
    stop.store(true, Ordering::SeqCst);
    let written = writing.await.unwrap();
    let mut asked = 0;
    for asking in asking {
        asked += asking.await.unwrap();
    }
    assert!(written > 20 && asked > 20, "{written} written, {asked} asked");
    node.settled().await;
    rebuilt::<Tickets>(&env, &node, Purpose::Verify).await;
    rebuilt::<Thread>(&env, &node, Purpose::Verify).await;
    println!("{events} events, {written} written and {asked} times asked meanwhile");
}
