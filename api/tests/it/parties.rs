//! One party cannot take the platform from others. `TENURE_TEST_HEAVY=1` holds the times to what an idle machine does.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use access::Access;
use access::passwords::{Hashing, Password};
use access::sessions::Login;
use access::source::Source;
use api::Limits;
use api::client_address::TrustedProxies;
use api::serve::{Connections, serve};
use axum::body::to_bytes;
use axum::http::{Method, StatusCode};
use chrono::TimeDelta;
use domain::{Role, StreamId, TenantId};
use projections::identity::tenant::Tenants;
use projections::sql::Sql;
use projections::{QueryError, ReadModel as _, View};
use serde_json::json;
use testing::http::{Client, PASSWORD};
use testing::node::Node;
use testing::{Env, eventually};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt as _;

fn heavy() -> bool {
    std::env::var_os("TENURE_TEST_HEAVY").is_some()
}

/// The interface on a socket; its address.
async fn on_a_socket(client: &Client, connections: Connections, proxies: &str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, router, proxies) = (listener.local_addr().unwrap(), client.router.clone(), TrustedProxies::parse(proxies).unwrap());
    tokio::spawn(async move { serve(listener, router, connections, &proxies, std::future::pending(), Duration::ZERO).await });
    address
}

/// Whether the other end closes the connection within a time.
async fn closed_within(stream: &mut TcpStream, time: Duration) -> bool {
    let end = async {
        let mut buffer = [0; 1024];
        while matches!(stream.read(&mut buffer).await, Ok(read) if read > 0) {}
    };
    tokio::time::timeout(time, end).await.is_ok()
}

