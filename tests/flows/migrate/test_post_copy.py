# SPDX-License-Identifier: Apache-2.0
"""A tree that runs on the other side before its memory is there (every_byte.c looks at every byte)."""
import json
import os
import signal

import pytest

import moving
from program import Program
from test_faults import (DESTINATION_KILLED, SOURCE_KILLED, decide, has_ended, is_live, lives_on, relayed, resident_bytes,
                         state_of, stopped_session)
from test_memory import changing, move

import hosts


@pytest.mark.parametrize("connections", ["1", "4"])
@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_every_byte(directory, connections, codec, tls):
    with changing(directory) as (pair, program):
        if tls:
            pair.key = directory / "key"
            pair.key.write_text("a secret that is long enough for everybody\n")
            os.chmod(pair.key, 0o600)
        options = ["--connections", connections, "--compress", codec]
        for here in (0, 1):
            move(pair, program, here, "--post-copy", *options, receive_options=options)


def test_after_rounds(directory):
    """Changed faster than it can be sent: what the rounds have brought stays, and the rest follows."""
    with changing(directory, 64, 0) as (pair, program):
        for here in (0, 1):
            move(pair, program, here, "--bandwidth", "32M", "--compress", "none", "--downtime", "1", "--timeout", "60",
                 "--at-timeout", "post-copy")


def test_forks_and_mappings_that_grow(directory):
    """While memory follows, the program forks, moves mappings and gives pages back."""
    with changing(directory, 16, 100, "wild") as (pair, program):
        for number in range(4):
            move(pair, program, number % 2, "--post-copy", "--bandwidth", "32M", "--compress", "none")


def test_kinds_of_both_are_told(directory):
    """What came before the tree ran there, and what followed."""
    with changing(directory, 32, 1000) as (pair, program):
        result = move(pair, program, 0, "--post-copy", "--json")
        done = next(event for event in map(json.loads, result.output.splitlines()) if event["event"] == "done")
        assert done["follow_bytes"] >= 16 << 20 > done["memory_bytes"], done


# ---- faults ----

# So slow that the memory is still on its way when the fault comes.
SLOW = ("--post-copy", "--bandwidth", "4M", "--compress", "none", "--connections", "1")


def following(pair, program, receiver):
    """Waits until the tree runs there. Nothing of it may run here, and nothing be lost."""
    hosts.wait_until(lambda: "runs here" in receiver.output(), explain=receiver.output)
    assert state_of(pair.hosts[0], program.pid) == "T"


def arrived(pair, program, when):
    lives_on(pair, program, 1, when)
    for host in pair.hosts:
        assert "no migration" in host.check([str(hosts.CRIU), "migrate", "--status"]).output
        assert not host.check(["sh", "-c", "ls /run/criu"]).output.strip(), "something stays in /run/criu"
    # The same again works.
    move(pair, program, 1)


# With --post-copy alone these come to nothing: there are no rounds.
NO_ROUNDS = {"round", "between"}


def states(killed):
    return [state for state in killed if state not in NO_ROUNDS]


@pytest.mark.parametrize("state", states(SOURCE_KILLED))
def test_source_is_killed(state, directory):
    with changing(directory, 16, 1000) as (pair, program):
        here, there = pair.hosts
        receiver = pair.receive(1)
        killed = pair.start_migrate(program.pid, 0, *SLOW, "--die-at", state).wait()
        assert killed.status in (-9, 137), f"{state} was not reached: {killed}"
        if state == "connecting":
            there.kill(receiver.pid)
        hosts.wait_until(lambda: "--resume" in receiver.output() or "repeat" in receiver.output() or
                         has_ended(receiver), 90, receiver.output)
        if state in ("deciding", "committed", "running", "following"):
            assert state_of(here, program.pid) == "T"
            assert "repeat the command" in here.check([str(hosts.CRIU), "migrate", "--status"]).output
            sent = pair.start_migrate(program.pid, 0, *SLOW).wait()
            assert (sent.status, receiver.wait().status) == (0, 0), f"{sent}\n{receiver.output()}"
            return arrived(pair, program, f"source killed at {state}, and repeated")
        if "--resume" in receiver.output():
            assert SOURCE_KILLED[state] == "here or decide"
            decide(there, program.pid, "--abort")
            receiver.wait()
        return lives_on(pair, program, 0, f"source killed at {state}")


