//! What the database's own catalogue says of the tables that stand beside the log.

use std::collections::BTreeSet;

use testing::Env;

/// Keys that do not begin with the tenant, and why that is right.
const OTHERWISE: &[(&str, &str, &str)] = &[
    ("claims", "scope, namespace, value", "the scope is the tenant, or the installation where a value is unique in all of it"),
    ("claims", "aggregate_type, aggregate_id, namespace, label", "a stream's id begins with the tenant"),
    ("events", "aggregate_type, aggregate_id, sequence", "a stream's id begins with the tenant"),
    ("events", "position", "the log's own, of all tenants together"),
    ("timers", "aggregate_type, aggregate_id, name", "a stream's id begins with the tenant"),
    ("ops.provider_events", "provider, event_id", "the provider's own id; whose it is may not be known when it comes"),
    ("ops.sessions", "id", "drawn by Tenure, chosen by no client; tokens name nothing else"),
    ("read.parked", "name, generation, partition", "a partition begins with the tenant"),
    ("read.discarded", "name, position", "a position is of one event, of one tenant"),
];

#[tokio::test]
async fn every_primary_and_unique_key_of_a_table_with_tenants_begins_with_the_tenant() {
    let env = Env::new().await;
    let keys: Vec<(String, String, String)> = sqlx::query_as(
        "select c.oid::regclass::text, pg_get_indexdef(i.indexrelid, 1, false),
                replace(string_agg(pg_get_indexdef(i.indexrelid, n, false), ', ' order by n), chr(34), '')
         from pg_index i join pg_class c on c.oid = i.indrelid cross join generate_series(1, i.indnkeyatts) as n
         where i.indisunique and c.relnamespace::regnamespace::text in ('public', 'ops', 'read')
           and exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped)
         group by c.oid, i.indexrelid",
    )
    .fetch_all(&env.owner)
    .await
    .unwrap();
    assert!(keys.len() > 30, "{}", keys.len());
    let wrong: BTreeSet<(&str, &str)> =
        keys.iter().filter(|(_, first, _)| first != "tenant_id").map(|(table, _, columns)| (table.as_str(), columns.as_str())).collect();
    let named: BTreeSet<(&str, &str)> = OTHERWISE.iter().map(|(table, columns, _)| (*table, *columns)).collect();
    assert_eq!(wrong, named, "a key begins with the tenant, or is named here with the reason");
}

/// What a column of an operational table holds, and how that ends for a person who is erased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    /// An id, a time, a number, a word that Tenure chose: nothing of a person.
    Nothing,
    /// Encrypted under the master key, or a hash under it.
    Sealed,
    /// Something of a person or of what they use. The row goes with the person's key, by the trigger of `ops.subject_keys` or by the policy `erasure`.
    OfAPerson,
    /// A hash or the wrapped key of a person: goes with it.
    Secret,
}

