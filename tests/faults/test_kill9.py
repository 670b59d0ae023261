# SPDX-License-Identifier: Apache-2.0
"""criu is killed at every moment of a dump; the program, which checks itself all the time, does not notice. A restore
that is killed leaves nothing behind either."""
import pytest

import faults
import hosts


@pytest.fixture
def running(directory):
    (directory / "images").mkdir()
    with faults.checker(directory) as pair:
        yield pair[1]


def stages(host):
    result = host.run([str(hosts.CRIU), "dump", "-t", "1", "-D", "/tmp", "--die-at", "list"])
    if result.status != 0:
        pytest.skip("this build has no --die-at")
    return result.output.split()


def after_the_kill(program, before, when):
    """Unharmed, also for the tools: the next dump works, and takes away what the killed one left."""
    host = program.host
    hosts.wait_until(lambda: all("TracerPid:\t0" in (host.proc / str(pid) / "status").read_text() for pid in before),
                     explain=lambda: f"{when}: still traced")
    # The child that reads connections outlives criu for the moment that it needs to put them right.
    hosts.wait_until(lambda: set(host.pids()) <= set(before), explain=lambda: f"{when}: {host.pids()}")
    faults.unharmed(program, before, when, remnants=True)


def killed_dump(program, directory, *options):
    return hosts.Criu(program.host).run("dump", program.pid, directory / "images", "--leave-running", "--tcp-established",
                                        *options)


def test_killed_at_each_stage(running, directory):
    before = faults.state(running.host)
    for stage in stages(running.host):
        result = killed_dump(running, directory, "--die-at", stage)
        assert result.status == -9 or result.status == 137, f"stage {stage} was not reached: {result}"
        after_the_kill(running, before, f"killed at stage {stage}")
        assert "criu" not in running.host.check(["nft", "list", "tables"]).output, f"lock left by stage {stage}"
    killed_dump(running, directory)
    faults.unharmed(running, before, "after the next dump")


@pytest.mark.parametrize("stage", ["injected", "inspecting", "inspected"])
def test_killed_while_tracking_begins(running, directory, stage):
    """The program has made a userfaultfd for criu, which is killed before it takes it: it closes it by itself."""
    before = faults.state(running.host)
    stages(running.host)
    result = killed_dump(running, directory, "--track-mem", "--die-at", stage)
    assert result.status == -9 or result.status == 137, f"stage {stage} was not reached: {result}"
    after_the_kill(running, before, f"killed at stage {stage}")


def test_killed_at_any_moment(running, directory):
    """Without knowing the stages: later and later by small steps, until the dump is faster than the kill."""
    before = faults.state(running.host)
    lengths = sorted(killed_dump(running, directory).seconds for _ in range(3))
    steps = 60
    for step in range(steps):
        # A shell that starts it, waits and kills: no time is lost between the processes of the test.
        seconds = lengths[1] * 1.1 * step / steps
        script = f"{hosts.CRIU} dump -t {running.pid} -D {directory}/images --leave-running --tcp-established & " \
                 f"sleep {seconds:.6f}; kill -9 $!; wait $!"
        running.host.run(["sh", "-c", script])
        after_the_kill(running, before, f"killed after {seconds * 1000:.1f} ms")
    assert killed_dump(running, directory).status == 0
    faults.unharmed(running, before, "after the next dump")


def test_held_up(running, directory):
    """criu itself is stopped for longer than the threads wait for it: they go on, and the dump begins anew."""
    before = faults.state(running.host)
    length = sorted(killed_dump(running, directory).seconds for _ in range(3))[1]
    steps = 12
    for step in range(steps):
        script = f"{hosts.CRIU} dump -t {running.pid} -D {directory}/images --leave-running --tcp-established & " \
                 f"sleep {length * step / steps:.6f}; kill -STOP $!; sleep 1.5; kill -CONT $!; wait $!"
        result = running.host.run(["bash", "-c", script])
        assert result.status == 0, result
        faults.unharmed(running, before, f"held up after {step * 100 // steps} %")


def test_interrupted_dump(running, directory):
    """Ctrl-C or SIGTERM: the dump ends, the tree runs."""
    before = faults.state(running.host)
    length = killed_dump(running, directory).seconds
    for step in range(20):
        for signal_name in ("INT", "TERM"):
            script = f"{hosts.CRIU} dump -t {running.pid} -D {directory}/images --leave-running --tcp-established & " \
                     f"sleep {length * step / 20:.6f}; kill -{signal_name} $!; wait $!"
            running.host.run(["bash", "-c", script])
            after_the_kill(running, before, f"SIG{signal_name} at {step * 5} %")


def test_killed_restore(running, directory):
    """The processes of a restore end with it."""
    host, images = running.host, directory / "images"
    criu = hosts.Criu(host, ["--tcp-established"])
    criu.dump(running.pid, images)
    host.wait_empty()
    length = criu.restore(running.pid, images).seconds
    running.check("restored")
    for step in range(40):
        host.end_all()
        script = f"{hosts.CRIU} restore -d -t {running.pid} -D {images} --tcp-established & " \
                 f"sleep {length * step / 40:.6f}; kill -9 $!; wait $!"
        host.run(["bash", "-c", script])
        try:
            host.wait_empty(seconds=3)
        except hosts.Timeout:
            # The kill came too late: then all of it is there.
            running.check(f"killed after {step * 2.5} % of a restore")
    assert "criu" not in host.check(["nft", "list", "tables"]).output
    host.end_all()
    criu.restore(running.pid, images)
    running.check("restored at last")
