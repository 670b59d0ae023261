# SPDX-License-Identifier: Apache-2.0
"""Images go through an image streamer (../streamer.py) and come back from it; and what can go wrong with one."""
import json
import os
import signal

import hosts
import pytest
import streamer
from page_servers import start_program
from program import Program

# Private memory of more than one pipe, in two processes that share some of it, and shared memory.
LARGE = """
import hashlib, mmap, os, random, signal, threading
rng = random.Random(11)
private = mmap.mmap(-1, 80 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
shared = mmap.mmap(-1, 12 << 20)
private[:] = rng.randbytes(72 << 20) + bytes(8 << 20)
for page in range(0, len(shared), 12288):
    shared[page:page + 4096] = rng.randbytes(4096)
wanted = [hashlib.sha256(area).digest() for area in (private, shared)]
for signal_number in signal.SIGUSR1, signal.SIGTERM:
    signal.signal(signal_number, lambda *_: None)
threading.Thread(target=threading.Event().wait, daemon=True).start()
down, up = os.pipe(), os.pipe()
if not os.fork():
    private[4096:8192] = mine = rng.randbytes(4096)
    os.write(up[1], b"r")
    os.read(down[0], 1)
    good = private[4096:8192] == mine and [hashlib.sha256(shared).digest()] == wanted[1:]
    os._exit(0 if good else 1)
os.read(up[0], 1)
print("ready", flush=True)
signal.pause()
assert [hashlib.sha256(area).digest() for area in (private, shared)] == wanted
os.write(down[1], b"g")
assert os.wait()[1] == 0
print("good", flush=True)
"""


class Streamer:
    """A streamer that listens in @images."""

    def __init__(self, host, command, images, archive, *faults):
        images.mkdir(exist_ok=True)
        self.host, self.archive = host, archive
        self.process = host.start(["/usr/bin/python3", streamer.__file__, command, images, archive, *faults])
        hosts.wait_until(lambda: "ready" in self.process.output() or self.process.tag in host.ended,
                         explain=self.process.output)
        assert "ready" in self.process.output(), self.process.output()

    def good(self):
        result = self.process.wait()
        assert result.status == 0, result

    def killed(self):
        result = self.process.wait()
        assert result.status == -signal.SIGKILL, result


def dump(host, pid, images, archive, *options):
    capture = Streamer(host, "capture", images, archive)
    result = hosts.Criu(host).dump(pid, images, "--stream", *options)
    capture.good()
    assert not list(images.glob("*.img")), "images lie in the directory too"
    return result


def restore(host, pid, images, archive, *options):
    serve = Streamer(host, "serve", images, archive)
    hosts.Criu(host).restore(pid, images, "--stream", *options)
    serve.good()


def refused(host, verb, pid, images, *options):
    """Runs a command that must fail with one line, which it returns."""
    tree = ["-t", pid] if pid else []
    result = host.run([hosts.CRIU, verb, *tree, "-D", images, "--stream", *options])
    assert result.status == 1, result
    lines = result.output.splitlines()
    assert len(lines) == 1, result
    return lines[0]


KINDS = {name: () for name in (
    "tree", "threads", "memory_cow", "memory_equal", "memory_shared", "shared_memory", "memfd", "file_deleted", "file_locks",
    "seccomp_filter", "unix_stream", "unix_scm_rights", "pipe", "fifo", "tty_pty", "tcp_self", "udp_queue")}
KINDS["file_link_remap"] = ("--link-remap",)
KINDS["tcp_self"] = ("--tcp-established",)


@pytest.mark.parametrize("name", KINDS)
def test_kinds(directory, name):
    network = name.startswith(("tcp", "udp"))
    both = [option for option in KINDS[name] if option.startswith("--tcp")]
    with hosts.Host(net=network) as host:
        program = Program(host, directory, hosts.PROGRAMS / name)
        try:
            for turn in ("first", "second"):
                # Some programs look who is in their directory, and know of images only.
                images, archive = directory / f"images.{turn}", directory / f"images.{turn}.archive"
                dump(host, program.pid, images, archive, *KINDS[name])
                host.wait_empty()
                restore(host, program.pid, images, archive, *both)
                program.check(f"after the {turn} restore")
            # What was captured is a dump like others.
            images, archive = directory / "images.running", directory / "images.running.archive"
            dump(host, program.pid, images, archive, "--leave-running", *KINDS[name])
            program.check("after dump --leave-running")
            streamer.extract(archive, directory / "images.extracted")
            host.check([hosts.CRIU, "show", directory / "images.extracted"])
            for image in (directory / "images.extracted").glob("*.img"):
                if not image.name.startswith("pages-"):
                    host.check([hosts.BUILD / "tools" / "crit", "decode", "-i", image, "-o", "/dev/null"])
        finally:
            program.close()


