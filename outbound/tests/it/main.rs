//! Deliveries, over real servers: PostgreSQL, nats-server, and aiosmtpd for the mails.
#![expect(clippy::unwrap_used, reason = "tests may")]

use std::collections::BTreeMap;
use std::process::Stdio;

use chrono::TimeDelta;
use commands::usage::Recording;
use domain::billing::meter::Meter;
use domain::billing::subscription::{ExtendTrial, Fact, Report, StartSubscription, Subscription};
use domain::billing::usage::{UsageId, UsageItem};
use domain::identity::tenant::{NewOwner, ProvisionTenant, Slug};
use domain::identity::user::{InviteUser, RegisterUser, RequestPasswordReset, RevokeInvitation, User};
use domain::text::{DisplayName, Email, PlanCode, Reference};
use domain::{Clock as _, Role, StreamId, TenantId};
use outbound::mail::Mailer;
use outbound::queue::{self, State};
use outbound::worker::Worker;
use testing::node::Node;
use testing::{Env, eventually, id};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use uuid::Uuid;

/// An SMTP server that can be told how to behave, stopped and started again on the same port.
struct Smtp {
    child: Child,
    port: u16,
    directory: tempfile::TempDir,
}

impl Smtp {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Self::spawn(port, directory.path()).await;
        Self { child, port, directory }
    }

    async fn spawn(port: u16, directory: &std::path::Path) -> Child {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/smtp_server.py");
        // Debian's own Python has the package that scripts/setup.sh installs, whichever comes first in PATH.
        let mut child = Command::new("/usr/bin/python3")
            .args([script, &port.to_string()])
            .arg(directory)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("python3");
        let line = BufReader::new(child.stdout.take().unwrap()).lines().next_line().await.unwrap();
        assert_eq!(line.as_deref(), Some("ready"), "scripts/setup.sh --tests installs aiosmtpd");
        child
    }

    fn behave(&self, rule: &str) {
        std::fs::write(self.directory.path().join("rule"), rule).unwrap();
    }

    async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    async fn restart(&mut self) {
        self.child = Self::spawn(self.port, self.directory.path()).await;
    }

    fn mailer(&self, store: &store::Store) -> Mailer {
        Mailer::smtp(store, &format!("smtp://127.0.0.1:{}", self.port), "Tenure <no-reply@example.com>", "https://app.example.com").unwrap()
    }

    /// What has arrived: how often, by message id, and the last text of each.
    fn arrived(&self) -> BTreeMap<String, (usize, String)> {
        let mut arrived = BTreeMap::new();
        for file in std::fs::read_dir(self.directory.path().join("new")).into_iter().flatten() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            let id = text.lines().find_map(|line| line.strip_prefix("Message-ID: <")).unwrap().split('@').next().unwrap().to_owned();
            let entry = arrived.entry(id).or_insert((0, String::new()));
            entry.0 += 1;
            entry.1 = text;
        }
        arrived
    }
}

struct Office {
    env: Env,
    node: Node,
    tenant: TenantId,
    smtp: Smtp,
}

impl Office {
    async fn new() -> Self {
        let env = Env::new().await;
        let node = Node::start(&env).await;
        let tenant = node.provision("acme").await;
        Self { env, node, tenant, smtp: Smtp::start().await }
    }

    /// The smallest plan, and somebody of each kind.
    async fn subscribe(&self) -> StreamId {
        for (name, role) in [("boss", Role::OrgAdmin), ("payer", Role::BillingAdmin), ("agent", Role::SupportAgent), ("user", Role::User)] {
            let user = StreamId::new(self.tenant, id());
            let (email, name) = (Email::parse(&format!("{name}@example.com")).unwrap(), DisplayName::parse(name).unwrap());
            let register = RegisterUser { id: None, email, name, role, email_verified: true, welcome: false };
            self.node.execute_on::<User>(user, register).await.unwrap();
        }
        let subscription = StreamId::new(self.tenant, id());
        let start = StartSubscription {
            id: None,
            plan: PlanCode::parse("starter").unwrap(),
            trial_days: None,
            billing: domain::billing::period::Billing::Anniversary,
            time_zone: chrono_tz::Tz::UTC,
            currency: None,
            quantity: 1,
        };
        self.node.execute_on::<Subscription>(subscription, start).await.unwrap();
        subscription
    }

