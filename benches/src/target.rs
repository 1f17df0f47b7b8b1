//! The servers under load: their addresses, and what they say about themselves before and after a run.

use anyhow::{Context, Result, bail};
use daymark_client::{Client, Config};
use serde::Serialize;

/// Addresses as `host:port`, without a scheme.
pub fn addresses(endpoints: &[String]) -> Result<Vec<String>> {
    let plain = |endpoint: &String| {
        let address = endpoint.strip_prefix("http://").unwrap_or(endpoint).trim_end_matches('/');
        match address.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && !address.contains("//") && port.parse::<u16>().is_ok() => {
                Ok(address.to_owned())
            }
            _ => bail!("endpoint {endpoint:?} is not host:port or http://host:port"),
        }
    };
    endpoints.iter().map(plain).collect()
}

/// What one member says about itself.
#[derive(Clone, Debug, Serialize)]
pub struct Member {
    pub endpoint: String,
    pub version: String,
    pub revision: i64,
    pub db_size_bytes: i64,
    pub db_size_in_use_bytes: i64,
}

/// Asks every address for its status.
pub fn status(addresses: &[String]) -> Result<Vec<Member>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let maintenance = Client::new(Config::new(addresses))?.maintenance();
        let mut members = Vec::new();
        for address in addresses {
            let status = maintenance.status(address).await;
            let status = status.with_context(|| format!("{address} does not answer a status request"))?;
            members.push(Member {
                endpoint: address.clone(),
                version: status.version,
                revision: status.header.map_or(0, |header| header.revision),
                db_size_bytes: status.db_size,
                db_size_in_use_bytes: status.db_size_in_use,
            });
        }
        Ok(members)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lose_their_scheme_and_must_have_a_port() {
        let given = ["127.0.0.1:2379", "http://[::1]:80/"].map(str::to_owned);
        assert_eq!(addresses(&given).expect("valid"), ["127.0.0.1:2379", "[::1]:80"]);
        for bad in ["127.0.0.1", "https://127.0.0.1:2379", ":2379", "host:99999", ""] {
            assert!(addresses(&[bad.to_owned()]).is_err(), "{bad:?}");
        }
    }
}
