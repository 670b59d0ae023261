# SPDX-License-Identifier: Apache-2.0
"""The runner's end of kinds/harness.h: a test program, started in a host, that can be asked for a check."""
import os

import pytest

import hosts


class Program:
    def __init__(self, host, directory, executable, arguments=()):
        self.host, self.directory = host, directory
        self.pipes = {}
        for name in ("ctl", "out"):
            os.mkfifo(directory / name, 0o666)
            os.chmod(directory / name, 0o666)
            self.pipes[name] = os.open(directory / name, os.O_RDWR | os.O_CLOEXEC)
        self.reports = hosts.LineReader(self.pipes["out"])
        self.log = directory / "log"
        self.process = host.start([executable, *arguments], cwd=directory, output=self.log)
        word, _, rest = self.report().partition(" ")
        if word == "SKIP":
            self.close()
            pytest.skip(rest)
        assert word == "ready", f"{word} {rest}"
        self.pid = int(rest)

    def close(self):
        for fd in self.pipes.values():
            os.close(fd)
        self.pipes.clear()

    def report(self):
        try:
            return self.reports.line(hosts.COMMAND_SECONDS)
        except hosts.Timeout as error:
            raise AssertionError(f"{error} from the program; processes: {hosts.describe(self.host)}\n"
                                 f"--- its log\n{hosts.tail(self.log)}") from None

    def check(self, when):
        os.write(self.pipes["ctl"], b"c")
        report = self.report()
        assert report == "ok", f"{when}: {report}\n--- the program's log\n{hosts.tail(self.log)}"

    def quit(self):
        """Asks the program to end with status 0."""
        os.write(self.pipes["ctl"], b"q")
