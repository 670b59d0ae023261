# SPDX-License-Identifier: Apache-2.0
"""Dumps that cannot work: the answer is one clear line and status 1, and the program does not notice."""
import os
import shutil

import pytest

import faults
import hosts

DUMP = ("--tcp-established",)


def refused(program, images, pid, *options, mentions=()):
    """The dump of @pid fails and harms nobody."""
    host = program.host
    surroundings = faults.Surroundings(host, images)
    before = faults.state(host)
    line = faults.one_clear_line(hosts.Criu(host).run("dump", pid, images, *DUMP, *options))
    for word in mentions:
        assert str(word) in line, f"the line does not say {word!r}: {line}"
    faults.unharmed(program, before, line)
    # Images that a failed dump began may stay: they cannot be restored, and the next dump writes over them.
    surroundings.unchanged(but=("files of the images",))
    return line


@pytest.fixture
def running(directory):
    with faults.checker(directory) as pair:
        yield pair[1]


def test_images_directory_is_missing(running, directory):
    refused(running, directory / "nowhere", running.pid, mentions=["nowhere"])


def test_images_directory_is_a_file(running, directory):
    (directory / "file").write_text("")
    refused(running, directory / "file", running.pid, mentions=["file"])


def test_images_directory_is_read_only(running, directory):
    (directory / "images").mkdir()
    running.host.check(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(directory / "images")])
    refused(running, directory / "images", running.pid, mentions=["ead-only"])


@pytest.mark.parametrize("kib", [4, 64, 300, 1500])
def test_disk_is_full(running, directory, kib):
    (directory / "images").mkdir()
    running.host.check(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(directory / "images")])
    refused(running, directory / "images", running.pid, mentions=["space"])


def test_pid_does_not_exist(running, directory):
    (directory / "images").mkdir()
    refused(running, directory / "images", 31999, mentions=[31999])


def test_pid_is_a_thread(running, directory):
    (directory / "images").mkdir()
    tids = sorted(int(tid) for tid in os.listdir(running.host.proc / str(running.pid) / "task"))
    refused(running, directory / "images", tids[-1], mentions=["thread"])


def test_pid_is_a_zombie(running, directory):
    (directory / "images").mkdir()
    zombie = running.host.start(["sh", "-c", "sleep 0 & exec sleep 1000"])

    def dead_child():
        children = (running.host.proc / f"{zombie.pid}/task/{zombie.pid}/children").read_text().split()
        return [pid for pid in children if "\nState:\tZ" in (running.host.proc / pid / "status").read_text()]
    pid = hosts.wait_until(dead_child)[0]
    refused(running, directory / "images", pid)
    running.host.kill(zombie.pid)


@pytest.mark.parametrize("word", ["0", "-1", "abc", "1x", "99999999999", ""])
def test_pid_is_no_pid(running, directory, word):
    (directory / "images").mkdir()
    result = running.host.run([str(hosts.CRIU), "dump", "-D", str(directory / "images"), "--tree", word])
    assert result.status == 1 and result.output.startswith("criu: "), result


def test_pid_is_the_first_of_the_namespace(running, directory):
    """It is criu's ancestor: stopping it would stop criu."""
    (directory / "images").mkdir()
    refused(running, directory / "images", 1)


@pytest.mark.parametrize("script", ["exec {criu} dump -D {images} -t $$", "{criu} dump -D {images} -t $$; exit $?"],
                         ids=["itself", "ancestor"])
def test_pid_is_criu_itself_or_its_ancestor(running, directory, script):
    (directory / "images").mkdir()
    before = faults.state(running.host)
    result = running.host.run(["sh", "-c", script.format(criu=hosts.CRIU, images=directory / "images")])
    faults.one_clear_line(result)
    faults.unharmed(running, before, "after it")


def test_pid_is_a_kernel_thread(directory):
    (directory / "images").mkdir()
    kernel_thread = next((pid for pid in os.listdir("/proc") if pid.isdigit() and
                          not os.path.exists(f"/proc/{pid}/exe") and hosts.tail(f"/proc/{pid}/cmdline") == "" and
                          " 0 0 0 0 -1" in hosts.tail(f"/proc/{pid}/stat")), None)
    if not kernel_thread:
        pytest.skip("no kernel thread is visible here")
    with hosts.Host(pid=False, mount=False) as host:
        line = faults.one_clear_line(hosts.Criu(host).run("dump", kernel_thread, directory / "images"))
        assert "kernel" in line, line


