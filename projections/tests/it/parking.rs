//! One event that cannot be folded stops its own partition and no other.

use domain::{StreamId, SubjectId, TenantId};
use projections::parking::{ParkingError, discard, discarded, parked, retry};
use projections::rebuild::{Purpose, rebuild};
use projections::{ReadModel as _, View};
use sqlx::PgPool;
use store::DbRole;
use testing::node::Node;
use testing::thing::{self, Forget, Make, Say, Thing, Things};
use testing::{Env, id};

/// A tenant with things.
struct Shelf {
    env: Env,
    node: Node,
    pool: PgPool,
    tenant: TenantId,
}

impl Shelf {
    async fn new() -> Self {
        let env = Env::new().await;
        thing::migrate(&env.owner).await;
        let node = Node::start(&env).await;
        node.project::<Things>();
        let tenant = node.provision("acme").await;
        let pool = env.database.pool(DbRole::Projector, 4);
        Self { env, node, pool, tenant }
    }

    async fn make(&self, words: &str) -> StreamId {
        let stream = StreamId::new(self.tenant, id());
        self.node.execute_on::<Thing>(stream, Make { id: None, subject: SubjectId(stream.id), words: words.into() }).await.unwrap();
        stream
    }

    async fn say(&self, stream: StreamId, words: &str) -> i64 {
        self.node.execute_on::<Thing>(stream, Say { words: words.into() }).await.unwrap().position
    }

    /// What the read model has of a thing.
    async fn words(&self, stream: StreamId) -> Option<Vec<String>> {
        let mut read = self.node.reads.begin(View::Tenant(self.tenant), &[Things::NAME], None);
        thing::by_id(&mut read, stream.id).await.unwrap().map(|row| row.read().unwrap().words)
    }

    async fn parked(&self) -> Vec<(String, i64, i64)> {
        parked(&self.pool).await.unwrap().into_iter().map(|p| (p.partition, p.position, p.waiting)).collect()
    }

    async fn assert_equals_a_rebuild(&self) {
        let built = rebuild::<Things>(&self.node.store, &self.pool, Purpose::Verify, None, &|_, _| {}).await.unwrap();
        assert_eq!(built.differences, Some(0), "{:?}", built.samples);
    }
}

