//! Servers as child processes: started on free ports with a directory of their own, killed by pid when dropped. Knows the
//! few flags in which etcd and Daymark differ, nothing of what they serve.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::ports;

/// How long a start may take on a slow machine before a test fails. Tests that measure have their own, tighter bound.
const START_MAX: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(3);
/// Last bytes of a log that are shown when a test fails.
const LOG_TAIL_BYTES: usize = 1500;

/// Whose flags a program understands where they differ.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Daymark: etcd's present flags.
    Daymark,
    /// etcd 3.7: the same.
    Etcd,
    /// etcd 3.5: some of them still begin with `experimental-`.
    Etcd35,
}

/// A server binary.
#[derive(Clone, Debug)]
pub struct Program {
    /// Where it is.
    pub binary: PathBuf,
    /// Which flags it knows.
    pub dialect: Dialect,
}

impl Program {
    /// The Daymark under test: `DAYMARK_BIN`, else the release build beside the test binary.
    ///
    /// With `DAYMARK_DIALECT=etcd` (3.7) or `etcd-3.5` the binary is an etcd: so the tests themselves are tried out.
    ///
    /// # Panics
    /// When it has not been built.
    pub fn daymark() -> Self {
        let binary = std::env::var_os("DAYMARK_BIN").map_or_else(beside_the_tests, PathBuf::from);
        let remedy = "run ./test.sh, or cargo build --release --workspace, or set DAYMARK_BIN";
        assert!(binary.is_file(), "no server binary at {}: {remedy}", binary.display());
        let dialect = match std::env::var("DAYMARK_DIALECT").as_deref() {
            Err(_) | Ok("daymark") => Dialect::Daymark,
            Ok("etcd") => Dialect::Etcd,
            Ok("etcd-3.5") => Dialect::Etcd35,
            Ok(other) => panic!("DAYMARK_DIALECT={other} is none of daymark, etcd, etcd-3.5"),
        };
        Self { binary, dialect }
    }

    /// The flag for how often watchers without events hear of progress.
    pub fn progress_interval(&self, interval: &str) -> String {
        let prefix = if self.dialect == Dialect::Etcd35 { "experimental-" } else { "" };
        format!("--{prefix}watch-progress-notify-interval={interval}")
    }
}

fn beside_the_tests() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    // <target>/release/deps/<test>
    test.ancestors().nth(2).expect("test binaries are two levels below the profile's directory").join("daymark")
}

/// What one start ended in, when it ended by itself.
#[derive(Debug)]
pub struct Ended {
    /// Exit code or signal.
    pub status: ExitStatus,
    /// From the start until the end.
    pub took: Duration,
    /// Everything on standard error.
    pub stderr: String,
}

/// What a server listens on for clients, always `http` on its port among it.
#[derive(Clone, Debug)]
enum Listen {
    Http,
    /// Encrypted and unencrypted on one port.
    SecureToo,
    /// A further URL.
    Also(String),
    /// gRPC alone on this URL; on its port HTTP alone.
    HttpApart(String),
}

/// A server process, its ports and its directories.
pub struct Server {
    program: Program,
    listen: Listen,
    extra: Vec<String>,
    client_port: u16,
    peer_port: u16,
    /// Clients are served over TLS: health is not asked then, since that may take a certificate.
    secure: bool,
    data_dir: PathBuf,
    child: Option<Child>,
    /// Holds the log, and the data directory unless another one was given.
    home: Option<TempDir>,
}

impl Server {
    /// Starts a new member with an empty data directory and waits until it is healthy.
    pub fn start(program: &Program, extra: &[&str]) -> Self {
        let home = home();
        let data_dir = home.path().join("data");
        Self::start_with(program, home, data_dir, extra)
    }

    /// Starts a new member that serves clients over TLS, for which `extra` holds the flags, and waits until it serves.
    pub fn start_secure(program: &Program, extra: &[&str]) -> Self {
        let home = home();
        let data_dir = home.path().join("data");
        let mut server = Self::new(program, home, data_dir, extra);
        server.secure = true;
        server.restart();
        server
    }