/// Every column of every operational table. A new one has to be classified here, and what is of a person has to be forgotten in `ops.forget_subjects` (or by the policy).
const COLUMNS: &[(&str, &[(&str, Holds)])] = {
    use Holds::{Nothing as N, OfAPerson as P, Sealed as S, Secret as K};
    &[
        ("api_key_use", &[("tenant_id", N), ("key_id", N), ("last_used_at", P)]),
        ("credentials", &[("id", N), ("tenant_id", N), ("owner_type", N), ("owner_id", N), ("hash", K), ("created_at", N)]),
        (
            "deliveries",
            &[
                ("event_id", N),
                ("id", N),
                ("tenant_id", N),
                ("kind", N),
                ("subject_id", P),
                ("template", N),
                ("intent", N),
                ("position", N),
                ("state", N),
                ("attempts", N),
                ("next_attempt_at", N),
                ("leased_by", N),
                ("leased_until", N),
                ("created_at", N),
                ("ended_at", N),
                ("reason", P),
            ],
        ),
        (
            "delivery_attempts",
            &[("tenant_id", N), ("delivery_id", N), ("attempt", N), ("began_at", N), ("ended_at", N), ("outcome", N), ("reason", P)],
        ),
        ("device_heartbeats", &[("tenant_id", N), ("device_id", N), ("last_seen_at", N)]),
        (
            "idempotency_keys",
            &[
                ("tenant_id", N),
                ("scope", N),
                ("key", S),
                ("fingerprint", S),
                ("aggregate_id", N),
                ("version", N),
                ("position", N),
                ("created", N),
                ("recorded_at", N),
            ],
        ),
        (
            "kept_answers",
            &[("tenant_id", N), ("scope", N), ("key", S), ("fingerprint", S), ("drawn", S), ("answer", S), ("recorded_at", N)],
        ),
        ("leases", &[("name", N), ("owner", N), ("epoch", N), ("until", N)]),
        // Keyed hashes of addresses, kept for a quarter of an hour.
        ("login_attempts", &[("tenant_id", N), ("account", S), ("origin", S), ("failures", N), ("since", N)]),
        // Keyed hashes of addresses, kept for a day after their pause.
        ("mail_pauses", &[("tenant_id", N), ("address", S), ("mails", N), ("until", N)]),
        ("mails_caused", &[("tenant_id", N), ("day", N), ("cause", N), ("mails", N)]),
        ("master_key", &[("one", N), ("key_check", S)]),
        ("policies", &[("fault", N), ("name", N), ("position", N), ("log_hash", N), ("epoch", N)]),
        (
            "policy_refusals",
            &[
                ("event_id", N),
                ("policy", N),
                ("position", N),
                ("step", N),
                ("tenant_id", N),
                ("command", N),
                ("reason", N),
                ("recorded_at", N),
            ],
        ),
        (
            "provider_events",
            &[
                ("reason", N),
                ("names", N),
                ("provider", N),
                ("event_id", N),
                ("event_type", N),
                ("occurred_at", N),
                ("received_at", N),
                ("customer", N),
                ("tenant_id", N),
                ("subscription_id", N),
                ("outcome", N),
                ("body", S),
            ],
        ),
        (
            "sessions",
            &[
                ("id", N),
                ("tenant_id", N),
                ("user_id", P),
                ("epoch", N),
                ("generation", N),
                ("rotated_at", N),
                ("opaque", N),
                ("user_agent", P),
                ("created_at", P),
                ("last_used_at", P),
                ("expires_at", N),
                ("ended_at", N),
                ("parent", N),
            ],
        ),
        ("signing_keys", &[("kid", N), ("wrapped_key", S), ("created_at", N), ("signs_from", N), ("verifies_until", N)]),
        ("subject_keys", &[("tenant_id", N), ("subject_id", N), ("wrapped_key", K)]),
        ("write_probe", &[("one", N), ("written_at", N)]),
        ("timer_leases", &[("aggregate_type", N), ("aggregate_id", N), ("name", N), ("due_at", N), ("owner", N), ("until", N)]),
    ]
};

#[tokio::test]
async fn every_column_of_an_operational_table_is_classified_and_what_is_of_a_person_is_forgotten_with_the_key() {
    let env = Env::new().await;
    let there: Vec<(String, String)> = sqlx::query_as(
        "select table_name::text, column_name::text from information_schema.columns where table_schema = 'ops' order by 1, 2",
    )
    .fetch_all(&env.owner)
    .await
    .unwrap();
    let there: BTreeSet<(&str, &str)> = there.iter().map(|(table, column)| (table.as_str(), column.as_str())).collect();
    let known: BTreeSet<(&str, &str)> =
        COLUMNS.iter().flat_map(|(table, columns)| columns.iter().map(move |(column, _)| (*table, *column))).collect();
    assert_eq!(there, known, "say here what a new column holds, and who forgets it");
    let forgets: String = sqlx::query_scalar(
        "select string_agg(regexp_replace(prosrc, '--[^\n]*', '', 'g'), chr(10)) from pg_proc
         where pronamespace = 'ops'::regnamespace and proname in ('forget_subjects', 'forget_keys_of')",
    )
    .fetch_one(&env.owner)
    .await
    .unwrap();
    let triggers: Vec<i16> = sqlx::query_scalar(
        "select tgtype from pg_trigger where tgrelid = 'ops.subject_keys'::regclass and tgfoid = 'ops.forget_subjects'::regproc and tgenabled = 'O' order by 1",
    )
    .fetch_all(&env.owner)
    .await
    .unwrap();
    // After each statement that inserts (4), or updates (16).
    assert_eq!(triggers, [4, 16]);
    for (table, columns) in COLUMNS {
        let personal = columns.iter().any(|(_, holds)| matches!(holds, Holds::OfAPerson | Holds::Secret));
        // The attempts of a delivery go with it, and a key is what the trigger is about.
        let by_itself = ["delivery_attempts", "subject_keys"].contains(table);
        assert!(!personal || by_itself || forgets.contains(&format!("delete from ops.{table} ")), "{table} is forgotten by nothing");
    }
}
