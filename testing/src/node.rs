//! What `tenure serve` runs, inside the test.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use access::Access;
use access::passwords::Hashing;
use access::token::TokenKey;
use bus::Bus;
use bus::feed::Feed;
use bus::relay::{Relay, Status, hint};
use commands::Executor;
use commands::policy::{Commands, Policies};
use commands::timers::TimerPoller;
use domain::identity::tenant::{ProvisionTenant, Slug, Tenant};
use domain::text::DisplayName;
use domain::{Actor, Aggregate, StreamId, TenantId};
use outbound::dns::{Dns, TxtLookup};
use outbound::erasure::ErasurePolicy;
use outbound::policy::MailPolicy;
use payments::provider::Provider;
use projections::cursor::CursorKey;
use projections::rebuild::Purpose;
use projections::{Progress, Projection, Projections, ReadModel, ReadSide, projector};
use sqlx::PgPool;
use store::{DbRole, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{Env, eventually_else, id};

/// All roles of one process; they end when it is dropped.
pub struct Node {
    /// The log.
    pub store: Store,
    /// The bus.
    pub bus: Bus,
    /// The feed.
    pub feed: Feed,
    /// Executes commands.
    pub executor: Executor,
    /// Opens read models.
    pub reads: ReadSide,
    /// What the relay does.
    pub relay: watch::Receiver<Status>,
    /// The payment provider that the interface has, if a test sets one.
    pub payments: Provider,
    /// What the interface looks domains up in: a server that is not there, unless a test sets another one.
    pub dns: Arc<dyn TxtLookup>,
    /// Whether the policies that answer with commands run.
    reacting: AtomicBool,
    /// The policies that run.
    pub policies: Policies,
    projections: Projections,
    projectors: PgPool,
    progress: Progress,
    cancel: CancellationToken,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Node {
    /// Starts relay, projectors and hints; timers only fire when a test says so, see [`Node::timers`].
    pub async fn start(env: &Env) -> Self {
        let store = env.store().await;
        let bus = env.bus(&store).await;
        let cancel = CancellationToken::new();
        tokio::spawn(hint(store.clone(), bus.clone(), cancel.clone()));
        let relay = Relay::new(store.clone(), bus.clone());
        let status = relay.status();
        tokio::spawn(relay.run(cancel.clone()));
        let feed = Feed::start(store.clone(), bus.clone(), cancel.clone());
        let progress = Progress::default();
        let projectors = env.database.pool(DbRole::Projector, 8);
        let projections = projector::all(&store, &projectors, &feed, &progress, &cancel);
        tokio::spawn(projections.clone().run());
        let policies = commands::policy::none(&store, &feed, &cancel);
        policies.add(MailPolicy::member(&store));
        policies.add(ErasurePolicy::member(&store, None));
        tokio::spawn(policies.clone().run());
        let reads = ReadSide::new(&env.database, progress.clone(), CursorKey([7; 32]));
        let dns = Arc::new(Dns::new(Some(([127, 0, 0, 1], 1).into())).expect("a resolver"));
        Self {
            executor: Executor::new(store.clone()),
            store,
            bus,
            feed,
            reads,
            relay: status,
            payments: None,
            dns,
            reacting: AtomicBool::new(false),
            policies,
            projections,
            projectors,
            progress,
            cancel,
        }
    }

    /// Adds one more read model.
    pub fn project<M: ReadModel>(&self) {
        self.projections.add(Projection::<M>::new(&self.store, &self.progress));
    }

    /// Makes the plans that come with Tenure.
    pub async fn ship_plans(&self) {
        commands::policies::catalogue::install(&self.executor).await.expect("the shipped plans");
    }

    /// Starts the policies that answer with commands, and makes the plans that come with Tenure.
    pub async fn react(&self) {
        self.ship_plans().await;
        macro_rules! all {
            ($($reaction:expr,)*) => { $(self.policies.add(Commands::member($reaction, &self.executor));)* };
        }
        commands::for_each_reaction!(all);
        self.reacting.store(true, Ordering::Relaxed);
    }

    /// Signing in, with hashes that cost next to nothing.
    pub fn access(&self, operator: Option<TokenKey>) -> Access {
        let hashing = Hashing { memory_kib: 64, iterations: 1, refused_after: std::time::Duration::from_millis(20), ..Hashing::default() };
        Access::new(self.executor.clone(), hashing, operator).expect("parameters")
    }

    /// A poller of this node.
    pub fn timers(&self) -> TimerPoller {
        TimerPoller::new(self.executor.clone())
    }

    /// Executes a command on a tenant as the platform.
    pub async fn execute(
        &self,
        tenant: TenantId,
        command: impl Into<domain::identity::tenant::Command>,
    ) -> Result<commands::Outcome, commands::CommandError> {
        self.execute_on::<Tenant>(StreamId::new(tenant, tenant.0), command).await
    }

    /// Executes a command as the platform.
    pub async fn execute_on<A: Aggregate>(
        &self,
        stream: StreamId,
        command: impl Into<A::Ask>,
    ) -> Result<commands::Outcome, commands::CommandError> {
        self.executor.execute(commands::Request::<A>::new(stream, command, system(), id())).await
    }

    /// Makes a tenant.
    pub async fn provision(&self, slug: &str) -> TenantId {
        let tenant = TenantId(id());
        let command = ProvisionTenant {
            id: None,
            slug: Slug::parse(slug).expect("a slug"),
            name: DisplayName::parse(slug).expect("a name"),
            plan: None,
            owner: None,
        };
        self.execute(tenant, command).await.expect("a tenant");
        tenant
    }

    /// Waits until the relay, all read models and the policies have come as far as the log, which the policies may have made longer meanwhile.
    pub async fn settled(&self) {
        eventually_else(|| async {
            let head = self.store.head().await.map_err(|error| error.to_string())?.position;
            let relayed = self.relay.borrow().clone();
            if !matches!(relayed, Status::Running { position } if position >= head) {
                return Err(format!("the relay has not reached {head}: {relayed:?}"));
            }
            let runs = |name: &str| ["mail", "erasure"].contains(&name) || (self.reacting.load(Ordering::Relaxed) && name != "payments");
            let models = self.reads.statuses().await.map_err(|error| error.to_string())?;
            let policies = commands::policy::statuses(&self.store).await.map_err(|error| error.to_string())?;
            let models = models.into_iter().map(|model| (model.name, model.position));
            let policies = policies.into_iter().filter(|policy| runs(&policy.name)).map(|policy| (policy.name, policy.position));
            let behind: Vec<(String, i64)> = models.chain(policies).filter(|(_, position)| *position < head).collect();
            if behind.is_empty() { Ok(()) } else { Err(format!("not at position {head} yet: {behind:?}")) }
        })
        .await;
    }
}

impl Node {
    /// Everything as its events tell it: chains, guards, and each read model equal to the fold of the log (`audit verify` and `projections verify`).
    pub async fn verified(&self) {
        self.settled().await;
        assert_eq!(self.store.audit(&mut |_| {}).await.expect("the log").findings, vec![]);
        for tools in projections::tools::Tools::all() {
            let built = (tools.rebuild)(&self.store, &self.projectors, Purpose::Verify, None, &|_, _| {}).await.expect("a rebuild");
            assert_eq!(built.differences, Some(0), "{}: {:?}", tools.name, built.samples);
        }
    }
}

/// Tenure itself.
pub fn system() -> Actor {
    Actor::System { name: "test".into() }
}
