#!/usr/bin/env bash
# Builds Daymark and starts one member on 127.0.0.1:2379, with its data in ./default.etcd. Installs what the build needs.
# Arguments go to the member: ./run.sh --data-dir /var/lib/daymark --listen-client-urls http://0.0.0.0:2379 ...
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/scripts/common.sh"

(cd "$here" && install_toolchain)
say "building into $CARGO_TARGET_DIR (the first time RocksDB takes about ten minutes)"
(cd "$here" && cargo build --release --locked --workspace </dev/null)
say "starting a member; stop it with Ctrl-C"
exec "$CARGO_TARGET_DIR/release/daymark" "$@"
