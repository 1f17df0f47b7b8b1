//! A flood of logins with wrong passwords, and what others notice of it: the time that writes take, the memory of the server,
//! and whether one can still log in.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use daymark_api::etcdserverpb as pb;
use daymark_client::{Client, Config, KeyRange, auth::Access};
use daymark_tests::{
    connection::{Connection, Shape},
    process::{Server, resident_bytes},
};
use prost::Message;
use tokio::time::sleep;

use super::{
    threads::{aside, far_away},
    writes::{Comparison, Writers},
};

/// Connections that the flood comes over.
const CONNECTIONS: usize = 20;
/// The flood comes in so many waves, with an idle window before each.
const WAVES: u64 = 5;
const IDLE: Duration = Duration::from_secs(2);
/// What comes before the first window: connections, caches, the first segments.
const WARM_UP: Duration = Duration::from_secs(1);
/// How often memory is looked at, and another user logs in.
const LOOK: Duration = Duration::from_millis(100);
/// Passwords are checked below everybody's priority: on a machine that does other things too they take their time.
const PATIENCE: Duration = Duration::from_secs(120);

const AUTHENTICATE: &str = "/etcdserverpb.Auth/Authenticate";
const TOO_MANY: &str = "etcdserver: too many requests";

/// How large the flood is.
#[derive(Copy, Clone, Debug)]
pub struct Size {
    pub attempts: u64,
    pub at_a_time: u64,
}

/// What was seen.
pub struct Seen {
    pub writes: Comparison,
    /// How long the waves were, together.
    pub took: Duration,
    /// Attempts whose password was looked at, and those for which there was no room.
    pub wrong_password: u64,
    pub too_many: u64,
    /// Logins of another user with the right password meanwhile, and the longest of them.
    pub other_logins: u32,
    pub other_login: Duration,
    /// How many of those were refused because there was no room.
    pub others_refused: u32,
    /// Resident bytes: before, at most, and afterwards.
    pub memory: [u64; 3],
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [before, most, after] = self.memory.map(|bytes| bytes >> 10);
        write!(f, "{}; {} passwords looked at and {}", self.writes, self.wrong_password, self.too_many)?;
        write!(f, " refused in {:.1?}; another user logged in {} times", self.took, self.other_logins)?;
        write!(f, " in at most {:?}, refused {} times", self.other_login, self.others_refused)?;
        write!(f, "; resident {before} KiB before, at most {most}, {after} afterwards")
    }
}

/// Floods a fresh server.
pub async fn flood(server: &Server, size: Size) -> Seen {
    let endpoint = server.endpoint();
    set_up(&endpoint).await;
    let writers = Writers::start(Config::new([&endpoint]).with_user("writer", "password of writer"));
    sleep(WARM_UP).await;
    let over = Arc::new(AtomicBool::new(false));
    let before = server.resident_bytes();
    // On threads of their own: what they do must not look like a slow write.
    let most = aside(watch_memory(server.pid(), over.clone()));
    let (mut idle, mut crowded) = (Vec::new(), Vec::new());
    let (mut wrong_password, mut too_many, mut others) = (0, 0, Others::default());
    for wave in 0..WAVES {
        let begun = Instant::now();
        sleep(IDLE).await;
        idle.push(begun..Instant::now());
        let attempts = size.attempts * (wave + 1) / WAVES - size.attempts * wave / WAVES;
        let wave_over = Arc::new(AtomicBool::new(false));
        let others_meanwhile = aside(log_in_again_and_again(endpoint.clone(), wave_over.clone()));
        let begun = Instant::now();
        let attack = far_away(attack(endpoint.clone(), Size { attempts, ..size }));
        let (wrong, many) = attack.join().expect("no panic");
        crowded.push(begun..Instant::now());
        wave_over.store(true, Ordering::Relaxed);
        (wrong_password, too_many) = (wrong_password + wrong, too_many + many);
        others.add(others_meanwhile.join().expect("no panic"));
    }
    sleep(IDLE).await;
    over.store(true, Ordering::Relaxed);
    let memory = [before, most.join().expect("no panic"), server.resident_bytes()];
    let took = crowded.iter().map(|window| window.end - window.start).sum();
    let writes = writers.stop().compare(&idle, &crowded);
    let Others { logins: other_logins, longest: other_login, refused: others_refused } = others;
    Seen { writes, took, wrong_password, too_many, other_logins, other_login, others_refused, memory }
}

