#!/usr/bin/env python3
"""Runs the same loads against an etcd and a Daymark in turn (A B A B) on fresh data directories and prints medians and
ratios. Needs the release binary and an etcd; all servers listen on loopback and are stopped at the end.

    scripts/compare.py --etcd /path/to/etcd [--daymark PATH] [--rounds 3] [--total 1000000] [--json FILE] [LOAD ...]

Loads, of which the first six are the default:
  one-client         puts, one client on one connection
  puts               puts, 1000 clients on 100 connections; disk and memory afterwards
  gets               linearizable reads of single keys of these, 100 clients on 10 connections
  serializable-gets  the same, serializable
  restart            time until healthy after SIGTERM and after kill -9, with these keys
  three-members      puts to a cluster of three on this machine
  lists              lists of all keys in pages of 500, and their count; also right after a restart
  keepalives         renewals of 10,000 leases
  leases             making a million leases, and the memory that they take when nobody asks for them
  contention         waits: system calls that may block, for 1000 puts, counted by strace; voluntary switches
  floor              Daymark alone: its puts beside a server that answers at once (needs no etcd)
"""
import argparse
import collections
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from members import Notes, Server, bench, bench_command, default_daymark, figures, run_bench, version_of

SPREAD = ["--conns", "100", "--clients", "1000"]
SMALL = ["--key-size", "8", "--val-size", "256"]
# What a thread calls to wait for others, for a lock or for work.
WAITS = ("futex", "epoll_wait", "epoll_pwait", "nanosleep", "clock_nanosleep", "poll", "ppoll", "select", "pselect6",
         "sched_yield")
# Of the throughput of a server that answers at once, what a store should keep.
FLOOR_GATE = 0.75


class Round:
    """One round of one side."""

    def __init__(self, options, notes, kind, binary, root):
        self.options, self.notes, self.kind, self.binary, self.root = options, notes, kind, binary, root

    def note(self, load, values, report=None):
        self.notes.add(self.kind, load, values, report)

    def server(self, name="m"):
        return Server(self.kind, self.binary, self.root, name)

    def fresh(self, work):
        """Runs `work` with a server of its own."""
        server = self.server()
        try:
            server.start()
            work(server)
        finally:
            server.remove()

    def fill(self, server, total):
        return bench(self.options, server, "put", *SPREAD, *SMALL, "--total", total)


def single(this):
    """The loads that share one server: what was put is read, and started with."""
    options, loads = this.options, set(this.options.loads)

    def work(server):
        if "one-client" in loads:
            report = bench(options, server, "put", "--total", options.one_client)
            this.note("one-client", figures(report), report)
        if loads & {"puts", "gets", "serializable-gets", "restart"}:
            report = this.fill(server, options.total)
            values = figures(report)
            time.sleep(1)
            values["disk_mb"] = server.disk_bytes() / 1e6
            this.note("puts", values, report)
        reads = ["--conns", "10", "--clients", "100", "--total", options.reads, "--key-space-size", options.total]
        for load, consistency in (("gets", "l"), ("serializable-gets", "s")):
            if load in loads:
                report = bench(options, server, "range", *reads, "--consistency", consistency)
                this.note(load, figures(report), report)
        if "restart" in loads:
            server.stop()
            this.note("restart", {"after_stop_seconds": server.start()})
            server.stop(signal.SIGKILL)
            this.note("restart", {"after_kill_seconds": server.start()})

    this.fresh(work)


def three_members(this):
    members = [this.server(f"m{n}") for n in range(3)]
    try:
        for member in members:
            member.spawn(members)
        for member in members:
            member.wait()
        leader = next((m for m in members if m.leads()), None) or sys.exit(f"no {this.kind} leads")
        others = [m for m in members if m is not leader]
        report = bench(this.options, leader, "put", *SPREAD, *SMALL, "--total", this.options.three_members,
                       others=others)
        this.note("three-members", figures(report), report)
    finally:
        for member in members:
            member.remove()


def lists(this):
    options = this.options

    def ask(server, load, total):
        # One operation is a whole list, which takes etcd minutes.
        report = bench(options, server, "range", "", "--prefix", "--page-size", "500", "--must-exist", "--total", total,
                       "--stall-timeout", "3600")
        keys = report["answer_keys"] / report["succeeded"]
        if keys < 0.999 * options.list_keys:
            sys.exit(f"{this.kind} lists {keys:.0f} keys of {options.list_keys}")
        values = figures(report)
        this.note(load, {
            "seconds_per_list": report["elapsed_seconds"] / report["succeeded"],
            "server_cpu_us_per_key": values["server_cpu_us_per_op"] / keys,
            "resident_mb": values["resident_mb"],
        })

    def count(server, load, total):
        report = bench(options, server, "range", "", "--prefix", "--count-only", "--must-exist", "--total", total)
        latency = report["latency_micros"]
        this.note(load, {"p50_us": latency["p50"], "slowest_us": latency["max"]})

    def work(server):
        this.fill(server, options.list_keys)
        ask(server, "lists", options.lists)
        count(server, "counts", 50)
        server.stop()
        server.start()
        ask(server, "lists-restarted", 1)
        server.stop()
        server.start()
        count(server, "counts-restarted", 1)

    this.fresh(work)


