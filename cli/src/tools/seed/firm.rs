//! One tenant: what it is, and what it does each day.

use access::passwords::Password;
use access::sessions::Login;
use chrono::{Datelike as _, TimeDelta, Weekday};
use commands::usage::Recording;
use domain::billing::meter::Meter;
use domain::billing::outlet::{CreateOutlet, Outlet};
use domain::billing::subscription::{ChangePlan, RecordPaymentFailed, RecordPaymentSucceeded, SetPaymentMethod, Status, Subscription};
use domain::billing::usage::UsageItem;
use domain::identity::api_key::{ApiKey, CreateKey, Kind};
use domain::identity::role::{DefineRole, Role as CustomRole};
use domain::identity::tenant::{self, AddDomain, ProvisionTenant, SetBranding, Tenant, UpdateSettings};
use domain::identity::user::{DeactivateUser, InviteUser, PAYERS, RegisterUser, SuspendUser, User};
use domain::iot::device::{
    AcceptDevice, AcknowledgeCommand, AssignGroup, Device, DisableDevice, PreregisterDevice, QuarantineDevice, RegisterDevice,
    RejectDevice, ReportState, SendCommand, SetDesiredState, TagDevice,
};
use domain::support::ticket::{AddComment, AssignTicket, AttachFile, ChangeStatus, CloseTicket, OpenTicket, ResolveTicket, Ticket};
use domain::text::DisplayName;
use domain::text::Permission;
use domain::{Actor, Role, StreamId, TenantId};
use fake::Fake as _;
use fake::faker::company::en::CompanyName;
use fake::faker::name::en::{FirstName, LastName};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use serde_json::{Value, json};
use uuid::{Builder, Uuid};

use super::Town;
use super::texts::{THREADS, Thread};

const ZONES: [&str; 5] = ["Europe/Vienna", "Europe/London", "America/New_York", "Asia/Tokyo", "UTC"];
const CITIES: [&str; 8] = ["Vienna", "Graz", "London", "Lisbon", "Boston", "Osaka", "Turin", "Gdansk"];
const MODELS: [&str; 4] = ["thermo-2", "door-1", "meter-3", "gateway-1"];

/// How it ends with paying.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Pays,
    /// The last payment failed.
    PastDue,
    /// It never said what to pay with.
    TrialOnly,
    /// It has cancelled.
    Cancels,
    /// It goes on with a smaller plan after this period.
    Downgrades,
}

/// Somebody of a tenant.
#[derive(Clone)]
pub(super) struct Person {
    id: Uuid,
    role: Role,
}

/// A device of a tenant.
pub(super) struct Thing {
    id: Uuid,
    works: bool,
    seq: i64,
    command: Option<Uuid>,
}

/// A ticket that is not done.
struct Open {
    id: StreamId,
    requester: Person,
    agent: Person,
    thread: &'static Thread,
    said: usize,
}

/// A tenant.
pub(super) struct Firm {
    pub(super) slug: String,
    pub(super) plan: &'static str,
    pub(super) email: String,
    pub(super) people: Vec<Person>,
    pub(super) devices: Vec<Thing>,
    pub(super) tickets: usize,
    number: u32,
    name: String,
    id: TenantId,
    founded: i64,
    last: i64,
    fate: Fate,
    /// How much of its quotas it uses.
    appetite: f64,
    random: StdRng,
    open: Vec<Open>,
    outlets: usize,
    records: u64,
    paid: u32,
}

