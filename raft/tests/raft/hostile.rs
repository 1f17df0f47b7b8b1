//! Connections that are not what they should be: strangers, frames that lie, members of other clusters. None of them harms
//! the member or is kept open.

use std::sync::Arc;
use std::time::Duration;

use daymark_raft::PeerStream;
use daymark_storage::disk::RealDisk;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{IDENTITY, MEMBER, Member, PATIENCE, State};

const KINDS: [u8; 5] = [1, 2, 4, 5, 6];

fn frame(tag: u8, payload: &[u8]) -> Vec<u8> {
    let sum = crc32c::crc32c_append(crc32c::crc32c(&[tag]), payload);
    [&(payload.len() as u32).to_le_bytes()[..], &sum.to_le_bytes(), &[tag], payload].concat()
}

fn hello(protocol: u16, kind: u8, cluster: u64, sender: u64, target: u64) -> Vec<u8> {
    let ids: Vec<u8> = [cluster, sender, target].iter().flat_map(|id| id.to_le_bytes()).collect();
    frame(1, &[b"DAYMARKP", &protocol.to_le_bytes()[..], &[kind], &ids, &[1, b'x']].concat())
}

/// Sends bytes and reads until the member closes; `None` if it does not.
async fn send(member: &Member, bytes: &[u8]) -> Option<Vec<u8>> {
    let (mut near, far) = tokio::io::duplex(1 << 20);
    member.handle.accept_peer(Box::new(far) as PeerStream);
    // The member may have closed before all was written.
    let _ = near.write_all(bytes).await;
    let mut answer = Vec::new();
    match tokio::time::timeout(Duration::from_millis(300), near.read_to_end(&mut answer)).await {
        Ok(_) => Some(answer),
        Err(_) => None,
    }
}

fn refusal(answer: &[u8]) -> u8 {
    assert_eq!((answer[8], &answer[9..17]), (2, &b"DAYMARKP"[..]), "{answer:?}");
    answer[17]
}

fn with_member(test: impl AsyncFnOnce(&Member)) {
    let dir = tempfile::tempdir().unwrap();
    let mut member = Member::start(Arc::new(RealDisk::new()), dir.path(), State::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(6 * PATIENCE, test(&member)).await.expect("in time") });
    member.propose(1, vec![1; 10]);
    member.expect_applied(1);
    assert!(member.fatal.try_recv().is_err(), "the member is unharmed");
    member.stop();
}

#[test]
fn refusals_say_why_before_the_connection_ends() {
    let cluster = IDENTITY.cluster_id;
    let cases = [
        (hello(1, 2, cluster + 1, 7, MEMBER), 1),
        (hello(1, 2, cluster, 7, MEMBER + 1), 2),
        (hello(1, 2, cluster, MEMBER, MEMBER), 2),
        (hello(2, 2, cluster, 7, MEMBER), 4),
        (hello(1, 99, cluster, 7, MEMBER), 5),
    ];
    with_member(async |member| {
        for (hello, expected) in cases {
            let answer = send(member, &hello).await.expect("it is closed");
            assert_eq!(refusal(&answer), expected);
        }
        let welcome = send(member, &hello(1, 2, cluster, 7, MEMBER)).await;
        assert_eq!(welcome, None, "one that fits stays open");
    });
}

#[test]
fn strangers_and_lies_end_the_connection() {
    let greeted = |kind, rest: Vec<u8>| [hello(1, kind, IDENTITY.cluster_id, 7, MEMBER), rest].concat();
    let mut wrong_sum = frame(34, b"12345678");
    wrong_sum[4] ^= 1;
    let mut cases = vec![
        b"GET /version HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xff; 64],
        // Nobody may send much before he has said who he is.
        [&(100_000u32).to_le_bytes()[..], &[0; 5]].concat(),
        greeted(2, wrong_sum),
        greeted(2, [&(u32::MAX).to_le_bytes()[..], &[0; 5]].concat()),
        greeted(2, frame(34, b"short")),
        greeted(2, frame(200, b"12345678")),
        greeted(1, frame(34, b"12345678")),
        greeted(4, frame(64, b"too short")),
        // A command batch in the name of another member.
        greeted(4, frame(64, &[&9u64.to_le_bytes()[..], &[0; 20]].concat())),
        greeted(1, frame(16, &[0; 200])),
        greeted(3, vec![]),
    ];
    cases.push(greeted(5, frame(16, b"12345678")));
    with_member(async |member| {
        for bytes in cases {
            assert!(send(member, &bytes).await.is_some(), "kept open after {bytes:?}");
        }
    });
}

/// Frames whose checksum is right and whose content is not: what a bug or an attacker inside of TLS would send.
#[test]
fn random_content_harms_nothing() {
    let seed = 0x5eed;
    println!("seed {seed:#x}");
    let mut random = StdRng::seed_from_u64(seed);
    let tags = [8, 9, 16, 17, 32, 33, 34, 35, 36, 64, 65, 66, 67, 80, 81];
    let mut streams = Vec::new();
    for round in 0..400 {
        let kind = KINDS[round % KINDS.len()];
        let mut bytes = hello(1, kind, IDENTITY.cluster_id, 7, MEMBER);
        for _ in 0..random.random_range(1..6) {
            let mut payload = vec![0; random.random_range(0..120)];
            random.fill(&mut payload[..]);
            // Small numbers go further into a decoder than large ones. Votes of this term or a later one would be lawful.
            payload.iter_mut().for_each(|byte| *byte &= [0, 1, 1, 3][random.random_range(0..4)]);
            let tag = tags[random.random_range(0..tags.len())];
            if tag == 32 || tag == 34 || tag == 16 {
                payload.truncate(random.random_range(0..16));
            }
            bytes.extend(frame(tag, &payload));
        }
        streams.push(bytes);
    }
    with_member(async |member| {
        for chunk in streams.chunks(50) {
            futures_util::future::join_all(chunk.iter().map(|bytes| send(member, bytes))).await;
        }
    });
}
