# SPDX-License-Identifier: Apache-2.0
"""A bash pipeline in a terminal, as a user starts it: a job of a shell that stays outside of the tree (--shell-job).
It comes back in another terminal and goes on there. And a program that has its own terminal inside the tree."""
import os
import pty
import termios

import pytest

import hosts

PIPELINE = "while read -r line; do echo \"$line\"; done | sed -u 's/^/got: /' | cat"


class Terminal:
    """A pseudo terminal with us as its user."""

    def __init__(self):
        self.master, self.slave = pty.openpty()
        self.path = os.ttyname(self.slave)
        attributes = termios.tcgetattr(self.slave)
        attributes[3] &= ~termios.ECHO
        attributes[1] &= ~termios.OPOST
        termios.tcsetattr(self.slave, termios.TCSANOW, attributes)
        self.lines = hosts.LineReader(self.master)

    def type(self, text):
        os.write(self.master, text.encode())

    def expect(self, line):
        # Messages of the shells may come between.
        seen = []
        while not seen or seen[-1] != line:
            try:
                seen.append(self.lines.line(hosts.COMMAND_SECONDS).strip())
            except hosts.Timeout as error:
                raise AssertionError(f"{error}: waited for {line!r}, got {seen}") from None

    def close(self):
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminals():
    made = []

    def make():
        made.append(Terminal())
        return made[-1]
    yield make
    for terminal in made:
        terminal.close()


def job(host, terminal, command, directory):
    """Runs a command as the foreground job of a shell with job control in the terminal. Returns the shell."""
    script = directory / f"job-{len(list(directory.iterdir()))}.sh"
    script.write_text(f"set -m\n{command}\necho job ended with $?\n")
    return host.start(None, shell=f"--ctty bash {script}", cwd=directory, stdin=terminal.path, output=terminal.path)


def job_pid(host, shell, terminal):
    children = hosts.wait_until(lambda: (host.proc / f"{shell.pid}/task/{shell.pid}/children").read_text().split(),
                                explain=lambda: "the shell has no job")
    return int(children[0])


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "in-place"])
def test_pipeline_in_a_terminal(directory, terminals, fresh):
    first, second = terminals(), terminals()
    with hosts.Host(terminals=False) as host:
        shell = job(host, first, f"bash -c {hosts.shlex.quote(PIPELINE)}", directory)
        pid = job_pid(host, shell, first)
        first.type("one\n")
        first.expect("got: one")
        images = directory / "images"
        hosts.Criu(host).dump(pid, images, "--shell-job")
        first.expect("job ended with 137")
        with hosts.Host(first_free_pid=hosts.Host.RECEIVER, terminals=False) as other:
            target = other if fresh else host
            restored = job(target, second, f"{hosts.CRIU} restore -t {pid} -D {images} --shell-job -o restore.log -v4",
                           directory)
            second.type("two\n")
            try:
                second.expect("got: two")
            except AssertionError as error:
                raise AssertionError(f"{error}\n{hosts.tail(images / 'restore.log')}") from None
            # Typed by the user, sent by the terminal: the job is in the foreground.
            second.type("three\n\x04")
            second.expect("got: three")
            # The end of its input ends the pipeline, and restore ends with the status of its root.
            second.expect("job ended with 0")
            assert restored.wait().status == 0


def test_session_with_its_own_terminal(directory):
    """script(1) makes a terminal for the shell below it; all of it is in the tree."""
    with hosts.Host() as host:
        source, sink = directory / "in", directory / "out"
        sink.touch()
        os.mkfifo(source)
        keep = os.open(source, os.O_RDWR)
        process = host.start(["script", "-q", "-c", "stty -echo; " + PIPELINE, "/dev/null"], cwd=directory, stdin=source,
                             output=sink)
        os.write(keep, b"one\n")
        hosts.wait_until(lambda: "got: one" in sink.read_text())
        hosts.Criu(host).dump(process.pid, directory / "images")
        host.wait_empty()
        hosts.Criu(host).restore(process.pid, directory / "images")
        os.write(keep, b"two\n")
        hosts.wait_until(lambda: "got: two" in sink.read_text(), explain=sink.read_text)
        os.close(keep)


def test_terminal_outside_is_refused(directory, terminals):
    """Without --shell-job the job of a shell outside cannot be dumped; it says so and runs on."""
    terminal = terminals()
    with hosts.Host(terminals=False) as host:
        shell = job(host, terminal, f"bash -c {hosts.shlex.quote(PIPELINE)}", directory)
        pid = job_pid(host, shell, terminal)
        (directory / "images").mkdir()
        result = hosts.Criu(host).run("dump", pid, directory / "images")
        assert result.status == 1 and "--shell-job" in result.output, result
        terminal.type("still here\n")
        terminal.expect("got: still here")


def on_terminal(host, terminal, words, **environment):
    """What criu writes to a terminal."""
    settings = " ".join(f"{name}={value}" for name, value in environment.items())
    process = host.start(None, shell=f"--ctty sh -c 'env -u NO_COLOR TERM=xterm {settings} {hosts.CRIU} {words}; echo end'",
                         stdin=terminal.path, output=terminal.path)
    lines = []
    while not lines or lines[-1].strip() != "end":
        lines.append(terminal.lines.line(hosts.COMMAND_SECONDS))
    process.wait()
    return "".join(lines)


def test_colors_are_left_out_if_asked(terminals):
    terminal = terminals()
    with hosts.Host(terminals=False) as host:
        assert "\033[31m" in on_terminal(host, terminal, "dump")
        assert "\033" not in on_terminal(host, terminal, "dump", NO_COLOR="1")
        assert "\033" not in on_terminal(host, terminal, "dump", TERM="dumb")
