//! The binary `daymark`: picks the sub-command; without one it runs a member with etcd's flags, from the command line to
//! its end. Decides nothing about requests.

#![deny(clippy::unwrap_used)]

use std::ffi::{CStr, c_char};
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use anyhow::Context;
use clap::Parser;
use tikv_jemallocator::Jemalloc;
use tokio::signal::unix::{SignalKind, signal};

use daymark_server::config::flags::{self, ParseError, Parsed};
use daymark_server::config::{self, Config, Http2Server};
use daymark_server::server::Server;
use daymark_server::{echo, limits, logging, tools, version};

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Freed memory goes back to the system within about a second, by jemalloc's own thread, not by those that serve.
const MALLOC_CONF: &CStr = c"background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0";

/// Where jemalloc looks for its settings. RocksDB's build takes the prefix off jemalloc's names.
#[cfg_attr(feature = "rocksdb", unsafe(export_name = "malloc_conf"))]
#[cfg_attr(not(feature = "rocksdb"), unsafe(export_name = "_rjem_malloc_conf"))]
// SAFETY: the pointer is to the first byte of a C string that lives as long as the program.
pub static JEMALLOC_SETTINGS: Option<&'static c_char> = Some(unsafe { &*MALLOC_CONF.as_ptr() });

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    match arguments.peek().map(String::as_str) {
        Some("bench") => return bench(),
        Some("echo-server") => return echo_server(),
        Some("snapshot") => return snapshot(),
        _ => {}
    }
    match flags::parse(arguments) {
        Ok(Parsed::Start(given)) => member(given),
        Ok(Parsed::Help) => print(&flags::help()),
        Ok(Parsed::Version) => print(&version::text()),
        Err(ParseError::Flag(message)) => {
            eprintln!("{message}; see daymark --help for the flags\n{}", flags::USAGE);
            ExitCode::from(2)
        }
        Err(ParseError::Positional(argument)) => {
            let error = format!("'{argument}' is not a valid flag");
            refuse(&error, "flags begin with dashes and take values as --name=value")
        }
    }
}

/// The load harness, with its own flags.
#[derive(Parser)]
#[command(name = "daymark bench", about = "Load a server and measure it")]
struct Bench {
    #[command(flatten)]
    arguments: daymark_benches::cli::BenchArgs,
}

