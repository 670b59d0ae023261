# SPDX-License-Identifier: Apache-2.0
"""The golden images, which CRIU 4.2 wrote for a small zoo of kernel objects, restore here whole; and what this project
writes for the same program has the same files and entries. They lie outside of the repository ($CRIU_SHARED, or
../shared); without them these tests are skipped."""
import ctypes
import fcntl
import json
import os
import pathlib
import shutil
import signal
import socket
import struct

import pytest

import hosts
import images

SHARED = pathlib.Path(os.environ.get("CRIU_SHARED", hosts.TESTS.parent.parent / "shared"))
ZOO = SHARED / "golden" / "zoo"
ROOT, CHILD, ZOMBIE, STOPPED, GRANDCHILD = 8544, 8548, 8549, 8550, 8551
OPTIONS = ("--tcp-established", "--file-locks", "--link-remap", "--manage-cgroups=ignore")

pytestmark = pytest.mark.skipif(not (ZOO / "images").is_dir(), reason=f"no golden images in {ZOO}")

PREPARE = """
set -e
mount -t tmpfs tmpfs /opt
mkdir -p /opt/zoo/d
cp {zoo}/zoo /opt/zoo/zoo
chmod 755 /opt/zoo/zoo
"""
# As the images name them: "reg" has mode 0640 and its content, the others their type.
FILES = """
set -e
cd /opt/zoo/d
printf 'hello regular' > reg
chmod 640 reg
mkfifo -m 600 fifo
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("listen.sock")'
chmod 750 listen.sock
"""


def golden(name):
    return json.loads((ZOO / "json" / f"{name}.img.json").read_text())["entries"]


@pytest.fixture
def zoo_host():
    with hosts.Host(net=True) as host:
        host.check(["sh", "-c", PREPARE.format(zoo=ZOO)])
        yield host


class Tree:
    """Looks into the processes from outside, by their pids in the host."""

    def __init__(self, host):
        self.host, self.outer = host, {}
        for pid in hosts.descendants(host.first_pid):
            status = dict(line.split(":", 1) for line in open(f"/proc/{pid}/status"))
            self.outer[int(status["NSpid"].split()[-1])] = pid

    def proc(self, pid, name):
        return f"/proc/{self.outer[pid]}/{name}"

    def text(self, pid, name):
        with open(self.proc(pid, name)) as file:
            return file.read()

    def status(self, pid, field):
        return next(line.split(":", 1)[1].strip() for line in self.text(pid, "status").splitlines()
                    if line.startswith(field + ":"))

    def memory(self, pid, address, length):
        with open(self.proc(pid, "mem"), "rb") as memory:
            memory.seek(address)
            return memory.read(length)

    def fdinfo(self, pid, number):
        return self.text(pid, f"fdinfo/{number}")

    def descriptor(self, pid, number):
        """Our own descriptor for an open file of the process (pidfd_getfd)."""
        libc = ctypes.CDLL(None, use_errno=True)
        pidfd = os.pidfd_open(self.outer[pid])
        try:
            fd = libc.syscall(438, pidfd, number, 0)
        finally:
            os.close(pidfd)
        if fd < 0:
            raise OSError(ctypes.get_errno(), f"pidfd_getfd {number}")
        return fd

    def socket(self, pid, number):
        return socket.socket(fileno=self.descriptor(pid, number))

    def read(self, pid, number, count):
        fd = self.descriptor(pid, number)
        os.set_blocking(fd, False)
        try:
            return os.read(fd, count)
        finally:
            os.close(fd)


def stat_fields(tree, pid):
    """state, ppid, pgrp, session"""
    return tree.text(pid, "stat").rpartition(")")[2].split()[:4]


