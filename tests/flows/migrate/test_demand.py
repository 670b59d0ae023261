# SPDX-License-Identifier: Apache-2.0
"""Memory that follows, and who asks for it: a destination that took the tree and then asks for what it may not have, and
strangers at a destination that waits for memory. The stopped copy stays whole, and nobody is given anything else."""
import contextlib
import re
import socket
import struct
import threading

import pytest

import hostile
import moving
import network
from hostile import PAGE, decode, encode, frame
from test_faults import decide, lives_on, state_of
from test_memory import changing
from test_post_copy import SLOW, arrived, following

import hosts

DEMAND = 1  # the role of a connection
PROCESS, SHARED = 1, 2
HEADER = struct.Struct("<IHHIIQIIQQ")


class Taker(threading.Thread):
    """A destination that does all it should, until the tree is its own. What it does then is the test's business: `demand`
    are the connections that memory can be asked for on, by their order."""

    def __init__(self, host, connections):
        super().__init__()
        self.connections = connections
        self.server = network.socket_in(host)
        self.server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.server.bind((moving.ADDRESSES[1], moving.PORT))
        self.server.listen()
        self.server.settimeout(2 * hosts.COMMAND_SECONDS)
        self.links, self.demand, self.helpers = [], [], []
        self.counted, self.wanted = [0, 0, 0], 0
        self.failure, self.taken = None, threading.Event()

    def accept(self):
        link = hostile.Link(self.server.accept()[0])
        self.links.append(link)
        link.read(32)
        return link

    def accept_join(self):
        link = self.accept()
        link.send(hostile.JOIN_ANSWER, encode((1, decode(link.until(hostile.JOIN))[2])))
        return link

    def take_pages(self, link):
        """Counts, and says at each barrier that all is in place."""
        sent = 0
        with contextlib.suppress(EOFError, OSError):
            while True:
                _, kind, _, _, _, _, pages, payload, _, sequence = HEADER.unpack(link.read(HEADER.size))
                link.read(payload)
                if kind in (hostile.PAGES, hostile.ZERO, hostile.DROP):
                    self.counted[kind - hostile.PAGES] += pages
                if kind == hostile.BARRIER:
                    link.socket.sendall(frame(hostile.ACK, address=sequence, sequence=sent))
                    sent += 1

    def run(self):
        try:
            self.take()
        except (OSError, EOFError) as error:
            self.failure = error
        self.taken.set()

    def take(self):
        self.control = self.accept()
        while True:
            kind, body = self.control.receive()
            if kind == hostile.HELLO:
                self.control.send(hostile.HELLO_ANSWER, encode((1, 1), (2, "1"), (3, 15), (4, self.connections), (5, 1),
                                                               (6, "x"), (7, "")))
                for _ in range(self.connections):
                    self.helpers.append(threading.Thread(target=self.take_pages, args=(self.accept_join(),)))
                    self.helpers[-1].start()
            elif kind == hostile.PREFLIGHT_REQUEST:
                self.control.send(hostile.PREFLIGHT_ANSWER)
            elif kind == hostile.TREE:
                self.control.send(hostile.PROGRESS, encode((1, 0), (2, 0)))
                while len(self.demand) < self.connections + 1:
                    self.demand.append(self.accept_join())
            elif kind == hostile.ROUND_END:
                self.control.send(hostile.ROUND_ACK, encode((1, decode(body)[1]), *zip((2, 3, 4), self.counted)))
            elif kind == hostile.IMAGES_END:
                self.control.send(hostile.READY, encode((1, 1)))
            elif kind == hostile.COMMIT:
                self.control.send(hostile.RUNNING, encode((1, 1), (2, 300)))
                return
            elif kind == hostile.ABORT:
                raise EOFError(body)

    def close(self):
        """All links at once, and nobody listens any more."""
        self.server.close()
        for link in self.links:
            with contextlib.suppress(OSError):
                link.socket.shutdown(socket.SHUT_RDWR)
        for thread in self.helpers:
            thread.join()
        for link in self.links:
            link.close()


