//! Signed checkpoints of the log's head, against an owner of the database who rewrites history and recomputes its chains.
//!
//! A checkpoint is a JSON Web Signature (RFC 7515, compact form) by Ed25519 (RFC 8037) over the installation, a position, the chain hash there and the time. It is signed with a
//! key that the database never sees, at an interval, and handed to places that the owner of the database does not control: a file or a URL that the operator names, and the
//! bus. `tenure audit verify --against` compares the log with them.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use bus::Bus;
use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, EncodePublicKey as _};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use store::{Hash, Head, Store, lease};
use tokio::io::AsyncWriteExt as _;
use tokio_util::sync::CancellationToken;

/// One process signs at a time; others take over after this.
const LEASE: Duration = Duration::from_secs(60);
/// How often the lease is renewed.
const TICK: Duration = Duration::from_secs(20);
/// How long a place may take to accept a checkpoint.
const PATIENCE: Duration = Duration::from_secs(10);
/// The `typ` of checkpoints, so that no other token is taken for one.
const TYPE: &str = "tenure-checkpoint+jwt";

/// Claims of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Statement {
    /// The installation: `/tenure/<id>`, as in `ce-source`.
    iss: String,
    /// The head of the log then.
    pub(crate) position: i64,
    /// The chain hash there.
    #[serde(with = "store::hash::as_text")]
    pub(crate) log_hash: Hash,
    /// When it was signed, in seconds since 1970.
    pub(crate) iat: i64,
}

/// Signs checkpoints.
pub(crate) struct CheckpointKey {
    kid: String,
    public: String,
    encoding: EncodingKey,
}

impl CheckpointKey {
    /// From an Ed25519 private key in PKCS #8 PEM.
    pub(crate) fn from_pem(pem: &str) -> anyhow::Result<Self> {
        let key = SigningKey::from_pkcs8_pem(pem).context("not an Ed25519 private key in PKCS #8 PEM")?;
        let public = key.verifying_key();
        Ok(Self {
            kid: hex::encode(&Sha256::digest(public.to_bytes())[..8]),
            public: public.to_public_key_pem(LineEnding::LF).context("the public key")?,
            encoding: EncodingKey::from_ed_pem(pem.as_bytes())?,
        })
    }

    /// A new key as PEM.
    pub(crate) fn generate() -> String {
        let key = SigningKey::generate(&mut rand::rngs::OsRng);
        let Ok(pem) = key.to_pkcs8_pem(LineEnding::LF) else { unreachable!("a fresh key has a PEM form") };
        pem.to_string()
    }

    /// The public part in PEM: with it anybody can verify checkpoints.
    pub(crate) fn public(&self) -> &str {
        &self.public
    }

    fn sign(&self, store: &Store, head: Head) -> anyhow::Result<String> {
        let header = Header { kid: Some(self.kid.clone()), typ: Some(TYPE.into()), ..Header::new(Algorithm::EdDSA) };
        let statement =
            Statement { iss: source(store), position: head.position, log_hash: head.log_hash, iat: store.clock().now().timestamp() };
        Ok(jsonwebtoken::encode(&header, &statement, &self.encoding)?)
    }
}

fn source(store: &Store) -> String {
    format!("/tenure/{}", store.installation())
}

/// Returns the claims of a checkpoint that the key with this public part signed for this installation.
pub(crate) fn verify(store: &Store, public: &str, checkpoint: &str) -> anyhow::Result<Statement> {
    let header = jsonwebtoken::decode_header(checkpoint).context("not a JSON Web Signature")?;
    anyhow::ensure!(header.typ.as_deref() == Some(TYPE), "not a checkpoint");
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_issuer(&[source(store)]);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_aud = false;
    let key = DecodingKey::from_ed_pem(public.as_bytes()).context("not an Ed25519 public key in PEM")?;
    let decoded = jsonwebtoken::decode::<Statement>(checkpoint, &key, &validation);
    let statement = decoded.context("the signature is not that of this key, or for another installation")?.claims;
    anyhow::ensure!(statement.iss == source(store), "made for another installation");
    Ok(statement)
}

