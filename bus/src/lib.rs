//! The message bus: the log mirrored on JetStream, stream sequence = log position, the same bytes.
//!
//! * [`relay`] extends the stream by what follows in the log, and by nothing else.
//! * [`feed`] and [`subscription`] bring the stream to handlers inside Tenure: each event once, in order, contiguous, whatever the bus does.
//! * [`envelope`] is the message format (CloudEvents 1.0, binary mode); `docs/SUBSCRIBING.md` tells outside subscribers how to use it.
//! * [`stream`] looks at the stream's configuration and ends; [`mirror`] compares all of it with the log, and rebuilds it.
//! * [`permissions`] says which user of a NATS server may do what.
//! * [`replay`] publishes a part of the log for one integrator.

pub mod envelope;
pub mod feed;
pub mod group;
pub mod mirror;
pub mod permissions;
pub mod relay;
pub mod replay;
pub mod stream;
pub mod subscription;

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::{Config, RetentionPolicy, StorageType, Stream};
use async_nats::{ConnectOptions, ServerAddr};
use uuid::Uuid;

/// How long the bus may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The bus as one installation sees it. Cheap to clone.
#[derive(Clone)]
pub struct Bus {
    client: async_nats::Client,
    jetstream: jetstream::Context,
    installation: Uuid,
    prefix: String,
    replicas: usize,
}

/// The bus did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[error("the bus: {0}")]
pub struct BusError(pub String);

