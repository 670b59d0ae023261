# SPDX-License-Identifier: Apache-2.0
"""State that the images have no place for is refused with a line that names it, and the program runs on."""

import shutil
import subprocess

import pytest

import faults
import hosts

PROGRAM = hosts.BUILD / "tests" / "faults" / "unsupported_state"
STATES = {
    "thread-files": "descriptor table of its own",
    "thread-directory": "working directory of its own",
    "thread-network": "another net namespace",
    "thread-host-name": "another uts namespace",
    "shared-memory": "shares its memory with process",
    "shared-files": "shares its descriptor table with process",
    "shared-directory": "shares its working directory with process",
    "thread-dispatch": "catches its own system calls",
    "thread-clock": "CPU time of one of its 2 threads",
    "landlock": "is in a landlock domain",
    "landlock-user": "is in a landlock domain",
    "process-keyring": "has a process keyring",
    "thread-keyring": "has a thread keyring",
    "segments": "segments of its own (modify_ldt)",
    "mapping-policy": "NUMA policy of its own (mbind)",
    "mapping-policy-local": "NUMA policy of its own (mbind)",
    "detached-mount": "a mount that is in no directory (open_tree",
    "file-in-detached-mount": "a mount that is in no directory (open_tree",
    "file-system-context": "a file system that is being configured (fsopen)",
    "packet-socket": "a packet socket (AF_PACKET",
    "machine-socket": "a socket between a virtual machine and its host (AF_VSOCK)",
    "secret-memory": "secret memory (memfd_secret)",
    "secret-mapping": "secret memory (memfd_secret: only its owner can read it) cannot be checkpointed",
    "io-uring": "an io_uring cannot be checkpointed; start the program without io_uring (node: UV_USE_IO_URING=0",
    "network-namespace": "a network namespace cannot be checkpointed",
    "traced": "it is being traced (uprobes)",
    "userfaultfd": "a userfaultfd cannot be checkpointed",
    "semaphore-undo": "that the kernel undoes when it ends (SEM_UNDO)",
}


@pytest.fixture
def semaphores():
    """The id of a set of one semaphore."""
    made = subprocess.run(["ipcmk", "-S", "1"], check=True, capture_output=True, text=True).stdout.split()[-1]
    yield made
    subprocess.run(["ipcrm", "-s", made], check=True)


def start(host, state, semaphores="", program=PROGRAM, more_threads=0):
    process = host.start([program, state], environment={"SEMAPHORES": semaphores, "MORE_THREADS": str(more_threads)})
    process.wait_said("\n")
    if "lacking" in process.output():
        pytest.skip("this kernel has no such thing")
    assert process.output() == "ready\n"
    return process


@pytest.mark.parametrize("state", STATES)
def test_state_is_refused(directory, state, semaphores):
    images = directory / "images"
    images.mkdir()
    with hosts.Host() as host:
        # A file is traced in all processes of the machine that run it: this one is nobody else's.
        program = shutil.copy(PROGRAM, directory / "program") if state == "traced" else PROGRAM
        process = start(host, state, semaphores, program)
        before = faults.state(host)
        line = faults.one_clear_line(hosts.Criu(host).run("dump", process.pid, images))
        assert STATES[state] in line and f"{process.pid}" in line, line
        assert not list(images.glob("*.img"))
        assert not faults.process_state.differences(before, faults.state(host))


@pytest.mark.parametrize("state", [state for state in STATES if state.startswith(("thread-", "shared-"))])
def test_state_is_refused_among_many_threads(directory, state):
    """What threads share is then read from the kernel's own structures."""
    images = directory / "images"
    images.mkdir()
    with hosts.Host() as host:
        process = start(host, state, more_threads=70)
        before = faults.state(host)
        line = faults.one_clear_line(hosts.Criu(host).run("dump", process.pid, images))
        assert STATES[state].replace(" 2 threads", " 72 threads") in line, line
        assert not faults.process_state.differences(before, faults.state(host))


def test_mapping_policy_on_many_nodes(directory):
    """There each mapping is asked, so that the question changes nothing."""
    images = directory / "images"
    images.mkdir()
    (directory / "online").write_text("0-1\n")
    with hosts.Host() as host:
        host.check(["mount", "--bind", directory / "online", "/sys/devices/system/node/online"])
        process = start(host, "mapping-policy")
        line = faults.one_clear_line(hosts.Criu(host).run("dump", process.pid, images))
        assert STATES["mapping-policy"] in line and f"task {process.pid}" in line, line
        process = start(host, "plain")
        hosts.Criu(host).dump(process.pid, images)


def test_semaphores_without_undo(directory, semaphores):
    """Threads have lists of what is to be undone, which are empty: that is not in the way."""
    images = directory / "images"
    images.mkdir()
    with hosts.Host() as host:
        process = start(host, "semaphore", semaphores)
        hosts.Criu(host).dump(process.pid, images)


def test_criu_may_not_take_on_ids(directory):
    """Then nobody can be found out to have a landlock domain: criu says so and goes on."""
    images = directory / "images"
    images.mkdir()
    with hosts.Host() as host:
        process = host.start(["setpriv", "--reuid", "12345", "--regid", "12346", "--clear-groups", PROGRAM, "plain"])
        process.wait_said("ready\n")
        result = host.run(["setpriv", "--bounding-set", "-setuid,-setgid", hosts.CRIU, "dump", "--leave-running",
                           "-t", str(process.pid), "-D", images])
        assert result.status == 0, result
        assert "whether processes of user 12345, group 12346 have a landlock domain cannot be found out" in result.output


def test_other_namespace_is_refused(directory):
    images = directory / "images"
    images.mkdir()
    with hosts.Host() as host:
        process = host.start(["unshare", "--uts", "sleep", "1000"])
        hosts.wait_until(lambda: (host.proc / str(process.pid) / "comm").read_text() == "sleep\n")
        line = faults.one_clear_line(hosts.Criu(host).run("dump", process.pid, images))
        assert "another uts namespace" in line, line
