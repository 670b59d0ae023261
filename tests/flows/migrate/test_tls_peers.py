# SPDX-License-Identifier: Apache-2.0
"""Who is not let in through TLS, and that whoever tries it harms nobody but himself."""
import contextlib
import os
import signal
import socket
import ssl
import struct
import threading

import pytest

import moving
import network
from certificates import make_authority, make_certificate, openssl, tls_options

import hosts

ADDRESS = f"tls://{moving.ADDRESSES[1]}:{moving.PORT}"


@pytest.fixture
def keys(tmp_path):
    """Certificates of both sides, and some that are good for nothing."""
    for name in ("authority", "stranger"):
        make_authority(tmp_path, name)
    for name, authority, host in (("one", "authority", 0), ("two", "authority", 1), ("forged", "stranger", 0),
                                  ("impostor", "authority", 0)):
        make_certificate(tmp_path, authority, name, moving.ADDRESSES[host])
    for name, host in (("one", 0), ("two", 1)):
        expire(tmp_path, name, host)
    return tmp_path


def expire(directory, name, host):
    """`old-NAME`: the key of NAME with a certificate whose time is over."""
    (directory / "empty").write_text("")
    (directory / "serial").write_text("1000\n")
    (directory / "ca.conf").write_text(
        "[ca]\ndefault_ca = it\n[it]\nnew_certs_dir = .\ndatabase = empty\nserial = serial\ndefault_md = sha256\n"
        f"policy = any\nx509_extensions = names\n[any]\ncommonName = supplied\n"
        f"[names]\nsubjectAltName = IP:{moving.ADDRESSES[host]}\n")
    openssl(directory, "ca", "-batch", "-config", "ca.conf", "-cert", "authority.pem", "-keyfile", "authority.key", "-in",
            f"{name}.csr", "-startdate", "20200101000000Z", "-enddate", "20210101000000Z", "-notext", "-out",
            f"old-{name}.pem")
    (directory / f"old-{name}.key").write_bytes((directory / f"{name}.key").read_bytes())
    os.chmod(directory / f"old-{name}.key", 0o600)


def receive(host, *options):
    process = host.start([str(hosts.CRIU), "receive", "--listen", f"{moving.ADDRESSES[1]}:{moving.PORT}",
                          *map(str, options)])
    hosts.wait_until(lambda: "waiting for trees" in process.output() or process.tag in host.ended,
                     explain=process.output)
    return process


def start_migrate(pair, program, *options):
    return pair.hosts[0].start([str(hosts.CRIU), "migrate", "--tree", str(program.pid), ADDRESS, *map(str, options)])


def migrate(pair, program, *options):
    return start_migrate(pair, program, *options).wait()


def stays(pair, program, refused):
    """One line that says why; the program has noticed nothing."""
    assert refused.status == 1 and refused.output.strip().splitlines()[-1].startswith("criu: "), refused
    program.check("after a move that was refused")


def name_of(host, pid):
    with contextlib.suppress(OSError):
        return (host.proc / str(pid) / "comm").read_text().strip()
    return ""


def ends_there(pair, receiver):
    """The one who listens is alone again: no session stays."""
    there = pair.hosts[1]
    hosts.wait_until(lambda: {pid for pid in there.pids() if name_of(there, pid) == "criu"} == {receiver.pid},
                     explain=lambda: hosts.describe(there))


def arrives(pair, program, receiver, *options):
    sent = migrate(pair, program, *options)
    assert sent.status == 0, f"{sent}\n{receiver.output()}"
    pair.hosts[0].wait_empty()
    program.host = pair.hosts[1]
    program.check("after the move")
    ends_there(pair, receiver)


def test_certificates_of_strangers_and_of_yesterday(pair, program, keys):
    """One after the other to the same `criu receive`, which then takes the tree from the right one."""
    receiver = receive(pair.hosts[1], "--tls", *tls_options(keys, "authority", "two"))
    for name in ("forged", "old-one"):
        refused = migrate(pair, program, *tls_options(keys, "authority", name))
        assert "refuses" in refused.output, refused
        stays(pair, program, refused)
        ends_there(pair, receiver)
    arrives(pair, program, receiver, *tls_options(keys, "authority", "one"))


@pytest.mark.parametrize("name, words", [("forged", "NOT trusted"), ("old-two", "expired"), ("impostor", "name")])
def test_destination_with_a_wrong_certificate(name, words, pair, program, keys):
    """The forged one comes from another authority, the impostor's is for another address."""
    receiver = receive(pair.hosts[1], "--tls", *tls_options(keys, "authority", name))
    refused = migrate(pair, program, *tls_options(keys, "authority", "one"))
    assert "certificate is refused" in refused.output and words in refused.output, refused
    stays(pair, program, refused)
    ends_there(pair, receiver)


