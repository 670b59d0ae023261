# SPDX-License-Identifier: Apache-2.0
"""Descriptors that lie in a socket's queue (SCM_RIGHTS) while the program is away: pipes of which one end or both are
nowhere else, an event counter, a terminal."""
import signal

import hosts

PROGRAM = """
import os, signal, socket
out, queue = socket.socketpair()
def send(*fds):
    socket.send_fds(out, [b"x"], fds)
    for fd in fds:
        os.close(fd)
reader, writer = os.pipe()
os.write(writer, b"both")
send(reader, writer)
reader, writer = os.pipe()
os.write(writer, b"half")
send(writer)
send(os.eventfd(7))
master, slave = os.openpty()
name = os.ttyname(slave)
send(slave)
signal.signal(signal.SIGUSR1, lambda *_: None)
print("ready", flush=True)
signal.pause()
def receive():
    return socket.recv_fds(queue, 1, 4)[1]
first, second = receive()
assert os.read(first, 20) == b"both" and os.write(second, b"q") == 1 and os.read(first, 20) == b"q"
last, = receive()
assert os.write(last, b"!") == 1
os.close(last)
assert os.read(reader, 20) == b"half!" and os.read(reader, 20) == b""
assert os.eventfd_read(receive()[0]) == 7
terminal, = receive()
os.write(terminal, b"written")
assert os.read(master, 20) == b"written" and os.ttyname(terminal) == name
print("good", flush=True)
"""


def test_in_flight(directory):
    output = directory / "output"
    output.touch()
    with hosts.Host() as host:
        process = host.start(["/usr/bin/python3", "-c", PROGRAM], output=output)
        hosts.wait_until(lambda: "ready" in output.read_text(), explain=output.read_text)
        hosts.Criu(host).dump(process.pid, directory / "images")
        host.wait_empty()
        hosts.Criu(host).restore(process.pid, directory / "images")
        assert host.kill(process.pid, signal.SIGUSR1)
        host.wait_empty()
        assert "good" in output.read_text(), output.read_text()
