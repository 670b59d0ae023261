# SPDX-License-Identifier: Apache-2.0
"""Dumps in increments of a program that changes memory of every kind: after each restore every byte is checked."""
import contextlib
import os
import signal

import pytest

import hosts

MUTATOR = hosts.BUILD / "tests/flows/mutator"


class Mutator:
    """A running mutator and the checks that it has answered."""

    def __init__(self, host, directory, seed):
        self.host, self.output_path = host, directory / "output"
        work = directory / "files"
        work.mkdir()
        self.pid = host.start([str(MUTATOR), str(seed), str(work)], output=self.output_path, cwd=work).pid
        self.checks = 0
        hosts.wait_until(lambda: "ready" in self.output())

    def output(self):
        return self.output_path.read_text() if self.output_path.exists() else ""

    def check(self, host=None):
        self.checks += 1
        assert (host or self.host).kill(self.pid, signal.SIGUSR1)
        hosts.wait_until(lambda: f"ok {self.checks} " in self.output() or "bad" in self.output(),
                         explain=lambda: f"check {self.checks}: {self.output()}")
        assert "bad" not in self.output(), self.output()

    def steps(self):
        """Some hundred steps later."""
        self.check()


def keepers(host):
    found = set()
    for pid in host.pids():
        with contextlib.suppress(OSError):
            if (host.proc / str(pid) / "comm").read_text().strip() == "criu-keeper":
                found.add(pid)
    return found


def stats_of(result):
    """The figures of --display-stats by their names."""
    lines = [line.split(":") for line in result.output.splitlines() if ":" in line]
    return {name.strip(): int(value.split()[0]) for name, value in lines if value.split()[:1] and value.split()[0].isdigit()}


@contextlib.contextmanager
def running(directory, seed):
    with hosts.Host() as host:
        yield host, Mutator(host, directory, seed)


def pre_dump(host, pid, images, *options, parent=None):
    images.mkdir()
    previous = ["--prev-images-dir", os.path.relpath(parent, images)] if parent else []
    return hosts.Criu(host).good("pre-dump", pid, images, *previous, "--display-stats", *options)


def dump(host, pid, images, *options, parent=None):
    previous = ["--prev-images-dir", os.path.relpath(parent, images)] if parent else []
    return hosts.Criu(host).dump(pid, images, *previous, "--display-stats", *options)


@pytest.mark.parametrize("seed", range(1, 5))
def test_chain(directory, seed):
    with running(directory, seed) as (host, mutator):
        parent = None
        for number in range(3):
            images = directory / f"pre{number}"
            pre_dump(host, mutator.pid, images, parent=parent)
            parent = images
            mutator.steps()
        result = dump(host, mutator.pid, directory / "last", "--track-mem", parent=parent)
        assert stats_of(result)["Memory pages skipped from parent"] > 0
        host.wait_empty()
        hosts.Criu(host).restore(mutator.pid, directory / "last")
        mutator.check()
        mutator.check()


def test_memory_moved_back_next_to_tracked_memory(directory):
    """The kernel joins both and ends the tracking of the neighbours, whose marks stay and mean nothing from then on."""
    with hosts.Host() as host:
        output = directory / "output"
        pid = host.start([str(hosts.BUILD / "tests/flows/moved_back")], output=output).pid

        def reach(phase, word):
            if phase:
                assert host.kill(pid, signal.SIGUSR1)
            hosts.wait_until(lambda: output.exists() and output.read_text().count("\n") > phase)
            assert output.read_text().splitlines()[phase] == word

        parent = None
        for phase, word in enumerate(["ready", "moved", "moved back"]):
            reach(phase, word)
            images = directory / f"pre{phase}"
            pre_dump(host, pid, images, parent=parent)
            parent = images
        reach(3, "written")
        dump(host, pid, directory / "last", "--track-mem", parent=parent)
        host.wait_empty()
        hosts.Criu(host).restore(pid, directory / "last")
        reach(4, "ok")


