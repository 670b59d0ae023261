# SPDX-License-Identifier: Apache-2.0
"""Descriptors whose other end is held outside of the tree are refused with a line that names the holder, and the
program runs on."""
import os

import pytest

import faults
import hosts

# Each forks; the child does its part and says so, the parent waits and stays outside of the tree.
PROGRAM = """
import os, select, signal, sys, time
reader, writer = os.pipe()
other = os.eventfd(0)
if os.fork():
    {parent}
    signal.pause()
os.setsid()
{child}
print("ready", os.getpid(), flush=True)
while True:
    signal.pause()
"""
CASES = {
    "pipe-writer": ("os.close(writer)", "os.close(reader)", "the read end of the pipe"),
    "pipe-reader": ("os.close(reader)", "os.close(writer)", "the write end of the pipe"),
    "pidfd": ("pass", "fd = os.pidfd_open(os.getppid())", "a pidfd of pid"),
    "epoll": ("pass", "ep = select.epoll(); ep.register(other); os.close(other)", "only a process outside the tree"),
}


@pytest.mark.parametrize("case", CASES)
def test_holder_outside_is_refused(directory, case):
    parent, child, says = CASES[case]
    images = directory / "images"
    images.mkdir()
    with hosts.Host() as host:
        outside = host.start(["/usr/bin/python3", "-c", PROGRAM.format(parent=parent, child=child)])
        hosts.wait_until(lambda: os.path.exists(outside.output_path) and outside.output().endswith("\n"))
        word, pid = outside.output().split()
        assert word == "ready"
        line = faults.one_clear_line(hosts.Criu(host).run("dump", pid, images))
        assert says in line and f"task {pid}" in line, line
        if case != "epoll":
            assert f"pid {outside.pid} " in line, line
        assert not list(images.glob("*.img"))
        assert host.run(["kill", "-0", pid]).status == 0


def test_closed_ends_are_not_outside(directory):
    """Nobody holds the other end: it comes back closed."""
    with hosts.Host() as host:
        process = host.start(["/usr/bin/python3", "-c", "import os, signal\nr, w = os.pipe()\nos.close(w)\n"
                              "print('ready', flush=True)\nsignal.pause()"])
        process.wait_said("ready")
        hosts.Criu(host).dump(process.pid, directory / "images")
        host.wait_empty()
        hosts.Criu(host).restore(process.pid, directory / "images")
