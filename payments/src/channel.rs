//! Telling a provider: the channel of the outbound runtime. What is told is made from the subscription as it is when it is told.

use std::sync::Arc;

use commands::{CommandError, Executor, Request};
use domain::billing::subscription::{Command, LinkCustomer, LinkProvider, Subscription};
use domain::identity::tenant::Tenant;
use domain::{Actor, StreamId, TenantId};
use futures::future::BoxFuture;
use outbound::queue::{Attempt, Due};
use outbound::worker::Channel;
use uuid::Uuid;

use crate::inbox;
use crate::provider::{PaymentProvider, ProviderError};

/// What the queue calls them.
pub(crate) const KIND: &str = "payment";

/// What a provider is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    /// Who pays.
    Customer,
    /// To collect what is to be paid.
    Subscription,
    /// What has changed.
    Update,
    /// That it is over.
    Cancel,
}

impl Intent {
    const ALL: [Self; 4] = [Self::Customer, Self::Subscription, Self::Update, Self::Cancel];

    /// As stored.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::Subscription => "subscription",
            Self::Update => "update",
            Self::Cancel => "cancel",
        }
    }
}

/// The channel to a provider.
pub struct PaymentChannel {
    executor: Executor,
    provider: Arc<dyn PaymentProvider>,
}

impl PaymentChannel {
    /// The channel to `provider`; what comes of it is noted through `executor`.
    pub fn new(executor: Executor, provider: Arc<dyn PaymentProvider>) -> Self {
        Self { executor, provider }
    }

    async fn tell(&self, due: &Due) -> Result<(), Attempt> {
        let failed = |why: &str| Attempt::Failed(why.to_owned());
        let intent = Intent::ALL.into_iter().find(|intent| intent.as_str() == due.template);
        let intent = intent.ok_or_else(|| failed("what is to be told is not known to this version"))?;
        let stream = StreamId::new(TenantId(due.tenant_id), due.subject_id);
        let store = self.executor.store();
        let loaded = store.current::<Subscription>(stream).await.map_err(|_| failed("the subscription cannot be read"))?;
        let details = loaded.state.details().ok_or_else(|| failed("the subscription cannot be read"))?;
        let (provider, key) = (self.provider.as_ref(), due.id.to_string());
        let customer = details.customer.as_ref().map(|(_, customer)| customer.as_str());
        let subscription = details.provider_subscription.as_deref();
        if intent != Intent::Cancel && !details.status.is_live() {
            return Err(Attempt::Dropped("the subscription is over".into()));
        }
        match (intent, customer, subscription) {
            (Intent::Customer, Some(_), _) | (Intent::Subscription, _, Some(_)) => Ok(()),
            (Intent::Customer, None, _) => {
                let me = StreamId::new(stream.tenant, stream.tenant.0);
                let tenant = store.current::<Tenant>(me).await.map_err(|_| failed("the tenant cannot be read"))?;
                let customer = provider.create_customer(&key, stream, tenant.state.name()).await.map_err(told)?;
                let link = LinkCustomer { provider: provider.name().to_owned(), customer: customer.clone() };
                self.note(due, stream, link).await?;
                // What the provider has said of them before we knew them.
                inbox::reconsider(&self.executor, provider, &customer).await.map_err(|_| failed("what was heard before cannot be read"))
            }
            (Intent::Subscription, Some(customer), None) => {
                let subscription = provider.create_subscription(&key, stream, details, customer).await.map_err(told)?;
                self.note(due, stream, LinkProvider { provider: provider.name().to_owned(), subscription }).await
            }
            (Intent::Update, _, Some(subscription)) => provider.update_subscription(details, subscription).await.map_err(told),
            (Intent::Cancel, _, Some(subscription)) => provider.cancel_subscription(subscription).await.map_err(told),
            // What is not there yet is made from the state as it is then.
            (Intent::Subscription | Intent::Update | Intent::Cancel, _, None) => {
                Err(Attempt::Dropped("the provider has nothing of it yet".into()))
            }
        }
    }

    async fn note(&self, due: &Due, stream: StreamId, link: impl Into<Command>) -> Result<(), Attempt> {
        let link: Command = link.into();
        let id = Uuid::new_v5(&due.id, b"linked");
        let request = Request::<Subscription>::new(stream, link, Actor::system("payments"), id);
        match self.executor.execute(request).await {
            Ok(_) => Ok(()),
            Err(CommandError::Rejected { code, .. }) => Err(Attempt::Refused(format!("{code}: it could not be noted"))),
            Err(_) => Err(Attempt::Failed("it could not be noted".into())),
        }
    }
}

fn told(error: ProviderError) -> Attempt {
    match error {
        ProviderError::Later(why) => Attempt::Failed(why),
        ProviderError::Never(why) => Attempt::Refused(why),
    }
}

impl Channel for PaymentChannel {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn attempt<'a>(&'a self, due: &'a Due) -> BoxFuture<'a, Attempt> {
        Box::pin(async move { self.tell(due).await.map_or_else(|attempt| attempt, |()| Attempt::Delivered) })
    }
}
