//! What answers events.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bus::subscription::HandlerError;
use chrono::TimeDelta;
use commands::policies::provisioning::Provisioning;
use commands::policy::{self, Answer, Commands, Reaction};
use commands::{CommandError, Executor, Request};
use domain::billing::meter::Meter;
use domain::billing::period::Billing;
use domain::billing::plan::{Plan, RetirePlan};
use domain::billing::subscription::{
    CancelSubscription, ChangePlan, ExtendTrial, RecordPayment, RecordPaymentFailed, RecordPaymentSucceeded, SetPaymentMethod,
    StartSubscription, Status, Subscription, When,
};
use domain::identity::tenant::{
    self, CancelTenant, DeleteTenant, NewOwner, OverrideLimit, ProvisionTenant, Slug, Status as T, SuspendTenant, Tenant,
};
use domain::identity::user::{RegisterUser, User};
use domain::text::{DisplayName, Email, PlanCode, Reason, Reference};
use domain::{Clock as _, Role, StreamId, TenantId};
use store::{RawEvent, Store};
use testing::node::{Node, system};
use testing::{Env, eventually, id};
use tokio_util::sync::CancellationToken;

fn plan(code: &str) -> PlanCode {
    PlanCode::parse(code).unwrap()
}

fn provision(slug: &str, code: Option<&str>) -> ProvisionTenant {
    let owner = NewOwner { email: Email::parse("ada@example.com").unwrap(), name: DisplayName::parse("Ada").unwrap() };
    ProvisionTenant {
        id: None,
        slug: Slug::parse(slug).unwrap(),
        name: DisplayName::parse(slug).unwrap(),
        plan: code.map(plan),
        owner: Some(owner),
    }
}

fn start(code: &str, trial_days: Option<u16>) -> StartSubscription {
    let (billing, time_zone) = (Billing::Anniversary, chrono_tz::Tz::UTC);
    StartSubscription { id: None, plan: plan(code), trial_days, billing, time_zone, currency: None, quantity: 1 }
}

fn register(n: usize) -> RegisterUser {
    let email = Email::parse(&format!("u{n}@example.com")).unwrap();
    RegisterUser { id: None, email, name: DisplayName::parse("U").unwrap(), role: Role::User, email_verified: true, welcome: false }
}

/// The policy, until it has sent so many commands; then it does nothing any more, until it is killed.
struct Dying {
    after: usize,
    reached: Arc<AtomicBool>,
}

impl Reaction for Dying {
    const NAME: &'static str = Provisioning::NAME;
    const TYPES: &'static [&'static str] = Provisioning::TYPES;
    /// One more: it dies after the last command, too, and before its checkpoint has moved.
    const STEPS: usize = Provisioning::STEPS + 1;

    async fn step(&self, store: &Store, event: &RawEvent, n: usize) -> Result<Option<Answer>, HandlerError> {
        if n >= self.after && event.event_type == "tenant.provisioned" {
            self.reached.store(true, Ordering::SeqCst);
            std::future::pending::<()>().await;
        }
        if n < Provisioning::STEPS { Provisioning.step(store, event, n).await } else { Ok(None) }
    }
}

async fn tenant_status(store: &Store, tenant: TenantId) -> Option<tenant::Status> {
    store.current::<Tenant>(StreamId::new(tenant, tenant.0)).await.unwrap().state.status()
}

