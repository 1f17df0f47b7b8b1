//! What a million leases cost their timekeeper: memory, and time to grant, renew and end them. Prints its figures; not
//! the log and the table, which `apply` measures.

use std::time::{Duration, Instant};

use daymark_server::mailbox::Mailbox;
use daymark_server::policy::lessor::Lessor;
use daymark_server::state::lease::{LeaseChange, LeaseFact};
use daymark_server::views::Views;
use daymark_storage::backend::MemBackend;
use daymark_storage::mvcc::Keyspace;

const LEASES: i64 = 1_000_000;
/// Changes taken at once, as after a burst of grants.
const PIECE: usize = 10_000;

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number of pages");
    pages * 4096
}

fn report(what: &str, count: u64, took: Duration) {
    let each = took.as_nanos() as f64 / count as f64;
    println!("{what:<44} {:>9.1} ms {each:>9.0} ns each", took.as_secs_f64() * 1e3);
}

fn main() {
    let (keyspace, _writer) = Keyspace::open(MemBackend::new()).expect("the keyspace opens");
    let views = Views::new(keyspace, 1, 1, vec![Mailbox::new(1 << 20)]);
    let lessor = Lessor::new(views.clone(), Duration::from_millis(0));
    lessor.take_over(1, 0).expect("nothing there");
    // Ids as they are chosen: without order.
    let id = |n: i64| (n.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 1).max(1);

    let (before, begun) = (resident_bytes(), Instant::now());
    for n in 1..=LEASES {
        let fact = LeaseFact { id: id(n), ttl_secs: 3, grant: n as u64, remaining_secs: 0 };
        views.leases.push(LeaseChange::Granted(fact));
        if (n as usize).is_multiple_of(PIECE) {
            lessor.look(None).expect("looked");
        }
    }
    report("grant", LEASES as u64, begun.elapsed());
    println!("resident bytes of a lease                    {:>9}", (resident_bytes() - before) / LEASES as u64);

    let begun = Instant::now();
    for n in 1..=LEASES {
        lessor.renew(id(n), 1).expect("renewed");
    }
    report("renew", LEASES as u64, begun.elapsed());
    let begun = Instant::now();
    let listed = lessor.list().expect("listed").len();
    report("list all, in order of their ends", listed as u64, begun.elapsed());

    std::thread::sleep(Duration::from_millis(4000));
    let (mut ended, mut longest, begun) = (0, Duration::ZERO, Instant::now());
    loop {
        let look = Instant::now();
        let due = lessor.take_over(1, 500).expect("looked");
        longest = longest.max(look.elapsed());
        if due.is_empty() {
            break;
        }
        ended += due.len() as u64;
        due.iter().for_each(|due| views.leases.push(LeaseChange::Revoked(due.id)));
    }
    report("end, 500 at a time", ended, begun.elapsed());
    println!("longest look                                 {:>9.1} ms", longest.as_secs_f64() * 1e3);
    assert_eq!(ended, LEASES as u64);
}
