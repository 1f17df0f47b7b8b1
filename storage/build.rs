//! Compiles the bridge between RocksDB and the memtable of ours, with the headers of the RocksDB that is linked.

use std::env;
use std::path::PathBuf;

const BRIDGE: &str = "src/backend/memtable/bridge.cc";

fn main() {
    println!("cargo:rerun-if-changed={BRIDGE}");
    if env::var_os("CARGO_FEATURE_ROCKSDB").is_none() {
        return;
    }
    // Said by the build script of the bindings, which bring the source along.
    let bindings = env::var_os("DEP_ROCKSDB_CARGO_MANIFEST_DIR").expect("the bindings say where they are");
    let source = PathBuf::from(bindings).join("rocksdb");
    // What changes the layout of classes must be as the bindings have it.
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .include(source.join("include"))
        .include(&source)
        .define("NDEBUG", "1")
        .define("HAVE_ALIGNED_NEW", None)
        .define("HAVE_UINT128_EXTENSION", None)
        .define(
            if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "macos") { "OS_MACOSX" } else { "OS_LINUX" },
            None,
        )
        .define("ROCKSDB_PLATFORM_POSIX", None)
        .define("ROCKSDB_LIB_IO_POSIX", None)
        .flag_if_supported("-Wno-unused-parameter")
        .file(BRIDGE)
        .compile("daymark_memtable");
}