    /// Starts a member on this data directory and waits until it is healthy.
    pub fn start_on(program: &Program, data_dir: &Path, extra: &[&str]) -> Self {
        Self::start_with(program, home(), data_dir.into(), extra)
    }

    /// A member on this data directory that does not run yet.
    pub fn prepare(program: &Program, data_dir: &Path, extra: &[&str]) -> Self {
        Self::new(program, home(), data_dir.into(), extra)
    }

    /// Starts a new member that serves TLS beside plain connections on its port.
    pub fn start_secure_too(program: &Program, extra: &[&str]) -> Self {
        Self::start_listening(program, Listen::SecureToo, extra)
    }

    /// Starts a new member that listens on one more URL.
    pub fn start_also_on(program: &Program, url: &str, extra: &[&str]) -> Self {
        Self::start_listening(program, Listen::Also(url.to_owned()), extra)
    }

    /// Starts a new member that serves gRPC on this URL, and only HTTP on its port.
    pub fn start_http_apart(program: &Program, grpc: &str, extra: &[&str]) -> Self {
        Self::start_listening(program, Listen::HttpApart(grpc.to_owned()), extra)
    }

    fn start_listening(program: &Program, listen: Listen, extra: &[&str]) -> Self {
        let home = home();
        let data_dir = home.path().join("data");
        let mut server = Self::new(program, home, data_dir, extra);
        server.listen = listen;
        server.restart();
        server
    }

    fn start_with(program: &Program, home: TempDir, data_dir: PathBuf, extra: &[&str]) -> Self {
        let mut server = Self::new(program, home, data_dir, extra);
        server.restart();
        server
    }

    fn new(program: &Program, home: TempDir, data_dir: PathBuf, extra: &[&str]) -> Self {
        Self {
            program: program.clone(),
            listen: Listen::Http,
            extra: extra.iter().map(ToString::to_string).collect(),
            client_port: ports::free(),
            peer_port: ports::free(),
            secure: false,
            data_dir,
            child: None,
            home: Some(home),
        }
    }

    /// Starts the process again, which must not be running; returns how long it took until it was healthy.
    ///
    /// # Panics
    /// When it ends instead, or does not become healthy.
    pub fn restart(&mut self) -> Duration {
        assert!(self.child.is_none(), "the server still runs");
        let started = Instant::now();
        let log = OpenOptions::new().create(true).append(true).open(self.log_path()).expect("open the log");
        let child = self.command().stdout(Stdio::null()).stderr(log).spawn();
        self.child = Some(child.unwrap_or_else(|e| panic!("start {}: {e}", self.program.binary.display())));
        loop {
            if self.serves() {
                return started.elapsed();
            }
            let ended = self.child.as_mut().expect("just started").try_wait().expect("wait for the server");
            assert!(ended.is_none(), "the server ended with {ended:?} instead of starting:\n{}", self.log_tail());
            assert!(started.elapsed() < START_MAX, "not healthy after {START_MAX:?}:\n{}", self.log_tail());
            thread::sleep(POLL);
        }
    }

