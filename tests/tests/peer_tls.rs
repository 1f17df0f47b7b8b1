//! Clusters whose members show each other certificates: good ones, of strangers, expired, renewed while everything runs. Who
//! is refused, and who refuses, says why and what to do; the cluster goes on meanwhile.

use std::{
    thread,
    time::{Duration, Instant, SystemTime},
};

use daymark_tests::{
    changing::{Cluster, eventually},
    ctl::Etcdctl,
    etcd,
    pki::{self, Authority},
    process::Program,
};

/// How long a certificate lives that expires during a test: long enough for a cluster to be founded on a busy machine.
const LIFE: Duration = Duration::from_secs(15);

/// The newest etcdctl that is there, or nothing after saying so.
fn etcdctl(test: &str) -> Option<Etcdctl> {
    etcd::etcdctls(test).pop()
}

fn texts(flags: &[String]) -> Vec<&str> {
    flags.iter().map(String::as_str).collect()
}

/// Flags of a member of a cluster that encrypts: its own certificate, and what it asks of the others.
fn among_members(authority: &Authority, file: &str, allowed: [&str; 2]) -> Vec<String> {
    let pairs = [
        ("--peer-cert-file", format!("{file}.pem")),
        ("--peer-key-file", format!("{file}.key")),
        ("--peer-trusted-ca-file", "ca.pem".into()),
    ];
    let given = pairs.into_iter().flat_map(|(flag, file)| [flag.to_owned(), authority.file(&file)]);
    let rest = ["--peer-client-cert-auth", allowed[0], allowed[1]].map(str::to_owned);
    given.chain(rest).collect()
}

const BY_NAME: [&str; 2] = ["--peer-cert-allowed-cn", "member"];
const BY_HOST: [&str; 2] = ["--peer-cert-allowed-hostname", "localhost"];

fn put(cluster: &Cluster, ctl: &Etcdctl, what: &str) {
    let answer = cluster.ctl(ctl, &[0, 1], &format!("put key {what}"));
    assert_eq!(answer.code, Some(0), "{what}: {}", answer.stderr);
}

/// Whether a line of the log has all of this.
fn says(log: &str, words: &[&str]) -> bool {
    log.lines().any(|line| words.iter().all(|word| line.contains(word)))
}

/// A member comes with a certificate that must not be enough: it is refused, both sides say what `refusing` and `refused`
/// hold, and writes go on.
fn expect_refused(cluster: &mut Cluster, ctl: &Etcdctl, flags: &[String], refusing: &[&str], refused: &[&str]) {
    cluster.kill(2);
    let before = [0, 1, 2].map(|number| cluster.log(number).len());
    cluster.set_extra(&texts(flags));
    cluster.spawn(2);
    let mut written = 0;
    eventually("it is refused, and both sides say why", || {
        written += 1;
        put(cluster, ctl, &written.to_string());
        let since = |number: usize| cluster.log(number)[before[number]..].to_owned();
        let told = [&["rejected connection on peer endpoint"], refusing].concat();
        (says(&since(0), &told) || says(&since(1), &told)) && says(&since(2), refused)
    });
    assert!(!cluster.is_healthy(2), "it does not take part");
}

#[test]
fn members_let_in_only_members_and_certificates_rotate_under_them() {
    let Some(ctl) = etcdctl("members_let_in_only_members_and_certificates_rotate_under_them") else { return };
    let (authority, other) = (Authority::new(), Authority::new());
    authority.issue("one", "member");
    authority.issue("two", "member");
    authority.issue("client", "client");
    other.issue("one", "member");
    let good = among_members(&authority, "one", BY_NAME);
    let mut cluster = Cluster::start(&Program::daymark(), 3, &texts(&good));
    put(&cluster, &ctl, "before");

    // It trusts them, they do not trust it.
    let ca = authority.file("ca.pem");
    let mut foreign = among_members(&other, "one", BY_NAME);
    let place = foreign.iter().position(|flag| *flag == other.file("ca.pem")).expect("it is among the flags");
    foreign[place] = ca;
    let refusing = ["invalid peer certificate", "--peer-trusted-ca-file"];
    let refused = ["refuses this member's certificate", "--peer-trusted-ca-file"];
    expect_refused(&mut cluster, &ctl, &foreign, &refusing, &refused);
    let named = among_members(&authority, "client", BY_NAME);
    let refusing = ["client certificate authentication failed", "--peer-cert-allowed-cn"];
    let refused = ["refuses this member's certificate", "--peer-cert-allowed-cn"];
    expect_refused(&mut cluster, &ctl, &named, &refusing, &refused);

    // Another certificate in the same files: a member that comes back uses it, the others look at it.
    cluster.kill(2);
    cluster.set_extra(&texts(&good));
    for ending in ["key", "pem"] {
        let fresh = std::fs::read(authority.path(&format!("two.{ending}"))).expect("issued above");
        pki::replace(&authority.path(&format!("one.{ending}")), fresh);
    }
    cluster.restart(2);
    assert_eq!(cluster.ctl(&ctl, &[2], "put after rotation").code, Some(0));
    // All connections anew, with what is in the files now, on members that have run all the time.
    cluster.kill(1);
    assert_eq!(cluster.ctl(&ctl, &[0], "put without one").code, Some(0));
    cluster.restart(1);
    let there = cluster.ctl(&ctl, &[1], "get after");
    assert!(there.stdout.contains("rotation"), "{}", there.stdout);
    eventually("a running member notices the change", || {
        cluster.log(0).contains("reloaded TLS certificates of members")
    });
}