def check_tree(tree):
    root = str(ROOT)
    assert set(tree.outer) - {1} == {ROOT, CHILD, ZOMBIE, STOPPED, GRANDCHILD}
    assert tree.host.proc.joinpath(root, "stat").exists()

    def place(pid):
        fields = (tree.host.proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return fields[0].replace("R", "S"), *map(int, fields[1:4])
    assert place(ROOT)[2:] == (ROOT, ROOT)
    assert place(CHILD) == ("S", ROOT, CHILD, CHILD)
    assert place(GRANDCHILD) == ("S", CHILD, GRANDCHILD, CHILD)
    assert place(ZOMBIE) == ("Z", ROOT, ROOT, ROOT)
    assert place(STOPPED) == ("T", ROOT, ROOT, ROOT)
    # exit_code, the last field
    assert int(tree.text(ZOMBIE, "stat").split()[-1]) == 3 << 8
    threads = sorted(int(tid) for tid in os.listdir(tree.host.proc / root / "task"))
    assert threads == [8544, 8546, 8547]
    names = {(tree.host.proc / root / "task" / str(tid) / "comm").read_text().strip() for tid in threads}
    assert names == {"zoo-keeper", "zoo-thread-1", "zoo-thread-2"}
    assert tree.text(CHILD, "comm").strip() == "zoo-child"


def check_task(tree):
    assert tree.status(ROOT, "Umask") == "0027"
    assert int(tree.status(ROOT, "SigBlk"), 16) == 1 << (signal.SIGUSR1 - 1) | 1 << (signal.SIGUSR2 - 1)
    assert int(tree.status(ROOT, "ShdPnd"), 16) & 1 << (signal.SIGUSR1 - 1)
    assert int(tree.status(ROOT, "SigIgn"), 16) & 1 << (signal.SIGPIPE - 1)
    assert int(tree.status(ROOT, "SigCgt"), 16) & 1
    limits = next(line for line in tree.text(ROOT, "limits").splitlines() if line.startswith("Max open files"))
    assert limits.split()[3:5] == ["1000", "4000"]
    assert os.readlink(tree.proc(ROOT, "exe")) == "/opt/zoo/zoo"
    assert os.readlink(tree.proc(ROOT, "cwd")) == "/opt/zoo/d"
    timers = tree.text(ROOT, "timers")
    assert "ID: 0" in timers and f"signal: {int(signal.SIGHUP)}/" in timers


def smaps(tree, pid):
    found, current = {}, None
    for line in tree.text(pid, "smaps").splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            current = found.setdefault(tuple(int(part, 16) for part in first.split("-")), {})
            current["mode"] = line.split()[1]
        else:
            key, _, value = line.partition(":")
            current[key] = value.split()
    return found


def check_memory(tree):
    def maps(pid):
        return [(start, end, values) for (start, end), values in sorted(smaps(tree, pid).items()) if start < 1 << 47]
    for pid in (ROOT, CHILD, STOPPED, GRANDCHILD):
        have = maps(pid)
        for vma in golden(f"mm-{pid}")[0]["vmas"]:
            start, end = int(vma["start"], 16), int(vma["end"], 16)
            if start >= 1 << 47 or "VVAR" in vma["status"] or "VDSO" in vma["status"]:
                continue
            mode = "".join(letter if f"PROT_{name}" in vma["prot"] else "-"
                           for letter, name in (("r", "READ"), ("w", "WRITE"), ("x", "EXEC")))
            mode += "s" if "MAP_SHARED" in vma["flags"] else "p"
            assert any(a <= start and end <= b and values["mode"] == mode for a, b, values in have), \
                f"pid {pid}: {vma['start']}-{vma['end']} {mode} is missing"
    flags = {start: values["VmFlags"] for start, _, values in maps(ROOT)}
    assert "gd" in flags[0x7f6d25983000] and "lo" in flags[0x7f6d259a7000] and "dc" in flags[0x7f6d259c7000]
    area = 0x7f6d259a7000
    assert tree.memory(ROOT, area, 3 * 4096) == b"A" * 3 * 4096
    assert tree.memory(ROOT, area + 3 * 4096, 4096) == bytes(4096)
    assert tree.memory(ROOT, area + 10 * 4096, 4096) == b"B" * 4096
    assert tree.memory(CHILD, area, 2) == b"CA", "the child's own page"
    assert tree.memory(ROOT, 0x7f6d25997000, 4096) == b"S" * 4096
    assert tree.memory(ROOT, 0x7f6d25996000, 13) == b"Jello regular"
    assert tree.memory(ROOT, 0x7f6d25995000, 13) == b"hello regular"
    assert tree.memory(ROOT, 0x7f6d25993000, 10) == b"memfd data"


def check_files(tree):
    numbers = sorted(entry["fd"] for entry in golden("fdinfo-2"))
    for pid in (ROOT, CHILD, STOPPED, GRANDCHILD):
        have = sorted(map(int, os.listdir(tree.proc(pid, "fd"))))
        assert have == (numbers if pid == ROOT else [n for n in numbers if n != 35]), f"descriptors of pid {pid}"
    assert "pos:\t5" in tree.fdinfo(ROOT, 4) and "flags:\t0102002" in tree.fdinfo(ROOT, 4)
    assert os.readlink(tree.proc(ROOT, "fd/6")) == "/opt/zoo/d/ghost (deleted)"
    with open(tree.proc(ROOT, "fd/6"), "rb") as ghost:
        assert ghost.read() == b"ghost contents"
    assert "pos:\t14" in tree.fdinfo(ROOT, 6)
    assert int(tree.fdinfo(ROOT, 8).split("flags:")[1].split()[0], 8) & 0o10000000, "O_PATH"
    # What is queued, last, because looking takes it away; the same open file in all processes.
    assert tree.read(CHILD, 9, 100) == b"in the pipe"
    assert tree.read(ROOT, 12, 100) == b"in the fifo"
    fd = tree.descriptor(ROOT, 11)
    assert fcntl.fcntl(fd, 1032) == 131072, "the size of the pipe"
    os.close(fd)
    assert "eventfd-count:               2a" in tree.fdinfo(ROOT, 26)
    epoll = [line for line in tree.fdinfo(ROOT, 27).splitlines() if line.startswith("tfd:")]
    assert len(epoll) == 2 and all("data: 1122334455667788" in line for line in epoll)
    assert "sigmask:\t0000000000000800" in tree.fdinfo(ROOT, 28)
    assert "it_interval: (3600, 5)" in tree.fdinfo(ROOT, 29) or "it_interval: (3600, 0)" in tree.fdinfo(ROOT, 29)
    assert "inotify wd:1" in tree.fdinfo(ROOT, 30) and "mask:300" in tree.fdinfo(ROOT, 30)
    memfd = tree.descriptor(ROOT, 31)
    assert fcntl.fcntl(memfd, 1034) == 2, "F_SEAL_SHRINK"
    assert os.fstat(memfd).st_size == 8192
    os.close(memfd)
    assert f"Pid:\t{tree.outer[CHILD]}" in tree.fdinfo(ROOT, 35) or f"NSpid:\t{tree.outer[CHILD]}" in tree.fdinfo(ROOT, 35)
    assert "FLOCK  ADVISORY  WRITE" in tree.fdinfo(ROOT, 4), "the lock of the whole file"
    assert "POSIX  ADVISORY  READ" in tree.fdinfo(ROOT, 34), "the lock of a range"
    assert tree.read(ROOT, 33, 100) == b"typed\n"


def check_sockets(tree):
    stream, packets = tree.socket(ROOT, 14), tree.socket(ROOT, 16)
    assert stream.type == socket.SOCK_STREAM and stream.recv(100, socket.MSG_DONTWAIT) == b"unix stream data"
    assert packets.type == socket.SOCK_SEQPACKET
    assert [packets.recv(100, socket.MSG_DONTWAIT) for _ in range(2)] == [b"packet1", b"packet22"]
    listening = tree.socket(ROOT, 17)
    assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1 and listening.getsockname() == "listen.sock"
    assert tree.socket(ROOT, 18).recv(100, socket.MSG_DONTWAIT) == b"accepted"
    assert tree.socket(ROOT, 20).getsockname() == b"\0zoo-abstract"
    tcp = tree.socket(ROOT, 21)
    assert tcp.getsockname() == ("127.0.0.1", 18080) and tcp.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    client, server = tree.socket(ROOT, 22), tree.socket(ROOT, 23)
    assert client.getpeername() == ("127.0.0.1", 18080) and server.getpeername() == client.getsockname()
    assert server.recv(100, socket.MSG_DONTWAIT) == b"tcp bytes in flight"
    assert client.recv(100, socket.MSG_DONTWAIT) == b"reply"
    # And it is alive, both ways.
    client.settimeout(hosts.COMMAND_SECONDS)
    server.settimeout(hosts.COMMAND_SECONDS)
    client.sendall(b"more")
    assert server.recv(100) == b"more"
    server.sendall(b"back")
    assert client.recv(100) == b"back"
    assert tree.socket(ROOT, 24).getsockname()[:2] == ("::1", 18081)
    netlink = tree.socket(ROOT, 25)
    assert netlink.family == socket.AF_NETLINK
    netlink.settimeout(hosts.COMMAND_SECONDS)
    # RTM_GETLINK of the loopback interface.
    netlink.sendto(struct.pack("=LHHLL", 32, 18, 1, 1, 0) + struct.pack("=BBHiLL", 0, 0, 0, 1, 0, 0), (0, 0))
    assert struct.unpack_from("=LH", netlink.recv(65536))[1] == 16


def restore(host, directory):
    host.check(["sh", "-c", FILES])
    shutil.copytree(ZOO / "images", directory)
    hosts.Criu(host, OPTIONS).restore(ROOT, directory)
    return Tree(host)


@pytest.mark.parametrize("check", [check_tree, check_task, check_memory, check_files, check_sockets],
                         ids=["tree", "task", "memory", "files", "sockets"])
def test_golden_images_restore(zoo_host, directory, check):
    check(restore(zoo_host, directory / "images"))


def same_images(golden_directory, ours):
    """Kinds of files, entries and open files. CRIU's own statistics and time are not part of the tree."""
    assert images.kinds_of_files(ours) == images.kinds_of_files(golden_directory)
    regular = 1  # CRIU writes the working and root directory once for each task, here all tasks share the entry
    types, golden_types = images.file_types(ours), images.file_types(golden_directory)
    assert types.keys() == golden_types.keys() and types[regular] <= golden_types[regular]
    assert {**types, regular: 0} == {**golden_types, regular: 0}


def test_restored_golden_dumps_again(zoo_host, directory):
    restore(zoo_host, directory / "images")
    hosts.Criu(zoo_host, OPTIONS).dump(ROOT, directory / "again")
    zoo_host.wait_empty()
    same_images(ZOO / "images", directory / "again")
    want, have = images.entry_counts(ZOO / "images"), images.entry_counts(directory / "again")
    assert {name for name in want if name.startswith(("core", "mm", "fs"))} <= set(have)


def start_zoo(host):
    """The program as it ran for the golden dump: an empty environment, descriptor 10 in use (but not the pipe)."""
    process = host.start(None, shell="bash -c 'exec env -i /opt/zoo/zoo 10</dev/null'", cwd="/opt/zoo")
    hosts.wait_until(lambda: host.path("/opt/zoo/pid").exists() and host.path("/opt/zoo/pid").read_text(),
                     explain=process.output)
    return int(host.path("/opt/zoo/pid").read_text())


def test_live_zoo_dumps_like_golden(zoo_host, directory):
    pid = start_zoo(zoo_host)
    hosts.Criu(zoo_host, OPTIONS).dump(pid, directory / "images")
    zoo_host.wait_empty()
    kinds, wanted = images.kinds_of_files(directory / "images"), images.kinds_of_files(ZOO / "images")
    assert kinds == wanted
    # It had one pipe more, of its parent, and another standard output.
    ours, theirs = images.file_types(directory / "images"), images.file_types(ZOO / "images")
    assert set(ours) == set(theirs)
    hosts.Criu(zoo_host, OPTIONS).restore(pid, directory / "images")
    assert len(zoo_host.pids()) == 5


