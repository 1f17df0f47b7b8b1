//! Clusters of real processes: founded together, members killed, restarted, added and removed. Knows etcd's flags and how
//! to ask members who they are, nothing of what goes wrong between them.

use std::{
    fs::{self, OpenOptions},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    ctl::{Answer, Etcdctl},
    ports,
    process::{Ended, Program, clear_settings, http_get, run_to_end},
};

/// How long anything may take on a slow machine before a test fails.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// Last bytes of a log that are shown when a test fails.
const LOG_TAIL_BYTES: usize = 2500;

/// Waits for something that takes its time.
///
/// # Panics
/// When it does not happen within a minute.
pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let started = Instant::now();
    while !check() {
        assert!(started.elapsed() < PATIENCE, "{what} did not happen");
        thread::sleep(POLL);
    }
}

/// A cluster under test. Its members are numbered in the order of their creation; those that were removed keep their number.
pub struct Cluster {
    program: Program,
    token: String,
    extra: Vec<String>,
    members: Vec<Member>,
    home: Option<TempDir>,
}

struct Member {
    name: String,
    client_port: u16,
    peer_port: u16,
    /// Whether members have certificates for each other.
    is_secure: bool,
    /// `--initial-cluster` and `--initial-cluster-state`.
    founding: [String; 2],
    child: Option<Child>,
}

impl Member {
    fn peer_url(&self) -> String {
        let scheme = if self.is_secure { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.peer_port)
    }
}

impl Cluster {
    /// Starts that many founders and waits until all are healthy.
    pub fn start(program: &Program, count: usize, extra: &[&str]) -> Self {
        let mut cluster = Self::prepare(program, count, extra);
        cluster.start_all();
        cluster
    }

    /// The same, not started yet.
    pub fn prepare(program: &Program, count: usize, extra: &[&str]) -> Self {
        let ports: Vec<_> = (0..count).map(|_| (ports::free(), ports::free())).collect();
        Self::prepare_on(program, &ports, extra)
    }

    /// The same on given ports: client and peer port of each member.
    pub fn prepare_on(program: &Program, ports: &[(u16, u16)], extra: &[&str]) -> Self {
        let home = tempfile::Builder::new().prefix("daymark-cluster-").tempdir().expect("a temporary directory");
        let mut cluster = Self {
            program: program.clone(),
            token: "etcd-cluster".into(),
            extra: extra.iter().map(ToString::to_string).collect(),
            members: Vec::new(),
            home: Some(home),
        };
        for (number, (client_port, peer_port)) in ports.iter().enumerate() {
            let founding = [String::new(), "new".into()];
            let (client_port, peer_port) = (*client_port, *peer_port);
            let name = format!("m{number}");
            let is_secure = cluster.is_secure();
            cluster.members.push(Member { name, client_port, peer_port, is_secure, founding, child: None });
        }
        let all: Vec<_> = (0..ports.len()).collect();
        let founders = cluster.initial_cluster(&all);
        cluster.members.iter_mut().for_each(|member| member.founding[0].clone_from(&founders));
        cluster
    }

    fn is_secure(&self) -> bool {
        self.extra.iter().any(|flag| flag == "--peer-cert-file" || flag == "--peer-auto-tls")
    }

    /// Starts all members that do not run, at the same time, and waits until they are healthy.
    pub fn start_all(&mut self) {
        let resting: Vec<_> = (0..self.members.len()).filter(|number| self.members[*number].child.is_none()).collect();
        resting.iter().for_each(|number| self.spawn(*number));
        resting.iter().for_each(|number| self.wait_healthy(*number));
    }

    /// The value of `--initial-cluster` for these members.
    pub fn initial_cluster(&self, members: &[usize]) -> String {
        let part = |number: &usize| format!("{}={}", self.members[*number].name, self.members[*number].peer_url());
        members.iter().map(part).collect::<Vec<_>>().join(",")
    }

    /// A member more, not started: its number. Who else is in the cluster by now is what it is to name.
    pub fn prepare_joiner(&mut self, others: &[usize]) -> usize {
        let number = self.members.len();
        let (client_port, peer_port) = (ports::free(), ports::free());
        let founding = [String::new(), "existing".into()];
        let (name, is_secure) = (format!("m{number}"), self.is_secure());
        self.members.push(Member { name, client_port, peer_port, is_secure, founding, child: None });
        let all: Vec<_> = others.iter().copied().chain([number]).collect();
        self.members[number].founding[0] = self.initial_cluster(&all);
        number
    }

    /// Gives a member that does not run other founding flags: `--initial-cluster` and its state.
    pub fn found_anew(&mut self, number: usize, initial_cluster: &str, state: &str) {
        self.members[number].founding = [initial_cluster.into(), state.into()];
    }