impl Firm {
    /// One that is drawn by lot.
    pub(super) fn draw(number: u32, days: i64, random: &mut StdRng) -> Self {
        // Each has its own lots, so that none changes because there are more of them.
        let mut random = StdRng::seed_from_u64(random.next_u64());
        let name: String = CompanyName().fake_with_rng(&mut random);
        let words: Vec<String> = name
            .to_lowercase()
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|word| !word.is_empty() && *word != "and")
            .map(str::to_owned)
            .collect();
        let fate = match number % 10 {
            3 => Fate::PastDue,
            5 => Fate::TrialOnly,
            6 => Fate::Cancels,
            4 => Fate::Downgrades,
            _ => Fate::Pays,
        };
        let plan = match number % 10 {
            0 | 4 | 7 => "growth",
            8 => "enterprise",
            _ => "starter",
        };
        // The last of ten is still in its trial.
        let founded = if number % 10 == 9 { days - 11 } else { random.gen_range(0..days / 3) };
        Self {
            slug: format!("{}-{}", words.join("-"), number + 1),
            plan,
            email: format!("owner@{}.example", words.join("-")),
            people: vec![],
            devices: vec![],
            tickets: 0,
            number,
            name,
            id: TenantId(Uuid::nil()),
            founded,
            last: days,
            fate,
            appetite: random.gen_range(0.35..1.12),
            random,
            open: vec![],
            outlets: 0,
            records: 0,
            paid: 0,
        }
    }

    /// Whether it is founded on this day.
    pub(super) fn begins(&self, day: i64) -> bool {
        self.founded == day
    }

    /// An id that follows from the lots and the time.
    fn fresh(&mut self, town: &Town) -> Uuid {
        let mut bytes = [0; 10];
        self.random.fill_bytes(&mut bytes);
        Builder::from_unix_timestamp_millis(town.now().timestamp_millis().unsigned_abs(), &bytes).into_uuid()
    }

    fn stream(&mut self, town: &Town) -> StreamId {
        StreamId::new(self.id, self.fresh(town))
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.gen_range(0..100) < percent
    }

    fn actor(&self, person: &Person) -> Actor {
        Actor::person(person.id.to_string(), self.id, person.role)
    }

    fn owner(&self) -> Actor {
        self.people.first().map_or_else(|| Actor::system("seed"), |owner| self.actor(owner))
    }

    fn subscription(&self) -> StreamId {
        StreamId::new(self.id, Uuid::new_v5(&self.id.0, b"subscription"))
    }

    /// How large the plan is: people, outlets, devices, and how much may be used in a month.
    fn size(&self) -> (usize, usize, usize, f64, f64) {
        match self.plan {
            "starter" => (5, 1, 9, 1_000.0, 10_000.0),
            "growth" => (14, 4, 40, 10_000.0, 100_000.0),
            _ => (30, 9, 90, 100_000.0, 1_000_000.0),
        }
    }

    /// What happens at an hour of a day.
    pub(super) async fn work(&mut self, town: &Town, day: i64, hour: i64) -> anyhow::Result<()> {
        let age = day - self.founded;
        match (age, hour) {
            (..0, _) => return Ok(()),
            (0, 8) => return self.found(town).await,
            (0, 12) => return self.furnish(town).await,
            // Who is closed does nothing any more.
            _ if town.store().gate(self.id).await?.as_deref() != Some("open") => {}
            (0, _) => {}
            (_, 8) => {
                self.grow(town, age).await?;
                self.pay(town, age, day).await?;
            }
            (_, 12) => {
                self.use_something(town).await?;
                self.ask_for_help(town).await?;
            }
            _ => {
                self.help(town).await?;
                self.look_after_devices(town, age).await?;
            }
        }
        Ok(())
    }

    async fn found(&mut self, town: &Town) -> anyhow::Result<()> {
        self.id = TenantId(self.fresh(town));
        let first: String = FirstName().fake_with_rng(&mut self.random);
        let last: String = LastName().fake_with_rng(&mut self.random);
        let owner = json!({"email": self.email, "name": format!("{first} {last}")});
        let body = json!({"slug": self.slug, "name": self.name, "plan": self.plan, "owner": owner});
        let platform = Actor::person("demo", TenantId::SYSTEM, Role::SuperAdmin);
        town.send::<Tenant, ProvisionTenant>(StreamId::new(self.id, self.id.0), &platform, body).await?;
        Ok(())
    }

    async fn furnish(&mut self, town: &Town) -> anyhow::Result<()> {
        // The owner was made by the policy.
        let owner = town.store().holders(&PAYERS, self.id).await?.first().copied();
        let owner = Person { id: owner.ok_or_else(|| anyhow::anyhow!("nobody owns it"))?, role: Role::OrgAdmin };
        self.people.push(owner.clone());
        let (actor, me) = (self.owner(), StreamId::new(self.id, self.id.0));
        town.access.set_password(StreamId::new(self.id, owner.id), Password::new(town.password.clone()), Actor::system("seed")).await?;
        let zone = ZONES[self.random.gen_range(0..ZONES.len())];
        town.send::<Tenant, UpdateSettings>(me, &actor, json!({"time_zone": zone, "locale": "en"})).await?;
        let color = format!("#{:06x}", self.random.gen_range(0..0x00ff_ffff_u32));
        town.send::<Tenant, SetBranding>(me, &actor, json!({"primary_color": color})).await?;
        let domain = self.email.split_once('@').map_or("demo.example", |(_, domain)| domain).to_owned();
        town.send::<Tenant, AddDomain>(me, &actor, json!({"domain": domain})).await?;
        if self.plan != "starter" {
            let role = self.stream(town);
            let permissions = json!(["ticket:read", "ticket:read_all", "device:read", "outlet:read"]);
            town.send::<CustomRole, DefineRole>(role, &actor, json!({"name": "Field technician", "permissions": permissions})).await?;
        }
        let key = self.stream(town);
        let drawn = town.access.draw(key).await?;
        let create = CreateKey {
            name: DisplayName::parse("Metering")?,
            prefix: drawn.prefix,
            kind: Kind::Service,
            scopes: ["usage:record", "quota:read"].into_iter().filter_map(|name| Permission::parse(name).ok()).collect(),
            expires_at: None,
            secret: drawn.credential,
        };
        town.ask::<ApiKey>(key, &actor, create.into()).await?;
        Ok(())
    }

    async fn grow(&mut self, town: &Town, age: i64) -> anyhow::Result<()> {
        let (people, outlets, ..) = self.size();
        if self.people.len() < people && (age < 10 || self.chance(20)) {
            self.hire(town).await?;
        }
        if age % 20 == 7 && self.plan != "starter" {
            let guest = self.stream(town);
            let email = format!("guest{age}@{}", self.email.split_once('@').map_or("demo.example", |(_, domain)| domain));
            town.send::<User, InviteUser>(guest, &self.owner(), json!({"email": email, "role": "viewer"})).await?;
        }
        if age == 40 && self.people.len() > 4 {
            let (gone, away) = (self.people[3].id, self.people[4].id);
            let owner = self.owner();
            town.send::<User, DeactivateUser>(StreamId::new(self.id, gone), &owner, json!({})).await?;
            town.send::<User, SuspendUser>(StreamId::new(self.id, away), &owner, json!({"reason": "on leave"})).await?;
            self.people.drain(3..=4);
        }
        if self.outlets < outlets && (age == 2 || self.chance(6)) {
            let city = CITIES[(self.number as usize + self.outlets) % CITIES.len()];
            let phone = format!("+431{:04}{:03}", 2_000 + self.number, 100 + self.outlets);
            let outlet = self.stream(town);
            let whatsapp = json!({"phone_number_id": format!("1065{:06}", self.number * 10), "account_id": "102290129340398", "secret_ref": format!("vault:whatsapp/{}", self.slug)});
            if town
                .send::<Outlet, CreateOutlet>(outlet, &self.owner(), json!({"name": city, "phone": phone, "whatsapp": whatsapp}))
                .await?
                .is_some()
            {
                self.outlets += 1;
            }
        }
        Ok(())
    }

    async fn hire(&mut self, town: &Town) -> anyhow::Result<()> {
        let first: String = FirstName().fake_with_rng(&mut self.random);
        let last: String = LastName().fake_with_rng(&mut self.random);
        let role = match self.people.len() {
            1 => Role::SupportAgent,
            2 => Role::BillingAdmin,
            n if n % 3 == 0 => Role::SupportAgent,
            n if n % 7 == 0 => Role::Viewer,
            _ => Role::User,
        };
        let ascii = |text: &str| text.to_lowercase().chars().filter(char::is_ascii_alphabetic).collect::<String>();
        let domain = self.email.split_once('@').map_or("demo.example", |(_, domain)| domain);
        let email = format!("{}.{}{}@{domain}", ascii(&first), ascii(&last), self.people.len());
        let user = self.stream(town);
        let body = json!({"email": email, "name": format!("{first} {last}"), "role": role});
        if town.send::<User, RegisterUser>(user, &self.owner(), body).await?.is_some() {
            self.people.push(Person { id: user.id, role });
        }
        Ok(())
    }

    /// What has to do with paying: a method within the trial, then each month's payment.
    async fn pay(&mut self, town: &Town, age: i64, day: i64) -> anyhow::Result<()> {
        let (stream, platform) = (self.subscription(), Actor::person("demo", TenantId::SYSTEM, Role::SuperAdmin));
        if age == 9 && self.fate != Fate::TrialOnly {
            town.send::<Subscription, SetPaymentMethod>(stream, &platform, json!({"reference": format!("pm_demo_{}", self.number)}))
                .await?;
        }
        let status =
            town.store().current::<Subscription>(stream).await?.state.details().map(|details| (details.status, details.pinned.terms.price));
        let Some((status, price)) = status else { return Ok(()) };
        let due = age >= 15 && (age - 15) / 30 >= i64::from(self.paid);
        let body = json!({"provider_event_id": format!("evt_demo_{}_{day}", self.number), "occurred_at": town.now(), "amount": price});
        let close_to_the_end = self.last - day < 30;
        if due && status == Status::Active {
            self.paid += 1;
            if self.fate == Fate::PastDue && close_to_the_end {
                town.send::<Subscription, RecordPaymentFailed>(stream, &platform, body).await?;
            } else {
                town.send::<Subscription, RecordPaymentSucceeded>(stream, &platform, body).await?;
            }
        }
        if day == self.last - 5 && status == Status::Active {
            let change = |plan: &str| json!({"plan": plan, "when": "period_end"});
            if self.fate == Fate::Downgrades {
                town.send::<Subscription, ChangePlan>(stream, &self.owner(), change("starter")).await?;
            }
            if self.fate == Fate::Cancels {
                town.send::<Tenant, tenant::CancelTenant>(StreamId::new(self.id, self.id.0), &self.owner(), json!({})).await?;
            }
        }
        Ok(())
    }

    /// A day's messages and calls, and what is kept of them.
    async fn use_something(&mut self, town: &Town) -> anyhow::Result<()> {
        let (.., messages, calls) = self.size();
        let weekday = if matches!(town.now().weekday(), Weekday::Sat | Weekday::Sun) { 0.3 } else { 1.25 };
        for (meter, month) in [(Meter::Messages, messages), (Meter::ApiCalls, calls)] {
            let day = month / 30.0 * self.appetite * weekday * self.random.gen_range(0.6..1.4);
            let parts = self.random.gen_range(3..8_u32);
            let mut items = Vec::new();
            for part in 0..parts {
                self.records += 1;
                let at = town.now() - TimeDelta::minutes(i64::from(part) * 37);
                let quantity = whole(day / f64::from(parts)).max(1);
                items.push(item(json!({"id": format!("{meter}-{}", self.records), "quantity": quantity, "at": at}))?);
            }
            self.record(town, meter, items).await;
        }
        self.records += 1;
        let bytes = self.random.gen_range(1_000_000..6_000_000_i64);
        let kept = item(json!({"id": format!("storage-{}", self.records), "quantity": bytes}))?;
        self.record(town, Meter::Storage, vec![kept]).await;
        Ok(())
    }

    /// What does not fit is refused, as it is in life.
    async fn record(&self, town: &Town, meter: Meter, items: Vec<UsageItem>) {
        let recording = Recording { tenant: self.id, meter, items, actor: self.owner(), traceparent: None };
        let _ = town.executor.record_each(recording).await;
    }

    async fn ask_for_help(&mut self, town: &Town) -> anyhow::Result<()> {
        let busy = match self.plan {
            "starter" => 18,
            "growth" => 40,
            _ => 70,
        };
        let agents: Vec<Person> = self.people.iter().filter(|person| person.role == Role::SupportAgent).cloned().collect();
        let askers: Vec<Person> =
            self.people.iter().filter(|person| person.role != Role::Viewer && person.role != Role::BillingAdmin).cloned().collect();
        if !self.chance(busy) || agents.is_empty() {
            return Ok(());
        }
        let thread = &THREADS[self.random.gen_range(0..THREADS.len())];
        let (Some(requester), Some(agent)) = (askers.choose(&mut self.random).cloned(), agents.choose(&mut self.random).cloned()) else {
            return Ok(());
        };
        let priority = *["low", "normal", "normal", "normal", "high", "urgent"].choose(&mut self.random).unwrap_or(&"normal");
        let ticket = self.stream(town);
        let body = json!({"subject": thread.subject, "body": thread.turns[0], "priority": priority, "tags": [thread.tag]});
        if town.send::<Ticket, OpenTicket>(ticket, &self.actor(&requester), body).await?.is_some() {
            self.tickets += 1;
            self.open.push(Open { id: ticket, requester, agent, thread, said: 1 });
        }
        Ok(())
    }

    /// One more turn in each ticket that is not done.
    async fn help(&mut self, town: &Town) -> anyhow::Result<()> {
        for mut open in std::mem::take(&mut self.open) {
            let (agent, requester) = (self.actor(&open.agent), self.actor(&open.requester));
            if self.chance(35) {
                self.open.push(open);
                continue;
            }
            let by_agent = open.said % 2 == 1;
            if open.said == 1 {
                town.send::<Ticket, AssignTicket>(open.id, &agent, json!({"assignee": open.agent.id})).await?;
                town.send::<Ticket, ChangeStatus>(open.id, &agent, json!({"status": "open"})).await?;
                if self.chance(30) {
                    let note = json!({"body": "Seen this before; the answer is in the handbook.", "visibility": "internal"});
                    town.send::<Ticket, AddComment>(open.id, &agent, note).await?;
                }
            }
            match open.thread.turns.get(open.said) {
                Some(words) => {
                    town.send::<Ticket, AddComment>(open.id, if by_agent { &agent } else { &requester }, json!({"body": words})).await?;
                    if by_agent && open.said == 1 && self.chance(40) {
                        let sha256 = format!("{:064x}", self.random.r#gen::<u128>());
                        let file = json!({"name": "details.pdf", "size": self.random.gen_range(20_000..900_000), "sha256": sha256});
                        town.send::<Ticket, AttachFile>(open.id, &agent, file).await?;
                    }
                    open.said += 1;
                    self.open.push(open);
                }
                None if open.thread.turns.len() == 1 && self.chance(60) => self.open.push(open),
                None => {
                    town.send::<Ticket, ResolveTicket>(open.id, &agent, json!({})).await?;
                    if self.chance(60) {
                        town.send::<Ticket, CloseTicket>(open.id, &agent, json!({})).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn look_after_devices(&mut self, town: &Town, age: i64) -> anyhow::Result<()> {
        let (_, _, most, ..) = self.size();
        let owner = self.owner();
        if age >= 3 && self.devices.len() < most && self.chance(45) {
            for _ in 0..self.random.gen_range(1..=(most / 8).max(1)) {
                self.install(town, &owner).await?;
            }
        }
        for n in 0..self.devices.len() {
            if !self.devices[n].works || !self.chance(12) {
                continue;
            }
            let stream = StreamId::new(self.id, self.devices[n].id);
            let itself = Actor::Device { id: self.devices[n].id, tenant: self.id };
            let (temperature, wish) = (self.random.gen_range(160..260), self.random.gen_range(1..=10) * 30);
            self.devices[n].seq += 1;
            let state = json!({"temperature": f64::from(temperature) / 10.0, "interval_s": wish});
            town.send::<Device, ReportState>(stream, &itself, json!({"seq": self.devices[n].seq, "state": state})).await?;
            if self.chance(15) {
                town.send::<Device, SetDesiredState>(stream, &owner, json!({"interval_s": wish / 2})).await?;
            }
            if let Some(command) = self.devices[n].command.take() {
                let outcome = if self.chance(85) { "done" } else { "failed" };
                let body = json!({"command": command, "outcome": outcome, "result": {"took_ms": self.random.gen_range(20..900)}});
                let waits =
                    town.store().current::<Device>(stream).await?.state.details().is_some_and(|device| device.waits(command, town.now()));
                if waits {
                    town.send::<Device, AcknowledgeCommand>(stream, &itself, body).await?;
                }
            } else if self.chance(10) {
                let command = self.fresh(town);
                let method = *["reboot", "calibrate", "send-diagnostics"].choose(&mut self.random).unwrap_or(&"reboot");
                let expires_at = town.now() + TimeDelta::days(self.random.gen_range(1..14));
                let body = json!({"id": command, "method": method, "params": {"delay_s": 5}, "expires_at": expires_at});
                if town.send::<Device, SendCommand>(stream, &owner, body).await?.is_some() {
                    self.devices[n].command = Some(command);
                }
            }
        }
        Ok(())
    }

    async fn install(&mut self, town: &Town, owner: &Actor) -> anyhow::Result<()> {
        let device = self.stream(town);
        let number = self.devices.len() + 1;
        let model = *MODELS.choose(&mut self.random).unwrap_or(&MODELS[0]);
        let serial = format!("{}-{:02}{number:04}", model.to_uppercase(), self.number);
        let (serial, model, metadata) =
            (serde_json::from_value(json!(serial))?, serde_json::from_value(json!(model))?, json!({"floor": number % 5}));
        let metadata = serde_json::from_value(metadata)?;
        // Some are expected and have not shown themselves.
        if number.is_multiple_of(9) {
            let claim_digest = access::devices::claim_digest(&access::devices::claim_code());
            town.ask::<Device>(device, owner, PreregisterDevice { serial, model, metadata, claim_digest }.into()).await?;
            self.devices.push(Thing { id: device.id, works: false, seq: 0, command: None });
            return Ok(());
        }
        let credential = town.access.draw_credential(device).await?.credential;
        if town.ask::<Device>(device, owner, RegisterDevice { serial, model, metadata, credential }.into()).await?.is_none() {
            return Ok(());
        }
        let outcome = match number % 14 {
            0 => town.send::<Device, RejectDevice>(device, owner, json!({"reason": "not one of ours"})).await?.map(|_| false),
            13 => Some(false),
            _ => town.send::<Device, AcceptDevice>(device, owner, json!({})).await?.map(|_| true),
        };
        let mut works = outcome == Some(true);
        if works {
            let group = CITIES[(self.number as usize + number % self.outlets.max(1)) % CITIES.len()].to_lowercase();
            town.send::<Device, AssignGroup>(device, owner, json!({"group": group})).await?;
            town.send::<Device, TagDevice>(device, owner, json!({"tag": if number.is_multiple_of(3) { "outdoor" } else { "indoor" }}))
                .await?;
        }
        if works && number.is_multiple_of(11) {
            town.send::<Device, DisableDevice>(device, owner, json!({})).await?;
            works = false;
        }
        if works && number.is_multiple_of(17) {
            town.send::<Device, QuarantineDevice>(device, owner, json!({"reason": "sends from two places at once"})).await?;
            works = false;
        }
        self.devices.push(Thing { id: device.id, works, seq: 0, command: None });
        Ok(())
    }

    /// How it is at the end: most devices are heard of, and somebody has logged in.
    pub(super) async fn end(&mut self, town: &Town) -> anyhow::Result<()> {
        for n in 0..self.devices.len() {
            if self.devices[n].works && self.chance(85) {
                town.access.heard_of(StreamId::new(self.id, self.devices[n].id)).await?;
            }
        }
        let (tenant, email) = (self.id.to_string(), self.email.clone());
        let login = Login {
            tenant: &tenant,
            email: &email,
            opaque: false,
            user_agent: Some("demo"),
            source: access::source::Source::of(std::net::Ipv4Addr::LOCALHOST.into()),
            device: None,
        };
        // A tenant that is closed lets nobody in.
        if let Err(error) = town.access.login(login, Password::new(town.password.clone())).await {
            tracing::debug!(%error, tenant = self.slug, "the owner is not let in");
        }
        Ok(())
    }
}

/// What a request would say of an item.
fn item(body: Value) -> anyhow::Result<UsageItem> {
    Ok(serde_json::from_value(body)?)
}

/// As a whole number: quantities here are far below what a float can tell exactly.
#[expect(clippy::cast_possible_truncation, reason = "bounded by the quotas of the shipped plans")]
fn whole(number: f64) -> i64 {
    number.round() as i64
}
