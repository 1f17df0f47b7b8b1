//! How a member finds out who it is: from its log, else as a founder by the flags, else from the cluster that has added it.
//! Ids are etcd's, so that both stay what they were when a cluster is moved. The flags of a cluster's foundation have no
//! effect on a member that has been founded.

use std::collections::BTreeSet;
use std::fmt;

use daymark_api::etcdserverpb as pb;
use daymark_raft::{Bootstrap, MemberInfo};
use daymark_storage::disk::Disk;
use daymark_storage::snapshot;
use daymark_storage::wal::{Identity, Recovered, Wal};
use sha1::{Digest, Sha1};

use crate::config::Config;
use crate::config::values::Url;
use crate::peers::Introduction;
use crate::start_error::{REPLACE, StartError};

/// What a member begins with.
#[derive(Debug)]
pub struct Founding {
    pub identity: Identity,
    /// How it begins if nothing is in its log.
    pub anew: Bootstrap,
    /// Members that are known before the log tells of any.
    pub known: Vec<pb::Member>,
}

/// What is asked of the peers that the flags name; nothing if none of them answers.
pub type Ask<'a> = &'a mut dyn FnMut(&[String]) -> Option<Introduction>;

/// Who this member is. `ask` gets peer URLs of the others, to be tried one after the other.
pub fn found(
    config: &Config,
    disk: &dyn Disk,
    wal_dir: &std::path::Path,
    ask: Ask<'_>,
) -> Result<Founding, StartError> {
    let founders = founders(config);
    if let Some(found) = Wal::identity_on_disk(disk, wal_dir)? {
        return Ok(founded(config, &founders, found));
    }
    refuse_without_log(config, disk, wal_dir)?;
    let me = check_founders(config, &founders)?;
    let others = others(config);
    if config.cluster_is_new {
        let asked = if others.is_empty() { None } else { ask(&others) };
        return match asked {
            Some(cluster) if has_started(&cluster, me) => Err(StartError::new(
                format!("member {me:x} has already been bootstrapped"),
                "its cluster runs and this data directory is empty: remove the member from the cluster, add it again and \
                 start it with --initial-cluster-state=existing, or give it its own data directory back",
            )),
            _ => Ok(Founding { identity: derived(&founders, me), anew: anew(&founders), known: known(&founders) }),
        };
    }
    join(config, &founders, me, &others, ask)
}

/// The log is made before the state: where there is a state, a log was lost, and with it votes and entries that this member
/// has acknowledged.
fn refuse_without_log(config: &Config, disk: &dyn Disk, wal_dir: &std::path::Path) -> Result<(), StartError> {
    let member = config.data_dir.join("member");
    if !snapshot::exists(disk, &member)? {
        return Ok(());
    }
    Err(StartError::new(
        format!("the log is missing: there is none in {}, but a state in {}", wal_dir.display(), member.display()),
        format!("give the log back if it is elsewhere (--wal-dir, a file system that is not mounted); else {REPLACE}"),
    ))
}

/// How raft begins: as what is in the log says.
pub fn bootstrap(config: &Config, recovered: &Recovered, anew: Bootstrap) -> Bootstrap {
    match Bootstrap::from_recovered(recovered, anew) {
        Bootstrap::Restarted if config.force_new_cluster => Bootstrap::Alone,
        bootstrap => bootstrap,
    }
}

/// Who this member and all founders of its cluster are by the flags, for a state that is made before it starts.
pub fn by_flags(config: &Config) -> Result<(Identity, Vec<MemberInfo>), StartError> {
    let founders = founders(config);
    let me = check_founders(config, &founders)?;
    Ok((derived(&founders, me), founders))
}

/// The log says who it is. If nothing else is in it, the start before was cut off.
fn founded(config: &Config, founders: &[MemberInfo], found: Identity) -> Founding {
    let is_derived = config.cluster_is_new
        && derived(founders, found.member_id) == found
        && founders.iter().any(|founder| founder.id == found.member_id);
    if !is_derived {
        let (member, cluster) = (format!("{:x}", found.member_id), format!("{:x}", found.cluster_id));
        tracing::warn!(member, cluster, "the --initial flags differ from those this member was founded with: ignored");
    }
    let lone = config.cluster_is_new && founders.len() == 1;
    let anew = match (is_derived, lone) {
        (true, _) => anew(founders),
        // It was to be alone, and still is.
        (false, true) => {
            let me = MemberInfo { id: found.member_id, ..founders[0].clone() };
            anew_of(vec![me])
        }
        (false, false) => Bootstrap::Joining,
    };
    Founding { identity: found, anew, known: if is_derived { known(founders) } else { Vec::new() } }
}

