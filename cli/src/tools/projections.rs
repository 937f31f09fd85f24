//! `tenure projections`.

use std::process::ExitCode;

use projections::ReadModel;
use projections::rebuild::{Purpose, rebuild as build};
use store::DbRole;

use crate::site::Site;
use crate::terminal::{advance, progress};

/// `tenure projections rebuild`: exit code 1 when rows differed and nothing was switched.
pub(crate) async fn rebuild(site: &Site, name: &str, replace: bool) -> anyhow::Result<ExitCode> {
    let (store, _) = site.store().await?;
    let pool = site.database()?.pool(DbRole::Projector, 2);
    let purpose = if replace { Purpose::Replace } else { Purpose::Switch };
    let bar = progress("rebuilding", store.head().await?.position);
    let mut report = |position, end: i64| {
        bar.set_length(u64::try_from(end).unwrap_or(0));
        advance(&bar, position);
    };
    macro_rules! all {
        ($($model:ty,)*) => {
            match name {
                $(<$model as ReadModel>::NAME => build::<$model>(&store, &pool, purpose, &mut report).await?,)*
                _ => anyhow::bail!("there is no read model {name}; there are {}", [$(<$model as ReadModel>::NAME),*].join(", ")),
            }
        };
    }
    let built = projections::for_each_read_model!(all);
    bar.finish_and_clear();
    println!(
        "{name} generation {} at position {}: {} differing rows, {}",
        built.generation,
        built.position,
        built.differences,
        if built.switched { "serves now" } else { "not switched" }
    );
    Ok(if built.switched { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
