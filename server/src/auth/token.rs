//! Tokens: what `Authenticate` hands out and what every later request is recognised by. Simple tokens are rows of a
//! table that each member keeps in memory; JSON web tokens ([`super::jwt`]) carry their claims themselves. Does not know
//! what a user may do, nor whether auth is on.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};
use rand::RngExt;

use crate::auth::jwt::{Claims, Jwt};
use crate::error::Error;
use crate::limits;

/// Letters of a simple token before its dot.
const LETTERS: usize = 16;
/// A power of two.
const SHARDS: usize = 16;
/// A token that is used is given a new life at most this often, so that its line in memory is mostly read.
const SLIDE_MS: u64 = 1000;
/// Rows that each login looks at, to find some whose time is over.
const SWEPT_AT_ONCE: usize = 4;
/// Rows that are given a second chance before one in use has to go.
const SPARED_AT_ONCE: usize = 64;

/// The clocks that tokens live by: the seam for tests.
pub trait Clock: Send + Sync {
    /// Time since some fixed moment; never goes back.
    fn monotonic(&self) -> Duration;
    /// What the world calls now; the life of a JSON web token is told in it.
    fn wall(&self) -> SystemTime;
}

struct SystemClock(Instant);

impl Clock for SystemClock {
    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// Which kind of token is handed out and accepted: `--auth-token`. Two kinds are equal if they were written alike.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum TokenSpec {
    /// Random letters, kept by every member. Gone after a restart.
    #[default]
    Simple,
    /// Signed claims, checked with a key.
    Jwt(Arc<Jwt>),
}

/// Why a text is no [`TokenSpec`]: cause and remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSpecError(pub String);

impl fmt::Display for TokenSpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TokenSpecError {}

impl FromStr for TokenSpec {
    type Err = TokenSpecError;

    /// Reads the key files that a `jwt` text names.
    fn from_str(text: &str) -> Result<Self, TokenSpecError> {
        let (kind, options) = text.split_once(',').map_or((text, None), |(kind, options)| (kind, Some(options)));
        match (kind, options) {
            ("simple", None) => Ok(Self::Simple),
            ("simple", Some(_)) => Err(TokenSpecError(format!("{text:?}: simple takes no options; write just simple"))),
            ("jwt", options) => Jwt::parse(options.unwrap_or_default()).map(|jwt| Self::Jwt(Arc::new(jwt))),
            _ => Err(TokenSpecError(format!(
                "{text:?} is no kind of token: write simple, or jwt,sign-method=RS256,pub-key=<file>,priv-key=<file>,ttl=5m"
            ))),
        }
    }
}

/// Whom a token stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The user who logged in; whether it still exists is for others to see.
    pub user: Bytes,
    /// Auth revision under which the token counts: the present one for simple tokens, the signed one for others.
    pub auth_revision: u64,
}

/// Why a token stands for nobody.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum TokenProblem {
    /// Unknown, expired, malformed, or signed by somebody else.
    Invalid,
    /// It says that it was assigned at this log index, which has not been applied here: ask again then.
    WaitFor(u64),
}

/// All tokens of one member. Shared by the net threads and apply.
///
/// Net threads look tokens up for every request, under a read lock of one shard in sixteen, which is held for one look
/// into a map. Apply takes the write lock of one shard as long, and only when somebody logs in.
///
/// Invariants: `table.rows <= TOKENS_MAX`; `verified <= JWT_CACHE_MAX`.
pub struct Tokens {
    kind: Kind,
    clock: Arc<dyn Clock>,
}

enum Kind {
    Simple(Box<Table>),
    Jwt {
        jwt: Arc<Jwt>,
        /// Tokens whose signature was right: checking one costs as much as ten puts. What is wrong never gets in, so
        /// that nobody without a key can push others out.
        verified: RwLock<HashMap<Bytes, Claims>>,
    },
}

impl Tokens {
    /// No tokens yet. Simple ones live for `simple_ttl` after their last use; zero stands for etcd's 300 s.
    pub fn new(spec: TokenSpec, simple_ttl: Duration) -> Self {
        Self::with_clock(spec, simple_ttl, Arc::new(SystemClock(Instant::now())))
    }

