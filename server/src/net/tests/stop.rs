//! How net threads end: what is under way, and what the pool does for them.

use super::*;

#[test]
fn stopping_ends_streams_with_a_status_and_answers_calls_under_way() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let server = Server::start();
    runtime.block_on(async {
        let client = server.connect().await;
        let mut send = client.send.clone().ready().await.expect("ready");
        let (watch, mut stream) =
            send.send_request(Client::head("/etcdserverpb.Watch/Watch", &[]), false).expect("send");
        stream.send_data(frame(&watch_create("w")), false).expect("data");
        let watch = watch.await.expect("headers");
        let (later, mut stream) = send.send_request(Client::head("/etcdserverpb.KV/Put", &[]), false).expect("send");
        stream.send_data(frame(&put_request("later")), true).expect("data");
        eventually("the call has begun", || server.seen.calls.load(Ordering::SeqCst) == 1).await;
        let stopped = tokio::task::spawn_blocking(move || server.threads.stop());
        let watch = answer(watch).await.expect("answer");
        assert_eq!((watch.code, &*watch.text), (14, "etcdserver: server stopped"));
        assert_eq!(answer(later.await.expect("headers")).await.expect("answer").code, 0);
        drop(send);
        drop(client);
        assert!(stopped.await.expect("stop"));
    });
}

#[test]
fn stopping_does_not_wait_for_what_the_pool_does() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let server = Server::start();
    runtime.block_on(async {
        let client = server.connect().await;
        let mut send = client.send.clone().ready().await.expect("ready");
        let (_call, mut stream) = send.send_request(Client::head("/etcdserverpb.KV/Put", &[]), false).expect("send");
        stream.send_data(frame(&put_request("deaf")), true).expect("data");
        eventually("the call has begun", || server.seen.calls.load(Ordering::SeqCst) == 1).await;
        let begun = Instant::now();
        let stopped = tokio::task::spawn_blocking(move || server.threads.stop());
        assert!(stopped.await.expect("stop"));
        assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?}", begun.elapsed());
    });
}
