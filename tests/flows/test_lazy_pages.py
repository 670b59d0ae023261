# SPDX-License-Identifier: Apache-2.0
"""Memory that comes after the tree runs: from images and from the page server of a lazy dump, with faults of threads,
of the kernel and of forks, and with a daemon that is killed in the middle."""
import contextlib
import signal
import socket
import threading

import hosts
import pytest
from page_servers import request, start_program, start_ready

MEGABYTES = 24
# One page in two has content. After the signal every way to miss a page is tried before all of it is checked.
PROGRAM = """
import ctypes, hashlib, mmap, os, random, signal, sys, threading
size = %d << 20
rng = random.Random(11)
area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(0, size, 8192):
    area[page:page + 4096] = rng.randbytes(4096)
digests = [hashlib.sha256(area[at:at + (1 << 20)]).digest() for at in range(0, size, 1 << 20)]
zero = open("/dev/zero", "rb", buffering=0)
signal.signal(signal.SIGUSR1, lambda *_: None)
print("ready", flush=True)
signal.pause()
print("runs", flush=True)
# the kernel writes into a page that is missing: the rest of the page must be what it was
before = digests[3]
zero.readinto(memoryview(area)[(3 << 20) + 100:(3 << 20) + 100 + 8])
rng2 = random.Random(11)
first = [rng2.randbytes(4096) for _ in range(size // 8192)]
wanted = bytearray(first[(3 << 20) // 8192]); wanted[100:108] = bytes(8)
assert area[3 << 20:(3 << 20) + 4096] == wanted, "a page that the kernel wrote to"
area[3 << 20:(3 << 20) + 4096] = first[(3 << 20) // 8192]
# memory that is given back is zero from then on
area.madvise(mmap.MADV_DONTNEED, 5 << 20, 1 << 20)
assert area[5 << 20:6 << 20] == bytes(1 << 20), "memory that was given back"
digests[5] = hashlib.sha256(bytes(1 << 20)).digest()
def check(numbers, what):
    for number in numbers:
        if hashlib.sha256(area[number << 20:(number + 1) << 20]).digest() != digests[number]:
            print("wrong:", what, number, flush=True)
            os._exit(1)
child = os.fork()
if not child:
    check(reversed(range(size >> 20)), "child")
    os._exit(0)
threads = [threading.Thread(target=check, args=(range(start, size >> 20, 2), "thread")) for start in (0, 1)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert os.waitpid(child, 0)[1] == 0
check(range(size >> 20), "parent")
print("good", flush=True)
""" % MEGABYTES


def finish(host, process, output):
    assert host.kill(process.pid, signal.SIGUSR1)
    host.wait_empty()
    assert "good" in output.read_text(), output.read_text()


def test_local_images(directory):
    output, images = directory / "output", directory / "images"
    with hosts.Host() as host:
        process = start_program(host, PROGRAM, output)
        hosts.Criu(host).dump(process.pid, images)
        host.wait_empty()
        start_ready(host, directory / "daemon", "lazy-pages", "-D", images, "-v3")
        hosts.Criu(host).restore(process.pid, images, "--lazy-pages")
        finish(host, process, output)


def lazy_dump(host, process, images, log):
    images.mkdir()
    source = start_ready(host, log, "dump", "-t", process.pid, "-D", images, "--lazy-pages", "--address", "127.0.0.1")
    return source, int(log.read_text().split()[0])


def test_remote_page_server(directory):
    output, images = directory / "output", directory / "images"
    with hosts.Host() as host, hosts.Host(first_free_pid=hosts.Host.RECEIVER) as receiver:
        process = start_program(host, PROGRAM, output)
        source, port = lazy_dump(host, process, images, directory / "source")
        pages = sum(path.stat().st_blocks * 512 for path in images.glob("pages-*"))
        assert pages < MEGABYTES << 18, "the images hold memory that was to stay"
        start_ready(receiver, directory / "daemon", "lazy-pages", "-D", images, "-v3", "--page-server", "--address",
                    "127.0.0.1", "--port", port)
        hosts.Criu(receiver).restore(process.pid, images, "--lazy-pages")
        finish(receiver, process, output)
        assert source.wait().status == 0, (directory / "source").read_text()
        host.wait_empty()


