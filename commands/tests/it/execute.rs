//! Load, decide, append, again.

use commands::{CommandError, Executor, Key, Request};
use domain::identity::tenant::{
    CancelTenant, ChangeSlug, CompleteProvisioning, DeactivateTenant, DeleteTenant, FreezeTenant, NewOwner, ProvisionTenant,
    ReactivateTenant, RenameTenant, Slug, Tenant,
};
use domain::text::{DisplayName, Email};
use domain::{Actor, Role, StreamId, SubjectId, TenantId};
use testing::node::system;
use testing::thing::{Make, Thing};
use testing::{Env, id};

fn slug(text: &str) -> Slug {
    Slug::parse(text).unwrap()
}

fn provision(text: &str) -> ProvisionTenant {
    ProvisionTenant { id: None, slug: slug(text), name: DisplayName::parse(text).unwrap(), plan: None, owner: None }
}

fn rename(text: &str) -> RenameTenant {
    RenameTenant { name: DisplayName::parse(text).unwrap() }
}

fn request(tenant: TenantId, command: impl Into<domain::identity::tenant::Command>) -> Request<Tenant> {
    Request::new(StreamId::new(tenant, tenant.0), command, system(), id())
}

fn keyed(mut request: Request<Tenant>, key: &str) -> Request<Tenant> {
    request.keys = vec![Key { tenant: request.stream.tenant, scope: "test".into(), key: key.into(), fingerprint: [1; 32] }];
    request
}