    /// The same, with clocks of the caller's.
    pub fn with_clock(spec: TokenSpec, simple_ttl: Duration, clock: Arc<dyn Clock>) -> Self {
        let kind = match spec {
            TokenSpec::Simple => {
                let ttl = if simple_ttl.is_zero() { limits::SIMPLE_TOKEN_TTL } else { simple_ttl };
                Kind::Simple(Box::new(Table::new(ttl)))
            }
            TokenSpec::Jwt(jwt) => Kind::Jwt { jwt, verified: RwLock::default() },
        };
        Self { kind, clock }
    }

    /// Random letters for a new simple token. Whoever applies the login appends a dot and its log index, which makes the
    /// token unique, and assigns it. Nothing for other kinds.
    pub fn new_simple_text(&self) -> Option<String> {
        const ALPHABET: &[u8; 52] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
        let Kind::Simple(_) = &self.kind else { return None };
        // Seeded by the system and fit for secrets.
        let mut random = rand::rng();
        Some((0..LETTERS).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])).collect())
    }

    /// Apply: from now on this simple token stands for the user. Ignored for other kinds.
    pub fn assign_simple(&self, token: &str, user: &str) {
        if let Kind::Simple(table) = &self.kind {
            table.assign(token, user, self.now_ms());
        }
    }

    /// A JSON web token for the user, valid from `now` on.
    ///
    /// # Errors
    /// [`Error::TokenVerifyOnly`] when this member has no key to sign with.
    pub fn issue_jwt(&self, user: &str, auth_revision: u64, now: SystemTime) -> Result<String, Error> {
        match &self.kind {
            Kind::Simple(_) => Err(Error::Internal("a signed token was asked for, but tokens are simple".into())),
            Kind::Jwt { jwt, .. } => jwt.sign(user, auth_revision, now),
        }
    }

    /// Whom a token stands for. `auth_revision` and `applied_index` are what is published now.
    pub fn identify(&self, token: &[u8], auth_revision: u64, applied_index: u64) -> Result<Verified, TokenProblem> {
        match &self.kind {
            Kind::Simple(table) => {
                let index = simple_index(token).ok_or(TokenProblem::Invalid)?;
                if index > applied_index {
                    return Err(TokenProblem::WaitFor(index));
                }
                let user = table.user_of(token, self.now_ms()).ok_or(TokenProblem::Invalid)?;
                Ok(Verified { user, auth_revision })
            }
            Kind::Jwt { jwt, verified } => {
                let claims = self.claims(jwt, verified, token).ok_or(TokenProblem::Invalid)?;
                Ok(Verified { user: claims.user, auth_revision: claims.auth_revision })
            }
        }
    }

    /// Apply: the user is gone or has another password, and no simple token of theirs counts any more.
    pub fn drop_user(&self, user: &str) {
        if let Kind::Simple(table) = &self.kind {
            table.drop_user(user);
        }
    }

    /// Apply: auth is off, and no simple token counts any more.
    pub fn drop_all(&self) {
        if let Kind::Simple(table) = &self.kind {
            table.drop_all();
        }
    }

    fn claims(&self, jwt: &Jwt, verified: &RwLock<HashMap<Bytes, Claims>>, token: &[u8]) -> Option<Claims> {
        let wall = self.clock.wall();
        if let Some(claims) = verified.read().get(token) {
            return claims.is_alive(wall).then(|| claims.clone());
        }
        let claims = jwt.verify(token, wall)?;
        let mut verified = verified.write();
        if verified.len() >= limits::JWT_CACHE_MAX {
            verified.retain(|_, claims| claims.is_alive(wall));
        }
        if verified.len() >= limits::JWT_CACHE_MAX {
            // All in use: each is checked once more when it comes again.
            verified.clear();
        }
        verified.insert(Bytes::copy_from_slice(token), claims.clone());
        Some(claims)
    }

    fn now_ms(&self) -> u64 {
        self.clock.monotonic().as_millis() as u64
    }
}

/// The log index in `<letters>.<index>`; nothing if the token is no simple one. As strict as etcd: a sign is refused.
fn simple_index(token: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(token).ok()?;
    let (_, index) = text.split_once('.')?;
    if index.is_empty() || !index.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    index.parse().ok()
}

/// The simple tokens.
struct Table {
    ttl_ms: u64,
    shards: [RwLock<HashMap<Bytes, Arc<Row>>>; SHARDS],
    /// Apply's own books; net threads never look.
    books: Mutex<Books>,
}

