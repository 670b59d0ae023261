# SPDX-License-Identifier: Apache-2.0
"""Hosts joined by veth pairs, and a client whose connection must not lose a byte."""
import contextlib
import ctypes
import os
import socket
import subprocess
import threading

import hosts

CLIENT_ADDRESS, SERVER_ADDRESS, PORT = "10.77.0.1", "10.77.0.2", 7000
STREAM_SERVER = hosts.BUILD / "tests" / "flows" / "stream_server"
CLONE_NEWNET = 0x40000000


def ip(host, *words):
    subprocess.run([*host.namespace_command("net"), "ip", *words], check=True)


def join(client, server, device):
    """A cable: @device at the client's side, eth0 with the server's address at the server's."""
    subprocess.run(["ip", "link", "add", device, "netns", str(client.first_pid), "type", "veth", "peer", "name", "eth0",
                    "netns", str(server.first_pid)], check=True)
    ip(client, "link", "set", device, "up")
    ip(server, "link", "set", "eth0", "up")


def give_address(server, address=SERVER_ADDRESS):
    ip(server, "address", "add", f"{address}/24", "dev", "eth0")


def route(client, device):
    """Packets for the server's address go through this cable from now on."""
    ip(client, "route", "replace", f"{SERVER_ADDRESS}/32", "dev", device, "src", CLIENT_ADDRESS)


@contextlib.contextmanager
def three_hosts():
    """A client, a server and an empty host, where a program of the server can move to."""
    with contextlib.ExitStack() as stack:
        client, source = (stack.enter_context(hosts.Host(net=True)) for _ in range(2))
        target = stack.enter_context(hosts.Host(net=True, first_free_pid=hosts.Host.RECEIVER))
        ip(client, "address", "add", f"{CLIENT_ADDRESS}/32", "dev", "lo")
        join(client, source, "source")
        join(client, target, "target")
        give_address(source)
        route(client, "source")
        yield client, source, target


def socket_in(host, kind=socket.SOCK_STREAM, family=socket.AF_INET):
    """A socket of the host's network."""
    made = []

    def make():
        with open(f"/proc/{host.first_pid}/ns/net") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        made.append(socket.socket(family, kind))
    thread = threading.Thread(target=make)  # a namespace belongs to a thread, which ends
    thread.start()
    thread.join()
    return made[0]


class Stream:
    """Sends bytes that tell their position as fast as it can, and checks that each comes back plus one."""

    PATTERN = bytes((i * 7 + (i >> 8)) & 255 for i in range(65536 - 1))
    PLUS_ONE = bytes((value + 1) & 255 for value in PATTERN)

    def __init__(self, host, address=SERVER_ADDRESS):
        self.socket = socket_in(host, family=socket.AF_INET6 if ":" in address else socket.AF_INET)
        self.socket.settimeout(hosts.COMMAND_SECONDS)
        self.socket.connect((address, PORT))
        self.sent = self.received = 0
        self.failure, self.stop = None, False
        self.changed = threading.Condition()
        self.threads = [threading.Thread(target=self.guard, args=(task,)) for task in (self.send, self.receive)]
        for thread in self.threads:
            thread.start()

    def guard(self, task):
        try:
            task()
        except OSError as error:
            self.failure = self.failure or f"{task.__name__}: {error} after {self.received} bytes"
        with self.changed:
            self.changed.notify_all()

    def send(self):
        while not self.stop:
            offset = self.sent % len(self.PATTERN)
            self.sent += self.socket.send(self.PATTERN[offset:offset + 16384])
        self.socket.shutdown(socket.SHUT_WR)

    def receive(self):
        while True:
            data = self.socket.recv(65536)
            if not data:
                break
            offset = self.received % len(self.PATTERN)
            wanted = (self.PLUS_ONE[offset:] + self.PLUS_ONE * 2)[:len(data)]
            if data != wanted:
                raise OSError(f"wrong bytes behind position {self.received}")
            with self.changed:
                self.received += len(data)
                self.changed.notify_all()
        if not self.stop:
            raise OSError("end of file")

    def progress(self, size=1 << 20):
        """Waits until that many more bytes came back."""
        with self.changed:
            goal = self.received + size
            came = self.changed.wait_for(lambda: self.failure or self.received >= goal, 2 * hosts.COMMAND_SECONDS)
        assert not self.failure, self.failure
        assert came, f"stuck at {self.received} bytes"

    def finish(self):
        """Sends no more, and checks that everything that was sent came back."""
        self.stop = True
        for thread in self.threads:
            thread.join(2 * hosts.COMMAND_SECONDS)
        assert not self.failure, self.failure
        assert self.received == self.sent, f"{self.received} of {self.sent} bytes came back"
        self.socket.close()

    def broken(self):
        """Waits for the end that the program saw."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.failure, 2 * hosts.COMMAND_SECONDS), "still connected"
        return self.failure

    def close(self):
        self.stop = True
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()
        self.socket.close()


def tables(host):
    return host.check(["nft", "list", "tables"]).output


def locks(host):
    return [line.split()[2] for line in tables(host).splitlines() if line.startswith("table inet criu-")]


def start_server(host, directory, *arguments):
    """A stream_server that listens, and its output file."""
    output = directory / "server.log"
    process = host.start([STREAM_SERVER, PORT, *arguments], cwd=directory, output=output)

    def listens():
        with open(f"/proc/{host.first_pid}/net/tcp") as rows:
            return any(f":{PORT:04X}" in row and " 0A " in row for row in rows)
    hosts.wait_until(listens, explain=lambda: f"stream_server: {hosts.tail(output)}")
    return process


def wait_output(directory, text):
    """Until the server has said @text."""
    output = directory / "server.log"
    hosts.wait_until(lambda: text in output.read_text(), explain=lambda: f"no {text!r} in {output.read_text()!r}")


def exists(pid, host):
    return os.path.exists(host.proc / str(pid))
