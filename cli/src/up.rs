//! `tenure up`: private servers and all roles in one process.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context as _;
use chrono::TimeDelta;
use domain::{Clock as _, IdSource, Role, SystemClock, TenantId};
use servers::DataDir;
use tokio::net::TcpListener;

use crate::private::with_servers;
use crate::roles::{self, RoleName};
use crate::site::Site;
use crate::{terminal, tools};

/// How long the token is good that `tenure up` shows.
const TOKEN_TTL: TimeDelta = TimeDelta::hours(1);

/// Where the API is unless something else is said.
const HTTP: &str = "127.0.0.1:8080";

pub(crate) async fn up(dir: &Path, http: Option<SocketAddr>) -> anyhow::Result<()> {
    let cancel = terminal::cancelled_by_signals()?;
    let data = DataDir::open(dir)?;
    let listener = listen(http).await?;
    with_servers(&data, &cancel, async |site| {
        welcome(&site, data.path(), listener.local_addr()?).await?;
        roles::run(&site, &RoleName::ALL, Some(listener), cancel.clone()).await
    })
    .await
}

async fn listen(http: Option<SocketAddr>) -> anyhow::Result<TcpListener> {
    if let Some(address) = http {
        return TcpListener::bind(address).await.with_context(|| format!("{address} cannot be listened on"));
    }
    // Another copy may be running; then any free port will do.
    match TcpListener::bind(HTTP).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind("127.0.0.1:0").await.context("no free port"),
    }
}

/// Says what to do next.
async fn welcome(site: &Site, dir: &Path, address: SocketAddr) -> anyhow::Result<()> {
    // A token that may do everything goes to a person, and into no file that collects what is printed.
    let token = if std::io::stdout().is_terminal() {
        let token = tools::token::dev_token(dir, TenantId::SYSTEM, Role::SuperAdmin, "dev", TOKEN_TTL)?;
        let until = (SystemClock.now() + TOKEN_TTL).format("%H:%M UTC");
        format!("An operator's token, as the platform's super_admin, good until {until}:\n\nexport TOKEN={token}")
    } else {
        format!(
            "An operator's token, as the platform's super_admin, is printed to a terminal only. Make one:\n\n\
             export TOKEN=$(tenure --data-dir {} dev-token --tenant system --role super_admin)",
            dir.display()
        )
    };
    let base = format!("http://{address}");
    // Another slug at every start, so that the line can be pasted again.
    let id = IdSource::new(std::sync::Arc::new(SystemClock)).next().simple().to_string();
    let slug = format!("acme-{}", &id[id.len() - 6..]);
    let admin = if has_admin(site).await? {
        String::new()
    } else {
        "\nNobody runs the platform yet. In another terminal:\n\ntenure admin create --email you@example.com --name 'Your Name'\n"
            .to_owned()
    };
    let more = if has_tenants(site).await? {
        ""
    } else {
        "\nMore to look at: stop it, let `tenure seed` make tenants with months behind them, and start it again (`make demo` does both).\n"
    };
    println!(
        "\nTenure is up.

  API   {base}/v1
  docs  {base}/docs
  mail  {}/mail, unless TENURE_MAIL_URL names a server
{admin}
{token}

Try:

curl -s {base}/v1/tenants -H \"Authorization: Bearer $TOKEN\" -H 'Content-Type: application/json' -d '{{\"slug\": \"{slug}\", \"name\": \"Acme GmbH\"}}'
curl -s {base}/v1/tenants -H \"Authorization: Bearer $TOKEN\"
curl -s {base}/health
{more}
Ctrl-C stops it; the data stays in {}.
",
        dir.display(),
        dir.display()
    );
    Ok(())
}

/// Whether there are tenants besides the platform's own.
pub(crate) async fn has_tenants(site: &Site) -> anyhow::Result<bool> {
    let pool = site.database()?.pool(store::DbRole::Writer, 1);
    Ok(sqlx::query_scalar("select exists (select from tenant_heads where tenant_id <> $1)")
        .bind(TenantId::SYSTEM.0)
        .fetch_one(&pool)
        .await?)
}

/// Whether somebody has been made a super_admin.
async fn has_admin(site: &Site) -> anyhow::Result<bool> {
    let pool = site.database()?.pool(store::DbRole::Writer, 1);
    let admins: Option<i64> = sqlx::query_scalar("select value from counters where tenant_id = $1 and name = $2")
        .bind(TenantId::SYSTEM.0)
        .bind(domain::identity::user::ADMINS)
        .fetch_optional(&pool)
        .await?;
    Ok(admins.is_some_and(|admins| admins > 0))
}
