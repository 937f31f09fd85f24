//! Looking up what stands in the DNS, through a port.

use std::net::SocketAddr;
use std::time::Duration;

use futures::future::BoxFuture;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;

/// How long all attempts of a lookup may take together.
const PATIENCE: Duration = Duration::from_secs(8);

/// The DNS did not answer.
#[derive(Debug, thiserror::Error)]
#[error("the DNS did not answer: {0}")]
pub struct DnsError(String);

/// Looks up TXT records.
pub trait TxtLookup: Send + Sync + 'static {
    /// The texts of all TXT records of a name, each in one piece; none where there is nothing of this name.
    fn txt<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<String>, DnsError>>;
}

/// The DNS, asked anew each time: whoever has just made a record does not want to hear what was there before.
pub struct Dns {
    resolver: TokioResolver,
}

impl Dns {
    /// By the machine's own settings, or by one server.
    pub fn new(server: Option<SocketAddr>) -> Result<Self, DnsError> {
        let failed = |error: hickory_resolver::net::NetError| DnsError(error.to_string());
        let mut builder = match server {
            None => TokioResolver::builder_tokio().map_err(failed)?,
            Some(server) => {
                let mut ways = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
                ways.iter_mut().for_each(|way| way.port = server.port());
                let config = ResolverConfig::from_name_servers(vec![NameServerConfig::new(server.ip(), true, ways.to_vec())]);
                TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            }
        };
        builder.options_mut().cache_size = 0;
        Ok(Self { resolver: builder.build().map_err(failed)? })
    }

    async fn look_up(&self, name: &str) -> Result<Vec<String>, DnsError> {
        // The dot at the end: this name and no search list.
        let found = tokio::time::timeout(PATIENCE, self.resolver.txt_lookup(format!("{name}."))).await;
        let found = match found.map_err(|_| DnsError("no answer in time".into()))? {
            Ok(found) => found,
            Err(error) if error.is_no_records_found() => return Ok(vec![]),
            Err(error) => return Err(DnsError(error.to_string())),
        };
        let text = |data: &RData| {
            let RData::TXT(txt) = data else { return None };
            Some(String::from_utf8_lossy(&txt.txt_data.concat()).into_owned())
        };
        Ok(found.answers().iter().filter_map(|record| text(&record.data)).collect())
    }
}

impl TxtLookup for Dns {
    fn txt<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<String>, DnsError>> {
        Box::pin(self.look_up(name))
    }
}