/// A token's row.
struct Row {
    token: Bytes,
    account: Arc<Account>,
    /// Only grows.
    expires_at_ms: AtomicU64,
    /// Since the sweep looked at it last.
    used: AtomicBool,
}

/// What all tokens of a user share.
struct Account {
    user: Bytes,
    dropped: AtomicBool,
}

#[derive(Default)]
struct Books {
    /// Those with at least one row in `order`.
    accounts: HashMap<Bytes, Arc<Account>>,
    /// All rows, in the order in which the sweep looks at them: a clock with second chances.
    order: VecDeque<Arc<Row>>,
}

impl Table {
    fn new(ttl: Duration) -> Self {
        Self { ttl_ms: ttl.as_millis() as u64, shards: Default::default(), books: Mutex::default() }
    }

    fn shard(&self, token: &[u8]) -> &RwLock<HashMap<Bytes, Arc<Row>>> {
        // The letters are random: their low bits spread well enough.
        let mixed =
            token.iter().take(LETTERS).fold(0usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(*byte as usize));
        &self.shards[mixed % SHARDS]
    }

    fn user_of(&self, token: &[u8], now_ms: u64) -> Option<Bytes> {
        let shard = self.shard(token).read();
        let row = shard.get(token)?;
        let expires_at_ms = row.expires_at_ms.load(Ordering::Relaxed);
        if now_ms >= expires_at_ms || row.account.dropped.load(Ordering::Acquire) {
            return None;
        }
        let renewed = now_ms + self.ttl_ms;
        if renewed >= expires_at_ms + SLIDE_MS.min(self.ttl_ms / 4) {
            row.expires_at_ms.fetch_max(renewed, Ordering::Relaxed);
            row.used.store(true, Ordering::Relaxed);
        }
        Some(row.account.user.clone())
    }

    fn assign(&self, token: &str, user: &str, now_ms: u64) {
        let mut books = self.books.lock();
        self.sweep(&mut books, now_ms);
        let account = books
            .accounts
            .entry(Bytes::copy_from_slice(user.as_bytes()))
            .or_insert_with_key(|user| Arc::new(Account { user: user.clone(), dropped: AtomicBool::new(false) }));
        let row = Arc::new(Row {
            token: Bytes::copy_from_slice(token.as_bytes()),
            account: account.clone(),
            expires_at_ms: AtomicU64::new(now_ms + self.ttl_ms),
            used: AtomicBool::new(false),
        });
        let before = self.shard(&row.token).write().insert(row.token.clone(), row.clone());
        if let Some(before) = before {
            // The same entry applied again.
            books.order.retain(|other| !Arc::ptr_eq(other, &before));
        }
        books.order.push_back(row);
    }

    /// Takes out what is over, a few rows at a time; and one that is not, if there would be too many. With the default
    /// price of a password no machine can check enough of them within the life of a token to get that far.
    fn sweep(&self, books: &mut Books, now_ms: u64) {
        let is_full = books.order.len() >= limits::TOKENS_MAX;
        let looks = if is_full { SPARED_AT_ONCE } else { SWEPT_AT_ONCE };
        for look in 1..=looks.min(books.order.len()) {
            let Some(row) = books.order.pop_front() else { return };
            let over =
                now_ms >= row.expires_at_ms.load(Ordering::Relaxed) || row.account.dropped.load(Ordering::Relaxed);
            let used = row.used.swap(false, Ordering::Relaxed);
            if over || (is_full && (!used || look == looks)) {
                self.forget(books, &row);
                if is_full {
                    return;
                }
            } else {
                books.order.push_back(row);
            }
        }
    }

    /// Takes out a row that is not in `order` any more.
    fn forget(&self, books: &mut Books, row: &Arc<Row>) {
        let mut shard = self.shard(&row.token).write();
        if shard.get(&row.token).is_some_and(|present| Arc::ptr_eq(present, row)) {
            shard.remove(&row.token);
        }
        drop(shard);
        // The books, and this row: no other row is left.
        if Arc::strong_count(&row.account) == 2
            && books.accounts.get(&row.account.user).is_some_and(|present| Arc::ptr_eq(present, &row.account))
        {
            books.accounts.remove(&row.account.user);
        }
    }

    /// Costs the same however many tokens the user has: the sweep takes their rows out later.
    fn drop_user(&self, user: &str) {
        if let Some(account) = self.books.lock().accounts.remove(user.as_bytes()) {
            account.dropped.store(true, Ordering::Release);
        }
    }

