# SPDX-License-Identifier: Apache-2.0
"""A server under load, moved while its clients work. The clients are outside the tree, in the host's network."""
import contextlib
import os
import pathlib
import shutil
import subprocess
import sys

import hosts

FLOWS = pathlib.Path(__file__).resolve().parent
LOAD = FLOWS / "load.py"


class Client:
    """A running load.py."""

    def __init__(self, host, *arguments):
        command = [*host.namespace_command("net"), sys.executable, str(LOAD), *map(str, arguments)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.lines = hosts.LineReader(self.process.stdout.fileno())
        self.count = 0

    def read(self):
        line = self.lines.line(2 * hosts.COMMAND_SECONDS)
        assert line.startswith("ok "), f"client: {line}"
        self.count = int(line.split()[1])

    def progress(self, answers=200):
        """Waits for that many more right answers than are known now."""
        # What it did before now lies in the pipe; a fresh number is needed.
        while hosts.select.select([self.process.stdout], [], [], 0)[0] or b"\n" in self.lines.buffer:
            self.read()
        goal = self.count + answers
        while self.count < goal:
            self.read()

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def client_once(host, *arguments):
    command = [*host.namespace_command("net"), sys.executable, str(LOAD), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10 * hosts.COMMAND_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr


def wait_listening(host, port):
    """Until a socket of the host's network listens on the port."""
    def listens():
        with open(f"/proc/{host.first_pid}/net/tcp") as tcp, open(f"/proc/{host.first_pid}/net/tcp6") as tcp6:
            rows = [line.split() for line in [*tcp, *tcp6]]
        return any(row[3] == "0A" and row[1].endswith(f":{port:04X}") for row in rows if len(row) > 3)
    hosts.wait_until(listens, explain=lambda: f"nobody listens on port {port}")


@contextlib.contextmanager
def running(command, port, directory, **keywords):
    """(host, process) of a server that listens in a network of its own."""
    with hosts.Host(net=True) as host:
        process = host.start([str(word) for word in command], cwd=directory, output=directory / "server.log", **keywords)
        try:
            wait_listening(host, port)
        except hosts.Timeout as error:
            raise AssertionError(f"{error}\n{process.output()}") from None
        yield host, process


@contextlib.contextmanager
def destination(host, fresh):
    """Where to restore: the same host, or a fresh pid namespace in the same network."""
    if not fresh:
        yield host
        return
    with hosts.Host(net_of=host, first_free_pid=hosts.Host.RECEIVER) as other:
        yield other


def move_twice(host, pid, directory, fresh, clients, answers=200, options=("--tcp-established",)):
    """dump, restore and once more, while @clients go on. Returns nothing; raises where something is wrong."""
    for client in clients:
        client.progress(answers)
    hosts.Criu(host, options).dump(pid, directory / "images1")
    host.wait_empty()
    with destination(host, fresh) as second:
        hosts.Criu(second, options).restore(pid, directory / "images1")
        shutil.rmtree(directory / "images1")
        for client in clients:
            client.progress(answers)
        # A dump that lets it run, and one that stops and resumes it: the clients must not notice.
        hosts.Criu(second, options).dump(pid, directory / "images2", "--leave-running")
        shutil.rmtree(directory / "images2")
        for client in clients:
            client.progress(answers)
        hosts.Criu(second, options).dump(pid, directory / "images3", "--leave-stopped")
        hosts.Criu(second).resume(pid, directory / "images3")
        shutil.rmtree(directory / "images3")
        for client in clients:
            client.progress(answers)
        hosts.Criu(second, options).dump(pid, directory / "images4")
        second.wait_empty()
        hosts.Criu(second, options).restore(pid, directory / "images4")
        for client in clients:
            client.progress(answers)
        tables = second.check(["nft", "list", "tables"]).output
        assert "criu" not in tables, f"left behind: {tables}"
        assert second.kill(pid)


def environment():
    """What a server needs of ours."""
    return {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")}
