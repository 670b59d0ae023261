# SPDX-License-Identifier: Apache-2.0
"""Large trees (big_tree.c), where each side begins with the number of descriptors that a login shell gives."""
import contextlib

import pytest

import moving
from program import Program

import hosts

BIG_TREE = hosts.BUILD / "tests" / "flows" / "migrate" / "big_tree"
DESCRIPTORS = 1024


@contextlib.contextmanager
def growing(directory, wide, deep):
    with moving.pair() as pair:
        pair.before = ["prlimit", f"--nofile={DESCRIPTORS}:"]
        program = Program(pair.hosts[0], directory, BIG_TREE, [wide, deep])
        try:
            program.check("before any move")
            yield pair, program
        finally:
            program.close()


@pytest.mark.parametrize("way", [(), ("--post-copy",)], ids=["rounds", "post-copy"])
@pytest.mark.parametrize("wide, deep", [(200, 0), (0, 50), (250, 50)])
def test_there_and_back(wide, deep, way, directory):
    with growing(directory, wide, deep) as (pair, program):
        for here in (0, 1):
            pair.move(program.pid, here, *way)
            program.host = pair.hosts[1 - here]
            program.check(f"after the move from host {here}")
            pair.hosts[here].wait_empty()


def test_stop_that_takes_longer_than_allowed(directory):
    """However little memory is left: rounds end when they gain nothing, and not with the time."""
    with growing(directory, 100, 0) as (pair, program):
        pair.move(program.pid, 0, "--downtime", "1")
        program.host = pair.hosts[1]
        program.check("after the move")
        pair.hosts[0].wait_empty()
