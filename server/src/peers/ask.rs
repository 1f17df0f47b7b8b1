//! Asks who takes part, before this member does: plain connections of its own, given up after one answer.

use std::time::Duration;

use daymark_raft::PeerStream;
use tokio::net::{TcpStream, UnixStream};

use super::{Introduction, wire};
use crate::config::Config;
use crate::config::values::{self, Url};
use crate::limits;

/// What the first of these peers that answers says.
pub fn introduction(urls: &[String], config: &Config) -> Option<Introduction> {
    let timeout = match config.cluster_is_new {
        true => limits::ASK_TIMEOUT_OF_FOUNDERS,
        false => limits::ASK_TIMEOUT,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.inspect_err(|error| tracing::error!(%error, "no peer can be asked")).ok()?;
    runtime.block_on(async {
        for url in urls {
            match ask(url, timeout).await {
                Ok(introduction) => return Some(introduction),
                // Founders start at the same time: that the others are not there yet is as it should be.
                Err(why) if config.cluster_is_new => tracing::debug!(url, why, "a peer did not say who takes part"),
                Err(why) => tracing::warn!(url, why, "a peer did not say who takes part"),
            }
        }
        None
    })
}

async fn ask(url: &str, timeout: Duration) -> Result<Introduction, String> {
    let url = values::parse_url(url)?;
    let connected = tokio::time::timeout(timeout, connect(&url)).await;
    let stream = connected.map_err(|_| "it took too long to connect".to_owned())?.map_err(|error| error.to_string())?;
    let asked = daymark_raft::ask(stream, wire::ask_introduction(), timeout).await;
    let answer = asked.map_err(|error| error.to_string())?;
    wire::decode_introduction(answer).map_err(str::to_owned)
}

async fn connect(url: &Url) -> std::io::Result<PeerStream> {
    Ok(match url.host_and_port() {
        Some(address) => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Box::new(stream)
        }
        None => Box::new(UnixStream::connect(&url.address).await?),
    })
}
