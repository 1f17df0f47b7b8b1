//! The table: which requests are made. Every method of the API; keys inside, outside and on both sides of every border
//! that a role has.

use super::{
    ask::{Admin, Ask, IDLE_LEASE, NO_LEASE, NO_ROLE, NOBODY, SOME_ROLE, SOMEBODY, Span, Txn, TxnOp, at, prefix, span},
    world::OBSERVED,
};

/// Single keys around the borders of all grants.
fn points() -> Vec<Span> {
    let keys: [&[u8]; 26] = [
        b"\0",
        b"a",
        b"b\xff",
        b"c",
        b"c\0",
        b"d",
        b"d1",
        b"e",
        b"e\xff",
        b"f",
        b"g",
        b"j\xff",
        b"k",
        b"l",
        b"m",
        b"m\0",
        b"m\0\0",
        b"ma",
        b"p",
        b"p/",
        b"p/x",
        b"p/\xff\xff",
        b"p0",
        b"s\xff",
        b"t",
        b"\xff\xff",
    ];
    keys.map(at).into()
}

/// Ranges that lie within grants, end at their borders, reach over them, and hold nothing at all. (Of ranges that hold
/// nothing and reach back over several grants some are refused by etcd, depending on the order of its tree; no key is at
/// stake, and they are left out.)
fn ranges() -> Vec<Span> {
    let ends: [(&[u8], &[u8]); 41] = [
        (b"c", b"f"),
        (b"c", b"e"),
        (b"c\0", b"e\xff"),
        (b"d", b"e"),
        (b"d", b"f"),
        (b"e", b"f"),
        (b"b\xff", b"f"),
        (b"c", b"f\0"),
        (b"c", b"g"),
        (b"c", b"h"),
        (b"d", b"g"),
        (b"e", b"g"),
        (b"e", b"h"),
        (b"f", b"h"),
        (b"g", b"k"),
        (b"g", b"k\0"),
        (b"f\xff", b"k"),
        (b"h", b"j"),
        (b"m", b"m\0"),
        (b"m", b"m\0\0"),
        (b"m\0", b"m\0\0"),
        (b"m", b"m\0\0\0"),
        (b"l", b"m\0"),
        (b"m", b"n"),
        (b"p/", b"p0"),
        (b"p/a", b"p/b"),
        (b"p/", b"p0\0"),
        (b"p", b"p0"),
        (b"t", b"\0"),
        (b"t1", b"\0"),
        (b"s\xff", b"\0"),
        (b"t", b"u"),
        (b"\0", b"\0"),
        (b"a", b"\0"),
        (b"\0", b"a"),
        (b"\0", b"\xff"),
        (b"d", b"d"),
        (b"e", b"d"),
        (b"c", b"c"),
        (b"f", b"f"),
        (b"e", b"c\0"),
    ];
    ends.map(|(key, end)| span(key, end)).into()
}

/// Everything that a caller with some rights is tried with.
pub fn all() -> Vec<Ask> {
    let mut asks = keys_and_ranges();
    asks.extend(transactions());
    asks.extend(leases());
    asks.extend(everything_else());
    asks
}

/// What those are tried with whom the server does not know: every method, but not every key.
pub fn for_strangers() -> Vec<Ask> {
    let d = at("d");
    let mut asks = vec![
        Ask::Range(d.clone()),
        Ask::Range(span("\0", "\0")),
        Ask::Range(at("")),
        Ask::SerializableRange(d.clone()),
        Ask::RangeStream(d.clone()),
        Ask::Put { key: d.clone(), prev_kv: false, lease: 0 },
        Ask::Put { key: d.clone(), prev_kv: true, lease: 1001 },
        Ask::Put { key: at(""), prev_kv: false, lease: 0 },
        Ask::Delete { span: span("c", "f"), prev_kv: true },
        Ask::Watch(d),
        Ask::Watch(span("d", "\0")),
    ];
    asks.extend(transactions());
    asks.extend(leases());
    asks.extend(everything_else());
    asks
}

fn keys_and_ranges() -> Vec<Ask> {
    let mut asks = Vec::new();
    for span in points().into_iter().chain(ranges()) {
        asks.push(Ask::Range(span.clone()));
        asks.push(Ask::Watch(span.clone()));
        asks.push(Ask::Delete { span: span.clone(), prev_kv: false });
        asks.push(Ask::Delete { span, prev_kv: true });
    }
    for key in points() {
        asks.push(Ask::Put { key: key.clone(), prev_kv: false, lease: 0 });
        asks.push(Ask::Put { key, prev_kv: true, lease: 0 });
    }
    for span in [at("d"), at("m"), span("c", "f"), span("g", "k"), span("t", "\0"), span("\0", "\0")] {
        asks.push(Ask::SerializableRange(span.clone()));
        asks.push(Ask::RangeStream(span));
    }
    for nothing in [at(""), span("", "\0")] {
        asks.push(Ask::Range(nothing.clone()));
        asks.push(Ask::RangeStream(nothing.clone()));
        asks.push(Ask::Delete { span: nothing.clone(), prev_kv: false });
        asks.push(Ask::Watch(nothing));
    }
    asks
}

