//! Connections: what each may cost, how long each may be silent, and how many there may be.
//!
//! A connection that waits costs its socket, a read buffer and the state of the protocol: all of them share one router. A client has [`Connections::header`] from the
//! first byte of a request to the last one of its header, however it spreads the bytes; nobody keeps a place by sending slowly.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use access::source::Source;
use axum::Router;
use axum::body::Body;
use axum::http::{Request, Version};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep};
use tokio_io_timeout::TimeoutStream;
use tower::ServiceExt as _;

use crate::client_address::{Peer, TrustedProxies};

/// Bounds of what connections cost.
#[derive(Clone, Copy, Debug)]
pub struct Connections {
    /// Connections at a time. Further ones wait in the kernel's queue.
    pub at_a_time: usize,
    /// Connections at a time from one address (IPv6: one /56), trusted proxies aside. Further ones are closed at once.
    pub per_address: usize,
    /// From the first byte of a request, or the beginning of a connection, to the end of the request's header.
    pub header: Duration,
    /// How long a connection may be silent, between two requests or within one.
    pub idle: Duration,
    /// How long a client may take nothing of an answer.
    pub stalled: Duration,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            at_a_time: 20_000,
            per_address: 10_000,
            header: Duration::from_secs(15),
            idle: Duration::from_secs(75),
            stalled: Duration::from_secs(10),
        }
    }
}

/// The largest header of a request, in bytes, over HTTP/1 and HTTP/2.
const HEADER: usize = 32 * 1024;
/// Requests of one HTTP/2 connection at a time.
const STREAMS: u32 = 64;
/// How often the other end of a quiet HTTP/2 connection is asked whether it is there, and how long it has to answer.
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(15));
/// The pause after a connection could not be accepted, for want of file descriptors mostly.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// How many connections there are from each address.
#[derive(Clone, Default)]
struct PerAddress(Arc<Mutex<HashMap<Source, usize>>>);

/// A connection that counts for its address until it is dropped.
struct Counted {
    all: PerAddress,
    source: Source,
}

impl PerAddress {
    fn count(&self, source: Source, most: usize) -> Option<Counted> {
        let mut all = self.0.lock();
        let open = all.entry(source).or_default();
        if *open >= most {
            return None;
        }
        *open += 1;
        drop(all);
        Some(Counted { all: self.clone(), source })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut all = self.all.0.lock();
        if let Some(open) = all.get_mut(&self.source) {
            *open -= 1;
            if *open == 0 {
                all.remove(&self.source);
            }
        }
    }
}

/// What the stream and the service of a connection know of each other.
#[derive(Default)]
struct Phase {
    /// Requests whose answers are not finished.
    requests: AtomicUsize,
    /// Whether a request has come over HTTP/2, whose requests do not follow one another.
    multiplexed: AtomicBool,
}

/// A request that is being answered, until its answer is written.
struct Answering(Arc<Phase>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A stream that fails when the header of a request takes too long.
struct HeaderDeadline {
    stream: Pin<Box<TimeoutStream<TcpStream>>>,
    phase: Arc<Phase>,
    allowed: Duration,
    deadline: Pin<Box<Sleep>>,
    running: bool,
}

impl HeaderDeadline {
    fn new(stream: Pin<Box<TimeoutStream<TcpStream>>>, phase: Arc<Phase>, allowed: Duration) -> Self {
        let deadline = Box::pin(tokio::time::sleep_until(Instant::now() + allowed));
        Self { stream, phase, allowed, deadline, running: true }
    }
}

impl AsyncRead for HeaderDeadline {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let waits = self.phase.requests.load(Ordering::Acquire) == 0 && !self.phase.multiplexed.load(Ordering::Acquire);
        self.running &= waits;
        if self.running && self.deadline.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the header of a request took too long")));
        }
        ready!(self.stream.as_mut().poll_read(context, buffer))?;
        if waits && !self.running {
            let until = Instant::now() + self.allowed;
            self.deadline.as_mut().reset(until);
            self.running = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HeaderDeadline {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(context)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Both protocols, with their bounds.
fn protocols() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    // The deadline of headers is the stream's, which knows both protocols, and does not count the time between two requests.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(HEADER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(HEADER).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(20)
        .max_send_buf_size(64 * 1024)
        .initial_stream_window_size(64 * 1024)
        .initial_connection_window_size(256 * 1024)
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1);
    builder
}

/// Serves until `shutdown`, then finishes what it has accepted, for `grace` at most.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    connections: Connections,
    proxies: &TrustedProxies,
    shutdown: impl Future<Output = ()> + Send,
    grace: Duration,
) {
    // The state is put into the routes once; a copy of a router with its state is a reference.
    let router = router.with_state(());
    let (protocols, graceful) = (protocols(), GracefulShutdown::new());
    let (places, per_address) = (Arc::new(Semaphore::new(connections.at_a_time)), PerAddress::default());
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await;
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            () = &mut shutdown => break,
            accepted = accepted => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                accept_again(&error).await;
                continue;
            }
        };
        let source = Source::of(peer.ip());
        let most = if proxies.contains(peer.ip()) { usize::MAX } else { connections.per_address };
        let Some(counted) = per_address.count(source, most) else {
            metrics::counter!("tenure_connections_refused_total").increment(1);
            continue;
        };
        let served = one(&protocols, stream, peer, router.clone(), &connections);
        let served = graceful.watch(served);
        tokio::spawn(async move {
            let _held = (place, counted);
            if let Err(error) = served.await {
                tracing::debug!(%error, "a connection has ended");
            }
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(grace, graceful.shutdown()).await;
}

/// One connection.
fn one(
    protocols: &Builder<TokioExecutor>,
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    connections: &Connections,
) -> impl hyper_util::server::graceful::GracefulConnection<Error = Box<dyn std::error::Error + Send + Sync>> + Send + 'static {
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_read_timeout(Some(connections.idle));
    stream.set_write_timeout(Some(connections.stalled));
    let phase = Arc::new(Phase::default());
    let stream = HeaderDeadline::new(Box::pin(stream), phase.clone(), connections.header);
    let service = service_fn(move |request: Request<Incoming>| {
        phase.requests.fetch_add(1, Ordering::AcqRel);
        let answering = Answering(phase.clone());
        if request.version() == Version::HTTP_2 {
            phase.multiplexed.store(true, Ordering::Release);
        }
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Peer(peer.ip()));
        let answer = router.clone().oneshot(request);
        async move {
            let answer = answer.await?;
            // Until the last part of the answer is written, the connection waits for no header.
            Ok::<_, std::convert::Infallible>(answer.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _still = &answering;
                    frame
                }))
            }))
        }
    });
    protocols.serve_connection(TokioIo::new(stream), service).into_owned()
}

async fn accept_again(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    // These say something of one connection; everything else of the process.
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        tracing::error!(%error, "connections cannot be accepted");
        pause().await;
    }
}

#[expect(clippy::disallowed_methods, reason = "nothing tells when there are file descriptors again")]
async fn pause() {
    tokio::time::sleep(ACCEPT_AGAIN).await;
}
