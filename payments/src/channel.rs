//! Telling a provider: the channel of the outbound runtime. Each change of a subscription is told by itself.

use std::sync::Arc;

use chrono::{DateTime, SubsecRound as _, Utc};
use commands::{CommandError, Executor, Request};
use cqrs_es::Aggregate as _;
use domain::billing::meter::Meter;
use domain::billing::money::Money;
use domain::billing::period::Month;
use domain::billing::quota::{self, Quota};
use domain::billing::subscription::{
    self, CancelSubscription, Command, Details, Fact, LinkCustomer, LinkProvider, PauseReason, Report, Standing, Status, Subscription,
    TakeBackChange, When,
};
use domain::identity::tenant::Tenant;
use domain::text::Reference;
use domain::{Actor, StreamId, TenantId};
use futures::future::BoxFuture;
use outbound::queue::{Attempt, Due};
use outbound::worker::Channel;
use store::Recorded;
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
        let intent = Intent::ALL.into_iter().find(|intent| intent.as_str() == due.template);
        let intent = intent.ok_or_else(|| failed("what is to be told is not known to this version"))?;
        let stream = StreamId::new(TenantId(due.tenant_id), due.subject_id);
        let store = self.executor.store();
        let loaded = store.current::<Subscription>(stream).await.map_err(|_| failed("the subscription cannot be read"))?;
        let details = loaded.state.details().ok_or_else(|| failed("the subscription cannot be read"))?;
        // Each change is sent as it was: the invoices of two changes do not add up to the invoice of the last state alone.
        let then = if intent == Intent::Update && details.status.is_live() { self.as_of(stream, due.position).await? } else { None };
        let then = then.as_ref().and_then(Subscription::details);
        let name = if matches!(intent, Intent::Customer | Intent::Rename) { self.name_of(stream.tenant).await? } else { None };
        let overage = if intent == Intent::Overage { Some(self.overage(due).await?) } else { None };
        let (key, now) = (due.id.to_string(), store.clock().now());
        let telling = Telling { intent, key: &key, stream, details, then, name: name.as_deref(), overage, now };
        let told = tell(self.provider.as_ref(), telling).await?;
        if let Some(link) = told.link {
            self.note(due, stream, link).await?;
        }
        match told.customer {
            Some(customer) => self.reconsider(&customer).await,
            None => Ok(()),
        }
    }

    /// Returns the subscription as of an event of its own. Returns `None` for any other event, and for events before the provider's subscription was created: that was created
    /// from a state that includes them.
    async fn as_of(&self, stream: StreamId, position: i64) -> Result<Option<Subscription>, Attempt> {
        let unreadable = || failed("the subscription cannot be read");
        let store = self.executor.store();
        let stored = store.stream(Subscription::TYPE, &stream.to_string()).await.map_err(|_| unreadable())?;
        let events = store.typed::<Subscription>(&stored.iter().collect::<Vec<_>>()).await.map_err(|_| unreadable())?;
        let linked = |event: &&Recorded<_>| matches!(event.event, subscription::Event::ProviderLinked { .. });
        if events.iter().rev().find(linked).is_some_and(|linked| position < linked.position) {
            return Ok(None);
        }
        let Some(at) = events.iter().find(|event| event.position == position).map(|event| event.recorded_at) else { return Ok(None) };
        // Events of one append belong together: a renewal with another plan is complete only after both of its events.
        let mut state = Subscription::default();
        for event in events.into_iter().filter(|event| event.position <= position || event.recorded_at == at) {
            state.apply(event.event);
        }
        Ok(Some(state))
    }

    /// What the tenant is called, unless that was erased.
    async fn name_of(&self, tenant: TenantId) -> Result<Option<String>, Attempt> {
        let loaded = self.executor.store().current::<Tenant>(StreamId::new(tenant, tenant.0)).await;
        let loaded = loaded.map_err(|_| Attempt::Failed("the tenant cannot be read".into()))?;
        Ok(loaded.state.name().map(str::to_owned))
    }

    /// What a closed month has come to for the subscription.
    async fn overage(&self, due: &Due) -> Result<Overage, Attempt> {
        let unreadable = || failed("the closed month cannot be read");
        let store = self.executor.store();
        let event = store.at(due.position).await.map_err(|_| unreadable())?.ok_or_else(unreadable)?;
        match store.typed::<Quota>(&[&event]).await.map_err(|_| unreadable())?.pop().map(|event| event.event) {
            Some(quota::Event::PeriodClosed { meter, period, overage, amount: Some(amount), segments, .. }) => {
                let own = || segments.iter().filter(|segment| segment.subscription == Some(due.subject_id));
                let amounts = || own().filter_map(|segment| segment.amount);
                // Months that were closed before segments were told were priced as a whole.
                let Some(currency) = amounts().next().map(|amount| amount.currency) else {
                    return Ok(Overage { meter, period, units: overage, amount });
                };
                let amount = Money::new(amounts().map(|amount| amount.amount).sum(), currency);
                Ok(Overage { meter, period, units: own().map(|segment| segment.overage).sum(), amount })
            }
            Some(_) | None => Err(unreadable()),
        }
    }

    /// What the provider has said of them before we knew them.
    async fn reconsider(&self, customer: &str) -> Result<(), Attempt> {
        let reconsidered = inbox::reconsider(&self.executor, self.provider.as_ref(), customer).await;
        reconsidered.map_err(|_| Attempt::Failed("what was heard before cannot be read".into()))
    }

    async fn note(&self, due: &Due, stream: StreamId, link: Command) -> Result<(), Attempt> {
        let id = Uuid::new_v5(&due.id, b"linked");
        let request = Request::<Subscription>::new(stream, link, Actor::system("payments"), id);
        match self.executor.execute(request).await {
            Ok(_) => Ok(()),
            Err(CommandError::Rejected { code, .. }) => Err(Attempt::Refused(format!("{code}: it could not be noted"))),
            Err(_) => Err(Attempt::Failed("it could not be noted".into())),
        }
    }
}

