# SPDX-License-Identifier: Apache-2.0
"""Memory goes to a page server, whose images are restored; and what a peer can do that is none."""
import contextlib
import os
import signal
import socket

import hosts
import pytest
from page_servers import Server, request, start_program

# Checks every byte when it is asked to.
PROGRAM = """
import hashlib, mmap, os, random, signal
rng = random.Random(7)
private = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
shared = mmap.mmap(-1, 1 << 20)
for area in private, shared:
    for page in range(0, len(area), 8192):
        area[page:page + 4096] = rng.randbytes(4096)
wanted = [hashlib.sha256(area).digest() for area in (private, shared)]
signal.signal(signal.SIGUSR1, lambda *_: None)
print("ready", flush=True)
signal.pause()
assert [hashlib.sha256(area).digest() for area in (private, shared)] == wanted
print("good", flush=True)
"""


def test_dump_to_page_server(directory):
    output = directory / "output"
    with hosts.Host() as host:
        process = start_program(host, PROGRAM, output)
        server = Server(host, directory / "pages")
        images = directory / "images"
        hosts.Criu(host).dump(process.pid, images, *server.reach)
        server.good()
        assert not list(images.glob("pages-*")), "pages were written on the dump's side too"
        server.give_pages(images)
        host.wait_empty()
        hosts.Criu(host).restore(process.pid, images)
        assert host.kill(process.pid, signal.SIGUSR1)
        host.wait_empty()
        assert "good" in output.read_text(), output.read_text()


def test_dump_without_server_leaves_tree(directory):
    output = directory / "output"
    with hosts.Host() as host:
        process = start_program(host, PROGRAM, output)
        (directory / "images").mkdir()
        result = host.run([hosts.CRIU, "dump", "-t", process.pid, "-D", directory / "images", "--page-server",
                           "--address", "127.0.0.1", "--port", "1"])
        assert result.status == 1 and "page server" in result.output, result
        assert host.kill(process.pid, signal.SIGUSR1)
        host.wait_empty()
        assert "good" in output.read_text(), output.read_text()


OPEN, ADD, ADD_FLAGS, GET, HOLE = 3, 1, 6, 7, 2
PAGE = bytes(4095) + b"x"
HOSTILE = {
    "garbage": b"\xa5" * 64,
    "unknown command": request(99),
    "type": request(OPEN, destination=5 << 8 | 9),
    "id": request(OPEN, destination=1 << 60 | 1),
    "not open": request(ADD, pages=1, address=0x1000) + PAGE,
    "twice": request(OPEN) * 2,
    "unaligned": request(OPEN) + request(ADD, pages=1, address=0x1001) + PAGE,
    "length": request(OPEN) + request(ADD, pages=1 << 62, address=0x1000),
    "no pages": request(OPEN) + request(ADD, pages=0, address=0x1000),
    "end of memory": request(OPEN) + request(ADD, pages=2, address=0x7fffffffe000) + PAGE,
    "order": request(OPEN) + (request(ADD, pages=1, address=0x2000) + PAGE) * 2,
    "flags": request(OPEN) + request(ADD_FLAGS, flags=0x8000, pages=1, address=0x1000) + PAGE,
    "no parent": request(OPEN) + request(HOLE, pages=1, address=0x1000),
    "get": request(GET, pages=1, address=0x1000),
    "ends early": request(OPEN) + request(ADD, pages=2, address=0x1000) + PAGE,
    "ends in a request": request(OPEN)[:20],
    "ends without close": request(OPEN) + request(ADD, pages=1, address=0x1000) + PAGE,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_client(directory, name):
    with hosts.Host() as host:
        server = Server(host, directory / "pages")
        with socket.create_connection(("127.0.0.1", server.port)) as link:
            # It may have hung up before all was said.
            with contextlib.suppress(OSError):
                link.sendall(HOSTILE[name])
                link.shutdown(socket.SHUT_WR)
            status, lines = server.wait()
            assert status == 1
        assert len(lines) == 1 and lines[0].startswith("criu: "), lines
        assert not os.listdir(directory / "pages")