class Demand:
    """A connection that memory is asked for on."""

    def __init__(self, link):
        self.link, self.sent, self.received = link, 0, 0

    def ask(self, kind=hostile.REQUEST, **what):
        self.link.socket.sendall(frame(kind, sequence=what.pop("sequence", self.sent), **what))
        self.sent += 1

    def answer(self):
        """(address, pages, bytes)"""
        magic, kind, codec, _, _, address, pages, payload, _, sequence = HEADER.unpack(self.link.read(HEADER.size))
        assert (magic, codec, sequence) == (0x4d524643, 0, self.received)
        self.received += 1
        return address, pages, self.link.read(payload) if kind == hostile.PAGES else bytes(pages * PAGE)

    def is_refused(self):
        """It ends, and not a byte came."""
        with contextlib.suppress(ConnectionResetError):
            return self.link.socket.recv(1) == b""
        return True


@contextlib.contextmanager
def taken(directory, connections=1):
    """(pair, program, taker, sender): the tree is stopped here, and was given to the taker."""
    with changing(directory, 4, 1000) as (pair, program):
        taker = Taker(pair.hosts[1], connections)
        taker.start()
        sender = pair.start_migrate(program.pid, 0, "--connections", connections, "--post-copy", "--link-timeout", 1)
        try:
            taker.taken.wait(2 * hosts.COMMAND_SECONDS)
            assert not taker.failure, f"{taker.failure}\n{sender.output()}"
            hosts.wait_until(lambda: state_of(pair.hosts[0], program.pid) == "T", explain=sender.output)
            yield pair, program, taker, sender
        finally:
            taker.close()
            taker.join()


def memory_of(host, pid, size):
    """(address, bytes) of the beginning of the first private writable mapping that is that large."""
    directory = host.proc / str(pid)
    for line in (directory / "maps").read_text().splitlines():
        start, end = (int(number, 16) for number in re.match("([0-9a-f]+)-([0-9a-f]+) rw-p", line).groups()) \
            if " rw-p " in line else (0, 0)
        if end - start >= size:
            with open(directory / "mem", "rb") as memory:
                memory.seek(start)
                return start, memory.read(size)
    raise AssertionError("no such mapping")


def decided_for_here(pair, program, taker, sender, when):
    """The other side is gone for good: nothing was lost here, and a person lets it run on."""
    taker.close()
    sent = sender.wait()
    assert sent.status == 1 and "repeat the same command" in sent.output, sent
    assert state_of(pair.hosts[0], program.pid) == "T"
    decide(pair.hosts[0], program.pid, "--resume")
    lives_on(pair, program, 0, when)


def test_what_may_be_asked_for(directory):
    """On any connection, as often as one likes: nobody remembers what was given."""
    with taken(directory) as (pair, program, taker, sender):
        size = 8 * PAGE
        address, expected = memory_of(pair.hosts[0], program.pid, size)
        for link in taker.demand:
            demand = Demand(link)
            for _ in range(3):
                demand.ask(space=PROCESS, space_id=program.pid, address=address, pages=8)
                assert demand.answer() == (address, 8, expected)
        decided_for_here(pair, program, taker, sender, "after its memory was looked at")


# What of a good request is changed. A migration has at most 16 connections.
LIES = {
    "process of others": {"space_id": 1},
    "process that does not exist": {"space_id": 4194303},
    "shared memory": {"space": SHARED},
    "memory of no kind": {"space": 9},
    "address of nothing": {"address": PAGE},
    "address of the kernel": {"address": 0xffffffff80000000},
    "end of the address space": {"address": (1 << 47) - 2 * PAGE},
    "address within a page": {"address": 0x1001},
    "too many pages": {"pages": 257},
    "no pages": {"pages": 0},
    "something with a payload": {"payload": PAGE},
    "out of its turn": {"sequence": 7},
    "no magic": {"magic": 1},
    "pages that it brings": {"kind": hostile.PAGES, "payload": PAGE},
    "zeros that it brings": {"kind": hostile.ZERO},
    "message of no kind": {"kind": 99},
}


