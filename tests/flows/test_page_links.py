# SPDX-License-Identifier: Apache-2.0
"""How memory reaches page servers: TLS with certificates of both sides, a socket that the caller has connected, servers
in the background; and who is turned away, with the tree unharmed."""
import contextlib
import os
import signal
import socket

import hosts
import pytest
from certificates import make_authority, make_certificate, tls_options
from page_servers import Server, request, start_program, start_ready
from test_page_server import PROGRAM

HERE = "127.0.0.1"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Certificates `one` and `two` of an authority, `far` for another address, and `other` of a stranger."""
    directory = tmp_path_factory.mktemp("keys")
    for authority in "authority", "stranger":
        make_authority(directory, authority)
    for name, authority, address in (("one", "authority", HERE), ("two", "authority", HERE), ("other", "stranger", HERE),
                                     ("far", "authority", "10.9.9.9")):
        make_certificate(directory, authority, name, address)
    return directory


def tls(keys, name, authority="authority"):
    return ["--tls", *tls_options(keys, authority, name)]


def finish(host, process, output):
    assert host.kill(process.pid, signal.SIGUSR1)
    host.wait_empty()
    assert "good" in output.read_text(), output.read_text()


def test_chain_over_tls(directory, keys):
    """A pre-dump, and a dump of what changed since, each to a server; the second frees what it replaces."""
    output = directory / "output"
    first, second = directory / "first", directory / "second"
    with hosts.Host() as host:
        process = start_program(host, PROGRAM, output)
        for images in first, second:
            images.mkdir()
        server = Server(host, directory / "pages1", *tls(keys, "one"))
        hosts.Criu(host).good("pre-dump", process.pid, first, *server.reach, *tls(keys, "two"))
        server.good()
        server.give_pages(first)
        (directory / "pages1").rmdir()
        (directory / "pages1").symlink_to("first")
        server = Server(host, directory / "pages2", "--prev-images-dir", "../first", "--auto-dedup", *tls(keys, "one"))
        hosts.Criu(host).dump(process.pid, second, "--prev-images-dir", "../first", *server.reach, *tls(keys, "two"))
        server.good()
        (server.images / "parent").unlink()
        assert sum(path.stat().st_size for path in server.images.iterdir()) < 6 << 20, "all memory was sent again"
        server.give_pages(second)
        host.wait_empty()
        hosts.Criu(host).restore(process.pid, second)
        finish(host, process, output)


REFUSED = {
    "a stranger's client": ("one", "other"),
    "a stranger's server": ("other", "two"),
    "another address": ("far", "two"),
    "no TLS": ("one", None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_certificate(directory, keys, name):
    servers, clients = REFUSED[name]
    output, images = directory / "output", directory / "images"
    images.mkdir()
    with hosts.Host() as host:
        process = start_program(host, PROGRAM, output)
        server = Server(host, directory / "pages", *tls(keys, servers))
        options = tls(keys, clients) if clients else []
        result = hosts.Criu(host).run("dump", process.pid, images, *server.reach, *options)
        assert result.status == 1 and result.output.startswith("criu: "), result
        status, lines = server.wait()
        assert status == 1 and len(lines) == 1 and lines[0].startswith("criu: "), lines
        assert not os.listdir(server.images)
        finish(host, process, output)


def test_name_of_certificate_may_be_passed_over(directory, keys):
    output, images = directory / "output", directory / "images"
    with hosts.Host() as host:
        process = start_program(host, PROGRAM, output)
        server = Server(host, directory / "pages", *tls(keys, "far"))
        hosts.Criu(host).dump(process.pid, images, "--leave-running", *server.reach, *tls(keys, "two"),
                              "--tls-no-cn-verify")
        server.good()
        finish(host, process, output)


@pytest.mark.parametrize("verb", ["page-server", "dump", "lazy-dump", "lazy-pages"])
def test_missing_key_is_told_first(directory, keys, verb):
    """Before anything listens, connects or is stopped."""
    output = directory / "output"
    options = ["-D", directory, *tls(keys, "one"), "--tls-key", directory / "nothing"]
    with hosts.Host() as host:
        process = start_program(host, PROGRAM, output)
        words = {"page-server": ["page-server"], "lazy-pages": ["lazy-pages", "--page-server", "--port", "1"],
                 "dump": ["dump", "-t", process.pid, "--page-server", "--port", "1"],
                 "lazy-dump": ["dump", "-t", process.pid, "--lazy-pages", "--address", HERE]}[verb]
        result = host.run([hosts.CRIU, *words, *options])
        assert result.status == 1 and "--tls-key" in result.output and len(result.output.splitlines()) == 1, result
        finish(host, process, output)


def lazy_dump(host, process, images, log, *options):
    images.mkdir()
    source = start_ready(host, log, "dump", "-t", process.pid, "-D", images, "--lazy-pages", "--address", HERE, *options)
    return source, int(log.read_text().split()[0])


def test_lazy_pages_over_tls(directory, keys):
    """Peers that are none do not spoil it: the memory is kept until somebody comes who may have it."""
    output, images = directory / "output", directory / "images"
    log = directory / "source"
    with hosts.Host() as host, hosts.Host(first_free_pid=hosts.Host.RECEIVER) as receiver:
        process = start_program(host, PROGRAM, output)
        source, port = lazy_dump(host, process, images, log, *tls(keys, "one"))
        reach = ["lazy-pages", "-D", images, "--page-server", "--address", HERE, "--port", port]
        for garbage in (b"\xa5" * 64, request(7, pages=1, address=0x1000), b""):
            with socket.create_connection((HERE, port)) as link, contextlib.suppress(OSError):
                link.sendall(garbage)
                link.shutdown(socket.SHUT_WR)
                while link.recv(4096):
                    pass
        refused = receiver.run([hosts.CRIU, *reach, *tls(keys, "two", "stranger")])
        assert refused.status == 1 and "certificate" in refused.output, refused
        start_ready(receiver, directory / "daemon", *reach, *tls(keys, "two"))
        hosts.Criu(receiver).restore(process.pid, images, "--lazy-pages")
        finish(receiver, process, output)
        assert source.wait().status == 0, log.read_text()
        assert log.read_text().count("waiting for the next connection") == 4, log.read_text()


def inherit(number, path):
    """Words that make criu a child with a connection to @path at descriptor @number."""
    code = (f"import os, socket, sys; link = socket.socket(socket.AF_UNIX); link.connect({str(path)!r}); "
            f"os.dup2(link.fileno(), {number}); os.execv(sys.argv[1], sys.argv[1:])")
    return ["/usr/bin/python3", "-c", code]


@pytest.mark.parametrize("secure", [False, True])
def test_inherited_socket(directory, keys, secure):
    output, images, pages = directory / "output", directory / "images", directory / "pages"
    images.mkdir()
    pages.mkdir()
    options = {name: tls(keys, name) if secure else [] for name in ("one", "two")}
    with hosts.Host() as host, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "socket"))
        listener.listen()
        process = start_program(host, PROGRAM, output)
        server = host.start([*inherit(9, directory / "socket"), hosts.CRIU, "page-server", "-D", pages, "--ps-socket", 9,
                             *options["one"]])
        with listener.accept()[0] as far:
            dump = host.start([*inherit(11, directory / "socket"), hosts.CRIU, "dump", "-t", process.pid, "-D", images,
                               "--page-server", "--ps-socket", 11, *options["two"]])
            with listener.accept()[0] as near:
                pass_on(near, far)
        assert dump.wait().status == 0, dump.output()
        assert server.wait().status == 0, server.output()
        for path in pages.iterdir():
            path.rename(images / path.name)
        host.wait_empty()
        hosts.Criu(host).restore(process.pid, images)
        finish(host, process, output)


def pass_on(*pair):
    """Until both have ended."""
    other = dict(zip(pair, reversed(pair)))
    left = set(pair)
    while left:
        ready = hosts.select.select(list(left), [], [], hosts.COMMAND_SECONDS)[0]
        assert ready, "nothing passes"
        for one in ready:
            data = b""
            # Who has all that it wants may end without reading the good-bye of TLS.
            with contextlib.suppress(ConnectionResetError):
                data = one.recv(1 << 18)
            with contextlib.suppress(OSError):
                other[one].sendall(data) if data else other[one].shutdown(socket.SHUT_WR)
            if not data:
                left.remove(one)


@pytest.mark.parametrize("what", ["closed", "file"])
def test_wrong_ps_socket(directory, what):
    with hosts.Host() as host:
        redirect = "</dev/null" if what == "file" else "<&-"
        result = host.run(None, shell=f"sh -c 'exec 9{redirect}; exec {hosts.CRIU} page-server -D {directory} "
                                      f"--ps-socket 9'")
        assert result.status == 1 and "--ps-socket 9" in result.output, result


def test_server_in_the_background(directory):
    """The command returns when it can be connected to; the pid file names the process that serves."""
    output, images, pages = directory / "output", directory / "images", directory / "pages"
    pages.mkdir()
    command = [hosts.CRIU, "page-server", "-D", pages, "--address", HERE, "--daemon", "--pidfile", directory / "pid",
               "--log-file", directory / "log"]
    with hosts.Host() as host:
        process = start_program(host, PROGRAM, output)
        started = host.check(command)
        port, pid = int(started.output), int((directory / "pid").read_text())
        assert pid in host.pids()
        again = host.run(command)
        assert again.status == 1 and "pid" in again.output and "remove it" in again.output, again
        hosts.Criu(host).dump(process.pid, images, "--page-server", "--address", HERE, "--port", port)
        host.wait_empty()
        for path in pages.iterdir():
            path.rename(images / path.name)
        hosts.Criu(host).restore(process.pid, images)
        finish(host, process, output)


def test_lazy_pages_in_the_background(directory):
    output, images = directory / "output", directory / "images"
    with hosts.Host() as host:
        process = start_program(host, PROGRAM, output)
        hosts.Criu(host).dump(process.pid, images)
        host.wait_empty()
        command = [hosts.CRIU, "lazy-pages", "-D", images, "--daemon", "--pidfile", "pid", "-o", "log"]
        host.check(command)
        assert int((images / "pid").read_text()) in host.pids()
        (images / "pid").rename(images / "first-pid")
        hosts.Criu(host).restore(process.pid, images, "--lazy-pages")
        finish(host, process, output)


def test_page_server_without_room(directory):
    """The dump is told, the tree runs on, and what was written is gone."""
    output, images = directory / "output", directory / "images"
    images.mkdir()
    with hosts.Host() as host:
        host.check(["mount", "-t", "tmpfs", "-o", "size=3m", "none", "/mnt"])
        process = start_program(host, PROGRAM, output)
        full = start_ready(host, directory / "full", "page-server", "-D", "/mnt", "--address", HERE)
        hosts.wait_until(lambda: "\n" in (directory / "full").read_text())
        port = int((directory / "full").read_text().split()[0])
        result = hosts.Criu(host).run("dump", process.pid, images, "--page-server", "--address", HERE, "--port", port)
        assert result.status == 1 and "page server" in result.output, result
        assert full.wait().status == 1 and "free space" in (directory / "full").read_text()
        assert not os.listdir(host.path("/mnt"))
        finish(host, process, output)