def test_large(directory):
    output = directory / "output"
    with hosts.Host() as host:
        process = start_program(host, LARGE, output)
        images, archive = directory / "images", directory / "archive"
        events = [json.loads(line) for line in dump(host, process.pid, images, archive, "--json").output.splitlines()]
        assert any(event["event"] == "progress" and event["done_bytes"] for event in events), events
        assert archive.stat().st_size > 72 << 20
        assert (images / "stats-dump").exists()
        host.wait_empty()
        restore(host, process.pid, images, archive)
        assert host.kill(process.pid, signal.SIGUSR1)
        host.wait_empty()
        assert "good" in output.read_text(), output.read_text()


def test_extracted_images_restore_and_plain_ones_are_served(directory):
    """What is captured, and what lies in a directory, are the same files."""
    with hosts.Host() as host:
        program = Program(host, directory, hosts.PROGRAMS / "memory_shared")
        try:
            dump(host, program.pid, directory / "images", directory / "archive")
            host.wait_empty()
            streamer.extract(directory / "archive", directory / "extracted")
            hosts.Criu(host).restore(program.pid, directory / "extracted")
            program.check("after a restore of the extracted images")
            hosts.Criu(host).dump(program.pid, directory / "plain")
            host.wait_empty()
            streamer.collect(directory / "plain", directory / "archive")
            restore(host, program.pid, directory / "images", directory / "archive")
            program.check("after a restore of plain images")
        finally:
            program.close()


# What the streamer dies of, and how much of it a dump may believe: nothing.
DUMP_DEATHS = {
    "at the first file": "*",
    "in pages": "pages-*.img:20000000",
    "at the inventory": "inventory.img",
    "before the inventory": "pstree.img:1",
}


@pytest.mark.parametrize("name", DUMP_DEATHS)
@pytest.mark.parametrize("end", ("", "--leave-running", "--leave-stopped"))
def test_streamer_dies_in_dump(directory, name, end):
    output = directory / "output"
    with hosts.Host() as host:
        process = start_program(host, LARGE, output)
        images = directory / "images"
        capture = Streamer(host, "capture", images, directory / "archive", "--die", DUMP_DEATHS[name])
        line = refused(host, "dump", process.pid, images, *([end] if end else []))
        assert "image streamer: it has ended" in line, line
        capture.killed()
        # The tree runs on, and a dump to a streamer that lives finds all of it.
        dump(host, process.pid, images, directory / "archive")
        host.wait_empty()
        restore(host, process.pid, images, directory / "archive")
        assert host.kill(process.pid, signal.SIGUSR1)
        host.wait_empty()
        assert "good" in output.read_text(), output.read_text()


RESTORE_DEATHS = {
    "at the inventory": ("inventory.img", "it has ended"),
    "in pages": ("pages-*.img:20000000", "pages-"),
    "at a pagemap": ("2*pagemap-*.img", "it has ended"),
    "in the last pages": ("2*pages-*.img:4096", "pages"),
    "before the end": ("2*inventory.img", "it has ended"),
}


@pytest.mark.parametrize("name", RESTORE_DEATHS)
def test_streamer_dies_in_restore(directory, name):
    death, word = RESTORE_DEATHS[name]
    output = directory / "output"
    with hosts.Host() as host:
        process = start_program(host, LARGE, output)
        images, archive = directory / "images", directory / "archive"
        dump(host, process.pid, images, archive)
        host.wait_empty()
        serve = Streamer(host, "serve", images, archive, "--die", death)
        line = refused(host, "restore", process.pid, images, "-d")
        assert word in line, line
        serve.killed()
        host.wait_empty()
        restore(host, process.pid, images, archive)
        assert host.kill(process.pid, signal.SIGUSR1)
        host.wait_empty()
        assert "good" in output.read_text(), output.read_text()


