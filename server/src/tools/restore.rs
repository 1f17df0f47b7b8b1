//! `daymark snapshot restore`: a data directory out of a file of etcd's form, for one member or for each member of a new
//! cluster. All history above the compact revision is kept, leases, users and alarms too; members are those of the new
//! cluster. Every member that is restored from the same file with the same flags begins with the same state.

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use daymark_raft::MemberInfo;
use daymark_storage::LogId;
use daymark_storage::backend::rocks::{RocksBackend, RocksOptions};
use daymark_storage::disk::{Disk, RealDisk};
use daymark_storage::mvcc::import::{Import, Imported};
use daymark_storage::snapshot;
use daymark_storage::wal::{self, Identity, Vote, Wal, WalOptions};
use hashbrown::HashSet;

use super::etcd_file::{EtcdFile, Integrity};
use crate::config::Config;
use crate::config::flags::{self, Parsed};
use crate::founding;
use crate::limits;
use crate::state::lease::LeaseFact;
use crate::state::{alarms, auth, lease, members};

/// The state is made under this name and gets its own when it is whole.
const UNFINISHED_DIR: &str = "db.restoring";
/// Of the entries that a restored log begins behind.
const TERM: u64 = 1;

#[derive(Args, Clone, Debug)]
pub struct RestoreArgs {
    /// The file: from etcdctl or daymark snapshot save, or with --skip-hash-check member/snap/db of an etcd that is stopped.
    file: PathBuf,
    /// Where to: must not be there yet, or be empty. Default: name.etcd
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// The log's directory, if it is not to be in --data-dir.
    #[arg(long)]
    wal_dir: Option<PathBuf>,
    /// Name of the member that this directory will belong to.
    #[arg(long, default_value = "default")]
    name: String,
    /// All members of the new cluster: name=peer-url, separated by commas. The same for each of them.
    #[arg(long, default_value = "default=http://localhost:2380")]
    initial_cluster: String,
    /// What tells the new cluster from others that begin with the same members.
    #[arg(long, default_value = "etcd-cluster")]
    initial_cluster_token: String,
    /// Where the other members will reach this one, as in --initial-cluster.
    #[arg(long, default_value = "http://localhost:2380")]
    initial_advertise_peer_urls: String,
    /// Do not ask for a checksum behind the file.
    #[arg(long)]
    skip_hash_check: bool,
    /// Raise the revision by so much, so that clients who saw later ones do not see it go back. With --mark-compacted.
    #[arg(long, default_value_t = 0, value_name = "REVISIONS")]
    bump_revision: u64,
    /// Count everything up to the raised revision as compacted, so that watchers notice.
    #[arg(long)]
    mark_compacted: bool,
    /// Of no effect: there is nothing to map. Accepted so that scripts for etcdutl need no change.
    #[arg(long, hide = true)]
    initial_memory_map_size: Option<u64>,
}

/// Makes the directory.
pub fn restore(args: &RestoreArgs) -> anyhow::Result<()> {
    let bumps = args.bump_revision > 0;
    ensure!(bumps == args.mark_compacted, "--mark-compacted required if --bump-revision > 0");
    let config = args.config()?;
    let (identity, members) = founding::by_flags(&config)?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new());
    let wal_dir = config.wal_dir.clone().unwrap_or_else(|| config.data_dir.join("member").join("wal"));
    check_free(&*disk, &config.data_dir, &wal_dir, config.wal_dir.is_some())?;
    let (file, integrity) = EtcdFile::open(&args.file, !args.skip_hash_check)?;
    if integrity == Integrity::Unknown {
        eprintln!("the file's checksum is not looked at; its pages and records are");
    }
    let member = config.data_dir.join("member");
    disk.create_dir_all(&member)?;
    let _lock = disk.lock(&config.data_dir)?;
    let unfinished = member.join(UNFINISHED_DIR);
    let applied = LogId { term: TERM, index: members.len() as u64 };
    let revision = import(&file, &unfinished, applied, &members, i64::try_from(args.bump_revision)?)?;
    make_log(disk.clone(), &wal_dir, identity, applied)?;
    disk.rename(&unfinished, &snapshot::recover(&*disk, &member)?.dir)?;
    disk.sync_dir(&member)?;
    let (cluster, me) = (identity.cluster_id, identity.member_id);
    eprintln!("restored revision {revision} into {}", config.data_dir.display());
    eprintln!(
        "start the member with --name {} and this data directory; it is {me:x} of cluster {cluster:x}",
        args.name
    );
    Ok(())
}

