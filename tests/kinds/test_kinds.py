# SPDX-License-Identifier: Apache-2.0
"""Dumps and restores every test program of programs.txt and asks it after every step whether all is as it was.

dump (the tree is gone) - restore - check - dump --leave-running - check - dump - restore in a fresh host - check.
Beside the program's own checks, what /proc says about the whole tree must be the same before and after each step.
"""
import os
import pathlib
import re
import shlex

import pytest

import hosts
import process_state
from program import Program

KINDS = pathlib.Path(__file__).resolve().parent
COMMENT = re.compile(r"^\s*(?:/\*|\*)\s*([a-z-]+)(?::\s*(.*?))?\s*(?:\*/)?\s*$")
SETTINGS = {"criu", "criu-dump", "criu-restore", "netns", "in-place", "same-namespace", "skip-unless", "may-differ"}


def settings_of(name):
    """The comment lines that harness.h describes."""
    found = {}
    source = KINDS / f"{name}.c"
    for line in source.read_text().splitlines() if source.exists() else ():
        match = COMMENT.match(line)
        if match and match.group(1) in SETTINGS:
            found[match.group(1)] = match.group(2) or ""
    return found


def cases():
    for line in (KINDS / "programs.txt").read_text().split("\n"):
        name, *words = line.split() or [""]
        if not name:
            continue
        settings = settings_of(name)
        yield pytest.param(name, name, False, id=name)
        if "static" in words:
            yield pytest.param(name, f"{name}-static", False, id=f"{name}-static")
        if "in-place" in settings:
            yield pytest.param(name, name, True, id=f"{name}-in-place")


class Trial:
    """One run of one program."""

    def __init__(self, directory, program, settings, in_place):
        self.directory, self.settings = directory, settings
        self.in_place = in_place
        self.may_differ = shlex.split(settings.get("may-differ", ""))
        self.host = self.new_host()
        try:
            self.program = Program(self.host, directory, hosts.PROGRAMS / program)
        except BaseException:
            self.host.close()
            raise
        self.pid = self.program.pid

    def new_host(self, first_free_pid=300):
        separate = not self.in_place
        return hosts.Host(pid=separate, mount=separate, net=separate and "netns" in self.settings,
                          first_free_pid=first_free_pid)

    def close(self):
        self.host.close()
        self.program.close()

    def criu(self):
        return hosts.Criu(self.host, *(shlex.split(self.settings.get(key, ""))
                                       for key in ("criu", "criu-dump", "criu-restore")))

    def snapshot(self):
        return process_state.snapshot(self.host)

    def same(self, before, when):
        lines = process_state.differences(before, self.snapshot(), self.may_differ)
        assert not lines, f"{when}, /proc differs:\n" + "\n".join(lines[:40])

    def dump(self, images, *options):
        self.criu().dump(self.pid, images, *options)

    def restore(self, images):
        self.criu().restore(self.pid, images)

    def fresh_host(self):
        """The program is gone; what it needs of the old host must not matter."""
        if self.in_place or "same-namespace" in self.settings:
            return
        self.host.close()
        self.host = self.program.host = self.new_host(hosts.Host.RECEIVER)

    def no_network_lock(self):
        if "netns" in self.settings and not self.in_place:
            tables = self.host.check(["nft", "list", "tables"]).output
            assert "criu" not in tables, f"left behind: {tables}"


def skip_unless(condition):
    kind, _, value = condition.partition(" ")
    if kind == "path" and not os.path.exists(value):
        pytest.skip(f"needs {value}")
    if kind == "command" and not any(os.access(os.path.join(p, value), os.X_OK) for p in os.get_exec_path()):
        pytest.skip(f"needs {value}")
    if kind == "feature":
        with hosts.Host() as host:
            if host.run([str(hosts.CRIU), "check", "--feature", value]).status != 0:
                pytest.skip(f"needs kernel feature {value}")


@pytest.mark.parametrize("name,program,in_place", cases())
def test_kind(name, program, in_place, directory):
    settings = settings_of(name)
    skip_unless(settings.get("skip-unless", ""))
    trial = Trial(directory, program, settings, in_place)
    try:
        trial.program.check("before any dump")
        before = trial.snapshot()
        trial.dump(directory / "images1")
        trial.host.wait_empty()

        trial.restore(directory / "images1")
        trial.same(before, "after the first restore")
        trial.program.check("after the first restore")

        before = trial.snapshot()
        trial.dump(directory / "images2", "--leave-running")
        trial.same(before, "after dump --leave-running")
        trial.program.check("after dump --leave-running")

        before = trial.snapshot()
        trial.dump(directory / "images3")
        trial.host.wait_empty()
        trial.fresh_host()
        trial.restore(directory / "images3")
        trial.same(before, "after the second restore")
        trial.program.check("after the second restore")
        trial.no_network_lock()
        # And a dump of what was restored twice still works.
        trial.dump(directory / "images4")
        trial.host.wait_empty()
    finally:
        trial.close()
