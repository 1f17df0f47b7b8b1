//! Turns `proto/` into Rust with a compiler written in Rust, so that nobody needs protoc. Nothing generated is committed.

use std::error::Error;

const FILES: &[&str] = &[
    "authpb/auth.proto",
    "etcdserverpb/rpc.proto",
    "grpc/health/v1/health.proto",
    "mvccpb/kv.proto",
    "v3electionpb/election.proto",
    "v3lockpb/lock.proto",
];

/// Messages that hold a password, its hash or a token: what prints them must not show it (`src/secret.rs`).
const SECRET: &[&str] = &[
    ".authpb.User",
    ".etcdserverpb.AuthUserAddRequest",
    ".etcdserverpb.AuthUserChangePasswordRequest",
    ".etcdserverpb.AuthenticateRequest",
    ".etcdserverpb.AuthenticateResponse",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure()
        // The server dispatches calls by itself and needs the messages only.
        .build_server(false)
        // Clients bring their own channel.
        .build_transport(false)
        .bytes(".")
        .skip_debug(SECRET)
        .compile_fds(descriptors)?;
    Ok(())
}
