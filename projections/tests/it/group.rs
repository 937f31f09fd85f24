//! Many read models that go through the log together.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bus::feed::Feed;
use domain::{StreamId, SubjectId, TenantId};
use projections::model::StreamKey;
use projections::rebuild::{Purpose, rebuild};
use projections::{Progress, Projection, Projections, ReadModel, parking, projector};
use sqlx::{Executor as _, PgPool};
use store::{DbRole, Recorded};
use testing::node::Node;
use testing::thing::{self, Event, Forget, Make, Row, Say, Thing, Things};
use testing::{Env, eventually, id};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const MANY: usize = 60;
/// Some of them cannot fold what is poison until they are cured.
const SICK: usize = 5;

static CURED: AtomicBool = AtomicBool::new(false);

/// Their names.
const NAMES: [&str; MANY] = [
    "m00_v1", "m01_v1", "m02_v1", "m03_v1", "m04_v1", "m05_v1", "m06_v1", "m07_v1", "m08_v1", "m09_v1", "m10_v1", "m11_v1", "m12_v1",
    "m13_v1", "m14_v1", "m15_v1", "m16_v1", "m17_v1", "m18_v1", "m19_v1", "m20_v1", "m21_v1", "m22_v1", "m23_v1", "m24_v1", "m25_v1",
    "m26_v1", "m27_v1", "m28_v1", "m29_v1", "m30_v1", "m31_v1", "m32_v1", "m33_v1", "m34_v1", "m35_v1", "m36_v1", "m37_v1", "m38_v1",
    "m39_v1", "m40_v1", "m41_v1", "m42_v1", "m43_v1", "m44_v1", "m45_v1", "m46_v1", "m47_v1", "m48_v1", "m49_v1", "m50_v1", "m51_v1",
    "m52_v1", "m53_v1", "m54_v1", "m55_v1", "m56_v1", "m57_v1", "m58_v1", "m59_v1",
];

/// One of many read models that fold the same as [`Things`].
struct Many<const N: usize>;

impl<const N: usize> ReadModel for Many<N> {
    const NAME: &'static str = NAMES[N];
    const SUBJECT: Option<&'static str> = Things::SUBJECT;
    type Events = Thing;
    type Key = StreamKey;
    type Row = Row;

    fn keys(event: &Recorded<Event>) -> Vec<StreamKey> {
        Things::keys(event)
    }

    fn apply(key: &StreamKey, row: Option<Row>, event: &Recorded<Event>) -> Option<Row> {
        let mut row = match &event.event {
            Event::Made { number, words } => {
                Row { tenant_id: key.tenant_id, id: key.id, version: 0, number: *number, subject_id: words.subject(), words: vec![] }
            }
            Event::Said { .. } | Event::Forgotten { .. } => row?,
        };
        if let Event::Made { words, .. } | Event::Said { words } = &event.event {
            let poisonous = N < SICK && !CURED.load(Ordering::SeqCst) && words.known().is_some_and(|words| words == "poison");
            assert!(!poisonous, "cannot fold this");
            row.words.extend(words.known().cloned());
        }
        Some(Row { version: event.version, ..row })
    }

    fn erased(row: Row) -> Row {
        Things::erased(row)
    }
}

macro_rules! for_many {
    ($callback:ident) => {
        $callback!(
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47
            48 49 50 51 52 53 54 55 56 57 58 59
        )
    };
}

async fn migrate(owner: &PgPool) {
    thing::migrate(owner).await;
    for name in NAMES {
        let table = format!(
            "create table read.{name}_g1 (like read.things_v1_g1 including all); alter table read.{name}_g1 drop column doc; select read.register('{name}')"
        );
        sqlx::raw_sql(&table).execute(owner).await.unwrap();
    }
}

/// A process that keeps all of them.
fn process(env: &Env, node: &Node, feed: &Feed) -> (Projections, JoinHandle<()>, CancellationToken) {
    let (cancel, progress) = (CancellationToken::new(), Progress::default());
    let group = projector::none(&node.store, &env.database.pool(DbRole::Projector, 8), feed, &cancel);
    macro_rules! add {
        ($($n:literal)*) => { $(group.add(Projection::<Many<$n>>::new(&node.store, &progress));)* };
    }
    for_many!(add);
    (group.clone(), tokio::spawn(group.run()), cancel)
}

async fn positions(env: &Env) -> Vec<i64> {
    sqlx::query_scalar("select position from read.generations where state = 'serving' and name like 'm__\\_v1'")
        .fetch_all(&env.owner)
        .await
        .unwrap()
}

async fn reached(env: &Env, node: &Node) {
    eventually("all have come to the log's end", || async {
        let head = node.store.head().await.unwrap().position;
        positions(env).await.iter().all(|position| *position == head).then_some(())
    })
    .await;
}