    /// Another `--initial-cluster-token` for members that are started from now on.
    pub fn set_token(&mut self, token: &str) {
        self.token = token.into();
    }

    /// Another address for peers, from the next start on: the new peer URL.
    pub fn move_peer(&mut self, number: usize) -> String {
        self.members[number].peer_port = ports::free();
        self.peer_url(number)
    }

    /// Other flags for members that are started from now on.
    pub fn set_extra(&mut self, extra: &[&str]) {
        self.extra = extra.iter().map(ToString::to_string).collect();
    }

    /// Starts a member without waiting for it.
    pub fn spawn(&mut self, number: usize) {
        assert!(self.members[number].child.is_none(), "member {number} still runs");
        let log = OpenOptions::new().create(true).append(true).open(self.log_path(number)).expect("open the log");
        let child = self.command(number).stdout(Stdio::null()).stderr(log).spawn();
        let child = child.unwrap_or_else(|e| panic!("start {}: {e}", self.program.binary.display()));
        self.members[number].child = Some(child);
    }

    /// Starts a member and waits until it is healthy; how long that took.
    pub fn restart(&mut self, number: usize) -> Duration {
        let started = Instant::now();
        self.spawn(number);
        self.wait_healthy(number);
        started.elapsed()
    }

    /// Starts a member that refuses to run.
    pub fn refuse(&mut self, number: usize) -> Ended {
        run_to_end(&mut self.command(number), PATIENCE)
    }

