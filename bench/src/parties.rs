//! The queries of one tenant, alone and beside heavy queries of another tenant.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use access::token::TokenKey;
use chrono::TimeDelta;
use domain::{Clock as _, Role, SystemClock, TenantId};
use hyper::Method;
use serde_json::json;

use crate::client::Client;
use crate::figures::{Figure, Run};
use crate::http::LASTS;
use crate::load::closed;

/// Devices of each tenant; those of the heavy one fill pages of the most bytes.
const DEVICES: usize = 200;
/// Queries of the heavy tenant at a time.
const HEAVY: usize = 24;

/// The queries of a tenant alone, and beside those of another one; the ratio is of their 99th percentiles.
pub(crate) async fn measure(run: &mut Run, platform: &Client, key: &TokenKey) -> anyhow::Result<()> {
    let [heavy, light] = ["heavy", "light"].map(|slug| async move {
        let made = platform.post("/v1/tenants", &json!({"slug": slug, "name": slug})).await;
        let tenant: TenantId = made.id()?.parse()?;
        anyhow::Ok(platform.acting(&key.sign("admin", tenant, Role::OrgAdmin, SystemClock.now(), TimeDelta::hours(1))?))
    });
    let (heavy, light) = (heavy.await?, light.await?);
    let mut last = 0;
    for n in 0..DEVICES {
        let metadata = vec![1e15; 3000];
        heavy.post("/v1/devices", &json!({"serial": format!("h{n}"), "model": "m", "metadata": {"x": metadata}})).await;
        last = light.post("/v1/devices", &json!({"serial": format!("l{n}"), "model": "m"})).await.position;
    }
    while !light.shows("/v1/devices?limit=1", last).await? {}
    let query = || {
        let light = light.clone();
        closed(1, LASTS, move |_, _| {
            let light = light.clone();
            async move { drop(light.get("/v1/devices?limit=5").await) }
        })
    };
    let (times, took) = query().await;
    let alone = run.add(Figure::of("parties.alone", times, took));
    let stop = Arc::new(AtomicBool::new(false));
    let attack: Vec<_> = (0..HEAVY)
        .map(|_| {
            let (heavy, stop) = (heavy.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let _ = heavy.try_send(Method::GET, "/v1/devices?limit=200", None).await;
                }
            })
        })
        .collect();
    let (times, took) = query().await;
    stop.store(true, Ordering::Relaxed);
    for heavy in attack {
        heavy.await?;
    }
    let beside = Figure::of("parties.beside_heavy_queries", times, took);
    let ratio = beside.p99_ms.zip(alone.p99_ms).map(|(beside, alone)| beside / alone);
    run.add(Figure { ratio, ..beside });
    Ok(())
}