async fn make(node: &Node, tenant: TenantId, words: &str) -> StreamId {
    let stream = StreamId::new(tenant, id());
    node.execute_on::<Thing>(stream, Make { id: None, subject: SubjectId(stream.id), words: words.into() }).await.unwrap();
    stream
}

async fn say(node: &Node, stream: StreamId, words: &str) {
    node.execute_on::<Thing>(stream, Say { words: words.into() }).await.unwrap();
}

/// As after `kill -9`: nothing is given back.
async fn kill(env: &Env, (_, process, _): (Projections, JoinHandle<()>, CancellationToken)) {
    process.abort();
    let _ = process.await;
    env.owner
        .execute("update ops.leases set until = now() where name like 'projection/m%' or name like 'process/projection/%'")
        .await
        .unwrap();
}

async fn owners(env: &Env) -> BTreeSet<uuid::Uuid> {
    let owners: Vec<uuid::Uuid> = sqlx::query_scalar("select owner from ops.leases where name like 'projection/m%' and until > now()")
        .fetch_all(&env.owner)
        .await
        .unwrap();
    owners.into_iter().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_more_read_models_shared_by_two_processes_that_are_killed_again_and_again_equal_a_rebuild_with_parking_and_erasure() {
    let env = Env::new().await;
    migrate(&env.owner).await;
    let node = Arc::new(Node::start(&env).await);
    let tenant = node.provision("acme").await;
    let mut processes = vec![process(&env, &node, &node.feed), process(&env, &node, &node.feed)];
    eventually("both keep some", || async { (owners(&env).await.len() == 2).then_some(()) }).await;
    let writing = tokio::spawn({
        let node = node.clone();
        async move {
            let mut things = Vec::new();
            for n in 0..200 {
                things.push(make(&node, tenant, &format!("thing {n}")).await);
                say(&node, things[n / 2 * 2], "more").await;
                if n == 50 {
                    say(&node, things[3], "poison").await;
                }
                if n % 40 == 31 {
                    node.execute_on::<Thing>(things[n - 10], Forget {}).await.unwrap();
                }
            }
            things
        }
    });
    let (pool, silent) = (env.database.pool(DbRole::Projector, 3), Feed::silent());
    for n in 0..4 {
        kill(&env, processes.remove(0)).await;
        rebuild::<Many<7>>(&node.store, &pool, Purpose::Switch, None, &|_, _| {}).await.unwrap();
        processes.push(process(&env, &node, if n % 2 == 0 { &node.feed } else { &silent }));
    }
    let things = writing.await.unwrap();
    reached(&env, &node).await;
    let parked = parking::parked(&pool).await.unwrap();
    assert_eq!(
        parked.iter().filter(|parked| parked.name.starts_with('m')).count(),
        SICK,
        "each of them has parked the one that cannot be folded"
    );
    assert!(parked.iter().all(|parked| parked.partition == things[3].to_string()), "{parked:?}");
    CURED.store(true, Ordering::SeqCst);
    macro_rules! verify {
        ($($n:literal)*) => {
            $(if $n < SICK {
                parking::retry::<Many<$n>>(&node.store, &pool, &things[3].to_string()).await.unwrap();
            })*
            // What the projectors remember of these rows is not true any more.
            say(&node, things[3], "after").await;
            reached(&env, &node).await;
            $(
                let built = rebuild::<Many<$n>>(&node.store, &pool, Purpose::Verify, None, &|_, _| {}).await.unwrap();
                assert_eq!(built.differences, Some(0), "{}: {:?}", NAMES[$n], built.samples);
            )*
        };
    }
    for_many!(verify);
    let erased: i64 = sqlx::query_scalar("select count(*) from read.m00_v1 where words = '{}'").fetch_one(&env.owner).await.unwrap();
    assert_eq!(erased, 5, "what was forgotten is forgotten");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_events_is_one_transaction_however_many_read_models_there_are() {
    let env = Env::new().await;
    migrate(&env.owner).await;
    let node = Node::start(&env).await;
    let _process = process(&env, &node, &node.feed);
    let tenant = node.provision("acme").await;
    let thing = make(&node, tenant, "one").await;
    eventually("all go together", || async {
        // Those that are meant for another process, or were behind, have joined after a while.
        say(&node, thing, "more").await;
        reached(&env, &node).await;
        let transactions: i64 =
            sqlx::query_scalar("select count(distinct xmin::text) from read.generations where state = 'serving' and name like 'm__\\_v1'")
                .fetch_one(&env.owner)
                .await
                .unwrap();
        (transactions == 1).then_some(())
    })
    .await;
}

/// A read model whose table is gone. How often it was asked to fold is counted.
struct Broken;

static ASKED: AtomicUsize = AtomicUsize::new(0);

impl ReadModel for Broken {
    const NAME: &'static str = "broken_v1";
    type Events = Thing;
    type Key = StreamKey;
    type Row = Row;

    fn keys(event: &Recorded<Event>) -> Vec<StreamKey> {
        // The event that it always stops at.
        ASKED.fetch_add(usize::from(event.version == 1), Ordering::SeqCst);
        Things::keys(event)
    }

    fn apply(key: &StreamKey, row: Option<Row>, event: &Recorded<Event>) -> Option<Row> {
        Things::apply(key, row, event)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_model_that_always_fails_delays_no_other_and_goes_on_when_it_is_mended() {
    let env = Env::new().await;
    migrate(&env.owner).await;
    sqlx::raw_sql("create table read.broken_v1_g1 (like read.things_v1_g1 including all); alter table read.broken_v1_g1 drop column doc; select read.register('broken_v1'); alter table read.broken_v1_g1 rename to elsewhere")
        .execute(&env.owner)
        .await
        .unwrap();
    let node = Node::start(&env).await;
    let (group, _process, _) = process(&env, &node, &node.feed);
    group.add(Projection::<Broken>::new(&node.store, &Progress::default()));
    let tenant = node.provision("acme").await;
    let first = make(&node, tenant, "one").await;
    reached(&env, &node).await;
    eventually("it has failed", || async { (ASKED.load(Ordering::SeqCst) > 0).then_some(()) }).await;
    let position = async || -> i64 {
        sqlx::query_scalar("select position from read.generations where name = 'broken_v1'").fetch_one(&env.owner).await.unwrap()
    };
    let (stuck, asked) = (position().await, ASKED.load(Ordering::SeqCst));
    for n in 0..50 {
        say(&node, first, &n.to_string()).await;
        reached(&env, &node).await;
    }
    assert_eq!(position().await, stuck, "it stays where it is");
    assert!(ASKED.load(Ordering::SeqCst) - asked < 25, "it is tried now and then, and not with every page");
    sqlx::raw_sql("alter table read.elsewhere rename to broken_v1_g1").execute(&env.owner).await.unwrap();
    eventually("it has caught up", || async { (position().await == node.store.head().await.unwrap().position).then_some(()) }).await;
    say(&node, first, "together again").await;
    eventually("it goes on", || async { (position().await == node.store.head().await.unwrap().position).then_some(()) }).await;
    let pool = env.database.pool(DbRole::Projector, 3);
    let built = rebuild::<Broken>(&node.store, &pool, Purpose::Verify, None, &|_, _| {}).await.unwrap();
    assert_eq!(built.differences, Some(0), "{:?}", built.samples);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_share_the_read_models_and_one_keeps_all_when_the_other_ends_or_is_killed() {
    let env = Env::new().await;
    migrate(&env.owner).await;
    let node = Node::start(&env).await;
    let first = process(&env, &node, &node.feed);
    eventually("one keeps all", || async { (owners(&env).await.len() == 1).then_some(()) }).await;
    let second = process(&env, &node, &node.feed);
    eventually("both keep some", || async { (owners(&env).await.len() == 2).then_some(()) }).await;
    let tenant = node.provision("acme").await;
    make(&node, tenant, "one").await;
    reached(&env, &node).await;
    first.2.cancel();
    first.1.await.unwrap();
    eventually("the other keeps all", || async { (owners(&env).await.len() == 1).then_some(()) }).await;
    make(&node, tenant, "two").await;
    reached(&env, &node).await;
    let third = process(&env, &node, &node.feed);
    eventually("both keep some", || async { (owners(&env).await.len() == 2).then_some(()) }).await;
    kill(&env, second).await;
    make(&node, tenant, "three").await;
    reached(&env, &node).await;
    third.2.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_from_before_rows_had_a_text_is_shown_and_compared_like_any_other() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let tenant = node.provision("acme").await;
    node.settled().await;
    let shown = async || {
        let mut read = node.reads.begin(projections::View::Tenant(tenant), &["tenants_v1"], None);
        projections::identity::tenant::by_id(&mut read, tenant.0).await.unwrap().unwrap().into_text()
    };
    let before = shown().await;
    env.owner.execute("update read.tenants_v1_g1 set doc = null").await.unwrap();
    assert_eq!(shown().await, before);
    node.verified().await;
    env.owner.execute("update read.tenants_v1_g1 set name = 'forged'").await.unwrap();
    let pool = env.database.pool(DbRole::Projector, 3);
    let built = rebuild::<projections::identity::tenant::Tenants>(&node.store, &pool, Purpose::Verify, None, &|_, _| {}).await.unwrap();
    assert_eq!(built.differences, Some(1));
}