/// The place that keeps checkpoints.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// Appended to a file, one per line.
    File(PathBuf),
    /// Sent by POST, as `application/jose`.
    Url(String),
}

impl Place {
    /// A URL of HTTP, or else the path of a file.
    pub(crate) fn parse(text: &str) -> Self {
        if text.starts_with("http://") || text.starts_with("https://") { Self::Url(text.to_owned()) } else { Self::File(text.into()) }
    }

    async fn keep(&self, checkpoint: &str) -> anyhow::Result<()> {
        match self {
            Self::File(path) => {
                let mut file = tokio::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).await?;
                // A line that was torn by a crash or a full disk must not spoil the next one.
                let torn = tokio::fs::read(path).await?.last().is_some_and(|last| *last != b'\n');
                file.write_all(format!("{}{checkpoint}\n", if torn { "\n" } else { "" }).as_bytes()).await?;
                file.sync_all().await?;
            }
            Self::Url(url) => {
                let request = reqwest::Client::new().post(url).header("content-type", "application/jose").body(checkpoint.to_owned());
                request.timeout(PATIENCE).send().await?.error_for_status()?;
            }
        }
        Ok(())
    }

    /// All checkpoints that it keeps.
    pub(crate) async fn read(&self) -> anyhow::Result<Vec<String>> {
        let text = match self {
            Self::File(path) => tokio::fs::read_to_string(path).await.with_context(|| path.display().to_string())?,
            Self::Url(url) => reqwest::Client::new().get(url).timeout(PATIENCE).send().await?.error_for_status()?.text().await?,
        };
        Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }
}

/// Signs the head of the log at an interval.
pub(crate) struct Signer {
    pub(crate) store: Store,
    pub(crate) bus: Bus,
    pub(crate) key: CheckpointKey,
    pub(crate) place: Place,
    pub(crate) interval: Duration,
}

impl Signer {
    /// Signs the head of the log at every interval in which it has moved, until cancelled. One process at a time does.
    pub(crate) async fn run(self, cancel: CancellationToken) {
        let owner = self.store.fresh_id();
        // Position and time of the last checkpoint of this process.
        let mut signed: (i64, Option<std::time::Instant>) = (0, None);
        while !cancel.is_cancelled() {
            if let Err(error) = self.sign(owner, &mut signed).await {
                tracing::warn!(%error, "the head of the log cannot be signed, or the checkpoint not kept");
            }
            let _ = tokio::time::timeout(self.interval.min(TICK), cancel.cancelled()).await;
        }
        let _ = lease::release(self.store.pool(), "checkpoints", owner).await;
    }

    async fn sign(&self, owner: uuid::Uuid, signed: &mut (i64, Option<std::time::Instant>)) -> anyhow::Result<()> {
        if lease::acquire(self.store.pool(), "checkpoints", owner, LEASE).await?.is_none() {
            return Ok(());
        }
        let head = self.store.head().await?;
        // Half a tick of slack, since a tick is never early.
        if head.position == signed.0 || signed.1.is_some_and(|at| at.elapsed() + self.interval.min(TICK) / 2 < self.interval) {
            return Ok(());
        }
        let checkpoint = self.key.sign(&self.store, head)?;
        self.place.keep(&checkpoint).await?;
        *signed = (head.position, Some(std::time::Instant::now()));
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        metrics::gauge!("tenure_checkpoint_position").set(head.position as f64);
        // The bus may be away; the place that the operator named has it.
        if let Err(error) = tokio::time::timeout(PATIENCE, self.bus.publish_checkpoint(&checkpoint))
            .await
            .map_err(anyhow::Error::from)
            .and_then(|published| Ok(published?))
        {
            tracing::warn!(%error, "a checkpoint of the log was not published on the bus");
        }
        Ok(())
    }
}