    fn drop_all(&self) {
        let mut books = self.books.lock();
        for shard in &self.shards {
            shard.write().clear();
        }
        *books = Books::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock that the test moves.
    pub(crate) struct Manual(Mutex<Duration>);

    impl Manual {
        fn advance(&self, by: Duration) {
            *self.0.lock() += by;
        }
    }

    impl Clock for Manual {
        fn monotonic(&self) -> Duration {
            *self.0.lock()
        }

        fn wall(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000) + *self.0.lock()
        }
    }

    fn simple() -> (Tokens, Arc<Manual>) {
        let clock = Arc::new(Manual(Mutex::new(Duration::from_secs(5))));
        (Tokens::with_clock(TokenSpec::Simple, Duration::ZERO, clock.clone()), clock)
    }

    fn who(tokens: &Tokens, token: &str) -> Result<Bytes, TokenProblem> {
        tokens.identify(token.as_bytes(), 3, 100).map(|verified| verified.user)
    }

    fn rows(tokens: &Tokens) -> (usize, usize, usize) {
        let Kind::Simple(table) = &tokens.kind else { panic!("simple") };
        let books = table.books.lock();
        (table.shards.iter().map(|shard| shard.read().len()).sum(), books.order.len(), books.accounts.len())
    }

    #[test]
    fn a_simple_token_is_letters_and_the_index_of_its_login() {
        let (tokens, _) = simple();
        let text = tokens.new_simple_text().expect("simple");
        assert!(text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_alphabetic()), "{text}");
        assert_ne!(Some(text.clone()), tokens.new_simple_text());
        let token = format!("{text}.42");
        tokens.assign_simple(&token, "alice");
        assert_eq!(tokens.identify(token.as_bytes(), 7, 42), Ok(Verified { user: "alice".into(), auth_revision: 7 }));
        assert_eq!(tokens.identify(token.as_bytes(), 7, 41), Err(TokenProblem::WaitFor(42)));
        assert_eq!(tokens.identify(format!("{text}.41").as_bytes(), 7, 42), Err(TokenProblem::Invalid));
    }

    #[test]
    fn what_is_no_simple_token_is_invalid_and_waits_for_nothing() {
        let (tokens, _) = simple();
        for bad in
            ["", ".", "a", "a.", "a.b", "a.1.2", "a.+1", "a.-1", "a.1 ", "a. 1", "a.0x1", "a.99999999999999999999"]
        {
            assert_eq!(who(&tokens, bad), Err(TokenProblem::Invalid), "{bad:?}");
        }
        assert_eq!(tokens.identify(b"\xff\xfe.1", 1, 1), Err(TokenProblem::Invalid));
        assert_eq!(who(&tokens, "a.18446744073709551615"), Err(TokenProblem::WaitFor(u64::MAX)));
        assert_eq!(who(&tokens, "a.1"), Err(TokenProblem::Invalid), "well formed, never assigned");
    }

    #[test]
    fn every_use_gives_a_simple_token_a_new_life() {
        let (tokens, clock) = simple();
        tokens.assign_simple("used.1", "u");
        tokens.assign_simple("idle.2", "u");
        for _ in 0..10 {
            clock.advance(Duration::from_secs(150));
            assert!(who(&tokens, "used.1").is_ok());
        }
        assert_eq!(who(&tokens, "idle.2"), Err(TokenProblem::Invalid));
        clock.advance(Duration::from_millis(299_999));
        assert!(who(&tokens, "used.1").is_ok());
        clock.advance(Duration::from_secs(300));
        assert_eq!(who(&tokens, "used.1"), Err(TokenProblem::Invalid));
        assert_eq!(who(&tokens, "used.1"), Err(TokenProblem::Invalid), "asking did not revive it");
    }

    #[test]
    fn dropping_a_user_spares_the_others_and_what_the_name_gets_later() {
        let (tokens, _) = simple();
        for token in ["a.1", "b.2"] {
            tokens.assign_simple(token, "alice");
        }
        tokens.assign_simple("c.3", "bob");
        tokens.drop_user("alice");
        tokens.drop_user("nobody");
        assert_eq!(
            (who(&tokens, "a.1"), who(&tokens, "b.2")),
            (Err(TokenProblem::Invalid), Err(TokenProblem::Invalid))
        );
        assert_eq!(who(&tokens, "c.3"), Ok("bob".into()));
        tokens.assign_simple("d.4", "alice");
        assert_eq!(who(&tokens, "d.4"), Ok("alice".into()));
        assert_eq!(who(&tokens, "a.1"), Err(TokenProblem::Invalid));
        tokens.drop_user("alice");
        assert_eq!(who(&tokens, "d.4"), Err(TokenProblem::Invalid));
        tokens.drop_all();
        assert_eq!(who(&tokens, "c.3"), Err(TokenProblem::Invalid));
        assert_eq!(rows(&tokens), (0, 0, 0));
    }

    #[test]
    fn logins_of_the_past_take_no_room() {
        let (tokens, clock) = simple();
        for login in 0..100_000u32 {
            clock.advance(Duration::from_secs(1));
            tokens.assign_simple(&format!("t{login}.1"), &format!("user-{}", login % 1000));
        }
        let (in_shards, in_order, accounts) = rows(&tokens);
        assert_eq!(in_shards, in_order);
        assert!(in_order <= 400 && accounts <= 400, "{in_order} rows of {accounts} users");
        tokens.assign_simple("t99999.1", "user-999");
        assert_eq!(rows(&tokens).0, rows(&tokens).1, "assigned twice, kept once");
    }

    #[test]
    fn a_million_logins_at_once_are_bounded_and_what_is_used_stays() {
        let (tokens, clock) = simple();
        tokens.assign_simple("busy.1", "service");
        for login in 0..1_000_000u32 {
            if login % 20_000 == 0 {
                clock.advance(Duration::from_secs(2));
                assert_eq!(who(&tokens, "busy.1"), Ok("service".into()), "after {login} logins");
            }
            tokens.assign_simple(&format!("t{login}.1"), "flood");
        }
        let (in_shards, in_order, accounts) = rows(&tokens);
        assert_eq!((in_shards, in_order, accounts), (limits::TOKENS_MAX, limits::TOKENS_MAX, 2));
        assert_eq!(who(&tokens, "t999999.1"), Ok("flood".into()));
        assert_eq!(who(&tokens, "t0.1"), Err(TokenProblem::Invalid), "the longest idle ones made room");
    }

    #[test]
    fn a_spec_says_what_is_wrong_with_it() {
        assert_eq!("simple".parse(), Ok(TokenSpec::Simple));
        for (text, words) in
            [("", "no kind of token"), ("simple,ttl=1m", "takes no options"), ("rot13", "write simple, or jwt")]
        {
            let error = text.parse::<TokenSpec>().expect_err(text);
            assert!(error.0.contains(words), "{text:?}: {error}");
        }
    }

    #[test]
    fn web_tokens_are_remembered_within_a_bound_until_they_expire() {
        let clock = Arc::new(Manual(Mutex::new(Duration::ZERO)));
        let jwt = Arc::new(Jwt::with_secret(b"a secret of thirty-two characters", Duration::from_secs(300)));
        let tokens = Tokens::with_clock(TokenSpec::Jwt(jwt), Duration::ZERO, clock.clone());
        assert_eq!(tokens.new_simple_text(), None);
        let token = tokens.issue_jwt("alice", 9, clock.wall()).expect("signs");
        for _ in 0..2 {
            let verified = tokens.identify(token.as_bytes(), 12, 0);
            assert_eq!(verified, Ok(Verified { user: "alice".into(), auth_revision: 9 }));
        }
        for number in 0..limits::JWT_CACHE_MAX + 10 {
            let other = tokens.issue_jwt(&format!("u{number}"), 9, clock.wall()).expect("signs");
            assert!(tokens.identify(other.as_bytes(), 9, 0).is_ok());
            let Kind::Jwt { verified, .. } = &tokens.kind else { panic!("jwt") };
            assert!(verified.read().len() <= limits::JWT_CACHE_MAX);
        }
        clock.advance(Duration::from_secs(299));
        assert!(tokens.identify(token.as_bytes(), 9, 0).is_ok());
        clock.advance(Duration::from_secs(1));
        assert_eq!(tokens.identify(token.as_bytes(), 9, 0), Err(TokenProblem::Invalid), "remembered, but over");
        let mut forged = token.into_bytes();
        let middle = forged.len() / 2;
        forged[middle] ^= 1;
        assert_eq!(tokens.identify(&forged, 9, 0), Err(TokenProblem::Invalid));
    }
}