#[test]
fn members_without_a_name_that_is_allowed_are_refused() {
    let Some(ctl) = etcdctl("members_without_a_name_that_is_allowed_are_refused") else { return };
    let authority = Authority::new();
    authority.issue("good", "member");
    authority.issue_with("nameless", "member", |parameters| {
        parameters.subject_alt_names.retain(|name| matches!(name, rcgen::SanType::IpAddress(_)));
    });
    let good = among_members(&authority, "good", BY_HOST);
    let mut cluster = Cluster::start(&Program::daymark(), 3, &texts(&good));
    let refusing = ["client certificate authentication failed", "--peer-cert-allowed-hostname"];
    let refused = ["refuses this member's certificate", "--peer-cert-allowed-hostname"];
    expect_refused(&mut cluster, &ctl, &among_members(&authority, "nameless", BY_HOST), &refusing, &refused);
    cluster.kill(2);
    cluster.set_extra(&texts(&good));
    cluster.restart(2);
}

#[test]
fn a_member_whose_certificate_has_expired_is_refused_until_it_is_renewed() {
    let Some(ctl) = etcdctl("a_member_whose_certificate_has_expired") else { return };
    let authority = Authority::new();
    let mut cluster = Cluster::prepare(&Program::daymark(), 3, &["--peer-cert-file"]);
    let expires = SystemTime::now() + LIFE;
    for number in 0..3 {
        let file = format!("m{number}");
        match number {
            2 => authority.issue_until(&file, "member", expires),
            _ => authority.issue(&file, "member"),
        }
        cluster.set_extra(&texts(&among_members(&authority, &file, BY_NAME)));
        cluster.spawn(number);
    }
    (0..3).for_each(|number| cluster.wait_healthy(number));
    assert!(SystemTime::now() < expires, "the machine is too slow for certificates that live {LIFE:?}");

    // Connections that stand stay, as with etcd. One more second: time in certificates is in whole ones.
    let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
    thread::sleep(left + Duration::from_secs(1));
    put(&cluster, &ctl, "standing");
    assert_eq!(cluster.ctl(&ctl, &[2], "get key --print-value-only").stdout.trim(), "standing");

    let flags = among_members(&authority, "m2", BY_NAME);
    let refusing = ["invalid peer certificate", "it expired on", "renew the file of its --peer-cert-file"];
    let refused = ["refuses this member's certificate (CertificateExpired)", "renew the file of this member's"];
    expect_refused(&mut cluster, &ctl, &flags, &refusing, &refused);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        put(&cluster, &ctl, "meanwhile");
    }
    // The others dial it, too, and say so; once, not at each attempt.
    let unreachable = |log: &str| {
        let about = |line: &&str| line.contains("cannot reach a member") && line.contains("it expired on");
        log.lines().filter(about).count()
    };
    let told = unreachable(&cluster.log(0)) + unreachable(&cluster.log(1));
    assert!((1..=6).contains(&told), "told {told} times");

    authority.issue("m2", "member");
    cluster.wait_healthy(2);
    assert_eq!(cluster.ctl(&ctl, &[2], "get key --print-value-only").stdout.trim(), "meanwhile");
    assert!(cluster.log(2).contains("reloaded TLS certificates of members"), "without a restart");
}

#[test]
fn members_with_certificates_they_made_themselves_encrypt() {
    let Some(ctl) = etcdctl("members_with_certificates_they_made_themselves_encrypt") else { return };
    let cluster = Cluster::start(&Program::daymark(), 3, &["--peer-auto-tls"]);
    assert_eq!(cluster.ctl(&ctl, &[1], "put auto tls").code, Some(0));
    assert!(cluster.log(0).contains("serving peer traffic securely"));
}
