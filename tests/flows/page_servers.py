# SPDX-License-Identifier: Apache-2.0
"""Page servers and what speaks to them, for the tests of them."""
import struct

import hosts


def request(command, flags=0, pages=0, address=0, destination=5 << 8 | 1):
    """The head of every message of the protocol."""
    return struct.pack("<HHIQQQ", command, flags, 0, pages, address, destination)


def start_program(host, program, output):
    """A python program, when it has said that it is ready."""
    output.touch()
    process = host.start(["/usr/bin/python3", "-c", program], output=output)
    process.wait_said("ready")
    return process


def start_ready(host, log, *arguments, redirect=""):
    """A server, which has said through --status-fd that it is ready. @redirect: descriptors of the shell for it."""
    ready = log.parent / f"{log.name}.ready"
    log.touch()
    words = " ".join(str(word) for word in (hosts.CRIU, *arguments))
    process = host.start(None, output=log, shell=f"sh -c 'exec 7>{ready} {redirect}; exec {words} --status-fd 7'")
    hosts.wait_until(lambda: (ready.exists() and ready.stat().st_size) or process.tag in host.ended,
                     explain=log.read_text)
    assert ready.read_bytes() == b"\0", log.read_text()
    return process


class Server:
    """A page server that listens on a free port and writes to `images`."""

    def __init__(self, host, images, *options):
        images.mkdir(exist_ok=True)
        self.images, self.log = images, images.parent / f"{images.name}.log"
        self.process = start_ready(host, self.log, "page-server", "--images-dir", images, "--address", "127.0.0.1",
                                   *options)
        hosts.wait_until(lambda: "\n" in self.log.read_text(), explain=self.log.read_text)
        self.port = int(self.log.read_text().split()[0])
        self.reach = ("--page-server", "--address", "127.0.0.1", "--port", self.port)

    def wait(self):
        """Its exit status, and what it said besides the port."""
        status = self.process.wait().status
        return status, self.log.read_text().splitlines()[1:]

    def good(self):
        status, lines = self.wait()
        assert status == 0, lines

    def give_pages(self, images):
        """Puts its images to those of the dump."""
        for path in self.images.iterdir():
            path.rename(images / path.name)
