# SPDX-License-Identifier: Apache-2.0
"""Hosts for tests: namespaces with a first process (kinds/nsinit.c) that starts commands and collects orphans.

Everything that a test starts is below a host, and ends with it. Waiting is always for an event with a time limit.
"""
import contextlib
import ctypes
import itertools
import os
import pathlib
import select
import shlex
import shutil
import signal
import subprocess
import tempfile
import time

TESTS = pathlib.Path(__file__).resolve().parent
BUILD = pathlib.Path(os.environ.get("CRIU_BUILD", TESTS.parent / "build")).resolve()
CRIU = pathlib.Path(os.environ.get("CRIU", BUILD / "criu")).resolve()
PROGRAMS = BUILD / "tests" / "kinds"
# Limits are for hangs, not for speed: two slow cores under load must not reach them.
COMMAND_SECONDS = float(os.environ.get("CRIU_TEST_SECONDS", 60))


class Timeout(AssertionError):
    """Something did not happen in time."""


class Result:
    """How a command ended: status as of a shell (negative = signal), and its output."""

    def __init__(self, argv, status, output, seconds):
        self.argv, self.status, self.output, self.seconds = argv, status, output, seconds

    def __repr__(self):
        return f"<{shlex.join(self.argv)}: exit {self.status} after {self.seconds:.3f} s>\n{self.output}"


def exit_status(wait_status):
    return -os.WTERMSIG(wait_status) if os.WIFSIGNALED(wait_status) else os.WEXITSTATUS(wait_status)


class LineReader:
    """Lines from a descriptor, with a time limit."""

    def __init__(self, fd):
        self.fd, self.buffer = fd, b""

    def line(self, seconds):
        deadline = time.monotonic() + seconds
        while b"\n" not in self.buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.fd], [], [], left)[0]:
                raise Timeout(f"no answer in {seconds:.0f} s")
            piece = os.read(self.fd, 65536)
            if not piece:
                raise EOFError("closed")
            self.buffer += piece
        line, self.buffer = self.buffer.split(b"\n", 1)
        return line.decode(errors="replace")


