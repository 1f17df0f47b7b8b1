#!/usr/bin/env python3
"""Does a lone member answer a put before the log entry that holds it is synced? Counts it, from the member's system calls.

    scripts/answers_before_sync.py BINARY...

Each BINARY is an etcd or a Daymark. One client puts, one put after the other, while strace watches (Debian: strace).
An answer is a write to a socket that is longer than HTTP/2's own frames; it is early if the log was written to and not
synced since. etcd acknowledges a lone member's puts early before 3.4.21 and 3.5.5: https://github.com/etcd-io/etcd/issues/14370
"""
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

ANSWER_BYTES_MIN = 50
WRITE = re.compile(r"\b(?:write|pwrite64|sendto|writev|sendmsg)\((\d+)<([^>]*)>")
SYNC = re.compile(r"\bfdatasync\(\d+<([^>]*)>")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(binary, directory):
    client, peer = free_port(), free_port()
    urls = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    process = subprocess.Popen(
        [binary, "--data-dir", os.path.join(directory, "data"), "--listen-client-urls", urls[0],
         "--advertise-client-urls", urls[0], "--listen-peer-urls", urls[1], "--initial-advertise-peer-urls", urls[1],
         "--initial-cluster", f"default={urls[1]}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(200):
        try:
            if b"true" in urllib.request.urlopen(urls[0] + "/health", timeout=1).read():
                return process, client
        except OSError:
            time.sleep(0.05)
    process.kill()
    sys.exit(f"{binary} did not become healthy")


def count(trace):
    """Answers sent while the log was dirty, and after it was clean."""
    early = late = 0
    dirty, syncing = False, {}
    for line in open(trace, errors="replace"):
        thread = line.split(None, 1)[0]
        if "<... fdatasync resumed>" in line and thread in syncing:
            dirty = syncing.pop(thread)
        sync, write = SYNC.search(line), WRITE.search(line)
        if sync and "/wal/" in sync[1]:
            if "unfinished" in line:
                syncing[thread] = False
            else:
                dirty = False
        elif write and "/wal/" in write[2]:
            dirty = True
            syncing = dict.fromkeys(syncing, True)
        elif write and ("socket" in write[2] or "TCP" in write[2]):
            lengths = re.findall(r", (\d+)(?:,| <unfinished|\))", line)
            if lengths and int(lengths[0]) >= ANSWER_BYTES_MIN:
                early, late = early + dirty, late + (not dirty)
    return early, late


def main():
    binaries = sys.argv[1:]
    if not binaries or not shutil.which("strace"):
        sys.exit(__doc__)
    target = os.environ.get("CARGO_TARGET_DIR", os.path.expanduser("~/.cache/daymark-target"))
    bench = os.path.join(target, "release", "daymark")
    for binary in binaries:
        with tempfile.TemporaryDirectory(prefix="daymark-answers-") as directory:
            trace = os.path.join(directory, "trace")
            process, port = start(binary, directory)
            try:
                load = subprocess.Popen([bench, "bench", "put", "--endpoints", f"127.0.0.1:{port}", "--total", "3000"],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                time.sleep(0.2)
                watch = subprocess.Popen(
                    ["strace", "-f", "-y", "-e", "trace=fdatasync,write,pwrite64,sendto,writev,sendmsg", "-p",
                     str(process.pid), "-o", trace], stderr=subprocess.DEVNULL)
                load.wait(60)
                watch.send_signal(signal.SIGINT)
                watch.wait(10)
                early, late = count(trace)
                print(f"{binary}: {early} answers before the sync, {late} after it")
            finally:
                process.kill()
                process.wait()


if __name__ == "__main__":
    main()
