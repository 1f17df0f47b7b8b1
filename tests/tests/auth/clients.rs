//! The client library as a user sees it: logs in by itself, gets new tokens by itself, and says what it may not do.

use std::time::Duration;

use daymark_client::{Client, ClientError, Config, KeyRange, auth::Access, watch::Update};

/// Longer than the life of a token and than etcd takes to notice that one is over.
const UNTIL_EXPIRED: Duration = Duration::from_millis(2500);

fn client(endpoint: &str, user: Option<(&str, &str)>) -> Client {
    let config = Config::new([endpoint]);
    let config = match user {
        Some((name, password)) => config.with_user(name, password),
        None => config,
    };
    Client::new(config).expect("a valid configuration")
}

fn words<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> String {
    match outcome {
        Err(ClientError::Refused { message, .. }) => message,
        other => panic!("not refused: {other:?}"),
    }
}

/// A user's day, on a server whose tokens live for a second.
pub async fn log_in_and_renew(endpoint: &str) {
    let root = client(endpoint, Some(("root", "of all")));
    let alice = client(endpoint, Some(("alice", "in wonderland")));
    set_up(&root).await;
    // Has asked before authentication was on, and so has no token.
    alice.kv().put("a/0", "early").await.expect("everybody may do everything");
    root.auth().enable().await.expect("root is there");

    alice.kv().put("a/1", "v").await.expect("alice may");
    let denied = "etcdserver: permission denied";
    assert_eq!(words(alice.kv().put("b/1", "v").await), denied);
    assert_eq!(words(alice.auth().user_list().await), denied);
    assert_eq!(alice.auth().user_get("alice").await.expect("oneself"), ["a-writer"]);
    let nobody = client(endpoint, None);
    assert_eq!(words(nobody.kv().get("a/1").await), "etcdserver: user name is empty");
    let liar = client(endpoint, Some(("alice", "in chains")));
    let failed = "etcdserver: authentication failed, invalid user ID or password";
    assert_eq!(words(liar.kv().get("a/1").await), failed);

    let granted = alice.lease().grant(60, 0).await.expect("alice is somebody");
    tokio::time::sleep(UNTIL_EXPIRED).await;
    let kv = alice.kv();
    let many = futures_util::future::join_all((0..20).map(|n| kv.put(format!("a/{n}"), "v"))).await;
    assert!(many.iter().all(Result::is_ok), "a new token: {many:?}");
    tokio::time::sleep(UNTIL_EXPIRED).await;
    let mut watcher = alice.watch().start(KeyRange::prefix("a/"), Default::default()).await.expect("a new token");
    tokio::time::sleep(UNTIL_EXPIRED).await;
    assert!(alice.lease().renew(granted.id).await.expect("a new token") > 0);
    alice.kv().put("a/watched", "v").await.expect("alice may");
    let update = watcher.next().await.expect("watches outlive their token");
    assert!(matches!(update, Some(Update::Events(events)) if events.len() == 1));

    root.auth().user_change_password("alice", "through the looking-glass").await.expect("root may");
    assert_eq!(words(alice.kv().get("a/1").await), failed, "the old password");
    let alice = client(endpoint, Some(("alice", "through the looking-glass")));
    alice.kv().get("a/1").await.expect("the new one");
    root.auth().user_revoke_role("alice", "a-writer").await.expect("root may");
    assert_eq!(words(alice.kv().get("a/1").await), denied);
    let status = root.auth().status().await.expect("anybody may");
    assert!(status.enabled && status.auth_revision > 5, "{status:?}");
    root.auth().disable().await.expect("root may");
    alice.kv().get("b/1").await.expect("everybody may do everything again");
    tear_down(&root).await;
}

async fn set_up(root: &Client) {
    let auth = root.auth();
    auth.user_add("root", "of all").await.expect("a user");
    auth.user_grant_role("root", "root").await.expect("a role that need not exist");
    auth.user_add("alice", "in wonderland").await.expect("a user");
    auth.role_add("a-writer").await.expect("a role");
    auth.role_grant_permission("a-writer", Access::ReadWrite, KeyRange::prefix("a/")).await.expect("a permission");
    auth.user_grant_role("alice", "a-writer").await.expect("both exist");
    let granted = auth.role_get("a-writer").await.expect("a role");
    assert_eq!((&granted[0].key[..], &granted[0].range_end[..]), (&b"a/"[..], &b"a0"[..]));
    assert_eq!(words(auth.role_add("a-writer").await), "etcdserver: role name already exists");
}

async fn tear_down(root: &Client) {
    let auth = root.auth();
    auth.role_revoke_permission("a-writer", KeyRange::prefix("a/")).await.expect("granted before");
    assert!(auth.role_get("a-writer").await.expect("a role").is_empty());
    auth.role_delete("a-writer").await.expect("a role");
    auth.user_delete("alice").await.expect("a user");
    auth.user_add_without_password("cert").await.expect("a user");
    assert_eq!(auth.user_list().await.expect("users"), ["cert", "root"]);
    assert!(auth.role_list().await.expect("roles").is_empty());
}
