# SPDX-License-Identifier: Apache-2.0
"""A relay in front of a TCP server that can cut, hold, or spoil what goes through: relay.py LISTEN_HOST:PORT TO_HOST:PORT

Reads commands from standard input, one a line: `cut` (resets all connections and refuses new ones), `mend` (takes new ones
again), `hold` and `go` (nothing passes, everything passes again), `spoil` (one byte of the next piece is another).
Says `listening`, `connected` for each connection, and `done` after each command.
"""
import select
import socket
import struct
import sys


class Relay:
    def __init__(self, listen, target):
        self.listener, self.target = socket.create_server(listen), target
        self.pairs = {}  # socket: the other one
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
            data = one.recv(1 << 18)
            if self.spoil and data:
                data, self.spoil = bytes([data[0] ^ 255]) + data[1:], False
            if data:
                return self.pairs[one].sendall(data)
        except OSError:
            pass
        self.drop(one)

    def command(self, word):
        if word == "cut":
            self.refuse = True
            for one in self.pairs:
                self.reset(one)
            self.pairs.clear()
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
            sockets = [] if self.held else [self.listener, *self.pairs]
            for one in select.select([sys.stdin, *sockets], [], [])[0]:
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
    Relay(address(sys.argv[1]), address(sys.argv[2])).run()
