# SPDX-License-Identifier: Apache-2.0
"""A relay in front of a TCP server that can cut, hold, or spoil what goes through, and be a long and narrow way:
relay.py LISTEN_HOST:PORT TO_HOST:PORT [DELAY_MS BYTES_PER_SECOND]

Reads commands from standard input, one a line: `cut` (resets all connections and refuses new ones), `mend` (takes new ones
again), `hold` and `go` (nothing passes, everything passes again), `spoil` (one byte of the next piece is another),
`cut-last` (resets the newest connection only).
Says `listening`, `connected` for each connection, and `done` after each command.
"""
import select
import socket
import struct
import sys
import time


class Relay:
    PIECE = 1 << 18

    def __init__(self, listen, target, delay_ms=0, bytes_per_second=0):
        self.listener, self.target = socket.create_server(listen), target
        self.pairs = {}  # socket: the other one
        self.delay, self.rate = int(delay_ms) / 1000, int(bytes_per_second)
        self.way = []  # (when it arrives, from, data), ascending; data b"" = the end
        self.free_at = 0  # when the narrow part of the way has passed all that was sent
        self.refuse = self.held = self.spoil = False

    def accept(self):
        client, _ = self.listener.accept()
        if self.refuse:
            return self.reset(client)
        try:
            server = socket.create_connection(self.target)
        except OSError:
            return self.reset(client)
        self.pairs.update({client: server, server: client})
        say("connected")

    @staticmethod
    def reset(one):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.close()

    def drop(self, one):
        other = self.pairs.pop(one)
        del self.pairs[other]
        one.close()
        other.close()

    def forward(self, one):
        try:
            data = one.recv(self.PIECE)
        except OSError:
            data = b""
        if self.spoil and data:
            data, self.spoil = bytes([data[0] ^ 255]) + data[1:], False
        now = time.monotonic()
        self.free_at = max(now, self.free_at) + (len(data) / self.rate if self.rate else 0)
        self.way.append((self.free_at + self.delay, one, data))
        self.arrive()

    def arrive(self):
        """What has come to the end of the way."""
        while self.way and not self.held and self.way[0][0] <= time.monotonic():
            _, one, data = self.way.pop(0)
            if one not in self.pairs:
                continue
            try:
                if data:
                    self.pairs[one].sendall(data)
                    continue
            except OSError:
                pass
            self.drop(one)

    def wait_seconds(self):
        """Until something arrives; None = for ever."""
        return max(0, self.way[0][0] - time.monotonic()) if self.way and not self.held else None

    def readable(self):
        """Where more may be taken from: not while much is on the way, as a link has no endless buffers."""
        if self.held:
            return []
        ended = {one for _, one, data in self.way if not data}
        full = self.rate and sum(len(data) for _, _, data in self.way) > self.rate * (self.delay + 0.1) + self.PIECE
        return [self.listener, *([] if full else [one for one in self.pairs if one not in ended])]

    def command(self, word):
        if word == "cut":
            self.refuse = True
            for one in self.pairs:
                self.reset(one)
            self.pairs.clear()
        elif word == "cut-last":
            newest = next(reversed(self.pairs))
            other = self.pairs[newest]
            for one in (newest, other):
                del self.pairs[one]
                self.reset(one)
        elif word == "mend":
            self.refuse = self.held = False
        elif word in ("hold", "go"):
            self.held = word == "hold"
        elif word == "spoil":
            self.spoil = True
        say("done")

    def run(self):
        say("listening")
        while True:
            self.arrive()
            for one in select.select([sys.stdin, *self.readable()], [], [], self.wait_seconds())[0]:
                if one is sys.stdin:
                    line = sys.stdin.readline()
                    if not line:
                        return
                    self.command(line.strip())
                elif one is self.listener:
                    self.accept()
                elif one in self.pairs:
                    self.forward(one)


def say(word):
    print(word, flush=True)


def address(text):
    host, port = text.rsplit(":", 1)
    return host, int(port)


if __name__ == "__main__":
    Relay(address(sys.argv[1]), address(sys.argv[2]), *sys.argv[3:]).run()
