# SPDX-License-Identifier: Apache-2.0
"""A peer that knows the protocol and lies: it can make the migration fail, and nothing else."""
import contextlib
import socket
import threading

import pytest

import hostile
import moving
import network
from hostile import PAGE, decode, encode, frame, mapping, tree
from test_faults import decide, lives_on, state_of
from test_memory import changing

import hosts

PID = 300
ADDRESS = 0x600000000000


# ---- a source that lies ----

def says(kind, body=b"", length=None):
    return lambda source: source.control.send(kind, body, length)


def after_tree(kind, *bodies):
    def lie(source):
        source.control.send(hostile.TREE, tree(PID, mapping(ADDRESS, 16 * PAGE)))
        source.control.until(hostile.PROGRESS)
        for body in bodies:
            source.control.send(kind, body)
    return lie


def in_last_round(*messages):
    def lie(source):
        after_tree(hostile.ROUND_BEGIN, encode((1, 1), (2, 1)))(source)
        for kind, body in messages:
            source.control.send(kind, body)
    return lie


def pages(*frames):
    def lie(source):
        after_tree(hostile.ROUND_BEGIN, encode((1, 1), (2, 0)))(source)
        source.pages.socket.sendall(b"".join(frames))
        # All connections for pages are given up; the source, which sees that, is the one to say why it goes.
        with contextlib.suppress(ConnectionResetError):
            assert source.pages.socket.recv(1) == b""
    lie.ends_by_itself = False
    return lie


def chunk(name, offset, data, last=False):
    return hostile.IMAGE_CHUNK, encode((1, name), (2, offset), (3, data), (4, last))


SOURCE_LIES = {
    "nothing at all": lambda source: None,
    "mapping of no address": says(hostile.TREE, tree(PID, mapping(1 << 60, PAGE))),
    "mapping that ends behind everything": says(hostile.TREE, tree(PID, mapping(ADDRESS, 1 << 48))),
    "mappings in each other": says(hostile.TREE, tree(PID, mapping(ADDRESS, 2 * PAGE), mapping(ADDRESS + PAGE, PAGE))),
    "mapping that fills the memory": says(hostile.TREE, tree(PID, mapping(
        ADDRESS, 1 << 30, hostile.PRIVATE | hostile.ANONYMOUS | hostile.POPULATE))),
    "mapping that is shared": says(hostile.TREE, tree(PID, mapping(ADDRESS, PAGE, 3 | hostile.ANONYMOUS))),
    "tree of nobody": says(hostile.TREE, encode((1, 1))),
    "root of no pid": says(hostile.TREE, tree(1 << 23)),
    "root whose pid is taken": says(hostile.TREE, tree(1)),
    "another root": after_tree(hostile.TREE, tree(PID + 1)),
    "message out of its state": says(hostile.COMMIT, encode((1, bytes(16)), (2, 0))),
    "message of the other side": says(hostile.READY, encode((1, 1))),
    "message of no type": says(99, b""),
    "message that is too long": says(hostile.TREE, b"", (64 << 20) + 1),
    "message that is cut": says(hostile.TREE, b"\x08\x01\x12\x7f"),
    "file that nobody wants": says(hostile.FILE_DATA, encode((1, 7), (2, 0), (3, b"x"), (7, 0))),
    "round of nothing": in_last_round((hostile.ROUND_END, encode((1, 1), (2, 5), (3, 0), (4, 0)))),
    "image with a path": in_last_round(chunk("../x.img", 0, b"")),
    "image of no kind": in_last_round(chunk("passwd", 0, b"")),
    "image twice": in_last_round(chunk("core-1.img", 0, b"x", True), chunk("core-1.img", 0, b"x", True)),
    "image with a hole": in_last_round(chunk("core-1.img", 0, b"x"), chunk("core-1.img", 1 << 40, b"x")),
    "images that are missing": in_last_round((hostile.IMAGES_END, encode((1, 3), (2, 17)))),
    "images of nothing": in_last_round((hostile.IMAGES_END, encode((1, 0), (2, 0)))),
    "memory that follows over nothing": after_tree(hostile.POST_COPY_START, encode((1, 2))),
    "frame of no magic": pages(frame(hostile.ZERO, PID, ADDRESS, 1, magic=1)),
    "frame out of its turn": pages(frame(hostile.ZERO, PID, ADDRESS, 1, sequence=5)),
    "frame of no address": pages(frame(hostile.ZERO, PID, (1 << 47) - PAGE, 2)),
    "frame of no kind of memory": pages(frame(hostile.ZERO, PID, ADDRESS, 1, space=9)),
    "frame of too many pages": pages(frame(hostile.PAGES, PID, ADDRESS, 1 << 20, 1 << 31)),
    "frame with a wrong checksum": pages(frame(hostile.PAGES, PID, ADDRESS, 1, PAGE), bytes(PAGE)),
    "frame of the other side": pages(frame(hostile.ACK)),
    "request of the other side": pages(frame(hostile.REQUEST, PID, ADDRESS, 1)),
}
# It is for the source to go on, and so it ends.
SILENT = {"nothing at all"}


