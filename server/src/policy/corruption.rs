//! Compares what members hold, as the operator asks for, and raises the alarm CORRUPT for who differs. Looks at hashes and
//! decides; reads nothing and asks nobody itself. Only the leader looks.
//!
//! | check | compares | cost |
//! |---|---|---|
//! | `--corrupt-check-time` | hashes of all records, read for it, and each with the one that is kept | reads the keyspace |
//! | gate `CompactHashCheck` | hashes that are kept up to date by every change | what has changed since |
//! | gate `InitialCorruptCheck` | like the first, of one member before it serves | reads the keyspace |

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;

use crate::error::Error;

/// What a member holds at a revision.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct MemberHash {
    /// What is hashed.
    pub revision: i64,
    /// The member's newest revision meanwhile.
    pub current_revision: i64,
    pub compact_revision: i64,
    pub sum: u128,
}

/// How a hash is made.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The one that is kept.
    Kept,
    /// Of all records, read for it.
    Records,
}

/// What a check needs of the member that it runs on.
#[expect(async_fn_in_trait, reason = "all on the first net thread")]
pub trait Cluster {
    /// The other members.
    fn peers(&self) -> Vec<u64>;
    fn member_id(&self) -> u64;
    fn leads(&self) -> bool;
    /// This member's hash, at its newest revision for 0.
    async fn own(&self, revision: i64, depth: Depth) -> Result<MemberHash, Error>;
    /// Another's at that revision, which it waits for a little.
    async fn of(&self, member_id: u64, revision: i64, depth: Depth) -> Result<MemberHash, Error>;
    /// Returns once this member has seen everything that was acknowledged before.
    async fn barrier(&self) -> Result<(), Error>;
    /// Raises CORRUPT for a member, or for nobody in particular with 0.
    async fn raise(&self, member_id: u64) -> Result<(), Error>;
}

/// Checks every `interval` while this member leads. Never returns.
pub async fn run(cluster: impl Cluster, interval: Duration, depth: Depth) {
    let mut checked = 0;
    loop {
        tokio::time::sleep(interval).await;
        if !cluster.leads() {
            continue;
        }
        match check(&cluster, depth, checked).await {
            Ok(revision) => checked = revision,
            // A leader that is none any more, a quorum that is busy: the next look is soon enough.
            Err(error) => tracing::warn!(%error, "comparing what members hold failed, to be tried again"),
        }
    }
}

/// One comparison. Returns the revision up to which all members agree, `checked` if nobody could tell. What is kept need not
/// be compared twice at the same revision.
pub async fn check(cluster: &impl Cluster, depth: Depth, checked: i64) -> Result<i64, Error> {
    let own = cluster.own(0, depth).await?;
    if depth == Depth::Kept && own.revision == checked {
        return Ok(checked);
    }
    let me = cluster.member_id();
    let mut corrupt = Vec::new();
    if depth == Depth::Records && cluster.own(own.revision, Depth::Kept).await?.sum != own.sum {
        tracing::error!(revision = own.revision, "the records of this member are not what was written");
        corrupt.push(me);
    }
    let asked = cluster.peers().into_iter().map(async |peer| (peer, cluster.of(peer, own.revision, depth).await));
    let answers = join_all(asked).await;
    // What others had seen when they answered, this member has seen from here on.
    cluster.barrier().await?;
    let now = cluster.own(0, Depth::Kept).await?;
    let mut hashes = BTreeMap::from([(me, own.sum)]);
    let mut silent = 0;
    for (peer, answer) in answers {
        let id = format!("{peer:x}");
        match answer {
            Ok(hash) if hash.current_revision > now.current_revision => {
                let (theirs, ours) = (hash.current_revision, now.current_revision);
                tracing::error!(member = id, theirs, ours, "a follower's revision is above the leader's");
                corrupt.push(peer);
            }
            Ok(hash) if hash.compact_revision > now.compact_revision => {
                let (theirs, ours) = (hash.compact_revision, now.compact_revision);
                tracing::error!(member = id, theirs, ours, "a follower's compact revision is above the leader's");
                corrupt.push(peer);
            }
            Ok(hash) => drop(hashes.insert(peer, hash.sum)),
            Err(error) => {
                tracing::warn!(member = id, revision = own.revision, %error, "a member's hash is not known");
                silent += 1;
            }
        }
    }
    corrupt.extend(judge(&hashes, cluster.peers().len() + 1));
    corrupt.sort_unstable();
    corrupt.dedup();
    for member in &corrupt {
        let hashes: Vec<_> = hashes.iter().map(|(id, sum)| format!("{id:x}: {sum:032x}")).collect();
        tracing::error!(
            member = format!("{member:x}"),
            revision = own.revision,
            ?hashes,
            "members hold different data"
        );
        cluster.raise(*member).await?;
    }
    tracing::info!(revision = own.revision, members = hashes.len(), silent, "compared what members hold");
    Ok(if corrupt.is_empty() && silent == 0 { own.revision } else { checked })
}