@pytest.mark.parametrize("death", ("tcp-stream-*.img", "2*tcp-stream-*.img", "tcp-stream-*.img:1"))
def test_streamer_dies_while_a_task_asks(directory, death):
    with hosts.Host(net=True) as host:
        program = Program(host, directory, hosts.PROGRAMS / "tcp_self")
        try:
            images, archive = directory / "images", directory / "archive"
            dump(host, program.pid, images, archive, "--tcp-established")
            host.wait_empty()
            serve = Streamer(host, "serve", images, archive, "--die", death)
            refused(host, "restore", program.pid, images, "-d", "--tcp-established")
            serve.killed()
            host.wait_empty()
            restore(host, program.pid, images, archive, "--tcp-established")
            program.check("after a restore")
        finally:
            program.close()


def test_file_that_is_cut_between_two_entries(directory):
    """To who reads it, it looks whole."""
    with hosts.Host() as host:
        program = Program(host, directory, hosts.PROGRAMS / "memory_private")
        try:
            images, archive = directory / "images", directory / "archive"
            dump(host, program.pid, images, archive)
            host.wait_empty()
            content, = (content for name, content in streamer.load(archive).items() if name.startswith("fdinfo-"))
            # Magics, and the first entry with its length.
            cut = 8 + 4 + content[8]
            serve = Streamer(host, "serve", images, archive, "--die", f"fdinfo-*.img:{cut}")
            line = refused(host, "restore", program.pid, images, "-d")
            assert "image streamer: it has ended" in line, line
            serve.killed()
            host.wait_empty()
            restore(host, program.pid, images, archive)
            program.check("after a restore")
        finally:
            program.close()


def test_no_streamer(directory):
    with hosts.Host() as host:
        program = Program(host, directory, hosts.PROGRAMS / "memory_private")
        try:
            images = directory / "images"
            images.mkdir()
            for verb, name in (("dump", "capture"), ("restore", "serve")):
                line = refused(host, verb, program.pid, images)
                assert f"there is no streamer-{name}.sock" in line and "start the streamer first" in line, line
                # One that has been killed leaves its socket.
                dead = Streamer(host, name, images, os.devnull)
                host.kill(dead.process.pid)
                dead.killed()
                line = refused(host, verb, program.pid, images)
                assert f"nobody listens at streamer-{name}.sock" in line and "start the streamer first" in line, line
            program.check("after dumps that were refused")
        finally:
            program.close()


HOSTILE_ANSWERS = {
    "length": "ffffffff",
    "a little too long": "01020000",
    "nothing in it": "00000000",
    "cut": "0100000008",
    "another field": "020000001001",
}


@pytest.mark.parametrize("name", HOSTILE_ANSWERS)
def test_hostile_answers(directory, name):
    with hosts.Host() as host:
        images = directory / "images"
        serve = Streamer(host, "serve", images, os.devnull, "--answer", HOSTILE_ANSWERS[name])
        line = refused(host, "restore", None, images, "-d")
        assert "image streamer: " in line and "answer of" in line, line
        serve.process.wait()


def test_answer_that_does_not_come(directory):
    with hosts.Host() as host:
        images = directory / "images"
        serve = Streamer(host, "serve", images, os.devnull, "--answer", "0200000008")
        criu = host.start([hosts.CRIU, "restore", "-D", images, "-d", "--stream"])
        hosts.wait_until(lambda: not (images / "streamer-serve.sock").exists())
        host.kill(serve.process.pid)
        result = criu.wait()
        assert result.status == 1 and "it has ended" in result.output, result


def is_stopped(host, process):
    stat = host.proc / str(process.pid) / "stat"
    return stat.read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize("end", ("", "--leave-stopped"))
def test_dump_is_not_done_before_the_streamer_has_all(directory, end):
    """The last image fits into its pipe, and would be lost with it."""
    with hosts.Host() as host:
        program = Program(host, directory, hosts.PROGRAMS / "memory_private")
        try:
            images = directory / "images"
            capture = Streamer(host, "capture", images, directory / "archive", "--stop", "inventory.img")
            criu = host.start([hosts.CRIU, "dump", "-t", program.pid, "-D", images, "--stream", *([end] if end else [])])
            hosts.wait_until(lambda: is_stopped(host, capture.process))
            host.kill(capture.process.pid)
            result = criu.wait()
            assert result.status == 1 and "image streamer: it has ended" in result.output, result
            program.check("after a dump that failed")
        finally:
            program.close()


