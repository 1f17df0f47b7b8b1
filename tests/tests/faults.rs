//! What survives: acknowledged writes after kill -9 under load and after power cuts on a real file system; and a log that
//! was damaged on disk is refused instead of quietly shortened. Runs the real binary on real disks.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use daymark_client::{Client, Config};
use daymark_tests::{
    history::History,
    powercut::LoopDisk,
    process::{Dialect, Ended, Program, Server},
    seed, setting,
    tree::Tree,
    wire::runtime,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

const CLIENTS: usize = 16;
/// A restart after a crash; issue benchmarks have a tighter bound on an idle machine.
const HEALTHY_MAX: Duration = Duration::from_secs(5);
const REFUSE_MAX: Duration = Duration::from_secs(10);
const DISK_BYTES: u64 = 2 << 30;

/// Counts over the cycles of one test.
#[derive(Default)]
struct Tally {
    cycles: u64,
    slowest: Duration,
    total: Duration,
}

impl Tally {
    fn restarted(&mut self, took: Duration) {
        assert!(took <= HEALTHY_MAX, "cycle {}: healthy only after {took:?}", self.cycles);
        self.cycles += 1;
        self.slowest = self.slowest.max(took);
        self.total += took;
    }

    fn report(&self, what: &str, acknowledged: u64) {
        let mean = self.total / u32::try_from(self.cycles.max(1)).expect("few cycles");
        let Self { cycles, slowest, .. } = self;
        println!(
            "{cycles} {what}, {acknowledged} writes acknowledged, 0 lost; healthy after {mean:?} (worst {slowest:?})"
        );
    }
}

/// Whether acknowledged writes were really made: a broken load would prove nothing.
fn assert_loaded(acknowledged: u64, cycles: u64) {
    assert!(acknowledged > cycles * 20, "only {acknowledged} writes were acknowledged in {cycles} cycles");
}

#[test]
fn acknowledged_writes_survive_kill_9_under_load() {
    let cycles = setting("DAYMARK_KILL_CYCLES", 20);
    let seed = seed();
    println!("seed {seed}, {cycles} cycles");
    let mut random = StdRng::seed_from_u64(seed);
    let mut server = Server::start(&Program::daymark(), &[]);
    let history = History::new(CLIENTS);
    let runtime = runtime();
    let mut tally = Tally::default();
    for cycle in 1..=cycles {
        let load = Duration::from_millis(random.random_range(30..350));
        let endpoint = server.endpoint();
        runtime.block_on(history.write_until(&endpoint, || async {
            tokio::time::sleep(load).await;
            server.kill();
        }));
        tally.restarted(server.restart());
        let wrong = runtime.block_on(history.violations(&endpoint, cycle == cycles));
        assert!(wrong.is_empty(), "seed {seed}, cycle {cycle}, killed after {load:?}:\n{}", wrong.join("\n"));
    }
    let acknowledged = runtime.block_on(history.acknowledged());
    assert_loaded(acknowledged, cycles);
    tally.report("kills", acknowledged);
}

#[test]
fn acknowledged_writes_survive_power_cuts() {
    let test = "acknowledged_writes_survive_power_cuts";
    let cuts = setting("DAYMARK_POWER_CUTS", 4);
    let seed = seed();
    println!("seed {seed}, {cuts} cuts");
    let mut random = StdRng::seed_from_u64(seed);
    let Some(mut disk) = LoopDisk::mount_or_skip(test, DISK_BYTES) else { return };
    let mut server = Server::start_on(&Program::daymark(), &disk.root().join("data"), &[]);
    let history = History::new(CLIENTS);
    let runtime = runtime();
    let mut tally = Tally::default();
    for cut in 1..=cuts {
        let load = Duration::from_millis(random.random_range(50..900));
        let endpoint = server.endpoint();
        runtime.block_on(history.write_until(&endpoint, || async {
            tokio::time::sleep(load).await;
            // On a machine that goes dark nobody hears an answer after the cut. Here one may, and what it acknowledged may
            // be gone: seen with etcd, see docs/testing.md.
            history.freeze().await;
            disk.cut();
            server.kill();
        }));
        disk.restore();
        tally.restarted(server.restart());
        let wrong = runtime.block_on(history.violations(&endpoint, cut == cuts));
        assert!(wrong.is_empty(), "seed {seed}, cut {cut} after {load:?}:\n{}", wrong.join("\n"));
    }
    let acknowledged = runtime.block_on(history.acknowledged());
    assert_loaded(acknowledged, cuts);
    tally.report("power cuts", acknowledged);
}

/// The control: without it, a cut that loses nothing would look like a server that loses nothing.
#[test]
fn a_power_cut_loses_what_was_not_synced() {
    let Some(mut disk) = LoopDisk::mount_or_skip("a_power_cut_loses_what_was_not_synced", 64 << 20) else { return };
    let (synced, unsynced) = (disk.root().join("synced"), disk.root().join("unsynced"));
    fs::write(&synced, b"kept").expect("write");
    for path in [&synced, &disk.root()] {
        fs::File::open(path).and_then(|file| file.sync_all()).expect("sync");
    }
    fs::write(&unsynced, b"lost").expect("write");
    assert!(unsynced.exists(), "visible before the cut");
    disk.cut();
    disk.restore();
    assert_eq!(fs::read(&synced).expect("still there"), b"kept");
    assert!(!unsynced.exists(), "the cut has lost nothing: it proves nothing");
}

#[test]
fn a_flipped_bit_in_the_middle_of_the_log_is_refused() {
    refuses_damage("flipped bit", |place| {
        let mut bytes = fs::read(&place.file).expect("read the segment");
        bytes[place.offset] ^= 0x10;
        fs::write(&place.file, bytes).expect("write the segment");
    });
}

#[test]
fn a_truncated_log_segment_is_refused() {
    refuses_damage("truncated segment", |place| {
        let file = fs::File::options().write(true).open(&place.file).expect("open the segment");
        file.set_len(place.offset as u64).expect("truncate the segment");
    });
}

#[test]
fn a_deleted_log_segment_is_refused() {
    refuses_damage("deleted segment", |place| fs::remove_file(&place.file).expect("delete the segment"));
}

/// A place inside an acknowledged record, with many more behind it.
struct Place {
    file: PathBuf,
    offset: usize,
}

/// Values that can be found again in the log's bytes.
fn marker(n: u32) -> String {
    format!("<<marker {n:06}>>")
}

fn refuses_damage(what: &str, damage: impl FnOnce(&Place)) {
    let program = Program::daymark();
    let mut server = Server::start(&program, &[]);
    const RECORDS: u32 = 60;
    let client = || Client::new(Config::new([server.endpoint()])).expect("a valid endpoint");
    runtime().block_on(async {
        let client = client();
        for n in 0..RECORDS {
            let value = format!("{}{}", marker(n), "x".repeat(64 << 10));
            client.kv().put(format!("k{n}"), value).await.expect("put");
        }
    });
    server.kill();
    let log = server.data_dir().join("member/wal");
    let place = find(&log, marker(RECORDS / 2).as_bytes());
    let name = place.file.file_name().expect("a file").to_string_lossy().into_owned();
    damage(&place);

    let before = Tree::read(server.data_dir());
    let ended = server.refuse(REFUSE_MAX);
    let after = Tree::read(server.data_dir());
    assert!(!ended.status.success(), "{what}: must not look like success: {ended:?}");
    if program.dialect == Dialect::Daymark {
        assert!(ended.stderr.contains(&name), "{what}: names the file {name}:\n{}", ended.stderr);
        assert!(names_an_offset(&ended), "{what}: names the offset:\n{}", ended.stderr);
        assert_eq!(before.differences(&after), Vec::<PathBuf>::new(), "{what}: the directory was changed");
    }
}

fn names_an_offset(ended: &Ended) -> bool {
    let after = ended.stderr.split("offset ").skip(1);
    after.into_iter().any(|text| text.starts_with(|c: char| c.is_ascii_digit()))
}

/// The log file that holds these bytes, and where.
fn find(log: &Path, needle: &[u8]) -> Place {
    for entry in fs::read_dir(log).expect("list the log") {
        let file = entry.expect("a readable entry").path();
        let bytes = fs::read(&file).expect("read a log file");
        if let Some(offset) = bytes.windows(needle.len()).position(|window| window == needle) {
            return Place { file, offset };
        }
    }
    panic!("no file in {} holds the acknowledged record", log.display());
}

/// A disk without room: writes are refused or the member stops; what was acknowledged is there once there is room again.
#[test]
fn a_full_disk_loses_nothing() {
    let Some(disk) = LoopDisk::mount_or_skip("a_full_disk_loses_nothing", 512 << 20) else { return };
    let program = Program::daymark();
    let mut server = Server::start_on(&program, &disk.root().join("data"), &[]);
    let ballast = disk.root().join("ballast");
    let filled = Command::new("dd").arg("if=/dev/zero").arg(format!("of={}", ballast.display())).arg("bs=1M").output();
    assert!(filled.is_ok(), "dd runs until the disk is full");
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut acknowledged = 0_u32;
    runtime().block_on(async {
        let client = Client::new(Config::new([server.endpoint()])).expect("a valid endpoint");
        while Instant::now() < deadline && acknowledged < 4000 {
            let value = vec![b'x'; 64 << 10];
            if client.kv().put(format!("k{acknowledged:06}"), value).await.is_err() {
                break;
            }
            acknowledged += 1;
        }
    });
    server.kill();
    fs::remove_file(&ballast).expect("make room");
    server.restart();
    let answer = runtime().block_on(async {
        let client = Client::new(Config::new([server.endpoint()])).expect("a valid endpoint");
        client.kv().get(daymark_client::KeyRange::prefix("k")).await.expect("healthy again")
    });
    assert!(answer.kvs.len() >= acknowledged as usize, "{} of {acknowledged} are left", answer.kvs.len());
    println!("{acknowledged} writes acknowledged on a full disk, all there afterwards");
}
