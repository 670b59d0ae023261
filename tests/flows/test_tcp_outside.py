# SPDX-License-Identifier: Apache-2.0
"""A connection with a client on another host, which sends and checks without a pause while the server is away."""
import contextlib
import socket

import hosts
import network


@contextlib.contextmanager
def streaming(directory):
    """(client, source, target, server process, stream) with the connection under load."""
    with network.three_hosts() as (client, source, target):
        server = network.start_server(source, directory)
        stream = network.Stream(client)
        try:
            stream.progress()
            yield client, source, target, server, stream
        finally:
            stream.close()


def test_in_place(directory):
    """The plain commands: no option, and no packet of the client may meet a missing socket."""
    with streaming(directory) as (_, source, _, server, stream):
        for number in range(3):
            images = directory / f"images{number}"
            hosts.Criu(source).dump(server.pid, images)
            source.wait_empty()
            hosts.Criu(source).restore(server.pid, images)
            stream.progress()
        assert not network.locks(source)
        stream.finish()


def test_leave_running(directory):
    with streaming(directory) as (_, source, _, server, stream):
        for number in range(5):
            hosts.Criu(source).dump(server.pid, directory / f"images{number}", "--leave-running")
            stream.progress()
        assert not network.locks(source)
        stream.finish()


def test_resume(directory):
    with streaming(directory) as (_, source, _, server, stream):
        hosts.Criu(source).dump(server.pid, directory / "images", "--leave-stopped")
        hosts.Criu(source).resume(server.pid, directory / "images")
        stream.progress()
        assert not network.locks(source)
        stream.finish()


def test_moved(directory):
    """To another host that takes the address over; then the first host forgets its copy without a word."""
    with streaming(directory) as (client, source, target, server, stream):
        hosts.Criu(source).dump(server.pid, directory / "images", "--leave-stopped")
        network.give_address(target)
        hosts.Criu(target).restore(server.pid, directory / "images")
        # Not earlier: a host that has the address and not yet the connection answers with a reset.
        network.route(client, "target")
        stream.progress()
        hosts.Criu(source).kill(server.pid, directory / "images")
        source.wait_empty()
        stream.progress()
        assert not network.locks(source)
        assert not network.locks(target)
        stream.finish()


def test_moved_back_and_forth(directory):
    with streaming(directory) as (client, source, target, server, stream):
        network.give_address(target)
        here, there, cable = source, target, "target"
        for number in range(4):
            images = directory / f"images{number}"
            hosts.Criu(here).dump(server.pid, images)
            hosts.Criu(there).restore(server.pid, images)
            network.route(client, cable)
            stream.progress()
            here, there = there, here
            cable = "source" if cable == "target" else "target"
        stream.finish()


def test_target_without_address(directory):
    """The connection comes back closed, with one line that says so, and the program goes on."""
    with streaming(directory) as (client, source, target, server, stream):
        hosts.Criu(source).dump(server.pid, directory / "images", "--leave-stopped")
        network.give_address(target, "10.77.0.3")
        result = hosts.Criu(target).run("restore", server.pid, directory / "images", "-d", "--tcp-established")
        assert result.status == 1
        assert "give this host the address" in result.output, result
        target.wait_empty()
        hosts.Criu(target).restore(server.pid, directory / "images")
        network.wait_output(directory, "end ")
        log = (directory / "images" / "restore.log").read_text()
        warnings = [line for line in log.splitlines() if "comes back closed" in line]
        assert len(warnings) == 1 and network.CLIENT_ADDRESS in warnings[0], warnings
        # It listens as before.
        network.ip(client, "route", "replace", "10.77.0.3/32", "dev", "target", "src", network.CLIENT_ADDRESS)
        second = network.Stream(client, "10.77.0.3")
        second.progress()
        second.finish()


def test_tcp_close_at_dump(directory):
    with streaming(directory) as (client, source, _, server, stream):
        hosts.Criu(source).dump(server.pid, directory / "images", "--tcp-close")
        source.wait_empty()
        stream.broken()
        assert not network.locks(source)
        hosts.Criu(source).restore(server.pid, directory / "images", "--tcp-close")
        network.wait_output(directory, "end ")
        second = network.Stream(client)
        second.progress()
        second.finish()


def test_tcp_close_at_restore(directory):
    with streaming(directory) as (client, source, _, server, _stream):
        hosts.Criu(source).dump(server.pid, directory / "images")
        source.wait_empty()
        hosts.Criu(source).restore(server.pid, directory / "images", "--tcp-close")
        network.wait_output(directory, "end ")
        assert not network.locks(source)
        second = network.Stream(client)
        second.progress()
        second.finish()


def test_client_says_its_last_byte(directory):
    """Half closed: the server has the end of file in its queue, behind bytes that it has not answered."""
    with network.three_hosts() as (client, source, _):
        server = network.start_server(source, directory)
        connection = network.socket_in(client)
        connection.settimeout(hosts.COMMAND_SECONDS)
        connection.connect((network.SERVER_ADDRESS, network.PORT))
        network.wait_output(directory, "connected")
        assert source.kill(server.pid, 19)
        connection.sendall(b"last words")
        connection.shutdown(socket.SHUT_WR)
        # FIN_WAIT2: the other kernel has it.
        hosts.wait_until(lambda: connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x05")
        hosts.Criu(source).dump(server.pid, directory / "images")
        source.wait_empty()
        hosts.Criu(source).restore(server.pid, directory / "images")
        assert source.kill(server.pid, 18)
        with connection.makefile("rb") as answer:
            assert answer.read() == bytes(byte + 1 for byte in b"last words")
        network.wait_output(directory, "end of file")
        connection.close()


def test_in_flight(directory):
    """A connection that the program has not accepted: refused with a hint, or dropped when asked to."""
    with network.three_hosts() as (client, source, _):
        server = network.start_server(source, directory)
        assert source.kill(server.pid, 19)
        waiting = network.socket_in(client)
        waiting.settimeout(hosts.COMMAND_SECONDS)
        waiting.connect((network.SERVER_ADDRESS, network.PORT))
        (directory / "images").mkdir()
        result = hosts.Criu(source).run("dump", server.pid, directory / "images", "--leave-running")
        assert result.status == 1 and "--skip-in-flight" in result.output, result
        hosts.Criu(source).dump(server.pid, directory / "images", "--skip-in-flight")
        source.wait_empty()
        hosts.Criu(source).restore(server.pid, directory / "images")
        assert source.kill(server.pid, 18)
        stream = network.Stream(client)
        stream.progress()
        stream.finish()
        waiting.close()