fn transactions() -> Vec<Ask> {
    let mut txns = vec![Txn::default()];
    // Each kind of part alone, in each place, at keys that some may write, read, or neither.
    for key in ["d", "f", "h", "m"] {
        let put = |prev_kv, lease| TxnOp::Put { key: at(key), prev_kv, lease };
        let delete = |prev_kv| TxnOp::Delete { span: at(key), prev_kv };
        txns.push(Txn { compare: vec![at(key)], ..Txn::default() });
        for op in [TxnOp::Range(at(key)), put(false, 0), put(true, 0), put(false, 1001), delete(false), delete(true)] {
            txns.push(Txn { success: vec![op.clone()], ..Txn::default() });
            txns.push(Txn { failure: vec![op.clone()], ..Txn::default() });
            let inner = Txn { failure: vec![op], ..Txn::default() };
            txns.push(Txn { success: vec![TxnOp::Txn(inner.clone())], ..Txn::default() });
            let middle = Txn { failure: vec![TxnOp::Txn(inner)], ..Txn::default() };
            txns.push(Txn { failure: vec![TxnOp::Txn(middle)], ..Txn::default() });
        }
        let inner = Txn { compare: vec![at(key)], ..Txn::default() };
        txns.push(Txn { success: vec![TxnOp::Txn(inner)], ..Txn::default() });
    }
    txns.push(Txn { compare: vec![span("c", "f")], ..Txn::default() });
    txns.push(Txn { compare: vec![span("c", "f\0")], ..Txn::default() });
    txns.push(Txn { compare: vec![span("t", "\0")], ..Txn::default() });
    // One part that is allowed beside one that may not be.
    txns.push(Txn {
        compare: vec![at("d")],
        success: vec![TxnOp::Put { key: at("d"), prev_kv: false, lease: 0 }],
        failure: vec![TxnOp::Range(at("m"))],
    });
    let twice = TxnOp::Put { key: at("d"), prev_kv: false, lease: 0 };
    txns.push(Txn { success: vec![twice.clone(), twice], ..Txn::default() });
    txns.push(Txn { success: vec![TxnOp::Nothing], ..Txn::default() });
    txns.push(Txn { compare: vec![at("")], ..Txn::default() });
    txns.into_iter().map(Ask::Txn).collect()
}

fn leases() -> Vec<Ask> {
    let mut asks = vec![Ask::LeaseGrant, Ask::LeaseLeases];
    for id in [1001, 1002, 1003, IDLE_LEASE, NO_LEASE] {
        asks.push(Ask::LeaseKeepAlive(id));
        asks.push(Ask::LeaseTimeToLive { id, keys: false });
        asks.push(Ask::LeaseTimeToLive { id, keys: true });
        if id != NO_LEASE {
            asks.push(Ask::LeaseRevoke(id));
        }
    }
    // A key of one's own on a lease that holds keys of others.
    for lease in [1001, 1002, 1003, IDLE_LEASE] {
        for key in ["d", "h", "m", "p/x"] {
            asks.push(Ask::Put { key: at(key), prev_kv: false, lease });
        }
    }
    asks
}

fn everything_else() -> Vec<Ask> {
    let mut asks = vec![
        Ask::MemberList { linearizable: true },
        Ask::MemberList { linearizable: false },
        Ask::Status,
        Ask::AlarmGet,
        Ask::AuthStatus,
        Ask::Authenticate,
        Ask::HealthCheck,
        Ask::HealthWatch,
    ];
    asks.extend([SOMEBODY, "root", "everything", NOBODY, ""].map(Ask::UserGet));
    asks.extend([SOME_ROLE, "root", "everything", NO_ROLE].map(Ask::RoleGet));
    // Switching auth off is tried by those only who may not.
    asks.extend(Admin::ALL.iter().filter(|admin| **admin != Admin::AuthDisable).map(|admin| Ask::Admin(*admin)));
    asks.push(Ask::Admin(Admin::AuthDisable));
    for name in ["p/queue", "d/queue", "q/queue"] {
        for lease in [IDLE_LEASE, 1001] {
            asks.push(Ask::Lock { name, lease });
            asks.push(Ask::Campaign { name, lease });
        }
        asks.push(Ask::Proclaim { name, lease: IDLE_LEASE });
        asks.push(Ask::Resign { name, lease: IDLE_LEASE });
    }
    asks.extend(["p/x", "d", "q"].map(|key| Ask::Unlock(at(key))));
    asks.push(Ask::Leader(OBSERVED));
    asks.push(Ask::Observe(OBSERVED));
    asks
}

/// Keys that tell apart whose revision is current, for tokens that carry one.
pub fn for_revisions() -> Vec<Ask> {
    let mut asks = vec![Ask::Range(prefix("p/")), Ask::Range(at("d")), Ask::Watch(at("d")), Ask::RangeStream(at("d"))];
    asks.push(Ask::Put { key: at("d"), prev_kv: false, lease: 0 });
    asks.push(Ask::Delete { span: at("d"), prev_kv: false });
    asks.extend(transactions());
    asks.extend(leases());
    asks.extend(everything_else());
    asks
}