#[tokio::test(flavor = "multi_thread")]
async fn provisioning_killed_after_every_step_twice_at_each_ends_provisioned_once_with_one_owner_and_one_subscription() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    node.ship_plans().await;
    let tenant = TenantId(id());
    node.execute(tenant, provision("acme", Some("growth"))).await.unwrap();
    for after in 0..=Provisioning::STEPS {
        for _ in 0..2 {
            let reached = Arc::new(AtomicBool::new(false));
            let policies = policy::none(&node.store, &node.feed, &CancellationToken::new());
            policies.add(Commands::member(Dying { after, reached: reached.clone() }, &node.executor));
            let process = tokio::spawn(policies.run());
            eventually("it has come so far", || async { reached.load(Ordering::SeqCst).then_some(()) }).await;
            process.abort();
            let _ = process.await;
            store::lease::expire_all(&env.owner).await.unwrap();
        }
    }
    let position = |name: &'static str| {
        let store = node.store.clone();
        async move { policy::statuses(&store).await.unwrap().into_iter().find(|policy| policy.name == name).unwrap().position }
    };
    assert_eq!(position("provisioning").await, 0, "none of them came to its checkpoint");
    node.react().await;
    node.settled().await;
    let events: Vec<String> = sqlx::query_scalar("select event_type from events where tenant_id = $1 order by position")
        .bind(tenant.0)
        .fetch_all(&env.owner)
        .await
        .unwrap();
    assert_eq!(
        events,
        ["tenant.provisioned", "subscription.started", "user.registered", "user.password_reset_requested", "tenant.provisioning_completed"]
    );
    assert_eq!(tenant_status(&node.store, tenant).await, Some(tenant::Status::Trialing));
    assert_eq!(node.store.counter(tenant, "users".into()).await.unwrap(), 1, "the owner has a seat");
    assert_eq!(policy::refusals(&node.store, 10).await.unwrap(), vec![]);
    assert_eq!(node.store.audit(&mut |_| {}).await.unwrap().findings, vec![]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_whose_plan_was_retired_meanwhile_is_not_let_in_without_limits_and_the_refusal_is_told() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    node.ship_plans().await;
    let tenant = TenantId(id());
    node.execute(tenant, provision("acme", Some("growth"))).await.unwrap();
    let growth = domain::billing::plan::shipped().unwrap()[1].0;
    node.execute_on::<Plan>(StreamId::new(TenantId::SYSTEM, growth), RetirePlan {}).await.unwrap();
    let unknown = node.execute(TenantId(id()), provision("beta", Some("growth"))).await;
    assert!(matches!(unknown, Err(CommandError::Rejected { code, .. }) if code == "tenant.no_such_plan"));
    node.react().await;
    node.settled().await;
    assert_eq!(tenant_status(&node.store, tenant).await, Some(tenant::Status::Provisioning));
    let refusals = policy::refusals(&node.store, 10).await.unwrap();
    let told: Vec<_> = refusals.iter().map(|refusal| (refusal.command.as_str(), refusal.reason.as_str())).collect();
    assert_eq!(told, [("subscription.start", "the plan growth is retired")]);
    assert_eq!(node.store.counter(tenant, "users".into()).await.unwrap(), 0, "not even the owner");
    // A tenant without a plan has no limits.
    let free = TenantId(id());
    node.execute(free, provision("free", None)).await.unwrap();
    node.settled().await;
    assert_eq!(tenant_status(&node.store, free).await, Some(tenant::Status::Active));
    for n in 0..8 {
        node.execute_on::<User>(StreamId::new(free, id()), register(n)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_stands_where_its_subscription_stands_from_trial_to_the_end() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    node.react().await;
    let tenant = node.provision("acme").await;
    let subscription = StreamId::new(tenant, id());
    let status = || async {
        node.settled().await;
        let subscription = node.store.current::<Subscription>(subscription).await.unwrap().state.details().unwrap().status;
        (subscription, tenant_status(&node.store, tenant).await.unwrap())
    };
    let payment = |n: i64| RecordPayment {
        provider_event_id: Reference::parse(&format!("evt_{n}")).unwrap(),
        occurred_at: (env.clock.now() + TimeDelta::seconds(n)).try_into().unwrap(),
        amount: None,
    };
    let until_fired = || async { while node.timers().fire_due().await.unwrap() > 0 {} };
    node.settled().await;
    node.execute_on::<Subscription>(subscription, start("starter", None)).await.unwrap();
    assert_eq!(status().await, (Status::Trialing, T::Active), "it worked before");
    // An extended trial ends at its new end only.
    let until = env.clock.now() + TimeDelta::days(20);
    node.execute_on::<Subscription>(subscription, ExtendTrial { until: until.try_into().unwrap() }).await.unwrap();
    env.clock.advance(TimeDelta::days(14));
    until_fired().await;
    assert_eq!(status().await.0, Status::Trialing);
    env.clock.advance(TimeDelta::days(6));
    until_fired().await;
    assert_eq!(status().await, (Status::Paused, T::Suspended), "nothing to pay with");
    // Closed, and paying brings it back.
    let closed = node.execute_on::<User>(StreamId::new(tenant, id()), register(1)).await;
    assert!(matches!(closed, Err(CommandError::Rejected { code, .. }) if code == "tenant.closed"));
    let method = SetPaymentMethod { reference: Reference::parse("pm_1").unwrap() };
    node.execute_on::<Subscription>(subscription, method).await.unwrap();
    node.execute_on::<Subscription>(subscription, RecordPaymentSucceeded(payment(1))).await.unwrap();
    assert_eq!(status().await, (Status::Active, T::Active));
    node.execute_on::<Subscription>(subscription, RecordPaymentFailed(payment(2))).await.unwrap();
    assert_eq!(status().await, (Status::PastDue, T::PastDue));
    node.execute_on::<Subscription>(subscription, RecordPaymentSucceeded(payment(3))).await.unwrap();
    assert_eq!(status().await, (Status::Active, T::Active));
    // Periods follow one another by timer, also when the timers were away for three of them.
    env.clock.advance(TimeDelta::days(100));
    until_fired().await;
    let renewed: i64 = sqlx::query_scalar("select count(*) from events where event_type = 'subscription.period_renewed'")
        .fetch_one(&env.owner)
        .await
        .unwrap();
    assert_eq!(renewed, 3);
    // What the platform stops, paying does not bring back.
    node.execute(tenant, SuspendTenant { reason: Reason::parse("abuse").unwrap() }).await.unwrap();
    node.execute_on::<Subscription>(subscription, RecordPaymentFailed(payment(4))).await.unwrap();
    node.execute_on::<Subscription>(subscription, RecordPaymentSucceeded(payment(5))).await.unwrap();
    assert_eq!(status().await, (Status::Active, T::Suspended));
    node.execute(tenant, tenant::ReactivateTenant {}).await.unwrap();
    // What became of the subscription while the platform kept the tenant frozen shows when it is thawed.
    node.execute(tenant, tenant::FreezeTenant {}).await.unwrap();
    node.execute_on::<Subscription>(subscription, RecordPaymentFailed(payment(6))).await.unwrap();
    assert_eq!(status().await, (Status::PastDue, T::Frozen));
    node.execute(tenant, tenant::ReactivateTenant {}).await.unwrap();
    assert_eq!(status().await, (Status::PastDue, T::PastDue));
    node.execute_on::<Subscription>(subscription, RecordPaymentSucceeded(payment(7))).await.unwrap();
    // A tenant that leaves ends what it pays for; then, and only then, it can be deleted.
    node.execute_on::<Subscription>(subscription, CancelSubscription { when: When::PeriodEnd }).await.unwrap();
    node.settled().await;
    node.execute(tenant, tenant::DeactivateTenant {}).await.unwrap();
    let live = node.execute(tenant, DeleteTenant {}).await;
    assert!(matches!(live, Err(CommandError::Rejected { code, .. }) if code == "tenant.live_subscription"));
    node.execute(tenant, tenant::ReactivateTenant {}).await.unwrap();
    node.execute(tenant, CancelTenant {}).await.unwrap();
    assert_eq!(status().await, (Status::Cancelled, T::Cancelled));
    // It left by itself: nobody pays for what stays closed.
    let again = node.execute_on::<Subscription>(StreamId::new(tenant, id()), start("starter", Some(0))).await;
    assert!(matches!(again, Err(CommandError::Rejected { code, .. }) if code == "subscription.tenant_closed"));
    node.execute(tenant, DeleteTenant {}).await.unwrap();
    let gone = node.execute_on::<Subscription>(StreamId::new(tenant, id()), start("starter", Some(0))).await;
    assert!(matches!(gone, Err(CommandError::Rejected { code, .. }) if code == "subscription.tenant_closed"));
    assert_eq!(policy::refusals(&node.store, 10).await.unwrap(), vec![]);
    assert_eq!(node.store.audit(&mut |_| {}).await.unwrap().findings, vec![]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_subscriptions_started_at_once_one_begins_and_a_trial_is_given_once() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    node.ship_plans().await;
    let other = Executor::new(env.store().await);
    for n in 0..16 {
        let tenant = node.provision(&format!("acme-{n}")).await;
        let starts = [&node.executor, &other, &node.executor, &other].map(|executor| async move {
            let request = Request::<Subscription>::new(StreamId::new(tenant, id()), start("starter", None), system(), id());
            executor.execute(request).await
        });
        let outcomes = futures::future::join_all(starts).await;
        let begun: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()).collect();
        assert_eq!(begun.len(), 1);
        for refused in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
            assert!(matches!(refused, CommandError::Rejected { code, .. } if code == "subscription.another_is_live"), "{refused}");
        }
        let live = StreamId::new(tenant, begun[0].id);
        node.execute_on::<Subscription>(live, CancelSubscription { when: When::Now }).await.unwrap();
        let second = node.execute_on::<Subscription>(StreamId::new(tenant, id()), start("starter", None)).await;
        assert!(matches!(second, Err(CommandError::Rejected { code, .. }) if code == "subscription.trial_used"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_holds_from_the_very_next_command_in_every_process_and_an_override_stands_above_it() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    node.ship_plans().await;
    let tenant = node.provision("acme").await;
    let subscription = StreamId::new(tenant, id());
    node.execute_on::<Subscription>(subscription, start("starter", None)).await.unwrap();
    let processes = [node.executor.clone(), Executor::new(env.store().await), Executor::new(env.store().await)];
    let n = std::sync::atomic::AtomicUsize::new(0);
    let (processes, n) = (&processes, &n);
    let join = |process: usize| async move {
        let n = n.fetch_add(1, Ordering::SeqCst);
        processes[process].execute(Request::<User>::new(StreamId::new(tenant, id()), register(n), system(), id())).await
    };
    let full = |outcome: Result<commands::Outcome, CommandError>| {
        assert!(matches!(&outcome, Err(CommandError::QuotaExceeded(exceeded)) if exceeded.meter == Meter::Users), "{outcome:?}");
    };
    for process in [0, 1, 2, 0, 1] {
        join(process).await.unwrap();
    }
    for process in 0..3 {
        full(join(process).await);
    }
    let upgrade = ChangePlan { plan: plan("growth"), when: When::Now };
    processes[1].execute(Request::<Subscription>::new(subscription, upgrade, system(), id())).await.unwrap();
    for process in 0..3 {
        join(process).await.unwrap();
    }
    // Eight are in use: back to five is refused now, in every process.
    for process in processes {
        let downgrade = ChangePlan { plan: plan("starter"), when: When::Now };
        let refused = process.execute(Request::<Subscription>::new(subscription, downgrade, system(), id())).await;
        assert!(matches!(refused, Err(CommandError::Rejected { code, .. }) if code == "subscription.over_limit"));
    }
    // What the platform sets stands instead, until its time, whatever the subscription says.
    let until = Some((env.clock.now() + TimeDelta::days(1)).try_into().unwrap());
    node.execute(tenant, OverrideLimit { meter: Meter::Users, limit: 9, until }).await.unwrap();
    join(2).await.unwrap();
    for process in 0..3 {
        full(join(process).await);
    }
    env.clock.advance(TimeDelta::days(1));
    while node.timers().fire_due().await.unwrap() > 0 {}
    for process in 0..3 {
        join(process).await.unwrap();
    }
    assert_eq!(node.store.counter(tenant, "users".into()).await.unwrap(), 12);
    assert_eq!(node.store.audit(&mut |_| {}).await.unwrap().findings, vec![]);
}
