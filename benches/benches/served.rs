//! A server process, of Daymark or etcd, under what needs many keys or many leases: counting, lists page by page, a
//! million idle leases, renewals, and the memory that is left. Starts the process itself and prints figures; the load
//! comes from here, so only the server's own CPU and memory are compared.
//!
//! `cargo bench -p daymark-benches --bench served -- --server PATH [--keys N] [--leases N] [PART ...]`, where a part is
//! `counts`, `lists`, `leases` or `deletes` (all of them if none is named).

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Parser;
use daymark_api::etcdserverpb::LeaseKeepAliveRequest;
use daymark_api::etcdserverpb::lease_client::LeaseClient;
use daymark_client::kv::GetOptions;
use daymark_client::txn::{Op, Txn};
use daymark_client::{Client, Config, KeyRange};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};

const VALUE_BYTES: usize = 256;
const PAGE: i64 = 500;
/// Puts of one transaction: etcd allows 128.
const PUTS_PER_TXN: u64 = 100;
const WRITERS: u64 = 64;
const RENEWALS: usize = 100_000;
const STREAMS: usize = 4;
/// Renewals that are under way on one stream.
const RENEWALS_IN_FLIGHT: usize = 64;

#[derive(Parser, Clone)]
struct Arguments {
    /// The server's binary.
    #[arg(long)]
    server: String,
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    #[arg(long, default_value_t = 1_000_000)]
    leases: u64,
    /// More flags for the server, divided by spaces.
    #[arg(long, default_value = "")]
    flags: String,
    /// Given by Cargo.
    #[arg(long)]
    bench: bool,
    parts: Vec<String>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(&arguments))
}

async fn run(arguments: &Arguments) -> Result<()> {
    let wants = |part: &str| arguments.parts.is_empty() || arguments.parts.iter().any(|named| named == part);
    for part in &arguments.parts {
        if !["counts", "lists", "leases", "deletes"].contains(&&part[..]) {
            bail!("{part} is no part");
        }
    }
    if wants("counts") {
        counts(arguments).await.context("counts")?;
    }
    if wants("lists") || wants("deletes") {
        let mut server = Server::start(arguments)?;
        server.fill(arguments.keys).await?;
        if wants("lists") {
            lists(&server, arguments.keys).await.context("lists")?;
        }
        if wants("deletes") {
            deletes(&server).await.context("deletes")?;
        }
        server.stop();
    }
    if wants("leases") {
        leases(arguments).await.context("leases")?;
    }
    Ok(())
}

/// A member on its own, in a directory that goes with it.
struct Server {
    arguments: Arguments,
    dir: tempfile::TempDir,
    port: u16,
    process: Child,
}

