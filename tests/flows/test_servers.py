# SPDX-License-Identifier: Apache-2.0
"""Real servers of Debian, and ours of 1,000 threads and 500 processes, moved under load by clients that check every
answer: into a fresh pid namespace, and in place."""
import os
import pathlib
import shutil

import pytest

import flow
import hosts
from load import value_of

# The data set that the issue of this project names; large values, so that filling it takes seconds.
REDIS_MIB = int(os.environ.get("CRIU_TEST_REDIS_MIB", 1024))
REDIS_VALUE_BYTES = 64 * 1024
ECHO_SERVER = hosts.BUILD / "tests" / "flows" / "echo_server"
PYTHON = "/usr/bin/python3"

where = pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "in-place"])


def need(command):
    path = shutil.which(command, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if not path:
        pytest.skip(f"{command} is not installed")
    return path


@where
def test_redis(directory, fresh):
    port, keys = 6379, REDIS_MIB * 1024 * 1024 // REDIS_VALUE_BYTES
    command = [need("redis-server"), "--port", port, "--save", "", "--appendonly", "no", "--protected-mode", "no",
               "--dir", directory]
    with flow.running(command, port, directory) as (host, process):
        flow.client_once(host, "redis", "127.0.0.1", port, "--fill", keys, "--value-bytes", REDIS_VALUE_BYTES)
        client = flow.Client(host, "redis", "127.0.0.1", port)
        try:
            flow.move_twice(host, process.pid, directory, fresh, [client])
        finally:
            client.close()


@where
def test_redis_keys_survive(directory, fresh):
    """Every key, by a client that connects only after the restore."""
    port, keys = 6379, REDIS_MIB * 1024 * 1024 // REDIS_VALUE_BYTES
    command = [need("redis-server"), "--port", port, "--save", "", "--appendonly", "no", "--dir", directory]
    with flow.running(command, port, directory) as (host, process):
        flow.client_once(host, "redis", "127.0.0.1", port, "--fill", keys, "--value-bytes", REDIS_VALUE_BYTES)
        # No connection is left, so that the plain commands must do.
        hosts.Criu(host).dump(process.pid, directory / "images", "--leave-stopped")
        assert process.pid in host.pids()
        hosts.Criu(host).kill(process.pid, directory / "images")
        host.wait_empty()
        with flow.destination(host, fresh) as second:
            hosts.Criu(second).restore(process.pid, directory / "images")
            flow.client_once(host, "redis", "127.0.0.1", port, "--verify", keys, "--value-bytes", REDIS_VALUE_BYTES)


@where
def test_memcached(directory, fresh):
    port = 11211
    command = [need("memcached"), "-u", "root", "-p", port, "-U", "0", "-l", "127.0.0.1", "-m", "128", "-t", "4"]
    with flow.running(command, port, directory) as (host, process):
        flow.client_once(host, "memcached", "127.0.0.1", port, "--fill", 5000)
        client = flow.Client(host, "memcached", "127.0.0.1", port)
        try:
            flow.move_twice(host, process.pid, directory, fresh, [client])
        finally:
            client.close()


NGINX_CONFIGURATION = """
daemon off;
worker_processes 4;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
user root;
events {{ worker_connections 256; }}
http {{
    access_log {directory}/access.log;
    keepalive_timeout 600s;
    keepalive_requests 100000000;
    sendfile on;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    open_file_cache max=100;
    server {{ listen 8080 reuseport; root {directory}/www; }}
}}
"""


@where
def test_nginx(directory, fresh):
    (directory / "www").mkdir()
    (directory / "nginx.conf").write_text(NGINX_CONFIGURATION.format(directory=directory))
    for i in range(50):
        name = f"file{i}"
        (directory / "www" / name).write_bytes(value_of(name.encode(), 100 + 997 * i))
    command = [need("nginx"), "-c", directory / "nginx.conf", "-p", directory]
    with flow.running(command, 8080, directory) as (host, process):
        hosts.wait_until(lambda: len(host.pids()) == 5)
        client = flow.Client(host, "http", "127.0.0.1", 8080, "--connections", 16)
        try:
            flow.move_twice(host, process.pid, directory, fresh, [client])
        finally:
            client.close()


@where
def test_python(directory, fresh):
    command = [PYTHON, flow.FLOWS / "python_server.py", 8000]
    with flow.running(command, 8000, directory) as (host, process):
        client = flow.Client(host, "line-hash", "127.0.0.1", 8000)
        try:
            flow.move_twice(host, process.pid, directory, fresh, [client])
        finally:
            client.close()


@where
def test_node(directory, fresh):
    command = [need("node"), flow.FLOWS / "node_server.js", 8001]
    with flow.running(command, 8001, directory) as (host, process):
        client = flow.Client(host, "http-hash", "127.0.0.1", 8001)
        try:
            flow.move_twice(host, process.pid, directory, fresh, [client])
        finally:
            client.close()


@where
@pytest.mark.parametrize("kind,count", [("threads", 1000), ("processes", 500)])
def test_many(directory, fresh, kind, count):
    with flow.running([ECHO_SERVER, 8002, kind, count], 8002, directory) as (host, process):
        if kind == "processes":
            hosts.wait_until(lambda: len(host.pids()) == count)
        client = flow.Client(host, "echo", "127.0.0.1", 8002, "--connections", 32)
        try:
            client.progress()
            before = pss_kb(host)
            flow.move_twice(host, process.pid, directory, fresh, [client])
            images = sum(file.stat().st_size for file in pathlib.Path(directory / "images4").glob("pages-*.img"))
        finally:
            client.close()
        if kind == "processes":
            assert images < 40 << 20, f"{images >> 20} MiB of pages for {before >> 10} MiB of memory"


def pss_kb(host):
    """The memory of all processes together, what they share counted once."""
    total = 0
    for pid in host.pids():
        rollup = (host.proc / str(pid) / "smaps_rollup").read_text()
        total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total


@where
def test_fork_sharing_survives(directory, fresh):
    """500 processes over 10 MiB take no more than 1.2 times the memory after a restore."""
    with flow.running([ECHO_SERVER, 8002, "processes", 500], 8002, directory) as (host, process):
        hosts.wait_until(lambda: len(host.pids()) == 500)
        before = pss_kb(host)
        hosts.Criu(host).dump(process.pid, directory / "images")
        host.wait_empty()
        pages = sum(file.stat().st_size for file in (directory / "images").glob("pages-*.img"))
        # Not once for each of them, which would be 5 GB: what is shared once, and what each has for itself.
        assert pages / 1024 <= 1.2 * before, f"{pages >> 20} MiB of pages for {before >> 10} MiB"
        with flow.destination(host, fresh) as second:
            hosts.Criu(second).restore(process.pid, directory / "images")
            after = pss_kb(second)
            assert len(second.pids()) == 500
            assert after <= 1.2 * before, f"{after} kB after, {before} kB before"