class Host:
    """One host. Commands run in its namespaces, as children of its first process."""

    RECEIVER = 20000
    numbers = itertools.count(1)

    def __init__(self, pid=True, mount=True, net=False, net_of=None, first_free_pid=300, terminals=True):
        """@net_of: a host whose network it shares. @first_free_pid: where pids begin; a host that is to receive
        programs of another begins above (RECEIVER), so that criu itself does not take their pids. @terminals: its own /dev/pts; without it that of the
        machine."""
        wanted = [name for name, on in (("--pid", pid), ("--mount", mount), ("--terminals", mount and terminals),
                                        ("--net", net)) if on]
        wanted += [f"--net-of={net_of.first_pid}"] if net_of else []
        self.pid_namespace = pid
        self.directory = tempfile.mkdtemp(prefix="criu-test-host.")
        self.helper = subprocess.Popen([PROGRAMS / "nsinit", *wanted], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.lines = LineReader(self.helper.stdout.fileno())
        self.first_pid = int(self.lines.line(COMMAND_SECONDS).split()[1])
        self.started, self.ended, self.collected = {}, {}, {}
        if pid and first_free_pid:
            self.check(["sh", "-c", f"echo {first_free_pid} > /proc/sys/kernel/ns_last_pid"])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.helper.stdin.close()
        try:
            self.helper.wait(COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            self.helper.kill()
            self.helper.wait()
            raise
        finally:
            self.helper.stdout.close()
            shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def proc(self):
        """The host's /proc."""
        return pathlib.Path(f"/proc/{self.first_pid}/root/proc") if self.pid_namespace else pathlib.Path("/proc")

    def path(self, path):
        """A path of the host's own mount namespace, for us."""
        return pathlib.Path(f"/proc/{self.first_pid}/root") / str(path).lstrip("/")

    def read_answer(self, seconds):
        word, *values = self.lines.line(seconds).split()
        if word == "started":
            self.started[values[0]] = int(values[1])
        elif word == "exit":
            self.ended[values[0]] = int(values[1])
        elif word == "collected":
            self.collected[int(values[0])] = int(values[1])

    def start(self, argv, cwd="/", output=None, stdin="/dev/null", environment=None, shell=None):
        """Starts a command in a session of its own. Returns a Process."""
        tag = f"t{next(Host.numbers)}"
        output = output or os.path.join(self.directory, tag)
        command = shell or shlex.join(str(word) for word in argv)
        settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in (environment or {}).items())
        line = f"cd {shlex.quote(str(cwd))} && exec env {settings} setsid {command} " \
               f"<{shlex.quote(str(stdin))} >{shlex.quote(str(output))} 2>&1"
        self.helper.stdin.write(f"{tag} {line}\0".encode())
        self.helper.stdin.flush()
        while tag not in self.started:
            self.read_answer(COMMAND_SECONDS)
        return Process(self, tag, [str(word) for word in argv or [shell]], output)

    def run(self, argv, cwd="/", seconds=None, **keywords):
        """Runs a command to its end. Returns a Result."""
        process = self.start(argv, cwd, **keywords)
        try:
            return process.wait(seconds or COMMAND_SECONDS)
        except Timeout:
            self.kill(process.pid)
            raise

    def check(self, argv, **keywords):
        result = self.run(argv, **keywords)
        assert result.status == 0, result
        return result

    def kill(self, pid, signal_number=signal.SIGKILL):
        """Kills a process by the pid that it has in the host. Goes through the host, so that no pid is mixed up."""
        return self.run(["kill", f"-{int(signal_number)}", str(pid)]).status == 0

    def pids(self):
        """The processes of the host except its first; without a pid namespace the descendants of the first."""
        if self.pid_namespace:
            return {int(entry.name) for entry in self.proc.iterdir() if entry.name.isdigit()} - {1}
        return descendants(self.first_pid)

    def wait_empty(self, keep=(), seconds=None):
        """Waits until no process is left but those in @keep."""
        wait_until(lambda: self.pids() <= set(keep), seconds, lambda: f"still there: {describe(self)}")

    def end_all(self):
        """Kills all that runs in the host, also what a process forks before its own turn comes."""
        def is_empty():
            pids = self.pids()
            for pid in pids:
                self.kill(pid)
            return not pids
        wait_until(is_empty, explain=lambda: f"still there: {describe(self)}")

    def namespace_command(self, *kinds):
        """The beginning of a command line that enters namespaces of the host ("net", "mnt", "pid")."""
        options = {"net": "-n", "mnt": "-m", "pid": "-p"}
        return ["nsenter", "-t", str(self.first_pid), *(options[kind] for kind in kinds), "--"]


class Process:
    """A command started in a host."""

    def __init__(self, host, tag, argv, output):
        self.host, self.tag, self.argv, self.output_path = host, tag, argv, output
        self.pid = host.started[tag]
        self.start_time = time.monotonic()

    def output(self):
        # A terminal is for who watches it, and would wait for somebody to type.
        if not os.path.isfile(self.output_path):
            return ""
        with open(self.output_path, errors="replace") as file:
            return file.read()

    def wait_said(self, text):
        """Waits until the process has written @text and sleeps. What write(2) has written can be read before the file's
        offset has moved: who looks at the process's state must not come in between."""
        stat = self.host.proc / str(self.pid) / "stat"
        wait_until(lambda: text in self.output() and stat.read_text().rpartition(")")[2].split()[0] == "S")

    def wait(self, seconds=COMMAND_SECONDS):
        deadline = time.monotonic() + seconds
        while self.tag not in self.host.ended:
            try:
                self.host.read_answer(max(0.0, deadline - time.monotonic()))
            except Timeout:
                raise Timeout(f"{shlex.join(self.argv)} did not end in {seconds:.0f} s\n{self.output()[-4000:]}") \
                    from None
        return Result(self.argv, exit_status(self.host.ended[self.tag]), self.output(),
                      time.monotonic() - self.start_time)


def wait_until(condition, seconds=None, explain=lambda: ""):
    """Polls for a condition that nothing announces. Returns its value."""
    deadline = time.monotonic() + (seconds or COMMAND_SECONDS)
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Timeout(explain())
        time.sleep(0.002)


def descendants(pid):
    found = set()
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                for child in map(int, file.read().split()):
                    found |= {child} | descendants(child)
    return found


def describe(host):
    """What a program that does not answer waits for: each task's system call and the connections with bytes on the way."""
    lines = []
    for pid in sorted(host.pids()):
        directory = host.proc / str(pid)
        with contextlib.suppress(OSError):
            lines.append(f"{pid}: {(directory / 'stat').read_text()[:80]}")
            lines.append(f"    in {(directory / 'wchan').read_text()}, call {(directory / 'syscall').read_text().strip()}")
    with contextlib.suppress(OSError):
        for name in ("tcp", "tcp6"):
            for line in (pathlib.Path(f"/proc/{host.first_pid}/net") / name).read_text().splitlines()[1:]:
                words = line.split()
                if words[4] != "00000000:00000000" or words[5][:2] != "00":
                    lines.append(f"{name} {words[1]} {words[2]} state {words[3]}, queues {words[4]}, timer {words[5]}")
    return "\n".join(lines)


def tail(path, lines=25):
    try:
        with open(path, errors="replace") as file:
            return "".join(file.readlines()[-lines:])
    except OSError as error:
        return f"({error})"


class Criu:
    """The commands, run in a host. Every failure shows the command, its output and the end of its log."""

    def __init__(self, host, options=(), dump_options=(), restore_options=()):
        self.host = host
        self.dump_options, self.restore_options = [*options, *dump_options], [*options, *restore_options]

    def run(self, verb, pid, images, *options, seconds=None):
        arguments = [str(CRIU), verb, "-D", str(images), *(["-t", str(pid)] if pid else []), *map(str, options)]
        return self.host.run(arguments, seconds=seconds)

    def good(self, verb, pid, images, *options, seconds=None):
        log = os.path.join(str(images), f"{verb}.log")
        logging = ["-v4", "-o", f"{verb}.log"] if verb in ("dump", "restore") else []
        try:
            result = self.run(verb, pid, images, *logging, *options, seconds=seconds)
        except Timeout as error:
            raise AssertionError(f"{error}\n--- {log}\n{tail(log)}") from None
        assert result.status == 0, f"{result}\n--- {log}\n{tail(log)}"
        return result

    def dump(self, pid, images, *options, seconds=None):
        os.makedirs(str(images), exist_ok=True)
        return self.good("dump", pid, images, *self.dump_options, *options, seconds=seconds)

    def restore(self, pid, images, *options, seconds=None):
        return self.good("restore", pid, images, "-d", *self.restore_options, *options, seconds=seconds)

    def kill(self, pid, images, *options):
        return self.good("kill", pid, images, *options)

    def resume(self, pid, images, *options):
        return self.good("resume", pid, images, *options)


def become_subreaper():
    """Orphans of this process come to it instead of to the machine's first process."""
    ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)
