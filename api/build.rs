//! Turns `proto/` into Rust with a compiler written in Rust, so that nobody needs protoc. Nothing generated is committed.

use std::error::Error;
use std::path::PathBuf;

const FILES: &[&str] = &[
    "authpb/auth.proto",
    "etcdserverpb/rpc.proto",
    "grpc/health/v1/health.proto",
    "grpc/reflection/v1/reflection.proto",
    "grpc/reflection/v1alpha/reflection.proto",
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
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).open_files(FILES)?;
    // For the JSON form of messages, and for clients that ask a server what it serves.
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    compiler.include_source_info(true);
    tonic_prost_build::configure()
        // The server dispatches calls by itself and needs the messages only.
        .build_server(false)
        // Clients bring their own channel.
        .build_transport(false)
        .bytes(".")
        .skip_debug(SECRET)
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