    fn command(&self, number: usize) -> Command {
        let member = &self.members[number];
        let mut command = Command::new(&self.program.binary);
        clear_settings(&mut command);
        let client = format!("http://127.0.0.1:{}", member.client_port);
        let peer = member.peer_url();
        command.args(["--name", &member.name]).arg("--data-dir").arg(self.data_dir(number));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &member.founding[0], "--initial-cluster-state", &member.founding[1]]);
        command.args(["--initial-cluster-token", &self.token]).args(&self.extra);
        command
    }

    /// Waits until a member answers linearizable reads.
    pub fn wait_healthy(&mut self, number: usize) {
        let started = Instant::now();
        while !self.is_healthy(number) {
            let ended = self.members[number].child.as_mut().expect("it runs").try_wait().expect("wait for it");
            assert!(ended.is_none(), "member {number} ended with {ended:?}:\n{}", self.log_tail(number));
            assert!(started.elapsed() < PATIENCE, "member {number} is not healthy:\n{}", self.log_tail(number));
            thread::sleep(POLL);
        }
    }

    /// Whether it answers linearizable reads.
    pub fn is_healthy(&self, number: usize) -> bool {
        matches!(http_get(self.members[number].client_port, "/health"), Ok((200, _)))
    }

    /// Whether its process is there.
    pub fn runs(&mut self, number: usize) -> bool {
        let child = self.members[number].child.as_mut();
        child.is_some_and(|child| child.try_wait().expect("wait for it").is_none())
    }

    /// Waits until the process of a member ends by itself.
    pub fn wait_end(&mut self, number: usize) -> ExitStatus {
        let mut child = self.members[number].child.take().expect("it runs");
        let started = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("wait for it") {
                return status;
            }
            if started.elapsed() > PATIENCE {
                self.members[number].child = Some(child);
                panic!("member {number} still runs:\n{}", self.log_tail(number));
            }
            thread::sleep(POLL);
        }
    }

    /// Ends a member at once, as a crash would.
    pub fn kill(&mut self, number: usize) {
        if let Some(mut child) = self.members[number].child.take() {
            child.kill().expect("kill it");
            child.wait().expect("wait for it");
        }
    }

    /// Sends a signal to a member that runs.
    pub fn signal(&self, number: usize, signal: Signal) {
        let child = self.members[number].child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).expect("signal it");
    }

    /// Sends SIGTERM and waits for the end.
    pub fn terminate(&mut self, number: usize) -> ExitStatus {
        self.signal(number, Signal::TERM);
        self.wait_end(number)
    }

    /// Throws away what a member that does not run has on disk.
    pub fn wipe(&self, number: usize) {
        fs::remove_dir_all(self.data_dir(number)).expect("remove its directory");
    }

    /// `host:port` of a member for clients.
    pub fn endpoint(&self, number: usize) -> String {
        format!("127.0.0.1:{}", self.members[number].client_port)
    }

    /// Those of several, as a comma list.
    pub fn endpoints(&self, members: &[usize]) -> String {
        members.iter().map(|number| self.endpoint(*number)).collect::<Vec<_>>().join(",")
    }

    /// Client port of a member.
    pub fn client_port(&self, number: usize) -> u16 {
        self.members[number].client_port
    }

    /// Its name.
    pub fn name(&self, number: usize) -> &str {
        &self.members[number].name
    }

    /// Its peer URL.
    pub fn peer_url(&self, number: usize) -> String {
        self.members[number].peer_url()
    }

    /// Its data directory.
    pub fn data_dir(&self, number: usize) -> PathBuf {
        self.home().join(&self.members[number].name)
    }

    fn home(&self) -> &std::path::Path {
        self.home.as_ref().expect("present until dropped").path()
    }

    fn log_path(&self, number: usize) -> PathBuf {
        self.home().join(format!("{}.log", self.members[number].name))
    }

    /// What a member has written to standard error since its first start.
    pub fn log(&self, number: usize) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path(number)).unwrap_or_default()).into_owned()
    }

    fn log_tail(&self, number: usize) -> String {
        let log = self.log(number);
        let from = log.len().saturating_sub(LOG_TAIL_BYTES);
        String::from_utf8_lossy(&log.as_bytes()[from..]).into_owned()
    }

    /// Runs etcdctl against some members.
    pub fn ctl(&self, ctl: &Etcdctl, members: &[usize], line: &str) -> Answer {
        let args: Vec<String> = line.split(' ').map(str::to_owned).collect();
        ctl.run(&self.endpoints(members), &args, "")
    }

    /// The same with an answer in JSON. Panics with what etcdctl said if it fails.
    pub fn ctl_json(&self, ctl: &Etcdctl, members: &[usize], line: &str) -> Value {
        let answer = self.ctl(ctl, members, &format!("{line} -w json"));
        assert_eq!(answer.code, Some(0), "etcdctl {line}: {}", answer.stderr);
        serde_json::from_str(&answer.stdout).unwrap_or_else(|e| panic!("etcdctl {line}: {e}: {}", answer.stdout))
    }

    /// Runs a change of members, again while the cluster says that its members have not been up for long enough.
    ///
    /// # Panics
    /// When it is refused for another reason, or for too long.
    pub fn change(&self, ctl: &Etcdctl, asked: &[usize], line: &str) {
        let may_pass =
            ["unhealthy cluster", "leader changed", "in sync with leader", "timed out", "not enough started"];
        let started = Instant::now();
        loop {
            let answer = self.ctl(ctl, asked, line);
            if answer.code == Some(0) {
                return;
            }
            assert!(may_pass.iter().any(|text| answer.stderr.contains(text)), "{line}: {}", answer.stderr);
            assert!(started.elapsed() < PATIENCE, "{line}: {}", answer.stderr);
            thread::sleep(POLL);
        }
    }

    /// Status of each of these members, as `endpoint status` shows them; those that do not answer are left out.
    pub fn status(&self, ctl: &Etcdctl, members: &[usize]) -> Vec<(usize, Value)> {
        let one = |number: &usize| {
            let answer = self.ctl(ctl, &[*number], "endpoint status -w json");
            let status: Value = serde_json::from_str(&answer.stdout).ok()?;
            Some((*number, status.get(0)?.get("Status")?.clone()))
        };
        members.iter().filter_map(one).collect()
    }

    /// Waits until these members know one and the same leader among them; its number.
    pub fn wait_leader(&self, ctl: &Etcdctl, members: &[usize]) -> usize {
        let started = Instant::now();
        loop {
            let status = self.status(ctl, members);
            let leaders: Vec<u64> = status.iter().filter_map(|(_, status)| status["leader"].as_u64()).collect();
            let agreed = leaders.len() == members.len() && leaders.iter().all(|id| *id == leaders[0]);
            let is_leader =
                |status: &&(usize, Value)| status.1["header"]["member_id"].as_u64() == leaders.first().copied();
            if let (true, Some((number, _))) = (agreed, status.iter().find(is_leader)) {
                return *number;
            }
            assert!(started.elapsed() < PATIENCE, "no leader: {status:?}\n{}", self.log_tail(members[0]));
            thread::sleep(POLL);
        }
    }

    /// Its id as it says itself.
    pub fn member_id(&self, ctl: &Etcdctl, number: usize) -> u64 {
        let status = self.status(ctl, &[number]);
        status.first().and_then(|(_, status)| status["header"]["member_id"].as_u64()).expect("it answers")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(mut child) = member.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        if thread::panicking() {
            for number in 0..self.members.len() {
                eprintln!("--- end of the log of {} ---\n{}", self.members[number].name, self.log_tail(number));
            }
            let kept = self.home.take().map(TempDir::keep);
            eprintln!("--- kept for inspection: {kept:?} ---");
        }
    }
}