def make_key(path, text):
    path.write_text(text + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def psk(tmp_path):
    return make_key(tmp_path / "key", "a secret that is long enough for everybody")


# ---- strangers at the door ----

def connect(pair, data):
    stranger = network.socket_in(pair.hosts[0])
    stranger.settimeout(2 * hosts.COMMAND_SECONDS)
    stranger.connect((moving.ADDRESSES[1], moving.PORT))
    stranger.sendall(data)
    return stranger


def preamble(kind=1):
    return b"CRIUMIG\1" + bytes([kind]) + bytes(7) + os.urandom(16)


def client_hello():
    """What a client of TLS begins with."""
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(received, sent, server_hostname="nobody")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


STRANGERS = {
    "speaks no TLS": lambda: preamble() + struct.pack("<II", 4, 1) + b"abcd",
    "other version of TLS": lambda: preamble() + client_hello()[:1] + b"\x02\x00" + client_hello()[3:],
    "cut in its first message": lambda: preamble() + client_hello()[:100],
    "cut before its second message": lambda: preamble() + client_hello(),
    "cut before its first message": preamble,
    "cut in the preamble": lambda: preamble()[:20],
    "record that never ends": lambda: preamble() + b"\x16\x03\x01\xff\xff" + bytes(70000),
    "joins what is not there": lambda: preamble(2) + client_hello(),
    "comes back to what is not there": lambda: preamble(3) + client_hello(),
}


def test_strangers(pair, program, psk):
    """Each is sent away; then the right one comes, to the same `criu receive`."""
    receiver = receive(pair.hosts[1], "--psk-file", psk)
    for name, words in STRANGERS.items():
        with contextlib.closing(connect(pair, words())) as stranger, contextlib.suppress(OSError):
            stranger.shutdown(socket.SHUT_WR)
            while stranger.recv(4096):
                pass
        ends_there(pair, receiver)
        program.check(name)
    arrives(pair, program, receiver, "--psk-file", psk)


@pytest.mark.parametrize("silent", ["preamble", "hello"])
def test_who_stalls_delays_nobody(silent, pair, program, psk):
    """They keep their connections and say nothing more, while the right one comes."""
    receiver = receive(pair.hosts[1], "--psk-file", psk)
    words = {"preamble": lambda: preamble()[:20], "hello": lambda: preamble() + client_hello()}[silent]
    with contextlib.ExitStack() as stack:
        stalled = [stack.enter_context(contextlib.closing(connect(pair, words()))) for _ in range(16)]
        if silent == "hello":
            for stranger in stalled:
                assert stranger.recv(1), "the handshake has not begun"
        sent = migrate(pair, program, "--psk-file", psk)
        assert sent.status == 0, f"{sent}\n{receiver.output()}"
        program.host = pair.hosts[1]
        program.check("while others stall")
        pair.hosts[0].wait_empty()
    ends_there(pair, receiver)


def test_wrong_key_then_right_key(pair, program, psk, tmp_path):
    receiver = receive(pair.hosts[1], "--psk-file", psk)
    wrong = make_key(tmp_path / "wrong", "a secret that is long enough for nobody")
    for scheme in ("--psk-file", wrong), ("--tls-cacert", "/dev/null"):
        refused = migrate(pair, program, *scheme)
        stays(pair, program, refused)
        ends_there(pair, receiver)
    refused = pair.hosts[0].run([str(hosts.CRIU), "migrate", "--tree", str(program.pid), "--insecure",
                                 f"tcp://{moving.ADDRESSES[1]}:{moving.PORT}"])
    stays(pair, program, refused)
    ends_there(pair, receiver)
    arrives(pair, program, receiver, "--psk-file", psk)


# ---- a destination that is none ----

@contextlib.contextmanager
def answering(pair, answer):
    """Somebody listens at the destination, and does `answer` with who comes."""
    with network.socket_in(pair.hosts[1]) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((moving.ADDRESSES[1], moving.PORT))
        server.listen()
        server.settimeout(2 * hosts.COMMAND_SECONDS)

        def serve():
            with server.accept()[0] as one, contextlib.suppress(OSError):
                one.settimeout(2 * hosts.COMMAND_SECONDS)
                answer(one)
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def hears(one, size):
    data = b""
    while len(data) < size and (piece := one.recv(size - len(data))):
        data += piece
    return data


ANSWERS = {
    "ends in the handshake": lambda one: hears(one, 33),
    "resets in the handshake": lambda one: (hears(one, 33), one.setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))),
    "speaks no TLS": lambda one: (hears(one, 33), one.sendall(bytes(4096)), one.shutdown(socket.SHUT_WR), one.recv(65536)),
    "begins a record and ends": lambda one: (hears(one, 33), one.sendall(b"\x16\x03\x03\x40\x00"),
                                             one.shutdown(socket.SHUT_WR), one.recv(65536)),
    "sends an alert": lambda one: (hears(one, 33), one.sendall(b"\x15\x03\x03\x00\x02\x02\x28"),
                                   one.shutdown(socket.SHUT_WR), one.recv(65536)),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_destination_that_shakes_no_hands(answer, pair, program, psk):
    with answering(pair, ANSWERS[answer]):
        stays(pair, program, migrate(pair, program, "--psk-file", psk))


def test_cancelled_in_a_handshake_that_stalls(pair, program, psk):
    begun, over = threading.Event(), threading.Event()
    with answering(pair, lambda one: (hears(one, 33), begun.set(), over.wait(2 * hosts.COMMAND_SECONDS))):
        sender = start_migrate(pair, program, "--psk-file", psk)
        try:
            hosts.wait_until(begun.is_set, explain=sender.output)
            assert pair.hosts[0].kill(sender.pid, signal.SIGINT)
            stays(pair, program, sender.wait())
        finally:
            over.set()
