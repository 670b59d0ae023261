# SPDX-License-Identifier: Apache-2.0
"""Real programs move from host to host and back while clients work with them, each over connections that stay open: the
address of the service moves too, and no client may notice more than a pause."""
import contextlib
import hashlib
import sys

import pytest

import moving

sys.path.insert(0, str(moving.pathlib.Path(__file__).resolve().parent.parent))

import flow  # noqa: E402
import test_servers  # noqa: E402
from load import HttpDownload, value_of  # noqa: E402

import hosts  # noqa: E402

REDIS_MIB = test_servers.REDIS_MIB // 4


@contextlib.contextmanager
def serving(command, port, directory, *clients):
    """(segment, pid, clients): each client is the words of a load.py."""
    with moving.pair(moving.Segment) as segment:
        process = segment.hosts[0].start([str(word) for word in command], cwd=directory, output=directory / "server.log")
        flow.wait_listening(segment.hosts[0], port)
        started = [flow.Client(segment.client, words[0], segment.SERVICE, port, *words[1:]) for words in clients]
        try:
            yield segment, process.pid, started
        finally:
            for client in started:
                client.close()


def move_under_load(segment, pid, clients, times, *options, answers=200):
    for client in clients:
        client.progress(answers)
    for number in range(times):
        segment.move(pid, number % 2, *segment.MOVED, *options)
        segment.hosts[number % 2].wait_empty()
        assert segment.SERVICE not in segment.hosts[number % 2].check(["ip", "address"]).output
        for client in clients:
            client.progress(answers)


def test_redis_ten_times(directory):
    """One connection, through all of it, that writes as fast as it can; every acknowledged write is read again."""
    command = [test_servers.need("redis-server"), "--port", 6379, "--save", "", "--appendonly", "no", "--protected-mode",
               "no", "--dir", directory]
    with serving(command, 6379, directory) as (segment, pid, _):
        keys = REDIS_MIB * (1 << 20) // test_servers.REDIS_VALUE_BYTES
        fixed = ("redis", segment.SERVICE, 6379, "--value-bytes", test_servers.REDIS_VALUE_BYTES)
        flow.client_once(segment.client, *fixed, "--fill", keys)
        client = flow.Client(segment.client, "redis-writes", segment.SERVICE, 6379, "--connections", 1)
        try:
            move_under_load(segment, pid, [client], 10)
            flow.client_once(segment.client, *fixed, "--verify", keys)
            client.progress()
        finally:
            client.close()


@pytest.mark.parametrize("way", [(), ("--post-copy",)], ids=["rounds", "post-copy"])
def test_memcached(directory, way):
    command = [test_servers.need("memcached"), "-u", "root", "-p", 11211, "-U", "0", "-m", "128", "-t", "4"]
    with serving(command, 11211, directory, ("memcached",)) as (segment, pid, clients):
        move_under_load(segment, pid, clients, 4, *way)


def test_nginx(directory):
    """Four workers, keep-alive connections, and downloads that are in the middle of a file."""
    (directory / "www").mkdir()
    (directory / "nginx.conf").write_text(test_servers.NGINX_CONFIGURATION.format(directory=directory))
    for i in range(50):
        (directory / "www" / f"file{i}").write_bytes(value_of(f"file{i}".encode(), 100 + 997 * i))
    (directory / "www" / "large").write_bytes(value_of(b"large", HttpDownload.BYTES))
    command = [test_servers.need("nginx"), "-c", directory / "nginx.conf", "-p", directory]
    with serving(command, 8080, directory, ("http", "--connections", 16),
                 ("http-download", "--connections", 2)) as (segment, pid, clients):
        hosts.wait_until(lambda: len(segment.hosts[0].pids()) >= 5)
        move_under_load(segment, pid, clients, 4)


@pytest.mark.parametrize("way", [(), ("--post-copy",)], ids=["rounds", "post-copy"])
def test_fifty_processes(directory, way):
    """They share memory: each answers with the sum of a part of it."""
    with serving([test_servers.ECHO_SERVER, 8002, "processes", 50], 8002, directory, ("echo",)) as (segment, pid, clients):
        hosts.wait_until(lambda: len(segment.hosts[0].pids()) >= 50)
        move_under_load(segment, pid, clients, 4, *way)


STEPS = 60000
CHAIN = f'''
import hashlib
value = b"the beginning"
for step in range({STEPS}):
    for _ in range(40):
        value = hashlib.sha256(value).digest()
    if step % 1000 == 0:
        print(step, flush=True)
print(value.hex(), flush=True)
'''


def test_hash_chain(directory):
    """What a computation that is moved again and again comes to."""
    output = directory / "output"
    value = b"the beginning"
    for _ in range(STEPS * 40):
        value = hashlib.sha256(value).digest()
    with moving.pair() as pair:
        process = pair.hosts[0].start([test_servers.PYTHON, "-c", CHAIN], output=output)
        here = 0
        hosts.wait_until(lambda: output.exists() and output.read_text())
        while len(output.read_text().splitlines()) < STEPS // 1000 - 10:
            pair.move(process.pid, here)
            here = 1 - here
        hosts.wait_until(lambda: len(output.read_text().splitlines()) == STEPS // 1000 + 1)
        assert output.read_text().splitlines()[-1] == value.hex()
