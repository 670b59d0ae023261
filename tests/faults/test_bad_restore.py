# SPDX-License-Identifier: Apache-2.0
"""Images that are not as they were written, and places where they cannot be restored: one clear line, status 1, and no
process of the restore is left."""
import os
import random
import shutil

import pytest

import faults
import hosts
import images

RESTORE = ("-d", "--tcp-established")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Images of the checker, and its pid."""
    directory = tmp_path_factory.mktemp("good")
    directory.chmod(0o755)
    with faults.checker(directory) as (_, program):
        return faults.images_of(program, directory / "images"), program.pid


@pytest.fixture
def receiver():
    with hosts.Host(net=True, first_free_pid=hosts.Host.RECEIVER) as host:
        yield host


@pytest.fixture
def copy(good, directory):
    shutil.copytree(good[0], directory / "copy")
    for log in (directory / "copy").glob("*.log"):
        log.unlink()
    return directory / "copy"


def refused(host, directory, pid, *options):
    surroundings = faults.Surroundings(host, directory)
    line = faults.one_clear_line(hosts.Criu(host).run("restore", pid, directory, *RESTORE, *options))
    host.wait_empty(seconds=10)
    surroundings.unchanged()
    return line


def refused_or_restored(host, directory, pid, what):
    """Damage that cannot be seen (in the bytes of a page) restores; all other is refused. Never a crash or a rest."""
    surroundings = faults.Surroundings(host, directory)
    result = hosts.Criu(host).run("restore", pid, directory, *RESTORE)
    assert result.status in (0, 1), f"{what}: {result}"
    if result.status == 1:
        faults.one_clear_line(result)
    else:
        for left in sorted(host.pids()):
            host.kill(left)
    host.wait_empty(seconds=10)
    surroundings.unchanged()
    return result.status


def test_good_images_are_good(receiver, copy, good):
    assert refused_or_restored(receiver, copy, good[1], "unchanged") == 0


def test_directory_is_missing(receiver, directory, good):
    assert "nowhere" in refused(receiver, directory / "nowhere", good[1])


def test_directory_is_empty(receiver, directory, good):
    (directory / "empty").mkdir()
    refused(receiver, directory / "empty", good[1])


def test_another_tree(receiver, copy, good):
    assert str(good[1]) in refused(receiver, copy, good[1] + 1)


def image_names(directory):
    return sorted(path.name for path in directory.iterdir() if path.suffix == ".img")


def kinds(directory):
    """One file of each kind."""
    found = {}
    for name in image_names(directory):
        found.setdefault("".join(c for c in name if not c.isdigit()), name)
    return sorted(found.values())


def test_each_file_missing(receiver, copy, good):
    for name in kinds(copy):
        os.rename(copy / name, copy / "away")
        refused_or_restored(receiver, copy, good[1], f"without {name}")
        os.rename(copy / "away", copy / name)


@pytest.mark.parametrize("name", ["inventory", "pstree", "core", "mm", "pagemap", "files", "fdinfo", "ids"])
def test_important_file_missing(receiver, copy, good, name):
    path = next(path for path in copy.iterdir() if path.name.startswith(name))
    path.unlink()
    refused(receiver, copy, good[1])


def test_each_file_truncated(receiver, copy, good):
    for name in kinds(copy):
        data = (copy / name).read_bytes()
        for length in sorted({0, 3, 6, 9, len(data) // 2, len(data) - 1} - {len(data)}):
            if 0 <= length < len(data):
                (copy / name).write_bytes(data[:length])
                refused_or_restored(receiver, copy, good[1], f"{name} cut to {length} of {len(data)} bytes")
        (copy / name).write_bytes(data)


def test_each_file_too_long(receiver, copy, good):
    for name in kinds(copy):
        data = (copy / name).read_bytes()
        for tail in (b"\xff", b"\xff\xff\xff\xff", b"\x10\0\0\0\x08\x96\x01"):
            (copy / name).write_bytes(data + tail)
            refused_or_restored(receiver, copy, good[1], f"{name} with {len(tail)} bytes more")
        (copy / name).write_bytes(data)


def test_files_swapped(receiver, copy, good):
    names = kinds(copy)
    for first, second in zip(names, names[1:] + names[:1]):
        os.rename(copy / first, copy / "away")
        os.rename(copy / second, copy / first)
        os.rename(copy / "away", copy / second)
        # Two images of one kind do not say whose they are.
        same_kind = first[:10] == second[:10]
        if first[:5] != "pages" and second[:5] != "pages" and not same_kind:
            refused(receiver, copy, good[1])
        else:
            refused_or_restored(receiver, copy, good[1], f"{first} and {second} exchanged")
        os.rename(copy / first, copy / "away")
        os.rename(copy / second, copy / first)
        os.rename(copy / "away", copy / second)


@pytest.mark.parametrize("seed", range(8))
def test_random_bytes_flipped(receiver, copy, good, seed):
    chance = random.Random(seed)
    names = [name for name in image_names(copy) if not name.startswith("pages-")]
    for _ in range(12):
        name = chance.choice(names)
        data = (copy / name).read_bytes()
        changed = bytearray(data)
        where = [chance.randrange(len(data)) for _ in range(chance.choice((1, 1, 1, 4)))]
        for position in where:
            changed[position] ^= 1 << chance.randrange(8)
        (copy / name).write_bytes(changed)
        refused_or_restored(receiver, copy, good[1], f"seed {seed}: {name} changed at {where}")
        (copy / name).write_bytes(data)


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def fields(message):
    """(offset, field number, wire type, end) of the top level of a message."""
    offset = 0
    while offset < len(message):
        start, shift, tag = offset, 0, 0
        while True:
            byte = message[offset]
            tag, shift, offset = tag | (byte & 127) << shift, shift + 7, offset + 1
            if byte < 128:
                break
        value_start = offset
        if tag & 7 == 0:
            while message[offset] >= 128:
                offset += 1
            offset += 1
        elif tag & 7 == 2:
            length, shift = 0, 0
            while True:
                byte = message[offset]
                length, shift, offset = length | (byte & 127) << shift, shift + 7, offset + 1
                if byte < 128:
                    break
            offset += length
        else:
            offset += 8 if tag & 7 == 1 else 4
        yield start, tag >> 3, tag & 7, value_start, offset


HOSTILE = [0, 1 << 31, (1 << 32) - 1, (1 << 63), (1 << 64) - 1, 1 << 47, 0x7fffffff]


@pytest.mark.parametrize("kind", ["inventory", "pstree", "core", "mm", "pagemap", "files", "fdinfo", "ids", "fs", "tcp-stream",
                                  "pipes-data"])
def test_numbers_out_of_range(receiver, copy, good, kind):
    """Every number at the top level of one entry becomes hostile, one after another."""
    path = next((path for path in sorted(copy.iterdir()) if path.name.startswith(kind)), None)
    if path is None:
        pytest.skip(f"no {kind} image")
    data = path.read_bytes()
    head = 4 if kind == "inventory" else 8
    length = int.from_bytes(data[head:head + 4], "little")
    message, rest = data[head + 4:head + 4 + length], data[head + 4 + length:]
    for _, number, wire, value_start, end in fields(message):
        for value in HOSTILE if wire == 0 else ():
            changed = message[:value_start] + varint(value) + message[end:]
            path.write_bytes(data[:head] + len(changed).to_bytes(4, "little") + changed + rest)
            refused_or_restored(receiver, copy, good[1], f"{path.name}: field {number} is {value:#x}")
    path.write_bytes(data)


def test_another_architecture(receiver, copy, good):
    path = copy / f"core-{good[1]}.img"
    data = bytearray(path.read_bytes())
    # core_entry.mtype is the first field: 08 01 = x86_64; 4 = aarch64 after arm (3)
    assert data[12:14] == b"\x08\x01"
    data[13] = 3
    path.write_bytes(data)
    assert "arch" in refused(receiver, copy, good[1]).lower()


def test_newer_version(receiver, copy, good):
    path = copy / "inventory.img"
    data = bytearray(path.read_bytes())
    assert data[8] == 0x08
    data[9] = 0x7f
    path.write_bytes(data)
    assert "version" in refused(receiver, copy, good[1])


def test_pid_in_use(directory):
    """Beside the original, which runs on."""
    with faults.checker(directory) as (host, program):
        copied = faults.images_of(program, directory / "images")
        before = faults.state(host)
        line = faults.one_clear_line(hosts.Criu(host).run("restore", program.pid, copied, *RESTORE))
        assert str(program.pid) in line, line
        faults.unharmed(program, before, line)


def test_file_is_gone(directory):
    """What a task opens late is missing: all that was made before must go."""
    with faults.checker(directory) as (host, program):
        copied = directory / "images"
        hosts.Criu(host).dump(program.pid, copied, "--tcp-established")
        host.wait_empty()
        os.rename(directory / "program" / "ctl", directory / "program" / "elsewhere")
        assert "ctl" in refused(host, copied, program.pid)
        # A file of another type would be taken for it, and its bytes for those in the fifo.
        (directory / "program" / "ctl").write_text("no fifo")
        assert "not a fifo any more" in refused(host, copied, program.pid)
        (directory / "program" / "ctl").unlink()
        os.rename(directory / "program" / "elsewhere", directory / "program" / "ctl")
        # And with the file back, it works.
        hosts.Criu(host).restore(program.pid, copied, "--tcp-established")
        program.check("after the failed and the good restore")


def test_kill_and_resume_refuse(directory):
    """Both want a tree that is stopped and is the one of the images."""
    with faults.checker(directory) as (host, program):
        copied = faults.images_of(program, directory / "images")
        before = faults.state(host)
        for verb in ("kill", "resume"):
            faults.one_clear_line(hosts.Criu(host).run(verb, program.pid, copied))
            faults.one_clear_line(hosts.Criu(host).run(verb, 31999, copied))
        faults.unharmed(program, before, "after refused kill and resume")
        other = host.start(["sleep", "1000"])
        host.kill(other.pid, 19)
        hosts.wait_until(lambda: "\nState:\tT" in (host.proc / str(other.pid) / "status").read_text())
        for verb in ("kill", "resume"):
            faults.one_clear_line(hosts.Criu(host).run(verb, other.pid, copied))
        assert "\nState:\tT" in (host.proc / str(other.pid) / "status").read_text()


def test_good_images_have_no_broken_framing(good):
    """The helper above relies on it."""
    for path in good[0].glob("*.img"):
        images.entries(path)
