//! Answers that are kept, sealed, for requests that are repeated: those that carry secrets, and those that are no one command of one aggregate.

use crate::Store;
use crate::append::Key;

/// What sealed answers are encrypted for.
const USE: &str = "kept answer";

/// What is kept of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// What was drawn for it.
    pub drawn: Vec<u8>,
    /// What was answered; `None` where it was cut off before.
    pub answer: Option<Vec<u8>>,
}

/// Why nothing could be kept or found.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The key was used for another request.
    #[error("the idempotency key was used for another request")]
    KeyReused,
    /// What is kept cannot be opened: it was sealed under another master key, or changed.
    #[error("a kept answer cannot be opened")]
    Unreadable,
    /// The database did not answer.
    #[error("kept answers cannot be reached")]
    Unavailable(#[from] sqlx::Error),
}

type Row = (Vec<u8>, Vec<u8>, Option<Vec<u8>>);

impl Store {
    /// What is kept of the request with this key.
    pub async fn kept(&self, key: &Key) -> Result<Option<Kept>, KeepError> {
        let key = self.keyed(key);
        let row: Option<Row> =
            sqlx::query_as("select fingerprint, drawn, answer from ops.kept_answers where tenant_id = $1 and scope = $2 and key = $3")
                .bind(key.tenant.0)
                .bind(&key.scope)
                .bind(&key.key)
                .fetch_optional(self.pool())
                .await?;
        let Some((fingerprint, drawn, answer)) = row else { return Ok(None) };
        if fingerprint != key.fingerprint {
            return Err(KeepError::KeyReused);
        }
        let answer = answer.map(|answer| self.opened(&key, &answer)).transpose()?;
        Ok(Some(Kept { drawn: self.opened(&key, &drawn)?, answer }))
    }

    /// Keeps what was drawn for a request, unless something is kept of it already. What is kept now.
    pub async fn keep_drawn(&self, key: &Key, drawn: &[u8]) -> Result<Kept, KeepError> {
        let sealed = self.sealed(&self.keyed(key), drawn)?;
        let keyed = self.keyed(key);
        sqlx::query(
            "insert into ops.kept_answers (tenant_id, scope, key, fingerprint, drawn, recorded_at) values ($1, $2, $3, $4, $5, $6) on conflict do nothing",
        )
        .bind(keyed.tenant.0)
        .bind(&keyed.scope)
        .bind(&keyed.key)
        .bind(keyed.fingerprint.as_slice())
        .bind(sealed)
        .bind(self.inner.clock.now())
        .execute(self.pool())
        .await?;
        // Somebody may have forgotten it in this moment, since it was refused: then it stands for itself.
        Ok(self.kept(key).await?.unwrap_or_else(|| Kept { drawn: drawn.to_vec(), answer: None }))
    }

    /// Keeps the answer of a request.
    pub async fn keep_answer(&self, key: &Key, answer: &[u8]) -> Result<(), KeepError> {
        let key = self.keyed(key);
        let sealed = self.sealed(&key, answer)?;
        sqlx::query("update ops.kept_answers set answer = $4 where tenant_id = $1 and scope = $2 and key = $3 and answer is null")
            .bind(key.tenant.0)
            .bind(&key.scope)
            .bind(&key.key)
            .bind(sealed)
            .execute(self.pool())
            .await?;
        Ok(())
    }

    /// Forgets what was drawn for a request that was refused: the key is free again.
    pub async fn forget_drawn(&self, key: &Key) -> Result<(), KeepError> {
        let key = self.keyed(key);
        sqlx::query("delete from ops.kept_answers where tenant_id = $1 and scope = $2 and key = $3 and answer is null")
            .bind(key.tenant.0)
            .bind(&key.scope)
            .bind(&key.key)
            .execute(self.pool())
            .await?;
        Ok(())
    }

    /// Seals a text together with whose it is, so that no row answers for another one.
    fn sealed(&self, key: &Key, text: &[u8]) -> Result<Vec<u8>, KeepError> {
        self.wrap(USE, &[&key.tenant.to_string(), &key.scope, &key.key], &[&key.fingerprint, text].concat()).ok_or(KeepError::Unreadable)
    }

    fn opened(&self, key: &Key, sealed: &[u8]) -> Result<Vec<u8>, KeepError> {
        let text = self.unwrap(USE, &[&key.tenant.to_string(), &key.scope, &key.key], sealed).ok_or(KeepError::Unreadable)?;
        Ok(text.strip_prefix(key.fingerprint.as_slice()).ok_or(KeepError::Unreadable)?.to_vec())
    }
}
