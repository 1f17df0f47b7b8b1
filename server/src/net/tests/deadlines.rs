//! Calls whose callers do not wait for ever.

use super::*;

#[test]
fn a_deadline_ends_a_call_and_drops_its_work() {
    with_server(async |server| {
        let client = server.connect().await;
        let start = Instant::now();
        let body = frame(&put_request("never"));
        let answer = client.raw("/etcdserverpb.KV/Put", &[("grpc-timeout", "50m")], body).await.expect("call");
        assert_eq!((answer.code, &*answer.text), (4, "context deadline exceeded"));
        assert!(start.elapsed() >= Duration::from_millis(50));
        eventually("the call is dropped", || server.seen.ended.load(Ordering::SeqCst) == 1).await;
        let body = frame(&put_request("later"));
        let answer = client.raw("/etcdserverpb.KV/Put", &[("grpc-timeout", "5S")], body).await.expect("call");
        assert_eq!(answer.code, 0, "in time");
    });
}

#[test]
fn each_call_has_its_own_deadline_and_its_own_head() {
    with_server(async |server| {
        let client = server.connect().await;
        async fn put(client: &Client, key: &'static str, headers: &[(&'static str, &str)]) -> Answer {
            client.raw("/etcdserverpb.KV/Put", headers, frame(&put_request(key))).await.expect("call")
        }
        for round in 0..3 {
            // Alike but for the time-out, as many as the server remembers and more.
            for left in 0..20 {
                let left = format!("{}u", 4_999_999 - 20 * round - left);
                assert_eq!(put(&client, "k", &[("grpc-timeout", &left)]).await.code, 0);
            }
            let answer = put(&client, "token", &[("token", "one"), ("grpc-timeout", "5S")]).await;
            assert_eq!(answer.text, "one false None");
            let answer = put(&client, "token", &[("token", "two"), ("grpc-timeout", "4S")]).await;
            assert_eq!(answer.text, "two false None", "another head is not the one before");
            let start = Instant::now();
            assert_eq!(put(&client, "never", &[("grpc-timeout", "30m")]).await.code, 4);
            assert!(start.elapsed() >= Duration::from_millis(30), "not another call's");
            let answer = put(&client, "k", &[("grpc-timeout", "5")]).await;
            assert_eq!((answer.code, &*answer.text), (13, "malformed grpc-timeout"));
            assert_eq!(put(&client, "k", &[("grpc-timeout", "0m")]).await.code, 4);
            assert_eq!(
                put(&client, "later", &[("grpc-timeout", "5S")]).await.code,
                0,
                "none keeps a deadline that is over"
            );
            assert_eq!(put(&client, "later", &[]).await.code, 0);
        }
    });
}

#[test]
fn a_deadline_that_is_over_begins_nothing() {
    with_server(async |server| {
        let client = server.connect().await;
        for timeout in ["0m", "0n", "1n", "00000000H"] {
            for (method, body) in [("KV/Put", frame(&put_request("k"))), ("Watch/Watch", frame(&watch_create("one")))] {
                let path = format!("/etcdserverpb.{method}");
                let answer = client.raw(&path, &[("grpc-timeout", timeout)], body).await.expect("call");
                assert_eq!((answer.code, &*answer.text), (4, "context deadline exceeded"), "{timeout} {method}");
                assert!(answer.body.is_empty());
            }
        }
        assert_eq!(server.seen.calls.load(Ordering::SeqCst), 0);
        assert_eq!(server.seen.ended.load(Ordering::SeqCst), 0, "no watch has begun either");
    });
}
