//! The policy that forgets what stands beside the log of people, and of tenants, that were erased.
//!
//! What operational tables say of a person goes with the person's key, in the transaction that destroys it (`migrations/…_erasure.sql`). This policy does the rest, soon after
//! and until it is done: what only the log knows to be the person's, what came later, everything of a tenant that is gone, and files of mails.

use std::sync::Arc;

use bus::group::Member;
use bus::subscription::HandlerError;
use commands::policy::{self, Policy, unreadable};
use sqlx::PgConnection;
use store::{Erases, RawEvent, Store};
use uuid::Uuid;

use crate::files::MailFiles;

/// The policy.
pub struct ErasurePolicy {
    store: Store,
    files: Option<MailFiles>,
}

impl ErasurePolicy {
    /// The policy in one process, which writes mails into these files, if it writes any.
    pub fn member(store: &Store, files: Option<MailFiles>) -> Arc<dyn Member> {
        policy::member(Self { store: store.clone(), files })
    }
}

impl Policy for ErasurePolicy {
    const NAME: &'static str = "erasure";

    type Decided = Vec<(Uuid, Erases)>;

    fn concerns(&self, event: &RawEvent) -> bool {
        event.may_erase()
    }

    async fn decide(&self, events: &[Arc<RawEvent>]) -> Result<Self::Decided, HandlerError> {
        let mut erased = Vec::new();
        for event in events {
            if let Some(erases) = event.erases().map_err(unreadable)? {
                erased.push((event.tenant_id, erases));
            }
        }
        erased.dedup();
        if let (false, Some(files)) = (erased.is_empty(), &self.files) {
            files.forget_erased(&self.store).await.map_err(|error| HandlerError::Retry(error.to_string()))?;
        }
        Ok(erased)
    }

    async fn write(&self, erased: &Self::Decided, tx: &mut PgConnection) -> Result<(), sqlx::Error> {
        for (tenant, erases) in erased {
            match erases {
                Erases::Subjects(subjects) => {
                    let subjects: Vec<Uuid> = subjects.iter().map(|subject| subject.0).collect();
                    // What was written between the two, such as the session of a login that was under way.
                    sqlx::query("update ops.subject_keys set wrapped_key = null where tenant_id = $1 and subject_id = any($2)")
                        .bind(tenant)
                        .bind(&subjects)
                        .execute(&mut *tx)
                        .await?;
                    sqlx::query("select ops.forget_keys_of($1, $2)").bind(tenant).bind(&subjects).execute(&mut *tx).await?;
                }
                Erases::Tenant => {
                    sqlx::query("select ops.forget_tenant($1)").bind(tenant).execute(&mut *tx).await?;
                }
            }
        }
        Ok(())
    }
}
