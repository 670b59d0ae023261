# SPDX-License-Identifier: Apache-2.0
"""CLOCK_MONOTONIC and CLOCK_BOOTTIME on another machine: its images say so, and this machine's clocks are behind or
far ahead. kinds/time.c looks from the inside."""
import json
import os

import pytest

import hosts
from program import Program

CRIT = hosts.BUILD / "tools" / "crit"
SECOND = 10 ** 9
TEN_DAYS = 864000


def decode(images, name):
    text = hosts.subprocess.run([CRIT, "decode", "-i", images / name], check=True, capture_output=True, text=True).stdout
    return json.loads(text)


def edit_clocks(images, change):
    """Lets @change edit the entry of timens-0.img. Returns the clocks that it says then, in nanoseconds."""
    document = decode(images, "timens-0.img")
    entry = document["entries"][0]
    change(entry)
    (images / "timens.json").write_text(json.dumps(document))
    hosts.subprocess.run([CRIT, "encode", "-i", images / "timens.json", "-o", images / "timens-0.img"], check=True)
    return [int(entry[clock]["tv_sec"]) * SECOND + int(entry[clock]["tv_nsec"]) for clock in ("monotonic", "boottime")]


def move_clocks(entry, seconds):
    for clock in ("monotonic", "boottime"):
        entry[clock]["tv_sec"] = int(entry[clock]["tv_sec"]) + seconds


def other_machine_ahead(entry):
    move_clocks(entry, TEN_DAYS)
    entry["boot_id"] = "00000000-0000-0000-0000-000000000000"


def other_machine_behind(entry):
    entry["monotonic"]["tv_sec"], entry["boottime"]["tv_sec"] = 100, 200
    entry["boot_id"] = "00000000-0000-0000-0000-000000000000"


def images_of_criu(entry):
    move_clocks(entry, TEN_DAYS)
    for extension in ("boot_id", "monotonic_offset_ns", "boottime_offset_ns"):
        del entry[extension]


def set_back_to_a_snapshot(entry):
    move_clocks(entry, TEN_DAYS)


def namespace(host, pid):
    return os.readlink(host.proc / str(pid) / "ns" / "time")


@pytest.mark.parametrize("change", [other_machine_ahead, other_machine_behind, images_of_criu, set_back_to_a_snapshot])
def test_clocks_go_on(directory, change):
    with hosts.Host() as host, hosts.Host(first_free_pid=hosts.Host.RECEIVER) as second:
        program = Program(host, directory, hosts.PROGRAMS / "time")
        try:
            program.check("before any dump")
            hosts.Criu(host).dump(program.pid, directory / "images1")
            host.wait_empty()
            clocks = edit_clocks(directory / "images1", change)
            (directory / "clocks").write_text("{} {}".format(*clocks))
            hosts.Criu(second).restore(program.pid, directory / "images1")
            program.check("after the restore")
            assert namespace(second, program.pid) != os.readlink("/proc/self/ns/time")

            # The tree has a time namespace of its own now; all goes on in it.
            hosts.Criu(second).dump(program.pid, directory / "images2", "--leave-running")
            program.check("after dump --leave-running")
            hosts.Criu(second).dump(program.pid, directory / "images3")
            second.wait_empty()
            (directory / "clocks").write_text("{} {}".format(*edit_clocks(directory / "images3", lambda entry: None)))
            hosts.Criu(second).restore(program.pid, directory / "images3")
            program.check("after the second restore")
        finally:
            program.close()


def test_same_boot_keeps_the_namespace(directory, host):
    program = Program(host, directory, hosts.PROGRAMS / "time")
    try:
        hosts.Criu(host).dump(program.pid, directory / "images")
        host.wait_empty()
        hosts.Criu(host).restore(program.pid, directory / "images")
        program.check("after the restore")
        assert namespace(host, program.pid) == os.readlink("/proc/self/ns/time")
    finally:
        program.close()


def test_one_namespace_for_the_tree(directory, host):
    """A tree with two time namespaces, and a process that has made one only for its children, are refused."""
    for shell, blamed in (("unshare --time sleep 1000 & wait", "another time namespace"),
                          ("unshare --time --fork sleep 1000", "for its children")):
        process = host.start(None, shell=f"sh -c {hosts.shlex.quote(shell)}")
        hosts.wait_until(lambda: any("sleep" in (host.proc / str(pid) / "comm").read_text() for pid in host.pids()))
        images = directory / f"images{process.pid}"
        images.mkdir()
        result = hosts.Criu(host).run("dump", process.pid, images)
        assert result.status == 1 and blamed in result.output, result
        host.end_all()


def test_clocks_out_of_range(directory, host):
    program = Program(host, directory, hosts.PROGRAMS / "time")
    try:
        hosts.Criu(host).dump(program.pid, directory / "images")
        host.wait_empty()
        edit_clocks(directory / "images", lambda entry: move_clocks(entry, 1 << 60))
        result = hosts.Criu(host).run("restore", program.pid, directory / "images")
        assert result.status == 1 and "clocks are out of range" in result.output, result
        assert not host.pids()
    finally:
        program.close()
