//! Read models against real servers.
#![expect(clippy::unwrap_used, reason = "tests may")]

mod group;
mod parking;
mod rebuild_under_load;

use std::sync::Arc;

use bus::feed::Feed;
use bus::group::Together;
use bus::subscription::{Handler as _, HandlerError};
use commands::{Executor, Request};
use domain::identity::tenant::{
    CancelTenant, ChangeSlug, Command, CompleteProvisioning, ProvisionTenant, ReactivateTenant, RenameTenant, Slug, Tenant, UpdateSettings,
};
use domain::json::JsonObject;
use domain::text::DisplayName;
use domain::{StreamId, TenantId};
use projections::cursor::CursorKey;
use projections::identity::tenant::{self, Filter, Tenants};
use projections::identity::tenant_timeline::Timeline;
use projections::list::Paging;
use projections::projector::{self, Generations};
use projections::rebuild::{Purpose, RebuildError, rebuild};
use projections::{Progress, Projection, QueryError, ReadModel, View, statistics};
use serde_json::json;
use sqlx::{Executor as _, PgPool};
use store::{DbRole, Store};
use testing::node::{Node, system};
use testing::{Env, eventually};
use tokio_util::sync::CancellationToken;

/// A history with everything in it that rows depend on.
async fn history(node: &Node, rounds: usize) -> Vec<TenantId> {
    let mut tenants = Vec::new();
    for n in 0..5 {
        tenants.push(node.provision(&format!("tenant-{n}")).await);
    }
    change(node, &tenants, rounds).await;
    tenants
}

async fn change(node: &Node, tenants: &[TenantId], rounds: usize) {
    for n in 0..rounds {
        let tenant = tenants[n % tenants.len()];
        let _ = match n % 6 {
            0 => node.execute(tenant, CompleteProvisioning::default()).await,
            1 => node.execute(tenant, RenameTenant { name: DisplayName::parse(&format!("name {n}")).unwrap() }).await,
            2 => node.execute(tenant, ChangeSlug { slug: Slug::parse(&format!("slug-{}", n % 17)).unwrap() }).await,
            3 => node.execute(tenant, UpdateSettings(JsonObject::try_from(json!({"n": n, "old": null})).unwrap())).await,
            4 => node.execute(tenant, CancelTenant {}).await,
            _ => node.execute(tenant, ReactivateTenant {}).await,
        };
    }
}

fn paging(sort: &str, limit: u32, cursor: Option<&str>) -> Paging {
    Paging { sort: tenant::ORDERS.parse(Some(sort)).unwrap(), limit, cursor: cursor.map(str::to_owned) }
}

/// A group of one read model, which does what the test says.
fn alone<M: ReadModel>(store: &Store, pool: &PgPool) -> Together<Generations> {
    let group = projector::none(store, pool, &Feed::silent(), &CancellationToken::new());
    group.add(Projection::<M>::new(store, &Progress::default()));
    group.handler()
}

