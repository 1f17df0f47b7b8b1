//! Asks who takes part, before this member does: plain connections of its own, given up after one answer.

use std::time::Duration;

use super::{Introduction, wire};
use crate::config::Config;
use crate::limits;
use crate::net::{PeerTls, peers};

/// What the first of these peers that answers says.
pub fn introduction(urls: &[String], config: &Config) -> Option<Introduction> {
    let timeout = match config.cluster_is_new {
        true => limits::ASK_TIMEOUT_OF_FOUNDERS,
        false => limits::ASK_TIMEOUT,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.inspect_err(|error| tracing::error!(%error, "no peer can be asked")).ok()?;
    let tls = config.peer_tls.as_ref().map(PeerTls::open).transpose();
    // The start itself meets the same error next, and says what to do.
    let tls = tls.inspect_err(|error| tracing::error!(cause = %error.cause, "no peer can be asked")).ok()?;
    runtime.block_on(async {
        for url in urls {
            match ask(url, tls.as_deref(), timeout).await {
                Ok(introduction) => return Some(introduction),
                // Founders start at the same time: that the others are not there yet is as it should be.
                Err(why) if config.cluster_is_new => tracing::debug!(url, why, "a peer did not say who takes part"),
                Err(why) => tracing::warn!(url, why, "a peer did not say who takes part"),
            }
        }
        None
    })
}

async fn ask(url: &str, tls: Option<&PeerTls>, timeout: Duration) -> Result<Introduction, String> {
    let dialed = tokio::time::timeout(timeout, peers::dial_url(url, tls)).await;
    let stream = dialed.map_err(|_| "it took too long to connect".to_owned())?.map_err(|error| error.to_string())?;
    let asked = daymark_raft::ask(stream, wire::ask_introduction(), timeout).await;
    let answer = asked.map_err(|error| error.to_string())?;
    wire::decode_introduction(answer).map_err(str::to_owned)
}
