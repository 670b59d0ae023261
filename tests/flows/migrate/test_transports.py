# SPDX-License-Identifier: Apache-2.0
"""How a tree can travel: TLS with certificates or a shared key, ssh to a real sshd, a socket that systemd made; and what
is refused on the way."""
import contextlib
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import moving
import network
from certificates import make_authority, make_certificate, tls_options
from program import Program

import hosts

SSH_PORT = 2222
EVERY_BYTE = hosts.BUILD / "tests" / "flows" / "migrate" / "every_byte"
# So slow that memory is on its way for seconds.
SLOW = ("--bandwidth", "4M", "--compress", "none", "--connections", "1", "--json")


def receive(host, *options, environment=None, shell=None):
    process = host.start([str(hosts.CRIU), "receive", "--once", *map(str, options)], environment=environment, shell=shell)
    hosts.wait_until(lambda: "waiting for trees" in process.output() or process.tag in host.ended,
                     explain=process.output)
    return process


def migrate(host, pid, *options):
    return host.run([str(hosts.CRIU), "migrate", "--tree", str(pid), *map(str, options)])


def runs_there(pair, program, sent):
    assert sent.status == 0, sent
    pair.hosts[0].wait_empty()
    program.host = pair.hosts[1]
    program.check("after the move")


def runs_here(pair, program):
    program.check("after a move that was refused")
    assert program.pid in pair.hosts[0].pids()


# ---- TLS ----

def test_certificates(pair, program, tmp_path):
    here, there = pair.hosts
    make_authority(tmp_path, "authority")
    make_authority(tmp_path, "stranger")
    make_certificate(tmp_path, "authority", "one", moving.ADDRESSES[0])
    make_certificate(tmp_path, "authority", "two", moving.ADDRESSES[1])
    make_certificate(tmp_path, "stranger", "other", moving.ADDRESSES[0])
    listen = ["--tls", "--listen", f"{moving.ADDRESSES[1]}:7777", *tls_options(tmp_path, "authority", "two")]
    address = f"tls://{moving.ADDRESSES[1]}:7777"

    receiver = receive(there, *listen)
    refused = migrate(here, program.pid, address, *tls_options(tmp_path, "authority", "other"))
    assert refused.status != 0 and "refuses" in refused.output, refused
    assert receiver.wait().status != 0
    runs_here(pair, program)

    receiver = receive(there, *listen)
    refused = migrate(here, program.pid, address, *tls_options(tmp_path, "stranger", "one"))
    assert refused.status != 0 and "certificate" in refused.output, refused
    assert receiver.wait().status != 0
    runs_here(pair, program)

    receiver = receive(there, *listen)
    runs_there(pair, program, migrate(here, program.pid, address, *tls_options(tmp_path, "authority", "one")))
    assert receiver.wait().status == 0


def test_shared_key(pair, program, tmp_path):
    here, there = pair.hosts
    for name in ("key", "other"):
        (tmp_path / name).write_text(f"the secret of {name}, which is long enough\n")
        os.chmod(tmp_path / name, 0o600)
    listen = ["--listen", f"{moving.ADDRESSES[1]}:7777", "--psk-file", tmp_path / "key"]
    address = f"tls://{moving.ADDRESSES[1]}:7777"

    receiver = receive(there, *listen)
    refused = migrate(here, program.pid, address, "--psk-file", tmp_path / "other")
    assert refused.status != 0 and "--psk-file" in refused.output, refused
    assert receiver.wait().status != 0
    runs_here(pair, program)

    receiver = receive(there, *listen)
    runs_there(pair, program, migrate(here, program.pid, address, "--psk-file", tmp_path / "key", "--compress", "zstd"))
    assert receiver.wait().status == 0


def test_in_clear_text_only_if_wanted(pair, program):
    here, there = pair.hosts
    refused = there.run([str(hosts.CRIU), "receive", "--listen", f"{moving.ADDRESSES[1]}:7777"])
    assert refused.status != 0 and "--insecure" in refused.output, refused
    receiver = pair.receive(1)
    refused = migrate(here, program.pid, f"tcp://{moving.ADDRESSES[1]}:7777")
    assert refused.status != 0 and "--insecure" in refused.output, refused
    there.kill(receiver.pid)
    runs_here(pair, program)


# ---- a socket of systemd ----

