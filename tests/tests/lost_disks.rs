//! Members whose disk has lost or forgotten something: the superblock of the log, all of the log, what was written since an
//! older copy was made. Refused with cause and remedy where that can be noticed, and the remedy works; the cluster goes on.
//! What nobody can notice is said in `docs/operations.md`.

use std::{
    fs::{self, OpenOptions},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::Command,
};

use daymark_tests::{
    changing::{Cluster, eventually},
    ctl::Etcdctl,
    etcd,
    process::Program,
    tree::Tree,
};

const SUPERBLOCK_BYTES: usize = 32 << 10;
/// Where its second copy is, and how long each is.
const SECOND_AT: u64 = 16 << 10;
const COPY_BYTES: usize = 512;

fn etcdctl(test: &str) -> Option<Etcdctl> {
    etcd::etcdctls(test).pop()
}

fn log_dir(cluster: &Cluster, number: usize) -> PathBuf {
    cluster.data_dir(number).join("member/wal")
}

fn superblock(cluster: &Cluster, number: usize) -> PathBuf {
    log_dir(cluster, number).join("superblock")
}

fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    let mut file = OpenOptions::new().write(true).open(path).expect("open it");
    file.seek(SeekFrom::Start(offset)).and_then(|_| file.write_all(bytes)).expect("write");
}

fn truncate(path: &Path, bytes: u64) {
    OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(bytes)).expect("truncate it");
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp runs");
    assert!(copied.success(), "copy {} to {}", from.display(), to.display());
}

fn put(cluster: &Cluster, ctl: &Etcdctl, members: &[usize], value: &str) {
    let answer = cluster.ctl(ctl, members, &format!("put key {value}"));
    assert_eq!(answer.code, Some(0), "{value}: {}", answer.stderr);
}

fn expect_same(cluster: &Cluster, ctl: &Etcdctl, members: &[usize], value: &str) {
    for member in members {
        let got = cluster.ctl(ctl, &[*member], "get key --print-value-only");
        assert_eq!(got.stdout.trim(), value, "on member {member}: {}", got.stderr);
    }
    eventually("all hold the same", || {
        let hashes: Vec<_> = members
            .iter()
            .map(|member| {
                let answer = cluster.ctl(ctl, &[*member], "endpoint hashkv");
                answer.stdout.split_once(", ").map(|(_, hash)| hash.to_owned())
            })
            .collect();
        hashes.iter().all(|hash| hash.is_some() && *hash == hashes[0])
    });
}

/// It does not start, says this and how to be replaced, and leaves everything as it is; the others go on.
fn expect_refused(cluster: &mut Cluster, ctl: &Etcdctl, cause: &str) {
    let before = Tree::read(&cluster.data_dir(2));
    let refused = cluster.refuse(2);
    assert_eq!(refused.status.code(), Some(1), "{cause}: {}", refused.stderr);
    assert!(refused.stderr.contains(cause), "{cause}: {}", refused.stderr);
    for step in ["member list", "member remove", "delete its data directory", "member add"] {
        assert!(refused.stderr.contains(step), "{cause}: the remedy has no {step:?}: {}", refused.stderr);
    }
    let changed = before.differences(&Tree::read(&cluster.data_dir(2)));
    assert!(changed.is_empty(), "{cause}: {changed:?} was changed");
    put(cluster, ctl, &[0, 1], "meanwhile");
}

type Damage = fn(&Path);

#[test]
fn a_member_without_its_superblock_is_refused_and_replaced_as_its_refusal_says() {
    let Some(ctl) = etcdctl("a_member_without_its_superblock_is_refused") else { return };
    let all = [0, 1, 2];
    let mut cluster = Cluster::start(&Program::daymark(), 3, &[]);
    put(&cluster, &ctl, &all, "before");
    cluster.kill(2);
    let kept = cluster.data_dir(2).with_extension("kept");
    copy(&cluster.data_dir(2), &kept);
    let losses: [(&str, Damage); 4] = [
        ("the superblock is missing, but log files exist", |path| fs::remove_file(path).expect("remove it")),
        ("neither copy is valid (at 0: not a superblock", |path| overwrite(path, 0, &[0; SUPERBLOCK_BYTES])),
        ("neither copy is valid (at 0: cut short", |path| truncate(path, 0)),
        ("the log is missing", |path| fs::remove_dir_all(path.parent().expect("its log")).expect("remove it")),
    ];
    for (cause, damage) in losses {
        fs::remove_dir_all(cluster.data_dir(2)).expect("remove what was damaged");
        copy(&kept, &cluster.data_dir(2));
        damage(&superblock(&cluster, 2));
        expect_refused(&mut cluster, &ctl, cause);
    }

    // Step by step what it says.
    let url = cluster.peer_url(2);
    let list = cluster.ctl(&ctl, &[0, 1], "member list").stdout;
    let line = list.lines().find(|line| line.contains(&url)).expect("it is in the list");
    let id = line.split(',').next().expect("an id");
    cluster.change(&ctl, &[0, 1], &format!("member remove {id}"));
    cluster.wipe(2);
    cluster.change(&ctl, &[0, 1], &format!("member add m2 --peer-urls={url}"));
    let everybody = cluster.initial_cluster(&all);
    cluster.found_anew(2, &everybody, "existing");
    cluster.restart(2);
    put(&cluster, &ctl, &[2], "again");
    expect_same(&cluster, &ctl, &all, "again");
}

