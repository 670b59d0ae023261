# SPDX-License-Identifier: Apache-2.0
"""What every fault test asks: one clear line, status 1, nothing left behind, the program unharmed."""
import contextlib
import os
import pathlib
import re

import hosts
import process_state
from program import Program

CHECKER = hosts.BUILD / "tests" / "faults" / "checker"
# A crash or a bug's trace must never be the answer to bad input.
FORBIDDEN = re.compile(r"Segmentation|core dumped|Sanitizer|assert|\(null\)|%[sdluxz]|Success$", re.M)


@contextlib.contextmanager
def checker(directory, net=True):
    """(host, program) of a program that notices when it is touched."""
    (directory / "program").mkdir()
    with hosts.Host(net=net) as host:
        program = Program(host, directory / "program", CHECKER)
        try:
            yield host, program
        finally:
            program.close()


def one_clear_line(result):
    """Status 1 and exactly one line, which begins with "criu: " and says something."""
    assert result.status == 1, result
    lines = [line for line in result.output.split("\n") if line]
    assert len(lines) == 1 and lines[0].startswith("criu: ") and len(lines[0]) > 20, f"not one clear line: {result}"
    assert not FORBIDDEN.search(result.output), result
    return lines[0]


class Surroundings:
    """What may be left behind outside of processes: mounts, nft tables, temporary files, files in the images."""

    def __init__(self, host, images):
        self.host, self.images, self.before = host, images, None
        self.before = self.look()

    def look(self):
        found = {"mounts": (self.host.proc / "1" / "mounts").read_text(),
                 "nft tables": self.host.check(["nft", "list", "tables"]).output}
        for name in ("/tmp", "/run", "/var/tmp", "/dev/shm"):
            found[f"files in {name}"] = sorted(
                entry for entry in os.listdir(name)
                if "criu" in entry and not entry.startswith(("criu-test", "criu-explain-", "criu-demo", "criu-bench")))
        if self.images and self.images.is_dir():
            found["files of the images"] = sorted(entry for entry in os.listdir(self.images) if entry.endswith(".img"))
        return found

    def unchanged(self, but=()):
        now = self.look()
        for what, value in self.before.items():
            if what not in but:
                assert now[what] == value, f"left behind: {what}: before {value}, now {now[what]}"


def state(host):
    return process_state.snapshot(host)


REMNANT = re.compile(r"pid (\d+): only after:  [0-9a-f]+-[0-9a-f]+ rwxp 0 $")


def unharmed(program, before, when, remnants=False):
    """The program runs on, untraced, with the descriptors, mappings and signals it had. @remnants: criu was killed; it
    may have left one range of memory in each process, until the next dump."""
    program.check(when)
    # The checker's own threads change these all the time.
    lines = process_state.differences(before, state(program.host), ("SigPnd", "ShdPnd", "SigBlk", "fdinfo"))
    seen = set()
    for line in list(lines):
        match = REMNANT.fullmatch(line)
        if remnants and match and match[1] not in seen:
            seen.add(match[1])
            lines.remove(line)
    assert not lines, f"{when}: " + "\n".join(lines[:20])


def images_of(program, directory, *options):
    """Good images of the program, which runs on."""
    images = pathlib.Path(directory)
    hosts.Criu(program.host).dump(program.pid, images, "--leave-running", "--tcp-established", *options)
    return images
