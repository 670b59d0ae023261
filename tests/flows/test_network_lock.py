# SPDX-License-Identifier: Apache-2.0
"""The table that locks the connections of a tree: when it is there, who removes it, that nobody leaves it behind."""
import re
import signal

import pytest

import hosts
import network


@pytest.fixture
def connected(directory):
    """(host, server process, connection): a client on the same host, outside the tree."""
    with hosts.Host(net=True) as host:
        server = network.start_server(host, directory)
        connection = network.socket_in(host)
        connection.settimeout(hosts.COMMAND_SECONDS)
        connection.connect(("127.0.0.1", network.PORT))
        network.wait_output(directory, "connected")
        yield host, server, connection
        connection.close()


def answers(connection):
    connection.sendall(b"a")
    return connection.recv(1) == b"b"


def stopped_dump(host, server, directory, *options):
    hosts.Criu(host).dump(server.pid, directory / "images", "--leave-stopped", *options)
    locks = network.locks(host)
    assert len(locks) == 1 and re.fullmatch(rf"criu-{server.pid}-[0-9a-f]{{8}}", locks[0]), locks
    return locks[0]


def test_kill_removes(connected, directory):
    host, server, _ = connected
    lock = stopped_dump(host, server, directory)
    assert lock in host.check([str(hosts.CRIU), "check"]).output
    hosts.Criu(host).kill(server.pid, directory / "images")
    host.wait_empty()
    assert not network.locks(host)
    assert "criu-" not in host.check([str(hosts.CRIU), "check"]).output


def test_resume_removes(connected, directory):
    host, server, connection = connected
    stopped_dump(host, server, directory)
    hosts.Criu(host).resume(server.pid, directory / "images")
    assert not network.locks(host)
    assert answers(connection)


def test_restore_removes(connected, directory):
    """After a dump that kills, the lock keeps the client's packets away until the restore."""
    host, server, connection = connected
    hosts.Criu(host).dump(server.pid, directory / "images")
    host.wait_empty()
    assert len(network.locks(host)) == 1
    assert network.locks(host)[0] in host.check([str(hosts.CRIU), "check"]).output
    assert "expires" in host.check(["nft", "list", "ruleset"]).output, "it must end by itself some day"
    connection.sendall(b"a")
    hosts.Criu(host).restore(server.pid, directory / "images")
    assert not network.locks(host)
    assert connection.recv(1) == b"b"


def test_failed_restore_keeps_the_lock(connected, directory):
    host, server, connection = connected
    hosts.Criu(host).dump(server.pid, directory / "images")
    host.wait_empty()
    before = network.locks(host)
    kept = (directory / "images" / "pstree.img").read_bytes()
    (directory / "images" / "pstree.img").write_bytes(kept[:-3])
    assert hosts.Criu(host).run("restore", server.pid, directory / "images", "-d").status == 1
    assert network.locks(host) == before
    (directory / "images" / "pstree.img").write_bytes(kept)
    hosts.Criu(host).restore(server.pid, directory / "images")
    assert answers(connection)
    assert not network.locks(host)


def test_leave_running_removes(connected, directory):
    host, server, connection = connected
    hosts.Criu(host).dump(server.pid, directory / "images", "--leave-running")
    assert not network.locks(host)
    assert answers(connection)


@pytest.mark.parametrize("stage", ["described", "scanned", "pages", "released", "written"])
def test_killed_dump_leaves_nothing(connected, directory, stage):
    host, server, connection = connected
    (directory / "images").mkdir()
    result = hosts.Criu(host).run("dump", server.pid, directory / "images", "--leave-stopped", "--die-at", stage)
    assert result.status == -signal.SIGKILL, result
    hosts.wait_until(lambda: not network.locks(host))
    assert answers(connection)


def test_failed_dump_leaves_nothing(connected, directory):
    """The lock is made before the images are written, and those do not fit."""
    host, server, connection = connected
    images = directory / "images"
    images.mkdir()
    host.check(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(images)])
    result = hosts.Criu(host).run("dump", server.pid, images)
    assert result.status == 1 and "No space left" in result.output, result
    assert not network.locks(host)
    assert answers(connection)


def test_kill_after_a_killing_dump(connected, directory):
    """Nothing is left to be killed: criu says so, and where the lock stays that check shows."""
    host, server, _ = connected
    hosts.Criu(host).dump(server.pid, directory / "images")
    host.wait_empty()
    result = hosts.Criu(host).run("kill", server.pid, directory / "images")
    assert result.status == 1 and str(server.pid) in result.output, result
    lock = network.locks(host)[0]
    host.check(["nft", "delete", "table", "inet", lock])
    assert lock not in host.check([str(hosts.CRIU), "check"]).output


def test_skip(connected, directory):
    host, server, connection = connected
    hosts.Criu(host).dump(server.pid, directory / "images", "--leave-stopped", "--network-lock", "skip")
    assert not network.locks(host)
    hosts.Criu(host).resume(server.pid, directory / "images")
    assert answers(connection)


def test_refusals(connected, directory):
    """kill and resume touch nothing but the stopped tree of the images."""
    host, server, connection = connected
    criu = hosts.Criu(host)
    for verb in ("kill", "resume"):
        result = host.run([str(hosts.CRIU), verb, "--tree", str(server.pid)])
        assert result.status == 1 and "is not stopped" in result.output, result
        result = host.run([str(hosts.CRIU), verb, "--tree", "1"])
        assert result.status == 1 and "ancestor" in result.output, result
        result = host.run([str(hosts.CRIU), verb, "--tree", "99999"])
        assert result.status == 1 and "99999" in result.output, result
    stopped_dump(host, server, directory)
    other = host.start(["sleep", "1000"])
    assert host.kill(other.pid, 19)
    hosts.wait_until(lambda: " T " in (host.proc / str(other.pid) / "stat").read_text())
    for verb in ("kill", "resume"):
        result = host.run([str(hosts.CRIU), verb, "--tree", str(other.pid), "-D", str(directory / "images")])
        assert result.status == 1 and "images" in result.output, result
    assert network.exists(server.pid, host) and network.exists(other.pid, host)
    criu.resume(server.pid, directory / "images")
    assert answers(connection)