    /// Starts the process, which must not be running, expecting that it refuses within `limit`.
    ///
    /// # Panics
    /// When it is still there after that.
    pub fn refuse(&mut self, limit: Duration) -> Ended {
        assert!(self.child.is_none(), "the server still runs");
        run_to_end(&mut self.command(), limit)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program.binary);
        clear_settings(&mut command);
        let scheme = if self.secure { "https" } else { "http" };
        let http = format!("{scheme}://127.0.0.1:{}", self.client_port);
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let client = match &self.listen {
            Listen::Http => http.clone(),
            Listen::SecureToo => format!("{http},https://127.0.0.1:{}", self.client_port),
            Listen::Also(url) => format!("{http},{url}"),
            Listen::HttpApart(grpc) => grpc.clone(),
        };
        if matches!(self.listen, Listen::HttpApart(_)) {
            command.args(["--listen-client-http-urls", &http]);
        }
        command.arg("--data-dir").arg(&self.data_dir);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}")]);
        command.args(&self.extra);
        command
    }

    /// Ends the process at once, as a crash would, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill the server");
            child.wait().expect("wait for the killed server");
        }
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Panics
    /// When it takes longer than ten seconds.
    pub fn terminate(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("a running server");
        kill_process(Pid::from_child(&child), Signal::TERM).expect("signal the server");
        let limit = Instant::now() + Duration::from_secs(10);
        while Instant::now() < limit {
            if let Some(status) = child.try_wait().expect("wait for the server") {
                return status;
            }
            thread::sleep(POLL);
        }
        self.child = Some(child);
        panic!("still running 10 s after SIGTERM:\n{}", self.log_tail());
    }

    /// Whether the process is there and answers.
    pub fn is_healthy(&self) -> bool {
        self.child.is_some() && self.serves()
    }

    fn serves(&self) -> bool {
        if self.secure {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.client_port));
            return self.log().contains("ready to serve client requests") && TcpStream::connect(address).is_ok();
        }
        is_healthy(self.client_port)
    }

    /// The process, which must be running.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running server").id()
    }

    /// Memory that the process, which must be running, holds: bytes.
    pub fn resident_bytes(&self) -> u64 {
        resident_bytes(self.pid())
    }

    /// `host:port` for clients.
    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.client_port)
    }

    /// `host:port` for peers.
    pub fn peer_endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.peer_port)
    }

    /// Where the state is.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// What the process has written to standard error since its first start.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn log_path(&self) -> PathBuf {
        self.home.as_ref().expect("present until dropped").path().join("server.log")
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let from = log.len().saturating_sub(LOG_TAIL_BYTES);
        String::from_utf8_lossy(&log.as_bytes()[from..]).into_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if thread::panicking() {
            eprintln!("--- end of the log of {} ---\n{}", self.program.binary.display(), self.log_tail());
            let kept = self.home.take().map(TempDir::keep);
            eprintln!("--- kept for inspection: {kept:?}, data in {} ---", self.data_dir.display());
        }
    }
}

/// Runs a command that should end by itself.
///
/// # Panics
/// When it is still there after `limit`; it is killed then.
pub fn run_to_end(command: &mut Command, limit: Duration) -> Ended {
    let log = tempfile::NamedTempFile::new().expect("a file for standard error");
    let stderr = File::options().append(true).open(log.path()).expect("open it");
    let started = Instant::now();
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().expect("start the server");
    let read_log = || String::from_utf8_lossy(&fs::read(log.path()).unwrap_or_default()).into_owned();
    loop {
        if let Some(status) = child.try_wait().expect("wait for the server") {
            return Ended { status, took: started.elapsed(), stderr: read_log() };
        }
        if started.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            panic!("still running after {limit:?} instead of refusing to start:\n{}", read_log());
        }
        thread::sleep(POLL);
    }
}

/// Memory that a running process holds: bytes.
pub fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("Linux tells it");
    let kilobytes: u64 = line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).expect("a number");
    kilobytes * 1024
}

/// Takes etcd's and etcdctl's own settings out of a command's environment.
pub fn clear_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ETCD") {
            command.env_remove(name);
        }
    }
}

/// `GET path` over a new connection: status and body.
pub fn http_get(port: u16, path: &str) -> io::Result<(u16, String)> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(500))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status.ok_or(io::ErrorKind::InvalidData)?, body.to_owned()))
}

fn is_healthy(port: u16) -> bool {
    matches!(http_get(port, "/health"), Ok((200, _)))
}

fn home() -> TempDir {
    tempfile::Builder::new().prefix("daymark-test-").tempdir().expect("a temporary directory")
}
