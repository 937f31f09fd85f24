//! What `tenure serve` runs, inside the test.

use bus::Bus;
use bus::feed::Feed;
use bus::relay::{Relay, Status, hint};
use commands::Executor;
use commands::timers::TimerPoller;
use domain::identity::tenant::{ProvisionTenant, Slug, Tenant};
use domain::text::DisplayName;
use domain::{Actor, StreamId, TenantId};
use projections::cursor::CursorKey;
use projections::{Progress, ReadSide, start_all};
use store::{DbRole, Store};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{Env, eventually, id};

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
        let mut projectors = JoinSet::new();
        start_all(&mut projectors, &store, &env.database.pool(DbRole::Projector, 6), &feed, &progress, &cancel);
        projectors.detach_all();
        let reads = ReadSide::new(&env.database, progress, CursorKey([7; 32]));
        Self { executor: Executor::new(store.clone()), store, bus, feed, reads, relay: status, cancel }
    }

    /// A poller of this node.
    pub fn timers(&self) -> TimerPoller {
        TimerPoller::new(self.executor.clone())
    }

    /// Executes a command as the platform.
    pub async fn execute(
        &self,
        tenant: TenantId,
        command: impl Into<domain::identity::tenant::Command>,
    ) -> Result<commands::Outcome, commands::CommandError> {
        self.executor.execute(commands::Request::<Tenant>::new(StreamId::new(tenant, tenant.0), command, system(), id())).await
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

    /// Waits until the relay and all read models have come as far as the log.
    pub async fn settled(&self) {
        let head = self.store.head().await.expect("the log").position;
        eventually("the relay is at the log's end", || async {
            matches!(*self.relay.borrow(), Status::Running { position } if position >= head).then_some(())
        })
        .await;
        eventually("the read models are at the log's end", || async {
            self.reads.positions().await.ok()?.iter().all(|(_, position, _)| *position >= head).then_some(())
        })
        .await;
    }
}

/// Tenure itself.
pub fn system() -> Actor {
    Actor::System { name: "test".into() }
}
