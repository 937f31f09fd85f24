//! `testing <command> …` runs a command with the test servers running, and answers its exit code.

use std::process::ExitCode;

use testing::servers::{Servers, VARIABLE};

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let program = arguments.next().ok_or_else(|| anyhow::anyhow!("usage: testing <command> [argument …]"))?;
    let servers = Servers::start().await;
    let status = tokio::process::Command::new(program).args(arguments).env(VARIABLE, servers.data.path()).status().await?;
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
}