impl Server {
    fn start(arguments: &Arguments) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let port = 20_000 + rand::rng().random_range(0..5_000) * 2;
        let process = spawn(arguments, &dir, port)?;
        Ok(Self { arguments: arguments.clone(), dir, port, process })
    }

    fn pid(&self) -> u32 {
        self.process.id()
    }

    async fn client(&self) -> Result<Client> {
        let mut config = Config::new([format!("127.0.0.1:{}", self.port)]);
        config.connections_per_endpoint = 8;
        config.request_timeout = Some(Duration::from_secs(120));
        let client = Client::new(config)?;
        let begun = Instant::now();
        while let Err(error) = client.kv().get("ready").await {
            if begun.elapsed() > Duration::from_secs(60) {
                return Err(error.into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(client)
    }

    /// Ordered keys, by transactions.
    async fn fill(&self, keys: u64) -> Result<()> {
        let client = self.client().await?;
        let (begun, cpu) = (Instant::now(), cpu_seconds(self.pid())?);
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let kv = client.kv();
            tasks.spawn(async move {
                let mut random = SmallRng::seed_from_u64(writer);
                for txn in (writer..keys.div_ceil(PUTS_PER_TXN)).step_by(WRITERS as usize) {
                    let numbers = txn * PUTS_PER_TXN..((txn + 1) * PUTS_PER_TXN).min(keys);
                    let puts = numbers.map(|n| Op::put(key(n), value(&mut random), Default::default()));
                    kv.txn(puts.fold(Txn::new(), |txn, put| txn.then([put]))).await?;
                }
                Ok::<_, daymark_client::ClientError>(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        let cpu = (cpu_seconds(self.pid())? - cpu) * 1e6 / keys as f64;
        println!(
            "filled: {keys} keys in {:.1} s, {cpu:.1} us CPU each, resident {} MB",
            begun.elapsed().as_secs_f64(),
            self.resident_mb()?
        );
        Ok(())
    }

    fn resident_mb(&self) -> Result<u64> {
        Ok(status_kb(self.pid(), "VmRSS")? / 1024)
    }

    /// After so long it is assumed that nothing goes on.
    async fn settled_mb(&self) -> Result<u64> {
        tokio::time::sleep(Duration::from_secs(5)).await;
        self.resident_mb()
    }

    fn end(&mut self, signal: &str) {
        let pid = self.pid().to_string();
        let _ = Command::new("kill").args([signal, &pid]).status();
        let _ = self.process.wait();
    }

    fn stop(&mut self) {
        self.end("-TERM");
    }

    /// Ends it and starts it again; returns the time until it answers.
    async fn restart(&mut self, signal: &str) -> Result<Duration> {
        self.end(signal);
        let begun = Instant::now();
        self.process = spawn(&self.arguments, &self.dir, self.port)?;
        self.client().await?;
        Ok(begun.elapsed())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(arguments: &Arguments, dir: &tempfile::TempDir, port: u16) -> Result<Child> {
    let [client, peer] = [port, port + 1].map(|port| format!("http://127.0.0.1:{port}"));
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.path().join("log"))?;
    let mut command = Command::new(&arguments.server);
    command
        .args(["--data-dir", &dir.path().join("data").to_string_lossy()])
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}"), "--quota-backend-bytes", "8589934592"])
        .args(arguments.flags.split_whitespace())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    command.spawn().with_context(|| format!("starting {}", arguments.server))
}

fn key(number: u64) -> Bytes {
    format!("/registry/pods/default/pod-{number:010}").into()
}

fn value(random: &mut SmallRng) -> Bytes {
    let mut value = vec![0; VALUE_BYTES];
    random.fill_bytes(&mut value);
    value.into()
}

fn prefix() -> KeyRange {
    KeyRange::prefix("/registry/pods/")
}

fn everything() -> KeyRange {
    KeyRange::between("\0", "\0")
}

fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(ticks as f64 / 100.0)
}

fn status_kb(pid: u32, name: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(line.context("no such line")?.trim().trim_end_matches(" kB").parse()?)
}

fn percentile(sorted: &[Duration], part: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * part) as usize]
}

async fn time_counts(client: &Client, what: &str, times: usize, pause: Duration) -> Result<()> {
    let options = GetOptions { count_only: true, ..GetOptions::default() };
    let mut took = Vec::new();
    let mut count = 0;
    for number in 0..times {
        let range = if number % 2 == 0 { everything() } else { prefix() };
        let begun = Instant::now();
        count = client.kv().get_with(range, options.clone()).await?.count;
        took.push(begun.elapsed());
        tokio::time::sleep(pause).await;
    }
    let first = took[0];
    took.sort_unstable();
    println!(
        "count {what}: {count} keys; first {first:.2?}, p50 {:.2?}, p99 {:.2?}, max {:.2?}",
        percentile(&took, 0.5),
        percentile(&took, 0.99),
        took[took.len() - 1]
    );
    Ok(())
}

/// Random keys by single puts, as fast as this client can; counts meanwhile, afterwards, and after restarts.
async fn counts(arguments: &Arguments) -> Result<()> {
    let mut server = Server::start(arguments)?;
    let client = server.client().await?;
    let keys = arguments.keys;
    let (begun, cpu) = (Instant::now(), cpu_seconds(server.pid())?);
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let kv = client.kv();
        tasks.spawn(async move {
            let mut random = SmallRng::seed_from_u64(writer);
            for _ in (writer..keys).step_by(WRITERS as usize) {
                let key = format!("/registry/pods/{:016x}", random.random::<u64>());
                kv.put(key, value(&mut random)).await?;
            }
            Ok::<_, daymark_client::ClientError>(())
        });
    }
    while tasks.len() == WRITERS as usize {
        time_counts(&client, "while keys come", 50, Duration::from_millis(50)).await?;
        tasks.try_join_next().transpose()?.transpose()?;
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let each = (cpu_seconds(server.pid())? - cpu) * 1e6 / keys as f64;
    println!("{keys} keys in {:.1} s, {each:.1} us CPU each, counts included", begun.elapsed().as_secs_f64());
    time_counts(&client, "after it", 200, Duration::ZERO).await?;
    println!("resident {} MB, a little later {} MB", server.resident_mb()?, server.settled_mb().await?);
    for signal in ["-TERM", "-KILL"] {
        let took = server.restart(signal).await?;
        let client = server.client().await?;
        println!("{signal}: answers after {took:.2?}, resident {} MB", server.resident_mb()?);
        time_counts(&client, "after a restart", 200, Duration::ZERO).await?;
    }
    server.stop();
    Ok(())
}

/// All keys in pages, at the revision of the first.
async fn lists(server: &Server, keys: u64) -> Result<()> {
    let client = server.client().await?;
    for round in ["first", "second"] {
        let (begun, cpu) = (Instant::now(), cpu_seconds(server.pid())?);
        let (mut found, mut revision, mut start, mut pages) = (0, 0, Bytes::from("/registry/pods/"), Vec::new());
        loop {
            let options = GetOptions { limit: PAGE, revision, ..GetOptions::default() };
            let asked = Instant::now();
            let page = client.kv().get_with(KeyRange::between(start, "/registry/pods0"), options).await?;
            pages.push(asked.elapsed());
            assert_eq!(page.count as u64, keys - found, "what is behind is counted");
            revision = page.header.context("a header")?.revision;
            found += page.kvs.len() as u64;
            let Some(last) = page.kvs.last().filter(|_| page.more) else { break };
            start = [&last.key[..], &[0]].concat().into();
        }
        assert_eq!(found, keys);
        let cpu = cpu_seconds(server.pid())? - cpu;
        pages.sort_unstable();
        println!(
            "list, {round} time: {found} keys in {:.2} s, server CPU {cpu:.2} s ({:.2} us a pair); page p50 {:.2?}, max {:.2?}",
            begun.elapsed().as_secs_f64(),
            cpu * 1e6 / found as f64,
            percentile(&pages, 0.5),
            pages[pages.len() - 1]
        );
    }
    Ok(())
}

/// Everything in one request.
async fn deletes(server: &Server) -> Result<()> {
    let client = server.client().await?;
    let (begun, before) = (Instant::now(), server.resident_mb()?);
    let writer = client.clone();
    let others = tokio::spawn(async move {
        let mut longest = Duration::ZERO;
        loop {
            let begun = Instant::now();
            if writer.kv().put("other", "value").await.is_err() {
                return longest;
            }
            longest = longest.max(begun.elapsed());
            if longest > Duration::from_millis(300) && begun.elapsed() < Duration::from_millis(100) {
                return longest;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let deleted = client.kv().delete(prefix()).await?.deleted;
    let took = begun.elapsed();
    println!(
        "one DeleteRange: {deleted} keys in {took:.2?}, resident {before} MB before, at most {} MB",
        status_kb(server.pid(), "VmHWM")? / 1024
    );
    tokio::time::sleep(Duration::from_millis(500)).await;
    match others.is_finished() {
        true => println!("another writer waited for {:.2?}", others.await?),
        false => others.abort(),
    }
    time_counts(&client, "after it", 20, Duration::from_millis(100)).await
}

/// Leases without keys: what they take, what renewing costs, a restart with them, and writes while they end.
async fn leases(arguments: &Arguments) -> Result<()> {
    let mut server = Server::start(arguments)?;
    let client = server.client().await?;
    let before = server.settled_mb().await?;
    let ids = grant(&server, &client, arguments.leases, 3600).await?;
    println!("resident {before} MB before, {} MB with {} leases", server.settled_mb().await?, ids.len());
    renew(&server, &ids).await?;
    println!("resident {} MB after renewals", server.settled_mb().await?);
    for signal in ["-TERM", "-KILL"] {
        let took = server.restart(signal).await?;
        println!("{signal}: answers after {took:.2?}, resident {} MB", server.settled_mb().await?);
    }
    renew(&server, &ids).await?;
    server.stop();
    ending(arguments).await
}

async fn grant(server: &Server, client: &Client, count: u64, ttl_secs: i64) -> Result<Vec<i64>> {
    let (begun, cpu) = (Instant::now(), cpu_seconds(server.pid())?);
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..4 * WRITERS {
        let lease = client.lease();
        tasks.spawn(async move {
            let mut ids = Vec::new();
            for _ in (writer..count).step_by(4 * WRITERS as usize) {
                ids.push(lease.grant(ttl_secs, 0).await?.id);
            }
            Ok::<_, daymark_client::ClientError>(ids)
        });
    }
    let mut ids = Vec::new();
    while let Some(done) = tasks.join_next().await {
        ids.extend(done??);
    }
    let cpu = (cpu_seconds(server.pid())? - cpu) * 1e6 / count as f64;
    println!("granted {count} in {:.1} s, {cpu:.1} us CPU each", begun.elapsed().as_secs_f64());
    Ok(ids)
}

async fn renew(server: &Server, ids: &[i64]) -> Result<()> {
    let channel = tonic::transport::Endpoint::new(format!("http://127.0.0.1:{}", server.port))?.connect().await?;
    let (begun, cpu) = (Instant::now(), cpu_seconds(server.pid())?);
    let mut tasks = tokio::task::JoinSet::new();
    for stream in 0..STREAMS {
        let mine: Vec<i64> =
            ids.iter().skip(stream).step_by(STREAMS).copied().cycle().take(RENEWALS / STREAMS).collect();
        tasks.spawn(renew_all(LeaseClient::new(channel.clone()), mine));
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let cpu = (cpu_seconds(server.pid())? - cpu) * 1e6 / RENEWALS as f64;
    println!("renewed {RENEWALS} on {STREAMS} streams in {:.2} s, {cpu:.2} us CPU each", begun.elapsed().as_secs_f64());
    Ok(())
}

async fn renew_all(mut client: LeaseClient<tonic::transport::Channel>, ids: Vec<i64>) -> Result<()> {
    let (sender, receiver) = tokio::sync::mpsc::channel(RENEWALS_IN_FLIGHT);
    let requests = futures(receiver);
    let count = ids.len();
    tokio::spawn(async move {
        for id in ids {
            if sender.send(LeaseKeepAliveRequest { id }).await.is_err() {
                return;
            }
        }
    });
    let mut answers = client.lease_keep_alive(requests).await?.into_inner();
    for _ in 0..count {
        let answer = answers.message().await?.context("an answer for each")?;
        if answer.ttl <= 0 {
            bail!("lease {} is gone", answer.id);
        }
    }
    Ok(())
}

/// What a channel receives, as a stream.
fn futures<T: Send + 'static>(
    receiver: tokio::sync::mpsc::Receiver<T>,
) -> impl futures_util::Stream<Item = T> + Send + 'static {
    futures_util::stream::unfold(receiver, async |mut receiver| receiver.recv().await.map(|item| (item, receiver)))
}

/// A tenth of the leases, all of which end at about the same time.
async fn ending(arguments: &Arguments) -> Result<()> {
    let mut server = Server::start(arguments)?;
    let client = server.client().await?;
    let count = arguments.leases / 10;
    grant(&server, &client, count, 30).await?;
    let mut took = Vec::new();
    let (begun, cpu) = (Instant::now(), cpu_seconds(server.pid())?);
    let mut left = count;
    while left > 0 && begun.elapsed() < Duration::from_secs(200) {
        for _ in 0..100 {
            let asked = Instant::now();
            client.kv().put("other", "value").await?;
            took.push(asked.elapsed());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        left = client.lease().list().await?.leases.len() as u64;
    }
    took.sort_unstable();
    println!(
        "{count} leases of 30 s are gone after {:.1} s; puts meanwhile p50 {:.2?}, p99 {:.2?}, max {:.2?}; CPU {:.1} s",
        begun.elapsed().as_secs_f64(),
        percentile(&took, 0.5),
        percentile(&took, 0.99),
        took[took.len() - 1],
        cpu_seconds(server.pid())? - cpu
    );
    server.stop();
    Ok(())
}