async fn two_processes(env: &Env) -> [Executor; 2] {
    [Executor::new(env.store().await), Executor::new(env.store().await)]
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_for_one_stream_from_two_processes_at_once_are_all_executed_on_the_newest_state() {
    let env = Env::new().await;
    let executors = two_processes(&env).await;
    let tenant = TenantId(id());
    executors[0].execute(request(tenant, provision("acme"))).await.unwrap();
    let tasks: Vec<_> = (0..24)
        .map(|n| {
            let executor = executors[n % 2].clone();
            tokio::spawn(async move { executor.execute(request(tenant, rename(&format!("name {n}")))).await })
        })
        .collect();
    let mut versions = Vec::new();
    for task in tasks {
        versions.push(task.await.unwrap().unwrap().version);
    }
    versions.sort_unstable();
    assert!(versions.into_iter().eq(2..=25), "each one on the version before");
}

#[tokio::test]
async fn a_refusal_or_a_no_op_concluded_from_a_stale_cache_is_not_final() {
    let env = Env::new().await;
    let [a, b] = two_processes(&env).await;
    let tenant = TenantId(id());
    a.execute(request(tenant, provision("acme"))).await.unwrap();
    b.execute(request(tenant, rename("acme"))).await.expect("already so, and in b's cache now");
    a.execute(request(tenant, CompleteProvisioning::default())).await.unwrap();
    a.execute(request(tenant, FreezeTenant {})).await.unwrap();
    // b still holds version 1 (provisioning), in which it would refuse this, or say that it is so.
    let back = b.execute(request(tenant, ReactivateTenant {})).await.unwrap();
    assert_eq!(back.version, 4);
    a.execute(request(tenant, FreezeTenant {})).await.unwrap();
    assert_eq!(b.execute(request(tenant, ReactivateTenant {})).await.unwrap().version, 6, "not the no-op of the cached state");
}

#[tokio::test]
async fn if_match_is_decided_on_the_current_version_and_answers_it() {
    let env = Env::new().await;
    let [a, b] = two_processes(&env).await;
    let tenant = TenantId(id());
    a.execute(request(tenant, provision("acme"))).await.unwrap();
    b.execute(request(tenant, rename("acme"))).await.unwrap();
    a.execute(request(tenant, rename("two"))).await.unwrap();
    let with = |expected| {
        let mut request = request(tenant, rename("three"));
        request.expected = Some(vec![expected]);
        request
    };
    assert!(matches!(b.execute(with(1)).await, Err(CommandError::VersionMismatch { current: 2 })));
    assert_eq!(b.execute(with(2)).await.unwrap().version, 3);
}

#[tokio::test]
async fn a_retry_gets_the_first_answer_also_when_nothing_was_changed_or_everything_has_changed_since() {
    let env = Env::new().await;
    let [a, b] = two_processes(&env).await;
    let tenant = TenantId(id());
    let first = a.execute(keyed(request(tenant, provision("acme")), "create")).await.unwrap();
    let no_op = a.execute(keyed(request(tenant, rename("acme")), "no-op")).await.unwrap();
    assert_eq!((no_op.version, no_op.replayed), (1, false));
    a.execute(request(tenant, rename("other"))).await.unwrap();
    // Now the same rename would be an event, and the same provisioning a conflict.
    let again = b.execute(keyed(request(tenant, rename("acme")), "no-op")).await.unwrap();
    assert_eq!((again.version, again.position, again.replayed), (no_op.version, no_op.position, true));
    let again = b.execute(keyed(request(TenantId(id()), provision("acme")), "create")).await;
    assert!(
        matches!(again, Err(CommandError::Rejected { code, .. }) if code == "tenant.slug_taken"),
        "another tenant's key is another key"
    );
    let again = b.execute(keyed(request(tenant, provision("acme")), "create")).await.unwrap();
    assert_eq!((again.id, again.version, again.position, again.created, again.replayed), (first.id, 1, 1, true, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_wins_a_slug_and_the_others_hear_that_it_is_taken() {
    let env = Env::new().await;
    let executors = two_processes(&env).await;
    let tasks: Vec<_> = (0..32)
        .map(|n| {
            let executor = executors[n % 2].clone();
            tokio::spawn(async move { executor.execute(request(TenantId(id()), provision("acme"))).await })
        })
        .collect();
    let mut won = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(_) => won += 1,
            Err(CommandError::Rejected { code, .. }) => assert_eq!(code, "tenant.slug_taken"),
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(won, 1);
}

#[tokio::test]
async fn a_role_without_the_permission_is_refused_and_nothing_is_written() {
    let env = Env::new().await;
    let [a, _] = two_processes(&env).await;
    let tenant = TenantId(id());
    a.execute(request(tenant, provision("acme"))).await.unwrap();
    for (role, may) in [(Role::OrgAdmin, true), (Role::SupportAgent, false), (Role::User, false), (Role::Viewer, false)] {
        let mut rename = request(tenant, rename(&role.to_string()));
        rename.actor = Actor::person("u", tenant, role);
        let answer = a.execute(rename).await;
        assert_eq!(answer.is_ok(), may, "{role}");
        assert!(may || matches!(answer, Err(CommandError::Forbidden { permission: "tenant:rename" })));
        let mut freeze = request(tenant, FreezeTenant {});
        freeze.actor = Actor::person("u", tenant, role);
        assert!(matches!(a.execute(freeze).await, Err(CommandError::Forbidden { .. })), "{role}: only the platform stops tenants");
    }
    assert_eq!(a.store().head().await.unwrap().position, 2);
}

#[tokio::test]
async fn deleting_a_tenant_releases_its_slugs_cancels_its_timers_and_erases_its_people() {
    let env = Env::new().await;
    let [a, b] = two_processes(&env).await;
    let tenant = TenantId(id());
    let owner = NewOwner { email: Email::parse("ada@example.com").unwrap(), name: DisplayName::parse("Ada").unwrap() };
    a.execute(request(tenant, ProvisionTenant { owner: Some(owner), ..provision("acme") })).await.unwrap();
    a.execute(request(tenant, ChangeSlug { slug: slug("acme-two") })).await.unwrap();
    a.execute(request(tenant, CompleteProvisioning::default())).await.unwrap();
    assert!(!format!("{:?}", a.store().read_from(0, 10).await.unwrap()).contains("ada@"), "sealed in the log");
    let raw = a.store().at(1).await.unwrap().unwrap();
    assert!(format!("{:?}", b.store().typed::<Tenant>(&[&raw]).await.unwrap()).contains("ada@example.com"), "and readable");
    a.execute(request(tenant, DeactivateTenant {})).await.unwrap();
    a.execute(request(tenant, DeleteTenant {})).await.unwrap();
    let left: i64 =
        sqlx::query_scalar("select (select count(*) from claims) + (select count(*) from timers)").fetch_one(&env.owner).await.unwrap();
    assert_eq!(left, 0);
    let read = format!("{:?}", a.store().typed::<Tenant>(&[&raw]).await.unwrap());
    assert!(read.contains("Erased") && !read.contains("ada@"), "{read}");
    a.execute(request(TenantId(id()), provision("acme"))).await.expect("the slug is free");
    let report = a.store().audit(&mut |_| {}).await.unwrap();
    assert_eq!(report.findings, vec![], "history is whole and the guards are its fold");
}

#[tokio::test]
async fn the_guards_are_the_fold_of_the_log_after_a_random_history_and_a_forged_row_is_named() {
    let env = Env::new().await;
    let [a, _] = two_processes(&env).await;
    let tenants: Vec<_> = (0..6).map(|_| TenantId(id())).collect();
    for (n, tenant) in tenants.iter().enumerate() {
        a.execute(request(*tenant, provision(&format!("slug-{n}")))).await.unwrap();
    }
    for n in 0..60_usize {
        let tenant = tenants[(n * 7) % 6];
        let _ = a.execute(request(tenant, ChangeSlug { slug: slug(&format!("slug-{}", (n * 5) % 12)) })).await;
    }
    assert_eq!(a.store().audit(&mut |_| {}).await.unwrap().findings, vec![]);
    sqlx::raw_sql("update claims set label = 'forged' where value = (select min(value) from claims); delete from timers where name = (select min(name) from timers)").execute(&env.owner).await.unwrap();
    let findings = a.store().audit(&mut |_| {}).await.unwrap().findings;
    assert!(
        findings.iter().any(|f| f.what.contains("claim tenant_slug"))
            && findings.iter().any(|f| f.what.contains("timer slug_alias:") && f.what.contains("missing")),
        "{findings:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_is_closed_or_unknown_refuses_every_changing_command_of_its_other_aggregates() {
    let env = Env::new().await;
    let [a, _] = two_processes(&env).await;
    let tenant = TenantId(id());
    let make = || {
        Request::<Thing>::new(
            StreamId::new(tenant, id()),
            Make { id: None, subject: SubjectId(id()), words: "hello".into() },
            system(),
            id(),
        )
    };
    let code = |answer: Result<commands::Outcome, CommandError>| match answer {
        Err(CommandError::Rejected { code, .. }) => code.into_owned(),
        other => format!("{other:?}"),
    };
    assert_eq!(code(a.execute(make()).await), "tenant.not_found");
    a.execute(request(tenant, provision("acme"))).await.unwrap();
    a.execute(make()).await.expect("open while it is being set up");
    a.execute(request(tenant, CompleteProvisioning::default())).await.unwrap();
    a.execute(make()).await.unwrap();
    let suspend = domain::identity::tenant::SuspendTenant { reason: domain::text::Reason::parse("unpaid").unwrap() };
    let closing: [domain::identity::tenant::Command; 4] =
        [FreezeTenant {}.into(), suspend.into(), DeactivateTenant {}.into(), CancelTenant {}.into()];
    for command in closing {
        a.execute(request(tenant, command.clone())).await.unwrap();
        assert_eq!(code(a.execute(make()).await), "tenant.closed", "{command:?}");
        a.execute(request(tenant, ReactivateTenant {})).await.unwrap();
        a.execute(make()).await.unwrap();
    }
    let numbers: Vec<Option<i64>> =
        sqlx::query_scalar("select (payload ->> 'number')::bigint from events where event_type = 'thing.made' order by position")
            .fetch_all(&env.owner)
            .await
            .unwrap();
    assert_eq!(numbers, (1..=6).map(Some).collect::<Vec<_>>(), "a refused command draws no number");
}
