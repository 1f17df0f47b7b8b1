//! Clusters of real processes as operators have them: founded with etcd's ids, used through any member, losing and getting
//! back members, growing and shrinking under load, refusing whoever does not belong to them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bytes::Bytes;
use daymark_api::etcdserverpb as pb;
use daymark_client::{Client, Config};
use daymark_tests::{
    changing::{Cluster, eventually},
    ctl::Etcdctl,
    etcd, ports,
    process::{Program, http_get},
    wire::{self, Call, runtime},
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// The etcdctl that is run: the newest that is installed.
fn etcdctl(test: &str) -> Option<Etcdctl> {
    etcd::etcdctls(test).pop()
}

/// Id, name, peer URLs, client URLs and whether it is a learner, of each member.
fn members(list: &Value) -> Vec<(u64, String, String, String, bool)> {
    let text = |member: &Value, field: &str| {
        let urls = member[field].as_array().map(Vec::as_slice).unwrap_or_default();
        urls.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
    };
    let member = |member: &Value| {
        (
            member["ID"].as_u64().expect("an id"),
            member["name"].as_str().unwrap_or_default().to_owned(),
            text(member, "peerURLs"),
            text(member, "clientURLs"),
            member["isLearner"].as_bool().unwrap_or(false),
        )
    };
    list["members"].as_array().expect("members").iter().map(member).collect()
}

/// Writes with one client through all endpoints that it is told of, until it is stopped.
struct Load {
    endpoints: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<BTreeMap<u64, bool>>>,
}

impl Load {
    fn start(endpoints: Vec<String>) -> Self {
        let (endpoints, stop) = (Arc::new(Mutex::new(endpoints)), Arc::new(AtomicBool::new(false)));
        let (seen, stopping) = (Arc::clone(&endpoints), Arc::clone(&stop));
        let worker = thread::spawn(move || {
            runtime().block_on(async {
                let mut outcomes = BTreeMap::new();
                let mut known = Vec::new();
                let mut client = None;
                for number in 0.. {
                    if stopping.load(Ordering::Relaxed) {
                        break;
                    }
                    let now = seen.lock().expect("no panic while held").clone();
                    if now != known {
                        client = Some(Client::new(Config::new(&now)).expect("a client"));
                        known = now;
                    }
                    let kv = client.as_ref().expect("made above").kv();
                    let put = kv.put(format!("load/{number:08}"), number.to_string()).await;
                    outcomes.insert(number, put.is_ok());
                }
                outcomes
            })
        });
        Self { endpoints, stop, worker: Some(worker) }
    }

    fn use_endpoints(&self, endpoints: Vec<String>) {
        *self.endpoints.lock().expect("no panic while held") = endpoints;
    }

    /// Which writes were acknowledged.
    fn end(mut self) -> BTreeMap<u64, bool> {
        self.stop.store(true, Ordering::Relaxed);
        self.worker.take().expect("joined once").join().expect("the writer does not panic")
    }
}

/// Every acknowledged write is on every member, and all of them hold the same.
fn assert_all_there(cluster: &Cluster, ctl: &Etcdctl, numbers: &[usize], outcomes: &BTreeMap<u64, bool>) {
    let acknowledged: Vec<u64> = outcomes.iter().filter(|(_, done)| **done).map(|(number, _)| *number).collect();
    assert!(acknowledged.len() > 100, "only {} of {} writes were acknowledged", acknowledged.len(), outcomes.len());
    let failed = outcomes.len() - acknowledged.len();
    println!("{} writes acknowledged, {failed} not", acknowledged.len());
    for number in numbers {
        let listed = cluster.ctl(ctl, &[*number], "get load/ --prefix --keys-only --consistency=l");
        assert_eq!(listed.code, Some(0), "{}", listed.stderr);
        let there: std::collections::BTreeSet<&str> = listed.stdout.lines().filter(|line| !line.is_empty()).collect();
        for written in &acknowledged {
            assert!(
                there.contains(format!("load/{written:08}").as_str()),
                "write {written} is lost on member {number}"
            );
        }
    }
    assert_same_hash(cluster, ctl, numbers);
}

fn assert_same_hash(cluster: &Cluster, ctl: &Etcdctl, numbers: &[usize]) {
    let revision = cluster.status(ctl, &numbers[..1])[0].1["header"]["revision"].as_i64().expect("a revision");
    let hashes: Vec<_> = numbers
        .iter()
        .map(|number| {
            // Whoever is behind has not reached the revision yet.
            let read = cluster.ctl(ctl, &[*number], "get x --consistency=l");
            assert_eq!(read.code, Some(0), "{}", read.stderr);
            let hash = cluster.ctl_json(ctl, &[*number], &format!("endpoint hashkv --rev {revision}"));
            let hash = &hash[0]["HashKV"];
            (hash["hash"].as_u64().expect("a hash"), hash["hash_revision"].clone())
        })
        .collect();
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
}

/// The same flags, one after the other on the same ports: the same ids, names and addresses.
#[test]
fn three_founders_have_etcds_ids() {
    let test = "three_founders_have_etcds_ids";
    let (Some(ctl), Some(oracle)) = (etcdctl(test), etcd::oracle_or_skip(test)) else { return };
    let ports: Vec<_> = (0..3).map(|_| (ports::free(), ports::free())).collect();
    let flags = ["--initial-cluster-token", "of-the-test"];
    let list = |program: &Program| {
        let mut cluster = Cluster::prepare_on(program, &ports, &flags);
        cluster.start_all();
        let all = [0, 1, 2];
        let mut list = Value::Null;
        // Each tells its name and addresses as soon as it can.
        eventually("publication", || {
            list = cluster.ctl_json(&ctl, &all, "member list");
            members(&list).iter().all(|(_, name, _, clients, _)| !name.is_empty() && !clients.is_empty())
        });
        let leader = cluster.wait_leader(&ctl, &all);
        let status = cluster.status(&ctl, &all);
        assert_eq!(status.len(), 3);
        assert!(status.iter().all(|(_, status)| status["errors"].is_null()), "{status:?}");
        for number in all {
            let metrics = http_get(cluster.client_port(number), "/metrics").expect("metrics").1;
            let leads = format!("etcd_server_is_leader {}", u8::from(number == leader));
            assert!(metrics.lines().any(|line| line == leads), "member {number}: {leads}");
            assert!(metrics.contains("\netcd_server_has_leader 1"), "member {number}");
        }
        (list["header"]["cluster_id"].as_u64(), members(&list))
    };
    let (etcds, ours) = (list(&oracle), list(&Program::daymark()));
    assert_eq!(etcds, ours);
}

#[test]
fn what_is_written_through_one_member_is_read_through_all_and_a_lost_leader_is_replaced() {
    let Some(ctl) = etcdctl("a_lost_leader_is_replaced") else { return };
    let all = [0, 1, 2];
    let mut cluster = Cluster::start(&Program::daymark(), 3, &[]);
    for writer in all {
        let put = cluster.ctl(&ctl, &[writer], &format!("put through/{writer} {writer}"));
        assert_eq!(put.code, Some(0), "{}", put.stderr);
        for reader in all {
            let got = cluster.ctl(&ctl, &[reader], &format!("get through/{writer} --print-value-only"));
            assert_eq!(got.stdout.trim(), writer.to_string(), "through member {reader}: {}", got.stderr);
        }
    }
    let leader = cluster.wait_leader(&ctl, &all);
    let rest: Vec<_> = all.into_iter().filter(|number| *number != leader).collect();
    cluster.kill(leader);
    let begun = Instant::now();
    eventually("a write without the old leader", || cluster.ctl(&ctl, &rest, "put after 1").code == Some(0));
    println!("written {:?} after the leader was killed", begun.elapsed());
    let new = cluster.wait_leader(&ctl, &rest);
    assert_ne!(new, leader);
    cluster.restart(leader);
    let got = cluster.ctl(&ctl, &[leader], "get after --print-value-only");
    assert_eq!(got.stdout.trim(), "1", "{}", got.stderr);
    assert_same_hash(&cluster, &ctl, &all);

    // All at once: what was acknowledged comes back.
    all.iter().for_each(|number| cluster.kill(*number));
    cluster.start_all();
    for reader in all {
        let got = cluster.ctl(&ctl, &[reader], "get after --print-value-only");
        assert_eq!(got.stdout.trim(), "1", "{}", got.stderr);
    }
    assert_same_hash(&cluster, &ctl, &all);
}

#[test]
fn five_founders_go_on_without_two_of_them() {
    let Some(ctl) = etcdctl("five_founders_go_on_without_two_of_them") else { return };
    let all = [0, 1, 2, 3, 4];
    let mut cluster = Cluster::start(&Program::daymark(), 5, &[]);
    let leader = cluster.wait_leader(&ctl, &all);
    let lost = [leader, (leader + 1) % 5];
    let rest: Vec<_> = all.into_iter().filter(|number| !lost.contains(number)).collect();
    lost.iter().for_each(|number| cluster.kill(*number));
    eventually("a write without two members", || cluster.ctl(&ctl, &rest, "put k v").code == Some(0));
    cluster.start_all();
    assert_eq!(cluster.ctl(&ctl, &lost, "get k --print-value-only").stdout.trim(), "v");
    assert_same_hash(&cluster, &ctl, &all);
}

/// What is kept in more places than one: users and tokens, watches, compactions, alarms.
#[test]
fn what_one_member_is_told_all_know() {
    let Some(ctl) = etcdctl("what_one_member_is_told_all_know") else { return };
    let all = [0, 1, 2];
    // Passwords at their full price take long on a machine that has much to do.
    let cluster = Cluster::start(&Program::daymark(), 3, &["--bcrypt-cost", "4"]);
    let leader = cluster.wait_leader(&ctl, &all);
    let (one, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let run = |asked: usize, line: &str| {
        let answer = cluster.ctl(&ctl, &[asked], line);
        assert_eq!(answer.code, Some(0), "{line}: {}", answer.stderr);
        answer.stdout
    };
    let watch = ctl.start(&cluster.endpoint(other), &["watch".into(), "seen/".into(), "--prefix".into()]);
    let mut number = 0;
    let mut text = String::new();
    let started = Instant::now();
    // The watch may begin a moment later: it sees whatever is written once it stands.
    while started.elapsed() < Duration::from_secs(3) {
        run(one, &format!("put seen/{number} {number}"));
        number += 1;
    }
    text.push_str(&watch.stop().stdout);
    let last = number - 1;
    assert!(text.contains(&format!("seen/{last}\n{last}\n")), "the last of {number} events is missing: {text}");

    let revision = cluster.status(&ctl, &[one])[0].1["header"]["revision"].as_i64().expect("a revision");
    run(one, &format!("compact {revision}"));
    for asked in all {
        let old = cluster.ctl(&ctl, &[asked], "get seen/0 --rev=2");
        assert!(old.stderr.contains("required revision has been compacted"), "through {asked}: {}", old.stderr);
    }
    assert_same_hash(&cluster, &ctl, &all);

    run(one, "user add root:secret");
    run(other, "user grant-role root root");
    run(leader, "role add reader");
    run(one, "role grant-permission reader read seen/ --prefix=true");
    run(other, "user add eve:pass");
    run(one, "user grant-role eve reader");
    run(one, "auth enable");
    for asked in all {
        assert!(run(asked, "get seen/0 --user=eve:pass --print-value-only").contains('0'), "through {asked}");
        let refused = cluster.ctl(&ctl, &[asked], "put seen/0 x --user=eve:pass");
        assert!(refused.stderr.contains("permission denied"), "through {asked}: {}", refused.stderr);
        run(asked, &format!("put by-root/{asked} x --user=root:secret"));
        let wrong = cluster.ctl(&ctl, &[asked], "get seen/0 --user=eve:wrong");
        assert!(wrong.stderr.contains("authentication failed"), "through {asked}: {}", wrong.stderr);
    }
    run(other, "auth disable --user=root:secret");
    assert_same_hash(&cluster, &ctl, &all);
}

/// The others dial a member where the list says; it may move while it is away.
#[test]
fn a_member_comes_back_at_another_address() {
    let Some(ctl) = etcdctl("a_member_comes_back_at_another_address") else { return };
    let all = [0, 1, 2];
    let mut cluster = Cluster::start(&Program::daymark(), 3, &[]);
    let id = cluster.member_id(&ctl, 2);
    cluster.terminate(2);
    let url = cluster.move_peer(2);
    cluster.change(&ctl, &[0, 1], &format!("member update {id:x} --peer-urls={url}"));
    assert_eq!(cluster.ctl(&ctl, &[0, 1], "put k v").code, Some(0));
    cluster.restart(2);
    assert_eq!(cluster.ctl(&ctl, &[2], "get k --print-value-only").stdout.trim(), "v");
    // It can be elected there, too.
    let id = format!("{id:x}");
    assert_eq!(cluster.ctl(&ctl, &all, &format!("move-leader {id}")).code, Some(0));
    assert_eq!(cluster.wait_leader(&ctl, &all), 2);
    assert_same_hash(&cluster, &ctl, &all);
}

/// Without its quorum a member answers what may be old, says that it has no leader, and refuses the rest.
#[test]
fn without_a_quorum_nothing_is_promised() {
    let Some(ctl) = etcdctl("without_a_quorum_nothing_is_promised") else { return };
    let all = [0, 1, 2];
    let mut cluster = Cluster::start(&Program::daymark(), 3, &[]);
    assert_eq!(cluster.ctl(&ctl, &all, "put k v").code, Some(0));
    let leader = cluster.wait_leader(&ctl, &all);
    let rest: Vec<_> = all.into_iter().filter(|number| *number != leader).collect();
    rest.iter().for_each(|number| cluster.kill(*number));
    let left = leader;
    // A check that began before it was noticed waits for its read.
    eventually("the loss of the quorum is noticed", || {
        let health = http_get(cluster.client_port(left), "/health");
        matches!(health, Ok((503, body)) if body.contains("RAFT NO LEADER"))
    });
    let metrics = http_get(cluster.client_port(left), "/metrics").expect("metrics").1;
    assert!(metrics.contains("\netcd_server_has_leader 0"));
    let status = cluster.status(&ctl, &[left]);
    assert_eq!(status[0].1["errors"][0], "etcdserver: no leader", "{status:?}");
    let stale = cluster.ctl(&ctl, &[left], "get k --consistency=s --print-value-only");
    assert_eq!(stale.stdout.trim(), "v");
    let read = cluster.ctl(&ctl, &[left], "get k --command-timeout=2s");
    assert_ne!(read.code, Some(0), "{}", read.stdout);
    let put = cluster.ctl(&ctl, &[left], "put k w --command-timeout=2s");
    assert_ne!(put.code, Some(0), "{}", put.stdout);
    let range = pb::RangeRequest { key: "k".into(), serializable: true, ..Default::default() };
    let call = Call::new("KV.Range", &range);
    let without = runtime().block_on(wire::call(&cluster.endpoint(left), &call));
    assert_eq!(without.code, Some(0), "{without:?}");
    let wanting = runtime().block_on(wire::call(&cluster.endpoint(left), &call.header("hasleader", "true")));
    assert_eq!((wanting.code, wanting.message.as_str()), (Some(14), "etcdserver: no leader"));
    rest.iter().for_each(|number| cluster.spawn(*number));
    rest.iter().for_each(|number| cluster.wait_healthy(*number));
    cluster.wait_healthy(left);
    assert_same_hash(&cluster, &ctl, &all);
}

/// What was added since the states were last flushed is in the logs only: enough to find each other again.
#[test]
fn members_that_were_just_added_find_each_other_after_all_were_killed() {
    let Some(ctl) = etcdctl("members_that_were_just_added") else { return };
    let mut cluster = Cluster::start(&Program::daymark(), 1, &[]);
    let mut present = vec![0];
    for _ in 0..2 {
        let number = add(&mut cluster, &ctl, &present, false);
        cluster.restart(number);
        present.push(number);
    }
    assert_eq!(cluster.ctl(&ctl, &present, "put k v").code, Some(0));
    present.iter().for_each(|number| cluster.kill(*number));
    cluster.start_all();
    for number in &present {
        assert_eq!(cluster.ctl(&ctl, &[*number], "get k --print-value-only").stdout.trim(), "v");
    }
    assert_same_hash(&cluster, &ctl, &present);
}

/// The last resort: one member goes on with what it has, the others are out for ever.
#[test]
fn one_member_goes_on_alone_when_all_others_are_lost() {
    let Some(ctl) = etcdctl("one_member_goes_on_alone") else { return };
    let all = [0, 1, 2];
    let mut cluster = Cluster::start(&Program::daymark(), 3, &[]);
    assert_eq!(cluster.ctl(&ctl, &all, "put k v").code, Some(0));
    let id = cluster.member_id(&ctl, 0);
    all.iter().for_each(|number| cluster.kill(*number));
    cluster.set_extra(&["--force-new-cluster"]);
    cluster.restart(0);
    assert_eq!(cluster.ctl(&ctl, &[0], "get k --print-value-only").stdout.trim(), "v");
    let list = members(&cluster.ctl_json(&ctl, &[0], "member list"));
    assert_eq!(list.iter().map(|member| member.0).collect::<Vec<_>>(), [id]);
    assert_eq!(cluster.ctl(&ctl, &[0], "put k w").code, Some(0));

    cluster.kill(0);
    cluster.set_extra(&[]);
    cluster.restart(0);
    // One of the others comes back: it is told that it was removed, and stops.
    cluster.spawn(1);
    let ended = cluster.wait_end(1);
    assert!(!ended.success() && cluster.log(1).contains("removed from the cluster"), "{ended:?}");
    cluster.wipe(1);
    cluster.found_anew(1, &cluster.initial_cluster(&[0, 1]), "existing");
    let url = cluster.peer_url(1);
    cluster.change(&ctl, &[0], &format!("member add m1 --peer-urls={url}"));
    cluster.restart(1);
    assert_eq!(cluster.ctl(&ctl, &[1], "get k --print-value-only").stdout.trim(), "w");
    assert_same_hash(&cluster, &ctl, &[0, 1]);
}

/// 1, 3, 5 and again 3 members, while a client writes.
#[test]
fn a_cluster_grows_and_shrinks_under_load() {
    let Some(ctl) = etcdctl("a_cluster_grows_and_shrinks_under_load") else { return };
    let mut cluster = Cluster::start(&Program::daymark(), 1, &[]);
    let load = Load::start(vec![cluster.endpoint(0)]);
    let mut present = vec![0];
    for step in 1..5 {
        // Every other one as a learner that is promoted, the rest as voters.
        let as_learner = step % 2 == 1;
        let number = add(&mut cluster, &ctl, &present, as_learner);
        cluster.spawn(number);
        if as_learner {
            promote(&cluster, &ctl, &present, number);
        }
        cluster.wait_healthy(number);
        present.push(number);
        load.use_endpoints(present.iter().map(|number| cluster.endpoint(*number)).collect());
        eventually("everybody is a voter and has started", || {
            let list = members(&cluster.ctl_json(&ctl, &present, "member list"));
            list.len() == present.len() && list.iter().all(|(_, name, _, _, learner)| !name.is_empty() && !learner)
        });
    }
    cluster.wait_leader(&ctl, &present);
    // The first two go, one of them perhaps the leader.
    for gone in [0, 1] {
        let id = cluster.member_id(&ctl, gone);
        present.retain(|number| *number != gone);
        load.use_endpoints(present.iter().map(|number| cluster.endpoint(*number)).collect());
        let others = present.clone();
        cluster.change(&ctl, &others, &format!("member remove {id:x}"));
        let ended = cluster.wait_end(gone);
        assert!(!ended.success(), "{ended:?}");
        assert!(cluster.log(gone).contains("removed from the cluster"), "its last words say why");
    }
    cluster.wait_leader(&ctl, &present);
    let outcomes = load.end();
    assert_all_there(&cluster, &ctl, &present, &outcomes);
    let list = members(&cluster.ctl_json(&ctl, &present, "member list"));
    assert_eq!(list.len(), 3);

    let refused = cluster.refuse(0);
    assert_eq!(refused.status.code(), Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("removed from the cluster"), "{}", refused.stderr);
}

/// Adds a member, which is not started yet.
fn add(cluster: &mut Cluster, ctl: &Etcdctl, present: &[usize], as_learner: bool) -> usize {
    let number = cluster.prepare_joiner(present);
    let (name, url) = (cluster.name(number).to_owned(), cluster.peer_url(number));
    let learner = if as_learner { " --learner" } else { "" };
    cluster.change(ctl, present, &format!("member add {name} --peer-urls={url}{learner}"));
    let list = members(&cluster.ctl_json(ctl, present, "member list"));
    let added = list.iter().find(|(_, _, peers, _, _)| *peers == url).expect("it is in the list");
    assert_eq!((added.1.as_str(), added.4), ("", as_learner), "it has not started");
    number
}

fn promote(cluster: &Cluster, ctl: &Etcdctl, present: &[usize], number: usize) {
    let url = cluster.peer_url(number);
    let list = members(&cluster.ctl_json(ctl, present, "member list"));
    let (id, ..) = list.iter().find(|(_, _, peers, _, _)| *peers == url).expect("it is in the list");
    cluster.change(ctl, present, &format!("member promote {id:x}"));
}

/// The same commands to three members of each: what is allowed and refused, and how.
#[test]
fn changes_are_refused_in_etcds_words() {
    let test = "changes_are_refused_in_etcds_words";
    let (Some(ctl), Some(oracle)) = (etcdctl(test), etcd::oracle_or_skip(test)) else { return };
    let (etcds, ours) = (last_words(&ctl, &oracle), last_words(&ctl, &Program::daymark()));
    assert!(etcds.iter().filter(|(_, words)| words.starts_with("Error: etcdserver: ")).count() > 10, "{etcds:#?}");
    assert_eq!(etcds, ours);
}

/// How each change ends: with what etcdctl says last if it fails.
fn last_words(ctl: &Etcdctl, program: &Program) -> Vec<(&'static str, String)> {
    let all = [0, 1, 2];
    let cluster = Cluster::start(program, 3, &[]);
    let leader = cluster.wait_leader(ctl, &all);
    let follower = (leader + 1) % 3;
    let ids: Vec<_> = all.iter().map(|number| format!("{:x}", cluster.member_id(ctl, *number))).collect();
    // Both want members that have been up for five seconds.
    thread::sleep(Duration::from_secs(6));
    let mut words = Vec::new();
    let mut say = |what: &'static str, asked: &[usize], line: &str| {
        let answer = cluster.ctl(ctl, asked, line);
        let last = answer.stderr.trim().lines().last().unwrap_or_default().to_owned();
        words.push((what, if answer.code == Some(0) { String::new() } else { last }));
    };
    let by_url = |url: &str| {
        let list = members(&cluster.ctl_json(ctl, &all, "member list"));
        list.iter().find(|(_, _, peers, _, _)| peers == url).map(|member| format!("{:x}", member.0)).unwrap_or_default()
    };
    let (taken, own) = (cluster.peer_url(leader), &ids[follower]);
    for asked in [&[leader][..], &[follower]] {
        say("an address that is taken", asked, &format!("member add x --peer-urls={taken}"));
        say("removal of nobody", asked, "member remove 1234");
        say("promotion of nobody", asked, "member promote 1234");
        say("promotion of a voter", asked, &format!("member promote {own}"));
        say("update of nobody", asked, "member update 1234 --peer-urls=http://127.0.0.1:1");
        say("update with an address that is taken", asked, &format!("member update {own} --peer-urls={taken}"));
    }
    say("a learner", &[follower], "member add l --learner --peer-urls=http://127.0.0.1:1");
    let learner = by_url("http://127.0.0.1:1");
    for asked in [&[leader][..], &[follower]] {
        say("promotion of a learner that is not there", asked, &format!("member promote {learner}"));
        say("a second learner", asked, "member add m --learner --peer-urls=http://127.0.0.1:2");
    }
    say("leadership for a learner", &all, &format!("move-leader {learner}"));
    say("leadership for nobody", &all, "move-leader 1234");
    say("removal of the learner", &[follower], &format!("member remove {learner}"));
    say("its removal again", &[leader], &format!("member remove {learner}"));
    say("a fourth voter", &[follower], "member add a --peer-urls=http://127.0.0.1:3");
    say("a fifth voter", &[leader], "member add b --peer-urls=http://127.0.0.1:4");
    say("a sixth voter", &[follower], "member add c --peer-urls=http://127.0.0.1:5");
    say("removal of one of three that have started", &[leader], &format!("member remove {own}"));
    say("removal of one that has not", &[follower], &format!("member remove {}", by_url("http://127.0.0.1:4")));
    say("removal of another", &[leader], &format!("member remove {}", by_url("http://127.0.0.1:3")));
    say("a write", &[follower], "put k v");
    words
}

#[test]
fn a_learner_serves_what_may_be_old_and_nothing_else() {
    let Some(ctl) = etcdctl("a_learner_serves_what_may_be_old") else { return };
    let mut cluster = Cluster::start(&Program::daymark(), 1, &[]);
    assert_eq!(cluster.ctl(&ctl, &[0], "put k v").code, Some(0));
    let learner = add(&mut cluster, &ctl, &[0], true);
    cluster.spawn(learner);
    eventually("the learner has it", || {
        cluster.ctl(&ctl, &[learner], "get k --consistency=s --print-value-only").stdout.trim() == "v"
    });
    let unsupported = "rpc not supported for learner";
    for line in ["get k", "put k w", "member list", "lease grant 10", "del k", "alarm list"] {
        let answer = cluster.ctl(&ctl, &[learner], line);
        assert!(answer.code != Some(0) && answer.stderr.contains(unsupported), "{line}: {}", answer.stderr);
    }
    let health = Call::at("grpc.health.v1.Health.Check", Bytes::new());
    let health = format!("{:?}", runtime().block_on(wire::call(&cluster.endpoint(learner), &health)));
    assert!(health.contains(unsupported), "{health}");
    let status = &cluster.status(&ctl, &[learner])[0].1;
    assert_eq!(status["isLearner"], true, "{status}");
    assert_eq!(status["leader"].as_u64(), Some(cluster.member_id(&ctl, 0)), "{status}");
    let metrics = http_get(cluster.client_port(learner), "/metrics").expect("metrics").1;
    assert!(metrics.contains("\netcd_server_is_learner 1"));
    let (code, body) = http_get(cluster.client_port(learner), "/readyz").expect("it answers");
    assert!(code == 503 && body.contains("[-]non_learner failed"), "{code} {body}");
    let second = cluster.ctl(&ctl, &[0], "member add x --peer-urls=http://127.0.0.1:1 --learner");
    assert!(second.stderr.contains("too many learner members in cluster"), "{}", second.stderr);

    promote(&cluster, &ctl, &[0], learner);
    cluster.wait_healthy(learner);
    assert_eq!(cluster.ctl(&ctl, &[learner], "put k w").code, Some(0));
    let metrics = http_get(cluster.client_port(0), "/metrics").expect("metrics").1;
    assert!(metrics.contains("\netcd_server_learner_promote_successes 1"), "counted where it was asked for");
    assert_same_hash(&cluster, &ctl, &[0, learner]);
}

/// Leases are kept by the leader, whoever is asked; a new leader gives more time, never less.
#[test]
fn leases_are_kept_through_any_member_and_survive_their_leader() {
    let Some(ctl) = etcdctl("leases_survive_their_leader") else { return };
    let all = [0, 1, 2];
    let mut cluster = Cluster::start(&Program::daymark(), 3, &[]);
    let leader = cluster.wait_leader(&ctl, &all);
    let follower = (leader + 1) % 3;
    let granted = cluster.ctl_json(&ctl, &[follower], "lease grant 6");
    let id = format!("{:x}", granted["ID"].as_u64().expect("an id"));
    assert_eq!(cluster.ctl(&ctl, &[follower], &format!("put kept v --lease={id}")).code, Some(0));
    for asked in all {
        let left = cluster.ctl_json(&ctl, &[asked], &format!("lease timetolive {id} --keys"));
        let ttl = left["ttl"].as_i64().expect("a time");
        assert!((1..=6).contains(&ttl) && left["granted-ttl"] == 6, "through {asked}: {left}");
        assert_eq!(left["keys"].as_array().map(Vec::len), Some(1), "through {asked}: {left}");
        let kept = cluster.ctl(&ctl, &[asked], &format!("lease keep-alive --once {id}"));
        assert!(kept.code == Some(0) && kept.stdout.contains("keepalived"), "{} {}", kept.stdout, kept.stderr);
    }
    let unknown = cluster.ctl_json(&ctl, &[follower], "lease timetolive 1234");
    assert_eq!(unknown["ttl"], -1, "{unknown}");

    let kept_at = Instant::now();
    cluster.kill(leader);
    let rest: Vec<_> = all.into_iter().filter(|number| *number != leader).collect();
    let exists = |cluster: &Cluster| {
        let got = cluster.ctl(&ctl, &rest, "get kept --consistency=s --print-value-only");
        got.stdout.trim() == "v"
    };
    while exists(&cluster) {
        assert!(kept_at.elapsed() < PATIENCE, "it never ends");
        thread::sleep(POLL);
    }
    let lived = kept_at.elapsed();
    println!("a lease of 6 s lived {lived:?} after its last renewal and the death of the leader");
    assert!(lived >= Duration::from_secs(6), "only {lived:?}");
    let gone = cluster.ctl_json(&ctl, &rest, &format!("lease timetolive {id}"));
    assert_eq!(gone["ttl"], -1, "{gone}");
}

#[test]
fn leadership_moves_when_asked_for_and_when_the_leader_is_stopped() {
    let Some(ctl) = etcdctl("leadership_moves") else { return };
    let all = [0, 1, 2];
    let mut cluster = Cluster::start(&Program::daymark(), 3, &[]);
    let leader = cluster.wait_leader(&ctl, &all);
    let next = (leader + 1) % 3;
    let id = cluster.member_id(&ctl, next);
    let asked = cluster.ctl(&ctl, &all, &format!("move-leader {id:x}"));
    assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    assert_eq!(cluster.wait_leader(&ctl, &all), next);
    let unknown = cluster.ctl(&ctl, &all, "move-leader 1234");
    assert!(unknown.stderr.contains("bad leader transferee"), "{}", unknown.stderr);

    cluster.terminate(next);
    let rest: Vec<_> = all.into_iter().filter(|number| *number != next).collect();
    let begun = Instant::now();
    cluster.wait_leader(&ctl, &rest);
    assert_eq!(cluster.ctl(&ctl, &rest, "put k v").code, Some(0));
    println!("another leader {:?} after the end of the one before", begun.elapsed());
    cluster.restart(next);
    assert_same_hash(&cluster, &ctl, &all);
}

#[test]
fn whoever_does_not_belong_to_the_cluster_is_refused_and_the_cluster_goes_on() {
    let Some(ctl) = etcdctl("whoever_does_not_belong") else { return };
    let all = [0, 1, 2];
    let mut cluster = Cluster::start(&Program::daymark(), 3, &[]);
    let goes_on = |cluster: &Cluster, what: &str| {
        let put = cluster.ctl(&ctl, &all, "put k v");
        assert_eq!(put.code, Some(0), "{what}: {}", put.stderr);
    };

    // Nobody has added it.
    let stranger = cluster.prepare_joiner(&all);
    let refused = cluster.refuse(stranger);
    assert!(
        refused.stderr.contains("member count is unequal") && refused.stderr.contains("member add"),
        "{}",
        refused.stderr
    );
    assert_eq!(refused.status.code(), Some(1));
    goes_on(&cluster, "a stranger");

    // A founder whose directory is gone: the cluster knows it, it knows nothing of what it has promised.
    cluster.terminate(2);
    cluster.wipe(2);
    let refused = cluster.refuse(2);
    assert!(refused.stderr.contains("has already been bootstrapped"), "{}", refused.stderr);
    let founders = cluster.initial_cluster(&all);
    cluster.found_anew(2, &founders, "existing");
    let refused = cluster.refuse(2);
    assert!(refused.stderr.contains("has started before"), "{}", refused.stderr);
    let rest = [0, 1];
    let put = cluster.ctl(&ctl, &rest, "put k v");
    assert_eq!(put.code, Some(0), "{}", put.stderr);

    // Replaced, as its refusal says: removed, added again under another id.
    let list = members(&cluster.ctl_json(&ctl, &rest, "member list"));
    let url = cluster.peer_url(2);
    let (old, ..) = list.iter().find(|(_, _, peers, _, _)| *peers == url).expect("it is in the list");
    cluster.change(&ctl, &rest, &format!("member remove {old:x}"));
    cluster.change(&ctl, &rest, &format!("member add m2 --peer-urls={url}"));
    cluster.restart(2);
    assert_ne!(cluster.member_id(&ctl, 2), *old, "ids are not used again");
    goes_on(&cluster, "a replaced member");
    assert_same_hash(&cluster, &ctl, &all);

    // Another token makes another cluster of the same addresses: its members are refused by the others and wait.
    cluster.terminate(2);
    let kept = cluster.data_dir(2).with_extension("kept");
    std::fs::rename(cluster.data_dir(2), &kept).expect("put it aside");
    cluster.set_token("another");
    cluster.found_anew(2, &founders, "new");
    cluster.spawn(2);
    eventually("the mismatch is told", || cluster.log(2).contains("cluster") && cluster.log(2).contains("refuse"));
    assert!(!cluster.is_healthy(2));
    let put = cluster.ctl(&ctl, &rest, "put k v");
    assert_eq!(put.code, Some(0), "{}", put.stderr);
    cluster.kill(2);
    cluster.wipe(2);
    std::fs::rename(&kept, cluster.data_dir(2)).expect("put it back");
    cluster.restart(2);
    goes_on(&cluster, "back with its own directory, whatever the flags say");
    assert_same_hash(&cluster, &ctl, &all);
}
