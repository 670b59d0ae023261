# SPDX-License-Identifier: Apache-2.0
"""What can be asked of a restore: to leave the tree stopped, whose child it is, pid files, what is told."""
import json
import signal

import pytest

import hosts

WORKLOAD = hosts.BUILD / "tests" / "perf" / "workload"


@pytest.fixture
def dumped(host, directory):
    """A program of 20 threads that is dumped and gone. Returns its Process."""
    process = host.start([WORKLOAD, "threads", "20"], cwd=directory, output=directory / "output")
    process.wait_said("ready")
    hosts.Criu(host).dump(process.pid, directory / "images")
    host.wait_empty()
    return process


def restore(host, process, directory, *options, before="", after="", command=()):
    """From a shell, as a user would. Returns the Result."""
    words = [hosts.CRIU, "restore", "-t", process.pid, "-D", directory / "images", *options, *(["--", *command] if command else [])]
    return host.run(None, shell="sh -c " + hosts.shlex.quote(f"{before} {hosts.shlex.join(map(str, words))} {after}"))


def states(host, pid):
    return {(task / "stat").read_text().rpartition(")")[2].split()[0]
            for task in (host.proc / str(pid) / "task").iterdir()}


def is_intact(host, process):
    answers = process.output().count("\n")
    host.kill(process.pid, signal.SIGUSR1)
    hosts.wait_until(lambda: process.output().count("\n") > answers)
    return process.output().endswith("intact\n")


def test_leave_stopped(host, directory, dumped):
    result = restore(host, dumped, directory, "-d", "--leave-stopped")
    assert result.status == 0, result
    hosts.wait_until(lambda: states(host, dumped.pid) == {"T"}, explain=lambda: states(host, dumped.pid))
    assert len(list((host.proc / str(dumped.pid) / "task").iterdir())) == 20
    host.kill(dumped.pid, signal.SIGCONT)
    assert is_intact(host, dumped)
    assert restore(host, dumped, directory, "--leave-stopped").status == 1  # criu would wait for it


def test_pidfile(host, directory, dumped):
    result = restore(host, dumped, directory, "-d", "--pidfile", "root.pid")
    assert result.status == 0, result
    assert (directory / "images" / "root.pid").read_text() == str(dumped.pid)
    host.kill(dumped.pid)
    host.wait_empty()
    result = restore(host, dumped, directory, "-d", "--pidfile", "root.pid")
    assert result.status == 1 and "root.pid" in result.output and "remove it" in result.output, result
    assert not host.pids(), hosts.describe(host)


def test_exec_cmd(host, directory, dumped):
    """The command takes the place of criu, whose child the tree is."""
    look = f"echo $$; grep PPid /proc/{dumped.pid}/status; kill -9 {dumped.pid}"
    result = restore(host, dumped, directory, "--exec-cmd", command=("sh", "-c", look))
    assert result.status == 0, result
    command, parent = result.output.split()[0], result.output.split()[-1]
    assert command == parent, result


def test_sibling(host, directory, dumped):
    """The tree is a child of the shell that has started criu."""
    result = restore(host, dumped, directory, "-d", "-S",
                     after=f"&& echo $$ && grep PPid /proc/{dumped.pid}/status && kill -9 {dumped.pid}")
    assert result.status == 0, result
    assert result.output.split()[0] == result.output.split()[-1], result


@pytest.mark.parametrize("number", [0, 1, 3, 7])
def test_close(host, directory, dumped, number):
    """Also a number that criu would have used itself, or one that it writes to."""
    script = directory / "script"
    script.write_text(f"#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION = pre-restore ] || exit 0\n"
                      f"readlink /proc/$PPID/fd/{number} >{directory}/link\nexit 0\n")
    script.chmod(0o755)
    result = restore(host, dumped, directory, "-d", "--close", number, "--action-script", script,
                     before=f"exec {number}<>{directory}/held;")
    assert result.status == 0, result
    assert (directory / "link").read_text().strip() != str(directory / "held")
    assert is_intact(host, dumped)


def test_pid_of_a_zombie(host, directory, dumped):
    """The number is free as soon as somebody waits for its last owner; the message says who has to."""
    holder = host.start(["/usr/bin/python3", "-c", f"""
import os, time
for attempt in range(100):
    open("/proc/sys/kernel/ns_last_pid", "w").write("{dumped.pid - 1}")
    child = os.fork()
    if child == 0:
        os._exit(0)
    if child == {dumped.pid}:
        break
    os.waitpid(child, 0)
os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
print("zombie", flush=True)
time.sleep(1000)
"""])
    holder.wait_said("zombie")
    result = restore(host, dumped, directory, "-d")
    assert result.status == 1, result
    assert f"process {dumped.pid} (python3) has ended and waits to be reaped by its parent {holder.pid} (python3)" \
        in result.output, result
    assert host.pids() == {holder.pid, dumped.pid}, hosts.describe(host)


def test_events_and_statistics(host, directory, dumped):
    result = restore(host, dumped, directory, "-d", "--json", "--display-stats")
    assert result.status == 0, result
    events = [json.loads(line) for line in result.output.splitlines()]
    assert [event["stage"] for event in events if event["event"] == "stage"] == ["read", "memory", "finish"]
    progress = [event for event in events if event["event"] == "progress"]
    assert progress and all(0 < event["done_bytes"] <= event["total_bytes"] for event in progress), progress
    stats = next(event for event in events if event["event"] == "stats")
    assert stats["pages_restored"] >= 256, stats  # the workload's mebibyte
    assert 0 < stats["forking_time_us"] <= stats["restore_time_us"]
    host.kill(dumped.pid)
    host.wait_empty()
    result = restore(host, dumped, directory, "-d", "--display-stats")
    pages = next(line for line in result.output.splitlines() if line.startswith("Pages restored:"))
    assert int(pages.split()[-1]) == stats["pages_restored"], result


def test_events_of_a_wrong_command_line(host):
    """Whoever asked for events gets the failure as one, wherever the word stands."""
    for words in ("dump -t abc --json", "dump --bogus --json", "--json dump"):
        result = host.run([hosts.CRIU, *words.split()])
        assert result.status == 1, result
        assert json.loads(result.output)["event"] == "failure", result


def test_dedup_tells_its_end(host, directory, dumped):
    result = host.run([hosts.CRIU, "dedup", "-D", directory / "images", "--json"])
    assert result.status == 0 and json.loads(result.output) == {"event": "done"}, result
    (directory / "none").mkdir()
    result = host.run([hosts.CRIU, "dedup", "-D", directory / "none"])
    assert result.status == 1 and "no images of memory" in result.output, result


def test_config_that_never_ends(host, directory):
    result = host.run([hosts.CRIU, "dump", "-t", "1", "-D", directory, "--config", "/dev/zero"])
    assert result.status == 1 and result.output.startswith("criu: /dev/zero: "), result


def test_home_of_somebody_else(host, directory):
    """After su, HOME may be one that this user may not look into."""
    (directory / "home" / ".criu").mkdir(parents=True)
    (directory / "home" / ".criu" / "default.conf").write_text("bogus\n")
    (directory / "home").chmod(0o700)
    (directory / "images").mkdir()
    command = [hosts.CRIU, "show", "-D", directory / "images"]
    result = host.run(["env", f"HOME={directory / 'home'}", *command])
    assert result.status == 1 and "default.conf" in result.output, result
    result = host.run(["setpriv", "--reuid", "65534", "--clear-groups", "env", f"HOME={directory / 'home'}", *command])
    assert result.status == 1 and "default.conf" not in result.output, result
