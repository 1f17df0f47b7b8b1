#!/usr/bin/env bash
# Installs what the tests need, builds everything, runs every test. Arguments go to cargo test: ./test.sh -p daymark-storage
# DAYMARK_TEST_MINUTES bounds the run (60). Tests that cannot run here say "skipped" and are not counted as passed.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here"
. scripts/common.sh

install_toolchain
scripts/install-test-tools.sh </dev/null || {
    [ "${CI:-}" = true ] && fail "the test tools could not be installed"
    say "the test tools could not all be installed: the tests that need them will be skipped"
}

say "building into $CARGO_TARGET_DIR (the first time RocksDB takes about ten minutes)"
# The binary first: the tests with real processes run it. Always the whole workspace and always this profile, so that
# RocksDB is compiled once.
cargo build --release --locked --workspace </dev/null

log=$(mktemp)
trap 'rm -f "$log"' EXIT
[ $# -gt 0 ] || set -- --workspace
status=0
# The build has its own time; the bound is on the tests.
cargo test --release --locked --no-run "$@" </dev/null
timeout --kill-after=30 "${DAYMARK_TEST_MINUTES:-60}m" \
    cargo test --release --locked --no-fail-fast "$@" </dev/null 2>&1 | tee "$log" || status=$?

scripts/test-summary.sh "$log" || status=$?
[ "$status" -eq 124 ] && say "the tests were broken off after ${DAYMARK_TEST_MINUTES:-60} minutes"
exit "$status"