def keepalives(this):
    options = this.options

    def work(server):
        bench(options, server, "lease-grant", *SPREAD, "--total", options.renewed_leases, "--ttl", "3600")
        report = bench(options, server, "lease-keepalive", *SPREAD, "--leases", options.renewed_leases,
                       "--total", options.keepalives)
        this.note("keepalives", figures(report), report)

    this.fresh(work)


def leases(this):
    options = this.options

    def work(server):
        time.sleep(2)
        before = server.resident_bytes()
        # One after the other they would take an hour: as many clients as servers like.
        report = bench(options, server, "lease-grant", "--conns", "100", "--clients", "5000", "--total", options.leases,
                       "--ttl", "86400", "--stall-timeout", "120")
        values = figures(report)
        time.sleep(options.settle)
        after = server.resident_bytes()
        this.note("leases", {
            "grant_seconds": values["seconds"],
            "grant_cpu_us": values["server_cpu_us_per_op"],
            "resident_mb": after / 1e6,
            "growth_mb": (after - before) / 1e6,
            "growth_bytes_per_lease": (after - before) / options.leases,
            "disk_mb": server.disk_bytes() / 1e6,
        }, report)

    this.fresh(work)


def contention(this):
    options = this.options
    if not shutil.which("strace"):
        sys.exit("contention needs strace: apt-get install strace")

    def work(server):
        load = ["put", *SPREAD, *SMALL, "--total", options.contended]
        plain = bench(options, server, *load)
        calls, traced = traced_calls(options, server, load)
        per_thousand = {f"{name}_per_1000": calls[name] * 1e3 / traced["succeeded"] for name in WAITS if calls[name]}
        waits = sum(calls[name] for name in WAITS) * 1e3 / traced["succeeded"]
        this.note("contention", {
            "futex_per_1000": calls["futex"] * 1e3 / traced["succeeded"],
            "waits_per_1000": waits,
            "all_calls_per_1000": sum(calls.values()) * 1e3 / traced["succeeded"],
            **per_thousand,
            "switches_per_1000": plain["servers"][0]["voluntary_switches_per_op"] * 1e3,
            "untraced_per_second": plain["per_second"],
            "traced_per_second": traced["per_second"],
        })

    this.fresh(work)


def traced_calls(options, server, load):
    """Counts the system calls of the server under the load. strace slows it, so its waits are counted, not timed."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out, tempfile.NamedTemporaryFile(suffix=".strace") as counts:
        strace = subprocess.Popen(["strace", "-c", "-f", "-q", "-o", counts.name, "-p", str(server.process.pid)],
                                  stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            time.sleep(1)
            if strace.poll() is not None:
                sys.exit(f"strace: {strace.stderr.read().decode(errors='replace').strip()}")
            report = run_bench(bench_command(options, (server,), load, out.name), out.name)
        finally:
            # It lets go of the process and writes its table.
            strace.send_signal(signal.SIGINT)
            strace.wait(30)
        calls = parse_strace(open(counts.name).read())
    if not calls:
        sys.exit("strace counted nothing")
    return calls, report


def parse_strace(table):
    """Calls by name out of the table of `strace -c`."""
    calls = collections.Counter()
    for line in table.splitlines():
        fields = line.split()
        # share, seconds, microseconds a call, calls, [errors,] name
        if len(fields) in (5, 6) and fields[3].isdigit() and fields[-1] != "total":
            calls[fields[-1]] += int(fields[3])
    return calls


def floor(options, notes, root):
    """The echo server and a store in turn, under the same load."""
    one = ["--total", options.one_client]
    full = [*SPREAD, *SMALL, "--total", options.floor]
    for _ in range(options.rounds):
        for side, names in (("floor", None), ("put", "m")):
            server = Server("daymark", options.daymark, root) if names else None
            try:
                if server:
                    server.start()
                for load, flags in (("floor-one-client", one), ("floor", full)):
                    report = bench(options, server, "put", *flags) if server else bench_floor(options, flags)
                    notes.add(side, load, figures(report), report)
            finally:
                if server:
                    server.remove()


def bench_floor(options, load):
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        return run_bench([options.daymark, "bench", "floor", *map(str, load), "--json", out.name], out.name)


SINGLE = ("one-client", "puts", "gets", "serializable-gets", "restart")
OWN = {"three-members": three_members, "lists": lists, "keepalives": keepalives, "leases": leases,
       "contention": contention}
DEFAULT = (*SINGLE, "three-members")
EVERY = (*SINGLE, *OWN, "floor")


def one_round(options, notes, kind, binary, root):
    this = Round(options, notes, kind, binary, root)
    for load, work in OWN.items():
        if load in options.loads:
            work(this)
    if set(SINGLE) & set(options.loads):
        single(this)


def table(notes, rounds):
    """The medians, and each side's ratio to the first one."""
    lines = [f"medians of {rounds} rounds; ratio = second / first"]
    for load, values in notes.loads.items():
        first, second = (notes.sides(load) + ["-"])[:2]
        lines.append(f"\n{load:18} {'figure':24} {first:>12} {second:>12} {'ratio':>7}")
        for name, sides in values.items():
            left, right = (statistics.median(sides[kind]) if kind in sides else None for kind in (first, second))
            ratio = f"{right / left:7.3f}" if left and right is not None else "      -"
            shown = [f"{value:12.2f}" if value is not None else f"{'-':>12}" for value in (left, right)]
            lines.append(f"{'':18} {name:24} {shown[0]} {shown[1]} {ratio}")
    return "\n".join(lines)


