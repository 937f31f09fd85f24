//! Where read models stand.

use serde::Serialize;
use sqlx::{FromRow, PgPool};
use uuid::Uuid;

/// A generation of a read model.
#[derive(Clone, Debug, PartialEq, Serialize, FromRow)]
pub struct Generation {
    /// The read model.
    pub name: String,
    /// Which generation.
    pub generation: i32,
    /// `serving`; `building`, during a rebuild or left behind by one that died; `retired`, for a way back.
    pub state: String,
    /// Its checkpoint.
    pub position: i64,
    /// How many of its partitions are parked.
    pub parked: i64,
    /// Why it has stopped: the log does not confirm its checkpoint.
    pub fault: Option<String>,
    /// Whoever keeps the serving one up to date.
    pub owner: Option<Uuid>,
}

/// All generations of all read models, the serving ones first.
pub async fn generations(pool: &PgPool) -> Result<Vec<Generation>, sqlx::Error> {
    sqlx::query_as(
        "select g.name, g.generation, g.state, g.position, g.fault,
           (select count(*) from read.parked p where (p.name, p.generation) = (g.name, g.generation)) as parked,
           (select l.owner from ops.leases l where g.state = 'serving' and l.name = 'projection/' || g.name and l.until > now()) as owner
         from read.generations g order by g.name, g.state <> 'serving', g.generation",
    )
    .fetch_all(pool)
    .await
}