CONNECTED = """
import os, socket, time
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
if os.fork():
    del listener, client
    while True: server.sendall(server.recv(100))
del listener, server
os.setsid()
print("up", flush=True)
while True: client.sendall(b"x"), client.recv(100), time.sleep(0.01)
"""


def test_traced_program(running, directory):
    """Somebody else's ptrace is in the way, and stays."""
    strace = running.host.start(["strace", "-f", "-o", "/dev/null", "-p", str(running.pid)])
    tracer = running.host.proc / str(running.pid) / "status"
    hosts.wait_until(lambda: "TracerPid:\t0" not in tracer.read_text(), explain=strace.output)
    (directory / "images").mkdir()
    line = faults.one_clear_line(hosts.Criu(running.host).run("dump", running.pid, directory / "images", *DUMP))
    assert str(strace.pid) in line or "trac" in line, line
    running.check(line)
    running.host.kill(strace.pid, 2)
    strace.wait()


def test_dump_again_after_failures(running, directory):
    """A failed dump is no reason for the next one to fail."""
    (directory / "full").mkdir()
    running.host.check(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(directory / "full")])
    for _ in range(3):
        hosts.Criu(running.host).run("dump", running.pid, directory / "full", *DUMP)
    before = faults.state(running.host)
    hosts.Criu(running.host).dump(running.pid, directory / "images", "--leave-running", *DUMP)
    faults.unharmed(running, before, "after a good dump")


def test_programs_that_cannot_be_dumped_run_on(directory):
    """Refused kinds: one line with object and cause, and the program answers as before."""
    with hosts.Host(net=True) as host:
        # A listener of a family that nobody supports yet.
        script = "import socket, time\ns = socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)\nprint('up', flush=True)\n" \
                 "while True: time.sleep(0.01)"
        process = host.start(["/usr/bin/python3", "-c", script])
        try:
            hosts.wait_until(lambda: "up\n" == process.output() or process.tag in host.ended, seconds=10)
        except hosts.Timeout:
            pass
        if "up\n" != process.output():
            pytest.skip("no AF_ALG here")
        (directory / "images").mkdir()
        line = faults.one_clear_line(hosts.Criu(host).run("dump", process.pid, directory / "images"))
        assert "fd 3" in line, line
        assert process.pid in host.pids()
        result = host.run([str(hosts.CRIU), "explain", "--tree", str(process.pid)])
        assert "fd 3" in result.output, result


def test_images_of_an_earlier_dump_take_no_part(directory):
    """The first program is deleted, so its images have a file more than those of the second in the same directory."""
    images = directory / "images"
    images.mkdir()
    (images / "notes.txt").write_text("of the user")
    with hosts.Host() as host:
        criu = hosts.Criu(host)
        for name in ("first", "second"):
            shutil.copy("/bin/sleep", directory / name)
            process = host.start([directory / name, "1000"], cwd=directory)
            exe = host.proc / str(process.pid) / "exe"
            hosts.wait_until(lambda: os.readlink(exe) == str(directory / name), explain=lambda: os.readlink(exe))
            if name == "first":
                (directory / name).unlink()
            criu.dump(process.pid, images)
            host.wait_empty()
        assert not (images / "remap-fpath.img").exists() and not list(images.glob("ghost-file-*.img"))
        assert (images / "notes.txt").exists()
        criu.restore(process.pid, images)
        assert os.readlink(exe) == str(directory / "second")


def test_thread_that_cannot_be_stopped(directory):
    """A vfork whose child goes on hangs in the kernel: criu gives up in time, and lets go of what it has stopped."""
    images, source = directory / "images", directory / "in"
    images.mkdir()
    os.mkfifo(source)
    keep = os.open(source, os.O_RDWR)
    with hosts.Host() as host:
        process = host.start([hosts.BUILD / "tests" / "faults" / "vfork_parent"], stdin=source)
        process.wait_said("ready")
        tasks = host.proc / str(process.pid) / "task"
        hosts.wait_until(lambda: any("State:\tD" in (task / "status").read_text() for task in tasks.iterdir()),
                         explain=lambda: "no thread is in vfork")
        line = faults.one_clear_line(hosts.Criu(host).run("dump", process.pid, images, "--timeout", "1", seconds=30))
        assert "did not stop in 1 seconds" in line, line
        assert all("TracerPid:\t0" in (task / "status").read_text() for task in tasks.iterdir())
        host.kill(process.pid, hosts.signal.SIGUSR1)
        process.wait_said("alive")
    os.close(keep)