fn anew(founders: &[MemberInfo]) -> Bootstrap {
    anew_of(founders.to_vec())
}

fn anew_of(members: Vec<MemberInfo>) -> Bootstrap {
    Bootstrap::New { members }
}

/// As somebody whom a running cluster has added: its ids are those that the cluster has given it.
fn join(
    config: &Config,
    founders: &[MemberInfo],
    me: u64,
    others: &[String],
    ask: Ask<'_>,
) -> Result<Founding, StartError> {
    let cluster = ask(others).ok_or_else(|| {
        StartError::new(
            "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs",
            "name running members in --initial-cluster, and see that their peer URLs can be reached",
        )
    })?;
    let mismatch = |why: &dyn fmt::Display| {
        let running: Vec<_> =
            cluster.members.iter().map(|member| format!("{:x}={}", member.id, member.peer_ur_ls.join(","))).collect();
        StartError::new(
            format!(
                "error validating peerURLs {{ClusterID:{:x} Members:[{}]}}: {why}",
                cluster.cluster_id,
                running.join(" ")
            ),
            "add this member with `etcdctl member add` first, then start it with the --initial-cluster that the answer shows",
        )
    };
    if cluster.members.len() != founders.len() {
        return Err(mismatch(&"member count is unequal"));
    }
    for member in &cluster.members {
        let urls = sorted(&member.peer_ur_ls);
        if !founders.iter().any(|founder| sorted(&founder.peer_urls) == urls) {
            return Err(mismatch(&format!(
                "PeerURLs: no match found for existing member ({:x}, {:?})",
                member.id, member.peer_ur_ls
            )));
        }
    }
    let my_urls = founders.iter().find(|founder| founder.id == me).map(|founder| sorted(&founder.peer_urls));
    let me = cluster.members.iter().find(|member| Some(sorted(&member.peer_ur_ls)) == my_urls);
    let me = me.ok_or_else(|| mismatch(&"this member is not among them"))?;
    if !me.name.is_empty() {
        return Err(StartError::new(
            format!("member {:x} has started before, with another data directory", me.id),
            "give it its data directory back, or remove it from the cluster and add it again",
        ));
    }
    let learners = cluster.members.iter().filter(|member| member.is_learner).count();
    if learners > config.learners_max {
        return Err(StartError::new("too many learner members in cluster", "raise --max-learners on this member"));
    }
    let identity = Identity { cluster_id: cluster.cluster_id, member_id: me.id };
    Ok(Founding { identity, anew: Bootstrap::Joining, known: cluster.members })
}

fn has_started(cluster: &Introduction, id: u64) -> bool {
    cluster.members.iter().any(|member| member.id == id && !member.client_ur_ls.is_empty())
}

/// The members that the flags name, as founders.
fn founders(config: &Config) -> Vec<MemberInfo> {
    let founder = |(name, urls): &(String, Vec<Url>)| {
        let peer_urls = sorted(&texts(urls));
        MemberInfo {
            id: founder_id(&peer_urls, &config.cluster_token),
            name: name.clone(),
            peer_urls,
            client_urls: Vec::new(),
            is_learner: false,
            has_vote: true,
        }
    };
    config.initial_cluster.iter().map(founder).collect()
}

