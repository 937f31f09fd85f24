//! One calendar and one price on both sides: for every command and timer of a subscription what its period, price and limits become, and what Stripe is told.

use std::fmt::Write as _;

use domain::billing::subscription::{
    CancelScheduledChange, CancelSubscription, ChangePlan, ChangeQuantity, ConvertTrial, EndTrialWithoutPayment, ExtendTrial, MarkUnpaid,
    PauseSubscription, RecordPayment, RecordPaymentFailed, RecordPaymentSucceeded, ResumeSubscription, UncancelSubscription, When,
};
use domain::text::{PlanCode, Reference};
use domain::{Actor, Role};

use crate::agreement::{World, world};
use crate::model::{Flaw, at};

/// Of each row: what was done before, `|` what is done now, `>` what Stripe is told of that, `;` what is charged in cents, when the period ends and how many users are given.
/// Times are days since the beginning, of a Thursday, the first of January 2026.
const TABLE: &str = include_str!("../recorded/table.txt");

/// What is shown of a request, in this order; what follows from the plan alone is left out.
const SHOWN: [&str; 15] = [
    "items[0][quantity]",
    "add_invoice_items[0][price_data][unit_amount]",
    "payment_behavior",
    "trial_end",
    "billing_cycle_anchor",
    "backdate_start_date",
    "proration_behavior",
    "proration_date",
    "pause_collection[behavior]",
    "pause_collection",
    "cancel_at_period_end",
    "default_payment_method",
    "amount",
    "end_behavior",
    "phases[1][items][0][quantity]",
];

fn payment(world: &World, id: &str) -> RecordPayment {
    let provider_event_id = Reference::parse(&format!("{id} {}", world.now)).unwrap();
    RecordPayment { provider_event_id, occurred_at: at(world.now).try_into().unwrap(), amount: None }
}

/// Does what a word says.
async fn act(on: &mut World, word: &str) {
    let owner = || Actor::person("ada", world_tenant(), Role::OrgAdmin);
    let platform = || Actor::system("platform");
    let plan = |code: &str| PlanCode::parse(code).unwrap();
    let (verb, object) = word.split_once(':').unwrap_or((word, ""));
    let done = match verb {
        "method" => {
            on.set_method(object);
            true
        }
        "plan" => on.execute(ChangePlan { plan: plan(object), when: When::Now }, owner()).is_some(),
        "later" => on.execute(ChangePlan { plan: plan(object), when: When::PeriodEnd }, owner()).is_some(),
        "keep" => on.execute(CancelScheduledChange {}, owner()).is_some(),
        "quantity" => on.execute(ChangeQuantity { quantity: object.parse().unwrap() }, owner()).is_some(),
        "convert" => on.execute(ConvertTrial {}, owner()).is_some(),
        "extend" => {
            let until = at(START + object.parse::<i64>().unwrap() * 86_400).try_into().unwrap();
            on.execute(ExtendTrial { until }, platform()).is_some()
        }
        "end_trial" => on.execute(EndTrialWithoutPayment {}, platform()).is_some(),
        "pause" => on.execute(PauseSubscription {}, platform()).is_some(),
        "resume" => on.execute(ResumeSubscription {}, platform()).is_some(),
        "cancel" => on.execute(CancelSubscription { when: When::Now }, owner()).is_some(),
        "cancel_later" => on.execute(CancelSubscription { when: When::PeriodEnd }, owner()).is_some(),
        "uncancel" => on.execute(UncancelSubscription {}, owner()).is_some(),
        "paid" => on.execute(RecordPaymentSucceeded(payment(on, "paid")), platform()).is_some(),
        "failed" => on.execute(RecordPaymentFailed(payment(on, "failed")), platform()).is_some(),
        "mark_unpaid" => on.execute(MarkUnpaid {}, platform()).is_some(),
        "days" => {
            on.pass_alone(object.parse::<i64>().unwrap() * 86_400).await;
            true
        }
        other => panic!("{other}"),
    };
    assert!(done, "{word}\n{}", on.story());
    on.listen(true).await;
}

/// The first of January 2026.
const START: i64 = 1_767_225_600;

fn world_tenant() -> domain::TenantId {
    domain::TenantId(uuid::Uuid::from_u128(7))
}

/// A time as days since the beginning.
fn days(value: &str) -> String {
    match value.parse::<i64>() {
        Ok(seconds) if seconds >= START && (seconds - START) % 86_400 == 0 => format!("day {}", (seconds - START) / 86_400),
        Ok(_) | Err(_) => value.to_owned(),
    }
}

/// What was asked of Stripe since `from`.
fn told(world: &World, from: usize) -> String {
    let account = world.server.account();
    let mut told = String::new();
    for (what, fields) in &account.asked[from..] {
        if what.starts_with("GET") || what.contains("/products") || what.contains("/customers") {
            continue;
        }
        let what = what.replace("/v1/", "").replace("POST ", "").replace("/{id}", "");
        let shown = SHOWN.iter().filter_map(|name| Some(format!("{name}={}", days(fields.get(*name)?)))).collect::<Vec<_>>().join(" ");
        write!(told, "{}{what}{}{shown}", if told.is_empty() { "" } else { ", " }, if shown.is_empty() { "" } else { " " }).unwrap();
    }
    if told.is_empty() { "nothing".to_owned() } else { told }
}

#[tokio::test(flavor = "multi_thread")]
async fn for_every_command_and_timer_period_price_limits_and_what_stripe_is_told_are_as_the_table_says() {
    let server = testing::stripe::Stripe::start().await;
    let (mut came, mut verbs) = (String::new(), std::collections::BTreeSet::new());
    for line in TABLE.lines() {
        let Some((steps, _)) = line.split_once(" > ").filter(|_| !line.starts_with('#')) else {
            writeln!(came, "{line}").unwrap();
            continue;
        };
        let (before, now) = steps.split_once(" | ").unwrap();
        let mut before = before.split_whitespace();
        let start = before.next().unwrap().split(':').collect::<Vec<_>>();
        let [kind, plan] = start.as_slice() else { panic!("{line}") };
        let (calendar, trial) = (kind.contains("calendar"), kind.contains("trial"));
        let mut world = world(&server, 1, START, plan, calendar, trial, Flaw::None);
        world.calm = true;
        world.listen(true).await;
        for word in before {
            act(&mut world, word).await;
        }
        let from = server.account().asked.len();
        for word in now.split_whitespace() {
            act(&mut world, word).await;
            verbs.insert(word.split(':').next().unwrap().to_owned());
        }
        let details = world.details();
        let ends = details.period.map_or("-".to_owned(), |period| days(&period.end.timestamp().to_string()));
        let users = details.in_force()[&domain::billing::meter::Meter::Users].limit;
        writeln!(came, "{steps} > {}; charged {}, {} until {ends}, {users} users", told(&world, from), world.charged(), details.status)
            .unwrap();
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recorded/table.txt"), &came).unwrap();
    }
    assert_eq!(came, TABLE);
    let all =
        "cancel cancel_later convert days end_trial extend failed keep later mark_unpaid method paid pause plan quantity resume uncancel";
    assert_eq!(verbs.into_iter().collect::<Vec<_>>().join(" "), all);
}