/// What a provider is told, and what of.
pub struct Telling<'a> {
    /// What.
    pub intent: Intent,
    /// The same at every attempt.
    pub key: &'a str,
    /// Of which subscription.
    pub stream: StreamId,
    /// As it is now.
    pub details: &'a Details,
    /// As it was after the change that is told.
    pub then: Option<&'a Details>,
    /// What the tenant is called, if that is told.
    pub name: Option<&'a str>,
    /// What a closed month has come to, if that is told.
    pub overage: Option<Overage>,
    /// Now.
    pub now: DateTime<Utc>,
}

/// What a closed month has come to.
#[derive(Clone, Copy)]
pub struct Overage {
    meter: Meter,
    period: Month,
    units: i64,
    amount: Money,
}

/// What follows from what was told.
#[derive(Debug, Default)]
pub struct Told {
    /// What the provider has made is to be noted.
    pub link: Option<Command>,
    /// What was heard of this customer before they, or their subscription, were known is to be considered again.
    pub customer: Option<String>,
}

/// Tells a provider. What is told of a change is made from the subscription as it was after that, everything else from what it is now; the last word told is its last state.
pub async fn tell(provider: &dyn PaymentProvider, telling: Telling<'_>) -> Result<Told, Attempt> {
    let Telling { intent, key, stream, details, then, name, overage, now } = telling;
    let named = |name: &str| Reference::parse(name).map_err(|error| failed(&format!("a name of the provider's {error}")));
    let dropped = |why: &str| Err(Attempt::Dropped(why.to_owned()));
    let customer = details.customer.as_ref().map(|(_, customer)| customer.as_str());
    let subscription = details.provider_subscription.as_deref();
    let Some(customer) = customer else {
        return match intent {
            Intent::Customer if details.status.is_live() => {
                let customer = provider.create_customer(key, stream, name).await.map_err(told)?;
                let link = LinkCustomer { provider: named(provider.name())?, customer: named(&customer)? };
                Ok(Told { link: Some(link.into()), customer: Some(customer) })
            }
            Intent::Customer => dropped("the subscription is over"),
            Intent::Overage if details.status.is_live() => Err(failed("the provider does not know yet who pays")),
            // What is not there yet is made from the state as it is then.
            Intent::Subscription | Intent::Update | Intent::Cancel | Intent::Rename | Intent::Forget | Intent::Overage => {
                dropped("the provider does not know who pays yet")
            }
        };
    };
    let considered = |link: Option<Command>| Ok(Told { link, customer: Some(customer.to_owned()) });
    match intent {
        Intent::Rename => {
            provider.rename_customer(customer, name).await.map_err(told)?;
            return Ok(Told::default());
        }
        Intent::Forget => {
            provider.forget_customer(customer).await.map_err(told)?;
            return Ok(Told::default());
        }
        Intent::Overage => {
            let Some(Overage { meter, period, units, amount }) = overage else { return Ok(Told::default()) };
            // Invoices of a paused subscription are void, and none comes after its end.
            let running = subscription.filter(|_| details.status.is_live() && details.status != Status::Paused);
            let description = format!("{units} {meter} beyond the quota in {period}");
            let charge = Charge {
                customer,
                subscription: running,
                amount,
                description,
                overage: Some((meter, period)),
                method: details.payment_method.as_deref(),
            };
            provider.collect(key, &charge).await.map_err(told)?;
            return Ok(Told::default());
        }
        Intent::Customer | Intent::Subscription | Intent::Update | Intent::Cancel => {}
    }
    // Also what was begun before it was over, and is not known here.
    if !details.status.is_live() {
        provider.cancel_subscription(customer).await.map_err(told)?;
        return Ok(Told::default());
    }
    match (intent, subscription) {
        (Intent::Customer, _) => considered(None),
        (Intent::Subscription | Intent::Update, None) if details.payment_method.is_none() => dropped("there is nothing to pay with yet"),
        (Intent::Subscription | Intent::Update, None) if details.is_paused_for(PauseReason::Requested) => dropped("it is paused"),
        // A calendar's first period begins at the end of the trial, whenever that is; a provider would have to know it before.
        (Intent::Subscription | Intent::Update, None) if details.status == Status::Trialing && details.follows_calendar() => {
            dropped("it is made when the trial has ended")
        }
        (Intent::Subscription | Intent::Update, None) => {
            let new = NewSubscription { subscription: stream, details, customer, now };
            let subscription = match provider.create_subscription(key, &new).await {
                // What runs already is not paid by that. Nobody will try again by themselves: what was never paid for gives nothing until it is.
                Err(ProviderError::Declined(_)) if matches!(details.status, Status::Active | Status::CancelScheduled) => {
                    let link = if details.could_go_back() {
                        TakeBackChange {}.into()
                    } else if details.status == Status::Active {
                        unpaid(key, now)?
                    } else {
                        CancelSubscription { when: When::Now }.into()
                    };
                    return Ok(Told { link: Some(link), customer: None });
                }
                made => made.map_err(told)?,
            };
            let link = LinkProvider { provider: named(provider.name())?, subscription: named(&subscription)? };
            considered(Some(link.into()))
        }
        (Intent::Subscription | Intent::Update, Some(subscription)) => {
            let then = then.map(|then| details.as_then(then));
            let then = then.as_ref().unwrap_or(details);
            match provider.update_subscription(then, subscription, now).await {
                // The provider has left it as it was.
                Err(ProviderError::Declined(_)) if then.is_held() => {
                    return Ok(Told { link: Some(TakeBackChange {}.into()), customer: None });
                }
                updated => updated.map_err(told)?,
            }
            considered(None)
        }
        (Intent::Cancel | Intent::Rename | Intent::Forget | Intent::Overage, _) => dropped("it goes on"),
    }
}

/// That nothing was paid and nobody tries again, as a provider would tell it.
fn unpaid(key: &str, now: DateTime<Utc>) -> Result<Command, Attempt> {
    let provider_event_id = Reference::parse(&format!("declined {key}")).map_err(|error| failed(&error.to_string()))?;
    let occurred_at = now.trunc_subsecs(0).try_into().map_err(|_| failed("the clock is out of bounds"))?;
    Ok(Report { provider_event_id, occurred_at, fact: Fact::Stands(Standing::Unpaid) }.into())
}

fn failed(why: &str) -> Attempt {
    Attempt::Failed(why.to_owned())
}

fn told(error: ProviderError) -> Attempt {
    match error {
        ProviderError::Later(why) => Attempt::Failed(why),
        ProviderError::Never(why) | ProviderError::Declined(why) => Attempt::Refused(why),
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
