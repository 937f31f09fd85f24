//! Connections and transactions.

use std::task::Poll;

use store::DbRole;
use store::database::{begin, snapshot};
use testing::{Env, eventually, id};

/// Transactions that are open and wait for their client, in the database of a test.
const OPEN: &str = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in transaction%'";

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_is_given_up_while_it_begins_stays_open_on_no_connection() {
    let env = Env::new().await;
    env.store().await;
    let pool = env.database.pool(DbRole::Writer, 1);
    let holds = "insert into ops.leases (name, owner, epoch, until) values ($1, $2, 1, now())";
    for round in 0..60 {
        // Given up after each number of steps that it takes; with enough steps it begins.
        let steps = round % 6;
        let mut taken = 0;
        let mut beginning = Box::pin(async { if round % 2 == 0 { begin(&pool).await } else { snapshot(&pool).await } });
        let begun = std::future::poll_fn(|context| {
            taken += 1;
            match beginning.as_mut().poll(context) {
                Poll::Pending if taken > steps => Poll::Ready(None),
                Poll::Pending => {
                    context.waker().wake_by_ref();
                    Poll::Pending
                }
                Poll::Ready(begun) => Poll::Ready(Some(begun)),
            }
        })
        .await;
        drop(beginning);
        drop(begun.transpose().unwrap());
        // What the next borrower of the connection writes is there for others.
        let name = format!("round/{round}");
        sqlx::query(holds).bind(&name).bind(id()).execute(&pool).await.unwrap();
        let seen: i64 =
            sqlx::query_scalar("select count(*) from ops.leases where name = $1").bind(&name).fetch_one(&env.owner).await.unwrap();
        assert_eq!(seen, 1, "round {round}");
    }
    eventually("no transaction is open", || async {
        let open: i64 = sqlx::query_scalar(OPEN).fetch_one(&env.owner).await.unwrap();
        (open == 0).then_some(())
    })
    .await;
}
