//! Clusters under random, overlapping faults: no acknowledged write is lost, no read is stale, watchers see all of it, and
//! all members are equal at the end.

use std::time::Duration;

use daymark_tests::{cluster::Cluster, nemesis::Nemesis, process::Program, registers::Registers, seed, setting};

const REGISTERS: usize = 8;
const HEAL_MAX: Duration = Duration::from_secs(60);

/// `DAYMARK_CHAOS_SECONDS` (40) sets how long, `DAYMARK_CHAOS_MEMBERS` (3) how many, `DAYMARK_SEED` repeats the faults.
#[tokio::test]
async fn nothing_acknowledged_is_lost_and_nothing_read_is_stale() {
    let seconds = setting("DAYMARK_CHAOS_SECONDS", 40);
    let members = setting("DAYMARK_CHAOS_MEMBERS", 3) as usize;
    let seed = seed();
    println!("seed {seed}, {seconds} s, {members} members");
    let mut cluster = Cluster::start(&Program::daymark(), members, &[]).await;
    let registers = Registers::start(&cluster.endpoints(), REGISTERS).await;
    let mut nemesis = Nemesis::new(seed);
    nemesis.run(&mut cluster, Duration::from_secs(seconds), || registers.is_wrong()).await;
    for place in 0..members {
        cluster.wait_healthy(place, HEAL_MAX).await;
    }
    let verdict = registers.finish().await;
    let hashes: Vec<_> = (0..members).map(|place| cluster.hash_kv(place, verdict.revision)).collect();
    println!(
        "{} faults made, {} seen to happen; {} calls checked, {} failed; revision {}; hashes {hashes:?}",
        nemesis.made,
        nemesis.seen.len(),
        verdict.checked,
        verdict.failed,
        verdict.revision
    );
    assert!(verdict.wrong.is_empty(), "after {:?}: {:#?}", nemesis.seen, verdict.wrong);
    assert!(
        hashes.iter().all(|hash| *hash == hashes[0]),
        "members differ at revision {}: {hashes:?}",
        verdict.revision
    );
    // A run that did nothing shows nothing.
    assert!(nemesis.seen.len() as u64 >= seconds / 4, "only {} faults were seen", nemesis.seen.len());
    assert!(verdict.checked >= seconds * 100, "only {} calls were checked", verdict.checked);
}
