# SPDX-License-Identifier: Apache-2.0
"""A source that gives the tree away, and then lies about the memory that follows. The tree has begun to run, so it is kept:
it waits for what is true, whoever lied is told in one line, and the real source, which comes back, brings the rest."""
import contextlib
import socket
import struct
import threading

import pytest

import hostile
import moving
import network
from hostile import PAGE, decode, encode
from test_demand import DEMAND, HEADER
from test_faults import has_ended, lives_on
from test_memory import changing
from test_post_copy import SLOW, arrived, following

import hosts

PORT = 7779
MORE = 2
# Of a frame's header, as it is unpacked.
KIND, CODEC, SPACE, ID, ADDRESS, PAGES, PAYLOAD, CHECKSUM, SEQUENCE = range(1, 10)


class Liar(threading.Thread):
    """Between a source and its destination: honest, but for one answer, or one thing that it says on the control link."""

    def __init__(self, host, lie):
        super().__init__()
        self.host, self.lie, self.lock = host, lie, threading.Lock()
        self.server = self.listen(host)
        self.sockets, self.threads = [], []
        self.armed, self.lied = threading.Event(), threading.Event()
        self.control = None

    @staticmethod
    def listen(host):
        server = network.socket_in(host)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((moving.ADDRESSES[1], PORT))
        server.listen()
        return server

    def run(self):
        with contextlib.suppress(OSError):
            while True:
                self.start_thread(self.begin, self.server.accept()[0])

    def start_thread(self, target, *arguments):
        thread = threading.Thread(target=self.guard, args=(target, *arguments))
        self.threads.append(thread)
        thread.start()

    @staticmethod
    def guard(target, *arguments):
        """Whatever ends a connection ends both of its sides."""
        with contextlib.suppress(OSError, EOFError):
            target(*arguments)
        for one in arguments:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def begin(self, source):
        there = network.socket_in(self.host)
        self.sockets += [source, there]
        there.connect((moving.ADDRESSES[1], moving.PORT))
        link = hostile.Link(source)
        source.settimeout(None)
        preamble = link.read(32)
        there.sendall(preamble)
        self.start_thread(self.copy, there, source)
        if preamble[8] != MORE:
            self.control = there
            return self.copy(source, there)
        kind, body = link.receive()
        there.sendall(struct.pack("<II", len(body), kind) + body)
        if decode(body).get(3) != DEMAND:
            return self.copy(source, there)
        while True:
            fields = list(HEADER.unpack(link.read(HEADER.size)))
            self.answer(there, fields, link.read(fields[PAYLOAD]))

    def answer(self, there, fields, payload):
        with self.lock:
            lies = self.armed.is_set() and not self.lied.is_set()
            if lies:
                self.lied.set()
        if lies:
            return self.lie(self, there, fields, payload)
        return there.sendall(HEADER.pack(*fields) + payload)

    @staticmethod
    def copy(one, other):
        while data := one.recv(1 << 16):
            other.sendall(data)

    def cut(self):
        for one in self.sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.server.shutdown(socket.SHUT_RDWR)
        self.join()
        self.cut()
        for thread in self.threads:
            thread.join()
        for one in [self.server, *self.sockets]:
            one.close()


def says(*changes, payload=None):
    """The answer, with other fields."""
    def lie(liar, there, fields, data):
        for field, value in changes:
            fields[field] = value(fields[field]) if callable(value) else value
        there.sendall(HEADER.pack(*fields) + (data if payload is None else payload))
    return lie


def zeros(*changes):
    """An answer that needs no payload."""
    return says((KIND, hostile.ZERO), (CODEC, 0), (PAYLOAD, 0), (CHECKSUM, 0), *changes, payload=b"")


def twice(liar, there, fields, data):
    there.sendall(HEADER.pack(*fields) + data)
    fields[SEQUENCE] += 1
    there.sendall(HEADER.pack(*fields) + data)


