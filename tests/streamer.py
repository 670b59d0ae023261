#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""An image streamer: takes the images of a dump into one archive, or gives those of a restore from it.

    streamer.py capture|serve DIRECTORY ARCHIVE [--die NAME:BYTES] [--stop NAME] [--answer HEX]

It stands for criu-image-streamer in the tests, and was written from the protocol alone. The options are what goes wrong:
  --die NAME:BYTES  kills itself when so much of file NAME has gone through; 0: when NAME is asked for. NAME may be a
                    pattern; with a number before it ("2*inventory.img") it counts requests for it
  --stop NAME       stops itself (SIGSTOP) when NAME is asked for
  --answer HEX      answers every request with these bytes
An archive is a row of: u32 length of the name, name, u32 length, bytes; the pieces of files mix.
"""
import argparse
import array
import fcntl
import fnmatch
import os
import pathlib
import select
import signal
import socket
import struct
import sys

PIECE = 1 << 20
MAGIC_FIELD_1_BYTES = 0x0a


def message_name(message):
    """img_streamer_request_entry: field 1, a string shorter than 128 bytes."""
    assert message[0] == MAGIC_FIELD_1_BYTES and message[1] == len(message) - 2 < 128, message
    return message[2:].decode()


class Faults:
    def __init__(self, options):
        times, star, rest = (options.die or "").partition("*")
        counted = star and times.isdigit()
        pattern = rest if counted else options.die
        self.name, _, self.bytes = (pattern or "").partition(":")
        self.left = int(times) if counted else 1
        self.limit = int(self.bytes or 0)
        self.stop_at = options.stop

    def asked(self, name):
        if self.stop_at and fnmatch.fnmatch(name, self.stop_at):
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.name and fnmatch.fnmatch(name, self.name):
            self.left -= 1
            if self.left == 0 and not self.limit:
                os.kill(os.getpid(), signal.SIGKILL)

    def moved(self, name, total):
        if self.limit and self.left <= 0 and fnmatch.fnmatch(name, self.name) and total >= self.limit:
            os.kill(os.getpid(), signal.SIGKILL)


def receive(connection, size):
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            assert not data, "cut off in a message"
            return None
        data += piece
    return data


def receive_request(connection):
    """The name of a file, or None at the end."""
    head = receive(connection, 4)
    return message_name(receive(connection, struct.unpack("<I", head)[0])) if head else None


def receive_descriptor(connection):
    fds = array.array("i")
    byte, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(fds.itemsize))
    assert len(byte) == 1 and len(ancillary) == 1, (byte, ancillary)
    fds.frombytes(ancillary[0][2])
    assert len(fds) == 1
    return fds[0]


def grow(fd):
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 4 * PIECE)
    except OSError:
        pass


def accept(directory, name):
    path = pathlib.Path(directory) / name
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        print("ready", flush=True)
        connection, _ = listener.accept()
    path.unlink()
    return connection


class Capture:
    def __init__(self, connection, archive, faults):
        self.connection, self.archive, self.faults = connection, archive, faults
        self.names, self.pipes, self.moved = set(), {}, {}

    def take_request(self):
        name = receive_request(self.connection)
        if name is None:
            return False
        self.faults.asked(name)
        assert name not in self.names, f"{name} comes twice"
        self.names.add(name)
        fd = receive_descriptor(self.connection)
        grow(fd)
        self.pipes[fd], self.moved[name] = name, 0
        append(self.archive, name, b"")
        return True

    def take_data(self, fd):
        name, data = self.pipes[fd], os.read(fd, PIECE)
        if not data:
            os.close(fd)
            del self.pipes[fd]
            return
        append(self.archive, name, data)
        self.moved[name] += len(data)
        self.faults.moved(name, self.moved[name])

    def run(self):
        open_for_more = True
        while open_for_more or self.pipes:
            poll = select.poll()
            if open_for_more:
                poll.register(self.connection, select.POLLIN)
            for fd in self.pipes:
                poll.register(fd, select.POLLIN)
            for fd, _ in poll.poll():
                if fd == self.connection.fileno():
                    open_for_more = self.take_request()
                else:
                    self.take_data(fd)


def load(archive):
    """{name: content}"""
    files = {}
    with open(archive, "rb") as file:
        while head := file.read(4):
            name = file.read(struct.unpack("<I", head)[0]).decode()
            files.setdefault(name, bytearray()).extend(file.read(struct.unpack("<I", file.read(4))[0]))
    return files


def extract(archive, directory):
    """Makes an images directory of an archive."""
    directory.mkdir()
    for name, content in load(archive).items():
        (directory / name).write_bytes(content)


def append(archive, name, data):
    for part in (name.encode(), data):
        archive.write(struct.pack("<I", len(part)) + part)


def collect(directory, archive):
    """Makes an archive of an images directory."""
    with open(archive, "wb") as file:
        for path in directory.glob("*.img"):
            append(file, path.name, path.read_bytes())


def serve(connection, files, faults, answer):
    while (name := receive_request(connection)) is not None:
        faults.asked(name)
        exists = name in files
        if answer is not None:
            connection.sendall(answer)
            continue
        connection.sendall(struct.pack("<I", 2) + bytes([0x08, exists]))
        if not exists:
            continue
        fd, content, done = receive_descriptor(connection), memoryview(files.pop(name)), 0
        grow(fd)
        while done < len(content):
            end = done + PIECE
            if faults.limit and faults.left <= 0 and fnmatch.fnmatch(name, faults.name):
                end = min(end, faults.limit)
            done += os.write(fd, content[done:end])
            faults.moved(name, done)
        os.close(fd)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=("capture", "serve"))
    parser.add_argument("directory")
    parser.add_argument("archive")
    parser.add_argument("--die")
    parser.add_argument("--stop")
    parser.add_argument("--answer", type=bytes.fromhex)
    options = parser.parse_args()
    faults = Faults(options)
    # Read before somebody may ask.
    files = load(options.archive) if options.command == "serve" else None
    connection = accept(options.directory, f"streamer-{options.command}.sock")
    if options.command == "serve":
        serve(connection, files, faults, options.answer)
        return
    with open(options.archive, "wb") as archive:
        Capture(connection, archive, faults).run()


if __name__ == "__main__":
    sys.exit(main())
