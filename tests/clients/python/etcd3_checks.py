"""Exercises a server through etcd3, the Python gRPC client. Environment: ENDPOINT; for TLS also CA, CERT, KEY.

Users log in over TLS only: its gRPC library does not send tokens over a bare connection.
"""

import os
import threading
import time

import etcd3
import grpc
from etcd3 import etcdrpc

from checks import refused, run, want

HOST, PORT = os.environ["ENDPOINT"].rsplit(":", 1)


def client(**options):
    return etcd3.client(host=HOST, port=int(PORT), timeout=10, **options)


def kv():
    c = client()
    c.put("py/kv/a", "1")
    want("previous value", c.put("py/kv/a", "2", prev_kv=True).prev_kv.value, b"1")
    c.put("py/kv/b", "3")
    value, meta = c.get("py/kv/a")
    want("value", (value, meta.version), (b"2", 2))
    pairs = [(meta.key, value) for value, meta in c.get_prefix("py/kv/", sort_order="descend")]
    want("pairs", pairs, [(b"py/kv/b", b"3"), (b"py/kv/a", b"2")])
    want("missing key", c.get("py/kv/none"), (None, None))
    want("replaced", c.replace("py/kv/a", "2", "4"), True)
    want("deleted", c.delete_prefix("py/kv/").deleted, 2)


def txn():
    c = client()
    t = c.transactions
    done, answers = c.transaction(
        compare=[t.version("py/txn") == 0],
        success=[t.put("py/txn", "1"), t.get("py/txn")],
        failure=[t.delete("py/txn")],
    )
    want("succeeded", done, True)
    want("seen inside", answers[1][0][0], b"1")
    done, _ = c.transaction(compare=[t.value("py/txn") == "2"], success=[], failure=[t.delete("py/txn")])
    want("succeeded", done, False)
    want("after the delete", c.get("py/txn"), (None, None))


def watch():
    c = client()
    events, cancel = c.watch_prefix("py/watch/", prev_kv=True)
    c.put("py/watch/a", "1")
    c.put("py/watch/a", "2")
    c.delete("py/watch/a")
    seen = [next(events) for _ in range(3)]
    cancel()
    want("kinds", [type(e).__name__ for e in seen], ["PutEvent", "PutEvent", "DeleteEvent"])
    want("values", [e.value for e in seen], [b"1", b"2", b""])
    want("previous value", seen[2].prev_value, b"2")


def watch_resume():
    """A watcher that comes back with the revision after the last one it saw misses nothing and sees nothing twice."""
    c = client()
    revisions = [c.put("py/resume", str(i)).header.revision for i in range(10)]
    events, cancel = c.watch("py/resume", start_revision=revisions[3] + 1)
    seen = [next(events).value for _ in range(6)]
    cancel()
    want("values", seen, [b"4", b"5", b"6", b"7", b"8", b"9"])


def watch_compacted():
    c = client()
    revisions = [c.put("py/compacted", str(i)).header.revision for i in range(4)]
    c.compact(revisions[2], physical=True)
    events, _ = c.watch("py/compacted", start_revision=revisions[0])
    error = refused("the watch", etcd3.exceptions.RevisionCompactedError, lambda: next(events))
    want("compact revision", error.compacted_revision, revisions[2])


def lease():
    c = client()
    granted = c.lease(60)
    c.put("py/lease", "1", lease=granted)
    want("granted", granted.granted_ttl, 60)
    want("keys", list(granted.keys), [b"py/lease"])
    granted.revoke()
    want("after the revoke", c.get("py/lease"), (None, None))


def keepalive():
    c = client()
    granted = c.lease(2)
    c.put("py/alive", "1", lease=granted)
    for _ in range(5):
        time.sleep(1)
        want("renewed", [answer.TTL for answer in granted.refresh()], [2])
    want("value while alive", c.get("py/alive")[0], b"1")
    events, cancel = c.watch("py/alive")
    want("event", type(next(events)).__name__, "DeleteEvent")
    cancel()