def test_leave_running_again_and_again(directory):
    """Each dump of the row can be restored; here the last, whose pages lie in all of them."""
    with running(directory, 11) as (host, mutator):
        parent = None
        for number in range(4):
            images = directory / f"images{number}"
            result = dump(host, mutator.pid, images, "--track-mem", "--leave-running", parent=parent)
            if parent:
                assert stats_of(result)["Memory pages skipped from parent"] > 0
            parent = images
            hosts.wait_until(lambda: keepers(host))
            mutator.check()
        dump(host, mutator.pid, directory / "last", parent=parent)
        host.wait_empty()
        hosts.Criu(host).good("dedup", None, directory / "last")
        hosts.Criu(host).restore(mutator.pid, directory / "last", "--auto-dedup")
        mutator.check()


def test_freed_pages(directory):
    """What --auto-dedup frees, and what it may not; images without their pages are refused as such."""
    with running(directory, 13) as (host, mutator):
        old, new = directory / "old", directory / "new"
        dump(host, mutator.pid, old, "--track-mem", "--leave-running")
        mutator.check()
        dump(host, mutator.pid, new, "--auto-dedup", parent=old)
        host.wait_empty()

        def blocks():
            return {path: path.stat().st_blocks for path in [*old.glob("pages-*"), *new.glob("pages-*")]}
        before = blocks()
        refused = hosts.Criu(host).run("restore", mutator.pid, old, "-d")
        assert refused.status == 1 and "--auto-dedup has freed them" in refused.output, refused
        hosts.Criu(host).good("restore", mutator.pid, new, "--show-plan", "--auto-dedup")
        refused = hosts.Criu(host).run("restore", mutator.pid, new, "-d", "--lazy-pages", "--auto-dedup")
        assert refused.status == 1 and "contradicts" in refused.output, refused
        assert blocks() == before
        hosts.Criu(host).restore(mutator.pid, new, "--auto-dedup")
        mutator.check()
        assert not any(path.stat().st_blocks for path in new.glob("pages-*"))
        host.end_all()
        refused = hosts.Criu(host).run("restore", mutator.pid, new, "-d")
        assert refused.status == 1 and "--auto-dedup has freed them" in refused.output, refused


def test_killed_keeper_means_a_full_dump(directory):
    with running(directory, 12) as (host, mutator):
        pre_dump(host, mutator.pid, directory / "pre")
        for keeper in hosts.wait_until(lambda: keepers(host)):
            assert host.kill(keeper)
        hosts.wait_until(lambda: not keepers(host))
        result = dump(host, mutator.pid, directory / "last", "--track-mem", parent=directory / "pre")
        assert stats_of(result)["Memory pages skipped from parent"] == 0
        host.wait_empty()
        hosts.Criu(host).restore(mutator.pid, directory / "last")
        mutator.check()


def test_other_images_are_no_parents(directory):
    with running(directory, 13) as (host, mutator):
        pre_dump(host, mutator.pid, directory / "pre1")
        mutator.check()
        pre_dump(host, mutator.pid, directory / "pre2", parent=directory / "pre1")
        result = dump(host, mutator.pid, directory / "last", "--track-mem", parent=directory / "pre1")
        assert stats_of(result)["Memory pages skipped from parent"] == 0
        host.wait_empty()
        hosts.Criu(host).restore(mutator.pid, directory / "last")
        mutator.check()


@pytest.mark.parametrize("stage", ["frozen", "collected", "released", "scanned", "pages"])
def test_killed_pre_dump_leaves_the_tree(directory, stage):
    with running(directory, 14) as (host, mutator):
        pre_dump(host, mutator.pid, directory / "pre1")
        (directory / "pre2").mkdir()
        killed = hosts.Criu(host).run("pre-dump", mutator.pid, directory / "pre2", "--prev-images-dir", "../pre1",
                                      "--die-at", stage)
        assert killed.status in (-9, 137), killed
        mutator.check()
        result = dump(host, mutator.pid, directory / "last", "--track-mem", parent=directory / "pre1")
        assert stats_of(result)["Memory pages skipped from parent"] == 0
        host.wait_empty()
        hosts.Criu(host).restore(mutator.pid, directory / "last")
        mutator.check()