def half(liar, there, fields, data):
    there.sendall((HEADER.pack(*fields) + data)[:HEADER.size // 2])
    there.shutdown(socket.SHUT_RDWR)


def half_and_cut(liar, there, fields, data):
    there.sendall((HEADER.pack(*fields) + data)[:HEADER.size // 2])
    liar.cut()


def nothing(liar, there, fields, data):
    liar.cut()


def on_control(kind, body=b""):
    def lie(liar, there, fields, data):
        liar.control.sendall(struct.pack("<II", len(body), kind) + body)
        there.sendall(HEADER.pack(*fields) + data)
    return lie


LIES = {
    "another address": (zeros((ADDRESS, lambda address: address + 64 * PAGE)), "nobody has asked for"),
    "address of the kernel": (zeros((ADDRESS, 0xffffffff80000000)), "impossible address"),
    "another process": (zeros((ID, 1)), "nobody has asked for"),
    "shared memory": (zeros((SPACE, 2)), "no answer"),
    "more pages than asked for": (zeros((PAGES, 256)), "nobody has asked for"),
    "pages without end": (zeros((PAGES, 1 << 30)), ""),
    "no pages": (zeros((PAGES, 0)), "wrong number of pages"),
    "twice": (twice, "nobody has asked for"),
    "out of its turn": (zeros((SEQUENCE, 77)), "frame 77 arrived"),
    "damaged": (says((CHECKSUM, 1)), "damaged"),
    "a bomb": (says((KIND, hostile.PAGES), (CODEC, 2), (PAGES, 256), (PAYLOAD, 9), payload=b"\x28\xb5\x2f\xfd" + bytes(5)), ""),
    "a request": (zeros((KIND, hostile.REQUEST)), "no answer"),
    "something dropped": (zeros((KIND, hostile.DROP)), "no answer"),
    "a barrier": (zeros((KIND, hostile.BARRIER), (SPACE, 0), (ID, 0), (PAGES, 0)), "no answer"),
    "half of an answer": (half, "ended the connection"),
    "half of an answer, and the link is cut": (half_and_cut, ""),
    "no answer": (nothing, ""),
    "that it has ended its copy": (on_control(hostile.RELEASED, encode((1, 0))), "memory is missing here"),
    "that it gives up": (on_control(hostile.ABORT, encode((1, 5), (2, "x"), (3, "x"), (4, "x"), (5, "x"))), ""),
    "a new tree": (on_control(hostile.TREE, hostile.tree(300)), "not allowed now"),
    "more connections": (on_control(hostile.POST_COPY_START, encode((1, 2))), "lets memory follow"),
}


@pytest.mark.parametrize("what", ["another address", "a request", "damaged", "half of an answer", "no answer"])
def test_source_answers_the_restore(what, directory):
    """It needs some memory before the tree can run: the migration fails, and the tree runs on where it was."""
    lie, words = LIES[what]
    with changing(directory, 4, 1000) as (pair, program):
        receiver = pair.receive(1)
        with contextlib.closing(Liar(pair.hosts[1], lie)) as liar:
            liar.armed.set()
            liar.start()
            sent = pair.start_migrate(program.pid, 0, *SLOW, port=PORT).wait()
            received = receiver.wait()
            assert (sent.status, received.status) == (1, 1), f"{sent}\n{received}"
            told = [line for line in received.output.splitlines() if line.startswith("criu: ")]
            assert len(told) == 1 and words in told[0], received
            lives_on(pair, program, 0, f"its restore was answered {what}")


@pytest.mark.parametrize("what", LIES)
def test_source_answers(what, directory):
    lie, words = LIES[what]
    with changing(directory, 4, 1000) as (pair, program):
        receiver = pair.receive(1)
        with contextlib.closing(Liar(pair.hosts[1], lie)) as liar:
            liar.start()
            sender = pair.start_migrate(program.pid, 0, *SLOW, port=PORT)
            following(pair, program, receiver)
            liar.armed.set()
            hosts.wait_until(lambda: "repeat" in receiver.output() or has_ended(receiver), explain=receiver.output)
            sent = sender.wait()
            assert (sent.status, receiver.wait().status) == (0, 0), f"{sent}\n{receiver.output()}"
            told = [line for line in receiver.output().splitlines() if line.startswith("criu: ")]
            assert len(told) == 1 and words in told[0], receiver.output()
            arrived(pair, program, f"was answered {what}")
