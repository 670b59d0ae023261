# SPDX-License-Identifier: Apache-2.0
"""Two hosts with a cable between them, and `criu migrate` from one to the other."""
import contextlib
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import hosts  # noqa: E402  (needs the path above)
import network  # noqa: E402

ADDRESSES = ("10.78.0.1", "10.78.0.2")
PORT = 7777


class Pair:
    """hosts[0] and hosts[1]; a program begins on hosts[0]."""

    key = None  # file with a key that both sides share: TLS
    before = []  # words that go before criu on both sides: what limits it

    def __init__(self, stack):
        self.hosts = [stack.enter_context(hosts.Host(net=True)),
                      stack.enter_context(hosts.Host(net=True, first_free_pid=hosts.Host.RECEIVER))]
        self.connect(stack)
        for host in self.hosts:
            network.ip(host, "link", "set", "lo", "up")
            # Its own journals: those of a killed criu stay, and numbers of pid namespaces come again.
            host.check(["sh", "-c", "mkdir -p /run/criu && mount -t tmpfs none /run/criu"])

    def connect(self, stack):
        network.join(self.hosts[0], self.hosts[1], "eth1")
        network.ip(self.hosts[0], "address", "add", f"{ADDRESSES[0]}/24", "dev", "eth1")
        network.ip(self.hosts[1], "address", "add", f"{ADDRESSES[1]}/24", "dev", "eth0")

    def wire(self):
        """What both sides say about encryption, and the beginning of the address."""
        return (["--psk-file", str(self.key)], "tls") if self.key else (["--insecure"], "tcp")

    def receive(self, there, *options):
        """`criu receive` on hosts[@there], listening."""
        process = self.hosts[there].start([*self.before, str(hosts.CRIU), "receive", "--listen", f"{ADDRESSES[there]}:{PORT}",
                                           *self.wire()[0], "--once", *map(str, options)])
        hosts.wait_until(lambda: "waiting for trees" in process.output() or process.tag in process.host.ended,
                         explain=process.output)
        return process

    def start_migrate(self, pid, here, *options, port=PORT):
        """`criu migrate` on hosts[@here], which goes on."""
        wire, scheme = self.wire()
        return self.hosts[here].start([*self.before, str(hosts.CRIU), "migrate", "--tree", str(pid), *wire, *map(str, options),
                                       f"{scheme}://{ADDRESSES[1 - here]}:{port}"])

    def migrate(self, pid, here, *options, receive_options=(), seconds=None):
        """Moves the tree from hosts[@here] to the other one. Returns the results of migrate and receive."""
        # criu itself must not take pids of the tree.
        self.hosts[1 - here].check(["sh", "-c", f"echo {hosts.Host.RECEIVER} > /proc/sys/kernel/ns_last_pid"])
        receiver = self.receive(1 - here, *receive_options)
        result = self.start_migrate(pid, here, *options).wait(seconds or hosts.COMMAND_SECONDS)
        return result, receiver.wait(seconds or hosts.COMMAND_SECONDS)

    def move(self, pid, here, *options, **keywords):
        """The same, and it must work."""
        sent, received = self.migrate(pid, here, *options, **keywords)
        assert sent.status == 0 and received.status == 0, f"{sent}\n{received}"
        # It is nobody's child, and ends when it sees that it holds nothing any more.
        hosts.wait_until(lambda: not self.guards(1 - here))
        return sent

    def guards(self, there):
        """Those who hold memory that has not come yet."""
        found = []
        for pid in self.hosts[there].pids():
            with contextlib.suppress(OSError):
                if "lazy-guard" in (self.hosts[there].proc / str(pid) / "comm").read_text():
                    found.append(pid)
        return found


class Segment(Pair):
    """The same, and a client, on one bridge. SERVICE is an address that moves with a server."""

    CLIENT, SERVICE = "10.78.0.9", "10.78.0.50"
    MOVED = ("--address", f"{SERVICE}/24@eth0")

    def connect(self, stack):
        self.client = stack.enter_context(hosts.Host(net=True))
        network.ip(self.client, "link", "add", "bridge", "type", "bridge")
        network.ip(self.client, "address", "add", f"{self.CLIENT}/24", "dev", "bridge")
        network.ip(self.client, "link", "set", "bridge", "up")
        for host, address, port in zip(self.hosts, ADDRESSES, ("first", "second")):
            network.join(self.client, host, port)
            network.ip(self.client, "link", "set", port, "master", "bridge")
            network.give_address(host, address)
        network.give_address(self.hosts[0], self.SERVICE)


@contextlib.contextmanager
def pair(kind=Pair):
    with contextlib.ExitStack() as stack:
        yield kind(stack)
