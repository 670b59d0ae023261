# SPDX-License-Identifier: Apache-2.0
"""A peer that speaks the protocol of a migration as far as it likes, and then lies. Written from migrate.proto alone."""
import hashlib
import hmac
import os
import struct

import moving
import network

import hosts

(HELLO, HELLO_ANSWER, JOIN, JOIN_ANSWER, PREFLIGHT_REQUEST, PREFLIGHT_ANSWER, FILE_DATA, TREE, ROUND_BEGIN, ROUND_END,
 ROUND_ACK, IMAGE_CHUNK, IMAGES_END, READY, COMMIT, RUNNING, ABORT, POST_COPY_START, POST_COPY_DONE, RELEASED, PROGRESS,
 PING, PONG, RESUME_SESSION, SESSION_STATUS) = range(1, 26)
CONTROL, MORE, RETURN = 1, 2, 3
PAGES, ZERO, DROP, BARRIER, ACK, REQUEST = range(1, 7)
PAGE = 4096
# mmap(2)
PRIVATE, ANONYMOUS, POPULATE = 0x02, 0x20, 0x8000


def varint(number):
    number &= (1 << 64) - 1
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def encode(*fields):
    """(number, value) of a message: numbers, texts, bytes; a list of messages is repeated."""
    out = b""
    for number, value in fields:
        for one in value if isinstance(value, list) else [value]:
            one = one.encode() if isinstance(one, str) else one
            out += varint(number << 3) + varint(int(one)) if isinstance(one, int) else \
                varint(number << 3 | 2) + varint(len(one)) + one
    return out


def decode(data):
    """{number: the last value}: enough to look an answer through."""
    fields, at = {}, 0

    def take():
        nonlocal at
        number = shift = 0
        while True:
            byte = data[at]
            at += 1
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number
    while at < len(data):
        key = take()
        if key & 7 == 0:
            fields[key >> 3] = take()
            continue
        size = take() if key & 7 == 2 else 4 if key & 7 == 5 else 8
        fields[key >> 3] = data[at:at + size]
        at += size
    return fields


def mapping(start, size, flags=PRIVATE | ANONYMOUS, protection=3):
    return encode((1, start), (2, size), (3, flags), (4, protection))


def tree(pid, *mappings):
    return encode((1, 1), (2, [encode((1, pid), (2, 1), (3, 0), (4, pid), (5, list(mappings)))]))


def frame(kind, space_id=0, address=0, pages=0, payload=0, sequence=0, space=1, magic=0x4d524643):
    return struct.pack("<IHHIIQIIQQ", magic, kind, 0, space if space_id else 0, space_id, address, pages, payload, 0, sequence)


class Link:
    """One connection."""

    def __init__(self, socket):
        self.socket = socket
        socket.settimeout(2 * hosts.COMMAND_SECONDS)

    def send(self, kind, body=b"", length=None):
        self.socket.sendall(struct.pack("<II", len(body) if length is None else length, kind) + body)

    def read(self, size):
        data = b""
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def receive(self):
        size, kind = struct.unpack("<II", self.read(8))
        return kind, self.read(size)

    def until(self, wanted):
        while True:
            kind, body = self.receive()
            if kind == wanted:
                return body

    def close(self):
        self.socket.close()


class Source:
    """Of a session with `criu receive` on the second host of @pair."""

    def __init__(self, pair):
        self.pair, self.id, self.secret = pair, os.urandom(16), os.urandom(32)
        self.links = []

    def open(self, kind):
        link = Link(network.socket_in(self.pair.hosts[0]))
        self.links.append(link)
        link.socket.connect((moving.ADDRESSES[1], moving.PORT))
        link.socket.sendall(b"CRIUMIG\1" + bytes([kind]) + bytes(7) + self.id)
        return link

    def hello(self, pid=300, resume=False):
        self.control = self.open(RETURN if resume else CONTROL)
        self.control.send(HELLO, encode((1, 1), (2, 1), (3, "1"), (4, 15), (5, self.id), (6, self.secret), (7, 1), (8, 1),
                                        (9, PAGE), (10, "nowhere"), (11, pid), (12, "liar"), (14, resume)))
        self.control.until(HELLO_ANSWER)

    def join(self, index=0, role=0, secret=None):
        text = b"criu join".ljust(56, b"\0") + struct.pack("<II", role, index)
        link = self.open(MORE)
        proof = hmac.new(secret or self.secret, text, hashlib.sha256).digest()
        link.send(JOIN, encode((1, self.id), (2, index), (3, role), (4, proof)))
        return link

    def begin(self):
        """Up to where rounds may begin."""
        self.hello()
        self.pages = self.join()
        self.pages.until(JOIN_ANSWER)

    def close(self):
        for link in self.links:
            link.close()