impl BusError {
    fn from_error(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

impl Bus {
    /// Connects to `url` (`nats://user:password@host:port`, or several of them with commas between, with the same credentials); when nobody answers yet, goes on trying in
    /// the background. Subjects begin with `prefix`.
    pub async fn connect(url: &str, prefix: &str, installation: Uuid) -> Result<Self, BusError> {
        let addresses: Vec<ServerAddr> =
            url.split(',').map(|address| address.trim().parse()).collect::<Result<_, _>>().map_err(BusError::from_error)?;
        let mut options = ConnectOptions::new()
            .name("tenure")
            .custom_inbox_prefix(permissions::INBOX)
            .retry_on_initial_connect()
            .connection_timeout(TIMEOUT)
            .request_timeout(Some(TIMEOUT));
        // The client itself overlooks credentials in the address.
        if let Some((user, password)) = addresses.iter().find_map(|address| Some((address.username()?, address.password()?))) {
            options = options.user_and_password(user.to_owned(), password.to_owned());
        }
        let client = options
            .reconnect_delay_callback(|tries| Duration::from_millis(100 << tries.min(4)))
            .connect(addresses)
            .await
            .map_err(BusError::from_error)?;
        let jetstream = jetstream::ContextBuilder::new()
            .timeout(TIMEOUT)
            .ack_timeout(TIMEOUT)
            .max_ack_inflight(4 * relay::WINDOW)
            .build(client.clone());
        Ok(Self { client, jetstream, installation, prefix: prefix.to_owned(), replicas: 1 })
    }

    /// The stream on so many servers of a cluster: 1, 3 or 5. Needs nats-server 2.10 or newer.
    #[must_use]
    pub fn with_replicas(self, replicas: usize) -> Self {
        Self { replicas, ..self }
    }

    /// Whether a server is reached right now.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }

    /// Waits until a server is reached, for a while.
    pub async fn connected(&self) -> Result<(), BusError> {
        let reached = async {
            while !self.is_connected() {
                let _ = tokio::time::timeout(Duration::from_millis(20), std::future::pending::<()>()).await;
            }
        };
        tokio::time::timeout(TIMEOUT, reached).await.map_err(|_| BusError("no server is reached".into()))
    }

    /// The server's version, once one was reached.
    pub fn server_version(&self) -> Option<String> {
        Some(self.client.server_info().version).filter(|version| !version.is_empty())
    }

    /// The stream's name: it carries the installation id, so that nobody takes another installation's stream for their own.
    pub fn stream_name(&self) -> String {
        format!("TENURE_{}", self.installation.simple())
    }

    /// The `ce-source` of every message.
    pub fn source(&self) -> String {
        format!("/tenure/{}", self.installation)
    }

    /// `<prefix>.events.<tenant>.<aggregate>.<event>`; the aggregate's id is a header, since millions of subjects would make filtered consumers collapse.
    pub fn subject(&self, tenant: Uuid, event_type: &str) -> String {
        format!("{}.events.{tenant}.{event_type}", self.prefix)
    }

    /// The core subject on which writers say that the log has grown.
    fn hint_subject(&self) -> String {
        format!("{}.hint.{}", self.prefix, self.installation)
    }

    /// Publishes a signed checkpoint of the log to `<prefix>.checkpoints.<installation>`, a stream of its own that keeps the last 10 000 of them.
    pub async fn publish_checkpoint(&self, checkpoint: &str) -> Result<(), BusError> {
        let subject = format!("{}.checkpoints.{}", self.prefix, self.installation);
        let config = Config {
            name: format!("TENURE_CHECKPOINTS_{}", self.installation.simple()),
            subjects: vec![subject.clone()],
            description: Some("Signed checkpoints of Tenure's event log".into()),
            storage: StorageType::File,
            max_messages: 10_000,
            num_replicas: self.replicas,
            ..Default::default()
        };
        self.jetstream.get_or_create_stream(config).await.map_err(BusError::from_error)?;
        let acknowledged = self.jetstream.publish(subject, checkpoint.to_owned().into()).await.map_err(BusError::from_error)?;
        acknowledged.await.map(drop).map_err(BusError::from_error)
    }

    /// The raw client, for tests and tools.
    pub fn client(&self) -> &async_nats::Client {
        &self.client
    }

    /// The raw JetStream context, for tests and tools.
    pub fn jetstream(&self) -> &jetstream::Context {
        &self.jetstream
    }

    fn stream_config(&self) -> Config {
        Config {
            name: self.stream_name(),
            subjects: vec![format!("{}.events.>", self.prefix)],
            description: Some("Tenure's event log; sequence = position".into()),
            storage: StorageType::File,
            retention: RetentionPolicy::Limits,
            num_replicas: self.replicas,
            deny_delete: true,
            deny_purge: true,
            // Order and uniqueness come from the expected last sequence. The server's own duplicate detection can drift between replicas before 2.9.21, so it gets the
            // shortest window that it accepts.
            duplicate_window: Duration::from_millis(100),
            ..Default::default()
        }
    }

    /// The stream, created if it does not exist. Settings that keep it from being a mirror of the log are corrected as far as the server allows; [`stream::inspect`]
    /// reports the others.
    pub async fn stream(&self) -> Result<Stream, BusError> {
        if self.replicas > 1 && !self.client.is_server_compatible(2, 10, 0) {
            let Some(version) = self.server_version() else { return Err(BusError("no server is reached".into())) };
            return Err(BusError(format!("replicas need nats-server 2.10 or newer; this is {version}")));
        }
        let wanted = self.stream_config();
        let found = self.jetstream.get_or_create_stream(&wanted).await.map_err(BusError::from_error)?;
        let theirs = &found.cached_info().config;
        let drifted = stream::drift(theirs, &wanted);
        if drifted.is_empty() {
            return Ok(found);
        }
        match self.jetstream.update_stream(stream::corrected(theirs, &wanted)).await {
            Ok(_) => tracing::warn!(?drifted, "settings of the stream were corrected"),
            Err(error) => tracing::error!(?drifted, %error, "settings of the stream cannot be corrected"),
        }
        self.jetstream.get_stream(self.stream_name()).await.map_err(BusError::from_error)
    }

    /// The stream, if it exists.
    pub async fn existing_stream(&self) -> Result<Option<Stream>, BusError> {
        use jetstream::ErrorCode;
        use jetstream::context::GetStreamErrorKind;
        match self.jetstream.get_stream(self.stream_name()).await {
            Ok(stream) => Ok(Some(stream)),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(e) if e.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
                GetStreamErrorKind::EmptyName
                | GetStreamErrorKind::Request
                | GetStreamErrorKind::InvalidStreamName
                | GetStreamErrorKind::JetStream(_) => Err(BusError::from_error(error)),
            },
        }
    }
}