def lock():
    c = client()
    first, second = c.lock("py/lock", ttl=20), client().lock("py/lock", ttl=20)
    want("acquired", first.acquire(timeout=5), True)
    want("second lock", second.acquire(timeout=1), False)
    waiting = []
    waiter = threading.Thread(target=lambda: waiting.append(second.acquire(timeout=10)))
    waiter.start()
    first.release()
    waiter.join()
    want("lock after the release", waiting, [True])
    second.release()


def maintenance():
    c = client()
    want("version", c.status().version, "3.7.1")
    want("hash", c.hash() > 0, True)
    want("members", len(list(c.members)), 1)
    want("alarms", list(c.list_alarms()), [])
    c.defragment()
    with open(os.devnull, "wb") as file:
        c.snapshot(file)


def secure(**options):
    return client(ca_cert=os.environ["CA"], cert_cert=os.environ["CERT"], cert_key=os.environ["KEY"], **options)


def login():
    c = secure(user="alice", password="alice's password")
    c.put("alice/py", "1")
    want("value", c.get("alice/py")[0], b"1")


def permissions():
    c = secure(user="alice", password="alice's password")
    for call in (lambda: c.put("bob/py", "1"), lambda: c.get("bob/py"), lambda: list(c.get_all())):
        error = refused("something of bob", grpc.RpcError, call)
        want("text", error.details(), "etcdserver: permission denied")


def wrong_password():
    error = refused("a wrong password", grpc.RpcError, lambda: secure(user="alice", password="wrong"))
    want("text", error.details(), "etcdserver: authentication failed, invalid user ID or password")


def no_user():
    error = refused("nobody", grpc.RpcError, lambda: client().get("alice/py"))
    want("text", error.details(), "etcdserver: user name is empty")


def auth_management():
    """etcd3 has no calls for this; its stubs do."""
    root = secure(user="root", password="root's password")
    stub = etcdrpc.AuthStub(root.channel)
    stub.RoleAdd(etcdrpc.AuthRoleAddRequest(name="py-role"), credentials=root.call_credentials)
    stub.UserAdd(etcdrpc.AuthUserAddRequest(name="py-user", password="first"), credentials=root.call_credentials)
    stub.UserGrantRole(etcdrpc.AuthUserGrantRoleRequest(user="py-user", role="py-role"), credentials=root.call_credentials)
    shown = stub.UserGet(etcdrpc.AuthUserGetRequest(name="py-user"), credentials=root.call_credentials)
    want("roles", list(shown.roles), ["py-role"])
    secure(user="py-user", password="first")
    stub.UserDelete(etcdrpc.AuthUserDeleteRequest(name="py-user"), credentials=root.call_credentials)
    stub.RoleDelete(etcdrpc.AuthRoleDeleteRequest(role="py-role"), credentials=root.call_credentials)


def certificate_identity():
    """Without a token the common name of the certificate is the user."""
    c = secure()
    c.put("alice/py", "2")
    error = refused("something of bob", grpc.RpcError, lambda: c.put("bob/py", "1"))
    want("text", error.details(), "etcdserver: permission denied")


def tls_kv():
    c = secure()
    c.put("py/tls", "1")
    want("value", c.get("py/tls")[0], b"1")


def tls_without_certificate():
    c = client(ca_cert=os.environ["CA"])
    refused("a client without a certificate", etcd3.exceptions.Etcd3Exception, lambda: c.get("py/tls"))


run({
    "basic": [
        ("kv", kv), ("txn", txn), ("watch", watch), ("watch-resume", watch_resume), ("watch-compacted", watch_compacted),
        ("lease", lease), ("keepalive", keepalive), ("lock", lock),
    ],
    "maintenance": [("maintenance", maintenance)],
    "auth": [("no-user", no_user)],
    "tls": [("tls-kv", tls_kv), ("tls-without-certificate", tls_without_certificate)],
    "tls-auth": [
        ("login", login), ("permissions", permissions), ("wrong-password", wrong_password),
        ("auth-management", auth_management), ("certificate-identity", certificate_identity),
    ],
})
