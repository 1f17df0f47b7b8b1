//! The gRPC messages and clients that Daymark speaks, one module a protobuf package. Only wire types: no behaviour, no
//! defaults, no transport.
//!
//! Field names follow protobuf's in snake case, which for etcd's mixed styles gives `peer_ur_ls` (`peerURLs`),
//! `db_size` (`dbSize`), `granted_ttl` (`grantedTTL`) and `id` (`ID`).

#![allow(rustdoc::invalid_html_tags, clippy::doc_markdown)]

mod secret;

/// etcd's services and their messages.
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}

/// Keys, values and events.
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}

/// Users, roles and permissions.
pub mod authpb {
    tonic::include_proto!("authpb");
}

/// etcd's lock service.
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}

/// etcd's election service.
pub mod v3electionpb {
    tonic::include_proto!("v3electionpb");
}

/// All of `proto/` as an encoded `FileDescriptorSet`, without comments.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// gRPC's own services.
pub mod grpc {
    /// The standard reflection service.
    pub mod reflection {
        /// Version 1 of it; `v1alpha` has the same messages.
        pub mod v1 {
            tonic::include_proto!("grpc.reflection.v1");
        }
    }

    /// The standard health service.
    pub mod health {
        /// Version 1 of it.
        pub mod v1 {
            tonic::include_proto!("grpc.health.v1");
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message;

    use super::*;

    /// Bytes worked out by hand from the field table: they must never change.
    #[test]
    fn put_request_has_the_frozen_encoding() {
        let put = etcdserverpb::PutRequest {
            key: Bytes::from_static(b"k"),
            value: Bytes::from_static(b"v"),
            lease: 5,
            prev_kv: true,
            ..Default::default()
        };
        assert_eq!(put.encode_to_vec(), [0x0a, 1, b'k', 0x12, 1, b'v', 0x18, 5, 0x20, 1]);
    }

    #[test]
    fn field_numbers_that_skip_are_kept() {
        let response = etcdserverpb::WatchResponse { events: vec![mvccpb::Event::default()], ..Default::default() };
        assert_eq!(response.encode_to_vec(), [0x5a, 0], "events is 11");
        let compare = etcdserverpb::Compare { range_end: Bytes::from_static(b"z"), ..Default::default() };
        assert_eq!(compare.encode_to_vec(), [0x82, 0x04, 1, b'z'], "range_end is 64");
    }

    #[test]
    fn watch_filters_are_read_packed_and_unpacked() {
        let packed = etcdserverpb::WatchCreateRequest::decode(&[0x2a, 2, 0, 1][..]).expect("packed");
        let unpacked = etcdserverpb::WatchCreateRequest::decode(&[0x28, 0, 0x28, 1][..]).expect("unpacked");
        assert_eq!(packed.filters, [0, 1]);
        assert_eq!(unpacked.filters, packed.filters);
    }

    #[test]
    fn secrets_are_not_printed() {
        let (secret, name) = (|| "hunter2".to_owned(), || "eve".to_owned());
        let (password, hashed_password) = (secret(), secret());
        let printed = [
            format!("{:?}", authpb::User { name: "eve".into(), password: "hunter2".into(), ..Default::default() }),
            format!(
                "{:?}",
                etcdserverpb::AuthUserAddRequest { name: name(), password, hashed_password, ..Default::default() }
            ),
            format!(
                "{:?}",
                etcdserverpb::AuthUserChangePasswordRequest {
                    name: name(),
                    password: secret(),
                    hashed_password: secret()
                }
            ),
            format!("{:?}", etcdserverpb::AuthenticateRequest { name: name(), password: secret() }),
        ];
        for text in printed {
            assert!(text.contains("eve") && !text.contains("hunter2"), "{text}");
        }
        let response = etcdserverpb::AuthenticateResponse { header: None, token: secret() };
        assert!(!format!("{response:?}").contains("hunter2"));
    }

    #[test]
    fn key_value_has_value_before_lease() {
        let kv = mvccpb::KeyValue { value: Bytes::from_static(b"v"), lease: 7, ..Default::default() };
        assert_eq!(kv.encode_to_vec(), [0x2a, 1, b'v', 0x30, 7]);
    }
}
