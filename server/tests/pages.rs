//! Lists page by page, as clients do that cannot hold all of it: each page says how many keys there are from its first on,
//! at the revision of the first page, whatever comes and goes meanwhile.

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use daymark_api::etcdserverpb as pb;
use daymark_server::request::{Context, Reply, Request};
use daymark_server::services::Door;

use crate::member::TestMember;

async fn call(door: &Rc<Door>, request: Request) -> Reply {
    door.call(&Context::default(), request).await.expect("an answer")
}

fn key(number: usize) -> Bytes {
    format!("k{number:04}").into()
}

async fn put(door: &Rc<Door>, number: usize, bytes: usize) {
    let put = pb::PutRequest { key: key(number), value: vec![b'v'; bytes].into(), ..Default::default() };
    call(door, Request::Put(put)).await;
}

/// All pages of `limit` at `revision` (0: that of the first page), while `meanwhile` happens between them.
async fn list(door: &Rc<Door>, limit: i64, revision: i64, meanwhile: impl AsyncFn(usize)) -> BTreeMap<Bytes, usize> {
    let (mut found, mut counts, mut pages) = (BTreeMap::new(), Vec::new(), 0);
    let mut request =
        pb::RangeRequest { key: "k".into(), range_end: "l".into(), limit, revision, ..Default::default() };
    loop {
        let Reply::Range(page) = call(door, Request::Range(request.clone())).await else { panic!("a range") };
        counts.push((found.len() as i64, page.count));
        assert!(page.kvs.len() as i64 <= limit && page.more == (page.count > page.kvs.len() as i64));
        if revision == 0 && request.revision == 0 {
            request.revision = page.header.expect("a header").revision;
        }
        found.extend(page.kvs.iter().map(|kv| (kv.key.clone(), kv.value.len())));
        if !page.more {
            break;
        }
        request.key = [&page.kvs.last().expect("a last one").key[..], &[0]].concat().into();
        meanwhile(pages).await;
        pages += 1;
    }
    for (before, count) in counts {
        assert_eq!(before + count, found.len() as i64, "what a page counts is what comes from it on");
    }
    found
}

#[test]
fn each_page_counts_what_is_left_at_the_revision_of_the_first() {
    let member = TestMember::new();
    member.wait(async |door| {
        // Pages of small values are read at once, of large ones in pieces.
        for bytes in [10, 9_000] {
            let mut expected = BTreeMap::new();
            for number in (0..60).step_by(2) {
                put(&door, number, bytes + number).await;
                expected.insert(key(number), bytes + number);
            }
            let Reply::Range(now) =
                call(&door, Request::Range(pb::RangeRequest { key: "k".into(), ..Default::default() })).await
            else {
                panic!("a range")
            };
            let before = now.header.expect("a header").revision;
            let change = async |page: usize| {
                put(&door, 2 * page + 1, 5).await;
                let gone = pb::DeleteRangeRequest { key: key(58 - 2 * (page % 20)), ..Default::default() };
                call(&door, Request::DeleteRange(gone)).await;
            };
            for limit in [1, 3, 7, 29, 30] {
                assert_eq!(list(&door, limit, before, change).await, expected, "of {limit}");
                let now = list(&door, limit, 0, async |_| ()).await;
                assert_eq!(list(&door, limit, 0, change).await, now, "of {limit}");
            }
            let all = pb::DeleteRangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() };
            call(&door, Request::DeleteRange(all)).await;
        }
    });
    member.stop();
}
