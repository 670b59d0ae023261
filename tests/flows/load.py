# SPDX-License-Identifier: Apache-2.0
"""Clients that check every answer: load.py PROTOCOL HOST PORT [--connections N] [--once KEYS] ...

Each connection stays open all the time and works without a pause. Progress goes to standard output as "ok COUNT"; the
first wrong, missing or late answer as "FAIL why", and the program ends with status 1.
"""
import argparse
import hashlib
import itertools
import os
import random
import socket
import sys
import threading
import time

ANSWER_SECONDS = 60


class Wrong(Exception):
    pass


class Connection:
    def __init__(self, address):
        self.socket = socket.create_connection(address, ANSWER_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.input = self.socket.makefile("rb")

    def send(self, data):
        self.socket.sendall(data)

    def line(self):
        line = self.input.readline()
        if not line.endswith(b"\n"):
            raise Wrong(f"connection closed after {line!r}")
        return line.rstrip(b"\r\n")

    def bytes(self, count):
        data = self.input.read(count)
        if len(data) != count:
            raise Wrong("connection closed")
        return data

    def expect(self, value, wanted):
        if value != wanted:
            raise Wrong(f"answer {value[:80]!r} instead of {wanted[:80]!r}")


def value_of(key, size):
    """The value that belongs to a key: known without being remembered, and costly to guess wrong."""
    seed = hashlib.sha256(key).digest()
    return (seed * (size // len(seed) + 1))[:size]


class Redis(Connection):
    def command(self, *words):
        self.send(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))

    def answer(self):
        line = self.line()
        if line[:1] == b"-":
            raise Wrong(f"redis says {line!r}")
        if line[:1] == b"$":
            length = int(line[1:])
            return self.bytes(length + 2)[:-2] if length >= 0 else None
        return line[1:]

    @staticmethod
    def batch(size):
        """So many commands without waiting for their answers as fit into what the server buffers."""
        return max(1, min(500, (1 << 20) // size))

    def fill(self, keys, size):
        """Sets keys 0..@keys-1, many at a time."""
        step = self.batch(size)
        for start in range(0, keys, step):
            names = [b"fixed:%d" % i for i in range(start, min(start + step, keys))]
            for name in names:
                self.command(b"SET", name, value_of(name, size))
            for name in names:
                self.expect(self.answer(), b"OK")

    def verify(self, keys, size):
        step = self.batch(size)
        for start in range(0, keys, step):
            names = [b"fixed:%d" % i for i in range(start, min(start + step, keys))]
            for name in names:
                self.command(b"GET", name)
            for name in names:
                self.expect(self.answer() or b"", value_of(name, size))

    def work(self, number):
        mine = b"live:%d:" % number
        self.command(b"DEL", mine + b"counter")
        self.answer()
        for count in itertools.count(1):
            key = mine + b"%d" % (count % 1000)
            value = b"%d:" % count + os.urandom(random.randrange(200)).hex().encode()
            self.command(b"SET", key, value)
            self.command(b"INCR", mine + b"counter")
            self.command(b"GET", key)
            self.expect(self.answer(), b"OK")
            self.expect(self.answer(), b"%d" % count)
            self.expect(self.answer(), value)
            yield


class RedisWrites(Redis):
    """As fast as it goes: many writes at a time, and what was acknowledged before is read again in turns."""

    BATCH, KEYS = 100, 50000
    rate = 0  # writes a second; 0 = as many as there can be

    def work(self, number):
        written, again, begin = {}, 0, time.monotonic()
        for start in itertools.count(0, self.BATCH):
            indices = [i % self.KEYS for i in range(start, start + self.BATCH)]
            reread = sorted(written)[again:again + self.BATCH] if start % (8 * self.BATCH) == 0 else []
            again = again + self.BATCH if len(reread) == self.BATCH else 0
            request = b"".join(b"SET write:%d:%d %d\r\n" % (number, i, start + 1) for i in indices)
            self.send(request + b"".join(b"GET write:%d:%d\r\n" % (number, i) for i in reread))
            for _ in indices:
                self.expect(self.answer(), b"OK")
            for i in reread:
                # Written once more in this very batch, perhaps.
                self.expect(self.answer(), b"%d" % (start + 1 if i in indices else written[i]))
            written.update((i, start + 1) for i in indices)
            yield
            ahead = begin + start / self.rate - time.monotonic() if self.rate else 0
            if ahead > 0:
                time.sleep(ahead)


class Memcached(Connection):
    def fill(self, keys, size):
        for i in range(keys):
            name = b"fixed:%d" % i
            self.send(b"set %s 0 0 %d\r\n%s\r\n" % (name, size, value_of(name, size)))
            self.expect(self.line(), b"STORED")

    def get(self, key):
        self.send(b"get %s\r\n" % key)
        head = self.line().split()
        if head[:1] != [b"VALUE"]:
            raise Wrong(f"{key} is gone: {head}")
        value = self.bytes(int(head[3]) + 2)[:-2]
        self.expect(self.line(), b"END")
        return value

    def verify(self, keys, size):
        for i in range(keys):
            name = b"fixed:%d" % i
            self.expect(self.get(name), value_of(name, size))

    def work(self, number):
        for count in itertools.count(1):
            key, value = b"live:%d:%d" % (number, count % 1000), b"%d" % count * random.randrange(1, 100)
            self.send(b"set %s 7 0 %d\r\n%s\r\n" % (key, len(value), value))
            self.expect(self.line(), b"STORED")
            self.expect(self.get(key), value)
            yield


class Http(Connection):
    """Keep-alive. The body of /NAME is value_of(NAME), or with hash the SHA-256 of NAME."""

    def get(self, path):
        self.send(b"GET /%s HTTP/1.1\r\nHost: test\r\n\r\n" % path)
        status = self.line()
        if b" 200 " not in status:
            raise Wrong(f"{status!r}")
        length, chunked = 0, False
        while header := self.line():
            name, _, value = header.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
            chunked = chunked or name.lower() == b"transfer-encoding"
        if not chunked:
            return self.bytes(length)
        body = b""
        while size := int(self.line(), 16):
            body += self.bytes(size + 2)[:-2]
        self.line()
        return body

    def work(self, number):
        for count in itertools.count(1):
            name = b"file%d" % (count % 50)
            self.expect(self.get(name), value_of(name, 100 + 997 * (count % 50)))
            yield


class HttpDownload(Http):
    """One large file after the other; each part is looked at when it comes."""

    BYTES = 16 << 20

    def work(self, number):
        wanted = value_of(b"large", self.BYTES)
        while True:
            self.send(b"GET /large HTTP/1.1\r\nHost: test\r\n\r\n")
            while self.line():
                pass
            for start in range(0, self.BYTES, 1 << 18):
                self.expect(self.bytes(1 << 18), wanted[start:start + (1 << 18)])
                yield


class HttpHash(Http):
    def work(self, number):
        for count in itertools.count(1):
            name = b"text-%d-%d" % (number, count)
            self.expect(self.get(name), hashlib.sha256(name).hexdigest().encode())
            yield


class LineHash(Connection):
    def work(self, number):
        for count in itertools.count(1):
            text = b"line-%d-%d" % (number, count)
            self.send(text + b"\n")
            self.expect(self.line(), hashlib.sha256(text).hexdigest().encode())
            yield


class Echo(Connection):
    """echo_server: the sum before the text must be what this connection knows for that part of the memory."""

    def work(self, number):
        sums = {}
        for count in itertools.count():
            text = b"echo-%d-%d" % (number, count)
            self.send(text + b"\n")
            total, _, answer = self.line().partition(b" ")
            self.expect(answer, text)
            self.expect(total, sums.setdefault(count % 64, total))
            yield


PROTOCOLS = {"redis": Redis, "redis-writes": RedisWrites, "memcached": Memcached, "http": Http, "http-hash": HttpHash, "http-download": HttpDownload,
             "line-hash": LineHash, "echo": Echo}


class Load:
    def __init__(self, arguments):
        self.arguments, self.count, self.failure = arguments, 0, None
        self.changed = threading.Condition()

    def connection(self):
        return PROTOCOLS[self.arguments.protocol]((self.arguments.host, self.arguments.port))

    def run_connection(self, number):
        try:
            for _ in self.connection().work(number):
                with self.changed:
                    self.count += 1
                    self.changed.notify()
        except (Wrong, OSError, ValueError) as error:
            with self.changed:
                self.failure = f"connection {number}: {type(error).__name__}: {error}"
                self.changed.notify()

    def run(self):
        for number in range(self.arguments.connections):
            threading.Thread(target=self.run_connection, args=(number,), daemon=True).start()
        while True:
            with self.changed:
                self.changed.wait()
                count, failure = self.count, self.failure
            print(f"FAIL {failure}" if failure else f"ok {count}", flush=True)
            if failure:
                return 1
            time.sleep(0.005)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("protocol", choices=PROTOCOLS)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--fill", type=int, metavar="KEYS")
    parser.add_argument("--verify", type=int, metavar="KEYS")
    parser.add_argument("--value-bytes", type=int, default=1000)
    parser.add_argument("--writes-per-second", type=int, default=0)
    arguments = parser.parse_args()
    RedisWrites.rate = arguments.writes_per_second
    load = Load(arguments)
    if arguments.fill or arguments.verify:
        try:
            one = load.connection()
            one.fill(arguments.fill or 0, arguments.value_bytes)
            one.verify(arguments.verify or 0, arguments.value_bytes)
        except (Wrong, OSError) as error:
            print(f"FAIL {error}")
            return 1
        return 0
    return load.run()


if __name__ == "__main__":
    # Ends with its threads; nothing needs to be closed.
    status = main()
    sys.stdout.flush()
    os._exit(status)
