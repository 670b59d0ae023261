# SPDX-License-Identifier: Apache-2.0
"""A migration that is killed, cut or spoiled in each of its states, on either side: one copy lives, unharmed, and where
only a person can know which, both are kept, stopped, until it is said."""
import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading

import pytest

import moving
import network
from test_memory import changing, move

import hosts

RELAY = pathlib.Path(hosts.TESTS) / "relay.py"

# What becomes of the tree when the process of a side is killed at each state: it stays here, goes there, or both sides
# keep it, stopped, until somebody decides. A state that is not here has no case, and fails test_every_state_has_a_case.
SOURCE_KILLED = {
    "connecting": "here", "preflight": "here", "rounds": "here", "round": "here", "between": "here", "frozen": "here",
    "last-pages": "here", "last-images": "here", "waiting": "here or decide", "ready": "here or decide", "deciding": "decide",
    "committed": "there", "running": "there", "following": "post-copy",
}
DESTINATION_KILLED = {
    "preflight": "here", "rounds": "here", "round": "here", "last-round": "here", "restoring": "here", "built": "here",
    "committed": "undecided", "running": "undecided", "following": "post-copy",
}


def listed(verb):
    with hosts.Host() as host:
        return host.check([str(hosts.CRIU), verb, *(["--tree", "1"] if verb == "migrate" else []), "--die-at",
                           "list"]).output.split()


def test_every_state_has_a_case():
    assert set(listed("migrate")) == set(SOURCE_KILLED)
    assert set(listed("receive")) == set(DESTINATION_KILLED)