async fn assert_equals_a_rebuild<M: ReadModel>(env: &Env, node: &Node) {
    let built = rebuild::<M>(&node.store, &env.database.pool(DbRole::Projector, 2), Purpose::Verify, None, &|_, _| {}).await.unwrap();
    assert_eq!(built.differences, Some(0), "{}: {:?}", M::NAME, built.samples);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_fed_through_the_feed_equal_a_rebuild() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    history(&node, 150).await;
    node.settled().await;
    assert_equals_a_rebuild::<Tenants>(&env, &node).await;
    assert_equals_a_rebuild::<Timeline>(&env, &node).await;
    let rows: i64 = sqlx::query_scalar("select count(*) from read.tenants_v1").fetch_one(&env.owner).await.unwrap();
    assert_eq!(rows, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_fed_from_the_log_in_random_batches_and_twice_equal_a_rebuild() {
    let env = Env::new().await;
    let store = env.store().await;
    {
        // Only to write a history.
        let node = Node::start(&env).await;
        history(&node, 120).await;
        node.settled().await;
    }
    env.owner.execute("update read.generations set position = 0, log_hash = decode(repeat('00', 32), 'hex'), epoch = 0; truncate read.tenants_v1_g1, read.tenant_timeline_v1_g1; update ops.leases set until = now()").await.unwrap();
    let pool = env.database.pool(DbRole::Projector, 2);
    let events: Vec<_> = store.read_from(0, 10_000).await.unwrap().into_iter().map(Arc::new).collect();
    let mut projector = alone::<Tenants>(&store, &pool);
    projector.begin().await.unwrap().unwrap();
    let (mut from, mut size) = (0, 1);
    while from < events.len() {
        let batch = &events[from..(from + size).min(events.len())];
        projector.handle(batch).await.unwrap();
        from += batch.len();
        size = (size * 7 + 3) % 23 + 1;
    }
    assert!(matches!(projector.handle(&events[..5]).await, Err(HandlerError::Retry(_))), "the same events again have no effect");
    let built = rebuild::<Tenants>(&store, &pool, Purpose::Verify, None, &|_, _| {}).await.unwrap();
    assert_eq!(built.differences, Some(0), "{:?}", built.samples);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projector_that_has_lost_its_lease_without_noticing_cannot_write() {
    let env = Env::new().await;
    let store = env.store().await;
    let pool = env.database.pool(DbRole::Projector, 2);
    let mut first = alone::<Tenants>(&store, &pool);
    let mut second = alone::<Tenants>(&store, &pool);
    first.begin().await.unwrap().unwrap();
    assert!(second.begin().await.unwrap().is_none(), "one at a time");
    let executor = Executor::new(store.clone());
    let tenant = TenantId(testing::id());
    let provision =
        ProvisionTenant { id: None, slug: Slug::parse("acme").unwrap(), name: DisplayName::parse("x").unwrap(), plan: None, owner: None };
    let commands: [Command; 2] = [provision.into(), CompleteProvisioning::default().into()];
    for command in commands {
        executor.execute(Request::<Tenant>::new(StreamId::new(tenant, tenant.0), command, system(), testing::id())).await.unwrap();
    }
    let events: Vec<_> = store.read_from(0, 10).await.unwrap().into_iter().map(Arc::new).collect();
    env.owner.execute("update ops.leases set until = now()").await.unwrap();
    second.begin().await.unwrap().unwrap();
    second.handle(&events[..1]).await.unwrap();
    assert!(matches!(first.handle(&events[1..]).await, Err(HandlerError::Retry(_))), "an older epoch");
    second.handle(&events[1..]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_under_live_writes_switches_without_a_wrong_or_missing_row_and_no_query_fails_or_goes_back() {
    let env = Env::new().await;
    let node = Arc::new(Node::start(&env).await);
    let tenants = history(&node, 60).await;
    node.settled().await;
    let writing = tokio::spawn({
        let (node, tenants) = (node.clone(), tenants.clone());
        async move { change(&node, &tenants, 300).await }
    });
    let asking = tokio::spawn({
        let (node, tenants) = (node.clone(), tenants.clone());
        async move {
            let (mut position, mut versions, mut asked) = (0, vec![0; tenants.len()], 0);
            loop {
                let mut read = node.reads.begin(View::Platform, &[Tenants::NAME], None);
                read.look().await.expect("no query fails");
                assert!(read.position >= position, "a query went backwards");
                position = read.position;
                for (tenant, version) in tenants.iter().zip(&mut versions) {
                    let row = tenant::by_id(&mut read, tenant.0).await.expect("no query fails").expect("no row is missing").read().unwrap();
                    assert!(row.version >= *version, "a row went back");
                    *version = row.version;
                }
                asked += 1;
                if position >= 300 {
                    return asked;
                }
            }
        }
    });
    let pool = env.database.pool(DbRole::Projector, 3);
    let mut switched = 0;
    while !writing.is_finished() {
        let built = rebuild::<Tenants>(&node.store, &pool, Purpose::Switch, None, &|_, _| {}).await.unwrap();
        assert_eq!(built.differences, Some(0), "{:?}", built.samples);
        switched += i32::from(built.switched);
    }
    writing.await.unwrap();
    assert!(switched > 1, "{switched}");
    node.settled().await;
    asking.abort();
    if let Err(error) = asking.await {
        assert!(!error.is_panic(), "{error}");
    }
    assert_equals_a_rebuild::<Tenants>(&env, &node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_finds_other_rows_does_not_switch_unless_told_to() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    history(&node, 20).await;
    node.settled().await;
    env.owner
        .execute("update read.tenants_v1_g1 set name = 'forged' where slug = (select min(slug) from read.tenants_v1_g1)")
        .await
        .unwrap();
    let pool = env.database.pool(DbRole::Projector, 2);
    let built = rebuild::<Tenants>(&node.store, &pool, Purpose::Switch, None, &|_, _| {}).await.unwrap();
    assert_eq!((built.differences, built.samples.len(), built.switched), (Some(1), 1, false));
    let built = rebuild::<Tenants>(&node.store, &pool, Purpose::Replace, None, &|_, _| {}).await.unwrap();
    assert!(built.switched);
    let forged: i64 = sqlx::query_scalar("select count(*) from read.tenants_v1 where name = 'forged'").fetch_one(&env.owner).await.unwrap();
    assert_eq!(forged, 0);
    // The projector follows to the new generation.
    node.provision("afterwards").await;
    node.settled().await;
    assert_equals_a_rebuild::<Tenants>(&env, &node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_rebuilds_at_once_and_one_that_was_killed_leave_nothing_behind_that_matters() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    history(&node, 20).await;
    node.settled().await;
    let pool = env.database.pool(DbRole::Projector, 4);
    // As a killed one leaves it: a half-built generation and a lease.
    env.owner.execute("select read.new_generation('tenants_v1')").await.unwrap();

    let (a, b) = tokio::join!(
        rebuild::<Tenants>(&node.store, &pool, Purpose::Switch, None, &|_, _| {}),
        rebuild::<Tenants>(&node.store, &pool, Purpose::Switch, None, &|_, _| {})
    );
    assert!([&a, &b].iter().any(|r| r.as_ref().is_ok_and(|built| built.switched)), "{a:?} {b:?}");
    assert!([&a, &b].iter().all(|r| matches!(r, Ok(_) | Err(RebuildError::Busy(_)))), "{a:?} {b:?}");
    let building: i64 =
        sqlx::query_scalar("select count(*) from read.generations where state = 'building'").fetch_one(&env.owner).await.unwrap();
    assert_eq!(building, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_right_after_a_command_always_sees_it() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let tenant = node.provision("acme").await;
    for n in 0..100 {
        let name = format!("name {n}");
        let done = node.execute(tenant, RenameTenant { name: DisplayName::parse(&name).unwrap() }).await.unwrap();
        let mut read = node.reads.begin(View::Tenant(tenant), &[Tenants::NAME], Some(done.position));
        assert_eq!(tenant::by_id(&mut read, tenant.0).await.unwrap().unwrap().read().unwrap().name, name);
        assert!(read.position >= done.position);
    }
    let beyond = node.reads.begin(View::Platform, &[Tenants::NAME], Some(1_000_000)).look().await;
    assert!(matches!(beyond, Err(QueryError::Behind { wanted: 1_000_000, .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_up_that_was_planned_for_an_empty_table_is_planned_again_when_the_table_has_grown() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let pool = env.database.pool(DbRole::Projector, 2);
    while statistics::refresh(&pool).await.unwrap() > 0 {}
    let mut reader = env.database.connect(DbRole::Reader, &[("plan_cache_mode", "force_generic_plan")]).await.unwrap();
    reader
        .execute("prepare look_up(uuid, uuid) as select doc from read.tickets_v1_g1 t where t.id = $1 and t.tenant_id = $2")
        .await
        .unwrap();
    let plan = "explain execute look_up('01900000-0000-7000-8000-000000000001', '01900000-0000-7000-8000-000000000001')";
    // For an empty table the planner may use any index that begins with the tenant.
    let before: Vec<String> = sqlx::query_scalar(plan).fetch_all(&mut reader).await.unwrap();
    assert!(!before.join(" ").contains("tickets_v1_g1_pkey"), "{before:?}");
    let tenant = node.provision("acme").await;
    sqlx::query(
        "insert into read.tickets_v1_g1 (tenant_id, id, version, number, subject, status, priority, channel, requester_id, tags, followers, links, attachments, public_comments, internal_comments,
           created_at, updated_at, public_updated_at, doc)
         select $1, gen_random_uuid(), 1, n, 'x', 'new', 'normal', 'api', gen_random_uuid(), '{}', '{}', '[]', '[]', 0, 0, now(), now(), now(), repeat('x', 500) from generate_series(1, 1000) n",
    )
    .bind(tenant.0)
    .execute(&env.owner)
    .await
    .unwrap();
    assert!(statistics::refresh(&pool).await.unwrap() > 0);
    let after: Vec<String> = sqlx::query_scalar(plan).fetch_all(&mut reader).await.unwrap();
    assert!(after.join(" ").contains("tickets_v1_g1_pkey"), "{after:?}");
    assert_eq!(statistics::refresh(&pool).await.unwrap(), 0, "nothing has grown since");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reader_role_sees_the_rows_of_the_set_tenant_only_and_none_without_one() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let tenants = history(&node, 10).await;
    node.settled().await;
    let mut reader = env.database.connect(DbRole::Reader, &[]).await.unwrap();
    for table in ["tenants_v1", "tenants_v1_g1", "tenant_timeline_v1", "tenant_timeline_v1_g1"] {
        let count = format!("select count(*), count(distinct tenant_id) from read.{table}");
        reader.execute("reset app.current_tenant_id").await.unwrap();
        let seen: (i64, i64) = sqlx::query_as(&count).fetch_one(&mut reader).await.unwrap();
        assert_eq!(seen, (0, 0), "{table}: nothing without a tenant");
        reader.execute("set app.current_tenant_id = ''").await.unwrap();
        let seen: (i64, i64) = sqlx::query_as(&count).fetch_one(&mut reader).await.unwrap();
        assert_eq!(seen, (0, 0), "{table}: nor with an empty one");
        reader.execute(format!("set app.current_tenant_id = '{}'", tenants[1]).as_str()).await.unwrap();
        let seen: (i64, i64) = sqlx::query_as(&count).fetch_one(&mut reader).await.unwrap();
        assert!(seen.0 > 0 && seen.1 == 1, "{table}: {seen:?}");
    }
    for table in ["events", "claims", "ops.subject_keys", "ops.idempotency_keys"] {
        assert!(reader.execute(format!("select * from {table}").as_str()).await.is_err(), "{table} is none of a reader's business");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_of_every_sort_gives_each_tenant_exactly_once_also_while_more_are_made() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let mut made = Vec::new();
    for n in 0..23 {
        made.push(node.provision(&format!("t-{}", (n * 7) % 23)).await.0);
    }
    node.settled().await;
    let key = CursorKey([7; 32]);
    for name in tenant::ORDERS.names() {
        let (mut seen, mut cursor) = (Vec::new(), None);
        loop {
            let mut read = node.reads.begin(View::Platform, &[Tenants::NAME], None);
            let page = tenant::list(&mut read, &key, &Filter::default(), &paging(&name, 5, cursor.as_deref())).await.unwrap();
            seen.extend(page.rows.iter().map(|row| row.read().unwrap().id));
            node.provision(&format!(
                "{}-{}",
                name.trim_start_matches('-').replace('_', "-"),
                seen.len() + usize::from(name.starts_with('-')) * 100
            ))
            .await;
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        for id in &made {
            assert_eq!(seen.iter().filter(|seen| *seen == id).count(), 1, "{name}");
        }
        eventually("settled", || async {
            node.settled().await;
            Some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_that_was_tampered_with_or_made_for_another_list_is_refused() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    history(&node, 5).await;
    node.settled().await;
    let key = CursorKey([7; 32]);
    let mut read = node.reads.begin(View::Platform, &[Tenants::NAME], None);
    let next = tenant::list(&mut read, &key, &Filter::default(), &paging("-created_at", 2, None)).await.unwrap().next.unwrap();
    let other = Filter { q: Some("x".into()), ..Filter::default() };
    let mut flipped = next.clone().into_bytes();
    flipped[30] = if flipped[30] == b'A' { b'B' } else { b'A' };
    let flipped = String::from_utf8(flipped).unwrap();
    for (cursor, filter, sort, key) in [
        (next.as_str(), &other, "-created_at", &key),
        (next.as_str(), &Filter::default(), "created_at", &key),
        (next.as_str(), &Filter::default(), "-created_at", &CursorKey([8; 32])),
        (flipped.as_str(), &Filter::default(), "-created_at", &key),
        ("", &Filter::default(), "-created_at", &key),
        ("!", &Filter::default(), "-created_at", &key),
    ] {
        assert!(
            matches!(tenant::list(&mut read, key, filter, &paging(sort, 2, Some(cursor))).await, Err(QueryError::BadCursor)),
            "{cursor}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_words_of_a_plain_text_are_those_that_every_text_is_searched_by() {
    let env = Env::new().await;
    let texts = [
        "Invoice INV-2041 says 99.00 USD",
        "",
        " ~\x7f\t\n'quoted' \\ \"x\"",
        "caf\u{e9} \u{6f22}\u{5b57} and more",
        "a_b@c.example/d?e=f",
        "\u{fb01}ne",
    ];
    let same: Vec<bool> = sqlx::query_scalar(
        "select read.words(t, s) = array_to_tsvector(array_append(read.grams(read.plain(s), true), t::text)) || to_tsvector('simple', read.spaced(read.plain(s)))
         from unnest($1::text[]) s, (select gen_random_uuid() as t) tenant",
    )
    .bind(texts.as_slice())
    .fetch_all(&env.owner)
    .await
    .unwrap();
    assert_eq!(same, [true; 6]);
}