/// What etcd looks at before a member's first start. The result is the id that the flags give to this member.
fn check_founders(config: &Config, founders: &[MemberInfo]) -> Result<u64, StartError> {
    let Some(me) = founders.iter().find(|founder| founder.name == config.name) else {
        return Err(StartError::new(
            format!("couldn't find local name {:?} in the initial cluster configuration", config.name),
            "name this member in --initial-cluster by its --name",
        ));
    };
    let advertised = sorted(&texts(&config.advertise_peer));
    if config.cluster_is_new && me.peer_urls != advertised {
        let named = |urls: &[String]| urls.iter().map(|url| format!("{}={url}", me.name)).collect::<Vec<_>>().join(",");
        return Err(StartError::new(
            format!(
                "--initial-cluster has {} but --initial-advertise-peer-urls says {}",
                named(&me.peer_urls),
                named(&advertised)
            ),
            "give both the same peer URLs of this member",
        ));
    }
    let mut urls = BTreeSet::new();
    if !founders.iter().flat_map(|founder| &founder.peer_urls).all(|url| urls.insert(url)) {
        let cluster: Vec<_> = config
            .initial_cluster
            .iter()
            .flat_map(|(name, urls)| urls.iter().map(move |url| format!("{name}={url}")))
            .collect();
        return Err(StartError::new(
            format!("initial cluster {} has duplicate url", cluster.join(",")),
            "give each member of --initial-cluster peer URLs of its own",
        ));
    }
    Ok(me.id)
}

fn derived(founders: &[MemberInfo], member_id: u64) -> Identity {
    let mut ids: Vec<u64> = founders.iter().map(|founder| founder.id).collect();
    ids.sort_unstable();
    let mut hash = Sha1::new();
    ids.iter().for_each(|id| hash.update(id.to_be_bytes()));
    Identity { cluster_id: first_u64(&hash.finalize()), member_id }
}

/// Of the peer URLs in order, and the token.
fn founder_id(peer_urls: &[String], token: &str) -> u64 {
    let mut hash = Sha1::new();
    peer_urls.iter().for_each(|url| hash.update(url));
    hash.update(token);
    first_u64(&hash.finalize())
}

/// The first eight bytes of a hash.
pub fn first_u64(hash: &[u8]) -> u64 {
    hash.iter().take(8).fold(0, |id, byte| id << 8 | u64::from(*byte))
}

/// Peer URLs of everybody else, in order.
fn others(config: &Config) -> Vec<String> {
    let others = config.initial_cluster.iter().filter(|(name, _)| *name != config.name);
    sorted(&others.flat_map(|(_, urls)| texts(urls)).collect::<Vec<_>>())
}

fn known(founders: &[MemberInfo]) -> Vec<pb::Member> {
    let member = |founder: &MemberInfo| pb::Member {
        id: founder.id,
        name: founder.name.clone(),
        peer_ur_ls: founder.peer_urls.clone(),
        ..Default::default()
    };
    founders.iter().map(member).collect()
}

/// Members as they are known before the state tells of them: by the flags or the cluster, and by the log.
pub fn known_at_start(mut known: Vec<pb::Member>, in_log: Vec<MemberInfo>) -> Vec<pb::Member> {
    known.retain(|member| !in_log.iter().any(|info| info.id == member.id));
    known.extend(self::known(&in_log));
    known
}

fn sorted(urls: &[String]) -> Vec<String> {
    let mut urls = urls.to_vec();
    urls.sort();
    urls
}

fn texts(urls: &[Url]) -> Vec<String> {
    urls.iter().map(Url::to_string).collect()
}

#[cfg(test)]
mod tests {
    use daymark_storage::sim_disk::SimDisk;

    use super::*;
    use crate::config::flags::{self, Parsed};

    /// What etcd 3.7.1 says of itself for the same flags.
    const ETCDS_CLUSTER: u64 = 0x73841b4a9097c907;
    const ETCDS_IDS: [(u64, u64); 3] = [(1, 0xddd67b312462fd7b), (2, 0x9e737febb6b99eee), (3, 0x628170c800dbcee)];
    const THREE: &str =
        "--initial-cluster m1=http://127.0.0.1:12380,m2=http://127.0.0.1:22380,m3=http://127.0.0.1:32380";

