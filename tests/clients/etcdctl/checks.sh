#!/usr/bin/env bash
# Exercises a server through etcdctl. Prints "ok NAME" for each check and ends with 1 at the first that fails. Argument: the
# stage (basic, maintenance, auth, tls or tls-auth). Environment: ETCDCTL (the program), ENDPOINT; for TLS also CA, CERT, KEY.
set -euo pipefail
export ETCDCTL_API=3

# A machine that is busy with other tests may take longer for a login than the two seconds that etcdctl 3.7 waits.
ctl() { "$ETCDCTL" --endpoints="$ENDPOINT" --dial-timeout=20s --command-timeout=20s "$@"; }
as() { local user=$1; shift; ctl --user="$user" "$@"; }
certified() { ctl --endpoints="https://$ENDPOINT" --cacert="$CA" --cert="$CERT" --key="$KEY" "$@"; }

# want EXPECTED GOT
want() { [ "$2" = "$1" ] || { echo "'$2' instead of '$1'" >&2; return 1; }; }

# refused TEXT COMMAND...: the command must fail and say so.
refused() {
    local text=$1 said
    shift
    if said=$("$@" 2>&1); then echo "'$*' was answered: $said" >&2; return 1; fi
    case $said in *"$text"*) ;; *) echo "'$said' does not say '$text'" >&2; return 1 ;; esac
}

kv() {
    want OK "$(ctl put ctl/kv/a 1)"
    ctl put ctl/kv/b 2 >/dev/null
    want "1" "$(ctl get ctl/kv/a --print-value-only)"
    want "ctl/kv/b ctl/kv/a" "$(ctl get ctl/kv/ --prefix --keys-only --order=DESCEND --sort-by=KEY | xargs)"
    refused 'etcdserver: mvcc: required revision is a future revision' ctl get ctl/kv/a --rev=1000000
    want 2 "$(ctl del ctl/kv/ --prefix)"
}

txn() {
    want "SUCCESS OK" "$(printf 'create("ctl/txn") = "0"\n\nput ctl/txn 1\n\n\n' | ctl txn | xargs)"
    want "FAILURE ctl/txn 1" "$(printf 'create("ctl/txn") = "0"\n\nput ctl/txn 2\n\nget ctl/txn\n\n' | ctl txn | xargs)"
}

watch() {
    local revision
    revision=$(ctl put ctl/watch 0 -w json | sed 's/.*"revision":\([0-9]*\).*/\1/')
    ctl put ctl/watch 1 >/dev/null
    ctl del ctl/watch >/dev/null
    # From the revision after the last one that was seen: nothing missing, nothing twice.
    want "PUT ctl/watch 1 DELETE ctl/watch" "$(timeout 3 "$ETCDCTL" --endpoints="$ENDPOINT" watch ctl/watch --rev=$((revision + 1)) | xargs || true)"
}

lease() {
    local id
    id=$(ctl lease grant 60 | awk '{print $2}')
    ctl put ctl/lease 1 --lease="$id" >/dev/null
    case $(ctl lease timetolive "$id" --keys) in *"granted with TTL(60s)"*"attached keys([ctl/lease])"*) ;; *) return 1 ;; esac
    want "lease $id revoked" "$(ctl lease revoke "$id")"
    want "" "$(ctl get ctl/lease)"
    refused 'etcdserver: requested lease not found' ctl lease revoke "$id"
}

keepalive() {
    local id keeper
    id=$(ctl lease grant 2 | awk '{print $2}')
    ctl put ctl/alive 1 --lease="$id" >/dev/null
    "$ETCDCTL" --endpoints="$ENDPOINT" lease keep-alive "$id" >/dev/null &
    keeper=$!
    sleep 4
    want 1 "$(ctl get ctl/alive --print-value-only)"
    kill "$keeper"
    sleep 4
    want "" "$(ctl get ctl/alive)"
}

lock() {
    want "held" "$(ctl lock ctl-lock echo held)"
    ctl lock ctl-lock sleep 1 &
    sleep 0.3
    local started=$SECONDS
    want "held again" "$(ctl lock ctl-lock echo held again)"
    wait $!
    [ $((SECONDS - started)) -le 5 ]
}

