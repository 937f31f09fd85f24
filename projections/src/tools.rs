//! Read models by name, for those who mend them.

use std::num::NonZeroU32;

use futures::future::BoxFuture;
use sqlx::PgPool;
use store::Store;

use crate::model::ReadModel;
use crate::parking::{self, Discarded, ParkingError, Retried};
use crate::rebuild::{self, Purpose, RebuildError, Rebuilt};

/// Hears the position reached and the one to reach.
pub type Report<'a> = &'a (dyn Fn(i64, i64) + Send + Sync);

/// What can be done to a read model.
pub struct Tools {
    /// Its name.
    pub name: &'static str,
    /// See [`rebuild::rebuild`].
    pub rebuild: for<'a> fn(&'a Store, &'a PgPool, Purpose, Option<NonZeroU32>, Report<'a>) -> BoxFuture<'a, Result<Rebuilt, RebuildError>>,
    /// See [`parking::retry`].
    pub retry: for<'a> fn(&'a Store, &'a PgPool, &'a str) -> BoxFuture<'a, Result<Retried, ParkingError>>,
    /// See [`parking::discard`].
    pub discard: for<'a> fn(&'a Store, &'a PgPool, &'a str, i64, &'a str) -> BoxFuture<'a, Result<Discarded, ParkingError>>,
}

impl Tools {
    /// Those of a read model.
    pub fn of<M: ReadModel>() -> Self {
        Self {
            name: M::NAME,
            rebuild: |store, pool, purpose, rate, report| Box::pin(rebuild::rebuild::<M>(store, pool, purpose, rate, report)),
            retry: |store, pool, partition| Box::pin(parking::retry::<M>(store, pool, partition)),
            discard: |store, pool, partition, position, reason| Box::pin(parking::discard::<M>(store, pool, partition, position, reason)),
        }
    }

    /// Those of every read model.
    pub fn all() -> Vec<Self> {
        macro_rules! all {
            ($($model:ty,)*) => { vec![$(Self::of::<$model>()),*] };
        }
        crate::for_each_read_model!(all)
    }
}
