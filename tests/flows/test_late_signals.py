# SPDX-License-Identifier: Apache-2.0
"""Signals that are sent to a process while its pages are being written are neither lost nor taken twice."""
import signal

import hosts

PROGRAM = """
import signal, sys, time
pages = bytearray(b"x") * (400 << 20)
for number in (signal.SIGUSR1, signal.SIGRTMIN, signal.SIGRTMIN + 5):
    signal.signal(number, lambda number, frame: print(int(number), flush=True))
print("ready", flush=True)
while True:
    time.sleep(0.01)
"""
SENT = (signal.SIGUSR1, signal.SIGRTMIN, signal.SIGRTMIN + 5)


def test_signals_during_the_dump(directory):
    (directory / "program.py").write_text(PROGRAM)
    with hosts.Host() as host:
        output = directory / "output"
        program = host.start(["python3", directory / "program.py"], output=output)
        hosts.wait_until(lambda: output.exists() and "ready" in output.read_text())
        for attempt in range(5):
            images, expected = directory / f"images{attempt}", output.read_text()
            images.mkdir()
            log = images / "dump.log"
            dump = host.start([hosts.CRIU, "dump", "-t", program.pid, "-D", images, "-v4", "-o", "dump.log"])
            hosts.wait_until(lambda log=log: log.exists() and "stage scanned" in log.read_text())
            for number in SENT:
                host.kill(program.pid, number)
            in_time = "stage pages" not in log.read_text()
            result = dump.wait()
            assert result.status == 0, result
            hosts.Criu(host).restore(program.pid, images)
            if in_time:
                break
        assert in_time, "the dump was always faster"
        lines = hosts.wait_until(lambda: len(now := output.read_text().splitlines()) >= len(expected.splitlines()) + 3
                                 and now, explain=output.read_text)
        assert sorted(map(int, lines[-3:])) == sorted(map(int, SENT)), lines
