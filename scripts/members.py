"""Servers under measurement: starting and stopping an etcd or a Daymark on free loopback ports, loading it with
`daymark bench`, and looking at its process. Shared by compare.py and aged.py; measures nothing by itself."""
import json
import os
import random
import re
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


def default_daymark():
    """Where the build puts the binary."""
    target = os.environ.get("CARGO_TARGET_DIR", os.path.expanduser("~/.cache/daymark-target"))
    return os.path.join(target, "release", "daymark")


def version_of(binary):
    """The first line of --version that names one."""
    done = subprocess.run([binary, "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    found = re.findall(r"(?:etcd|Daymark) Version: (\S+)", done.stdout)
    return found[-1] if found else "unknown"


class Server:
    """One member on free loopback ports with its data directory."""

    def __init__(self, kind, binary, root, name="m", quota_bytes=8 << 30, flags=()):
        self.kind, self.binary, self.name, self.quota_bytes = kind, binary, name, quota_bytes
        self.flags = list(flags)
        self.dir = os.path.join(root, f"{kind}-{name}")
        self.client, self.peer = free_port(), free_port()
        self.process = self.log = None

    def peer_url(self):
        return f"http://127.0.0.1:{self.peer}"

    def address(self):
        return f"127.0.0.1:{self.client}"

    def start(self):
        """Returns the seconds until it is healthy."""
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
             "--quota-backend-bytes", str(self.quota_bytes), *self.flags],
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
        if self.log:
            self.log.close()
            self.log = None

    def remove(self):
        self.stop()
        shutil.rmtree(self.dir, ignore_errors=True)

    def leads(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.client}/metrics", timeout=5) as answer:
            return b"\netcd_server_is_leader 1" in answer.read()

    def disk_bytes(self):
        total = 0
        for directory, _, files in os.walk(self.dir):
            for name in files:
                try:
                    total += os.stat(os.path.join(directory, name)).st_blocks * 512
                except FileNotFoundError:
                    pass  # merged away, or recycled, meanwhile
        return total

    def resident_bytes(self):
        return self.status_number("VmRSS") * 1024

    def peak_bytes(self):
        """Largest resident memory since its start."""
        return self.status_number("VmHWM") * 1024

    def status_number(self, name):
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith(name + ":"))


def bench_command(options, servers, load, out):
    """The server whose process is looked at comes first; the load goes to the others, too."""
    endpoints = ",".join(server.address() for server in servers)
    return [options.daymark, "bench", *map(str, load), "--endpoints", endpoints,
            "--pid", str(servers[0].process.pid), "--json", out]


def run_bench(command, out):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout.decode(errors='replace')}")
    with open(out) as report:
        return json.load(report)


def bench(options, server, *load, others=()):
    """Runs a load of `daymark bench` and returns its report."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        return run_bench(bench_command(options, (server, *others), load, out.name), out.name)


def figures(report):
    """What is compared of a report."""
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
        "written_mb": server["written_bytes"] / 1e6,
        "errors": report["failed"],
    }


class Notes:
    """Figures of all rounds, by load, figure and side; and how the throughput went, second by second."""

    def __init__(self):
        self.loads, self.series = {}, {}

    def add(self, kind, load, values, report=None):
        for name, value in values.items():
            self.loads.setdefault(load, {}).setdefault(name, {}).setdefault(kind, []).append(value)
        if report is not None:
            self.series.setdefault(load, {})[kind] = report["succeeded_by_second"]
        shown = "  ".join(f"{name}={value:.4g}" for name, value in values.items())
        print(f"{kind:8} {load:18} {shown}", flush=True)

    def median(self, load, name, kind):
        return statistics.median(self.loads[load][name][kind])

    def sides(self, load):
        """The sides that have figures, in the order in which they came."""
        return list(dict.fromkeys(kind for sides in self.loads[load].values() for kind in sides))