    fn worker(&self) -> Worker {
        Worker::new(self.node.store.clone(), vec![std::sync::Arc::new(self.smtp.mailer(&self.node.store))])
    }

    async fn invite(&self, count: usize) -> Vec<StreamId> {
        let mut users = Vec::new();
        for _ in 0..count {
            let user = StreamId::new(self.tenant, id());
            let email = Email::parse(&format!("u{}@example.com", user.id.simple())).unwrap();
            let invite = InviteUser { id: None, email, name: None, role: Role::User, expires_in_hours: 700 };
            self.node.execute_on::<User>(user, invite).await.unwrap();
            users.push(user);
        }
        self.node.settled().await;
        users
    }

    async fn states(&self) -> BTreeMap<String, usize> {
        let mut states = BTreeMap::new();
        for delivery in queue::list(self.node.store.pool(), self.tenant, None, None, 1000).await.unwrap() {
            *states.entry(delivery.state).or_insert(0) += 1;
        }
        states
    }

    /// Lets time pass and attempts what is due, until all are in this state.
    async fn until_all(&self, state: State, count: usize) {
        let worker = self.worker();
        eventually("all deliveries have ended", || async {
            self.env.clock.advance(TimeDelta::hours(1));
            while worker.deliver_due().await.unwrap() > 0 {}
            (self.states().await == BTreeMap::from([(state.as_str().to_owned(), count)])).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_is_mailed_once_with_a_link_that_is_good_also_when_the_policy_begins_again() {
    let office = Office::new().await;
    let user = office.invite(1).await[0];
    office.until_all(State::Delivered, 1).await;
    let arrived = office.smtp.arrived();
    let (_, text) = arrived.values().next().unwrap();
    let address = format!("To: u{}@example.com", user.id.simple());
    assert!(text.contains(&address) && text.contains("Subject: You are invited to acme"), "{text}");
    let joined = text.replace("=\r\n", "").replace("=\n", "").replace("=3D", "=");
    let token = joined.split("https://app.example.com/accept-invitation?token=").nth(1).unwrap().split_whitespace().next().unwrap();
    let (named, _) = access::links::read(&office.node.store, access::links::Purpose::Invitation, token).unwrap();
    assert_eq!(named, user);
    // What the queue holds tells nobody anything.
    let queued: Vec<String> = sqlx::query_scalar("select d::text from ops.deliveries d").fetch_all(&office.env.owner).await.unwrap();
    assert!(queued.iter().all(|row| !row.contains("example.com") && !row.contains(token)), "{queued:?}");
    // The whole log once more: nothing is queued again.
    sqlx::query("update ops.policies set position = 0, log_hash = decode(repeat('00', 32), 'hex')")
        .execute(&office.env.owner)
        .await
        .unwrap();
    office.node.settled().await;
    office.until_all(State::Delivered, 1).await;
    assert_eq!(office.smtp.arrived().values().map(|(times, _)| *times).collect::<Vec<_>>(), [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_days_before_a_trial_ends_those_who_pay_are_reminded_once_and_of_an_extended_one_again() {
    let office = Office::new().await;
    office.node.ship_plans().await;
    let subscription = office.subscribe().await;
    let until_fired = || async {
        while office.node.timers().fire_due().await.unwrap() > 0 {}
        office.node.settled().await;
        while office.worker().deliver_due().await.unwrap() > 0 {}
    };
    office.env.clock.advance(TimeDelta::days(11) - TimeDelta::minutes(1));
    until_fired().await;
    assert!(office.smtp.arrived().is_empty(), "not a moment too early");
    office.env.clock.advance(TimeDelta::minutes(2));
    until_fired().await;
    until_fired().await;
    let arrived = office.smtp.arrived();
    let to = |name: &str| arrived.values().filter(|(_, text)| text.contains(&format!("To: {name}@example.com"))).count();
    assert_eq!((arrived.len(), to("boss"), to("payer")), (2, 1, 1), "{arrived:?}");
    let (_, text) = arrived.values().next().unwrap();
    assert!(
        text.contains("Subject: The trial of acme ends soon") && text.contains("15 January 2026") && text.contains("/billing"),
        "{text}"
    );
    let until = office.node.store.clock().now() + TimeDelta::days(10);
    office.node.execute_on::<Subscription>(subscription, ExtendTrial { until: until.try_into().unwrap() }).await.unwrap();
    office.env.clock.advance(TimeDelta::days(7));
    until_fired().await;
    assert_eq!(office.smtp.arrived().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_manage_billing_are_mailed_of_a_refund_of_a_dispute_and_of_its_loss_and_not_of_one_that_is_won() {
    let office = Office::new().await;
    office.node.ship_plans().await;
    let subscription = office.subscribe().await;
    let report = async |id: &str, fact: Fact| {
        let occurred_at = office.env.clock.now().try_into().unwrap();
        let report = Report { provider_event_id: Reference::parse(id).unwrap(), occurred_at, fact };
        office.node.execute_on::<Subscription>(subscription, report).await.unwrap();
        office.node.settled().await;
        while office.worker().deliver_due().await.unwrap() > 0 {}
        office.smtp.arrived().len()
    };
    assert_eq!(report("evt_1", Fact::Disputed(None)).await, 2);
    assert_eq!(report("evt_2", Fact::DisputeClosed { amount: None, lost: false }).await, 2);
    assert_eq!(report("evt_3", Fact::DisputeClosed { amount: None, lost: true }).await, 4);
    assert_eq!(report("evt_4", Fact::Refunded(None)).await, 6);
    let arrived = office.smtp.arrived();
    for (subject, name) in [
        ("A payment of acme is disputed", "boss"),
        ("A payment of acme was reversed", "payer"),
        ("A payment of acme was refunded", "payer"),
    ] {
        let mail = |text: &str| text.contains(&format!("Subject: {subject}")) && text.contains(&format!("To: {name}@example.com"));
        assert!(arrived.values().any(|(_, text)| mail(text)), "{subject}: {arrived:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_run_a_tenant_get_one_mail_for_the_highest_threshold_that_was_crossed_at_once() {
    let office = Office::new().await;
    office.node.react().await;
    office.subscribe().await;
    let use_some = async |name: &str, quantity: i64| {
        let items = vec![UsageItem { id: UsageId::parse(name).unwrap(), quantity, at: None }];
        let recording =
            Recording { tenant: office.tenant, meter: Meter::Messages, items, actor: testing::node::system(), traceparent: None };
        office.node.executor.record_one(recording).await.unwrap();
        office.node.settled().await;
        while office.worker().deliver_due().await.unwrap() > 0 {}
        // That of five seats four are taken they are told, too.
        office.smtp.arrived().values().map(|(_, text)| text.clone()).filter(|text| text.contains("messages")).collect::<Vec<_>>()
    };
    assert_eq!(use_some("most", 790).await, Vec::<String>::new());
    let told = use_some("jump", 130).await;
    assert_eq!(told.len(), 1, "{told:?}");
    for part in [
        "To: boss@example.com",
        "Subject: 90 % of messages are used at acme",
        "has used 920 of 1000 messages",
        "1 February 2026, 00:00 UTC",
        "/billing",
    ] {
        assert!(told[0].contains(part), "{part}: {}", told[0]);
    }
    assert!(!told[0].contains("charged"));
    assert_eq!(use_some("a little", 10).await.len(), 1, "nothing new, no mail");
    let told = use_some("beyond", 80).await;
    assert!(told.len() == 2 && told.iter().any(|text| text.contains("Subject: 100 %") && text.contains("charged")), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_of_a_new_tenant_gets_one_mail_by_which_they_choose_their_password() {
    let office = Office::new().await;
    office.node.react().await;
    let tenant = TenantId(id());
    let owner = NewOwner { email: Email::parse("ada@example.com").unwrap(), name: DisplayName::parse("Ada").unwrap() };
    let (slug, name) = (Slug::parse("beta").unwrap(), DisplayName::parse("Beta").unwrap());
    let provision = ProvisionTenant { id: None, slug, name, plan: Some(PlanCode::parse("growth").unwrap()), owner: Some(owner) };
    office.node.execute(tenant, provision).await.unwrap();
    office.node.settled().await;
    while office.worker().deliver_due().await.unwrap() > 0 {}
    let arrived = office.smtp.arrived();
    let (_, text) = arrived.values().next().unwrap();
    assert_eq!(arrived.len(), 1, "{arrived:?}");
    assert!(text.contains("Subject: Welcome to Beta") && text.contains("Hello Ada"), "{text}");
    let token = text.split("/reset-password?token=").nth(1).unwrap().split_whitespace().next().unwrap();
    let access = office.node.access(None);
    let password = access::passwords::Password::new("correct horse battery staple".to_owned());
    access.reset_password(token, password).await.unwrap();
    let (user, _) = access::links::read(&office.node.store, access::links::Purpose::Reset, token).unwrap();
    let details = access.details(user).await.unwrap().unwrap();
    assert!(details.email_verified && details.role == Role::OrgAdmin && details.credential.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_server_is_down_slow_or_refuses_for_now_mails_wait_and_then_each_arrives_once() {
    let mut office = Office::new().await;
    office.smtp.kill().await;
    office.invite(5).await;
    let worker = office.worker();
    assert_eq!(worker.deliver_due().await.unwrap(), 5);
    assert_eq!(worker.deliver_due().await.unwrap(), 0, "not again at once");
    office.smtp.restart().await;
    office.smtp.behave("451");
    office.env.clock.advance(TimeDelta::seconds(6));
    assert!(worker.deliver_due().await.unwrap() > 0);
    assert_eq!(office.states().await, BTreeMap::from([("pending".to_owned(), 5)]));
    let one = &queue::list(office.node.store.pool(), office.tenant, None, None, 1).await.unwrap()[0];
    let attempts = queue::attempts(office.node.store.pool(), office.tenant, one.id).await.unwrap();
    assert!(
        !attempts.is_empty()
            && attempts.iter().all(|attempt| attempt.outcome == "failed" && !attempt.reason.as_ref().unwrap().contains('@')),
        "{attempts:?}"
    );
    // A server that hangs in the middle of a mail, and dies.
    office.smtp.behave("slow");
    office.env.clock.advance(TimeDelta::hours(1));
    let hanging = tokio::spawn({
        let worker = worker.clone();
        async move { worker.deliver_due().await }
    });
    eventually("a mail is under way", || async {
        let leased: i64 = sqlx::query_scalar("select count(*) from ops.deliveries where leased_until > now()")
            .fetch_one(&office.env.owner)
            .await
            .unwrap();
        (leased == 5).then_some(())
    })
    .await;
    office.smtp.kill().await;
    hanging.await.unwrap().unwrap();
    assert!(office.smtp.arrived().is_empty());
    office.smtp.behave("accept");
    office.smtp.restart().await;
    office.until_all(State::Delivered, 5).await;
    let arrived = office.smtp.arrived();
    assert_eq!(arrived.values().map(|(times, _)| *times).collect::<Vec<_>>(), [1; 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_between_send_and_record_sends_the_same_message_again_and_no_recorded_one() {
    let office = Office::new().await;
    office.invite(3).await;
    office.until_all(State::Delivered, 3).await;
    office.invite(3).await;
    // Killed while it records: it has sent, and everybody waits for the row.
    let mut blocker = store::database::begin(&office.env.owner).await.unwrap();
    sqlx::query("lock table ops.delivery_attempts in exclusive mode").execute(&mut *blocker).await.unwrap();
    let worker = office.worker();
    let killed = tokio::spawn(async move { worker.deliver_due().await });
    eventually("all have been sent", || async { (office.smtp.arrived().len() == 6).then_some(()) }).await;
    killed.abort();
    let _ = killed.await;
    blocker.rollback().await.unwrap();
    assert_eq!(office.states().await, BTreeMap::from([("delivered".to_owned(), 3), ("pending".to_owned(), 3)]));
    // Nobody else attempts them while the dead one may still be alive.
    assert_eq!(office.worker().deliver_due().await.unwrap(), 0);
    sqlx::query("update ops.deliveries set leased_until = now() - interval '1 second' where state = 'pending'")
        .execute(&office.env.owner)
        .await
        .unwrap();
    office.until_all(State::Delivered, 6).await;
    let mut times: Vec<usize> = office.smtp.arrived().values().map(|(times, _)| *times).collect();
    times.sort_unstable();
    assert_eq!(times, [1, 1, 1, 2, 2, 2], "those that were not recorded once more, with the same id");
    // The server's own answer lost: the same.
    office.smtp.behave("ack-lost");
    office.invite(1).await;
    let _ = office.worker().deliver_due().await;
    office.smtp.behave("accept");
    office.until_all(State::Delivered, 7).await;
    assert_eq!(office.smtp.arrived().len(), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_share_the_queue_and_send_nothing_twice() {
    let office = Office::new().await;
    office.invite(60).await;
    let workers: Vec<Worker> = (0..4).map(|_| office.worker()).collect();
    let all = workers.iter().map(|worker| async move { while worker.deliver_due().await.unwrap() > 0 {} });
    futures::future::join_all(all).await;
    assert_eq!(office.states().await, BTreeMap::from([("delivered".to_owned(), 60)]));
    assert!(office.smtp.arrived().values().all(|(times, _)| *times == 1));
    assert_eq!(office.smtp.arrived().len(), 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_that_is_refused_for_good_is_a_dead_letter_until_it_is_retried_by_command() {
    let office = Office::new().await;
    office.smtp.behave("550");
    office.invite(2).await;
    office.until_all(State::Dead, 2).await;
    let (store, now) = (&office.node.store, office.node.store.clock().now());
    let dead = queue::list(store.pool(), office.tenant, Some(State::Dead), None, 10).await.unwrap();
    assert_eq!((dead[0].attempts, dead[0].reason.as_deref()), (1, Some("the server answered 550")));
    office.smtp.behave("accept");
    assert_eq!(office.worker().deliver_due().await.unwrap(), 0, "not by itself");
    assert_eq!(queue::retry(store.pool(), Some(TenantId(id())), Some(dead[0].id), now).await.unwrap(), 0, "not by another tenant");
    assert_eq!(queue::retry(store.pool(), Some(office.tenant), Some(dead[0].id), now).await.unwrap(), 1);
    assert_eq!(queue::retry(store.pool(), Some(office.tenant), None, now).await.unwrap(), 1);
    office.until_all(State::Delivered, 2).await;
    assert_eq!(office.smtp.arrived().values().map(|(times, _)| *times).collect::<Vec<_>>(), [1, 1]);
    let attempts = queue::attempts(store.pool(), office.tenant, dead[0].id).await.unwrap();
    assert_eq!(attempts.iter().map(|attempt| attempt.outcome.as_str()).collect::<Vec<_>>(), ["refused", "delivered"]);
    // One that fails for now only is given up in the end, too.
    office.smtp.behave("451");
    office.invite(1).await;
    let worker = office.worker();
    eventually("it is given up", || async {
        office.env.clock.advance(TimeDelta::hours(7));
        worker.deliver_due().await.unwrap();
        (office.states().await.get("dead") == Some(&1)).then_some(())
    })
    .await;
    let dead = queue::list(store.pool(), office.tenant, Some(State::Dead), None, 10).await.unwrap();
    assert_eq!(dead[0].attempts, queue::MAX_ATTEMPTS);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_longer_wanted_when_its_turn_comes_is_not_sent() {
    let office = Office::new().await;
    let users = office.invite(2).await;
    office.node.execute_on::<User>(users[0], RevokeInvitation {}).await.unwrap();
    office.until_all_but_one_dropped().await;
    assert_eq!(office.smtp.arrived().len(), 1);
    // Asked twice within a minute, one link is sent.
    let accepted = users[1];
    let accept = domain::identity::user::AcceptInvitation {
        token: office.token(accepted).await,
        name: Some(domain::text::DisplayName::parse("Ada").unwrap()),
        credential: id(),
    };
    office.node.execute_on::<User>(accepted, accept).await.unwrap();
    for _ in 0..3 {
        office.node.execute_on::<User>(accepted, RequestPasswordReset {}).await.unwrap();
    }
    office.node.settled().await;
    let resets = queue::list(office.node.store.pool(), office.tenant, None, None, 10).await.unwrap();
    assert_eq!(resets.iter().filter(|delivery| delivery.template == "reset").count(), 1);
}

impl Office {
    async fn until_all_but_one_dropped(&self) {
        while self.worker().deliver_due().await.unwrap() > 0 {}
        assert_eq!(self.states().await, BTreeMap::from([("delivered".to_owned(), 1), ("dropped".to_owned(), 1)]));
    }

    async fn token(&self, user: StreamId) -> uuid::Uuid {
        self.node.store.reload::<User>(user).await.unwrap().state.details().unwrap().invitation.unwrap().token
    }
}

/// Delivers to some tenants only, and what is about one subject in order.
struct Picky(Uuid);

impl outbound::worker::Channel for Picky {
    fn kind(&self) -> &'static str {
        "picky"
    }

    fn is_ordered(&self) -> bool {
        true
    }

    fn attempt<'a>(&'a self, due: &'a queue::Due) -> futures::future::BoxFuture<'a, queue::Attempt> {
        let refused = due.tenant_id == self.0;
        Box::pin(async move { if refused { queue::Attempt::Failed("not to them".into()) } else { queue::Attempt::Delivered } })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_tenant_keeps_nothing_from_another_one_with_the_same_ids() {
    let env = Env::new().await;
    let store = env.store().await;
    let (first, second, same) = (TenantId(id()), TenantId(id()), id());
    let delivery = |tenant, position| queue::NewDelivery {
        id: same,
        tenant,
        kind: "picky",
        subject_id: same,
        template: "t",
        intent: same,
        position,
        event: None,
        at: domain::Clock::now(&env.clock),
    };
    let mut tx = store::database::begin(store.pool()).await.unwrap();
    queue::add(&mut tx, &[delivery(first, 0), delivery(second, 0)]).await.unwrap();
    tx.commit().await.unwrap();
    let worker = Worker::new(store.clone(), vec![std::sync::Arc::new(Picky(first.0))]);
    worker.deliver_due().await.unwrap();
    let states =
        async |tenant| queue::list(store.pool(), tenant, None, None, 9).await.unwrap().into_iter().map(|row| row.state).collect::<Vec<_>>();
    assert_eq!((states(first).await, states(second).await), (vec!["pending".to_owned()], vec!["delivered".to_owned()]));
    assert_eq!(queue::attempts(store.pool(), second, same).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_mails_are_for_their_owner_alone_and_go_with_the_person_also_when_written_late() {
    use std::os::unix::fs::PermissionsExt as _;
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let tenant = node.provision("acme").await;
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("mail");
    std::fs::create_dir(&dir).unwrap();
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).unwrap();
    std::fs::write(dir.join("of-an-older-version.eml"), "To: somebody@example.com").unwrap();
    let mailer = Mailer::files(&node.store, &dir, "Tenure <no-reply@example.com>", "https://app.example.com").unwrap();
    let files = mailer.written_to().unwrap();
    let worker = Worker::new(node.store.clone(), vec![std::sync::Arc::new(mailer)]);
    let mut users = Vec::new();
    for name in ["ada", "bob"] {
        let user = StreamId::new(tenant, id());
        let (email, name) = (Email::parse(&format!("{name}@example.com")).unwrap(), DisplayName::parse(name).unwrap());
        let register = RegisterUser { id: None, email, name, role: Role::User, email_verified: false, welcome: false };
        node.execute_on::<User>(user, register).await.unwrap();
        users.push(user);
    }
    node.settled().await;
    worker.deliver_due().await.unwrap();
    let there = || {
        let mut names: Vec<(String, u32)> = std::fs::read_dir(&dir)
            .unwrap()
            .map(|file| file.unwrap())
            .map(|file| (file.file_name().into_string().unwrap(), file.metadata().unwrap().permissions().mode() & 0o777))
            .collect();
        names.sort();
        names
    };
    assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(there().len() == 3 && there().iter().all(|(_, mode)| *mode == 0o600), "{:?}", there());
    // One more mail is queued, and the person erased before it is written.
    node.execute_on::<User>(users[0], RequestPasswordReset {}).await.unwrap();
    node.settled().await;
    node.execute_on::<User>(users[0], domain::identity::user::DeleteUser {}).await.unwrap();
    node.execute_on::<User>(users[0], domain::identity::user::EraseUser {}).await.unwrap();
    files.forget_erased(&node.store).await.unwrap();
    worker.deliver_due().await.unwrap();
    let left: Vec<String> = there().into_iter().map(|(name, _)| name).collect();
    assert!(left.len() == 1 && left[0].starts_with(&format!("{}_{}_", tenant, users[1].id)), "{left:?}");
    // What the policy of mails decides late is not queued any more.
    let mut tx = store::database::begin(node.store.pool()).await.unwrap();
    let late = queue::NewDelivery {
        id: id(),
        tenant,
        kind: "mail",
        subject_id: users[0].id,
        template: "reset",
        intent: id(),
        position: 1,
        event: None,
        at: domain::Clock::now(&env.clock),
    };
    queue::add(&mut tx, &[late]).await.unwrap();
    tx.commit().await.unwrap();
    let queued: i64 = sqlx::query_scalar("select count(*) from ops.deliveries where subject_id = $1")
        .bind(users[0].id)
        .fetch_one(&env.owner)
        .await
        .unwrap();
    assert_eq!(queued, 0);
}