#[test]
fn one_lost_copy_of_the_superblock_is_mended_from_the_other() {
    let Some(ctl) = etcdctl("one_lost_copy_of_the_superblock") else { return };
    let all = [0, 1, 2];
    let mut cluster = Cluster::start(&Program::daymark(), 3, &[]);
    let damages: [Damage; 4] = [
        |path| overwrite(path, 0, &[0; COPY_BYTES]),
        |path| overwrite(path, SECOND_AT, &[0xa5; COPY_BYTES]),
        |path| overwrite(path, 100, &[0xff]),
        |path| truncate(path, SECOND_AT),
    ];
    for (number, damage) in damages.into_iter().enumerate() {
        cluster.kill(2);
        damage(&superblock(&cluster, 2));
        cluster.restart(2);
        let told = cluster.log(2).matches("one copy of the superblock is damaged").count();
        assert!(told > number, "damage {number}: it is told");
        let bytes = fs::read(superblock(&cluster, 2)).expect("it is there");
        let second = SECOND_AT as usize;
        assert!(bytes.starts_with(b"DMRKSUPR"), "damage {number}");
        assert_eq!(bytes[..COPY_BYTES], bytes[second..second + COPY_BYTES], "damage {number}: both are whole again");
        put(&cluster, &ctl, &[2], &number.to_string());
    }
    expect_same(&cluster, &ctl, &all, "3");
}

/// A vote that goes back could be given twice. The log's entries show that there were later terms.
#[test]
fn a_superblock_that_is_older_than_the_log_is_refused() {
    let Some(ctl) = etcdctl("a_superblock_that_is_older_than_the_log_is_refused") else { return };
    let all = [0, 1, 2];
    let mut cluster = Cluster::start(&Program::daymark(), 3, &[]);
    put(&cluster, &ctl, &all, "before");
    let old = fs::read(superblock(&cluster, 2)).expect("it is there");
    let leader = cluster.wait_leader(&ctl, &all);
    let next = format!("{:x}", cluster.member_id(&ctl, (leader + 1) % 3));
    assert_eq!(cluster.ctl(&ctl, &all, &format!("move-leader {next}")).code, Some(0));
    put(&cluster, &ctl, &all, "after");
    expect_same(&cluster, &ctl, &all, "after");
    cluster.kill(2);
    let newest = fs::read(superblock(&cluster, 2)).expect("it is there");
    fs::write(superblock(&cluster, 2), old).expect("put it back");
    let refused = cluster.refuse(2);
    assert_eq!(refused.status.code(), Some(1), "{}", refused.stderr);
    for words in ["the superblock is older than the log", "member remove"] {
        assert!(refused.stderr.contains(words), "{}", refused.stderr);
    }
    // Opening it has begun an epoch in the old one: with the newest one it is what it was.
    fs::write(superblock(&cluster, 2), newest).expect("put the newest back");
    cluster.wait_leader(&ctl, &[0, 1]);
    put(&cluster, &ctl, &[0, 1], "meanwhile");
    cluster.restart(2);
    expect_same(&cluster, &ctl, &all, "meanwhile");
}

/// As after a restore of the machine from a backup. The leader that had its acknowledgements notices, says so, and sends
/// again what is lost.
#[test]
fn a_member_that_is_put_back_from_an_older_copy_is_noticed_and_caught_up() {
    let Some(ctl) = etcdctl("a_member_that_is_put_back_from_an_older_copy") else { return };
    let all = [0, 1, 2];
    let mut cluster = Cluster::start(&Program::daymark(), 3, &[]);
    let leader = cluster.wait_leader(&ctl, &all);
    let (back, other) = ((leader + 1) % 3, (leader + 2) % 3);
    put(&cluster, &ctl, &all, "early");
    cluster.terminate(back);
    let old = cluster.data_dir(back).with_extension("old");
    copy(&cluster.data_dir(back), &old);
    cluster.restart(back);
    for number in 0..20 {
        put(&cluster, &ctl, &[back], &format!("late-{number}"));
    }
    expect_same(&cluster, &ctl, &all, "late-19");
    let term = cluster.status(&ctl, &[leader])[0].1["raftTerm"].clone();
    cluster.kill(back);
    cluster.wipe(back);
    fs::rename(&old, cluster.data_dir(back)).expect("put the old one back");
    cluster.spawn(back);
    put(&cluster, &ctl, &[leader, other], "meanwhile");
    cluster.wait_healthy(back);
    expect_same(&cluster, &ctl, &all, "meanwhile");
    let lost = "a member has lost log entries that it had acknowledged";
    eventually("the leader says so", || cluster.log(leader).contains(lost));
    let log = cluster.log(leader);
    assert_eq!(log.matches(lost).count(), 1, "once");
    assert!(log.lines().any(|line| line.contains(lost) && line.contains("older copy of its data directory")), "{log}");
    assert_eq!(cluster.wait_leader(&ctl, &all), leader);
    assert_eq!(cluster.status(&ctl, &[leader])[0].1["raftTerm"], term, "nobody was elected");
}