@pytest.mark.parametrize("state", states(DESTINATION_KILLED))
def test_destination_is_killed(state, directory):
    with changing(directory, 16, 1000) as (pair, program):
        here, there = pair.hosts
        receiver = pair.receive(1, "--die-at", state)
        sender = pair.start_migrate(program.pid, 0, *SLOW)
        receiver.wait()
        if DESTINATION_KILLED[state] == "here":
            sent = sender.wait(120)
            assert sent.status == 1 and sent.output.strip().splitlines()[-1].startswith("criu: "), sent
            assert "no migration" in there.check([str(hosts.CRIU), "migrate", "--status"]).output
            assert not there.check(["sh", "-c", "ls /run/criu"]).output.strip(), "something stays in /run/criu"
            return lives_on(pair, program, 0, f"destination killed at {state}")
        assert state_of(here, program.pid) == "T"
        if state == "committed":
            # It had not begun to run, and ended with its criu.
            sender.wait(120)
            decide(here, program.pid, "--resume")
            return lives_on(pair, program, 0, f"destination killed at {state}, decided for here")
        # The source looks for it all the time.
        receiver = pair.receive(1)
        sent = sender.wait()
        assert (sent.status, receiver.wait().status) == (0, 0), f"{sent}\n{receiver.output()}"
        return arrived(pair, program, f"destination killed at {state}, and started again")


@pytest.mark.parametrize("fault", ["cut", "spoil"])
def test_link_while_memory_follows(fault, directory):
    """The source comes back by itself."""
    with relayed(directory, 32, 1000) as (pair, program, relay):
        receiver = pair.receive(1)
        sender = pair.start_migrate(program.pid, 0, *SLOW, "--json", port=relay.PORT)
        following(pair, program, receiver)
        # What goes next is memory, or a request for it.
        hosts.wait_until(lambda: '"running"' in sender.output(), explain=sender.output)
        relay.do(fault)
        hosts.wait_until(lambda: "repeat" in receiver.output(), explain=receiver.output)
        relay.do("mend")
        sent = sender.wait()
        assert (sent.status, receiver.wait().status) == (0, 0), f"{sent}\n{receiver.output()}"
        arrived(pair, program, f"{fault} while memory follows")


@pytest.mark.parametrize("killed", [False, True], ids=["link", "destination"])
def test_what_has_arrived_is_not_sent_again(killed, directory):
    with relayed(directory, 32, 1000) as (pair, program, relay):
        receiver = pair.receive(1)
        sender = pair.start_migrate(program.pid, 0, *SLOW, "--json", port=relay.PORT)
        following(pair, program, receiver)
        before = resident_bytes(pair.hosts[1], program.pid)
        hosts.wait_until(lambda: resident_bytes(pair.hosts[1], program.pid) > before + (20 << 20),
                         explain=receiver.output)
        if killed:
            for pid in pair.hosts[1].pids() - {program.pid, *pair.guards(1)}:
                pair.hosts[1].kill(pid)
            hosts.wait_until(lambda: has_ended(receiver))
            receiver = pair.receive(1)
        else:
            relay.do("cut")
            hosts.wait_until(lambda: "repeat" in receiver.output(), explain=receiver.output)
            relay.do("mend")
        sent = sender.wait()
        assert (sent.status, receiver.wait().status) == (0, 0), f"{sent}\n{receiver.output()}"
        events = [json.loads(line) for line in sent.output.splitlines() if line.startswith("{")]
        done = next(event for event in events if event["event"] == "done")
        # What was on its way comes twice, and no more; some of the 32 MiB are zeros.
        assert 20 << 20 <= done["follow_bytes"] < 33 << 20, done
        arrived(pair, program, "went on where it was")


