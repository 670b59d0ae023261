# SPDX-License-Identifier: Apache-2.0
"""State that the images have no place for is refused with a line that names it, and the program runs on."""

import pytest

import faults
import hosts

PROGRAM = hosts.BUILD / "tests" / "faults" / "unsupported_state"
STATES = {
    "thread-files": "descriptor table of its own",
    "thread-directory": "working directory of its own",
    "thread-network": "another net namespace",
    "thread-host-name": "another uts namespace",
    "thread-dispatch": "catches its own system calls",
    "thread-clock": "CPU time of one of its 2 threads",
    "landlock": "is in a landlock domain",
    "landlock-user": "is in a landlock domain",
    "process-keyring": "has a process keyring",
    "thread-keyring": "has a thread keyring",
    "segments": "segments of its own (modify_ldt)",
}


@pytest.mark.parametrize("state", STATES)
def test_state_is_refused(directory, state):
    images = directory / "images"
    images.mkdir()
    with hosts.Host() as host:
        process = host.start([PROGRAM, state])
        process.wait_said("\n")
        if "lacking" in process.output():
            pytest.skip("this kernel has no such thing")
        assert process.output() == "ready\n"
        before = faults.state(host)
        line = faults.one_clear_line(hosts.Criu(host).run("dump", process.pid, images))
        assert STATES[state] in line and f"task {process.pid}" in line, line
        assert not list(images.glob("*.img"))
        assert not faults.process_state.differences(before, faults.state(host))


def test_other_namespace_is_refused(directory):
    images = directory / "images"
    images.mkdir()
    with hosts.Host() as host:
        process = host.start(["unshare", "--uts", "sleep", "1000"])
        hosts.wait_until(lambda: (host.proc / str(process.pid) / "comm").read_text() == "sleep\n")
        line = faults.one_clear_line(hosts.Criu(host).run("dump", process.pid, images))
        assert "another uts namespace" in line, line
