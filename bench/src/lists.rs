//! Lists at size: every filter and order of tickets, users and devices among 250 000 rows of one tenant. The rows are written into the read models by SQL, so they take seconds to make.

use std::time::{Duration, Instant};

use access::token::TokenKey;
use chrono::TimeDelta;
use domain::{Clock as _, Role, SystemClock, TenantId};
use sqlx::{Connection as _, Executor as _, PgConnection};

use crate::client::Client;
use crate::figures::{Figure, Run};
use crate::http::agent;
use crate::process::Process;
use crate::site::Site;

/// How often each list is asked for.
const TIMES: usize = 20;

/// Numbers that have nothing to do with one another, so that no filter and no order goes with another one.
const ROWS: &str = "
    create function pg_temp.h(n int, what text, of int) returns int language sql immutable as $$ select abs(hashtext(what || n)) % of $$;
    insert into read.tickets_v1_g1 (tenant_id, id, version, number, subject, status, priority, channel, requester_id, assignee_id, tags, followers, links, attachments,
      public_comments, internal_comments, created_at, updated_at, public_updated_at, doc)
    select '{tenant}', md5('ticket' || n)::uuid, 3, n + 1000, 'The invoice number ' || n || ' shows the wrong amount',
      (array['new','open','open','pending','pending','resolved','resolved','resolved','closed','closed','closed','closed','closed','closed','closed','deleted'])[1 + pg_temp.h(n, 's', 16)],
      (array['low','normal','normal','normal','high','urgent'])[1 + pg_temp.h(n, 'p', 6)], (array['web','email','api','phone'])[1 + pg_temp.h(n, 'c', 4)],
      md5('user' || pg_temp.h(n, 'r', 5000))::uuid, case when pg_temp.h(n, 'a', 3) > 0 then md5('agent' || pg_temp.h(n, 'b', 50))::uuid end,
      array['billing', 'tag' || pg_temp.h(n, 't', 200)], '{}', '[]', '[]', 2, 1, c, c + pg_temp.h(n, 'u', 5000) * interval '1 minute', c + pg_temp.h(n, 'v', 5000) * interval '1 minute',
      '{\"version\": 3, \"x\": \"' || repeat('x', 800) || '\"}'
    from generate_series(1, 250000) n, lateral (select timestamptz '2026-01-01' + n * interval '1 minute' as c) at;
    insert into read.ticket_thread_v1_g1 (tenant_id, ticket_id, id, position, body, visibility, requester_id, by_agent, created_at, doc)
    select tenant_id, id, id, number, 'Invoice ' || number || ' says 99.00 USD, our plan is 29.00. Please look at it, word' || pg_temp.h(number::int, 'w', 1000) || '.', 'public', requester_id, false, created_at,
      '{}' from read.tickets_v1_g1 where tenant_id = '{tenant}';
    insert into read.users_v1_g1 (tenant_id, id, version, email, email_verified, name, status, role, created_at, updated_at, doc)
    select '{tenant}', md5('user' || n)::uuid, 2, 'person' || n || '@example.com', true, (array['Ada','Grace','Linus','Barbara','Edsger'])[1 + pg_temp.h(n, 'f', 5)] || ' ' || md5(n::text),
      (array['active','active','active','active','suspended','deactivated','invited','deleted'])[1 + pg_temp.h(n, 's', 8)],
      (array['customer','customer','customer','customer','support_agent','org_admin'])[1 + pg_temp.h(n, 'r', 6)], c, c, '{\"version\": 2, \"x\": \"' || repeat('x', 400) || '\"}'
    from generate_series(1, 250000) n, lateral (select timestamptz '2026-01-01' + n * interval '1 minute' as c) at;
    insert into read.devices_v1_g1 (tenant_id, id, version, serial, model, status, device_group, tags, metadata, created_at, updated_at, doc)
    select '{tenant}', md5('device' || n)::uuid, 2, 'SN-' || md5(n::text), 'model' || pg_temp.h(n, 'm', 20), (array['active','active','active','registered','suspended','decommissioned'])[1 + pg_temp.h(n, 's', 6)],
      'group' || pg_temp.h(n, 'g', 500), array['all', 'tag' || pg_temp.h(n, 't', 200)], '{}', c, c + pg_temp.h(n, 'u', 5000) * interval '1 minute', '{\"version\": 2, \"x\": \"' || repeat('x', 400) || '\"}'
    from generate_series(1, 250000) n, lateral (select timestamptz '2026-01-01' + n * interval '1 minute' as c) at;
    insert into ops.device_heartbeats (tenant_id, device_id, last_seen_at) select tenant_id, id, now() + interval '1 hour' from read.devices_v1_g1 where tenant_id = '{tenant}' and abs(hashtext(id::text)) % 100 = 0;
    analyze;";