def left_behind(host):
    """What must not stay: processes, and files of ours."""
    return host.pids() or host.check(["sh", "-c", "ls /run/criu"]).output.strip()


@pytest.mark.parametrize("lie", SOURCE_LIES)
def test_source_that_lies(lie):
    with moving.pair() as pair:
        receiver = pair.receive(1)
        with contextlib.closing(hostile.Source(pair)) as source:
            source.begin()
            SOURCE_LIES[lie](source)
            if lie not in SILENT and getattr(SOURCE_LIES[lie], "ends_by_itself", True):
                # Before the source has ended its side: the lie is what ends it.
                hosts.wait_until(lambda: pair.hosts[1].pids() == set(), explain=receiver.output)
        ended = receiver.wait()
        last = ended.output.strip().splitlines()[-1]
        assert ended.status == 1 and last.startswith("criu: "), ended
        hosts.wait_until(lambda: not left_behind(pair.hosts[1]))


@pytest.mark.parametrize("begin", [b"", b"\1"], ids=["nothing", "half a message"])
def test_source_falls_asleep(begin):
    """Its connections stand, and nothing comes: what it has brought is not kept for ever."""
    with moving.pair() as pair:
        receiver = pair.receive(1, "--link-timeout", 1)
        with contextlib.closing(hostile.Source(pair)) as source:
            source.begin()
            after_tree(hostile.ROUND_BEGIN, encode((1, 1), (2, 0)))(source)
            source.pages.socket.sendall(frame(hostile.ZERO, PID, ADDRESS, 16))
            source.control.socket.sendall(begin)
            ended = receiver.wait()
            assert b"sent nothing" in source.control.until(hostile.ABORT) or begin, ended
        assert ended.status == 1 and ended.output.startswith("criu: ", ended.output.rindex("criu: ")), ended
        assert "has sent nothing for 1 s" in ended.output or (begin and "does not answer" in ended.output), ended
        hosts.wait_until(lambda: not left_behind(pair.hosts[1]))


def test_small_messages_without_end():
    """Each is answered, and none is kept."""
    with moving.pair() as pair:
        receiver = pair.receive(1)
        with contextlib.closing(hostile.Source(pair)) as source:
            source.begin()
            for number in range(20000):
                source.control.send(hostile.PING, encode((1, number)))
                assert decode(source.control.until(hostile.PONG))[1] == number
        assert receiver.wait().status == 1


def test_stranger_who_knows_the_session():
    """Its id is no secret. Who has only that is sent away, and the session goes on at once."""
    with moving.pair() as pair:
        receiver = pair.receive(1)
        with contextlib.closing(hostile.Source(pair)) as source:
            source.begin()
            stranger = source.join(1, 1, secret=bytes(32))
            with pytest.raises((EOFError, ConnectionResetError)):
                stranger.until(hostile.JOIN_ANSWER)
            # The next message is not behind a wait for the connection that the stranger might have been.
            source.control.socket.settimeout(10)
            source.control.send(hostile.TREE, tree(PID))
            source.control.until(hostile.PROGRESS)
        assert receiver.wait().status == 1
        assert "cannot prove" in receiver.output()