def floor_verdict(notes):
    """What share of the transport's throughput the store keeps, beside the gate."""
    share = notes.median("floor", "per_second", "put") / notes.median("floor", "per_second", "floor")
    p50 = {side: notes.median("floor-one-client", "p50_us", side) for side in ("floor", "put")}
    return {
        "put_to_floor": share,
        "gate": FLOOR_GATE,
        "met": share >= FLOOR_GATE,
        "one_client_p50_us_floor": p50["floor"],
        "one_client_p50_us_put": p50["put"],
    }


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--etcd", default=shutil.which("etcd"), help="the etcd to compare with: 3.4, 3.5, 3.6 or 3.7")
    parser.add_argument("--daymark", default=default_daymark())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--total", type=int, default=1_000_000, help="puts of the load `puts`")
    parser.add_argument("--reads", type=int, default=200_000)
    parser.add_argument("--three-members", type=int, default=300_000, help="puts of the load `three-members`")
    parser.add_argument("--one-client", type=int, default=20_000, help="puts of `one-client` and of the same in `floor`")
    parser.add_argument("--list-keys", type=int, default=1_000_000, help="keys that `lists` lists")
    parser.add_argument("--lists", type=int, default=5, help="lists of the load `lists`")
    parser.add_argument("--keepalives", type=int, default=100_000)
    parser.add_argument("--renewed-leases", type=int, default=10_000, help="leases that `keepalives` renews")
    parser.add_argument("--leases", type=int, default=1_000_000, help="leases that `leases` makes")
    parser.add_argument("--settle", type=float, default=5, help="seconds before `leases` looks at the memory")
    parser.add_argument("--contended", type=int, default=100_000, help="puts of `contention`")
    parser.add_argument("--floor", type=int, default=500_000, help="puts of `floor`")
    parser.add_argument("--dir", help="where data directories are made (default: a temporary one)")
    parser.add_argument("--json", help="write all figures into this file")
    parser.add_argument("loads", nargs="*", metavar="LOAD", help=", ".join(EVERY))
    options = parser.parse_args()
    options.loads = options.loads or DEFAULT
    unknown = set(options.loads) - set(EVERY)
    if unknown:
        parser.error(f"unknown load {', '.join(sorted(unknown))}; choose from {', '.join(EVERY)}")
    if not os.path.exists(options.daymark):
        parser.error("needs the release binary (--daymark); see README.md")
    options.beside = set(options.loads) - {"floor"}
    if options.beside and not options.etcd:
        parser.error("needs an etcd (--etcd); see README.md")
    return options


def main():
    options = parse_arguments()
    notes = Notes()
    root = tempfile.mkdtemp(prefix="daymark-compare-", dir=options.dir)
    try:
        for _ in range(options.rounds if options.beside else 0):
            one_round(options, notes, "etcd", options.etcd, root)
            one_round(options, notes, "daymark", options.daymark, root)
        if "floor" in options.loads:
            floor(options, notes, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print("\n" + table(notes, options.rounds))
    verdict = floor_verdict(notes) if "floor" in options.loads else None
    if verdict:
        print(f"\nputs keep {verdict['put_to_floor']:.3f} of the throughput of a server that answers at once "
              f"(gate {FLOOR_GATE}: {'met' if verdict['met'] else 'missed'}); one client: p50 "
              f"{verdict['one_client_p50_us_floor']:.0f} us there, {verdict['one_client_p50_us_put']:.0f} us for a put")
    if options.json:
        about = {"rounds": options.rounds, "cores": os.cpu_count(), "kernel": platform.release(),
                 "unix_seconds": int(time.time()), "daymark": version_of(options.daymark)}
        if options.beside:
            about["etcd"] = version_of(options.etcd)
        written = {"compare": about, "loads": notes.loads, "series": notes.series}
        if verdict:
            written["floor"] = verdict
        with open(options.json, "w") as out:
            json.dump(written, out, indent=1)


if __name__ == "__main__":
    main()