/// The path of a list, its orders, and its filters.
struct List {
    path: &'static str,
    orders: &'static [&'static str],
    filters: &'static [&'static str],
}

const LISTS: [List; 3] = [
    List {
        path: "tickets",
        orders: &["created_at", "updated_at", "number", "priority"],
        filters: &[
            "",
            "status=new",
            "status=closed",
            "status=deleted",
            "priority=urgent",
            "channel=web",
            "assignee={agent}",
            "assignee=none",
            "requester={user}",
            "tag=billing",
            "tag=tag7",
            "tag=none-of-them",
            "number=77000",
            "q=invoice",
            "q=word7",
            "q=none-of-them",
            "q=invoice%20-word7",
            "status=new&priority=urgent",
            "status=closed&q=invoice",
            "created_from=2026-06-20T00:00:00Z",
            "created_to=2026-01-10T00:00:00Z",
        ],
    },
    List {
        path: "users",
        orders: &["created_at", "name", "email"],
        filters: &[
            "",
            "status=active",
            "status=deleted",
            "role=org_admin",
            "q=ada",
            "q=person77",
            "q=none-of-them",
            "status=suspended&role=org_admin",
        ],
    },
    List {
        path: "devices",
        orders: &["created_at", "updated_at", "serial"],
        filters: &[
            "",
            "status=active",
            "status=decommissioned",
            "model=model7",
            "group=group7",
            "tag=all",
            "tag=tag7",
            "tag=none-of-them",
            "q=a1b",
            "q=SN-",
            "q=none-of-them",
            "online=true",
            "online=false",
        ],
    },
];

/// The tenant's rows.
async fn fill(site: &Site, tenant: TenantId) -> anyhow::Result<()> {
    let mut owner = PgConnection::connect(&site.url("bench_lists", true)).await?;
    owner.execute(ROWS.replace("{tenant}", &tenant.to_string()).as_str()).await?;
    Ok(())
}

fn id(mut owner_says: String) -> String {
    owner_says.retain(|c| c != '"');
    owner_says
}

async fn times(client: &Client, path: &str) -> (Vec<Duration>, Duration) {
    let (mut times, began) = (Vec::new(), Instant::now());
    for _ in 0..TIMES {
        let asked = Instant::now();
        client.get(path).await;
        times.push(asked.elapsed());
    }
    (times, began.elapsed())
}

/// The slowest list of each kind is a figure; all of them are said.
pub(crate) async fn measure(site: &Site, run: &mut Run) -> anyhow::Result<()> {
    site.database("bench_lists").await?;
    let process = Process::start(site, "bench_lists", &["serve"]).await?;
    let (tenant, _) = agent(&process.client, &process.key, "bench").await?;
    let client = admin(&process.client, &process.key, tenant)?;
    fill(site, tenant).await?;
    let mut owner = PgConnection::connect(&site.url("bench_lists", true)).await?;
    let mut md5 = async |of: &str| -> anyhow::Result<String> {
        Ok(id(sqlx::query_scalar("select md5($1)::uuid::text").bind(of).fetch_one(&mut owner).await?))
    };
    let (user, agent) = (md5("user7").await?, md5("agent7").await?);
    for List { path, orders, filters } in LISTS {
        let mut all = Vec::new();
        for filter in filters {
            let filter = filter.replace("{agent}", &agent).replace("{user}", &user);
            for order in orders.iter().flat_map(|order| [format!("-{order}"), (*order).to_owned()]) {
                let query = format!("/v1/{path}?limit=50&sort={order}&{filter}");
                let (times, took) = times(&client, query.trim_end_matches('&')).await;
                all.push((Figure::of(&format!("lists.{path}.slowest"), times, took), query));
            }
        }
        all.sort_by(|(a, _), (b, _)| b.p95_ms.partial_cmp(&a.p95_ms).unwrap_or(std::cmp::Ordering::Equal));
        for (figure, query) in all.iter().take(8) {
            eprintln!("{:>10.1} ms  {query}", figure.p95_ms.unwrap_or_default());
        }
        let over = all.iter().filter(|(figure, _)| figure.p95_ms.unwrap_or_default() > 25.0).count();
        eprintln!("{path}: {over} of {} take longer than 25 ms (p95)", all.len());
        if let Some((slowest, _)) = all.into_iter().next() {
            run.add(slowest);
        }
    }
    Ok(())
}

fn admin(platform: &Client, key: &TokenKey, tenant: TenantId) -> anyhow::Result<Client> {
    Ok(platform.acting(&key.sign("admin", tenant, Role::OrgAdmin, SystemClock.now(), TimeDelta::hours(2))?))
}