async fn set_up(endpoint: &str) {
    let root = Client::new(Config::new([endpoint]).with_user("root", "of all")).expect("valid");
    let auth = root.auth();
    auth.user_add("root", "of all").await.expect("a user");
    auth.user_grant_role("root", "root").await.expect("a user");
    auth.role_add("writer").await.expect("a role");
    auth.role_grant_permission("writer", Access::ReadWrite, KeyRange::prefix("w/")).await.expect("a role");
    for user in ["writer", "victim", "bystander"] {
        auth.user_add(user, &format!("password of {user}")).await.expect("a user");
        auth.user_grant_role(user, "writer").await.expect("a user");
    }
    auth.enable().await.expect("root is there");
}

/// Wrong passwords for one user, so many at a time; how many were looked at, and how many found no room.
async fn attack(endpoint: String, size: Size) -> (u64, u64) {
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(patient(&endpoint).await);
    }
    let (left, wrong, many) = (AtomicU64::new(size.attempts), AtomicU64::new(0), AtomicU64::new(0));
    let message = pb::AuthenticateRequest { name: "victim".into(), password: "a guess".into() }.encode_to_vec();
    let attackers = (0..size.at_a_time).map(|number| {
        let connection = &connections[number as usize % CONNECTIONS];
        let (left, wrong, many, message) = (&left, &wrong, &many, &message);
        async move {
            let take = |left: u64| left.checked_sub(1);
            while left.try_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
                match connection.ask(AUTHENTICATE, Shape::Unary, &[], message).await {
                    Err((3, text)) if text.contains("invalid user ID or password") => {
                        wrong.fetch_add(1, Ordering::Relaxed)
                    }
                    Err((2, text)) if text == TOO_MANY => many.fetch_add(1, Ordering::Relaxed),
                    other => panic!("a wrong password was answered with {other:?}"),
                };
            }
        }
    });
    futures_util::future::join_all(attackers).await;
    (wrong.into_inner(), many.into_inner())
}

async fn patient(endpoint: &str) -> Connection {
    let mut connection = Connection::open(endpoint).await;
    connection.patience = PATIENCE;
    connection
}

#[derive(Copy, Clone, Debug, Default)]
struct Others {
    logins: u32,
    longest: Duration,
    refused: u32,
}

impl Others {
    fn add(&mut self, more: Self) {
        self.logins += more.logins;
        self.longest = self.longest.max(more.longest);
        self.refused += more.refused;
    }
}

/// Another user logs in until it is over.
async fn log_in_again_and_again(endpoint: String, over: Arc<AtomicBool>) -> Others {
    let connection = patient(&endpoint).await;
    let login = pb::AuthenticateRequest { name: "bystander".into(), password: "password of bystander".into() };
    let mut seen = Others::default();
    while !over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        match connection.ask(AUTHENTICATE, Shape::Unary, &[], &login.encode_to_vec()).await {
            Ok(_) => seen.add(Others { logins: 1, longest: begun.elapsed(), refused: 0 }),
            Err((2, text)) if text == TOO_MANY => seen.refused += 1,
            Err(other) => panic!("the right password was answered with {other:?}"),
        }
        sleep(LOOK).await;
    }
    seen
}

/// The most that the process holds until it is over.
async fn watch_memory(pid: u32, over: Arc<AtomicBool>) -> u64 {
    let mut most = 0;
    while !over.load(Ordering::Relaxed) {
        most = most.max(resident_bytes(pid));
        sleep(LOOK).await;
    }
    most
}