election() {
    "$ETCDCTL" --endpoints="$ENDPOINT" elect ctl-election me >/dev/null &
    local leader=$!
    sleep 1
    want "me" "$({ timeout 2 "$ETCDCTL" --endpoints="$ENDPOINT" elect --listen ctl-election || true; } | tail -1)"
    kill -INT "$leader"
    wait "$leader" || true
}

maintenance() {
    ctl endpoint health >/dev/null 2>&1
    case $(ctl endpoint status -w json) in *'"version":"3.7.1"'*) ;; *) return 1 ;; esac
    case $(ctl endpoint hashkv) in "$ENDPOINT"*) ;; *) return 1 ;; esac
    case $(ctl defrag) in Finished*) ;; *) return 1 ;; esac
    want "" "$(ctl alarm list)"
    local file
    file=$(mktemp -u)
    ctl snapshot save "$file" >/dev/null 2>&1
    want 32 $(($(stat -c %s "$file") % 512))
    rm -f "$file"
    refused 'etcdserver: member not found' ctl member remove 1234
}

login() {
    want OK "$(as "alice:alice's password" put alice/ctl 1)"
    want 1 "$(as "alice:alice's password" get alice/ctl --print-value-only)"
}

permissions() {
    refused 'etcdserver: permission denied' as "alice:alice's password" put bob/ctl 1
    refused 'etcdserver: permission denied' as "alice:alice's password" get '' --prefix
    refused 'etcdserver: permission denied' as "alice:alice's password" user list
}

wrong_password() {
    refused 'etcdserver: authentication failed, invalid user ID or password' as alice:wrong get alice/ctl
}

no_user() {
    refused 'etcdserver: user name is empty' ctl get alice/ctl
}

auth_management() {
    local root="root:root's password"
    want "Role ctl-role created" "$(as "$root" role add ctl-role)"
    want "Role ctl-role updated" "$(as "$root" role grant-permission ctl-role --prefix=true read ctl/)"
    want "User ctl-user created" "$(as "$root" user add ctl-user:first)"
    want "Role ctl-role is granted to user ctl-user" "$(as "$root" user grant-role ctl-user ctl-role)"
    want "User: ctl-user Roles: ctl-role" "$(as "$root" user get ctl-user | xargs)"
    refused 'etcdserver: permission denied' as ctl-user:first put ctl/x 1
    want "" "$(as ctl-user:first get ctl/x)"
    case $(as "$root" role revoke-permission ctl-role --prefix=true ctl/) in "Permission of "*" is revoked from role ctl-role") ;; *) return 1 ;; esac
    want "User ctl-user deleted" "$(as "$root" user delete ctl-user)"
    want "Role ctl-role deleted" "$(as "$root" role delete ctl-role)"
    refused 'etcdserver: user name not found' as "$root" user get ctl-user
}

tls_kv() {
    want OK "$(certified put ctl/tls 1)"
    want 1 "$(certified get ctl/tls --print-value-only)"
}

tls_without_certificate() {
    if ctl --endpoints="https://$ENDPOINT" --cacert="$CA" --dial-timeout=2s --command-timeout=2s get ctl/tls 2>/dev/null; then return 1; fi
}

tls_login() { want OK "$(certified --user="root:root's password" put anything 1)"; }

certificate_identity() {
    want OK "$(certified put alice/ctl 1)"
    refused 'etcdserver: permission denied' certified put bob/ctl 1
}

case $1 in
basic) checks="kv txn watch lease keepalive lock election" ;;
maintenance) checks="maintenance" ;;
auth) checks="login permissions wrong_password no_user auth_management" ;;
tls) checks="tls_kv tls_without_certificate" ;;
tls-auth) checks="tls_login certificate_identity" ;;
*) echo "no stage $1" >&2; exit 2 ;;
esac
for check in $checks; do
    # A shell of its own, where the first thing that is wrong ends the check.
    if ! why=$( (set -e; "$check") 2>&1); then
        echo "FAILED ${check//_/-}: $why"
        exit 1
    fi
    echo "ok ${check//_/-}"
done
