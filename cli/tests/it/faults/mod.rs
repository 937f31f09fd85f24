//! Real processes under load while something goes wrong. After each: everything acknowledged is there once, nothing refused is, and the tools find all well.

mod chaos;
mod load;

use std::time::{Duration, Instant};

use chaos::{Chaos, Fault, any};
use domain::billing::meter::WithoutPlan;
use domain::{Clock as _, ManualClock, StreamId, SubjectId, SystemClock};
use projections::ReadModel as _;
use reqwest::StatusCode;
use store::{Database, MasterKey};
use testing::node::Node;
use testing::thing::{self, Make, Say, Thing, Things};
use testing::{Env, eventually, id};

/// Goes through these faults one after another.
async fn survives(faults: &[Fault]) {
    let mut chaos = Chaos::start().await;
    for fault in faults {
        chaos.inflict(*fault).await;
    }
    let counts = chaos.settle().await;
    assert!(counts.refused > 0 && counts.read > 0, "{counts}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_when_processes_of_every_kind_are_killed() {
    survives(&[Fault::KillApi, Fault::KillRelay, Fault::KillProjector, Fault::KillApi, Fault::KillProjector, Fault::KillRelay]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_when_postgres_is_killed_and_restarted_and_sessions_are_ended() {
    survives(&[Fault::KillPostgres, Fault::TerminateBackends, Fault::RestartPostgres]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_when_nats_is_killed_and_forgets_what_it_had_acknowledged() {
    survives(&[Fault::KillNats, Fault::RollBackNats]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_stalls_inside_its_transaction_holds_the_others_up_for_a_moment_only() {
    survives(&[Fault::StallWriter]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_connections_answers_are_503_and_all_goes_on_when_there_are_some() {
    survives(&[Fault::ExhaustConnections]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_jump_forth_and_back_harm_nothing() {
    survives(&[Fault::JumpClocks]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_disk_of_nats_is_full_commands_and_queries_go_on_and_the_stream_is_whole_afterwards() {
    let mut chaos = Chaos::start().await;
    let disk = chaos.small_disk_for_nats().await;
    eventually("the stream is filled from the log", || async { (chaos.stream_end().await > 20).then_some(()) }).await;
    disk.fill();
    let full_at = chaos.stream_end().await;
    chaos.load.progress(500).await;
    let read = chaos.load.read();
    eventually("queries show what was written", || async { (chaos.load.read() > read + 20).then_some(()) }).await;
    let (head, end): (i64, i64) =
        (sqlx::query_scalar("select position from log_head").fetch_one(&chaos.owner).await.unwrap(), chaos.stream_end().await);
    assert!(end < head - 100, "the disk was full from {full_at} on; the stream is at {end}, the log at {head}");
    disk.free();
    chaos.restart_nats().await;
    chaos.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_that_hang_exhaust_their_own_connections_only_and_answer_503() {
    let mut chaos = Chaos::start().await;
    let mut blocker = store::database::begin(&chaos.owner).await.unwrap();
    sqlx::query("lock table read.generations in access exclusive mode").execute(&mut *blocker).await.unwrap();
    let asked = futures::future::join_all((0..40).map(|_| chaos.apis[0].get("/v1/tenants"))).await;
    assert!(asked.iter().all(|answer| answer.status() == StatusCode::SERVICE_UNAVAILABLE), "{asked:?}");
    chaos.load.progress(20).await;
    blocker.rollback().await.unwrap();
    eventually("queries are answered again", || async {
        (chaos.apis[0].get("/v1/tenants").await.status() == StatusCode::OK).then_some(())
    })
    .await;
    chaos.settle().await;
}

/// The test kit is the newer version: it has one more aggregate, one more read model, and the schema for them.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_version_and_a_newer_one_work_side_by_side_on_the_newer_schema() {
    let mut chaos = Chaos::start().await;
    let newer = Env {
        database: Database::new(&chaos.site.servers.remembered.service_url()).unwrap(),
        owner: chaos.owner.clone(),
        nats_url: chaos.site.servers.remembered.nats_url(),
        prefix: "tenure".into(),
        clock: ManualClock::new(SystemClock.now()),
        master_key: MasterKey::from_hex(&"5".repeat(64)).unwrap(),
        without_plan: WithoutPlan::unlimited(),
    };
    sqlx::query("insert into _sqlx_migrations select 99990101000000, 'later', installed_on, success, checksum, execution_time from _sqlx_migrations limit 1")
        .execute(&chaos.owner)
        .await
        .unwrap();
    thing::migrate(&chaos.owner).await;
    let node = Node::start(&newer).await;
    node.project::<Things>();
    let tenant = node.provision("newer").await;
    let stream = StreamId::new(tenant, id());
    node.execute_on::<Thing>(stream, Make { id: None, subject: SubjectId(id()), words: "first".into() }).await.unwrap();
    for n in 0..20 {
        node.execute_on::<Thing>(stream, Say { words: format!("word {n}") }).await.unwrap();
        chaos.load.progress(20).await;
    }
    // The older ones start, serve and migrate as if nothing were new.
    chaos.site.out(&["migrate"]).await;
    chaos.load.settle(&chaos.owner).await;
    let head = node.store.head().await.unwrap().position;
    let positions = eventually("the read models are at the log's end", || async {
        let positions = node.reads.statuses().await.ok()?;
        positions.iter().all(|model| model.position == head).then_some(positions)
    })
    .await;
    assert!(positions.iter().any(|model| model.name == Things::NAME), "the newer read model too");
    chaos.site.out(&["projections", "verify"]).await;
    // All that the older tools find is what they cannot know.
    eventually("the bus has all", || async {
        let said = chaos.site.run(&["audit", "verify"]).await;
        let unknown = said.contains("aggregate type thing is not known to this binary; its guards are not checked");
        (unknown && said.lines().filter(|line| line.contains("WRONG")).all(|line| line.contains("thing"))).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_restored_beside_a_newer_bus_ends_with_the_content_of_its_log_everywhere() {
    survives(&[Fault::RestoreEarlier]).await;
}

/// As many seconds as `TENURE_SOAK` says; one fault without it. `make soak` runs it and shows what it prints.
#[tokio::test(flavor = "multi_thread")]
async fn random_faults_for_as_long_as_asked_lose_and_double_nothing() {
    let lasts = Duration::from_secs(std::env::var("TENURE_SOAK").map_or(1, |seconds| seconds.parse().expect("a number of seconds")));
    let (began, mut chaos) = (Instant::now(), Chaos::start().await);
    while began.elapsed() < lasts {
        let fault = any(&Fault::ALL);
        chaos.inflict(fault).await;
        println!("{:>4} s  {fault:?}; {} commands acknowledged", began.elapsed().as_secs(), chaos.load.acknowledged());
        // Sometimes the next one comes before everything has recovered.
        chaos.load.progress(any(&[0, 200, 2000])).await;
    }
    let mut done: Vec<_> = chaos.done.iter().map(|(fault, times)| format!("{fault:?} {times}")).collect();
    done.sort();
    let counts = chaos.settle().await;
    println!("{} s: {counts}\n{}", began.elapsed().as_secs(), done.join(", "));
}
