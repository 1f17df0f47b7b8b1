//! The connections of a client: several to each endpoint, used in turn. Each one reconnects by itself; which call may be
//! repeated on another one is decided in `retry`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tonic::{
    Request,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

use crate::{
    config::Config,
    dial::Dialer,
    error::{ClientError, Result},
    login::Login,
};

/// Largest answer that is accepted, like etcd's own client: the server bounds what it sends.
pub(crate) const ANSWER_BYTES_MAX: usize = i32::MAX as usize;

const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// The connections of one client.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    /// Endpoint after endpoint, and round again, so that consecutive calls go to different members.
    connections: Vec<Channel>,
    next: AtomicUsize,
    /// Present if the configuration names a user.
    login: Option<Login>,
}

impl Pool {
    pub(crate) fn new(config: Config) -> Result<Self> {
        if config.endpoints.is_empty() {
            return Err(ClientError::Config("no endpoint given".to_owned()));
        }
        let endpoints = config.endpoints.iter().map(|e| endpoint(e, &config)).collect::<Result<Vec<_>>>()?;
        let rounds = config.connections_per_endpoint.max(1);
        let connect = |(endpoint, dialer): &(Endpoint, Dialer)| endpoint.connect_with_connector_lazy(dialer.clone());
        let connections = (0..rounds).flat_map(|_| endpoints.iter().map(connect)).collect();
        let login = config.credentials.clone().map(Login::new);
        Ok(Self { shared: Arc::new(Shared { config, connections, next: AtomicUsize::new(0), login }) })
    }

    /// The connection whose turn it is.
    pub(crate) fn next(&self) -> Channel {
        let turn = self.shared.next.fetch_add(1, Ordering::Relaxed);
        self.shared.connections[turn % self.shared.connections.len()].clone()
    }

    /// The first connection to one endpoint, which must be written as in the configuration.
    pub(crate) fn to(&self, endpoint: &str) -> Result<Channel> {
        let position = self.config().endpoints.iter().position(|e| e == endpoint);
        let position = position.ok_or_else(|| ClientError::Config(format!("{endpoint} is not an endpoint")))?;
        Ok(self.shared.connections[position].clone())
    }

    pub(crate) fn config(&self) -> &Config {
        &self.shared.config
    }

    /// How this client logs in.
    pub(crate) fn login(&self) -> Option<&Login> {
        self.shared.login.as_ref()
    }

    /// A message with the metadata that every call carries: the present token among them.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if self.shared.config.require_leader {
            request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        }
        if let Some(token) = self.login().and_then(Login::token) {
            request.metadata_mut().insert("token", token);
        }
        request
    }

    /// Pause before attempt `attempt` (1 is the first repeated one).
    pub(crate) fn backoff(&self, attempt: u32) -> Duration {
        let Config { backoff_min, backoff_max, .. } = self.shared.config;
        backoff_min.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(backoff_max)
    }
}

fn endpoint(address: &str, config: &Config) -> Result<(Endpoint, Dialer)> {
    let dialer = Dialer::new(address, config.tls.as_ref())?;
    let refused = |error: &dyn std::fmt::Display| ClientError::Config(format!("endpoint {address:?}: {error}"));
    // Tonic itself connects to nothing; the origin is what requests name.
    let endpoint = Endpoint::from_shared(format!("http://{}", dialer.authority())).map_err(|error| refused(&error))?;
    let origin = format!("{}://{}", dialer.scheme(), dialer.authority()).parse().map_err(|error| refused(&error))?;
    let endpoint = endpoint
        .origin(origin)
        .connect_timeout(config.connect_timeout)
        .http2_keep_alive_interval(config.keepalive_interval)
        .keep_alive_timeout(config.keepalive_timeout)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    Ok((endpoint, dialer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn endpoints_are_checked_before_anything_connects() {
        for bad in [vec![], vec!["http://"], vec!["https://127.0.0.1:1"], vec!["127.0.0.1:1", "a b:1"]] {
            let pool = Pool::new(Config::new(bad.clone()));
            assert!(matches!(pool, Err(ClientError::Config(_))), "{bad:?} was accepted");
        }
        let pool = Pool::new(Config::new(["127.0.0.1:1", "http://127.0.0.1:2"])).expect("both forms are accepted");
        assert!(pool.to("127.0.0.1:1").is_ok());
        assert!(pool.to("127.0.0.1:3").is_err());
    }

    #[tokio::test]
    async fn backoff_doubles_up_to_its_bound() {
        let pool = Pool::new(Config::new(["127.0.0.1:1"])).expect("valid");
        let millis: Vec<_> = [1, 2, 3, 6, 7, 40].iter().map(|&n| pool.backoff(n).as_millis()).collect();
        assert_eq!(millis, [25, 50, 100, 800, 1000, 1000]);
    }
}
