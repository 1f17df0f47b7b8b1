//! The snapshot stream as a client sees it. What is in the file is for etcd's own tools to say, with real processes.

use std::rc::Rc;
use std::task::Waker;

use bytes::Bytes;
use daymark_api::etcdserverpb as pb;
use daymark_server::error::Error;
use daymark_server::request::{Context, Request, Sink, StreamRequest, Taken};
use daymark_server::services::Door;
use daymark_server::views::Room;
use prost::Message;
use sha2::{Digest, Sha256};

use crate::member::TestMember;

const PIECE_BYTES: usize = 32 * 1024;

fn put(member: &TestMember, key: &str, bytes: usize) {
    let value = vec![b'v'; bytes].into();
    let put = pb::PutRequest { key: key.to_owned().into(), value, ..Default::default() };
    member.call(Request::Put(put)).expect("put");
}

/// Everything a stream says, and how it ends. `meanwhile` runs after the first message.
async fn stream(door: Rc<Door>, meanwhile: impl AsyncFnOnce()) -> (Vec<pb::SnapshotResponse>, Result<(), Error>) {
    let sink = Sink::new(256 * 1024);
    let serving = door.serve_stream(Context::default(), StreamRequest::Snapshot(pb::SnapshotRequest {}), sink.clone());
    let mut meanwhile = Some(meanwhile);
    let read = async {
        let mut messages = Vec::new();
        loop {
            match sink.take(Waker::noop()) {
                Taken::Message(parts) => {
                    let bytes: Bytes = parts.concat().into();
                    messages.push(pb::SnapshotResponse::decode(bytes).expect("a response"));
                    if let Some(meanwhile) = meanwhile.take() {
                        meanwhile().await;
                    }
                }
                Taken::End(end) => return (messages, end),
                Taken::Pending => tokio::time::sleep(std::time::Duration::from_millis(1)).await,
            }
        }
    };
    let (_, heard) = tokio::join!(serving, read);
    heard
}

#[test]
fn a_snapshot_comes_in_pieces_that_count_down_and_ends_with_their_checksum() {
    let member = TestMember::new();
    for n in 0..60 {
        put(&member, &format!("key/{n}"), 10_000);
        put(&member, "often", n);
    }
    let compact = pb::CompactionRequest { revision: 40, physical: true };
    member.call(Request::Compact(compact)).expect("compacted");
    let later = async |door: Rc<Door>| {
        let delete = pb::DeleteRangeRequest { key: "key/".into(), range_end: "key0".into(), ..Default::default() };
        door.call(&Context::default(), Request::DeleteRange(delete)).await.expect("deleted");
        let compact = pb::CompactionRequest { revision: door.views().keyspace.current_revision(), physical: true };
        door.call(&Context::default(), Request::Compact(compact)).await.expect("compacted");
    };
    let (mut messages, end) = member.wait(async |door| stream(door.clone(), async || later(door).await).await);
    assert_eq!(end, Ok(()));
    let checksum = messages.pop().expect("a checksum");
    let file: Vec<u8> = messages.iter().flat_map(|message| message.blob.to_vec()).collect();
    assert_eq!((checksum.remaining_bytes, &checksum.blob[..]), (0, &Sha256::digest(&file)[..]));
    assert!(file.len() > 600_000 && file.len().is_multiple_of(4096), "{}", file.len());
    let mut left = file.len();
    for message in &messages {
        assert_eq!(message.blob.len(), left.min(PIECE_BYTES));
        left -= message.blob.len();
        assert_eq!((message.remaining_bytes, &*message.version), (left as u64, "3.7.0"));
        assert!(message.header.is_none());
    }
    member.stop();
}

#[test]
fn without_room_no_snapshot_is_made_and_the_member_goes_on() {
    let member = TestMember::new();
    put(&member, "key", 100);
    member.door.views().set_room(Room::Scarce);
    let (messages, end) = member.wait(async |door| stream(door, async || ()).await);
    assert_eq!((messages.len(), end), (0, Err(Error::NoRoomForFile)));
    member.door.views().set_room(Room::Ample);
    let (messages, end) = member.wait(async |door| stream(door, async || ()).await);
    assert_eq!((messages.len() > 1, end), (true, Ok(())));
    member.stop();
}
