//! Clusters of servers as child processes, each behind a relay of [`Links`]. Started with etcd's flags, so that they may
//! be etcd's as well. Knows nothing of what clients do.

use std::{
    fs::{self, OpenOptions},
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use daymark_client::{Client, Config};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{
    links::Links,
    ports,
    process::{Program, clear_settings, http_get},
};

const START_MAX: Duration = Duration::from_secs(60);
const STATUS_TIMEOUT: Duration = Duration::from_millis(700);
const POLL: Duration = Duration::from_millis(20);
const LOG_TAIL_BYTES: usize = 2500;

/// Members that run, their links, and their files.
pub struct Cluster {
    program: Program,
    extra: Vec<String>,
    /// Directions between members, by place.
    pub links: Links,
    members: Vec<Member>,
    home: Option<TempDir>,
}

struct Member {
    name: String,
    client_port: u16,
    peer_port: u16,
    relay_port: u16,
    data_dir: PathBuf,
    log_path: PathBuf,
    /// `--initial-cluster-state`.
    state: &'static str,
    child: Option<Child>,
    is_paused: bool,
}

/// What a member says of itself.
#[derive(Copy, Clone, Debug)]
pub struct Status {
    /// Its id.
    pub id: u64,
    /// The leader it knows of; 0: none.
    pub leader: u64,
    /// Its term.
    pub term: u64,
}

impl Cluster {
    /// Starts a new cluster of `size` members and waits until all are healthy. `extra` goes to each.
    ///
    /// # Panics
    /// When it does not become healthy.
    pub async fn start(program: &Program, size: usize, extra: &[&str]) -> Self {
        Self::start_with_data_in(program, size, extra, &[]).await
    }

    /// The same with the data of some members elsewhere: place and directory.
    ///
    /// # Panics
    /// When it does not become healthy.
    pub async fn start_with_data_in(
        program: &Program,
        size: usize,
        extra: &[&str],
        elsewhere: &[(usize, PathBuf)],
    ) -> Self {
        let home = tempfile::Builder::new().prefix("daymark-cluster-").tempdir().expect("a temporary directory");
        let links = Links::new();
        let mut members = Vec::new();
        for place in 0..size {
            let name = format!("m{place}");
            let (peer_port, relay_port) = (ports::free(), ports::free());
            links.relay(relay_port, place, peer_port);
            let own = elsewhere.iter().find(|(of, _)| *of == place).map(|(_, dir)| dir.clone());
            let data_dir = own.unwrap_or_else(|| home.path().join(&name));
            let client_port = ports::free();
            let log_path = home.path().join(format!("{name}.log"));
            let (state, child, is_paused) = ("new", None, false);
            members.push(Member {
                name,
                client_port,
                peer_port,
                relay_port,
                data_dir,
                log_path,
                state,
                child,
                is_paused,
            });
        }
        let extra = extra.iter().map(ToString::to_string).collect();
        let mut cluster = Self { program: program.clone(), extra, links, members, home: Some(home) };
        (0..size).for_each(|place| cluster.restart(place));
        for place in 0..size {
            cluster.wait_healthy(place, START_MAX).await;
            let status = cluster.status(place).await.expect("a healthy member tells its id");
            cluster.links.know(status.id, place);
        }
        cluster
    }

    /// How many members there are.
    pub fn size(&self) -> usize {
        self.members.len()
    }

    /// `host:port` of each member, for clients.
    pub fn endpoints(&self) -> Vec<String> {
        (0..self.size()).map(|place| self.endpoint(place)).collect()
    }

    /// `host:port` of one member, for clients.
    pub fn endpoint(&self, place: usize) -> String {
        format!("127.0.0.1:{}", self.members[place].client_port)
    }

    /// Its process id, while it runs.
    pub fn pid(&self, place: usize) -> Option<u32> {
        self.members[place].child.as_ref().map(Child::id)
    }

    /// Starts a member that does not run; does not wait for it.
    pub fn restart(&mut self, place: usize) {
        let initial: Vec<_> = self.members.iter().map(Member::peer).collect();
        let member = &mut self.members[place];
        assert!(member.child.is_none(), "the member still runs");
        let log = OpenOptions::new().create(true).append(true).open(member.log_path()).expect("open the log");
        let mut command = Command::new(&self.program.binary);
        clear_settings(&mut command);
        let client = format!("http://127.0.0.1:{}", member.client_port);
        command.args(["--name", &member.name]).arg("--data-dir").arg(&member.data_dir);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &format!("http://127.0.0.1:{}", member.peer_port)]);
        command.args(["--initial-advertise-peer-urls", &format!("http://127.0.0.1:{}", member.relay_port)]);
        command.args(["--initial-cluster", &initial.join(","), "--initial-cluster-token", "test"]);
        command.args(["--initial-cluster-state", member.state]);
        command.args(&self.extra).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        member.child = Some(command.spawn().unwrap_or_else(|e| panic!("start {}: {e}", self.program.binary.display())));
        member.is_paused = false;
    }

    /// Waits until a member says that it is healthy; how long that took.
    ///
    /// # Panics
    /// When it ends, or takes longer than `limit`.
    pub async fn wait_healthy(&mut self, place: usize, limit: Duration) -> Duration {
        let started = Instant::now();
        loop {
            let port = self.members[place].client_port;
            // Asked aside: a test's other tasks go on meanwhile.
            let healthy = tokio::task::spawn_blocking(move || matches!(http_get(port, "/health"), Ok((200, _)))).await;
            if healthy.expect("it does not panic") {
                return started.elapsed();
            }
            let child = self.members[place].child.as_mut().expect("a running member");
            let ended = child.try_wait().expect("wait for the server");
            let log = || self.members[place].log_tail();
            assert!(ended.is_none(), "member {place} ended with {ended:?}:\n{}", log());
            assert!(started.elapsed() < limit, "member {place} is not healthy after {limit:?}:\n{}", log());
            tokio::time::sleep(POLL).await;
        }
    }

    /// Whether the process is there.
    ///
    /// # Panics
    /// When it has ended by itself.
    pub fn runs(&mut self, place: usize) -> bool {
        let member = &mut self.members[place];
        let Some(child) = &mut member.child else { return false };
        let ended = child.try_wait().expect("wait for the server");
        assert!(ended.is_none(), "member {place} ended by itself with {ended:?}:\n{}", member.log_tail());
        true
    }

    /// Whether the process is there; unlike [`runs`](Self::runs) it may have ended by itself.
    pub fn is_running(&mut self, place: usize) -> bool {
        let child = self.members[place].child.as_mut();
        child.is_some_and(|child| child.try_wait().expect("wait for the server").is_none())
    }

    /// Ends a member at once, as a crash would.
    pub fn kill(&mut self, place: usize) {
        if let Some(mut child) = self.members[place].child.take() {
            child.kill().expect("kill the server");
            child.wait().expect("wait for the killed server");
        }
        self.members[place].is_paused = false;
    }

    /// Sends SIGTERM and waits until it is gone.
    ///
    /// # Panics
    /// When that takes longer than ten seconds.
    pub async fn terminate(&mut self, place: usize) {
        self.signal(place, Signal::TERM);
        let mut child = self.members[place].child.take().expect("a running member");
        let started = Instant::now();
        while child.try_wait().expect("wait for the server").is_none() {
            assert!(started.elapsed() < Duration::from_secs(10), "still running 10 s after SIGTERM");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Stops the process' clock.
    pub fn pause(&mut self, place: usize) {
        self.signal(place, Signal::STOP);
        self.members[place].is_paused = true;
    }

    /// Lets it go on.
    pub fn resume(&mut self, place: usize) {
        self.signal(place, Signal::CONT);
        self.members[place].is_paused = false;
    }

    /// Whether the process runs and is not paused.
    pub fn is_awake(&self, place: usize) -> bool {
        self.members[place].child.is_some() && !self.members[place].is_paused
    }

    fn signal(&self, place: usize, signal: Signal) {
        let child = self.members[place].child.as_ref().expect("a running member");
        kill_process(Pid::from_child(child), signal).expect("signal the server");
    }

    /// What a member says of itself; nothing if it does not answer.
    pub async fn status(&self, place: usize) -> Option<Status> {
        let endpoint = self.endpoint(place);
        let config = Config { request_timeout: Some(STATUS_TIMEOUT), read_retries: 0, ..Config::new([&endpoint]) };
        let config = Config { connect_timeout: STATUS_TIMEOUT, ..config };
        let answer = Client::new(config).expect("a valid endpoint").maintenance().status(&endpoint).await.ok()?;
        let id = answer.header.map_or(0, |header| header.member_id);
        Some(Status { id, leader: answer.leader, term: answer.raft_term })
    }

    /// The place of the member that leads in the newest term that is known.
    pub async fn leader(&self) -> Option<usize> {
        let mut best = None;
        for place in (0..self.size()).filter(|place| self.is_awake(*place)) {
            let Some(status) = self.status(place).await else { continue };
            if status.id == status.leader && best.is_none_or(|(term, _)| term < status.term) {
                best = Some((status.term, place));
            }
        }
        best.map(|(_, place)| place)
    }

    /// Waits for a leader.
    ///
    /// # Panics
    /// When there is none for too long.
    pub async fn wait_leader(&self) -> usize {
        let started = Instant::now();
        loop {
            if let Some(leader) = self.leader().await {
                return leader;
            }
            assert!(started.elapsed() < START_MAX, "no leader after {START_MAX:?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Replaces a member that does not run: removed, its directory thrown away, added again under another id and started.
    ///
    /// # Panics
    /// When the others refuse for too long.
    pub async fn replace(&mut self, place: usize) {
        let asked = (0..self.size()).find(|other| *other != place && self.is_awake(*other)).expect("somebody to ask");
        assert!(self.members[place].child.is_none(), "the member still runs");
        let port = self.members[asked].client_port;
        let url = format!("http://127.0.0.1:{}", self.members[place].relay_port);
        let list = http_post(port, "/v3/cluster/member/list", "{}");
        let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
        let all = list["members"].as_array().expect("members");
        let old = all.iter().find(|member| member["peerURLs"][0] == url[..]).expect("it is in the list");
        let remove = format!("{{\"ID\":\"{}\"}}", old["ID"].as_str().expect("an id"));
        change(port, "/v3/cluster/member/remove", &remove).await;
        fs::remove_dir_all(&self.members[place].data_dir).expect("remove its directory");
        let added = change(port, "/v3/cluster/member/add", &format!("{{\"peerURLs\":[\"{url}\"]}}")).await;
        let id = added["member"]["ID"].as_str().and_then(|id| id.parse().ok()).expect("an id");
        self.links.know(id, place);
        self.members[place].state = "existing";
        self.restart(place);
    }

    /// Cuts a member off from all others, in both directions.
    pub fn isolate(&self, place: usize, how: crate::links::Cut) {
        for other in (0..self.size()).filter(|other| *other != place) {
            self.links.cut(place, other, how);
            self.links.cut(other, place, how);
        }
    }

    /// Hash of the keyspace at `revision`, and the revision it was compacted at.
    pub fn hash_kv(&self, place: usize, revision: i64) -> String {
        let body = format!("{{\"revision\":{revision}}}");
        let answer = http_post(self.members[place].client_port, "/v3/maintenance/hashkv", &body);
        let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
        format!("{} compacted {}", answer["hash"], answer["compact_revision"])
    }

    /// Last lines of a member's log.
    pub fn log_tail(&self, place: usize) -> String {
        self.members[place].log_tail()
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
            for member in &self.members {
                eprintln!("--- end of the log of {} ---\n{}", member.name, member.log_tail());
            }
            eprintln!("--- kept for inspection: {:?} ---", self.home.take().map(TempDir::keep));
        }
    }
}

impl Member {
    fn peer(&self) -> String {
        format!("{}=http://127.0.0.1:{}", self.name, self.relay_port)
    }

    fn log_path(&self) -> PathBuf {
        self.log_path.clone()
    }

    fn log_tail(&self) -> String {
        let log = fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_TAIL_BYTES)..]).into_owned()
    }
}

/// Asks for a change of members, again while it may be refused for a moment.
async fn change(port: u16, path: &str, body: &str) -> serde_json::Value {
    let started = Instant::now();
    loop {
        let answer = http_post(port, path, body);
        let value: serde_json::Value = serde_json::from_str(&answer).unwrap_or_default();
        if value.get("members").is_some() {
            return value;
        }
        assert!(started.elapsed() < START_MAX, "{path} {body}: {answer}");
        tokio::time::sleep(10 * POLL).await;
    }
}

fn http_post(port: u16, path: &str, body: &str) -> String {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).expect("a running member");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
    let length = body.len();
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all((head + body).as_bytes()).expect("send");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("receive");
    let (_, body) = answer.split_once("\r\n\r\n").expect("an answer");
    body.to_owned()
}