    fn config(line: &str) -> Config {
        match flags::parse(line.split_whitespace().map(str::to_owned)) {
            Ok(Parsed::Start(given)) => Config::from_given(&given).expect("well formed").0,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn member(number: u64) -> String {
        format!("--name m{number} --initial-advertise-peer-urls http://127.0.0.1:{number}2380 {THREE}")
    }

    fn start(line: &str, answer: Option<Introduction>) -> Result<Founding, StartError> {
        found(&config(line), &SimDisk::new(1), "/no/log".as_ref(), &mut |_| answer.clone())
    }

    /// A running cluster of the first two, and perhaps of one more that was added.
    fn running(third: Option<pb::Member>) -> Introduction {
        let member = |id, name: &str, port: u32| pb::Member {
            id,
            name: name.into(),
            peer_ur_ls: vec![format!("http://127.0.0.1:{port}")],
            client_ur_ls: vec!["http://127.0.0.1:1".into()],
            is_learner: false,
        };
        let members = [member(0xa, "m1", 12380), member(0xb, "m2", 22380)].into_iter().chain(third).collect();
        Introduction { cluster_id: 0xc, members, removed: vec![0xd] }
    }

    fn added(name: &str, url: &str) -> Option<pb::Member> {
        Some(pb::Member { id: 0xe, name: name.into(), peer_ur_ls: vec![url.into()], ..Default::default() })
    }

    #[test]
    fn ids_are_those_of_etcd() {
        let lone = "--name default --initial-advertise-peer-urls http://localhost:2380";
        let Identity { cluster_id, member_id } = start(lone, None).expect("a lone founder").identity;
        assert_eq!((cluster_id, member_id), (0xcdf818194e3a8c32, 0x8e9e05c52164694d));
        for (number, id) in ETCDS_IDS {
            let founding = start(&member(number), None).expect("a founder");
            assert_eq!(founding.identity, Identity { cluster_id: ETCDS_CLUSTER, member_id: id }, "m{number}");
            let Bootstrap::New { members } = founding.anew else { panic!("founders begin anew") };
            assert_eq!(members.len(), 3);
            assert_eq!(founding.known.len(), 3);
        }
        let other = start(&format!("{} --initial-cluster-token other", member(1)), None).expect("a founder");
        assert_ne!(other.identity.cluster_id, ETCDS_CLUSTER, "the token is part of it");
    }

    #[test]
    fn whoever_was_added_gets_its_ids_from_the_cluster() {
        let line = format!("{} --initial-cluster-state existing", member(3));
        let joined = start(&line, Some(running(added("", "http://127.0.0.1:32380")))).expect("joins");
        assert_eq!(joined.identity, Identity { cluster_id: 0xc, member_id: 0xe });
        assert!(matches!(joined.anew, Bootstrap::Joining));
        assert_eq!(joined.known.len(), 3);
    }

    #[test]
    fn whoever_was_not_is_refused_with_cause_and_remedy() {
        let existing = |number| format!("{} --initial-cluster-state existing", member(number));
        let other = "http://127.0.0.1:9";
        for (line, answer, cause, remedy) in [
            (existing(3), None, "could not retrieve cluster information from the given URLs", "can be reached"),
            (existing(3), Some(running(None)), "member count is unequal", "member add"),
            (
                existing(3),
                Some(running(added("", other))),
                "PeerURLs: no match found for existing member (e, ",
                "member add",
            ),
            (existing(3), Some(running(added("m3", "http://127.0.0.1:32380"))), "has started before", "add it again"),
            (member(3).replace("--name m3", "--name x"), None, "couldn't find local name \"x\"", "--name"),
            (
                member(3).replace("urls http://127.0.0.1:32380", "urls http://127.0.0.1:5"),
                None,
                "but --initial-advertise-peer-urls says",
                "the same",
            ),
            (
                "--name a --initial-advertise-peer-urls http://h:1 --initial-cluster a=http://h:1,b=http://h:1".into(),
                None,
                "has duplicate url",
                "of its own",
            ),
        ] {
            let error = start(&line, answer).expect_err(&line);
            assert!(error.cause.contains(cause) && error.remedy.contains(remedy), "{line}: {error}");
        }
    }

    #[test]
    fn a_founder_whose_cluster_runs_already_is_refused() {
        let [(_, m1), ..] = ETCDS_IDS;
        let mut cluster = running(None);
        cluster.members[0].id = m1;
        let error = start(&member(1), Some(cluster.clone())).expect_err("it has been there before");
        assert!(error.cause.contains("has already been bootstrapped"), "{error}");
        cluster.members[0].client_ur_ls.clear();
        assert!(start(&member(1), Some(cluster)).is_ok(), "known to the others, but never started");
    }
}