def test_one_connection_breaks_before_the_tree_is_given(directory):
    """The others hold, so nobody is told: the source must not wait for an answer that cannot come."""
    with relayed(directory, 16, 1000) as (pair, program, relay):
        receiver = pair.receive(1, "--die-at", "stop-built")
        sender = pair.start_migrate(program.pid, 0, *SLOW, port=relay.PORT)
        session = stopped_session(pair.hosts[1], receiver)
        relay.do("cut-last")
        pair.hosts[1].kill(session, signal.SIGCONT)
        sent = sender.wait()
        assert (sent.status, receiver.wait().status) == (0, 0), f"{sent}\n{receiver.output()}"
        arrived(pair, program, "one connection broke")


def test_cancelled_while_memory_follows(directory):
    """Nothing is lost: the tree waits until the command is given again."""
    with changing(directory, 32, 1000) as (pair, program):
        receiver = pair.receive(1)
        sender = pair.start_migrate(program.pid, 0, *SLOW)
        following(pair, program, receiver)
        hosts.wait_until(lambda: "fetching" in pair.hosts[0].check(
            [str(hosts.CRIU), "migrate", "--status"]).output)
        pair.hosts[0].kill(sender.pid, signal.SIGINT)
        sent = sender.wait()
        assert sent.status == 1 and "repeat the same command" in sent.output, sent
        assert state_of(pair.hosts[0], program.pid) == "T"
        refused = pair.hosts[1].run([str(hosts.CRIU), "migrate", "--tree", str(program.pid), "--resume"])
        assert refused.status == 1 and "waits for its memory" in refused.output, refused
        sent = pair.start_migrate(program.pid, 0, *SLOW).wait()
        assert (sent.status, receiver.wait().status) == (0, 0), f"{sent}\n{receiver.output()}"
        arrived(pair, program, "cancelled and given again")


def test_mappings_are_cut(directory):
    """Pages that were asked for at once belong to many mappings when they come."""
    with moving.pair() as pair:
        program = Program(pair.hosts[0], directory, hosts.BUILD / "tests" / "flows" / "migrate" / "cut_mappings")
        try:
            receiver = pair.receive(1)
            sender = pair.start_migrate(program.pid, 0, *SLOW)
            following(pair, program, receiver)
            program.host = pair.hosts[1]
            program.check("while memory follows")
            sent = sender.wait()
            assert (sent.status, receiver.wait().status) == (0, 0), f"{sent}\n{receiver.output()}"
            program.check("when all is there")
        finally:
            program.close()


def ended_there(pair, sender, receiver, how):
    """What has run there must not begin again here, and was not moved."""
    sent = sender.wait()
    assert sent.status == 1 and "has ended there" in sent.output and how in sent.output, f"{sent}\n{receiver.output()}"
    received = receiver.wait()
    assert received.status == 0 and "has ended here" in received.output, received
    for host in pair.hosts:
        host.wait_empty()
        assert not host.check(["sh", "-c", "ls /run/criu"]).output.strip(), "something stays in /run/criu"


@pytest.mark.parametrize("way", ["exits", "killed", "killed before its source knows"])
def test_ends_while_memory_follows(way, directory):
    with changing(directory, 16, 1000) as (pair, program):
        early = way == "killed before its source knows"
        receiver = pair.receive(1, *(["--die-at", "stop-running"] if early else []))
        sender = pair.start_migrate(program.pid, 0, *SLOW)
        if early:
            session = stopped_session(pair.hosts[1], receiver)
        else:
            following(pair, program, receiver)
        if way == "exits":
            program.quit()
        else:
            pair.hosts[1].kill(program.pid)
        if early:
            hosts.wait_until(lambda: not is_live(pair.hosts[1], program.pid))
            pair.hosts[1].kill(session, signal.SIGCONT)
        ended_there(pair, sender, receiver, "with status 0" if way == "exits" else "killed by signal 9")


def test_guard_is_killed(directory):
    """The one who brings the memory makes another one."""
    with changing(directory, 32, 1000) as (pair, program):
        receiver = pair.receive(1)
        sender = pair.start_migrate(program.pid, 0, *SLOW)
        following(pair, program, receiver)
        there = pair.hosts[1]
        assert len(pair.guards(1)) == 1
        there.kill(pair.guards(1)[0])
        sent = sender.wait()
        assert (sent.status, receiver.wait().status) == (0, 0), f"{sent}\n{receiver.output()}"
        arrived(pair, program, "guard killed")