fn bench() -> ExitCode {
    let Bench { arguments } = Bench::parse_from(std::env::args().skip(1));
    match daymark_benches::cli::run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("daymark bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What `daymark bench floor` loads: the net layer without a store. It ends when its standard input ends.
#[derive(Parser)]
#[command(name = "daymark echo-server", about = "Answer every Put at once and keep nothing, to measure the net layer")]
struct EchoServer {
    /// Where to listen; port 0 lets the system choose.
    #[arg(long, default_value = "http://127.0.0.1:0")]
    listen: String,
    /// Net threads; 0: as many as a member has by itself.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=limits::NET_THREADS_MAX as i64))]
    threads: u16,
    /// What serves HTTP/2: `lean`, our own, or the library `h2`.
    #[arg(long, default_value = "lean", value_parser = ["lean", "h2"])]
    http2_server: String,
}

fn echo_server() -> ExitCode {
    let EchoServer { listen, threads, http2_server } = EchoServer::parse_from(std::env::args().skip(1));
    raise_file_limit();
    let http2_server = if http2_server == "h2" { Http2Server::H2 } else { Http2Server::Lean };
    match echo::run(&listen, usize::from(threads), http2_server) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("daymark echo-server: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What is done with the state of a cluster as a file, with its own flags.
#[derive(Parser)]
#[command(name = "daymark snapshot", about = "The state of a cluster as one file, in etcd's form")]
struct Snapshot {
    #[command(subcommand)]
    command: tools::SnapshotCommand,
}

fn snapshot() -> ExitCode {
    let Snapshot { command } = Snapshot::parse_from(std::env::args().skip(1));
    match tools::run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a member until a signal ends it.
fn member(given: flags::Given) -> ExitCode {
    let variables =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let gathered = config::gather(given, variables);
    let read = gathered.and_then(|(given, warnings)| Ok((Config::from_given(&given)?, warnings)));
    let ((config, more), mut warnings) = match read {
        Ok(read) => read,
        Err(error) => return refuse(&error, "correct the setting; daymark --help explains them all"),
    };
    warnings.extend(more);
    if let Err(error) = logging::init(&config.log) {
        return refuse(&format!("cannot open the log output: {error}"), "correct --log-outputs");
    }
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    stop_on_panic();
    raise_file_limit();
    let signals = match Signals::watch() {
        Ok(signals) => signals,
        Err(error) => return refuse(&format!("{error:#}"), "see the limits of this process"),
    };
    let server = match Server::start(&config, Arc::new(stop_at_once)) {
        Ok(server) => server,
        Err(error) => {
            refuse(&error.cause, &error.remedy);
            exit_at_once()
        }
    };
    notify_ready();
    let number = signals.wait();
    tracing::info!(signal = signal_name(number), "received signal; shutting down");
    server.stop();
    logging::flush();
    die_by(number)
}

/// One line with cause and remedy; exit code 1.
fn refuse(error: &str, remedy: &str) -> ExitCode {
    logging::fatal("the member does not start", error, remedy);
    ExitCode::FAILURE
}

fn print(text: &str) -> ExitCode {
    // A reader that has gone, as with `| head`, is no failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

/// A member that has broken an invariant stops rather than limps: any panic ends the process.
fn stop_on_panic() {
    std::panic::set_hook(Box::new(|panic| stop_at_once(&panic.to_string().replace('\n', ": "))));
}

/// Ends the process without running anything else: what is on disk is what a restart relies on.
fn stop_at_once(facts: &str) {
    logging::fatal("the member stops", facts, "see the facts; a restart continues from what is on disk");
    exit_at_once()
}

/// Threads of the member may still run, also after a start that was given up half way.
fn exit_at_once() -> ! {
    // SAFETY: takes no pointers; other threads simply end. Destructors must not run beside them.
    unsafe { libc::_exit(1) }
}

/// As many open files as the system lets us have: each connection is one.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// Tells systemd, if it started us and waits.
fn notify_ready() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match path.to_str().and_then(|path| path.strip_prefix('@')) {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address));
    if let Err(error) = sent {
        tracing::warn!(%error, "cannot tell systemd that the member is ready");
    }
}

/// The signals that end a member. Before it has started they end the process at once: nobody has been promised anything.
struct Signals {
    started: Arc<AtomicBool>,
    received: mpsc::Receiver<i32>,
}

impl Signals {
    fn watch() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("signal runtime")?;
        let guard = runtime.enter();
        let mut terminate = signal(SignalKind::terminate()).context("cannot watch SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch SIGINT")?;
        drop(guard);
        let started = Arc::new(AtomicBool::new(false));
        let (send, received) = mpsc::channel();
        let seen = started.clone();
        let body = move || {
            let number = runtime.block_on(async {
                tokio::select! {
                    _ = terminate.recv() => libc::SIGTERM,
                    _ = interrupt.recv() => libc::SIGINT,
                }
            });
            if seen.load(Ordering::SeqCst) {
                // Nobody receives only if the process is ending anyway.
                let _ = send.send(number);
            } else {
                die_by(number);
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(body).context("signal thread")?;
        Ok(Self { started, received })
    }

    fn wait(&self) -> i32 {
        self.started.store(true, Ordering::SeqCst);
        self.received.recv().unwrap_or(libc::SIGTERM)
    }
}

fn signal_name(number: i32) -> &'static str {
    if number == libc::SIGINT { "interrupt" } else { "terminated" }
}

/// Ends the process by the signal it was sent, so that whoever sent it sees that it worked. As process 1, which the
/// kernel shields from signals, with success.
fn die_by(number: i32) -> ExitCode {
    if std::process::id() == 1 {
        return ExitCode::SUCCESS;
    }
    // SAFETY: both take plain numbers; the default action of these signals ends the process.
    unsafe {
        libc::signal(number, libc::SIG_DFL);
        libc::raise(number);
    }
    ExitCode::FAILURE
}
