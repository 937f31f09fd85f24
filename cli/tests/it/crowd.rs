//! Many connections at once, most of them badly behaved. `TENURE_TEST_HEAVY=1` opens 8 000 that send half a header, instead of 1 000.

use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use reqwest::StatusCode;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpSocket;

use crate::process::Tenure;
use crate::site::Site;

/// Connections that take nothing of more than any buffer holds.
const STALLED: usize = 100;
/// Answers of about 140 kB.
const MANY: usize = 120;

/// The resident memory of a process in kB.
fn resident_kb(process: &Tenure) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.child.id().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The resident memory of a process in MB.
fn resident(process: &Tenure) -> u64 {
    resident_kb(process) / 1024
}

/// The processor time that a process has used, in ticks of 10 ms.
fn worked(process: &Tenure) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.child.id().unwrap())).unwrap();
    // Fields 14 and 15 (proc(5)); the name before them ends with a bracket.
    stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

/// So many files as the test may have open.
fn open_many_files() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
}

/// The 95th of 100 well-behaved requests.
async fn p95(client: &reqwest::Client, process: &Tenure, path: &str) -> Duration {
    times(client, process, path, 100).await[94]
}

/// How long so many well-behaved requests took, the shortest first.
async fn times(client: &reqwest::Client, process: &Tenure, path: &str, requests: usize) -> Vec<Duration> {
    let mut times = Vec::new();
    for _ in 0..requests {
        let began = Instant::now();
        let answer = client.get(format!("{}{path}", process.base)).bearer_auth(&process.token).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        answer.bytes().await.unwrap();
        times.push(began.elapsed());
    }
    times.sort();
    times
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_connections_and_slow_readers_neither_exhaust_memory_nor_starve_others() {
    let site = Site::new().await;
    let mut process = site.serve("api,relay,projector");
    process.ready("ok").await;
    let tenant = process.provision("acme").await;
    site.out(&["dev-token", "--tenant", &tenant, "--role", "support_agent"]).await.trim().clone_into(&mut process.token);
    let tags: Vec<String> = (0..15).map(|n| format!("tag-{n:040}")).collect();
    for _ in 0..100 {
        let made = process.post("/v1/tickets", json!({"subject": "Long ".repeat(30), "body": "x", "tags": tags})).await;
        assert_eq!(made.status(), StatusCode::CREATED);
    }
    testing::eventually("the list is long", || async {
        let listed = process.get("/v1/tickets?limit=200").await.json::<serde_json::Value>().await.ok()?;
        (listed["data"].as_array()?.len() == 100).then_some(())
    })
    .await;
    let client = reqwest::Client::new();
    let (before, alone) = (resident(&process), p95(&client, &process, "/v1/tickets?limit=5").await);

    let address = process.base.trim_start_matches("http://").to_owned();
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n", process.token);
    let (idle, half, slow) =
        (request("/livez"), "POST /v1/tickets HTTP/1.1\r\nhost: x\r\ncontent-le".to_owned(), request("/v1/tickets?limit=200"));
    let mut crowd = Vec::new();
    for (sent, connections) in [(idle, 800), (half, 700), (slow.clone(), 500 - STALLED), (slow.repeat(MANY), STALLED)] {
        for _ in 0..connections {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(4096).unwrap();
            let mut stream = socket.connect(address.parse().unwrap()).await.unwrap();
            stream.write_all(sent.as_bytes()).await.unwrap();
            crowd.push(stream);
        }
    }
    let open = || std::fs::read_dir(format!("/proc/{}/fd", process.child.id().unwrap())).unwrap().count();
    let all = testing::eventually("all are accepted", || async { Some(open()).filter(|all| *all > 2000) }).await;
    // What they asked for has been worked off, as far as they take it: what is measured is their being there.
    let (began, mut looked, mut calm) = (Instant::now(), (Instant::now(), 0), false);
    while !calm {
        assert!(began.elapsed() < 5 * testing::PATIENCE, "the server never comes to rest");
        let since = Instant::now();
        calm = testing::eventually("the server has little more to do for them", || {
            let (now, ticks) = (Instant::now(), worked(&process));
            let calm = now - looked.0 > Duration::from_millis(500) && ticks - looked.1 < 10;
            if now - looked.0 > Duration::from_millis(500) {
                looked = (now, ticks);
            }
            // On a machine with much else to do this may take long.
            std::future::ready((calm || since.elapsed() > testing::PATIENCE / 2).then_some(calm))
        })
        .await;
        // Its database may still work for them.
        let asked = Instant::now();
        let answer = client.get(format!("{}/v1/tickets?limit=5", process.base)).bearer_auth(&process.token).send().await.unwrap();
        calm = calm && answer.status() == StatusCode::OK && asked.elapsed() < Duration::from_millis(300);
    }
    let (beside, after) = (p95(&client, &process, "/v1/tickets?limit=5").await, resident(&process));
    println!("alone {alone:?}, beside 2 000 connections {beside:?}; {before} MB, then {after} MB");
    for n in 0..20 {
        assert_eq!(process.post("/v1/tickets", json!({"subject": format!("n {n}"), "body": "x"})).await.status(), StatusCode::CREATED);
    }
    // An answer of 140 kB, the rows that it is made of and the room they grew in, for each of five hundred slow readers; without a bound it would be gigabytes.
    assert!(after < before + 2 * 500, "{after} MB");
    assert!(beside < Duration::from_secs(1), "{beside:?}, alone {alone:?}");
    // Who takes nothing is sent away, and what waited for them goes with them.
    // The process has opened a few others meanwhile.
    testing::eventually("the server has closed their connections", || async { (open() + STALLED / 2 <= all).then_some(()) }).await;
    drop(crowd);
    process.ready("ok").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_send_half_a_header_cost_30_kb_each_at_most_slow_nobody_down_and_give_it_back() {
    let heavy = std::env::var_os("TENURE_TEST_HEAVY").is_some();
    let half_open: usize = if heavy { 8_000 } else { 1_000 };
    open_many_files();
    let site = Site::new().await;
    let process = site.serve("api,relay,projector");
    process.ready("ok").await;
    let client = reqwest::Client::new();
    // What the process needs once, for whatever it does, is no cost of a connection.
    times(&client, &process, "/v1/tenants", 200).await;
    let (before, alone) = (resident_kb(&process), times(&client, &process, "/v1/tenants", 200).await[197]);
    let address: std::net::SocketAddr = process.base.trim_start_matches("http://").parse().unwrap();
    let files = || std::fs::read_dir(format!("/proc/{}/fd", process.child.id().unwrap())).unwrap().count();
    let quiet = files();
    let mut crowd = Vec::with_capacity(half_open);
    for _ in 0..half_open {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /v1/tenants HTTP/1.1\r\nhost: x\r\nauthoriz").await.unwrap();
        crowd.push(stream);
    }
    let most = testing::eventually("all are accepted, or the first are being cut off", || async {
        let open = files();
        (open >= quiet + half_open * 9 / 10).then_some(open - quiet)
    })
    .await;
    let during = resident_kb(&process);
    let beside = times(&client, &process, "/v1/tenants", 200).await[197];
    let each = during.saturating_sub(before) / most as u64;
    println!("{most} half-open connections: {each} kB each; p99 alone {alone:?}, beside them {beside:?}");
    assert!(each <= 30, "{each} kB each: {before} kB, then {during} kB");
    let bound = if heavy { 2 * alone } else { (alone * 10).max(Duration::from_millis(500)) };
    assert!(beside < bound, "alone {alone:?}, beside them {beside:?}");
    // Their headers never come to an end, so they are cut off; and the memory is there for others.
    let deadline = Instant::now() + 2 * testing::PATIENCE;
    while files() > quiet + 50 {
        assert!(Instant::now() < deadline, "{} are still open", files() - quiet);
        times(&client, &process, "/v1/tenants", 10).await;
    }
    drop(crowd);
    let after = testing::eventually("memory returns", || async {
        let after = resident_kb(&process);
        times(&client, &process, "/v1/tenants", 10).await;
        (after < before + during.saturating_sub(before) / 2 + 8 * 1024).then_some(after)
    })
    .await;
    println!("{before} kB before, {during} kB with them, {after} kB after");
}