ACTIVATE = """
import os, socket, sys
listener = socket.create_server(("", 7777))
if listener.fileno() != 3:
    os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ["LISTEN_FDS"], os.environ["LISTEN_PID"] = "1", str(os.getpid())
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_socket_activation(pair, program, tmp_path):
    (tmp_path / "key").write_text("a secret that is long enough\n")
    os.chmod(tmp_path / "key", 0o600)
    script = tmp_path / "activate.py"
    script.write_text(ACTIVATE)
    command = f"{sys.executable} {script} {hosts.CRIU} receive --once --psk-file {tmp_path / 'key'}"
    receiver = receive(pair.hosts[1], shell=command)
    runs_there(pair, program, migrate(pair.hosts[0], program.pid, f"tls://{moving.ADDRESSES[1]}:7777",
                                      "--psk-file", tmp_path / "key"))
    assert receiver.wait().status == 0


# ---- ssh ----

class Sshd:
    """A real sshd on the second host, which lets root of the first one in with a key."""

    def __init__(self, pair, directory):
        self.directory, self.host = directory, pair.hosts[1]
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name], check=True)
        shutil.copy(directory / "user.pub", directory / "authorized")
        (directory / "sshd_config").write_text(
            f"Port {SSH_PORT}\nListenAddress {moving.ADDRESSES[1]}\nHostKey {directory}/host\n"
            f"AuthorizedKeysFile {directory}/authorized\nStrictModes no\nUsePAM no\nPidFile none\n"
            # The shell of a real user may do much at a login; with this bash takes itself for a nested one.
            "PermitRootLogin prohibit-password\nMaxStartups 30\nSetEnv SHLVL=2\n")
        key = (directory / "host.pub").read_text()
        (directory / "known").write_text(f"[{moving.ADDRESSES[1]}]:{SSH_PORT} {key}")
        wrapper = directory / "ssh"
        wrapper.write_text(f"#!/bin/sh\nexec {shutil.which('ssh')} -F none -i {directory}/user "
                           f"-o UserKnownHostsFile={directory}/known \"$@\"\n")
        wrapper.chmod(0o755)
        # The directory that sshd gives up its rights in.
        pathlib.Path("/run/sshd").mkdir(exist_ok=True)
        self.process = self.host.start([shutil.which("sshd"), "-D", "-e", "-f", str(directory / "sshd_config")])
        hosts.wait_until(lambda: "listening" in self.process.output() or self.process.tag in self.host.ended,
                         explain=self.process.output)

    def environment(self):
        return {"PATH": f"{self.directory}:{os.environ['PATH']}"}

    def migrate(self, host, pid, *options):
        return self.start_migrate(host, pid, *options).wait()

    def start_migrate(self, host, pid, *options):
        return host.start([str(hosts.CRIU), "migrate", "--tree", str(pid), *options,
                           f"ssh://root@{moving.ADDRESSES[1]}:{SSH_PORT}"], environment=self.environment())


@pytest.fixture
def sshd(pair, tmp_path):
    if not shutil.which("sshd"):
        pytest.skip("no sshd")
    tmp_path.chmod(0o755)
    return Sshd(pair, tmp_path)


def test_ssh(pair, program, sshd):
    refused = sshd.migrate(pair.hosts[0], program.pid, "--remote-criu", "/nowhere/criu")
    assert refused.status != 0 and "--remote-criu" in refused.output, refused
    runs_here(pair, program)
    sent = sshd.migrate(pair.hosts[0], program.pid, "--remote-criu", str(hosts.CRIU))
    runs_there(pair, program, sent)


@pytest.mark.parametrize("way", [(), ("--post-copy",)], ids=["rounds", "post-copy"])
def test_ssh_with_its_address(directory, tmp_path, way):
    """An open connection comes along; and an address that a killed criu has left there is no obstacle."""
    if not shutil.which("sshd"):
        pytest.skip("no sshd")
    tmp_path.chmod(0o755)
    dies = tmp_path / "dies"
    dies.write_text(f"#!/bin/sh\nexec {hosts.CRIU} \"$@\" --die-at built\n")
    dies.chmod(0o755)
    with moving.pair(moving.Segment) as segment:
        sshd = Sshd(segment, tmp_path)
        server = network.start_server(segment.hosts[0], directory)
        with contextlib.closing(network.Stream(segment.client, segment.SERVICE)) as stream:
            stream.progress()
            failed = sshd.migrate(segment.hosts[0], server.pid, "--remote-criu", str(dies), *segment.MOVED, *way)
            assert failed.status == 1, failed
            stream.progress()
            sent = sshd.migrate(segment.hosts[0], server.pid, "--remote-criu", str(hosts.CRIU), *segment.MOVED, *way)
            assert sent.status == 0, sent
            stream.progress()
            stream.finish()
        segment.hosts[0].wait_empty()


def test_ssh_is_not_let_in(pair, program, sshd):
    (sshd.directory / "authorized").write_text("")
    refused = sshd.migrate(pair.hosts[0], program.pid, "--remote-criu", str(hosts.CRIU))
    assert refused.status != 0 and "Permission denied" in refused.output, refused
    runs_here(pair, program)


@pytest.fixture
def changing(pair, directory):
    """Memory of which every byte is known (every_byte.c)."""
    running = Program(pair.hosts[0], directory, EVERY_BYTE, [16, 1000])
    yield running
    running.close()


def stays_nowhere(pair):
    """No connection, and nothing to go on with."""
    for host in pair.hosts:
        assert not host.check(["sh", "-c", "ls /run/criu"]).output.strip()
    hosts.wait_until(lambda: not named(pair.hosts[0], "ssh") and not named(pair.hosts[1], "criu"))


def named(host, name):
    found = []
    for pid in host.pids():
        with contextlib.suppress(OSError):
            if (host.proc / str(pid) / "comm").read_text().strip() == name:
                found.append(pid)
    return found


def test_ssh_post_copy(pair, changing, sshd):
    sent = sshd.migrate(pair.hosts[0], changing.pid, "--post-copy", "--remote-criu", str(hosts.CRIU))
    assert "followed" in sent.output, sent
    runs_there(pair, changing, sent)
    stays_nowhere(pair)


def test_ssh_ends_while_memory_follows(pair, changing, sshd):
    """All of its connections at once. The source logs in again by itself."""
    sender = sshd.start_migrate(pair.hosts[0], changing.pid, "--post-copy", "--remote-criu", str(hosts.CRIU), *SLOW)
    hosts.wait_until(lambda: "fetching" in pair.hosts[0].check([str(hosts.CRIU), "migrate", "--status"]).output,
                     explain=sender.output)
    hosts.wait_until(lambda: '"running"' in sender.output(), explain=sender.output)
    for pid in named(pair.hosts[0], "ssh"):
        pair.hosts[0].kill(pid)
    sent = sender.wait()
    runs_there(pair, changing, sent)
    stays_nowhere(pair)
