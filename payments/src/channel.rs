//! Telling a provider: the channel of the outbound runtime. What is told is made from the subscription as it is when it is told.

use std::sync::Arc;

use commands::{CommandError, Executor, Request};
use domain::billing::money::Money;
use domain::billing::quota::{self, Quota};
use domain::billing::subscription::{Command, LinkCustomer, LinkProvider, PauseReason, Status, Subscription};
use domain::identity::tenant::Tenant;
use domain::text::Reference;
use domain::{Actor, StreamId, TenantId};
use futures::future::BoxFuture;
use outbound::queue::{Attempt, Due};
use outbound::worker::Channel;
use uuid::Uuid;

use crate::inbox;
use crate::provider::{Charge, NewSubscription, PaymentProvider, ProviderError};

/// What the queue calls them.
pub const KIND: &str = "payment";

/// What a provider is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Who pays.
    Customer,
    /// To collect what is to be paid.
    Subscription,
    /// What has changed.
    Update,
    /// That it is over.
    Cancel,
    /// That the tenant has another name.
    Rename,
    /// That the tenant is gone.
    Forget,
    /// To collect what was used beyond a quota.
    Overage,
}

impl Intent {
    const ALL: [Self; 7] = [Self::Customer, Self::Subscription, Self::Update, Self::Cancel, Self::Rename, Self::Forget, Self::Overage];

    /// As stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::Subscription => "subscription",
            Self::Update => "update",
            Self::Cancel => "cancel",
            Self::Rename => "rename",
            Self::Forget => "forget",
            Self::Overage => "overage",
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
        let named = |name: &str| Reference::parse(name).map_err(|error| failed(&format!("a name of the provider's {error}")));
        let intent = Intent::ALL.into_iter().find(|intent| intent.as_str() == due.template);
        let intent = intent.ok_or_else(|| failed("what is to be told is not known to this version"))?;
        let stream = StreamId::new(TenantId(due.tenant_id), due.subject_id);
        let store = self.executor.store();
        let loaded = store.current::<Subscription>(stream).await.map_err(|_| failed("the subscription cannot be read"))?;
        let details = loaded.state.details().ok_or_else(|| failed("the subscription cannot be read"))?;
        let (provider, key) = (self.provider.as_ref(), due.id.to_string());
        let customer = details.customer.as_ref().map(|(_, customer)| customer.as_str());
        let subscription = details.provider_subscription.as_deref();
        let Some(customer) = customer else {
            return match intent {
                Intent::Customer if details.status.is_live() => {
                    let name = self.name_of(stream.tenant).await?;
                    let customer = provider.create_customer(&key, stream, name.as_deref()).await.map_err(told)?;
                    self.note(due, stream, LinkCustomer { provider: named(provider.name())?, customer: named(&customer)? }).await?;
                    self.reconsider(&customer).await
                }
                Intent::Customer => Err(Attempt::Dropped("the subscription is over".into())),
                Intent::Overage if details.status.is_live() => Err(failed("the provider does not know yet who pays")),
                // What is not there yet is made from the state as it is then.
                Intent::Subscription | Intent::Update | Intent::Cancel | Intent::Rename | Intent::Forget | Intent::Overage => {
                    Err(Attempt::Dropped("the provider does not know who pays yet".into()))
                }
            };
        };
        match intent {
            Intent::Rename => {
                let name = self.name_of(stream.tenant).await?;
                return provider.rename_customer(customer, name.as_deref()).await.map_err(told);
            }
            Intent::Forget => return provider.forget_customer(customer).await.map_err(told),
            Intent::Overage => {
                // Invoices of a paused subscription are void, and none comes after its end.
                let running = subscription.filter(|_| details.status.is_live() && details.status != Status::Paused);
                return provider.collect(&key, &self.overage(due, customer, running).await?).await.map_err(told);
            }
            Intent::Customer | Intent::Subscription | Intent::Update | Intent::Cancel => {}
        }
        // Also what was begun before it was over, and is not known here.
        if !details.status.is_live() {
            return provider.cancel_subscription(customer).await.map_err(told);
        }
        match (intent, subscription) {
            (Intent::Customer, _) => self.reconsider(customer).await,
            (Intent::Subscription | Intent::Update, None) if details.payment_method.is_none() => {
                Err(Attempt::Dropped("there is nothing to pay with yet".into()))
            }
            (Intent::Subscription | Intent::Update, None) if details.is_paused_for(PauseReason::Requested) => {
                Err(Attempt::Dropped("it is paused".into()))
            }
            (Intent::Subscription | Intent::Update, None) => {
                let new = NewSubscription { subscription: stream, details, customer, now: store.clock().now() };
                let subscription = provider.create_subscription(&key, &new).await.map_err(told)?;
                self.note(due, stream, LinkProvider { provider: named(provider.name())?, subscription: named(&subscription)? }).await?;
                self.reconsider(customer).await
            }
            (Intent::Subscription | Intent::Update, Some(subscription)) => {
                provider.update_subscription(details, subscription).await.map_err(told)?;
                self.reconsider(customer).await
            }
            (Intent::Cancel | Intent::Rename | Intent::Forget | Intent::Overage, _) => Err(Attempt::Dropped("it goes on".into())),
        }
    }

    /// What the tenant is called, unless that was erased.
    async fn name_of(&self, tenant: TenantId) -> Result<Option<String>, Attempt> {
        let loaded = self.executor.store().current::<Tenant>(StreamId::new(tenant, tenant.0)).await;
        let loaded = loaded.map_err(|_| Attempt::Failed("the tenant cannot be read".into()))?;
        Ok(loaded.state.name().map(str::to_owned))
    }

    /// What a closed month has come to.
    async fn overage<'a>(&self, due: &Due, customer: &'a str, subscription: Option<&'a str>) -> Result<Charge<'a>, Attempt> {
        let unreadable = || Attempt::Failed("the closed month cannot be read".into());
        let store = self.executor.store();
        let event = store.at(due.position).await.map_err(|_| unreadable())?.ok_or_else(unreadable)?;
        match store.typed::<Quota>(&[&event]).await.map_err(|_| unreadable())?.pop().map(|event| event.event) {
            Some(quota::Event::PeriodClosed { meter, period, overage, amount: Some(amount), segments, .. }) => {
                let own: Vec<_> = segments.iter().filter(|segment| segment.subscription == Some(due.subject_id)).collect();
                let (mut overage, mut amount) = (overage, amount);
                if let Some(currency) = own.iter().find_map(|segment| Some(segment.amount?.currency)) {
                    overage = own.iter().map(|segment| segment.overage).sum();
                    amount = Money::new(own.iter().filter_map(|segment| Some(segment.amount?.amount)).sum(), currency);
                }
                let description = format!("{overage} {meter} beyond the quota in {period}");
                Ok(Charge { customer, subscription, amount, description, overage: Some((meter, period)) })
            }
            Some(_) | None => Err(unreadable()),
        }
    }

    /// What the provider has said of them before we knew them.
    async fn reconsider(&self, customer: &str) -> Result<(), Attempt> {
        let reconsidered = inbox::reconsider(&self.executor, self.provider.as_ref(), customer).await;
        reconsidered.map_err(|_| Attempt::Failed("what was heard before cannot be read".into()))
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

    /// The last state of a subscription has to be the one that the provider heard last.
    fn is_ordered(&self) -> bool {
        true
    }

    fn attempt<'a>(&'a self, due: &'a Due) -> BoxFuture<'a, Attempt> {
        Box::pin(async move { self.tell(due).await.map_or_else(|attempt| attempt, |()| Attempt::Delivered) })
    }
}
