//! The checker of the chaos runs is no ornament: stores that lie are found out, and the same store that does not is not.

use std::time::{Duration, Instant};

use daymark_tests::{
    cluster::Cluster,
    liar::{self, Lie},
    links::Cut,
    process::{Program, Server},
    registers::Registers,
};

const REGISTERS: usize = 4;
const LASTS: Duration = Duration::from_secs(2);
const HEAL_MAX: Duration = Duration::from_secs(60);

/// What is found wrong with three members of which the last is behind a liar, or not, and is cut off for a while.
async fn wrong_with(lie: Option<Lie>) -> Vec<String> {
    let mut cluster = Cluster::start(&Program::daymark(), 3, &[]).await;
    let mut endpoints = cluster.endpoints();
    if let Some(lie) = lie {
        endpoints[2] = liar::start(&endpoints[2], lie).await;
    }
    let registers = Registers::start(&endpoints, REGISTERS).await;
    tokio::time::sleep(LASTS).await;
    cluster.isolate(2, Cut::Silent);
    tokio::time::sleep(LASTS).await;
    cluster.links.heal_all();
    for place in 0..3 {
        cluster.wait_healthy(place, HEAL_MAX).await;
    }
    tokio::time::sleep(LASTS).await;
    let verdict = registers.finish().await;
    assert!(verdict.checked > 100, "only {} calls were checked", verdict.checked);
    println!(
        "{lie:?}: {} calls checked, {} complaints: {:.1?}",
        verdict.checked,
        verdict.wrong.len(),
        verdict.wrong.first()
    );
    verdict.wrong
}

#[tokio::test]
async fn an_honest_cluster_is_believed() {
    assert_eq!(wrong_with(None).await, Vec::<String>::new());
}

#[tokio::test]
async fn reads_that_may_be_old_are_found_out() {
    let wrong = wrong_with(Some(Lie::StaleReads)).await;
    assert!(wrong.iter().any(|what| what.contains(" read as ")), "{wrong:#?}");
}

#[tokio::test]
async fn acknowledged_writes_that_are_lost_are_found_out() {
    let wrong = wrong_with(Some(Lie::ForgottenWrites)).await;
    assert!(wrong.iter().any(|what| what.contains("acknowledged")), "{wrong:#?}");
}

#[tokio::test]
async fn revisions_that_go_back_are_found_out() {
    let wrong = wrong_with(Some(Lie::OldRevisions)).await;
    assert!(wrong.iter().any(|what| what.contains("revision before")), "{wrong:#?}");
}

/// Two stores that know nothing of each other, taken for one: what a cluster that has split would be.
#[tokio::test]
async fn two_stores_that_are_taken_for_one_are_found_out() {
    let servers = [(); 2].map(|()| Server::start(&Program::daymark(), &[]));
    let endpoints: Vec<_> = servers.iter().map(Server::endpoint).collect();
    let registers = Registers::start(&endpoints, REGISTERS).await;
    let begun = Instant::now();
    while !registers.is_wrong() {
        assert!(begun.elapsed() < HEAL_MAX, "nothing is noticed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("noticed after {:?}", begun.elapsed());
    assert!(!registers.give_up().await.is_empty());
}
