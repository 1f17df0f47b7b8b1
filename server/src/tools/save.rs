//! `daymark snapshot save`: the state of one running member into a file. Written aside, checked, durable, and only then under
//! its name.

#![allow(clippy::disallowed_methods, reason = "it runs where a client does, on that machine's files")]

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use daymark_client::Client;
use daymark_client::config::{Config, Tls};
use sha2::{Digest, Sha256};

const CHECKSUM_BYTES: usize = 32;

#[derive(Args, Clone, Debug)]
pub struct SaveArgs {
    /// Where to. What is there is replaced.
    file: PathBuf,
    /// The one member to ask: its state is what is saved.
    #[arg(long, default_value = "127.0.0.1:2379")]
    endpoints: String,
    /// Authorities that vouch for the member, PEM: the connection is encrypted then.
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// Certificate to show, PEM, with --key.
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Key of --cert, PEM.
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Encrypt, and believe any member.
    #[arg(long)]
    insecure_skip_tls_verify: bool,
    /// Who asks, as name:password, or a name with --password.
    #[arg(long)]
    user: Option<String>,
    /// Password of --user.
    #[arg(long, requires = "user")]
    password: Option<String>,
}

impl SaveArgs {
    fn config(&self) -> anyhow::Result<Config> {
        ensure!(
            !self.endpoints.contains(','),
            "snapshot must be requested to one selected node, not multiple {:?}",
            self.endpoints
        );
        let mut config = Config::new([&self.endpoints]);
        let encrypted = self.cacert.is_some() || self.cert.is_some() || self.insecure_skip_tls_verify;
        if encrypted || self.endpoints.starts_with("https://") {
            config = config.with_tls(Tls {
                cacert: self.cacert.clone(),
                cert: self.cert.clone(),
                key: self.key.clone(),
                insecure_skip_verify: self.insecure_skip_tls_verify,
            });
        }
        // Until the first piece: the member makes the file before it sends it.
        config.request_timeout = Some(Duration::from_secs(3600));
        Ok(match (&self.user, &self.password) {
            (None, _) => config,
            (Some(user), Some(password)) => config.with_user(user, password),
            (Some(both), None) => match both.split_once(':') {
                Some((user, password)) => config.with_user(user, password),
                None => bail!("--user has no password; give name:password or --password"),
            },
        })
    }
}

/// Gets the state and writes it.
pub fn save(args: &SaveArgs) -> anyhow::Result<()> {
    let config = args.config()?;
    let part = PathBuf::from(format!("{}.part", args.file.display()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let saved = runtime.block_on(fetch(config, &args.endpoints, &part));
    if saved.is_err() {
        // What is there of it is of no use; that it stays is not what went wrong.
        let _ = fs::remove_file(&part);
    }
    let version = saved?;
    fs::rename(&part, &args.file).with_context(|| format!("renaming to {}", args.file.display()))?;
    let dir = args.file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()?;
    println!("Snapshot saved at {}", args.file.display());
    if !version.is_empty() {
        println!("Server version {version}");
    }
    Ok(())
}

async fn fetch(config: Config, endpoint: &str, part: &Path) -> anyhow::Result<String> {
    let client = Client::new(config)?;
    // Readable by its owner only: it holds everything, hashes of passwords among it.
    let options = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(part);
    let mut file = options.with_context(|| format!("could not open {}", part.display()))?;
    let mut tail = Tail::default();
    let bar = super::progress("saving", 0);
    let version = client
        .maintenance()
        .snapshot(endpoint, |piece, remaining| {
            file.write_all(&piece)?;
            tail.add(&piece);
            bar.set_length(tail.bytes + remaining);
            bar.set_position(tail.bytes);
            Ok(())
        })
        .await?;
    bar.finish_and_clear();
    tail.check()?;
    file.sync_all()?;
    Ok(version)
}

/// Hashes everything but what is last, which is the hash.
#[derive(Default)]
struct Tail {
    hasher: Sha256,
    bytes: u64,
    held: Vec<u8>,
}

impl Tail {
    fn add(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        self.held.extend_from_slice(piece);
        let done = self.held.len().saturating_sub(CHECKSUM_BYTES);
        self.hasher.update(&self.held[..done]);
        self.held.drain(..done);
    }

    fn check(self) -> anyhow::Result<()> {
        ensure!(self.bytes % 512 == CHECKSUM_BYTES as u64, "sha256 checksum not found [bytes: {}]", self.bytes);
        ensure!(self.hasher.finalize()[..] == self.held[..], "what was received is not what was sent: save it again");
        Ok(())
    }
}
