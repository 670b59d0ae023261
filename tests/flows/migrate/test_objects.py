# SPDX-License-Identifier: Apache-2.0
"""What a tree has besides its memory, between hosts that share no files: deleted files, locks; and what cannot go."""
import contextlib
import hashlib

import pytest

import moving
from program import Program
from test_faults import state_of

import hosts

# Has a file that was deleted with another one of its name, and one that stays. Says what it finds when it is asked to.
HOLDER = """
import fcntl, hashlib, mmap, os, signal
stays = open('/mnt/stays', 'rb+')
os.rename('/mnt/copy', '/mnt/gone')
gone = open('/mnt/gone', 'rb+')
mapped = mmap.mmap(gone.fileno(), 0)
os.unlink('/mnt/gone')
with open('/mnt/gone', 'wb') as other:
    other.write(b'another one')
gone.seek(12345)
def look(*_):
    gone.flush()
    print(gone.tell(), os.fstat(gone.fileno()).st_nlink, hashlib.sha256(mapped).hexdigest(),
          hashlib.sha256(os.pread(gone.fileno(), 1 << 30, 0)).hexdigest(), sorted(os.listdir('/mnt')),
          hashlib.sha256(os.pread(stays.fileno(), 1 << 30, 0)).hexdigest(), open('/mnt/gone').read(), flush=True)
signal.signal(signal.SIGUSR1, look)
look()
while True:
    signal.pause()
"""

LOCKER = """
import fcntl, signal
files = [open('/mnt/' + name, 'r+') for name in ('whole', 'part')]
fcntl.flock(files[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
fcntl.lockf(files[1], fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)
print('up', flush=True)
signal.pause()
"""
PROBE = """
import fcntl, sys
def free(lock, name, *where):
    try:
        with open('/mnt/' + name, 'r+') as file:
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, *where)
        return True
    except BlockingIOError:
        return False
print(free(fcntl.flock, 'whole'), free(fcntl.lockf, 'part', 10, 5), free(fcntl.lockf, 'part', 10, 15))
"""


@contextlib.contextmanager
def own_files(*names):
    """A pair whose first host has files in /mnt that the other has not."""
    with moving.pair() as pair:
        for host in pair.hosts:
            host.check(["mount", "-t", "tmpfs", "none", "/mnt"])
        for name in names:
            pair.hosts[0].check(["sh", "-c", f"head -c 3000000 /dev/urandom >/mnt/{name}"])
        yield pair


def start(host, program, output=None):
    return host.start(["/usr/bin/python3", "-c", program], output=output)


@pytest.mark.parametrize("way", [(), ("--post-copy",)], ids=["rounds", "post-copy"])
def test_deleted_files_and_files_that_are_sent(directory, way):
    output = directory / "output"
    with own_files("stays", "copy") as pair:
        holder = start(pair.hosts[0], HOLDER, output)
        hosts.wait_until(lambda: output.exists() and output.read_text().endswith("\n"), explain=holder.output)
        # The name is another file's there too.
        pair.hosts[1].check(["sh", "-c", "printf 'another one' >/mnt/gone"])
        for here in (0, 1):
            pair.move(holder.pid, here, "--send-files", *way)
            pair.hosts[here].wait_empty()
            assert pair.hosts[1 - here].kill(holder.pid, 10)
            hosts.wait_until(lambda: output.read_text().count("\n") == here + 2, explain=holder.output)
        first, *others = output.read_text().splitlines()
        assert first.startswith("12345 0 ") and first.endswith("another one"), first
        assert others == [first] * 2
        content = hashlib.sha256(pair.hosts[1].path("/mnt/stays").read_bytes()).hexdigest()
        assert content in first


def probe(host):
    return host.check(["/usr/bin/python3", "-c", PROBE]).output.split()


@pytest.mark.parametrize("way", [(), ("--post-copy",)], ids=["rounds", "post-copy"])
def test_locks_go_along(way):
    with own_files("whole", "part") as pair:
        locker = start(pair.hosts[0], LOCKER)
        locker.wait_said("up")
        held = ["False", "False", "True"]
        assert probe(pair.hosts[0]) == held
        for here in (0, 1):
            pair.move(locker.pid, here, "--send-files", *way)
            pair.hosts[here].wait_empty()
            assert probe(pair.hosts[1 - here]) == held
            assert probe(pair.hosts[here]) == ["True"] * 3


@pytest.mark.parametrize("way", [(), ("--post-copy",)], ids=["rounds", "post-copy"])
def test_a_lock_that_another_holds_there(directory, way):
    """Two hosts that share files: the stopped program still has what it wants there. It runs on here, with its lock."""
    with moving.pair() as pair:
        program = Program(pair.hosts[0], directory, hosts.PROGRAMS / "file_locks")
        try:
            sent, received = pair.migrate(program.pid, 0, *way)
            assert (sent.status, received.status) == (1, 1), f"{sent}\n{received}"
            assert "lock" in sent.output.splitlines()[-1] and "destination" in sent.output, sent
            program.check("after a move that was refused")
            pair.hosts[1].wait_empty()
        finally:
            program.close()


NESTED = {
    "pid namespace": ("unshare --pid --fork sleep 100000", "namespace"),
    "network namespace": ("unshare --net sleep 100000", "namespace"),
    "mount namespace": ("unshare --mount sleep 100000", "namespace"),
    "time namespace": ("unshare --time --fork sleep 100000", "namespace"),
}


@pytest.mark.parametrize("name", NESTED)
@pytest.mark.parametrize("way", [(), ("--post-copy",)], ids=["rounds", "post-copy"])
def test_what_cannot_go_is_told_before_anything_moves(name, way):
    command, word = NESTED[name]
    with moving.pair() as pair:
        root = pair.hosts[0].start(None, shell=f"sh -c '{command} & wait'")
        names = lambda: {(pair.hosts[0].proc / str(pid) / "comm").read_text().strip() for pid in pair.hosts[0].pids()}
        hosts.wait_until(lambda: "sleep" in names())
        before = pair.hosts[0].pids()
        sent, received = pair.migrate(root.pid, 0, *way)
        assert (sent.status, received.status) == (1, 1), f"{sent}\n{received}"
        assert word in sent.output and sent.output.strip().splitlines()[-1].startswith("criu: "), sent
        assert pair.hosts[0].pids() == before and state_of(pair.hosts[0], root.pid) == "S"
        pair.hosts[1].wait_empty()
