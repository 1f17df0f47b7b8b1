//! How a client reaches its cluster. Plain values; nothing here connects.

use std::{fmt, path::PathBuf, time::Duration};

/// Where the cluster is and how patient the client is.
#[derive(Clone, Debug)]
pub struct Config {
    /// Client addresses of members: `host:port`, `http://host:port`, `https://host:port`, `unix:path` or `unixs:path`.
    /// Calls are spread over all of them.
    pub endpoints: Vec<String>,
    /// TCP connections to each endpoint, at least 1. One is enough unless a single connection's flow control limits.
    pub connections_per_endpoint: usize,
    /// How long opening a connection may take.
    pub connect_timeout: Duration,
    /// How long one attempt of a unary call may take; `None` waits for ever. A write that runs out of it has an
    /// unknown outcome.
    pub request_timeout: Option<Duration>,
    /// Further attempts of a read that no member could serve. Writes are never repeated.
    pub read_retries: u32,
    /// Pause before the first repeated attempt and before a watch reconnects; doubles up to `backoff_max`.
    pub backoff_min: Duration,
    /// Longest pause between attempts.
    pub backoff_max: Duration,
    /// Idle time after which a connection is probed, which is how a silent network failure is noticed. etcd refuses
    /// probes more often than every 5 s.
    pub keepalive_interval: Duration,
    /// How long a probe may stay unanswered until the connection counts as broken.
    pub keepalive_timeout: Duration,
    /// Calls and watch streams end when their member loses its leader, so that they move on to another one.
    pub require_leader: bool,
    /// Who logs in, when it is first needed; `None`: nobody.
    pub credentials: Option<Credentials>,
    /// For encrypted connections; then also addresses without a scheme are encrypted.
    pub tls: Option<Tls>,
}

/// Files for encrypted connections, PEM. They are read for each connection, so that rotated ones count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Authorities that vouch for servers; needed unless `insecure_skip_verify`.
    pub cacert: Option<PathBuf>,
    /// What this client shows to servers that ask, together with `key`.
    pub cert: Option<PathBuf>,
    /// Key of `cert`.
    pub key: Option<PathBuf>,
    /// Believe any server: for tests only.
    pub insecure_skip_verify: bool,
}

/// A user and their password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Name.
    pub user: String,
    /// Password; sent in each login, never shown.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Config {
    /// Default settings for these endpoints.
    pub fn new<I, S>(endpoints: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        Self { endpoints: endpoints.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// The same, logging in as this user.
    #[must_use]
    pub fn with_user(self, user: impl Into<String>, password: impl Into<String>) -> Self {
        Self { credentials: Some(Credentials { user: user.into(), password: password.into() }), ..self }
    }
}

impl Config {
    /// The same, encrypted.
    #[must_use]
    pub fn with_tls(self, tls: Tls) -> Self {
        Self { tls: Some(tls), ..self }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            connections_per_endpoint: 1,
            connect_timeout: Duration::from_secs(2),
            request_timeout: Some(Duration::from_secs(10)),
            read_retries: 4,
            backoff_min: Duration::from_millis(25),
            backoff_max: Duration::from_secs(1),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(5),
            require_leader: false,
            credentials: None,
            tls: None,
        }
    }
}
