//! `tenure admin create`.

use std::io::{BufRead as _, IsTerminal as _};

use access::passwords::{Password, weakness};
use clap::Args;
use commands::{Executor, Request};
use domain::identity::user::{RegisterUser, User};
use domain::text::{DisplayName, Email};
use domain::{Actor, Role, StreamId, TenantId};

use crate::site::Site;

/// Who.
#[derive(Args)]
pub(crate) struct Create {
    /// Where to write to them; also what they log in with.
    #[arg(long)]
    email: String,
    /// What to call them.
    #[arg(long)]
    name: String,
    /// The tenant to run, by id or slug; `system` is the platform.
    #[arg(long, default_value = "system")]
    tenant: String,
}

/// The password: asked for on a terminal, else the first line of standard input.
fn password() -> anyhow::Result<String> {
    if !std::io::stdin().is_terminal() {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line)?;
        return Ok(line.trim_end_matches(['\r', '\n']).to_owned());
    }
    let first = rpassword::prompt_password("Password: ")?;
    anyhow::ensure!(first == rpassword::prompt_password("The same again: ")?, "the two are not the same");
    Ok(first)
}

pub(crate) async fn create(site: &Site, wanted: Create) -> anyhow::Result<()> {
    let email = Email::parse(&wanted.email).map_err(|error| anyhow::anyhow!("--email {error}"))?;
    let name = DisplayName::parse(&wanted.name).map_err(|error| anyhow::anyhow!("--name {error}"))?;
    let password = Password::new(password()?);
    if let Some(weakness) = weakness(&password, &[email.as_str(), name.as_str()]) {
        anyhow::bail!("the password {weakness}");
    }
    let (store, _writer) = site.store().await?;
    let executor = Executor::new(store.clone());
    let access = site.access(&executor)?;
    let tenant = access.tenant(&wanted.tenant).await?.ok_or_else(|| anyhow::anyhow!("there is no tenant {}", wanted.tenant))?;
    let role = if tenant == TenantId::SYSTEM { Role::SuperAdmin } else { Role::OrgAdmin };
    let (user, actor) = (StreamId::new(tenant, store.fresh_id()), Actor::system("admin create"));
    let register = RegisterUser { id: None, email, name, role, email_verified: true, welcome: false };
    executor.execute(Request::<User>::new(user, register, actor.clone(), store.fresh_id())).await?;
    access.set_password(user, password, actor).await?;
    println!("{role} {} of {}", user.id, wanted.tenant);
    Ok(())
}
