#!/usr/bin/env bash
# Counts the instructions of the hot paths under valgrind and compares them with benches/guard.json; fails where a path has
# become dearer by more than the tolerance in that file. --record writes the file anew. See docs/benchmarks.md.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$here"
. scripts/common.sh

install_packages valgrind
cargo build --release --locked -p daymark-server </dev/null
exec cargo bench --locked -p daymark-benches --bench guard -- "$@" </dev/null
