//! `daymark bench floor`: the load of `bench put` on a server that answers at once and keeps nothing. Whatever it costs and
//! takes is the transport's, so what `bench put` shows beyond it is the store's.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{cli::DEFAULT_ENDPOINT, put};

/// Flags of `bench floor`.
#[derive(Args, Clone, Debug)]
pub struct FloorArgs {
    /// The flags of `bench put`, but for --endpoints and TLS: the server is started, and stopped at the end.
    #[command(flatten)]
    put: put::PutArgs,
    /// Threads that serve connections; 0: as many as a member has by itself.
    #[arg(long, default_value_t = 0)]
    net_threads: u16,
    /// What serves gRPC, as --daymark-http2-server of a member: our own HTTP/2 (lean), or the library h2.
    #[arg(long, default_value = "lean", value_parser = ["lean", "h2"])]
    http2_server: String,
    /// The program to start the server with, by default this one.
    #[arg(long, value_name = "FILE", hide = true)]
    program: Option<PathBuf>,
}

/// A running echo server; ends when dropped.
struct EchoServer {
    process: Child,
    address: String,
}

impl EchoServer {
    fn start(program: &PathBuf, net_threads: u16, http2_server: &str) -> Result<Self> {
        let mut process = Command::new(program)
            .args(["echo-server", "--threads", &net_threads.to_string(), "--http2-server", http2_server])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let output = process.stdout.take().context("no output of the echo server")?;
        // From here on a failure ends the process, too.
        let mut server = Self { process, address: String::new() };
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).context("cannot read where the echo server listens")?;
        let address = line.trim().strip_prefix("listening ");
        address
            .context("the echo server ended before it listened; see its message above")?
            .clone_into(&mut server.address);
        Ok(server)
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        // Its standard input ends, and with it the server.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

pub fn run(args: &FloorArgs) -> Result<()> {
    let mut put = args.put.clone();
    let common = &mut put.common;
    ensure!(
        common.endpoints == [DEFAULT_ENDPOINT] && common.tls().is_none() && common.pid.is_empty(),
        "floor starts a server of its own, unencrypted: leave out --endpoints, --pid and the flags of TLS"
    );
    let program = match &args.program {
        Some(program) => program.clone(),
        None => std::env::current_exe().context("cannot find this program's own file")?,
    };
    let server = EchoServer::start(&program, args.net_threads, &args.http2_server)?;
    common.endpoints = vec![server.address.clone()];
    common.pid = vec![server.process.id()];
    put::load("floor", &put)
}