# ---- a destination that lies ----

class Destination(threading.Thread):
    """Answers as it should up to the message @at, and there does what @lie says."""

    def __init__(self, host, at, lie):
        super().__init__()
        self.at, self.lie, self.failure = at, lie, None
        self.server = network.socket_in(host)
        self.server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.server.bind((moving.ADDRESSES[1], moving.PORT))
        self.server.listen()
        self.server.settimeout(2 * hosts.COMMAND_SECONDS)
        self.reached = False

    def accept(self):
        link = hostile.Link(self.server.accept()[0])
        link.read(32)
        return link

    def run(self):
        with contextlib.suppress(OSError, EOFError):
            self.serve()

    def serve(self):
        control = self.accept()
        pages = None
        try:
            while True:
                kind, _ = control.receive()
                if kind == self.at:
                    self.reached = True
                    self.lie(control)
                    # To the end of the source's side: what it says then is of no interest.
                    while True:
                        control.receive()
                if kind == hostile.HELLO:
                    control.send(hostile.HELLO_ANSWER, encode((1, 1), (2, "1"), (3, 15), (4, 1), (5, 1), (6, "x"), (7, "")))
                    pages = self.accept()
                    pages.until(hostile.JOIN)
                    pages.send(hostile.JOIN_ANSWER, encode((1, 0)))
                elif kind == hostile.PREFLIGHT_REQUEST:
                    control.send(hostile.PREFLIGHT_ANSWER)
                elif kind == hostile.TREE:
                    control.send(hostile.PROGRESS, encode((1, 0), (2, 0)))
        finally:
            control.close()
            if pages:
                pages.close()

    def close(self):
        self.server.close()


def answers(kind, body=b"", length=None):
    return lambda control: control.send(kind, body, length)


def closes(control):
    control.socket.shutdown(socket.SHUT_RDWR)


ABORT_TEXT = "\x1b[2Jevil\nline"
DESTINATION_LIES = {
    "other version": (hostile.HELLO, answers(hostile.HELLO_ANSWER, encode(
        (1, 7), (2, "1"), (3, 0), (4, 1), (5, 1), (6, "x"), (7, "")))),
    "more connections than wanted": (hostile.HELLO, answers(hostile.HELLO_ANSWER, encode(
        (1, 1), (2, "1"), (3, 0), (4, 16), (5, 1), (6, "x"), (7, "")))),
    "session of a path": (hostile.HELLO, answers(hostile.HELLO_ANSWER, encode(
        (1, 1), (2, "1"), (3, 0), (4, 1), (5, 1), (6, "x"), (7, "../../etc")))),
    "ready before anything": (hostile.PREFLIGHT_REQUEST, answers(hostile.READY, encode((1, 1)))),
    "runs before anything": (hostile.PREFLIGHT_REQUEST, answers(hostile.RUNNING, encode((1, 1), (2, 1)))),
    "file that was not named": (hostile.PREFLIGHT_REQUEST, answers(hostile.PREFLIGHT_ANSWER, encode(
        (2, [encode((1, 1 << 30), (2, 0))])))),
    "blocks of a wrong size": (hostile.PREFLIGHT_REQUEST, answers(hostile.PREFLIGHT_ANSWER, encode(
        (2, [encode((1, 0), (2, 1))])))),
    "abort of no error": (hostile.PREFLIGHT_REQUEST, answers(hostile.ABORT, encode(
        (1, 0), (2, "x"), (3, "x"), (4, "x"), (5, "x")))),
    "abort that writes on the screen": (hostile.PREFLIGHT_REQUEST, answers(hostile.ABORT, encode(
        (1, 5), (2, ABORT_TEXT), (3, ABORT_TEXT), (4, ABORT_TEXT), (5, ABORT_TEXT)))),
    "other answer to a tree": (hostile.TREE, answers(hostile.ROUND_ACK, encode((1, 1), (2, 0), (3, 0), (4, 0)))),
    "runs in a round": (hostile.ROUND_BEGIN, answers(hostile.RUNNING, encode((1, 1), (2, 1)))),
    "message that is too long": (hostile.ROUND_BEGIN, answers(hostile.ABORT, b"", 1 << 30)),
    "message of no type": (hostile.ROUND_BEGIN, answers(77)),
    "closes at the greeting": (hostile.HELLO, closes),
    "closes at the preflight": (hostile.PREFLIGHT_REQUEST, closes),
    "closes at the tree": (hostile.TREE, closes),
    "closes at the round": (hostile.ROUND_BEGIN, closes),
}


