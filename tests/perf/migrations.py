# SPDX-License-Identifier: Apache-2.0
"""The rows of the benchmark table that are about `criu migrate`."""
import contextlib
import json
import pathlib
import shutil
import statistics
import sys

TESTS = pathlib.Path(__file__).resolve().parent.parent
for folder in (TESTS / "flows", TESTS / "flows" / "migrate"):
    sys.path.insert(0, str(folder))

import flow  # noqa: E402  (needs the paths above)
import hosts  # noqa: E402
import moving  # noqa: E402
import test_servers  # noqa: E402

MIB = 1 << 20
# Both hosts together must have room for two copies.
LARGEST_MIB = 8192


def summary(result):
    return next(event for event in map(json.loads, result.output.splitlines()) if event["event"] == "done")


def move(pair, pid, here, *options):
    return summary(pair.move(pid, here, "--json", *options, seconds=300))


@contextlib.contextmanager
def idle(bench, workload, mib):
    """(pair, pid) of a process that does nothing with so much memory."""
    output = bench.directory / "output"
    output.unlink(missing_ok=True)
    with moving.pair() as pair:
        process = pair.hosts[0].start([workload, "memory", mib], output=output)
        hosts.wait_until(lambda: output.exists() and "ready" in output.read_text(), 120)
        yield pair, process.pid


def stops(bench, workload, mib, rounds, *options):
    """Downtimes in ms, and the summaries they are from."""
    with idle(bench, workload, mib) as (pair, pid):
        moves = [move(pair, pid, number % 2, *options) for number in range(rounds)]
    return [one["downtime_us"] / 1000 for one in moves], moves


def link_bytes_per_second(pair):
    server = pair.hosts[1].start(["iperf3", "-s", "-1", "-B", moving.ADDRESSES[1]])
    flow.wait_listening(pair.hosts[1], 5201)
    result = pair.hosts[0].check(["iperf3", "-c", moving.ADDRESSES[1], "-t", "2", "-P", "4", "-J"])
    server.wait()
    return json.loads(result.output)["end"]["sum_received"]["bits_per_second"] / 8


def floor_ms(bench, pair, mover, mib, here):
    """Time to get as much memory from one process into fresh memory of another, and nothing else."""
    output = bench.directory / "taken"
    taker = pair.hosts[1 - here].start([mover, "take", moving.ADDRESSES[1 - here], 5300, mib], output=output)
    hosts.wait_until(lambda: output.exists() and "ready" in output.read_text())
    printed = pair.hosts[here].check([str(mover), "send", moving.ADDRESSES[1 - here], "5300", str(mib)]).output
    taker.wait()
    output.unlink()
    return int(printed.split()[-1]) / 1e6


def throughput(bench, workload, mib):
    """Time to move the memory beside the time that the same link needs for as many bytes, and beside what the kernel
    takes to move as much memory."""
    if not shutil.which("iperf3"):
        return
    times, limits, floors = [], [], []
    with idle(bench, workload, mib) as (pair, pid):
        for number in range(bench.rounds // 2 * 2):
            limits.append(mib * MIB / link_bytes_per_second(pair) * 1000)
            floors.append(floor_ms(bench, pair, workload.parent / "limits_move", mib, number % 2))
            times.append(move(pair, pid, number % 2, "--compress", "none")["total_us"] / 1000)
    bench.row(f"migrate {mib} MiB, against iperf3", "total time", times, statistics.median(limits) / 0.7)
    bench.row(f"migrate {mib} MiB", "time/kernel alone", [statistics.median(times) / statistics.median(floors)], 1.5, "x")


def redis(bench, mib):
    port, writes = 6379, 20000
    command = [test_servers.need("redis-server"), "--port", port, "--save", "", "--appendonly", "no", "--protected-mode",
               "no", "--dir", bench.directory]
    with moving.pair(moving.Segment) as segment:
        process = segment.hosts[0].start([str(word) for word in command], output=bench.directory / "output")
        flow.wait_listening(segment.hosts[0], port)
        flow.client_once(segment.client, "redis", segment.SERVICE, port, "--value-bytes", 65536, "--fill", mib * 16)
        client = flow.Client(segment.client, "redis-writes", segment.SERVICE, port, "--connections", 1,
                             "--writes-per-second", writes)
        try:
            client.progress(50)
            values = []
            for number in range(bench.rounds):
                values.append(move(segment, process.pid, number % 2, *segment.MOVED)["downtime_us"] / 1000)
                client.progress(50)
        finally:
            client.close()
    bench.row(f"migrate redis {mib} MiB, {writes:,} writes/s", "stopped", values, 100)


def rate_between(lines, start, end):
    """Pages a second, of lines with a time and a count."""
    inside = [line for line in lines if start <= line[0] <= end]
    return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0]) * 1e9


def slow_down(bench, workload, mib):
    """A writer's pace while its memory is tracked and sent in rounds, beside its pace before."""
    output = bench.directory / "output"
    output.unlink(missing_ok=True)
    with moving.pair() as pair:
        process = pair.hosts[0].start([workload, "writer", mib], output=output)

        def lines():
            words = [line.split() for line in output.read_text().splitlines() if line != "ready"]
            return [(int(line[0]), int(line[1])) for line in words if len(line) == 2]

        hosts.wait_until(lambda: output.exists() and len(lines()) > 60, 120)
        ratios = []
        for _ in range(max(1, bench.rounds // 2)):
            seen = len(lines())
            hosts.wait_until(lambda: len(lines()) > seen + 40)
            begin = lines()[-1][0]
            # So little of the link that what sends takes no processor from the writer.
            pair.migrate(process.pid, 0, "--bandwidth", "50M", "--downtime", 1, "--timeout", 5)
            end = lines()[-1][0]
            before = rate_between(lines(), begin - 2 * 10**9, begin)
            ratios.append(before / rate_between(lines(), begin, end))
    bench.row(f"writer over {mib} MiB while it is tracked", "slow-down", ratios, 1 / 0.85, "x")


def run(bench, mib, workload):
    rounds = bench.rounds
    small, _ = stops(bench, workload, mib, rounds)
    bench.row(f"migrate {mib} MiB, idle", "stopped", small, 30)
    bench.warm(2 * LARGEST_MIB)
    large, _ = stops(bench, workload, LARGEST_MIB, 3)
    bench.row(f"migrate {LARGEST_MIB} MiB, idle", "stopped", large, statistics.median(small) + 10)
    redis(bench, mib)
    for size, times in ((mib, rounds), (LARGEST_MIB, 3)):
        values, _ = stops(bench, workload, size, times, "--post-copy")
        bench.row(f"migrate {size} MiB --post-copy", "stopped", values, 50)
    throughput(bench, workload, mib)
    slow_down(bench, workload, 256)