def test_what_may_not_be_asked_for(directory):
    """Whoever does is cut off, and the others are served."""
    with taken(directory, len(LIES)) as (pair, program, taker, sender):
        address, expected = memory_of(pair.hosts[0], program.pid, PAGE)
        honest = Demand(taker.demand[0])
        for link, (lie, fields) in zip(taker.demand[1:], LIES.items()):
            liar = Demand(link)
            liar.ask(**{"space": PROCESS, "space_id": program.pid, "address": address, "pages": 1, **fields})
            assert liar.is_refused(), lie
            honest.ask(space=PROCESS, space_id=program.pid, address=address, pages=1)
            assert honest.answer() == (address, 1, expected), lie
        decided_for_here(pair, program, taker, sender, "lied to")


def test_what_lies_behind_a_mapping_is_not_given(directory):
    """Fewer pages than asked for are right."""
    with taken(directory) as (pair, program, taker, sender):
        maps = (pair.hosts[0].proc / str(program.pid) / "maps").read_text()
        end = int(re.search("-([0-9a-f]+) .*\\[stack\\]", maps).group(1), 16)
        demand = Demand(taker.demand[0])
        demand.ask(space=PROCESS, space_id=program.pid, address=end - PAGE, pages=16)
        address, pages, _ = demand.answer()
        assert (address, pages) == (end - PAGE, 1)
        decided_for_here(pair, program, taker, sender, "asked for more than there is")


@pytest.mark.parametrize("message", [(hostile.READY, encode((1, 1))), (hostile.RUNNING, encode((1, 1), (2, 300))),
                                     (hostile.ROUND_ACK, encode((1, 1), (2, 0), (3, 0), (4, 0))),
                                     (hostile.SESSION_STATUS, encode((1, 8), (2, 1), (3, 0))),
                                     (hostile.HELLO_ANSWER, b""), (77, b"")],
                         ids=["ready", "running", "round", "status", "hello", "nothing"])
def test_message_out_of_its_state(message, directory):
    """While memory follows the other side can say only that it has it."""
    with taken(directory) as (pair, program, taker, sender):
        hosts.wait_until(lambda: "fetching" in pair.hosts[0].check([str(hosts.CRIU), "migrate", "--status"]).output)
        taker.control.send(*message)
        # It comes back, and finds nobody.
        taker.server.close()
        decided_for_here(pair, program, taker, sender, "a message out of its state")


def test_strangers_while_memory_follows(directory):
    """They know the public id of the session, and cannot prove that they belong to it."""
    with changing(directory, 16, 1000) as (pair, program):
        receiver = pair.receive(1)
        sender = pair.start_migrate(program.pid, 0, *SLOW)
        following(pair, program, receiver)
        names = pair.hosts[1].check(["ls", "/run/criu"]).output
        with contextlib.closing(hostile.Source(pair)) as stranger:
            for role in (0, DEMAND):
                stranger.id = bytes.fromhex(re.search("[0-9a-f]{32}", names).group(0))
                with pytest.raises((EOFError, ConnectionError)):
                    stranger.join(0, role).until(hostile.JOIN_ANSWER)
            with pytest.raises((EOFError, ConnectionError)):
                stranger.hello(resume=True)
                stranger.control.until(hostile.SESSION_STATUS)
            stranger.id = bytes(16)
            with pytest.raises((EOFError, ConnectionError)):
                stranger.join(0, DEMAND).until(hostile.JOIN_ANSWER)
        sent = sender.wait()
        assert (sent.status, receiver.wait().status) == (0, 0), f"{sent}\n{receiver.output()}"
        arrived(pair, program, "strangers knocked")