@pytest.mark.parametrize("lie", DESTINATION_LIES)
def test_destination_that_lies(lie, directory):
    with changing(directory, 4, 1000) as (pair, program):
        with contextlib.closing(Destination(pair.hosts[1], *DESTINATION_LIES[lie])) as destination:
            destination.start()
            sender = pair.start_migrate(program.pid, 0, "--connections", "1")
            hosts.wait_until(lambda: destination.reached, explain=sender.output)
            if DESTINATION_LIES[lie][0] == hostile.ROUND_BEGIN:
                # Pages wait to be acknowledged: who sends them need not look at what else is said.
                destination.server.shutdown(socket.SHUT_RDWR)
            sent = sender.wait()
            destination.join()
        assert sent.status == 1 and sent.output.strip().splitlines()[-1].startswith("criu: "), sent
        assert "\x1b" not in sent.output
        lives_on(pair, program, 0, lie)


# ---- decided by hand, without a source ----

def test_decided_for_there(directory):
    """The source has died before it could say that it gives the tree away; a person lets it run at the destination."""
    with changing(directory, 4, 1000) as (pair, program):
        here, there = pair.hosts
        receiver = pair.receive(1)
        assert pair.start_migrate(program.pid, 0, "--die-at", "deciding").wait().status in (-9, 137)
        hosts.wait_until(lambda: "--resume" in receiver.output(), explain=receiver.output)
        decide(there, program.pid, "--resume")
        hosts.wait_until(lambda: "runs here" in receiver.output(), explain=receiver.output)
        assert state_of(here, program.pid) == "T"
        # Who gave it away asks, and learns it.
        sent = pair.start_migrate(program.pid, 0).wait()
        assert (sent.status, receiver.wait().status) == (0, 0), f"{sent}\n{receiver.output()}"
        lives_on(pair, program, 1, "decided for there")


def test_silent_while_the_tree_stands(directory):
    """Post-copy begins with the stop; a destination that says nothing more must not keep the tree stopped."""
    with changing(directory, 4, 1000) as (pair, program):
        silent = threading.Event()

        def stays_silent(control):
            silent.set()
            with contextlib.ExitStack() as stack:
                for _ in range(2):
                    link = stack.enter_context(contextlib.closing(destination.accept()))
                    link.send(hostile.JOIN_ANSWER, encode((1, decode(link.until(hostile.JOIN))[2])))
                with contextlib.suppress(EOFError, OSError):
                    control.until(0)
        # What comes after the answer to the tree: the connections for demand.
        with contextlib.closing(Destination(pair.hosts[1], hostile.TREE, lambda control: (
                control.send(hostile.PROGRESS, encode((1, 0), (2, 0))), stays_silent(control)))) as destination:
            destination.start()
            sender = pair.start_migrate(program.pid, 0, "--connections", "1", "--post-copy", "--link-timeout", "4")
            hosts.wait_until(silent.is_set, explain=sender.output)
            sent = sender.wait()
            destination.join()
        assert sent.status == 1 and "does not answer" in sent.output, sent
        lives_on(pair, program, 0, "silence while the tree stands")