def state_of(host, pid):
    """The letter of the process's state, "" if there is none."""
    with contextlib.suppress(OSError):
        return (host.proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    return ""


def is_live(host, pid):
    return state_of(host, pid) not in ("", "T", "t", "Z", "X")


def has_ended(process):
    """Without waiting for it."""
    with contextlib.suppress(hosts.Timeout):
        process.host.read_answer(0.01)
    return process.tag in process.host.ended


def lives_on(pair, program, there, when):
    """Exactly one copy, on hosts[@there], unharmed and free to be moved once more."""
    pair.hosts[1 - there].wait_empty()
    program.host = pair.hosts[there]
    program.check(when)


def decide(host, pid, what):
    return host.check([str(hosts.CRIU), "migrate", "--tree", str(pid), what])


# "post-copy": these states are reached with --post-copy only, and test_post_copy.py has them.
def without_post_copy(states):
    return [state for state, outcome in states.items() if outcome != "post-copy"]


@pytest.mark.parametrize("state", without_post_copy(SOURCE_KILLED))
def test_source_is_killed(state, directory):
    with changing(directory, 4, 1000) as (pair, program):
        here, there = pair.hosts
        receiver = pair.receive(1)
        killed = pair.start_migrate(program.pid, 0, "--die-at", state).wait()
        assert killed.status in (-9, 137), f"{state} was not reached: {killed}"
        if state == "connecting":
            # Nobody came.
            there.kill(receiver.pid)
        hosts.wait_until(lambda: "--resume" in receiver.output() or "runs here" in receiver.output() or
                         has_ended(receiver), 90, receiver.output)
        if "--resume" in receiver.output():
            decide(there, program.pid, "--abort")
            receiver.wait()
            assert not is_live(there, program.pid)
            if not is_live(here, program.pid):
                decide(here, program.pid, "--resume")
            return lives_on(pair, program, 0, f"source killed at {state}, decided for here")
        if SOURCE_KILLED[state] == "there":
            assert not is_live(here, program.pid), "two live copies"
            status = here.check([str(hosts.CRIU), "migrate", "--status"]).output
            assert f"process {program.pid}" in status, status
            decide(here, program.pid, "--abort")
            return lives_on(pair, program, 1, f"source killed at {state}")
        return lives_on(pair, program, 0, f"source killed at {state}")


@pytest.mark.parametrize("state", without_post_copy(DESTINATION_KILLED))
def test_destination_is_killed(state, directory):
    with changing(directory, 4, 1000) as (pair, program):
        here, there = pair.hosts
        receiver = pair.receive(1, "--die-at", state)
        sent = pair.start_migrate(program.pid, 0).wait(120)
        receiver.wait()
        assert sent.status == 1 and sent.output.strip().splitlines()[-1].startswith("criu: "), sent
        if DESTINATION_KILLED[state] == "here":
            return lives_on(pair, program, 0, f"destination killed at {state}")
        # Given away, and nobody to ask: kept here, stopped.
        assert "--resume" in sent.output and "--abort" in sent.output, sent
        assert state_of(here, program.pid) == "T"
        if is_live(there, program.pid):
            assert "ran here" in there.check([str(hosts.CRIU), "migrate", "--status"]).output
            decide(here, program.pid, "--abort")
            return lives_on(pair, program, 1, f"destination killed at {state}, and it runs there")
        decide(here, program.pid, "--resume")
        return lives_on(pair, program, 0, f"destination killed at {state}, and it does not run there")


# ---- the other processes there ----

# Who is alive while `criu receive` stands at a state, besides itself: who listens (its parent), the root or who is to
# become it, and the criu that finishes the tree, which is there once it is built.
OTHERS = [(state, victim) for state in DESTINATION_KILLED if DESTINATION_KILLED[state] != "post-copy"
          for victim in ("listener", "root", "finisher")
          if not (victim == "root" and state in ("preflight", "rounds", "running"))
          if victim != "finisher" or state in ("built", "committed")]


def find_victim(host, program, receiver, session, victim):
    """The pid of it, in the host."""
    if victim == "listener":
        return receiver.pid
    if victim == "root":
        return program.pid if program.pid in host.pids() else None
    # What is neither of these is the criu that the root has forked off.
    others = host.pids() - {receiver.pid, session, program.pid}
    return next((pid for pid in others if parent_of(host, pid) == session), None)


def parent_of(host, pid):
    with contextlib.suppress(OSError):
        return int((host.proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    return None


def stopped_session(host, receiver):
    """Waits for the process of the session to stand at its state. Returns its pid."""
    return hosts.wait_until(lambda: next((pid for pid in host.pids() if parent_of(host, pid) == receiver.pid and
                                          state_of(host, pid) == "T"), None), explain=receiver.output)


@pytest.mark.parametrize("state, victim", OTHERS)
def test_other_process_is_killed(state, victim, directory):
    with changing(directory, 4, 1000) as (pair, program):
        here, there = pair.hosts
        receiver = pair.receive(1, "--die-at", f"stop-{state}")
        sender = pair.start_migrate(program.pid, 0)

        session = stopped_session(there, receiver)
        killed = find_victim(there, program, receiver, session, victim)
        assert killed, f"nobody is the {victim} at {state}: {hosts.describe(there)}"
        assert there.kill(killed)
        hosts.wait_until(lambda: not is_live(there, killed))
        assert there.kill(session, signal.SIGCONT)
        # A state may be reached in each round.
        hosts.wait_until(lambda: has_ended(sender) or
                         (state_of(there, session) == "T" and there.kill(session, signal.SIGCONT) and False))
        sent = sender.wait(120)
        when = f"{victim} killed at {state}"
        if sent.status == 0:
            assert victim == "listener" or state in ("committed", "running"), sent
            return lives_on(pair, program, 1, when)
        assert sent.output.strip().splitlines()[-1].startswith("criu: "), sent
        hosts.wait_until(lambda: session not in there.pids() or is_live(there, program.pid))
        assert not is_live(there, program.pid), "it runs there, and the source does not know it"
        if state_of(here, program.pid) == "T":
            assert state in ("committed", "running") and "--resume" in sent.output, sent
            decide(here, program.pid, "--resume")
        there.wait_empty()
        lives_on(pair, program, 0, when)


def test_tree_ends_before_the_source_knows_that_it_runs(directory):
    """It has lived there, so it is not run again here; and it was not moved."""
    with changing(directory, 4, 1000) as (pair, program):
        here, there = pair.hosts
        receiver = pair.receive(1, "--die-at", "stop-running")
        sender = pair.start_migrate(program.pid, 0)
        session = stopped_session(there, receiver)
        assert there.kill(program.pid)
        hosts.wait_until(lambda: not is_live(there, program.pid))
        assert there.kill(session, signal.SIGCONT)
        sent = sender.wait()
        assert sent.status == 1 and "has ended there, killed by signal 9" in sent.output, f"{sent}\n{receiver.output()}"
        receiver.wait()
        for host in (here, there):
            host.wait_empty()


def test_journal_that_was_not_finished():
    """criu was killed while it wrote one: it is no journal, and whoever looks at them removes it, but not one of others."""
    with hosts.Host() as host:
        host.check(["sh", "-c", "mkdir -p /run/criu && mount -t tmpfs none /run/criu"])
        namespace = os.stat(f"/proc/{host.first_pid}/ns/pid").st_ino
        of_others = {f"migration-source-0.json.{namespace:x}.1.new", f"migration-source-0.json.{namespace + 1:x}.4194303.new"}
        for name in (f"migration-source-0.json.{namespace:x}.4194303.new", *of_others):
            host.path(f"/run/criu/{name}").write_text("{")
        assert "no migration" in host.check([str(hosts.CRIU), "migrate", "--status"]).output
        assert set(os.listdir(host.path("/run/criu"))) == of_others


# ---- the link ----

class Relay:
    """Between the source and the destination, on the destination's host."""

    PORT = 7778

    def __init__(self, host, *quality):
        """@quality: delay in ms and bytes a second"""
        self.process = subprocess.Popen(
            [*host.namespace_command("net"), sys.executable, str(RELAY), f"{moving.ADDRESSES[1]}:{self.PORT}",
             f"{moving.ADDRESSES[1]}:{moving.PORT}", *map(str, quality)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.until("listening")

    def until(self, word):
        for line in self.process.stdout:
            if line.strip() == word:
                return
        raise AssertionError(f"the relay has ended before it said {word}")

    def do(self, word):
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        self.until("done")

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@contextlib.contextmanager
def relayed(directory, *arguments, quality=()):
    with changing(directory, *arguments) as (pair, program):
        relay = Relay(pair.hosts[1], *quality)
        try:
            yield pair, program, relay
        finally:
            relay.close()


SLOW = ("--bandwidth", "4M", "--compress", "none", "--connections", "1")


@pytest.mark.parametrize("fault", ["cut", "spoil"])
def test_link_while_memory_goes(fault, directory):
    with relayed(directory, 32, 1000) as (pair, program, relay):
        receiver = pair.receive(1)
        sender = pair.start_migrate(program.pid, 0, *SLOW, port=relay.PORT)
        for _ in range(2):
            relay.until("connected")
        hosts.wait_until(lambda: "comes from" in receiver.output(), explain=receiver.output)
        relay.do(fault)
        sent = sender.wait(120)
        assert sent.status == 1 and sent.output.startswith("criu: "), sent
        assert receiver.wait(120).status != 0
        lives_on(pair, program, 0, f"{fault} while memory goes")
        # The same again works.
        move(pair, program, 0)


def resident_bytes(host, pid):
    with contextlib.suppress(OSError):
        return int((host.proc / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    return 0


def test_link_is_held_while_memory_goes(directory):
    """All is connected, and nothing moves: there is no reset to see."""
    with relayed(directory, 64, 1000, quality=(0, 8 << 20)) as (pair, program, relay):
        receiver = pair.receive(1)
        sender = pair.start_migrate(program.pid, 0, "--compress", "none", "--link-timeout", "4",
                                    port=relay.PORT)
        # A part of the memory is there.
        hosts.wait_until(lambda: resident_bytes(pair.hosts[1], program.pid) > 24 << 20, explain=receiver.output)
        relay.do("hold")
        sent = sender.wait()
        assert sent.status == 1 and "has taken no memory for 4 s" in sent.output, sent
        relay.do("go")
        assert receiver.wait().status != 0
        lives_on(pair, program, 0, "held while memory goes")


@pytest.mark.parametrize("state", ["last-round", "restoring", "built"])
def test_destination_is_silent_while_the_tree_stands(state, directory):
    """It is there, and says nothing: the source goes on, and the destination lets go of all it has when it wakes up."""
    with changing(directory, 4, 1000) as (pair, program):
        receiver = pair.receive(1, "--die-at", f"stop-{state}")
        sender = pair.start_migrate(program.pid, 0, "--link-timeout", "4")
        session = stopped_session(pair.hosts[1], receiver)
        sent = sender.wait()
        assert sent.status == 1 and "does not answer" in sent.output, sent
        assert is_live(pair.hosts[0], program.pid)
        pair.hosts[1].kill(session, signal.SIGCONT)
        assert receiver.wait().status != 0
        lives_on(pair, program, 0, f"the destination was silent at {state}")


def test_destination_is_silent_after_it_was_given_the_tree(directory):
    """Only the destination knows; until it says so, the tree is kept here, stopped."""
    with changing(directory, 4, 1000) as (pair, program):
        receiver = pair.receive(1, "--die-at", "stop-committed")
        sender = pair.start_migrate(program.pid, 0, "--link-timeout", "4")
        session = stopped_session(pair.hosts[1], receiver)
        sent = sender.wait()
        assert sent.status == 1 and "--resume" in sent.output, sent
        assert state_of(pair.hosts[0], program.pid) == "T" and not is_live(pair.hosts[1], program.pid)
        pair.hosts[1].kill(session, signal.SIGCONT)
        sent = pair.start_migrate(program.pid, 0).wait()
        assert (sent.status, receiver.wait().status) == (0, 0), f"{sent}\n{receiver.output()}"
        lives_on(pair, program, 1, "silent after it was given the tree")


def at_the_door(host):
    """Sockets of the door that a session's further connections come through, with those that wait at it."""
    command = [*host.namespace_command("net"), "cat", "/proc/net/unix"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.count("@criu-receive-")


@pytest.mark.parametrize("options", [(), ("--post-copy", *SLOW)], ids=["rounds", "post-copy"])
def test_source_comes_back_before_its_end_was_seen(options, directory):
    """Both wait for a session that has not had the processor: the end of the old link, and the source with a new one."""
    with changing(directory, 4, 1000) as (pair, program):
        there = pair.hosts[1]
        receiver = pair.receive(1, "--die-at", "stop-following" if options else "stop-committed")
        sender = pair.start_migrate(program.pid, 0, *options)
        session = stopped_session(there, receiver)
        journals = lambda: pair.hosts[0].check([str(hosts.CRIU), "migrate", "--status"]).output
        hosts.wait_until(lambda: ("fetching" if options else "deciding") in journals(), explain=sender.output)
        pair.hosts[0].kill(sender.pid)
        sender.wait()
        before = at_the_door(there)
        sender = pair.start_migrate(program.pid, 0, *options)
        hosts.wait_until(lambda: at_the_door(there) > before, explain=sender.output)
        assert there.kill(session, signal.SIGCONT)
        sent = sender.wait()
        assert (sent.status, receiver.wait().status) == (0, 0), f"{sent}\n{receiver.output()}"
        assert "trying again" not in sent.output, f"{sent}\n{receiver.output()}"
        # Only the criu that stopped it could know for how long.
        assert "stopped for" not in sent.output, sent
        lives_on(pair, program, 1, "came back at once")


def test_the_link_is_away_when_the_command_is_repeated(directory):
    """It asks until the other side can be reached; that the tree runs there is never guessed."""
    with relayed(directory, 4, 1000) as (pair, program, relay):
        receiver = pair.receive(1)
        killed = pair.start_migrate(program.pid, 0, "--die-at", "committed", port=relay.PORT).wait()
        assert killed.status in (-9, 137), killed
        relay.do("cut")
        sender = pair.start_migrate(program.pid, 0, port=relay.PORT)
        hosts.wait_until(lambda: "trying again" in sender.output() or has_ended(sender), explain=sender.output)
        relay.do("mend")
        sent = sender.wait()
        assert (sent.status, receiver.wait().status) == (0, 0), f"{sent}\n{receiver.output()}"
        lives_on(pair, program, 1, "the link came back")


@pytest.mark.parametrize("options", [(), ("--post-copy",), ("--compress", "zstd", "--connections", "4")])
def test_long_and_narrow_link(options, directory):
    """20 ms one way, 16 MB a second for all connections together."""
    with relayed(directory, 16, 1000, quality=(20, 16 << 20)) as (pair, program, relay):
        receiver = pair.receive(1)
        sent = pair.start_migrate(program.pid, 0, "--timeout", "60", "--at-timeout", "stop-and-copy", *options,
                                  port=relay.PORT).wait(120)
        assert (sent.status, receiver.wait(120).status) == (0, 0), f"{sent}\n{receiver.output()}"
        lives_on(pair, program, 1, f"over a long way with {options}")


def test_cancelled(directory):
    for number in (signal.SIGINT, signal.SIGTERM):
        path = directory / str(int(number))
        path.mkdir()
        with changing(path, 32, 1000) as (pair, program):
            receiver = pair.receive(1)
            sender = pair.start_migrate(program.pid, 0, *SLOW)
            hosts.wait_until(lambda: "comes from" in receiver.output(), explain=receiver.output)
            pair.hosts[0].kill(sender.pid, number)
            sent = sender.wait()
            assert sent.status != 0 and "criu: " in sent.output, sent
            assert receiver.wait().status != 0
            lives_on(pair, program, 0, f"cancelled by {number.name}")


def test_no_room_there(directory):
    """The destination's memory ends while pages come."""
    with changing(directory, 256, 1000) as (pair, program):
        receiver = pair.hosts[1].start(
            None, shell=f"prlimit --as=$((90 << 20)) {hosts.CRIU} receive --listen {moving.ADDRESSES[1]}:{moving.PORT} "
                        "--insecure --once")
        hosts.wait_until(lambda: "waiting for trees" in receiver.output(), explain=receiver.output)
        sent = pair.start_migrate(program.pid, 0).wait()
        received = receiver.wait()
        assert (sent.status, received.status) == (1, 1) and "criu: destination: " in sent.output, f"{sent}\n{received}"
        lives_on(pair, program, 0, "no memory at the destination")


KEEPER = "import signal; file = open('/mnt/data', 'r+'); print('up', flush=True); signal.pause()"


def test_full_disk_there():
    """A file that is to be sent has no room: told by name, nothing of it stays, and the program runs on here."""
    with moving.pair() as pair:
        for host, size in zip(pair.hosts, ("64m", "1m")):
            host.check(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", "/mnt"])
        pair.hosts[0].check(["sh", "-c", "head -c 8000000 /dev/urandom >/mnt/data"])
        process = pair.hosts[0].start(["/usr/bin/python3", "-c", KEEPER])
        process.wait_said("up")
        sent, received = pair.migrate(process.pid, 0, "--send-files")
        assert (sent.status, received.status) == (1, 1) and "/mnt/data" in sent.output, f"{sent}\n{received}"
        assert "space" in sent.output, sent
        assert state_of(pair.hosts[0], process.pid) == "S"
        pair.hosts[1].wait_empty()
        assert not os.listdir(pair.hosts[1].path("/mnt")), "what has arrived stays"


MEMORY_GROUPS = pathlib.Path("/sys/fs/cgroup/memory")


def test_killed_for_memory_there(directory):
    """The kernel ends who takes too much: no call fails, a process is gone."""
    if not (MEMORY_GROUPS / "memory.limit_in_bytes").exists():
        pytest.skip("no memory control groups of version 1")
    group = MEMORY_GROUPS / f"criu-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(64 << 20))
        with changing(directory, 256, 1000) as (pair, program):
            receiver = pair.hosts[1].start(
                None, shell=f"sh -c 'echo 0 > {group}/cgroup.procs && exec {hosts.CRIU} receive --insecure --once "
                            f"--listen {moving.ADDRESSES[1]}:{moving.PORT}'")
            hosts.wait_until(lambda: "waiting for trees" in receiver.output(), explain=receiver.output)
            sent = pair.start_migrate(program.pid, 0).wait()
            assert sent.status == 1 and "criu: " in sent.output, f"{sent}\n{receiver.output()}"
            assert receiver.wait().status != 0
            pair.hosts[1].wait_empty()
            lives_on(pair, program, 0, "killed for memory at the destination")
    finally:
        hosts.wait_until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


# ---- peers ----

GARBAGE = [b"", b"\0" * 4096, b"\xff" * 4096, b"GET / HTTP/1.1\r\n\r\n", os.urandom(65536)]


def test_source_meets_garbage(directory):
    with changing(directory, 4, 1000) as (pair, program):
        with network.socket_in(pair.hosts[1]) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((moving.ADDRESSES[1], moving.PORT))
            server.listen()

            def answer(garbage):
                with server.accept()[0] as one, contextlib.suppress(OSError):
                    one.sendall(garbage)
                    one.shutdown(socket.SHUT_WR)
            for garbage in GARBAGE:
                thread = threading.Thread(target=answer, args=(garbage,))
                thread.start()
                sent = pair.start_migrate(program.pid, 0).wait()
                thread.join()
                assert sent.status == 1 and sent.output.startswith("criu: "), sent
        sent = pair.start_migrate(program.pid, 0).wait()
        assert sent.status == 1 and "refused" in sent.output, sent
        lives_on(pair, program, 0, "garbage from the destination")


def test_destination_meets_garbage(directory):
    with changing(directory, 4, 1000) as (pair, program):
        receiver = pair.hosts[1].start([str(hosts.CRIU), "receive", "--insecure", "--listen",
                                        f"{moving.ADDRESSES[1]}:{moving.PORT}"])
        hosts.wait_until(lambda: "waiting for trees" in receiver.output(), explain=receiver.output)
        for garbage in GARBAGE:
            with network.socket_in(pair.hosts[0]) as client, contextlib.suppress(OSError):
                client.settimeout(hosts.COMMAND_SECONDS)
                client.connect((moving.ADDRESSES[1], moving.PORT))
                client.sendall(garbage)
                client.shutdown(socket.SHUT_WR)
                while client.recv(4096):
                    pass
        sent = pair.start_migrate(program.pid, 0).wait()
        assert sent.status == 0, f"{sent}\n{receiver.output()}"
        program.host = pair.hosts[1]
        program.check("after garbage")
        pair.hosts[0].wait_empty()
