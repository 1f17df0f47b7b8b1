//! etcdctl cannot tell Daymark from etcd: the same commands, sent by Debian's etcdctl and by 3.5.1 to an etcd 3.5.1 and to
//! Daymark, and by etcdctl 3.7.1 to an etcd 3.7.1 and to Daymark, get the same complete answers. What may differ is named in
//! `normalise.rs`.

use daymark_tests::{
    etcd::{self, Setting},
    process::{Program, Server},
    script::{self, Script, Side},
};

const FORMATS: [&str; 3] = ["json", "simple", "fields"];
/// etcdctl prints watches in these two; `fields` shows only the headers, which depend on how events were grouped.
const WATCH_FORMATS: [&str; 2] = ["json", "simple"];
/// Differences shown of one test.
const SHOWN_MAX: usize = 8;

/// Runs a script with every etcdctl and format on one pair of servers, emptying the key space in between.
fn conforms(test: &str, text: &str, formats: &[&'static str]) {
    conforms_in(etcd::settings(test), test, text, formats);
}

fn conforms_in(settings: Vec<Setting>, test: &str, text: &str, formats: &[&'static str]) {
    let script = Script::parse(text);
    let mut failures = Vec::new();
    let mut compared = 0;
    for setting in settings {
        failures.extend(differences(&setting, &script, formats));
        compared += script::compared_steps(&script) * setting.ctls.len() * formats.len();
    }
    let shown = failures.iter().take(SHOWN_MAX).cloned().collect::<Vec<_>>().join("\n");
    assert!(failures.is_empty(), "{} of {compared} answers differ, the first ones are:\n{shown}", failures.len());
    println!("{test}: {compared} answers are the same");
}

fn differences(setting: &Setting, script: &Script, formats: &[&'static str]) -> Vec<String> {
    let program = Program::daymark();
    // Every command that says who asks logs in, which takes long on purpose.
    let cheap = "--bcrypt-cost=4";
    let theirs = Server::start(&setting.oracle, &[&setting.oracle.progress_interval("1s"), cheap]);
    let ours = Server::start(&program, &[&program.progress_interval("1s"), cheap]);
    let clean = Script::parse("del '' --prefix");
    let mut failures = Vec::new();
    for ctl in &setting.ctls {
        for format in formats {
            let mut left = Side::new("etcd", &theirs, ctl, format);
            let mut right = Side::new("daymark", &ours, ctl, format);
            for found in [script, &clean].map(|s| script::differences(s, &mut left, &mut right)).concat() {
                failures.push(format!("etcdctl {} -w {format}, {found}", ctl.version));
            }
        }
    }
    failures
}

macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident: $formats:expr;)*) => {
        $($(#[$doc])* #[test] fn $name() {
            conforms(stringify!($name), include_str!(concat!("scripts/", stringify!($name), ".txt")), &$formats);
        })*
    };
}

scripts! {
    put_get: FORMATS;
    get_new: FORMATS;
    del: FORMATS;
    txn: FORMATS;
    lease: FORMATS;
    lease_expiry: WATCH_FORMATS;
    compaction: FORMATS;
    cluster: FORMATS;
    watch_history: WATCH_FORMATS;
    watch_live: WATCH_FORMATS;
    watch_compacted: WATCH_FORMATS;
}

/// Rights are those of etcd 3.7: 3.5.1 looks at fewer of them, and shows the root role as empty.
#[test]
fn auth() {
    let mut settings = etcd::settings("auth");
    settings.retain(|setting| setting.ctls.iter().all(|ctl| ctl.version == "3.7.1"));
    conforms_in(settings, "auth", include_str!("scripts/auth.txt"), &WATCH_FORMATS);
}

/// For maintenance calls etcdctl 3.4 sends an endpoint with its scheme as the `:authority` of HTTP/2, which is malformed;
/// etcd takes it.
#[test]
fn status_by_etcdctl_3_4_with_a_scheme_in_the_endpoint_gets_through() {
    let test = "status_by_etcdctl_3_4_with_a_scheme_in_the_endpoint_gets_through";
    let program = Program::daymark();
    let Some(ctl) = etcd::etcdctls(test).into_iter().find(|ctl| ctl.version == "3.4") else { return };
    let server = Server::start(&program, &[]);
    let args = ["endpoint", "status"].map(str::to_owned);
    for endpoint in [server.endpoint(), format!("http://{}", server.endpoint())] {
        let status = ctl.run(&endpoint, &args, "");
        assert_eq!(status.code, Some(0), "{endpoint}: {status:?}");
    }
}
