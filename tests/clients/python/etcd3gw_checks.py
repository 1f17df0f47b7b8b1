"""Exercises a server's JSON gateway through etcd3gw. Environment: ENDPOINT; for tls also CA, CERT, KEY."""

import base64
import os
import threading
import time

import requests
from etcd3gw.client import Etcd3Client
from etcd3gw.exceptions import ConnectionFailedError, Etcd3Exception

from checks import refused, run, want

HOST, PORT = os.environ["ENDPOINT"].rsplit(":", 1)


def client(**options):
    return Etcd3Client(host=HOST, port=int(PORT), timeout=10, api_path="/v3/", **options)


def base64_of(text):
    return base64.b64encode(text.encode()).decode()


def kv():
    c = client()
    want("put", c.put("gw/kv/a", "1"), True)
    c.put("gw/kv/b", "2")
    want("value", c.get("gw/kv/a"), [b"1"])
    pairs = [(meta["key"], value) for value, meta in c.get_prefix("gw/kv/", sort_order="descend")]
    want("pairs", pairs, [(b"gw/kv/b", b"2"), (b"gw/kv/a", b"1")])
    want("created", c.create("gw/kv/a", "3"), False)
    want("replaced", c.replace("gw/kv/a", "1", "4"), True)
    want("deleted", c.delete("gw/kv/a"), True)
    want("missing key", c.get("gw/kv/a"), [])
    c.delete_prefix("gw/kv/")


def txn():
    c = client()
    key = base64_of("gw/txn")
    answer = c.transaction({
        "compare": [{"key": key, "result": "EQUAL", "target": "CREATE", "create_revision": 0}],
        "success": [{"request_put": {"key": key, "value": base64_of("1")}}, {"request_range": {"key": key}}],
        "failure": [],
    })
    want("succeeded", answer["succeeded"], True)
    want("kinds", [list(r) for r in answer["responses"]], [["response_put"], ["response_range"]])
    want("seen inside", answer["responses"][1]["response_range"]["kvs"][0]["value"], base64_of("1"))


def watch():
    c = client()
    events, cancel = c.watch_prefix("gw/watch/")
    c.put("gw/watch/a", "1")
    c.delete("gw/watch/a")
    put, delete = next(events), next(events)
    cancel()
    want("put", (put["kv"]["key"], put["kv"]["value"]), (b"gw/watch/a", b"1"))
    want("delete", (delete["type"], delete["kv"]["key"]), ("DELETE", b"gw/watch/a"))


def watch_resume():
    c = client()
    for i in range(10):
        c.put("gw/resume", str(i))
    [(_, last)] = c.get("gw/resume", metadata=True)
    events, cancel = c.watch("gw/resume", start_revision=int(last["mod_revision"]) - 5)
    seen = [next(events)["kv"]["value"] for _ in range(6)]
    cancel()
    want("values", seen, [b"4", b"5", b"6", b"7", b"8", b"9"])


def lease():
    c = client()
    granted = c.lease(ttl=60)
    c.put("gw/lease", "1", lease=granted)
    left = granted.ttl()
    want(f"time to live {left}", 0 < left <= 60, True)
    want("keys", granted.keys(), [b"gw/lease"])
    want("revoked", granted.revoke(), True)
    want("after the revoke", c.get("gw/lease"), [])


def keepalive():
    c = client()
    granted = c.lease(ttl=2)
    c.put("gw/alive", "1", lease=granted)
    for _ in range(5):
        time.sleep(1)
        want("renewed", granted.refresh(), 2)
    want("value while alive", c.get("gw/alive"), [b"1"])
    time.sleep(4)
    want("value afterwards", c.get("gw/alive"), [])


def lock():
    first, second = client().lock("gw-lock", ttl=20), client().lock("gw-lock", ttl=20)
    want("acquired", first.acquire(), True)
    want("second lock", second.acquire(), False)
    want("is acquired", (first.is_acquired(), second.is_acquired()), (True, False))
    want("released", first.release(), True)
    want("lock after the release", second.acquire(), True)
    second.release()


def lock_service():
    """The server's own lock, which etcd3gw does not wrap."""
    c = client()
    answer = c.post(c.get_url("/lock/lock"), json={"name": base64_of("gw-service")})
    waited = []
    other = client()
    call = {"name": base64_of("gw-service")}
    waiter = threading.Thread(target=lambda: waited.append(other.post(other.get_url("/lock/lock"), json=call)))
    waiter.start()
    time.sleep(0.3)
    want("waits", waited, [])
    c.post(c.get_url("/lock/unlock"), json={"key": answer["key"]})
    waiter.join(timeout=10)
    want("lock after the unlock", len(waited), 1)


def members_and_status():
    c = client()
    want("members", len(c.members()), 1)
    want("version", c.status()["version"], "3.7.1")


def errors():
    """etcd3gw passes on the status and the text of the error."""
    c = client()
    error = refused("a put without a key", Etcd3Exception, lambda: c.put("", "1"))
    want("text", "etcdserver: key is not provided" in str(error.detail_text), True)
    answer = requests.post(c.get_url("/kv/put"), json={"key": ""}, timeout=10)
    body = {"code": 3, "message": "etcdserver: key is not provided"}
    want("answer", (answer.status_code, answer.json()), (400, body))


def token(c, name, password):
    return c.post(c.get_url("/auth/authenticate"), json={"name": name, "password": password})["token"]


def login():
    """etcd3gw knows no users, but sends what its session is told to."""
    c = client()
    c.session.headers["Authorization"] = token(c, "alice", "alice's password")
    c.put("alice/gw", "1")
    want("value", c.get("alice/gw"), [b"1"])
    error = refused("a put for bob", Etcd3Exception, lambda: c.put("bob/gw", "1"))
    want("text", "etcdserver: permission denied" in str(error.detail_text), True)


def wrong_password():
    c = client()
    error = refused("a wrong password", Etcd3Exception, lambda: token(c, "alice", "wrong"))
    want("text", "authentication failed, invalid user ID or password" in str(error.detail_text), True)


def no_user():
    error = refused("nobody", Etcd3Exception, lambda: client().get("alice/gw"))
    want("text", "etcdserver: user name is empty" in str(error.detail_text), True)


def secure():
    files = {"ca_cert": os.environ["CA"], "cert_cert": os.environ["CERT"], "cert_key": os.environ["KEY"]}
    return client(protocol="https", **files)


def certificate_is_no_identity():
    """Through the gateway nobody is whom a certificate names; while users count, such a caller is refused."""
    refused("a certificate with a name", Etcd3Exception, lambda: secure().get("alice/gw"))


def tls_kv():
    c = secure()
    c.put("gw/tls", "1")
    want("value", c.get("gw/tls"), [b"1"])


def tls_without_certificate():
    c = client(protocol="https", ca_cert=os.environ["CA"])
    refused("a client without a certificate", ConnectionFailedError, lambda: c.get("gw/tls"))


run({
    "basic": [
        ("kv", kv), ("txn", txn), ("watch", watch), ("watch-resume", watch_resume), ("lease", lease),
        ("keepalive", keepalive), ("lock", lock), ("lock-service", lock_service), ("status", members_and_status),
        ("errors", errors),
    ],
    "auth": [("login", login), ("wrong-password", wrong_password), ("no-user", no_user)],
    "tls": [("tls-kv", tls_kv), ("tls-without-certificate", tls_without_certificate)],
    "tls-auth": [("certificate-is-no-identity", certificate_is_no_identity)],
})
