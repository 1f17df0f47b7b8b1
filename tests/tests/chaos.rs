//! Clusters under random, overlapping faults, and under those that take their time: no acknowledged write is lost, no read is
//! stale, watchers see all of it, and all members are equal at the end.

use std::{process::Command, time::Duration};

use daymark_tests::{
    cluster::Cluster, nemesis::Nemesis, powercut::LoopDisk, process::Program, registers::Registers, seed, setting,
};

const REGISTERS: usize = 8;
const HEAL_MAX: Duration = Duration::from_secs(60);
/// Between the steps of those faults that take their time.
const STEP: Duration = Duration::from_secs(2);

/// Compares what clients were told with what there is, once everything is healed.
async fn settle(cluster: &mut Cluster, registers: Registers, what: &str) {
    for place in 0..cluster.size() {
        cluster.wait_healthy(place, HEAL_MAX).await;
    }
    let verdict = registers.finish().await;
    let hashes: Vec<_> = (0..cluster.size()).map(|place| cluster.hash_kv(place, verdict.revision)).collect();
    println!(
        "{what}: {} calls checked, {} failed; revision {}; hashes {hashes:?}",
        verdict.checked, verdict.failed, verdict.revision
    );
    assert!(verdict.wrong.is_empty(), "{what}: {:#?}", verdict.wrong);
    let are_equal = hashes.iter().all(|hash| *hash == hashes[0]);
    assert!(are_equal, "{what}: members differ at revision {}: {hashes:?}", verdict.revision);
    // A run that did nothing shows nothing.
    assert!(verdict.checked >= 500, "{what}: only {} calls were checked", verdict.checked);
}

async fn random_faults(members: usize, seconds: u64) {
    let seed = seed();
    println!("seed {seed}, {seconds} s, {members} members");
    let mut cluster = Cluster::start(&Program::daymark(), members, &[]).await;
    let registers = Registers::start(&cluster.endpoints(), REGISTERS).await;
    let mut nemesis = Nemesis::new(seed);
    nemesis.run(&mut cluster, Duration::from_secs(seconds), || registers.is_wrong()).await;
    let what = format!("{} faults made, {} seen to happen", nemesis.made, nemesis.seen.len());
    if registers.is_wrong() {
        println!("after {:?}", nemesis.seen);
    }
    let checked = registers.checked();
    settle(&mut cluster, registers, &what).await;
    assert!(nemesis.seen.len() as u64 >= seconds / 4, "only {} faults were seen", nemesis.seen.len());
    assert!(checked >= seconds * 300 / members as u64, "only {checked} calls were checked");
}

/// `DAYMARK_CHAOS_SECONDS` (40) sets how long, `DAYMARK_CHAOS_MEMBERS` (3) how many, `DAYMARK_SEED` repeats the faults.
#[tokio::test]
async fn nothing_acknowledged_is_lost_and_nothing_read_is_stale() {
    random_faults(setting("DAYMARK_CHAOS_MEMBERS", 3) as usize, setting("DAYMARK_CHAOS_SECONDS", 40)).await;
}

/// The same with five, for half as long: two of them may be gone at a time.
#[tokio::test]
async fn five_members_lose_nothing_either() {
    random_faults(5, setting("DAYMARK_CHAOS_SECONDS", 40) / 2).await;
}

/// As in an upgrade: one after the other is stopped in order and started again.
#[tokio::test]
async fn a_rolling_restart_loses_nothing() {
    let mut cluster = Cluster::start(&Program::daymark(), 3, &[]).await;
    let registers = Registers::start(&cluster.endpoints(), REGISTERS).await;
    for place in [0, 1, 2, 0, 1, 2] {
        tokio::time::sleep(STEP / 2).await;
        cluster.terminate(place).await;
        cluster.restart(place);
        let took = cluster.wait_healthy(place, HEAL_MAX).await;
        println!("member {place} was back after {took:?}");
    }
    settle(&mut cluster, registers, "rolling restart").await;
}

/// A member whose disk is lost, once of a follower and once of the leader: removed, wiped, added.
#[tokio::test]
async fn a_wiped_member_is_replaced_under_load() {
    let mut cluster = Cluster::start(&Program::daymark(), 3, &[]).await;
    let registers = Registers::start(&cluster.endpoints(), REGISTERS).await;
    for leads in [false, true] {
        tokio::time::sleep(STEP).await;
        let leader = cluster.wait_leader().await;
        let lost = if leads { leader } else { (leader + 1) % 3 };
        let before = cluster.status(lost).await.expect("it answers").id;
        cluster.kill(lost);
        cluster.wait_leader().await;
        cluster.replace(lost).await;
        cluster.wait_healthy(lost, HEAL_MAX).await;
        assert_ne!(cluster.status(lost).await.expect("it answers").id, before, "ids are not used again");
    }
    settle(&mut cluster, registers, "replaced members").await;
}

/// A disk without room: its member may refuse, the others go on, and with room again it takes part.
#[tokio::test]
async fn a_member_with_a_full_disk_harms_nobody() {
    let Some(disk) = LoopDisk::mount_or_skip("a_member_with_a_full_disk_harms_nobody", 768 << 20) else { return };
    let full = [(2, disk.root().join("data"))];
    let mut cluster = Cluster::start_with_data_in(&Program::daymark(), 3, &[], &full).await;
    let registers = Registers::start(&cluster.endpoints(), REGISTERS).await;
    for _ in 0..2 {
        tokio::time::sleep(STEP).await;
        let ballast = disk.root().join("ballast");
        let mut dd = Command::new("dd");
        dd.arg("if=/dev/zero").arg(format!("of={}", ballast.display())).arg("bs=1M");
        // It ends with an error: the disk is full.
        let filled = tokio::task::spawn_blocking(move || dd.output()).await.expect("no panic").expect("dd runs");
        assert!(!filled.status.success(), "the disk has no end");
        let before = registers.checked();
        tokio::time::sleep(3 * STEP).await;
        let meanwhile = registers.checked() - before;
        assert!(meanwhile > 100, "only {meanwhile} calls were answered while one disk was full");
        std::fs::remove_file(ballast).expect("make room");
        if !cluster.is_running(2) {
            println!("the member with the full disk had stopped");
            cluster.kill(2);
            cluster.restart(2);
        }
        cluster.wait_healthy(2, HEAL_MAX).await;
    }
    settle(&mut cluster, registers, "full disk").await;
}
