//! Answers that do not fit into one frame: they arrive whole, and count as memory as long as they wait to be read.

use bytes::Bytes;
use daymark_api::etcdserverpb as pb;
use prost::Message;

use super::{Client, answer, eventually, frame, with_server};

#[test]
fn large_answers_arrive_whole() {
    with_server(async |server| {
        let client = server.connect().await;
        for bytes in [0, 1, 900, 1500, 5000, 70_000, 3_000_000] {
            let range = pb::RangeRequest { key: Bytes::from_static(b"k"), limit: bytes, ..Default::default() };
            let answer = client.call("/etcdserverpb.KV/Range", &range).await;
            let response = pb::RangeResponse::decode(answer.body.slice(5..)).expect("message");
            assert_eq!(response.kvs[0].value.len(), bytes as usize);
            assert!(response.kvs[0].value.iter().all(|byte| *byte == 7));
        }
    });
}

#[test]
fn large_answers_count_until_they_are_read_or_given_up() {
    const BYTES: usize = 3_000_000;
    with_server(async |server| {
        let client = server.connect().await;
        let range = pb::RangeRequest { key: Bytes::from_static(b"k"), limit: BYTES as i64, ..Default::default() };
        let ask = async || {
            let mut send = client.send.clone().ready().await.expect("ready");
            let request = Client::head("/etcdserverpb.KV/Range", &[]);
            let (response, mut stream) = send.send_request(request, false).expect("sent");
            stream.send_data(frame(&range), true).expect("sent");
            response.await.expect("an answer")
        };
        for is_read in [true, false] {
            let answer_head = ask().await;
            let used = server.answers.used();
            assert!(used > BYTES && used < BYTES + 100, "{used}");
            assert_eq!(client.put("k").await.code, 0, "other calls of the connection go on");
            if is_read {
                assert!(answer(answer_head).await.expect("read").body.len() > BYTES);
            } else {
                drop(answer_head);
            }
            eventually("it counts no more", || server.answers.used() == 0).await;
        }
    });
}

#[test]
fn a_large_answer_that_is_given_up_takes_no_other_call_along() {
    with_server(async |server| {
        let client = server.connect().await;
        let range = pb::RangeRequest { key: Bytes::from_static(b"k"), limit: 3_000_000, ..Default::default() };
        for _ in 0..3 {
            let mut send = client.send.clone().ready().await.expect("ready");
            let request = Client::head("/etcdserverpb.KV/Range", &[]);
            let (response, mut stream) = send.send_request(request, false).expect("sent");
            stream.send_data(frame(&range), true).expect("sent");
            let large = response.await.expect("an answer");
            // It is answered and not sent yet: the next call may have its place.
            let (later, ()) = tokio::join!(client.put("later"), async move {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                drop((large, stream));
            });
            assert_eq!(later.code, 0);
        }
    });
}