/// Who differs from the majority of all members. Nobody in particular, 0, if members differ and there is no majority.
fn judge(hashes: &BTreeMap<u64, u128>, members: usize) -> Vec<u64> {
    let mut holders: BTreeMap<u128, usize> = BTreeMap::new();
    hashes.values().for_each(|sum| *holders.entry(*sum).or_default() += 1);
    if holders.len() < 2 {
        return Vec::new();
    }
    match holders.into_iter().find(|(_, count)| *count > members / 2) {
        Some((right, _)) => hashes.iter().filter(|(_, sum)| **sum != right).map(|(id, _)| *id).collect(),
        None => vec![0],
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use futures_util::FutureExt;

    use super::*;

    /// Members by id: what they answer for what is kept and for what is read. This one is 1.
    struct Fake {
        members: BTreeMap<u64, Result<(MemberHash, MemberHash), Error>>,
        raised: RefCell<Vec<u64>>,
    }

    impl Cluster for Fake {
        fn peers(&self) -> Vec<u64> {
            self.members.keys().copied().filter(|id| *id != 1).collect()
        }
        fn member_id(&self) -> u64 {
            1
        }
        fn leads(&self) -> bool {
            true
        }
        async fn own(&self, revision: i64, depth: Depth) -> Result<MemberHash, Error> {
            self.of(1, revision, depth).await
        }
        async fn of(&self, member_id: u64, revision: i64, depth: Depth) -> Result<MemberHash, Error> {
            let (kept, read) = self.members[&member_id].clone()?;
            assert!([0, kept.revision].contains(&revision));
            Ok(if depth == Depth::Kept { kept } else { read })
        }
        async fn barrier(&self) -> Result<(), Error> {
            Ok(())
        }
        async fn raise(&self, member_id: u64) -> Result<(), Error> {
            self.raised.borrow_mut().push(member_id);
            Ok(())
        }
    }

    fn hash(sum: u128) -> MemberHash {
        MemberHash { revision: 9, current_revision: 9, compact_revision: 3, sum }
    }

    fn same(sum: u128) -> Result<(MemberHash, MemberHash), Error> {
        Ok((hash(sum), hash(sum)))
    }

    /// What a check says, and for whom it raises the alarm.
    fn checked(members: &[Result<(MemberHash, MemberHash), Error>], depth: Depth) -> (Result<i64, Error>, Vec<u64>) {
        let fake = Fake { members: (1..).zip(members.iter().cloned()).collect(), raised: RefCell::default() };
        let result = check(&fake, depth, 4).now_or_never().expect("nothing waits");
        (result, fake.raised.into_inner())
    }

    #[test]
    fn who_differs_from_the_majority_is_corrupt() {
        let unknown = || Err(Error::TimedOut);
        for depth in [Depth::Kept, Depth::Records] {
            assert_eq!(checked(&[same(7), same(7), same(7)], depth), (Ok(9), vec![]));
            assert_eq!(checked(&[same(7), same(8), same(7)], depth), (Ok(4), vec![2]));
            assert_eq!(checked(&[same(8), same(7), same(7)], depth), (Ok(4), vec![1]), "the leader itself");
            assert_eq!(checked(&[same(7), same(8)], depth), (Ok(4), vec![0]), "nobody knows which");
            assert_eq!(checked(&[same(7), same(8), same(9)], depth), (Ok(4), vec![0]));
            assert_eq!(checked(&[same(7), same(8), unknown()], depth), (Ok(4), vec![0]), "two of three differ");
            assert_eq!(checked(&[same(7), unknown(), same(7)], depth), (Ok(4), vec![]), "to be compared again");
            assert_eq!(checked(&[same(7)], depth), (Ok(9), vec![]));
            assert_eq!(checked(&[unknown(), same(7)], depth), (Err(Error::TimedOut), vec![]));
        }
    }

    #[test]
    fn records_that_are_not_what_was_written_are_found_by_reading_them() {
        let damaged = || Ok((hash(7), hash(8)));
        assert_eq!(checked(&[damaged(), same(7), same(7)], Depth::Kept), (Ok(9), vec![]));
        assert_eq!(checked(&[damaged(), same(7), same(7)], Depth::Records), (Ok(4), vec![1]));
        assert_eq!(checked(&[same(7), damaged(), same(7)], Depth::Records), (Ok(4), vec![2]));
        assert_eq!(checked(&[damaged()], Depth::Records), (Ok(4), vec![1]), "also alone");
    }

    #[test]
    fn nobody_is_ahead_of_the_leader() {
        let ahead = MemberHash { current_revision: 10, ..hash(7) };
        assert_eq!(checked(&[same(7), Ok((ahead, ahead)), same(7)], Depth::Kept), (Ok(4), vec![2]));
        let compacted = MemberHash { compact_revision: 4, ..hash(7) };
        assert_eq!(checked(&[same(7), same(7), Ok((compacted, compacted))], Depth::Kept), (Ok(4), vec![3]));
    }

    #[test]
    fn what_is_kept_is_not_compared_twice() {
        let fake = Fake { members: [(1, same(7)), (2, same(8))].into(), raised: RefCell::default() };
        assert_eq!(check(&fake, Depth::Kept, 9).now_or_never(), Some(Ok(9)));
        assert!(fake.raised.borrow().is_empty());
        assert_eq!(check(&fake, Depth::Records, 9).now_or_never(), Some(Ok(9)), "what is read may change by itself");
        assert_eq!(*fake.raised.borrow(), [0]);
    }
}