def test_restore_without_daemon(directory):
    output, images = directory / "output", directory / "images"
    with hosts.Host() as host:
        process = start_program(host, PROGRAM, output)
        hosts.Criu(host).dump(process.pid, images)
        host.wait_empty()
        result = hosts.Criu(host).run("restore", process.pid, images, "-d", "--lazy-pages")
        assert result.status == 1 and "start `criu lazy-pages` first" in result.output, result
        host.wait_empty()


class Relay:
    """A page server that is really one behind it, and that gives no more than some bytes: then it holds its breath."""

    def __init__(self, port, limit):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port, self.target, self.limit = self.listener.getsockname()[1], port, limit

    def run(self):
        """Passes on what fits, and returns with the links still open."""
        self.near = self.listener.accept()[0]
        self.far = socket.create_connection(("127.0.0.1", self.target))
        passed = 0
        while passed < self.limit:
            ready = hosts.select.select([self.near, self.far], [], [], hosts.COMMAND_SECONDS)[0]
            assert ready, "the daemon asks for nothing"
            for side in ready:
                data = side.recv(65536)
                (self.far if side is self.near else self.near).sendall(data)
                passed += len(data) if side is self.far else 0

    def close(self):
        for link in self.near, self.far, self.listener:
            link.close()


@pytest.mark.parametrize("how", ["killed", "cut"])
def test_daemon_lost_in_the_middle(directory, how):
    """The tree waits for its memory; a new daemon brings the rest."""
    output, images = directory / "output", directory / "images"
    with hosts.Host() as host, hosts.Host(first_free_pid=hosts.Host.RECEIVER) as receiver:
        process = start_program(host, PROGRAM, output)
        source, port = lazy_dump(host, process, images, directory / "source")
        relay = Relay(port, 6 << 20)
        thread = threading.Thread(target=relay.run)
        thread.start()
        daemon = start_ready(receiver, directory / "daemon", "lazy-pages", "-D", images, "-v3", "--page-server",
                             "--address", "127.0.0.1", "--port", relay.port)
        hosts.Criu(receiver).restore(process.pid, images, "--lazy-pages")
        assert receiver.kill(process.pid, signal.SIGUSR1)
        thread.join()
        if how == "killed":
            assert receiver.kill(daemon.pid)
        relay.close()
        assert daemon.wait().status == (-signal.SIGKILL if how == "killed" else 1)
        assert "good" not in output.read_text() and "wrong" not in output.read_text()
        assert process.pid in receiver.pids()
        start_ready(receiver, directory / "second", "lazy-pages", "-D", images, "-v3", "--page-server", "--address",
                    "127.0.0.1", "--port", port)
        receiver.wait_empty()
        assert "good" in output.read_text(), output.read_text()
        assert source.wait().status == 0, (directory / "source").read_text()


HOSTILE = {
    "garbage": b"\xa5" * 64,
    "too many pages": request(6, 4, 1 << 40, 0x10000),
    "not asked for": request(6, 4, 1, 0x10000) + bytes(4096),
    "no pages": request(6, 4, 0, 0x10000),
    "command": request(3),
    "end": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_page_server(directory, name):
    """One line, and the restore fails or waits: nothing runs on memory that is none of its own."""
    output, images = directory / "output", directory / "images"
    with hosts.Host() as host, contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        process = start_program(host, PROGRAM, output)
        source, _ = lazy_dump(host, process, images, directory / "source")
        receiver = hosts.Host(first_free_pid=hosts.Host.RECEIVER)
        with receiver:
            daemon = start_ready(receiver, directory / "daemon", "lazy-pages", "-D", images, "--page-server",
                                 "--address", "127.0.0.1", "--port", listener.getsockname()[1])
            with listener.accept()[0] as link:
                # It may have hung up before all was said.
                with contextlib.suppress(OSError):
                    link.sendall(HOSTILE[name])
                    link.shutdown(socket.SHUT_WR)
                hosts.Criu(receiver).run("restore", process.pid, images, "-d", "--lazy-pages")
                assert daemon.wait().status == 1
            lines = (directory / "daemon").read_text().splitlines()
            assert len(lines) == 1 and lines[0].startswith("criu: "), lines
            assert "good" not in output.read_text() and "wrong" not in output.read_text()
        assert host.kill(source.pid)