impl RestoreArgs {
    /// What the member's own flags of these names mean.
    fn config(&self) -> anyhow::Result<Config> {
        let mut given = vec![
            format!("--name={}", self.name),
            format!("--initial-cluster={}", self.initial_cluster),
            format!("--initial-cluster-token={}", self.initial_cluster_token),
            format!("--initial-advertise-peer-urls={}", self.initial_advertise_peer_urls),
        ];
        let text = |dir: &Path| dir.to_str().map(str::to_owned).context("the directory's name is not UTF-8");
        for (flag, dir) in [("data-dir", &self.data_dir), ("wal-dir", &self.wal_dir)] {
            if let Some(dir) = dir {
                given.push(format!("--{flag}={}", text(dir)?));
            }
        }
        match flags::parse(given) {
            Ok(Parsed::Start(given)) => Ok(Config::from_given(&given).map_err(anyhow::Error::msg)?.0),
            Ok(_) => bail!("flags of a member were asked for"),
            Err(error) => bail!("{error:?}"),
        }
    }
}

/// Nothing is overwritten.
fn check_free(disk: &dyn Disk, data_dir: &Path, wal_dir: &Path, wal_is_apart: bool) -> anyhow::Result<()> {
    if disk.exists(data_dir)? {
        let names =
            disk.list(data_dir).with_context(|| format!("data-dir {:?} could not be read", data_dir.display()))?;
        ensure!(names.is_empty(), "data-dir {:?} not empty or could not be read", data_dir.display());
    }
    ensure!(!(wal_is_apart && disk.exists(wal_dir)?), "wal-dir {:?} exists", wal_dir.display());
    Ok(())
}

/// Fills the state; returns its revision.
fn import(file: &EtcdFile, dir: &Path, applied: LogId, members: &[MemberInfo], bump: i64) -> anyhow::Result<i64> {
    let backend = RocksBackend::open(RocksOptions::new(dir))?;
    let compact = file.compact_revision()?;
    let mut import = Import::begin(backend, compact)?;
    let bar = super::progress("restoring", file.reader.byte_len());
    file.changes(|change| {
        bar.inc((change.kv.key.len() + change.kv.value.len()) as u64 + 60);
        let (at, kv) = (change.at, &change.kv);
        if kv.key.is_empty() && at.main <= compact {
            // How etcd's own tools raise a revision.
            return Ok(());
        }
        let done = if change.is_delete {
            Imported::Delete
        } else {
            ensure!(kv.mod_revision == at.main, "the record of revision {at} says it is of {}", kv.mod_revision);
            let (create_revision, version, lease) = (kv.create_revision, kv.version, kv.lease);
            Imported::Put { value: &kv.value, create_revision, version, lease }
        };
        Ok(import.change(at, &kv.key, done)?)
    })?;
    bar.finish_and_clear();
    import_leases(file, &mut import)?;
    auth::import(&mut import, &file.auth()?)?;
    for alarm in file.alarms()? {
        alarms::import(&mut import, &alarm)?;
    }
    members::import(&mut import, applied, members)?;
    let revision = import.revision().max(compact) + bump;
    import.finish(applied, bump)?;
    Ok(revision)
}

fn import_leases(file: &EtcdFile, import: &mut Import) -> anyhow::Result<()> {
    let mut known = HashSet::new();
    for (number, record) in file.leases()?.into_iter().enumerate() {
        known.insert(record.id);
        let (ttl_secs, remaining_secs) = (record.ttl, record.remaining_ttl);
        lease::import(import, LeaseFact { id: record.id, ttl_secs, grant: number as u64 + 1, remaining_secs })?;
    }
    let mut attached = Vec::new();
    import.leased(&mut |key, id| {
        // As etcd: a key of a lease that has gone stays.
        if known.contains(&id) {
            attached.push((id, key.to_vec()));
        }
        Ok(())
    })?;
    for (id, key) in attached {
        lease::import_attachment(import, id, &key)?;
    }
    Ok(())
}

/// A log that begins, empty, behind the entries that the state stands for.
fn make_log(disk: Arc<dyn Disk>, dir: &Path, identity: Identity, begins_behind: LogId) -> anyhow::Result<()> {
    let options = WalOptions { segment_bytes: limits::WAL_SEGMENT_BYTES, ..WalOptions::new(dir, identity) };
    let (log, worker, _) = Wal::open(disk, options)?;
    let running = wal::run(worker, |error| tracing::error!(%error, "the log failed"));
    let (told, answer) = mpsc::channel();
    let tell = |told: mpsc::Sender<_>| {
        move |result| {
            // Whoever asked waits below.
            let _ = told.send(result);
        }
    };
    let vote = Vote { term: begins_behind.term, voted_for: Some(identity.member_id), committed: false };
    log.save_vote(vote, Box::new(tell(told.clone())))?;
    log.release(begins_behind)?;
    log.stop(Box::new(tell(told)));
    for _ in 0..2 {
        answer.recv_timeout(Duration::from_secs(60)).context("the log's thread does not answer")??;
    }
    running.join().map_err(|_| anyhow::anyhow!("the log's thread panicked"))
}
