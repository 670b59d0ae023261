# SPDX-License-Identifier: Apache-2.0
"""Memory that changes all the time while it is moved (every_byte.c): after each move every byte is looked at."""
import contextlib
import json
import os
import signal

import pytest

import moving
from program import Program

import hosts

EVERY_BYTE = hosts.BUILD / "tests" / "flows" / "migrate" / "every_byte"


@contextlib.contextmanager
def changing(directory, *arguments):
    """(pair, program)"""
    with moving.pair() as pair:
        program = Program(pair.hosts[0], directory, EVERY_BYTE, list(map(str, arguments)))
        try:
            program.check("before any move")
            yield pair, program
        finally:
            program.close()


def move(pair, program, here, *options, **keywords):
    result = pair.move(program.pid, here, *options, **keywords)
    program.host = pair.hosts[1 - here]
    program.check(f"after the move from host {here} with {' '.join(options) or 'no options'}")
    pair.hosts[here].wait_empty()
    return result


@pytest.mark.parametrize("connections", ["1", "4"])
@pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_every_byte(directory, connections, codec, tls):
    with changing(directory) as (pair, program):
        if tls:
            pair.key = directory / "key"
            pair.key.write_text("a secret that is long enough for everybody\n")
            os.chmod(pair.key, 0o600)
        options = ["--connections", connections, "--compress", codec]
        for here in (0, 1):
            move(pair, program, here, *options, receive_options=options)


def test_ten_times(directory):
    with changing(directory, 32) as (pair, program):
        for number in range(10):
            move(pair, program, number % 2)


SHARED = '''
import hashlib, mmap, os, signal
memory = mmap.mmap(-1, 32 << 20)
memory[:] = os.urandom(32 << 20)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
while True:
    print(hashlib.sha256(memory).hexdigest(), flush=True)
    signal.sigwait([signal.SIGUSR1])
    memory[:5] = b"again"
'''


def test_shared_memory_is_sent_in_rounds(directory):
    """The last round looks at all of it, and sends what has changed since the rounds before."""
    output = directory / "output"
    lines = lambda: output.read_text().splitlines() if output.exists() else []
    with moving.pair() as pair:
        pid = pair.hosts[0].start(["/usr/bin/python3", "-c", SHARED], output=output).pid
        hosts.wait_until(lambda: len(lines()) == 1)
        for number in range(2):
            result = pair.move(pid, number, "--json", "--compress", "none")
            done = next(event for event in map(json.loads, result.output.splitlines()) if event["event"] == "done")
            assert done["memory_bytes"] >= 32 << 20 and done["last_bytes"] < 8 << 20, done
            before = lines()
            assert pair.hosts[1 - number].kill(pid, signal.SIGUSR1)
            hosts.wait_until(lambda: len(lines()) > len(before))
            assert (lines()[-1] == before[-1]) == (number > 0), lines()


def test_forks_and_mappings_that_grow(directory):
    with changing(directory, 16, 100, "wild") as (pair, program):
        for number in range(6):
            move(pair, program, number % 2)


def test_rounds_and_a_long_stop(directory):
    """Nothing is sent before the stop, and almost everything is: both are right."""
    with changing(directory, 32, 1000) as (pair, program):
        move(pair, program, 0, "--downtime", "5000")
        move(pair, program, 1, "--downtime", "1", "--timeout", "3", "--at-timeout", "stop-and-copy")


def test_faster_than_the_link(directory):
    """A tree that changes more than the link takes is told so, and runs on."""
    with changing(directory, 64, 0) as (pair, program):
        slow = ["--bandwidth", "8M", "--compress", "none", "--downtime", "20", "--timeout", "4"]
        sent, _ = pair.migrate(program.pid, 0, *slow)
        assert sent.status != 0 and "faster than it can be sent" in sent.output, sent
        program.check("after a move that was given up")
        pair.hosts[1].wait_empty()


def test_slowed_down_or_stopped(directory):
    with changing(directory, 64, 0) as (pair, program):
        slow = ["--bandwidth", "16M", "--compress", "none", "--downtime", "20", "--timeout", "3"]
        move(pair, program, 0, *slow, "--at-timeout", "stop-and-copy")
        move(pair, program, 1, *slow, "--throttle", "--at-timeout", "stop-and-copy")
