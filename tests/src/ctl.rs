//! Running etcdctl: one command to its end, or a watch in the background; and what of an answer may differ between two
//! servers that agree (ids, terms, sizes, durations).

use std::{
    io::{BufRead, BufReader, Read, Write},
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::process::clear_settings;

/// Longer than etcdctl's own limit of 5 s a command, which some commands do not have.
const COMMAND_MAX: Duration = Duration::from_secs(60);
/// A watch that says nothing for this long has said all.
const QUIET: Duration = Duration::from_millis(400);
const SETTLE_MAX: Duration = Duration::from_secs(8);
const POLL: Duration = Duration::from_millis(5);

/// One installed etcdctl.
#[derive(Clone, Debug)]
pub struct Etcdctl {
    /// Where it is.
    pub binary: PathBuf,
    /// Its version, for messages.
    pub version: &'static str,
}

/// What a command answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Etcdctl {
    /// Runs one command to its end.
    ///
    /// # Panics
    /// When it does not end within a minute.
    pub fn run(&self, endpoint: &str, args: &[String], stdin: &str) -> Answer {
        let mut child = self.spawn(endpoint, args);
        let mut input = child.stdin.take().expect("piped");
        // A command that does not read its input may close it early.
        let _ = input.write_all(stdin.as_bytes());
        drop(input);
        let stdout = collect(child.stdout.take().expect("piped"));
        let stderr = collect(child.stderr.take().expect("piped"));
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("wait for etcdctl") {
                break status;
            }
            if started.elapsed() > COMMAND_MAX {
                let _ = child.kill();
                let _ = child.wait();
                panic!("etcdctl {} {args:?} did not end", self.version);
            }
            thread::sleep(POLL);
        };
        Answer { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
    }

    /// Starts a command that runs until it is stopped.
    pub fn start(&self, endpoint: &str, args: &[String]) -> Background {
        let mut child = self.spawn(endpoint, args);
        let lines = Arc::new(Mutex::new(Lines { text: String::new(), last: Instant::now() }));
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let stderr = collect(child.stderr.take().expect("piped"));
        let sink = Arc::clone(&lines);
        let reader = thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let mut lines = sink.lock().expect("no panic while held");
                lines.text.push_str(&line);
                lines.text.push('\n');
                lines.last = Instant::now();
            }
        });
        Background { input: child.stdin.take(), child, lines, reader: Some(reader), stderr: Some(stderr) }
    }

    fn spawn(&self, endpoint: &str, args: &[String]) -> Child {
        let mut command = Command::new(&self.binary);
        clear_settings(&mut command);
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints={endpoint}")).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap_or_else(|e| panic!("start {}: {e}", self.binary.display()))
    }
}

struct Lines {
    text: String,
    last: Instant,
}

/// A command that runs until it is stopped; killed when dropped.
pub struct Background {
    child: Child,
    input: Option<ChildStdin>,
    lines: Arc<Mutex<Lines>>,
    reader: Option<JoinHandle<()>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
}

impl Background {
    /// Types a line.
    pub fn say(&mut self, line: &str) {
        let input = self.input.as_mut().expect("open until stopped");
        writeln!(input, "{line}").expect("the command still reads");
    }

    /// Waits until it has said nothing for a while; then ends it.
    pub fn stop(mut self) -> Answer {
        let started = Instant::now();
        let mut code = None;
        self.lines.lock().expect("no panic while held").last = started;
        while started.elapsed() < SETTLE_MAX && self.lines.lock().expect("no panic while held").last.elapsed() < QUIET {
            if let Some(status) = self.child.try_wait().expect("wait for etcdctl") {
                code = status.code();
                break;
            }
            thread::sleep(POLL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.reader.take().expect("joined once").join().expect("the reader ends with the output");
        let stdout = std::mem::take(&mut self.lines.lock().expect("no panic while held").text);
        Answer { code, stdout, stderr: text(self.stderr.take().expect("joined once")) }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

fn text(handle: JoinHandle<Vec<u8>>) -> String {
    String::from_utf8_lossy(&handle.join().expect("the collector does not panic")).into_owned()
}