/// Words that cannot be folded until they are cured; of this test alone.
fn poison() -> String {
    format!("poison {}", id())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fold_that_fails_for_one_stream_parks_that_partition_only_and_its_later_events_wait_in_order() {
    let shelf = Shelf::new().await;
    let poison = poison();
    let (sick, well) = (shelf.make("one").await, shelf.make("eins").await);
    let at = shelf.say(sick, &poison).await;
    shelf.say(well, "zwei").await;
    for words in ["three", "four"] {
        shelf.say(sick, words).await;
    }
    let born_sick = shelf.make(&poison).await;
    shelf.say(well, "drei").await;
    shelf.node.settled().await;
    assert_eq!(shelf.words(well).await.unwrap(), ["eins", "zwei", "drei"], "all others go on");
    assert_eq!(shelf.words(sick).await.unwrap(), ["one"]);
    assert_eq!(shelf.words(born_sick).await, None);
    assert_eq!(shelf.parked().await, [(sick.to_string(), at, 3), (born_sick.to_string(), at + 4, 1)]);
    // A query says so, to this tenant and to no other.
    let mut read = shelf.node.reads.begin(View::Tenant(shelf.tenant), &[Things::NAME], None);
    read.look().await.unwrap();
    assert_eq!(
        (read.parked, read.parked_of(born_sick).await.unwrap(), read.parked_of(well).await.unwrap()),
        (Some(at), Some(at + 4), None)
    );
    let other = shelf.node.provision("other").await;
    let mut read = shelf.node.reads.begin(View::Tenant(other), &[Things::NAME], None);
    read.look().await.unwrap();
    assert_eq!(read.parked, None);
    // A rebuild comes across the same.
    shelf.assert_equals_a_rebuild().await;
    let built = rebuild::<Things>(&shelf.node.store, &shelf.pool, Purpose::Switch, None, &|_, _| {}).await.unwrap();
    assert!(built.switched);
    assert_eq!(shelf.parked().await.len(), 2, "the next generation has its own");
    // Retried too early, it stays where it is.
    let retried = retry::<Things>(&shelf.node.store, &shelf.pool, &sick.to_string()).await.unwrap();
    assert_eq!((retried.folded, retried.stuck.unwrap().0), (0, at));
    // What comes meanwhile waits behind, more than one transaction takes.
    let more: Vec<String> = (0..510).map(|n| n.to_string()).collect();
    for words in &more {
        shelf.say(sick, words).await;
    }
    shelf.node.settled().await;
    thing::cure(&poison);
    let retried = retry::<Things>(&shelf.node.store, &shelf.pool, &sick.to_string()).await.unwrap();
    assert_eq!((retried.folded, retried.stuck), (513, None));
    let all: Vec<&str> = ["one", &poison, "three", "four"].into_iter().chain(more.iter().map(String::as_str)).collect();
    assert_eq!(shelf.words(sick).await.unwrap(), all, "in order");
    retry::<Things>(&shelf.node.store, &shelf.pool, &born_sick.to_string()).await.unwrap();
    assert_eq!(shelf.parked().await, []);
    shelf.say(sick, "last").await;
    shelf.node.settled().await;
    assert_eq!(shelf.words(sick).await.unwrap().last().unwrap(), "last", "it goes on by itself");
    shelf.assert_equals_a_rebuild().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discarded_event_is_left_out_for_good_and_that_is_recorded() {
    let shelf = Shelf::new().await;
    let poison = poison();
    let sick = shelf.make("one").await;
    let at = shelf.say(sick, &poison).await;
    shelf.say(sick, "three").await;
    shelf.node.settled().await;
    let nothing = discard::<Things>(&shelf.node.store, &shelf.pool, &sick.to_string(), at + 1, "why not").await;
    assert!(matches!(nothing, Err(ParkingError::NotParked(..))));
    let done = discard::<Things>(&shelf.node.store, &shelf.pool, &sick.to_string(), at, "known to be bad").await.unwrap();
    assert_eq!((done.position, done.reason.as_str(), done.tenant_id), (at, "known to be bad", shelf.tenant.0));
    assert!(done.failure.contains("panicked") && !done.failure.contains("cannot fold"), "no words that may be personal: {}", done.failure);
    retry::<Things>(&shelf.node.store, &shelf.pool, &sick.to_string()).await.unwrap();
    assert_eq!(shelf.words(sick).await.unwrap(), ["one", "three"]);
    assert_eq!(shelf.parked().await, []);
    assert_eq!(discarded(&shelf.pool).await.unwrap(), [done], "it is recorded");
    // Every later fold leaves it out too, also one that could fold it by now.
    thing::cure(&poison);
    shelf.assert_equals_a_rebuild().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_erased_is_forgotten_by_live_rows_rebuilt_rows_and_parked_partitions_alike() {
    let shelf = Shelf::new().await;
    let (known, sick) = (shelf.make("marmalade").await, shelf.make("one").await);
    shelf.say(sick, &poison()).await;
    shelf.say(sick, "marmalade").await;
    shelf.node.settled().await;
    // A generation that is kept for a way back.
    let built = rebuild::<Things>(&shelf.node.store, &shelf.pool, Purpose::Switch, None, &|_, _| {}).await.unwrap();
    assert!(built.switched);
    for stream in [known, sick] {
        shelf.node.execute_on::<Thing>(stream, Forget {}).await.unwrap();
    }
    shelf.node.settled().await;
    for table in ["things_v1_g1", "things_v1_g2"] {
        let rows: Vec<String> =
            sqlx::query_scalar(&format!("select t::text from read.{table} t")).fetch_all(&shelf.env.owner).await.unwrap();
        assert!(rows.len() == 2 && !rows.iter().any(|row| row.contains("marmalade") || row.contains("one")), "{table}: {rows:?}");
    }
    // What has been erased can be folded.
    let retried = retry::<Things>(&shelf.node.store, &shelf.pool, &sick.to_string()).await.unwrap();
    assert_eq!((retried.folded, retried.stuck), (3, None));
    assert_eq!(shelf.words(sick).await.unwrap(), [""; 0]);
    shelf.assert_equals_a_rebuild().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_is_deleted_takes_its_parked_partitions_along() {
    use domain::identity::tenant::{CancelTenant, CompleteProvisioning, DeleteTenant};
    let shelf = Shelf::new().await;
    let poison = poison();
    let sick = shelf.make(&poison).await;
    shelf.node.settled().await;
    assert_eq!(shelf.parked().await.len(), 1);
    shelf.node.execute(shelf.tenant, CompleteProvisioning::default()).await.unwrap();
    shelf.node.execute(shelf.tenant, CancelTenant {}).await.unwrap();
    shelf.node.execute(shelf.tenant, DeleteTenant {}).await.unwrap();
    shelf.node.settled().await;
    thing::cure(&poison);
    assert!(matches!(retry::<Things>(&shelf.node.store, &shelf.pool, &sick.to_string()).await, Err(ParkingError::NotParked(..))));
    assert_eq!(shelf.words(sick).await, None);
    shelf.assert_equals_a_rebuild().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn going_back_to_a_generation_does_not_bring_back_what_was_discarded_or_mended_since() {
    let shelf = Shelf::new().await;
    let (poison, mended) = (poison(), poison());
    let (sick, better) = (shelf.make("one").await, shelf.make("eins").await);
    let at = shelf.say(sick, &poison).await;
    shelf.say(sick, "three").await;
    shelf.say(better, &mended).await;
    shelf.node.settled().await;
    let switch = async |purpose| rebuild::<Things>(&shelf.node.store, &shelf.pool, purpose, None, &|_, _| {}).await.unwrap();
    assert!(switch(Purpose::Switch).await.switched);
    discard::<Things>(&shelf.node.store, &shelf.pool, &sick.to_string(), at, "known to be bad").await.unwrap();
    thing::cure(&poison);
    thing::cure(&mended);
    for stream in [sick, better] {
        retry::<Things>(&shelf.node.store, &shelf.pool, &stream.to_string()).await.unwrap();
    }
    assert!(switch(Purpose::Back).await.switched);
    assert_eq!(shelf.words(sick).await.unwrap(), ["one", "three"]);
    assert_eq!(shelf.words(better).await.unwrap(), ["eins", mended.as_str()]);
    assert_eq!(shelf.parked().await, []);
    shelf.assert_equals_a_rebuild().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_this_binary_does_not_know_is_never_parked_and_the_lease_is_given_up() {
    use store::{Append, Expected, Metadata, NewEvent, StreamAppend};
    let shelf = Shelf::new().await;
    let well = shelf.make("one").await;
    shelf.node.settled().await;
    let event = NewEvent {
        event_id: id(),
        event_type: "thing.said".into(),
        event_version: "9".into(),
        payload: serde_json::json!({"type": "said", "how": "in a way of the future"}),
        effects: vec![],
    };
    let stream = StreamAppend { aggregate: "thing", stream: well, expected: Expected::Any, events: vec![event] };
    let metadata = Metadata {
        actor: testing::node::system(),
        command_id: id(),
        correlation_id: id(),
        causation_id: None,
        traceparent: None,
        erases: None,
    };
    let append = Append { tenant: shelf.tenant, streams: vec![stream], preconditions: vec![], keys: vec![], metadata };
    let position = shelf.node.store.append(append).await.unwrap().position;
    testing::eventually("the lease is given up", || async {
        let held: bool = sqlx::query_scalar("select until > now() from ops.leases where name = 'projection/things_v1'")
            .fetch_one(&shelf.env.owner)
            .await
            .unwrap();
        (!held).then_some(())
    })
    .await;
    assert_eq!(shelf.parked().await, []);
    let positions = shelf.node.reads.statuses().await.unwrap();
    let at = |model: &str| positions.iter().find(|status| status.name == model).unwrap().position;
    assert_eq!(at("things_v1"), position - 1, "it waits for a newer process");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_was_stopped_and_wakes_up_after_another_one_changes_nothing() {
    let shelf = Shelf::new().await;
    for n in 0..40 {
        shelf.make(&n.to_string()).await;
    }
    shelf.node.settled().await;
    // One page a second, so that it is still at it when it wakes up.
    let rate = std::num::NonZeroU32::new(10);
    let stopped = rebuild::<Things>(&shelf.node.store, &shelf.pool, Purpose::Replace, rate, &|_, _| {});
    tokio::pin!(stopped);
    let building = async || {
        let position: Option<i64> =
            sqlx::query_scalar("select position from read.generations where name = 'things_v1' and state = 'building'")
                .fetch_optional(&shelf.env.owner)
                .await
                .unwrap();
        position.filter(|position| *position > 0)
    };
    tokio::select! {
        built = &mut stopped => panic!("too quick: {built:?}"),
        _ = testing::eventually("it is half-way", building) => {}
    }
    // It does not move while it is not polled, and its lease runs out.
    sqlx::query("update ops.leases set until = now() where name = 'rebuild/things_v1'").execute(&shelf.env.owner).await.unwrap();
    let built = rebuild::<Things>(&shelf.node.store, &shelf.pool, Purpose::Switch, None, &|_, _| {}).await.unwrap();
    assert!(built.switched);
    let woken = stopped.await;
    assert!(woken.is_err(), "{woken:?}");
    let later = shelf.make("later").await;
    shelf.node.settled().await;
    assert_eq!(shelf.words(later).await.unwrap(), ["later"]);
    shelf.assert_equals_a_rebuild().await;
}
