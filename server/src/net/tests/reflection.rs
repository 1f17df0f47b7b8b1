//! Reflection as a client asks for it: on one stream, in both of its versions.

use daymark_api::grpc::reflection::v1 as pb;
use pb::server_reflection_request::MessageRequest as Asked;
use pb::server_reflection_response::MessageResponse as Told;

use super::*;

#[test]
fn clients_are_told_what_is_served() {
    with_server(|server| async move {
        let client = server.connect().await;
        let ask = |asked| pb::ServerReflectionRequest { host: "h".into(), message_request: Some(asked) };
        let list = ask(Asked::ListServices(String::new()));
        let symbol = ask(Asked::FileContainingSymbol("etcdserverpb.KV".into()));
        for version in ["v1", "v1alpha"] {
            let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
            let body = [frame(&list), frame(&symbol)].concat().into();
            let answer = client.raw(&path, &[], body).await.expect("answer");
            assert_eq!((answer.http, answer.code), (200, 0), "{answer:?}");
            let mut body = &answer.body[..];
            let mut told = Vec::new();
            while let Some((prefix, rest)) = body.split_at_checked(5) {
                let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
                told.push(pb::ServerReflectionResponse::decode(&rest[..length]).expect("a response"));
                body = &rest[length..];
            }
            assert_eq!(told.len(), 2);
            assert_eq!(told[0].original_request.as_ref(), Some(&list));
            assert!(
                matches!(&told[0].message_response, Some(Told::ListServicesResponse(list)) if list.service.len() > 8)
            );
            assert!(matches!(told[1].message_response, Some(Told::FileDescriptorResponse(_))));
            let nothing = client.call(&path, &pb::ServerReflectionRequest::default()).await;
            assert_eq!(nothing.code, 3, "{nothing:?}");
        }
    });
}
