#!/usr/bin/env python3
"""Builds a large, old database in one Daymark: incompressible values, several versions of most keys, deleted ranges. Then
measures it beside an empty one in the same run, both compacting every minute: puts per second and their slowest ones, the
time to start, the memory beside its budget, and the time for a number of new random keys.

    scripts/aged.py [--size 15G] [--seconds 150] [--rounds 2] [--json FILE]

The server is stopped and its data removed at the end. Takes a little more than twice --size on disk. With --kind etcd and
--binary an etcd can be looked at in the same way, within its own limit of some gigabytes.
"""
import argparse
import base64
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
import urllib.request

from members import Notes, Server, bench, default_daymark, figures, version_of

FULL = ["--conns", "100", "--clients", "1000"]
KEY_BYTES = 8
# Bytes that a put takes on disk beside its value, roughly: keys, metadata, the record in history.
OVERHEAD_BYTES = 100
# Slices of the key space, of which every so many is deleted.
SLICES = 5000
# What a member takes unless it is told: a quarter of the machine, at most this.
BUDGET_MAX = 400 << 20


def size(text):
    """A number of bytes, with K, M, G or T behind it."""
    factor = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}.get(text[-1:].upper(), 1)
    try:
        return int(float(text[:-1] if factor > 1 else text) * factor)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes") from None


