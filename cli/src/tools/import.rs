//! `tenure import users`.

use std::path::{Path, PathBuf};

use access::Access;
use access::passwords::is_hash;
use anyhow::Context as _;
use clap::Subcommand;
use commands::{CommandError, Executor, Request};
use domain::identity::user::{RegisterUser, SetPassword, User, fold_email};
use domain::text::{DisplayName, Email};
use domain::{Actor, Role, StreamId, TenantId};
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use crate::site::Site;
use crate::terminal;

/// What to bring in from elsewhere.
#[derive(Subcommand)]
pub(crate) enum Import {
    /// Users with their passwords' hashes: bcrypt, or Argon2id as PHC strings; they are hashed anew at the next login. May be repeated: who is there already stays as they are.
    Users {
        /// CSV with a header, or one JSON object per line: email, name, role (user, if nothing is said), `password_hash`, `email_verified` (true, if nothing is said).
        file: PathBuf,
        /// The tenant, by id or slug.
        #[arg(long)]
        tenant: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    email: Email,
    name: DisplayName,
    #[serde(default)]
    role: Option<Role>,
    #[serde(default)]
    password_hash: Option<String>,
    #[serde(default)]
    email_verified: Option<bool>,
}

/// The rows of a file with their line numbers, those that cannot be read included.
fn rows(file: &Path) -> anyhow::Result<Vec<(usize, anyhow::Result<Row>)>> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    if file.extension().is_some_and(|extension| extension == "csv") {
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let names = reader.headers().context("the header")?.clone();
        let rows = reader.records().enumerate();
        // The header is the first line.
        return Ok(rows
            .map(|(n, record)| (n + 2, record.map_err(anyhow::Error::from).and_then(|record| row(object(&names, &record)))))
            .collect());
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    Ok(lines.map(|(n, line)| (n + 1, serde_json::from_str(line).map_err(anyhow::Error::from).and_then(row))).collect())
}

/// A record of CSV as the object that a line of JSON would hold: what is empty is absent.
fn object(names: &csv::StringRecord, record: &csv::StringRecord) -> Value {
    let value = |name: &str, text: &str| match text.parse() {
        Ok(truth) if name == "email_verified" => Value::Bool(truth),
        Ok(_) | Err(_) => Value::from(text),
    };
    names.iter().zip(record).filter(|(_, text)| !text.is_empty()).map(|(name, text)| (name.to_owned(), value(name, text))).collect()
}

/// A row, or which of its fields is wrong.
fn row(value: Value) -> anyhow::Result<Row> {
    Ok(serde_path_to_error::deserialize(value)?)
}

/// What came of a row.
enum Came {
    New,
    There,
}

async fn bring(executor: &Executor, access: &Access, tenant: TenantId, row: Row) -> anyhow::Result<Came> {
    let Row { email, name, .. } = row;
    let hash = row.password_hash.filter(|hash| !hash.is_empty());
    anyhow::ensure!(hash.as_deref().is_none_or(is_hash), "password_hash is neither bcrypt nor an Argon2id PHC string");
    // The same row is the same user, however often it is brought.
    let user = StreamId::new(tenant, Uuid::new_v5(&tenant.0, format!("import {}", fold_email(email.as_str())).as_bytes()));
    let (store, actor) = (executor.store(), Actor::system("import"));
    let register = RegisterUser {
        id: None,
        email,
        name,
        role: row.role.unwrap_or(Role::User),
        email_verified: row.email_verified.unwrap_or(true),
        welcome: false,
    };
    let came = match executor.execute(Request::<User>::new(user, register, actor.clone(), store.fresh_id())).await {
        Ok(_) => Came::New,
        Err(CommandError::Rejected { code, .. }) if code == "user.already_exists" => Came::There,
        Err(error) => return Err(error.into()),
    };
    let has = access.details(user).await?.is_some_and(|user| user.credential.is_some());
    if let Some(hash) = hash.filter(|_| !has) {
        let credential = access.keep(user, hash).await?;
        executor
            .execute(Request::<User>::new(user, SetPassword { credential, keeps: None, proven: false }, actor, store.fresh_id()))
            .await?;
    }
    Ok(came)
}

pub(crate) async fn run(site: &Site, what: Import) -> anyhow::Result<bool> {
    let Import::Users { file, tenant } = what;
    let (store, _writer) = site.store_for_import().await?;
    let executor = Executor::new(store);
    let access = site.access(&executor)?;
    let tenant = access.tenant(&tenant).await?.with_context(|| format!("there is no tenant {tenant}"))?;
    let rows = rows(&file)?;
    let bar = terminal::progress("users", i64::try_from(rows.len()).unwrap_or(i64::MAX));
    let (mut new, mut there, mut refused) = (0, 0, 0);
    for (line, row) in rows {
        let came = match row {
            Ok(row) => bring(&executor, &access, tenant, row).await,
            Err(error) => Err(error),
        };
        match came {
            Ok(Came::New) => new += 1,
            Ok(Came::There) => there += 1,
            Err(error) => {
                refused += 1;
                bar.suspend(|| eprintln!("line {line}: {error:#}"));
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    println!("{new} new, {there} there already, {refused} refused");
    Ok(refused == 0)
}
