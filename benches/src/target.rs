//! The servers under load: their addresses, and what they say about themselves before and after a run.

use anyhow::{Context, Result};
use daymark_client::{Client, Config, dial::Dialer};
use serde::Serialize;

use crate::cli::CommonArgs;

/// The servers' addresses, and how to connect to them.
pub fn addresses(args: &CommonArgs) -> Result<Vec<Dialer>> {
    let tls = args.tls();
    args.endpoints.iter().map(|endpoint| Ok(Dialer::new(endpoint, tls.as_ref())?)).collect()
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

/// Asks every server for its status.
pub fn status(args: &CommonArgs) -> Result<Vec<Member>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let config = Config { tls: args.tls(), ..Config::new(&args.endpoints) };
        let maintenance = Client::new(config)?.maintenance();
        let mut members = Vec::new();
        for endpoint in &args.endpoints {
            let status = maintenance.status(endpoint).await;
            let status = status.with_context(|| format!("{endpoint} does not answer a status request"))?;
            members.push(Member {
                endpoint: endpoint.clone(),
                version: status.version,
                revision: status.header.map_or(0, |header| header.revision),
                db_size_bytes: status.db_size,
                db_size_in_use_bytes: status.db_size_in_use,
            });
        }
        Ok(members)
    })
}
