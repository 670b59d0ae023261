# SPDX-License-Identifier: Apache-2.0
"""Processes that leave criu little room inside them are dumped all the same, and nothing of criu stays in them."""
import contextlib

import pytest

import faults
import hosts
import process_state

PROGRAM = """
import ctypes, os, resource, signal, threading
{setup}
print("ready", flush=True)
while True:
    signal.pause()
"""
MDWE = "assert not ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)"  # PR_SET_MDWE: never writable and executable
LEFT_OPEN = "for fd in range(3, 32): os.dup2(0, fd)"
CASES = {
    "no-descriptor-left": f"{LEFT_OPEN}\nresource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))",
    "mdwe": MDWE,
    "mdwe-threads": f"threading.Thread(target=signal.pause, daemon=True).start()\n{MDWE}",
    "no-memory-left": "resource.setrlimit(resource.RLIMIT_AS, (1, resource.RLIM_INFINITY))",
    "mdwe-no-data-left": f"{MDWE}\nresource.setrlimit(resource.RLIMIT_DATA, (1, resource.RLIM_INFINITY))",
}


@contextlib.contextmanager
def running(setup):
    with hosts.Host() as host:
        process = host.start(["/usr/bin/python3", "-c", PROGRAM.format(setup=setup)])
        process.wait_said("ready")
        yield host, process


def unharmed(host, before, when, remnant=False):
    lines = process_state.differences(before, faults.state(host))
    if remnant:
        added = [line for line in lines if "only after: " in line]
        # Under MDWE code and data have different permissions: two lines, one range.
        edges = [line.split()[4].split("-") for line in added]
        assert len(edges) < 3 and all(a[1] == b[0] for a, b in zip(edges, edges[1:])), f"{when}: {added}"
        lines = [line for line in lines if line not in added]
    assert not lines, f"{when}: {lines}"


@pytest.mark.parametrize("case", CASES)
def test_hard_target(directory, case):
    images = directory / "images"
    images.mkdir()
    with running(CASES[case]) as (host, process):
        before = faults.state(host)
        criu = hosts.Criu(host)
        criu.dump(process.pid, images, "--leave-running")
        unharmed(host, before, "after a dump")
        stages = host.check([str(hosts.CRIU), "dump", "-t", "1", "-D", "/tmp", "--die-at", "list"]).output.split()
        for stage in stages[:stages.index("described")]:
            assert criu.run("dump", process.pid, images, "--leave-running", "--die-at", stage).status in (-9, 137)
            # It may still wait for the criu that was killed.
            hosts.wait_until(lambda: not any(value.strip("0") for task in faults.state(host).values()
                                             for key, value in task.items() if key.endswith("status.SigBlk")))
            unharmed(host, before, f"killed at {stage}", remnant=True)
        criu.dump(process.pid, images, "--leave-running")
        unharmed(host, before, "after the next dump")
