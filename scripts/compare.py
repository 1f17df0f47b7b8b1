#!/usr/bin/env python3
"""Runs the same loads against an etcd and a Daymark in turn (A B A B) on fresh data directories and prints medians and
ratios. Needs the release binary and an etcd; all servers listen on loopback and are stopped at the end.

    scripts/compare.py --etcd /path/to/etcd [--daymark PATH] [--rounds 3] [--total 1000000] [--json FILE] [LOAD ...]

Loads: puts, one-client, gets, serializable-gets, restart, three-members (the default is all of them).
"""
import argparse
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request


def free_port():
    """Below the range of outgoing connections: a member finds its port free again after a restart."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
                return port
            except OSError:
                pass


class Server:
    """One member on free loopback ports with its data directory."""

    def __init__(self, kind, binary, root, name="m"):
        self.kind, self.binary, self.name = kind, binary, name
        self.dir = os.path.join(root, f"{kind}-{name}")
        self.client, self.peer = free_port(), free_port()
        self.process = None

    def peer_url(self):
        return f"http://127.0.0.1:{self.peer}"

    def start(self):
        started = time.monotonic()
        self.spawn([self])
        self.wait()
        return time.monotonic() - started

    def spawn(self, members):
        client = f"http://127.0.0.1:{self.client}"
        self.log = open(self.dir + ".log", "ab")
        self.process = subprocess.Popen(
            [self.binary, "--name", self.name, "--data-dir", self.dir, "--listen-client-urls", client,
             "--advertise-client-urls", client, "--listen-peer-urls", self.peer_url(),
             "--initial-advertise-peer-urls", self.peer_url(),
             "--initial-cluster", ",".join(f"{m.name}={m.peer_url()}" for m in members),
             "--quota-backend-bytes", str(8 << 30)],
            stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL)

    def wait(self):
        client, log, started = f"http://127.0.0.1:{self.client}", self.log, time.monotonic()
        while True:
            try:
                with urllib.request.urlopen(client + "/health", timeout=2) as answer:
                    if json.load(answer).get("health") in ("true", True):
                        return
            except OSError:
                pass
            if self.process.poll() is not None:
                sys.exit(f"{self.kind} ended with {self.process.returncode}, see {log.name}")
            if time.monotonic() - started > 120:
                sys.exit(f"{self.kind} is not healthy after 120 s, see {log.name}")
            time.sleep(0.005)

    def stop(self, how=signal.SIGTERM):
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None

    def leads(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.client}/metrics", timeout=5) as answer:
            return b"\netcd_server_is_leader 1" in answer.read()

    def disk_bytes(self):
        return sum(os.stat(os.path.join(d, f)).st_blocks * 512 for d, _, fs in os.walk(self.dir) for f in fs)


def bench(options, server, *load, others=()):
    """The server whose process is looked at comes first; the load goes to the others, too."""
    endpoints = ",".join(f"127.0.0.1:{s.client}" for s in (server, *others))
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [options.daymark, "bench", *load, "--endpoints", endpoints,
                   "--pid", str(server.process.pid), "--json", out.name]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} failed:\n{done.stdout.decode(errors='replace')}")
        return json.load(open(out.name))


def figures(report):
    latency, server = report["latency_micros"], report["servers"][0]
    return {
        "seconds": report["elapsed_seconds"],
        "per_second": report["per_second"],
        "p50_us": latency["p50"],
        "p99_us": latency["p99"],
        "p999_us": latency["p999"],
        "server_cpu_us_per_op": server["cpu_micros_per_op"],
        "harness_cpu_us_per_op": report["harness"]["cpu_micros_per_op"],
        "switches_per_op": server["voluntary_switches_per_op"],
        "resident_mb": server["resident_bytes_after"] / 1e6,
        "errors": report["failed"],
    }


def three_members(options, kind, binary, root, note):
    members = [Server(kind, binary, root, f"m{n}") for n in range(3)]
    try:
        for member in members:
            member.spawn(members)
        for member in members:
            member.wait()
        leader = next((m for m in members if m.leads()), None) or sys.exit(f"no {kind} leads")
        others = [m for m in members if m is not leader]
        note("three-members", figures(bench(
            options, leader, "put", "--conns", "100", "--clients", "1000", "--key-size", "8", "--val-size", "256",
            "--total", str(options.three_members), others=others)))
    finally:
        for member in members:
            member.stop()
            shutil.rmtree(member.dir, ignore_errors=True)


def one_round(options, kind, binary, root, results):
    server = Server(kind, binary, root)
    single = {"one-client", "puts", "gets", "serializable-gets", "restart"} & set(options.loads)
    spread = ["--conns", "100", "--clients", "1000"]
    keys = ["--key-space-size", str(options.total)]

    def note(load, values):
        for name, value in values.items():
            results.setdefault(load, {}).setdefault(name, {}).setdefault(kind, []).append(value)
        shown = "  ".join(f"{name}={value:.4g}" for name, value in values.items())
        print(f"{kind:8} {load:18} {shown}", flush=True)

    if "three-members" in options.loads:
        three_members(options, kind, binary, root, note)
    if not single:
        return
    try:
        server.start()
        if "one-client" in options.loads:
            note("one-client", figures(bench(options, server, "put", "--total", str(options.one_client))))
        if {"puts", "gets", "serializable-gets", "restart"} & set(options.loads):
            values = figures(bench(options, server, "put", *spread, "--key-size", "8", "--val-size", "256",
                                   "--total", str(options.total)))
            time.sleep(1)
            values["disk_mb"] = server.disk_bytes() / 1e6
            note("puts", values)
        reads = ["--conns", "10", "--clients", "100", "--total", str(options.reads), *keys]
        if "gets" in options.loads:
            note("gets", figures(bench(options, server, "range", *reads, "--consistency", "l")))
        if "serializable-gets" in options.loads:
            note("serializable-gets", figures(bench(options, server, "range", *reads, "--consistency", "s")))
        if "restart" in options.loads:
            server.stop()
            note("restart", {"after_stop_seconds": server.start()})
            server.stop(signal.SIGKILL)
            note("restart", {"after_kill_seconds": server.start()})
    finally:
        server.stop()
        shutil.rmtree(server.dir, ignore_errors=True)


def main():
    every = ["one-client", "puts", "gets", "serializable-gets", "restart", "three-members"]
    target = os.environ.get("CARGO_TARGET_DIR", os.path.expanduser("~/.cache/daymark-target"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--etcd", default=shutil.which("etcd"), help="the etcd to compare with")
    parser.add_argument("--daymark", default=os.path.join(target, "release", "daymark"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--total", type=int, default=1_000_000, help="puts of the load `puts`")
    parser.add_argument("--reads", type=int, default=200_000)
    parser.add_argument("--three-members", type=int, default=300_000, help="puts of the load `three-members`")
    parser.add_argument("--one-client", type=int, default=20_000)
    parser.add_argument("--dir", help="where data directories are made (default: a temporary one)")
    parser.add_argument("--json", help="write all figures into this file")
    parser.add_argument("loads", nargs="*", metavar="LOAD", help=", ".join(every))
    options = parser.parse_args()
    options.loads = options.loads or every
    unknown = set(options.loads) - set(every)
    if unknown:
        parser.error(f"unknown load {', '.join(sorted(unknown))}; choose from {', '.join(every)}")
    if not options.etcd or not os.path.exists(options.daymark):
        parser.error("needs an etcd (--etcd) and the release binary (--daymark); see README.md")
    results = {}
    root = tempfile.mkdtemp(prefix="daymark-compare-", dir=options.dir)
    try:
        for _ in range(options.rounds):
            one_round(options, "etcd", options.etcd, root, results)
            one_round(options, "daymark", options.daymark, root, results)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(f"\nmedians of {options.rounds} rounds; ratio = Daymark / etcd\n")
    print(f"{'load':18} {'figure':22} {'etcd':>12} {'daymark':>12} {'ratio':>7}")
    for load, values in results.items():
        for name, sides in values.items():
            etcd, ours = (statistics.median(sides[kind]) for kind in ("etcd", "daymark"))
            ratio = f"{ours / etcd:7.3f}" if etcd else "      -"
            print(f"{load:18} {name:22} {etcd:12.2f} {ours:12.2f} {ratio}")
    if options.json:
        json.dump(results, open(options.json, "w"), indent=1)


if __name__ == "__main__":
    main()
