# SPDX-License-Identifier: Apache-2.0
"""What an images directory holds, as far as the framing of the format tells: files and their entries."""
import pathlib
import re
import struct

HEAD_MAGICS = (0x54564319, 0x55105940)
INVENTORY_MAGIC = 0x58313116
# Behind their entries lie bytes of other lengths.
WITH_PAYLOAD = ("pipes-data", "fifo-data", "sk-queues", "tcp-stream", "ghost-file")


def entries(path):
    """The messages of one image file, as bytes; None where there is more than messages in it."""
    data = pathlib.Path(path).read_bytes()
    magic = struct.unpack_from("<I", data)[0] if len(data) >= 4 else 0
    if magic == INVENTORY_MAGIC:
        offset = 4
    elif magic in HEAD_MAGICS:
        offset = 8
    else:
        return None
    if pathlib.Path(path).name.startswith(WITH_PAYLOAD):
        return None
    found = []
    while offset < len(data):
        length = struct.unpack_from("<I", data, offset)[0]
        found.append(data[offset + 4:offset + 4 + length])
        assert len(found[-1]) == length, f"{path} ends inside an entry"
        offset += 4 + length
    return found


def first_number(message):
    """The varint at the beginning of a message whose first field is a number (field 1)."""
    assert message[0] == 0x08
    value = shift = 0
    for byte in message[1:]:
        value |= (byte & 0x7f) << shift
        shift += 7
        if byte < 0x80:
            return value
    raise AssertionError("a number without an end")


def file_types(directory):
    """How many open files of which type files.img has."""
    counts = {}
    for message in entries(pathlib.Path(directory) / "files.img"):
        number = first_number(message)
        counts[number] = counts.get(number, 0) + 1
    return counts


def kinds_of_files(directory):
    """{name without ids: how many}: what must be the same for two dumps of the same tree."""
    counts = {}
    for path in pathlib.Path(directory).glob("*.img"):
        kind = re.sub(r"-[0-9a-f]+$", "", path.stem) if re.search(r"\d", path.stem) else path.stem
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def entry_counts(directory):
    """{file name with pids as they are, other ids taken out: number of entries}."""
    counts = {}
    for path in pathlib.Path(directory).glob("*.img"):
        found = entries(path)
        if found is not None and path.stem.startswith(("core", "mm", "fs-", "ids", "pstree", "files", "remap", "inventory",
                                                       "tty", "filelocks", "memfd", "fdinfo", "seccomp")):
            counts[path.stem] = len(found)
    return counts