def ask(server, path, body):
    """A call by the JSON gateway."""
    request = urllib.request.Request(f"http://{server.address()}/v3/{path}", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def delete_slices(server, every):
    """Deletes each key of every so many slices of the key space; returns how many there were."""
    deleted, width = 0, 2 ** 64 // SLICES
    for number in range(0, SLICES, every):
        bounds = (number * width, (number + 1) * width)
        key, end = (base64.b64encode(bound.to_bytes(KEY_BYTES, "big")).decode() for bound in bounds)
        deleted += int(ask(server, "kv/deleterange", {"key": key, "range_end": end}).get("deleted", 0))
    return deleted


def fill(options, server):
    """Makes the database old. Returns the report of its puts."""
    puts = max(options.size // (options.val_size + OVERHEAD_BYTES), 1)
    keys = max(puts // options.versions, 1)
    print(f"filling: {puts} puts of {keys} keys, {options.size / 1e9:.2f} GB", flush=True)
    report = bench(options, server, "put", *FULL, "--key-size", KEY_BYTES, "--val-size", options.val_size,
                   "--total", puts, "--key-space-size", keys, "--stall-timeout", 120)
    deleted = delete_slices(server, options.delete_every)
    print(f"filled in {report['elapsed_seconds']:.0f} s, deleted {deleted} keys, "
          f"{server.disk_bytes() / 1e9:.2f} GB on disk", flush=True)
    if not deleted:
        sys.exit("no key was deleted: the database is not what was asked for")
    return {"fill_seconds": report["elapsed_seconds"], "fill_per_second": report["per_second"], "puts": puts,
            "keys": keys, "deleted": deleted, "disk_mb": server.disk_bytes() / 1e6}


def settle(server, seconds_max):
    """Waits until the server has nothing to do: less than a fiftieth of a core over two seconds."""
    ends, ticks = time.monotonic() + seconds_max, os.sysconf("SC_CLK_TCK")

    def used():
        with open(f"/proc/{server.process.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / ticks

    while time.monotonic() < ends:
        before = used()
        time.sleep(2)
        if used() - before < 0.04:
            return


def restarts(server, notes, kind):
    server.stop()
    values = {"after_stop_seconds": server.start()}
    server.stop(signal.SIGKILL)
    values["after_kill_seconds"] = server.start()
    values["resident_started_mb"] = server.resident_bytes() / 1e6
    notes.add(kind, "restart", values)


def measure(options, server, notes, kind, number):
    """One round: as many puts as fit into the time, then a number of new keys."""
    report = bench(options, server, "put", *FULL, "--key-size", KEY_BYTES, "--val-size", "256", "--total", "0",
                   "--duration", options.seconds, "--key-space-size", options.hot_keys, "--seed", 1000 + number,
                   "--stall-timeout", 120)
    notes.add(kind, "full-load", {**figures(report), "slowest_us": report["latency_micros"]["max"]}, report)
    report = bench(options, server, "put", *FULL, "--key-size", KEY_BYTES, "--val-size", "256", "--total", options.keys,
                   "--seed", 2000 + number, "--stall-timeout", 120)
    notes.add(kind, "new-keys", figures(report), report)


def reads(options, server, notes, kind, total):
    """Single keys, most of which are in no cache."""
    report = bench(options, server, "range", "--conns", "10", "--clients", "100", "--total", options.reads,
                   "--key-size", KEY_BYTES, "--key-space-size", total)
    notes.add(kind, "gets", figures(report), report)


def machine_bytes():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=size, default=size("15G"), help="bytes that are put while filling (15G)")
    parser.add_argument("--val-size", type=int, default=1024, help="bytes of a value while filling")
    parser.add_argument("--versions", type=int, default=3, help="puts for each key, on average")
    parser.add_argument("--delete-every", type=int, default=10, help="one of so many slices of the keys is deleted")
    parser.add_argument("--seconds", type=float, default=150, help="of each measurement under full load")
    parser.add_argument("--hot-keys", type=int, default=200_000, help="keys that are overwritten meanwhile")
    parser.add_argument("--keys", type=int, default=1_000_000, help="new random keys afterwards")
    parser.add_argument("--reads", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--settle", type=float, default=120, help="longest wait for the server to become idle, seconds")
    parser.add_argument("--budget", type=size, help="--daymark-memory-budget-bytes of both servers")
    parser.add_argument("--daymark", default=default_daymark(), help="also the load generator")
    parser.add_argument("--kind", choices=["daymark", "etcd"], default="daymark")
    parser.add_argument("--binary", help="the server, if it is not --daymark")
    parser.add_argument("--dir", help="where data directories are made (default: a temporary one)")
    parser.add_argument("--json", help="write all figures into this file; `daymark bench report` reads it")
    options = parser.parse_args()
    options.binary = options.binary or options.daymark
    if not os.path.exists(options.daymark):
        parser.error("needs the release binary (--daymark); see README.md")
    free = shutil.disk_usage(options.dir or tempfile.gettempdir()).free
    if free < 2.2 * options.size + 2e9:
        parser.error(f"needs {2.2 * options.size / 1e9 + 2:.0f} GB of disk, {free / 1e9:.0f} GB are free; see --dir")
    return options


def servers(options, root):
    """An empty one and one that will be aged; the latter does not compact while it is filled."""
    flags = ["--auto-compaction-mode", "periodic", "--auto-compaction-retention", "1m"]
    if options.budget:
        flags += ["--daymark-memory-budget-bytes", str(options.budget)]
    quota = max(8 * options.size, 8 << 30) if options.kind == "daymark" else 8 << 30
    empty = Server(options.kind, options.binary, root, "empty", quota, flags)
    aged = Server(options.kind, options.binary, root, "aged", quota, flags[4:])
    return empty, aged, flags


def run(options, notes, root):
    empty, aged, flags = servers(options, root)
    about = {}
    try:
        aged.start()
        about.update(fill(options, aged))
        settle(aged, options.settle)
        aged.flags = flags
        empty.start()
        restarts(empty, notes, "empty")
        restarts(aged, notes, "aged")
        reads(options, aged, notes, "aged", about["keys"])
        for number in range(options.rounds):
            for kind, server in (("empty", empty), ("aged", aged)):
                settle(server, options.settle)
                measure(options, server, notes, kind, number)
        for kind, server in (("empty", empty), ("aged", aged)):
            budget = options.budget or min(machine_bytes() // 4, BUDGET_MAX)
            notes.add(kind, "memory", {
                "resident_mb": server.resident_bytes() / 1e6,
                "peak_mb": server.peak_bytes() / 1e6,
                "budget_mb": budget / 1e6,
                "peak_to_budget": server.peak_bytes() / budget,
                "disk_mb": server.disk_bytes() / 1e6,
            })
    finally:
        empty.remove()
        aged.remove()
    return about


def main():
    options = parse_arguments()
    notes = Notes()
    root = tempfile.mkdtemp(prefix="daymark-aged-", dir=options.dir)
    try:
        filled = run(options, notes, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    about = {"rounds": options.rounds, "cores": os.cpu_count(), "kernel": platform.release(),
             "unix_seconds": int(time.time()), "daymark": version_of(options.binary)}
    print(f"\n{'':12} {'figure':24} {'empty':>12} {'aged':>12} {'ratio':>7}")
    for load, values in notes.loads.items():
        for name in values:
            both = [notes.median(load, name, kind) if kind in values[name] else None for kind in ("empty", "aged")]
            ratio = f"{both[1] / both[0]:7.3f}" if all(value is not None for value in both) and both[0] else "      -"
            shown = [f"{value:12.2f}" if value is not None else f"{'-':>12}" for value in both]
            print(f"{load:12} {name:24} {shown[0]} {shown[1]} {ratio}")
    if options.json:
        with open(options.json, "w") as out:
            json.dump({"compare": about, "aged": filled, "loads": notes.loads, "series": notes.series}, out, indent=1)


if __name__ == "__main__":
    main()