async fn ask(stream: &mut TcpStream) -> String {
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"ok\n") {
        let read = stream.read_buf(&mut answer).await.unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_is_sent_slowly_is_cut_off_at_its_deadline_and_a_quiet_connection_is_not() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let header = Duration::from_millis(700);
    let address = on_a_socket(&Client::new(&env, &node), Connections { header, ..Connections::default() }, "").await;
    // HTTP/1, HTTP/2 before the first request, and a second request on the same connection.
    for (first, slow) in [
        (false, "GET /livez HTTP/1.1\r\nhost: x\r\nx-header: ".to_owned() + &"y".repeat(200)),
        (false, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned() + &"\0".repeat(200)),
        (true, "GET /livez HTTP/1.1\r\nhost: x\r\nx-header: ".to_owned() + &"y".repeat(200)),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        if first {
            assert!(ask(&mut stream).await.starts_with("HTTP/1.1 200"));
            assert!(!closed_within(&mut stream, header * 2).await, "between two requests it may be quiet for longer");
            assert!(ask(&mut stream).await.starts_with("HTTP/1.1 200"));
        }
        let (began, mut closed) = (Instant::now(), false);
        for byte in slow.bytes() {
            closed = stream.write_all(&[byte]).await.is_err() || closed_within(&mut stream, Duration::from_millis(50)).await;
            if closed {
                break;
            }
        }
        let took = began.elapsed();
        assert!(closed && took > header / 2 && took < header * 5, "{closed} after {took:?}: {slow:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_bounded_per_address_and_in_all_and_a_trusted_proxy_stands_for_many_addresses() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let client = Client::new(&env, &node);
    let connections = Connections { at_a_time: 5, per_address: 3, ..Connections::default() };
    let address = on_a_socket(&client, connections, "").await;
    let mut first = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        ask(&mut stream).await;
        first.push(stream);
    }
    let mut fourth = TcpStream::connect(address).await.unwrap();
    assert!(closed_within(&mut fourth, testing::PATIENCE).await, "it is one too many of this address");
    assert!(ask(&mut first[0]).await.starts_with("HTTP/1.1 200"), "the others go on");
    drop(first);
    eventually("there is room again", || async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        answer.ends_with("ok\n").then_some(())
    })
    .await;
    // By way of a proxy all count as the proxy's, which is not bounded; in all there are five.
    let address = on_a_socket(&client, connections, "127.0.0.0/8").await;
    let mut five = Vec::new();
    for _ in 0..5 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        ask(&mut stream).await;
        five.push(stream);
    }
    let mut sixth = TcpStream::connect(address).await.unwrap();
    sixth.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(!closed_within(&mut sixth, Duration::from_millis(200)).await, "it waits");
    drop(five);
    assert!(ask(&mut sixth).await.contains("HTTP/1.1 200"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_on_which_somebody_has_logged_in_is_never_kept_out_by_guesses_from_outside() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let platform = Client::new(&env, &node);
    let tenant = platform.provision("acme").await;
    let ada = platform.person(tenant, "user", "ada@example.com").await;
    assert!(ada.device.starts_with("tkd_"));
    let home = platform.from("198.51.100.7");
    // Twelve addresses: each is shut out by its tenth guess, and all together by the hundredth.
    let mut guessed = 0;
    for n in 0..12 {
        let other = platform.from(&format!("192.0.2.{n}"));
        for _ in 0..11 {
            assert_eq!(other.login(tenant, "ada@example.com", "wrong").await.err().unwrap().field("code"), "auth.invalid_credentials");
            guessed += 1;
        }
        assert!(other.login(tenant, "ada@example.com", PASSWORD).await.is_err(), "nor with the right one");
        if n < 3 {
            assert!(home.login(tenant, "ada@example.com", PASSWORD).await.is_ok(), "another address is not shut out with them");
        }
    }
    let failures: i64 =
        sqlx::query_scalar("select count(*) from events where event_type = 'user.login_failed'").fetch_one(&env.owner).await.unwrap();
    assert!((100..=104).contains(&failures) && guessed == 132, "{failures} of {guessed} were looked at");
    assert!(home.login(tenant, "ada@example.com", PASSWORD).await.is_err(), "a new device waits");
    let known = home.on_device(&ada.device);
    let again = known.login(tenant, "ada@example.com", PASSWORD).await.unwrap_or_else(|answer| panic!("{}", answer.text));
    assert_eq!(ada.client.get("/v1/me").await.status, StatusCode::OK, "and sessions go on");
    // A device of somebody else, and one that was made up, is no known device.
    let eve = platform.person(tenant, "user", "eve@example.com").await;
    let mut forged = ada.device.clone();
    forged.replace_range(20..21, if &forged[20..21] == "A" { "B" } else { "A" });
    for device in [eve.device.as_str(), forged.as_str(), "tkd_", "nonsense"] {
        assert!(home.on_device(device).login(tenant, "ada@example.com", PASSWORD).await.is_err(), "{device}");
    }
    // Guesses on the device itself shut out the device, and its session and others of hers go on.
    for _ in 0..10 {
        assert!(known.login(tenant, "ada@example.com", "wrong").await.is_err());
    }
    assert!(home.on_device(&again.device).login(tenant, "ada@example.com", PASSWORD).await.is_err(), "it is the same device");
    assert_eq!(again.client.get("/v1/me").await.status, StatusCode::OK);
    // She was told, once.
    node.settled().await;
    let mails: i64 = sqlx::query_scalar("select count(*) from ops.deliveries where template = 'login_attempts' and subject_id = $1")
        .bind(ada.id)
        .fetch_one(&env.owner)
        .await
        .unwrap();
    assert_eq!(mails, 1);
    env.clock.advance(TimeDelta::minutes(15));
    let ada = home
        .login(tenant, "ada@example.com", PASSWORD)
        .await
        .unwrap_or_else(|answer| panic!("a quarter of an hour later: {}", answer.text));
    let again = home.login(tenant, "ada@example.com", PASSWORD).await.unwrap_or_else(|answer| panic!("{}", answer.text));
    // A session has a count of its own as well.
    let change = json!({"current_password": "wrong", "email": "a@example.com"});
    for _ in 0..11 {
        assert_eq!(ada.client.post("/v1/me/change-email", change.clone()).await.field("code"), "auth.wrong_password");
    }
    let right = json!({"current_password": PASSWORD, "email": "a@example.com"});
    assert_eq!(
        ada.client.post("/v1/me/change-email", right.clone()).await.field("code"),
        "auth.wrong_password",
        "this session has guessed"
    );
    assert_eq!(again.client.post("/v1/me/change-email", right).await.status, StatusCode::NO_CONTENT, "her other one has not");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_wrong_logins_at_once_from_one_address_hold_up_nobody_elsewhere() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let platform = Client::new(&env, &node);
    let tenant = platform.provision("acme").await;
    let ada = platform.person(tenant, "user", "ada@example.com").await;
    let eve = platform.person(tenant, "user", "eve@example.com").await;
    // As dear as outside of tests.
    let access =
        Access::new(node.executor.clone(), Hashing { refused_after: Duration::from_millis(20), ..Hashing::default() }, None).unwrap();
    for person in [&ada, &eve] {
        access.set_password(StreamId::new(tenant, person.id), Password::new(PASSWORD.into()), testing::node::system()).await.unwrap();
    }
    let login = async |email: String, password: &str, from: &str| {
        let (tenant, source) = (tenant.to_string(), Source::of(from.parse().unwrap()));
        let login = Login { tenant: &tenant, email: &email, opaque: false, user_agent: None, source, device: None };
        access.login(login, Password::new(password.into())).await
    };
    let flood = (0..200).map(|n| login(format!("nobody{}@example.com", n % 40), "wrong", "192.0.2.1"));
    let honest = (0..20).map(|n| {
        let (email, from) = (if n % 2 == 0 { "ada@example.com" } else { "eve@example.com" }, format!("198.51.100.{}", n % 5));
        let login = &login;
        async move {
            let began = Instant::now();
            let entered = login(email.into(), PASSWORD, &from).await.is_ok();
            (entered, began.elapsed())
        }
    });
    let (flood, honest) = futures::join!(futures::future::join_all(flood), futures::future::join_all(honest));
    assert!(flood.iter().all(Result::is_err));
    let most = Duration::from_secs(if heavy() { 3 } else { 20 });
    let good = honest.iter().filter(|(entered, took)| *entered && *took < most).count();
    assert!(good >= 19, "{honest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_whose_queries_take_long_leaves_most_connections_to_others() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let platform = Client::new(&env, &node);
    let (greedy, modest) = (platform.provision("greedy").await, platform.provision("modest").await);
    let begin = async |tenant| {
        let mut read = node.reads.begin(View::Tenant(tenant), &[Tenants::NAME], None);
        read.look().await.map(|()| read)
    };
    let held = [begin(greedy).await.unwrap(), begin(greedy).await.unwrap(), begin(greedy).await.unwrap()];
    let crowd = futures::future::join_all((0..150).map(|_| begin(greedy)));
    let others = async {
        let mut slowest = Duration::ZERO;
        for _ in 0..50 {
            let since = Instant::now();
            assert_eq!(platform.acting(modest, Role::OrgAdmin).get("/v1/tickets").await.status, StatusCode::OK);
            slowest = slowest.max(since.elapsed());
        }
        (slowest, node.reads.loads()[0].1)
    };
    let (crowd, (slowest, load)) = futures::join!(crowd, others);
    assert!(crowd.iter().all(|begun| matches!(begun, Err(QueryError::Overloaded))), "more is not there for one tenant");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    assert!(load.waiting > 0 && load.taken < load.places, "{load:?}");
    // The tenant is told to come back, and by what name.
    let told = platform.acting(greedy, Role::OrgAdmin).get("/v1/tickets").await;
    assert_eq!((told.status, told.field("code"), told.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, "overloaded", "1"));
    drop(held);
    assert_eq!(platform.acting(greedy, Role::OrgAdmin).get("/v1/tickets").await.status, StatusCode::OK);
    // A statement that takes too long is ended.
    let mut read = begin(greedy).await.unwrap();
    let slept = read.all::<String>(&Sql::new("select pg_sleep(30)::text, null, null, null, null")).await;
    assert!(matches!(slept, Err(QueryError::Overloaded)), "{slept:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_ends_where_its_rows_become_too_many_bytes_and_every_row_is_on_one_page() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let platform = Client::new(&env, &node);
    let tenant = platform.provision("acme").await;
    let admin = platform.acting(tenant, Role::OrgAdmin);
    let mut position = String::new();
    for n in 0..60 {
        let size = if n % 3 == 0 { 60_000 } else { 30_000 };
        let made = admin.post("/v1/devices", json!({"serial": format!("s{n}"), "model": "d", "metadata": {"x": "y".repeat(size)}})).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
        made.header("tenure-position").clone_into(&mut position);
    }
    let (mut seen, mut pages, mut next) = (Vec::new(), 0, format!("/v1/devices?limit=200&after={position}"));
    loop {
        let page = admin.get(&next).await;
        assert_eq!(page.status, StatusCode::OK, "{}", page.text);
        assert!(page.text.len() <= projections::list::PAGE_BYTES + 4096, "{} bytes", page.text.len());
        seen.extend(page.json["data"].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()));
        pages += 1;
        match page.json["next_cursor"].as_str() {
            Some(cursor) => {
                assert!(page.header("link").contains("rel=\"next\""));
                next = format!("/v1/devices?limit=200&cursor={cursor}");
            }
            None => break,
        }
    }
    let all = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!((all, seen.len()), (60, 60));
    assert!((3..=4).contains(&pages), "{pages} pages");
    // Small rows come as many as were asked for.
    let page = admin.get("/v1/devices?limit=17").await;
    assert_eq!(page.json["data"].as_array().unwrap().len(), 17);
}

/// The 99th of so many queries.
async fn p99(client: &Client, queries: usize) -> Duration {
    let mut times = Vec::new();
    for _ in 0..queries {
        let since = Instant::now();
        assert_eq!(client.get("/v1/devices?limit=5").await.status, StatusCode::OK);
        times.push(since.elapsed());
    }
    times.sort_unstable();
    times[queries * 99 / 100 - 1]
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_queries_for_large_pages_of_one_tenant_hardly_slow_another_ones() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let platform = Client::new(&env, &node);
    let (attacker, victim) = (platform.provision("attacker").await, platform.provision("victim").await);
    let (attacker, victim) = (platform.acting(attacker, Role::OrgAdmin), platform.acting(victim, Role::OrgAdmin));
    let mut position = String::new();
    for n in 0..if heavy() { 200 } else { 40 } {
        let metadata: Vec<f64> = vec![1e15; 3000];
        let made = attacker.post("/v1/devices", json!({"serial": format!("s{n}"), "model": "d", "metadata": {"x": metadata}})).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
        let made = victim.post("/v1/devices", json!({"serial": format!("v{n}"), "model": "d"})).await;
        made.header("tenure-position").clone_into(&mut position);
    }
    assert_eq!(victim.get(&format!("/v1/devices?after={position}")).await.status, StatusCode::OK);
    let alone = p99(&victim, 200).await;
    let attack = futures::future::join_all((0..24).map(|_| {
        let attacker = attacker.clone();
        async move {
            loop {
                let status = attacker.get("/v1/devices?limit=200").await.status;
                assert!(matches!(status, StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE), "{status}");
            }
        }
    }));
    let beside = tokio::select! {
        _ = attack => unreachable!("it goes on for ever"),
        beside = p99(&victim, 200) => beside,
    };
    let most = if heavy() { alone * 2 } else { (alone * 10).max(Duration::from_millis(500)) };
    assert!(beside < most, "alone {alone:?}, beside the attack {beside:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_is_sent_again_after_a_pause_and_a_tenant_causes_so_many_mails_a_day() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let platform = Client::new(&env, &node);
    let tenant = platform.provision("acme").await;
    let admin = platform.acting(tenant, Role::OrgAdmin);
    let invite = async |n: usize| admin.post("/v1/invitations", json!({"email": format!("s{n}@example.com"), "role": "user"})).await;
    let first = invite(0).await;
    assert_eq!(first.status, StatusCode::CREATED, "{}", first.text);
    let again = format!("/v1/users/{}/resend-invitation", first.field("id"));
    let early = admin.post(&again, json!({})).await;
    assert_eq!((early.status, early.field("code"), early.header("retry-after")), (StatusCode::TOO_MANY_REQUESTS, "mail.pause", "60"));
    env.clock.advance(TimeDelta::seconds(60));
    assert_eq!(admin.post(&again, json!({})).await.status, StatusCode::OK);
    assert_eq!(admin.post(&again, json!({})).await.header("retry-after"), "120");
    // The pause belongs to the address: another invitation to it has to wait as well.
    let user = format!("/v1/users/{}", first.field("id"));
    assert_eq!(admin.post(&format!("{user}/revoke-invitation"), json!({})).await.status, StatusCode::OK);
    let second = invite(0).await;
    assert_eq!((second.status, second.field("code"), second.header("retry-after")), (StatusCode::TOO_MANY_REQUESTS, "mail.pause", "120"));
    env.clock.advance(TimeDelta::seconds(120));
    // At once, and only one of them.
    let at_once = futures::future::join_all((0..8).map(|_| invite(0))).await;
    assert_eq!(at_once.iter().filter(|answer| answer.status == StatusCode::CREATED).count(), 1);
    let invited = at_once.iter().find(|answer| answer.status == StatusCode::CREATED).unwrap().field("id");
    let again = format!("/v1/users/{invited}/resend-invitation");
    assert_eq!(admin.post(&again, json!({})).await.header("retry-after"), "240");
    assert_eq!(invite(0).await.field("code"), "user.email_taken", "no mail would be sent");
    env.clock.advance(TimeDelta::days(1) + TimeDelta::seconds(241));
    let admin = platform.acting(tenant, Role::OrgAdmin);
    let invite = async |n: usize| admin.post("/v1/invitations", json!({"email": format!("s{n}@example.com"), "role": "user"})).await;
    assert_eq!(admin.post(&again, json!({})).await.status, StatusCode::OK);
    assert_eq!(
        admin.post(&again, json!({})).await.header("retry-after"),
        "60",
        "after a day without a mail the pause is the first one again"
    );
    let sent: usize = 1;
    let ceiling = commands::mails::DAILY as usize;
    // At once, so that what counts is what is sent and not what was seen to be.
    let answers = futures::future::join_all((1..ceiling + 20).map(invite)).await;
    let made = answers.iter().filter(|answer| answer.status == StatusCode::CREATED).count();
    assert_eq!(made + sent, ceiling);
    let refused = answers.iter().find(|answer| answer.status != StatusCode::CREATED).unwrap();
    assert_eq!((refused.status, refused.field("code")), (StatusCode::TOO_MANY_REQUESTS, "mail.daily_limit"));
    let seconds: u32 = refused.header("retry-after").parse().unwrap();
    assert!((1..=24 * 3600).contains(&seconds), "{seconds}");
    // Other ways to have somebody written to are the same, and another tenant is another one.
    let registered = admin.post("/v1/users", json!({"email": "r@example.com", "name": "R", "role": "user"})).await;
    assert_eq!(registered.field("code"), "mail.daily_limit");
    let platform = Client::new(&env, &node);
    let other = platform.acting(platform.provision("other").await, Role::OrgAdmin);
    assert_eq!(other.post("/v1/invitations", json!({"email": "s@example.com", "role": "user"})).await.status, StatusCode::CREATED);
    // The next day begins at midnight.
    env.clock.advance(TimeDelta::seconds(seconds.into()));
    let tomorrow = platform.acting(tenant, Role::OrgAdmin);
    let invited = tomorrow.post("/v1/invitations", json!({"email": "s1000@example.com", "role": "user"})).await;
    assert_eq!(invited.status, StatusCode::CREATED, "{}", invited.text);
    node.settled().await;
    let queued: i64 =
        sqlx::query_scalar("select count(*) from ops.deliveries where tenant_id = $1").bind(tenant.0).fetch_one(&env.owner).await.unwrap();
    let before = 3;
    assert_eq!(usize::try_from(queued).unwrap(), before + ceiling + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_the_same_for_everybody_is_compressed_once_and_not_sent_again_to_those_who_have_it() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let client = Client::new(&env, &node).with_token(None);
    for path in ["/openapi.json", "/docs/", "/docs/swagger-ui-bundle.js", "/errors/overloaded"] {
        let plain = client.get(path).await;
        assert_eq!(
            (plain.status, plain.header("content-encoding"), plain.header("vary")),
            (StatusCode::OK, "", "accept-encoding"),
            "{path}"
        );
        let raw = async |headers: &[(&str, &str)]| {
            let mut request = axum::http::Request::builder().method(Method::GET).uri(path);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let response = client.router.clone().oneshot(request.body(axum::body::Body::empty()).unwrap()).await.unwrap();
            let (parts, body) = response.into_parts();
            (parts, to_bytes(body, usize::MAX).await.unwrap())
        };
        let (parts, packed) = raw(&[("accept-encoding", "br, gzip;q=0.5")]).await;
        assert_eq!(parts.headers["content-encoding"], "gzip");
        assert!(packed.len() < plain.text.len(), "{path}");
        let mut unpacked = String::new();
        std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&*packed), &mut unpacked).unwrap();
        assert_eq!(unpacked, plain.text);
        let etag = plain.header("etag");
        assert!(etag.starts_with('"') && parts.headers["etag"] != etag, "each form has its own, and it is strong");
        let (known, body) = raw(&[("if-none-match", &format!("\"x\", {etag}"))]).await;
        assert_eq!((known.status, body.len()), (StatusCode::NOT_MODIFIED, 0));
        assert_eq!(known.headers["etag"], etag);
    }
    assert_eq!(client.get("/docs").await.header("location"), "/docs/");
    assert_eq!(client.get("/docs/nothing").await.field("code"), "request.not_found");
    assert_eq!(client.get("/errors/nothing").await.field("code"), "request.not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_figures_have_an_address_of_their_own_where_that_is_wanted() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let both = Client::new(&env, &node).with_token(None);
    let apart = Client::with_limits(&env, &node, Limits { operations_elsewhere: true, ..Limits::default() }).with_token(None);
    for path in ["/health", "/readyz", "/metrics"] {
        assert_eq!(both.get(path).await.status, StatusCode::OK, "{path}");
        assert_eq!(apart.get(path).await.status, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(apart.operations().get(path).await.status, StatusCode::OK, "{path}");
    }
    assert_eq!((apart.get("/livez").await.status, apart.operations().get("/livez").await.status), (StatusCode::OK, StatusCode::OK));
    assert_eq!(apart.operations().get("/v1/tenants").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_probes_costs_one_look_a_second() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let client = Client::new(&env, &node).with_token(None);
    let began = Instant::now();
    let answers = futures::future::join_all((0..500).map(|n| client.get(if n % 2 == 0 { "/health" } else { "/readyz" }))).await;
    assert!(answers.iter().all(|answer| answer.status == StatusCode::OK));
    let looks = client.looks.load(std::sync::atomic::Ordering::Relaxed);
    assert!(looks <= 1 + began.elapsed().as_secs(), "{looks} looks");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_holds_three_old_slugs_and_no_slug_is_taken_for_an_id() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let platform = Client::new(&env, &node);
    let tenant = platform.provision("acme").await;
    let other: TenantId = platform.provision("other").await;
    let change = async |slug: &str| platform.post(&format!("/v1/tenants/{tenant}/change-slug"), json!({"slug": slug})).await;
    for slug in ["two", "three", "four"].map(|name| format!("acme-{name}")) {
        assert_eq!(change(&slug).await.status, StatusCode::OK);
    }
    let refused = change("acme-five").await;
    assert_eq!((refused.status, refused.field("code")), (StatusCode::CONFLICT, "tenant.too_many_aliases"));
    for shape in [other.to_string(), other.0.simple().to_string()] {
        assert_eq!(change(&shape).await.field("code"), "request.invalid");
        let made = platform.post("/v1/tenants", json!({"slug": shape, "name": "x"})).await;
        assert_eq!(made.field("code"), "request.invalid");
    }
    env.clock.advance(TimeDelta::days(30));
    node.timers().fire_due().await.unwrap();
    let later = platform.acting(TenantId::SYSTEM, Role::SuperAdmin);
    let changed = later.post(&format!("/v1/tenants/{tenant}/change-slug"), json!({"slug": "acme-five"})).await;
    assert_eq!(changed.status, StatusCode::OK, "{}", changed.text);
}
