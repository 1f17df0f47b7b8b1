# What run.sh and test.sh share: installing what is missing, and where the build goes. Sourced, not run.

export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$HOME/.cache/daymark-target}"
export PATH="$HOME/.cargo/bin:$PATH"

say() { printf '==> %s\n' "$*" >&2; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# install_packages PACKAGE...: the missing ones, from Debian.
install_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    command -v apt-get >/dev/null || fail "missing: ${missing[*]}. Install them; this script knows only apt-get."
    local sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null && sudo -n true 2>/dev/null && sudo=(sudo -n) ||
            fail "missing packages, and neither root nor sudo without a password. Run: apt-get install ${missing[*]}"
    fi
    say "installing ${missing[*]}"
    # A failed update is no reason to stop when the package lists are already there.
    "${sudo[@]}" apt-get update -q </dev/null >&2 || say "apt-get update failed; going on with the lists that are there"
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -q -y --no-install-recommends "${missing[@]}" </dev/null >&2 ||
        fail "apt-get install ${missing[*]} failed"
}

# libclang in any version serves RocksDB's bindings.
has_libclang() {
    compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null || compgen -G '/usr/lib/*/libclang*.so*' >/dev/null
}

# install_toolchain: Rust as pinned in rust-toolchain.toml, a C++ compiler, libclang.
install_toolchain() {
    local packages=()
    command -v c++ >/dev/null || packages+=(g++)
    command -v make >/dev/null || packages+=(make)
    has_libclang || packages+=(libclang-dev)
    if ! command -v rustup >/dev/null && ! command -v cargo >/dev/null; then
        command -v curl >/dev/null || packages+=(curl ca-certificates)
    fi
    [ ${#packages[@]} -eq 0 ] || install_packages "${packages[@]}"
    if ! command -v rustup >/dev/null && ! command -v cargo >/dev/null; then
        # Debian 12's own Rust is too old, and it has no rustup package.
        say "installing rustup into ~/.cargo"
        curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
            sh -s -- -y --no-modify-path --profile minimal --default-toolchain none >&2 ||
            fail "rustup could not be installed. Install Rust from https://rustup.rs and start again."
    fi
    # rustup reads rust-toolchain.toml here and fetches that toolchain if it is missing.
    cargo --version >&2 </dev/null || fail "the toolchain of rust-toolchain.toml is not there: run 'rustup toolchain install'"
}

# find_go: prints the go command, on PATH or where Go's own archive puts it.
find_go() {
    command -v go || { [ -x /usr/local/go/bin/go ] && echo /usr/local/go/bin/go; }
}
