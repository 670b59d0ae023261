# SPDX-License-Identifier: Apache-2.0
"""Addresses that move with a server, under connections that stay open: IPv6, and both families with one command."""
import contextlib
import signal
import subprocess

import pytest

import moving
import network
from test_faults import decide, stopped_session

import hosts

CLIENT, SERVICE = "fd00::9", "fd00::5"
IPV6 = ("--address", f"{SERVICE}/64@eth0")


def give_ipv6(host, address, device):
    # Without the wait for somebody else who has it.
    network.ip(host, "address", "add", f"{address}/64", "dev", device, "nodad")


class BothFamilies(moving.Segment):
    def connect(self, stack):
        super().connect(stack)
        give_ipv6(self.client, CLIENT, "bridge")
        give_ipv6(self.hosts[0], SERVICE, "eth0")
        give_ipv6(self.hosts[0], "fd00::1", "eth0")
        give_ipv6(self.hosts[1], "fd00::2", "eth0")


def addresses(host):
    """Those of eth0 that can be used at once."""
    command = [*host.namespace_command("net"), "ip", "-oneline", "address", "show", "dev", "eth0"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return {line.split()[3] for line in lines if "tentative" not in line}


@contextlib.contextmanager
def streaming(directory, *services):
    """(segment, server, a stream to each of the services)"""
    with moving.pair(BothFamilies) as segment, contextlib.ExitStack() as stack:
        server = network.start_server(segment.hosts[0], directory, "both")
        streams = [stack.enter_context(contextlib.closing(network.Stream(segment.client, address)))
                   for address in services]
        for stream in streams:
            stream.progress()
        yield segment, server, streams


def move(segment, server, here, streams, *options):
    segment.move(server.pid, here, *options)
    segment.hosts[here].wait_empty()
    for stream in streams:
        stream.progress()
    for host in segment.hosts:
        assert not [line for line in network.tables(host).splitlines() if "criu" in line], "packets are held back"


@pytest.mark.parametrize("way", [(), ("--post-copy",)], ids=["rounds", "post-copy"])
def test_ipv6(directory, way):
    with streaming(directory, SERVICE) as (segment, server, streams):
        for here in (0, 1):
            move(segment, server, here, streams, *IPV6, *way)
            assert f"{SERVICE}/64" not in addresses(segment.hosts[here])
            assert f"{SERVICE}/64" in addresses(segment.hosts[1 - here])
        streams[0].finish()


def test_both_families_at_once(directory):
    with streaming(directory, SERVICE, moving.Segment.SERVICE) as (segment, server, streams):
        for here in (0, 1):
            move(segment, server, here, streams, *IPV6, *segment.MOVED)
            moved = {f"{SERVICE}/64", f"{segment.SERVICE}/24"}
            assert not moved & addresses(segment.hosts[here])
            assert moved <= addresses(segment.hosts[1 - here])
        for stream in streams:
            stream.finish()


def test_an_address_that_stays_is_told(directory):
    """The connection would break, so nothing moves until it is named too."""
    with streaming(directory, SERVICE) as (segment, server, streams):
        refused, _ = segment.migrate(server.pid, 0, *segment.MOVED)
        assert refused.status == 1 and SERVICE in refused.output and "--address" in refused.output, refused
        assert f"{segment.SERVICE}/24" in addresses(segment.hosts[0])
        assert f"{segment.SERVICE}/24" not in addresses(segment.hosts[1])
        streams[0].progress()
        move(segment, server, 0, streams, *IPV6)
        streams[0].finish()


def test_an_address_that_is_not_here(directory):
    """Told before the other side is asked: one that was mistyped, on another interface, with another prefix, twice."""
    with streaming(directory, SERVICE) as (segment, server, streams):
        for wrong, words in ((["fd00::55/64@eth0"], "does not have this address"), ([f"{SERVICE}/64@eth9"], "no interface"),
                             ([f"{SERVICE}/128@eth0"], "prefix length 64"), ([f"{SERVICE}/64@eth0"] * 2, "given twice")):
            options = [word for address in wrong for word in ("--address", address)]
            refused = segment.start_migrate(server.pid, 0, *options).wait()
            assert refused.status == 1 and words in refused.output and "refused" not in refused.output, refused
        streams[0].progress()
        streams[0].finish()


def test_source_is_killed_when_the_address_is_gone(directory):
    """The tree runs there already, with its address. The same command, repeated, ends what is here."""
    with streaming(directory, SERVICE) as (segment, server, streams):
        here, there = segment.hosts
        receiver = segment.receive(1)
        killed = segment.start_migrate(server.pid, 0, *IPV6, "--die-at", "committed").wait()
        assert killed.status in (-9, 137), killed
        assert f"{SERVICE}/64" not in addresses(here)
        sent = segment.start_migrate(server.pid, 0).wait()
        assert (sent.status, receiver.wait().status) == (0, 0), f"{sent}\n{receiver.output()}"
        assert f"{SERVICE}/64" in addresses(there)
        here.wait_empty()
        streams[0].progress()
        streams[0].finish()


def lost_there(segment):
    return f"{SERVICE}/64" not in addresses(segment.hosts[1])


@pytest.mark.parametrize("finder", ["status", "receive", "migrate"])
@pytest.mark.parametrize("state", ["built", "committed"])
def test_destination_is_killed_when_it_has_the_address(state, finder, directory):
    """Nobody is left there to take it back, so the next one who comes does. What the client sends meanwhile may be refused:
    two machines have the address."""
    with streaming(directory, SERVICE) as (segment, server, _):
        here, there = segment.hosts
        receiver = segment.receive(1, "--die-at", state)
        sent = segment.start_migrate(server.pid, 0, *IPV6, "--link-timeout", 1).wait()
        assert sent.status == 1 and receiver.wait().status != 0, sent
        there.wait_empty()
        if state == "committed":
            decide(here, server.pid, "--resume")
        assert f"{SERVICE}/64" in addresses(here) and not lost_there(segment)
        if finder == "status":
            said = there.check([str(hosts.CRIU), "migrate", "--status"]).output
            assert "no migration" in said and SERVICE in said, said
        else:
            receiver = segment.receive(1)
        assert lost_there(segment)
        if finder == "migrate":
            sent = segment.start_migrate(server.pid, 0, *IPV6).wait()
            assert (sent.status, receiver.wait().status) == (0, 0), f"{sent}\n{receiver.output()}"
            assert not lost_there(segment)


def test_destination_is_killed_when_the_tree_lives_with_its_address(directory):
    """Nobody may take the address from it, also when it has ended later."""
    with streaming(directory, SERVICE) as (segment, server, streams):
        here, there = segment.hosts
        receiver = segment.receive(1, "--die-at", "running")
        sent = segment.start_migrate(server.pid, 0, *IPV6, "--link-timeout", 1).wait()
        assert sent.status == 1 and receiver.wait().status != 0, sent
        decide(here, server.pid, "--abort")
        there.check([str(hosts.CRIU), "migrate", "--status"])
        assert not lost_there(segment)
        streams[0].progress()
        streams[0].finish()
        there.kill(server.pid)
        there.wait_empty()
        there.check([str(hosts.CRIU), "migrate", "--status"])
        assert not lost_there(segment)


def test_an_address_that_both_have(directory):
    """Whoever says that he knows may skip the check. What was there before stays there, whatever happens."""
    with streaming(directory, SERVICE) as (segment, server, streams):
        give_ipv6(segment.hosts[1], SERVICE, "eth0")
        receiver = segment.receive(1, "--die-at", "stop-built")
        sender = segment.start_migrate(server.pid, 0, *IPV6, "--skip-check", "addresses")
        session = stopped_session(segment.hosts[1], receiver)
        segment.hosts[0].kill(sender.pid)
        sender.wait()
        segment.hosts[1].kill(session, signal.SIGCONT)
        hosts.wait_until(lambda: "--abort" in receiver.output(), explain=receiver.output)
        decide(segment.hosts[1], server.pid, "--abort")
        receiver.wait()
        assert not lost_there(segment)


def test_decided_for_here_when_the_address_is_gone(directory):
    """The other machine dies when the tree was given to it. What runs on here has its address again."""
    with streaming(directory, SERVICE) as (segment, server, streams):
        here, there = segment.hosts
        receiver = segment.receive(1, "--die-at", "stop-committed")
        killed = segment.start_migrate(server.pid, 0, *IPV6, "--die-at", "committed").wait()
        assert killed.status in (-9, 137), killed
        assert f"{SERVICE}/64" not in addresses(here)
        session = stopped_session(there, receiver)
        network.ip(there, "link", "set", "eth0", "down")
        assert there.kill(session)
        decide(here, server.pid, "--resume")
        assert f"{SERVICE}/64" in addresses(here)
        streams[0].progress()
        streams[0].finish()
