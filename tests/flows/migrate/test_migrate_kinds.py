# SPDX-License-Identifier: Apache-2.0
"""Every test program of kinds/ moves to another host while it runs, and back, and finds itself as it was."""
import pathlib
import shlex
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "kinds"))

import moving
import process_state
import test_kinds
from program import Program

import hosts

# What the program needs is not on the other host.
STAYS = {"same-namespace"}
# Both hosts are one kernel here: the lock of the stopped program over there is in the way.
ONE_KERNEL = {"file_locks", "file_owners_many"}
# The root keeps its pages where they were received: it cannot hold those that only its children share.
TAKES_MORE = {"memory_siblings"}
# Memory that follows comes page by page, to each process its own.
NOT_WITH_POST_COPY = {"memory_cow", "memory_advice"}


def cases():
    for case in test_kinds.cases():
        name, program, in_place = case.values
        if in_place or name in ONE_KERNEL | TAKES_MORE or STAYS & set(test_kinds.settings_of(name)):
            continue
        yield pytest.param(name, program, (), id=case.id)
        if name not in NOT_WITH_POST_COPY:
            yield pytest.param(name, program, ("--post-copy",), id=f"{case.id}-post-copy")


@pytest.mark.parametrize("name,program,way", cases())
def test_kind(name, program, way, directory):
    settings = test_kinds.settings_of(name)
    test_kinds.skip_unless(settings.get("skip-unless", ""))
    may_differ = shlex.split(settings.get("may-differ", ""))
    with moving.pair() as pair:
        running = Program(pair.hosts[0], directory, hosts.PROGRAMS / program)
        try:
            running.check("before any move")
            for here in (0, 1):
                before = process_state.snapshot(pair.hosts[here])
                pair.move(running.pid, here, *way)
                running.host = pair.hosts[1 - here]
                lines = process_state.differences(before, process_state.snapshot(running.host), may_differ)
                assert not lines, "\n".join(lines[:40])
                running.check(f"after the move from host {here}")
                pair.hosts[here].wait_empty()
        finally:
            running.close()