# Its listener has a connection that it accepts when it is told to.
IN_FLIGHT = """
import hashlib, mmap, os, random, signal, socket, sys
shared = mmap.mmap(-1, 2 << 20)
shared[:] = random.Random(3).randbytes(len(shared))
wanted = hashlib.sha256(shared).digest()
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
client.close()
def accept(*_):
    listener.accept()[0].close()
    print("accepted", flush=True)
signal.signal(signal.SIGUSR2, accept)
ended = []
signal.signal(signal.SIGUSR1, lambda *_: ended.append(1))
print("ready", flush=True)
while not ended:
    signal.pause()
assert hashlib.sha256(shared).digest() == wanted
print("good", flush=True)
"""

# Runs before each attempt: after the first one the program gets the connection out of the way.
ACCEPT = """#!/bin/sh
[ "$CRTOOLS_SCRIPT_ACTION" = pre-dump ] || exit 0
cd "$(dirname "$0")"
echo >> attempts
[ "$(wc -l < attempts)" = 1 ] && exit 0
kill -USR2 "$CRTOOLS_INIT_PID"
until grep -q accepted output; do sleep 0.01; done
"""


def test_dump_that_begins_anew(directory):
    """Shared memory is sent before connections are looked at, and cannot be taken back."""
    output, script = directory / "output", directory / "accept"
    script.write_text(ACCEPT)
    script.chmod(0o755)
    with hosts.Host(net=True) as host:
        process = start_program(host, IN_FLIGHT, output)
        images, archive = directory / "images", directory / "archive"
        dump(host, process.pid, images, archive, "--action-script", script)
        assert (directory / "attempts").read_text() == "\n\n"
        assert sum(name.startswith("pages-") for name in streamer.load(archive)) == 3
        host.wait_empty()
        restore(host, process.pid, images, archive)
        assert host.kill(process.pid, signal.SIGUSR1)
        host.wait_empty()
        assert "good" in output.read_text(), output.read_text()


def test_impatient_user(directory):
    """A streamer that does not take anything holds the tree up only until the user ends the dump."""
    output = directory / "output"
    with hosts.Host() as host:
        process = start_program(host, LARGE, output)
        images = directory / "images"
        capture = Streamer(host, "capture", images, directory / "archive", "--stop", "pages-*.img")
        criu = host.start([hosts.CRIU, "dump", "-t", process.pid, "-D", images, "--stream"])
        hosts.wait_until(lambda: is_stopped(host, capture.process))
        assert host.kill(criu.pid, signal.SIGTERM)
        result = criu.wait()
        assert result.status == -signal.SIGTERM, result
        host.kill(capture.process.pid)
        capture.killed()
        assert host.kill(process.pid, signal.SIGUSR1)
        host.wait_empty()
        assert "good" in output.read_text(), output.read_text()


CONFLICTS = {
    "pre-dump": ("pre-dump", ()),
    "--track-mem": ("dump", ("--track-mem",)),
    "--prev-images-dir": ("dump", ("--prev-images-dir", "../other")),
    "--page-server": ("dump", ("--page-server", "--address", "127.0.0.1", "--port", "1")),
    "--lazy-pages": ("dump", ("--lazy-pages", "--address", "127.0.0.1", "--port", "0")),
    "--lazy-pages ": ("restore", ("--lazy-pages",)),
    "--auto-dedup": ("dump", ("--auto-dedup",)),
    "--auto-dedup ": ("restore", ("--auto-dedup",)),
}


@pytest.mark.parametrize("word", CONFLICTS)
def test_what_a_streamer_cannot_do(directory, word):
    verb, options = CONFLICTS[word]
    with hosts.Host() as host:
        program = Program(host, directory, hosts.PROGRAMS / "memory_private")
        try:
            images = directory / "images"
            images.mkdir()
            line = refused(host, verb, program.pid, images, *options)
            assert line.startswith("criu: --stream: ") and word.strip() in line, line
            program.check("after a dump that was refused")
        finally:
            program.close()
