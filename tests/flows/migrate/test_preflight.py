# SPDX-License-Identifier: Apache-2.0
"""What a migration finds out before it touches anything, and files that it sends."""
import moving

import hosts

# Keeps a file open that it writes to, and a port; each line that it is sent (a signal) goes into the file.
WRITER = """
import signal, socket
file = open('/mnt/data', 'r+')
server = socket.create_server(('0.0.0.0', 9009))
signal.signal(signal.SIGUSR1, lambda *_: (file.seek(0, 2), file.write('written\\n'), file.flush(), print('done', flush=True)))
print('up', flush=True)
while True:
    signal.pause()
"""
OCCUPIER = "import socket, signal; s = socket.create_server(('0.0.0.0', 9009)); print('up', flush=True); signal.pause()"


def start(host, program):
    process = host.start(["python3", "-c", program])
    process.wait_said("up")
    return process


def give_own_files(pair):
    for host in pair.hosts:
        host.check(["mount", "-t", "tmpfs", "none", "/mnt"])
    pair.hosts[0].check(["sh", "-c", "seq 1 100000 >/mnt/data && chmod 640 /mnt/data"])


def content(host):
    return host.path("/mnt/data").read_text()


def test_everything_that_would_fail_is_listed():
    with moving.pair() as pair:
        give_own_files(pair)
        writer, occupier = start(pair.hosts[0], WRITER), start(pair.hosts[1], OCCUPIER)

        refused, _ = pair.migrate(writer.pid, 0)
        assert refused.status != 0, refused
        assert "/mnt/data: is missing" in refused.output and "--send-files" in refused.output, refused
        assert "port 9009" in refused.output and "is in use" in refused.output, refused
        assert writer.pid in pair.hosts[0].pids()

        # Each can be passed over by its name; a dry run moves nothing.
        partly, _ = pair.migrate(writer.pid, 0, "--dry-run", "--skip-check", "files")
        assert partly.status != 0 and "port 9009" in partly.output, partly
        skipped, _ = pair.migrate(writer.pid, 0, "--dry-run", "--skip-check", "files", "--skip-check", "ports")
        assert skipped.status == 0 and "nothing has been moved" in skipped.output, skipped
        assert writer.pid in pair.hosts[0].pids() and writer.pid not in pair.hosts[1].pids()
        assert occupier.pid in pair.hosts[1].pids()


def test_a_pid_that_cannot_be_moved_is_told_before_the_other_side_is_asked():
    with hosts.Host() as host:
        for pid, words in ((4194303, "no such process"), (1, "ancestor of criu")):
            refused = host.run([str(hosts.CRIU), "migrate", "--tree", str(pid), "tcp://127.0.0.1:1"])
            assert refused.status == 1 and words in refused.output and "connected" not in refused.output, refused


def test_files_are_sent():
    with moving.pair() as pair:
        give_own_files(pair)
        writer = start(pair.hosts[0], WRITER)
        before = content(pair.hosts[0])
        # An older version is there: only what differs has to travel.
        pair.hosts[1].check(["sh", "-c", "seq 1 90000 >/mnt/data"])
        pair.move(writer.pid, 0, "--send-files")
        assert content(pair.hosts[1]) == before
        status = pair.hosts[1].path("/mnt/data").stat()
        assert status.st_mode & 0o7777 == 0o640
        assert not [name for name in pair.hosts[1].path("/mnt").iterdir() if name.name.startswith(".criu")]
        # The tree has the new file, at the place where it stood.
        pair.hosts[1].check(["kill", "-USR1", str(writer.pid)])
        hosts.wait_until(lambda: content(pair.hosts[1]) == before + "written\n", explain=lambda: content(pair.hosts[1])[-100:])
