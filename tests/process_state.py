# SPDX-License-Identifier: Apache-2.0
"""What /proc says about a tree of processes, made comparable: two snapshots of the same tree, before a dump and after
a restore, must be equal. Inode numbers become ordinals in the order in which they are met, so that sharing shows.
"""
import contextlib
import os
import re

# Lines of /proc/PID/status that belong to the program and not to the kernel's bookkeeping.
STATUS = ("Name", "Umask", "Tgid", "Pid", "TracerPid", "Uid", "Gid", "Groups", "NStgid", "NSpid", "NSpgid", "NSsid",
          "Kthread", "Threads", "SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt", "CapInh", "CapPrm", "CapEff", "CapBnd",
          "CapAmb", "NoNewPrivs", "Seccomp", "Cpus_allowed", "CoreDumping", "THP_enabled")
WHOLE_FILES = ("cmdline", "environ", "auxv", "limits", "oom_score_adj", "coredump_filter", "personality",
               "timerslack_ns", "comm", "setgroups", "timens_offsets")
INODE = re.compile(r"((?:socket|pipe|anon_inode|net|mnt|uts|ipc|pid|user|cgroup|time):?\[)(\d+)(\])")
FDINFO_SKIPPED = {"mnt_id", "ino", "eventfd-id", "it_value", "Pid", "NSpid", "ticks"}


class Names:
    """Gives inode numbers and the like stable names in the order of first use."""

    def __init__(self):
        self.known = {}

    def ordinal(self, match):
        number = self.known.setdefault(match.group(0), len(self.known))
        return f"{match.group(1)}#{number}{match.group(3)}"

    def stable(self, text):
        text = re.sub(r"^(/memfd:.*|/dev/zero|/SYSV\w+|.*/\.nfs\w+)( \(deleted\))$", r"\1 (deleted)", text)
        return INODE.sub(self.ordinal, without_number(text))


def without_number(name):
    """A file made with O_TMPFILE has its inode number as its name."""
    return re.sub(r"/#\d+ \(deleted\)$", "/# (deleted)", name)


def read(path, default=""):
    try:
        with open(path, "rb") as file:
            return file.read().decode(errors="backslashreplace")
    except (OSError, ProcessLookupError):
        return default


def state_letter(letter):
    # Running and sleeping depend on the moment; stopped and dead are state.
    return letter if letter in "TZX" else "alive"


def thread_state(directory, names):
    status = dict(line.split(":", 1) for line in read(directory / "status").splitlines() if ":" in line)
    found = {f"status.{key}": " ".join(status[key].split()) for key in STATUS if key in status}
    stat = read(directory / "stat")
    if ")" in stat:
        fields = stat.rpartition(")")[2].split()
        found["stat.state"] = state_letter(fields[0])
        for name, index in (("ppid", 1), ("pgrp", 2), ("session", 3), ("nice", 16), ("exit_signal", 35),
                            ("rt_priority", 37), ("policy", 38), ("start_data", 42), ("arg_start", 45),
                            ("arg_end", 46), ("env_start", 47), ("env_end", 48), ("start_brk", 44)):
            found[f"stat.{name}"] = fields[index]
    return found


def descriptors(directory, names):
    found = {}
    with contextlib.suppress(OSError):
        for number in sorted(map(int, os.listdir(directory / "fd"))):
            with contextlib.suppress(OSError):
                found[f"fd.{number}"] = names.stable(os.readlink(directory / "fd" / str(number)))
            for line in read(directory / "fdinfo" / str(number)).splitlines():
                key = line.split(":")[0]
                if key in FDINFO_SKIPPED or line.startswith(("lock:", "inotify ", "fanotify ")):
                    continue
                line = re.sub(r"\b(ino|sdev):[0-9a-f]+", "", line) if key == "tfd" else line
                line = re.sub(r"pos:\d+", "", line) if key == "tfd" else line
                field = found.setdefault(f"fdinfo.{number}", [])
                field.append(" ".join(line.split()))
                if key == "tfd":
                    # The kernel sorts what an epoll watches by address.
                    field.sort()
    return found


def mappings(directory):
    """(start, end, permissions, offset, name), neighbours that continue each other merged: the kernel may do both."""
    merged = []
    for line in read(directory / "maps").splitlines():
        fields = line.split(None, 5)
        start, end = (int(part, 16) for part in fields[0].split("-"))
        offset, name = int(fields[2], 16), without_number(fields[5]) if len(fields) > 5 else ""
        if name == "[vsyscall]":
            continue
        anonymous = not name or name.startswith("[")
        if merged and merged[-1][1] == start and merged[-1][2] == fields[1] and merged[-1][4] == name and \
                (anonymous or merged[-1][3] + start - merged[-1][0] == offset):
            merged[-1][1] = end
        else:
            merged.append([start, end, fields[1], 0 if anonymous else offset, name])
    return [f"{start:x}-{end:x} {mode} {offset:x} {name}" for start, end, mode, offset, name in merged]


def dead_state(found):
    """What a parent can still learn of a dead child; its limits and signal actions are nobody's any more."""
    return {key: value for key, value in found.items()
            if key in ("status.Name", "status.Pid", "status.Tgid", "status.NSpid") or key.startswith("stat.")}


def process_state(directory, names):
    found = thread_state(directory, names)
    if found.get("stat.state") in ("Z", "X"):
        return dead_state(found)
    for name in WHOLE_FILES:
        found[name] = read(directory / name)
    for link in ("exe", "cwd", "root"):
        with contextlib.suppress(OSError):
            found[link] = os.readlink(directory / link)
    found["maps"] = mappings(directory)
    found.update(descriptors(directory, names))
    with contextlib.suppress(OSError):
        for tid in sorted(map(int, os.listdir(directory / "task"))):
            if str(tid) != directory.name:
                for key, value in thread_state(directory / "task" / str(tid), names).items():
                    found[f"thread {tid}.{key}"] = value
    return found


def snapshot(host, pids=None):
    """The state of all processes of a host (or of @pids)."""
    names = Names()
    return {pid: process_state(host.proc / str(pid), names) for pid in sorted(pids if pids is not None else host.pids())}


def differences(before, after, ignore=()):
    """Lines that say what differs. @ignore: regular expressions of "key" that may differ."""
    lines = []
    for pid in sorted(before.keys() | after.keys()):
        if pid not in after or pid not in before:
            lines.append(f"pid {pid} {'is gone' if pid in before else 'is new'}")
            continue
        old, new = before[pid], after[pid]
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) == new.get(key) or any(re.search(pattern, key) for pattern in ignore):
                continue
            if key == "maps":
                lines += [f"pid {pid}: only before: {line}" for line in old[key] if line not in new[key]]
                lines += [f"pid {pid}: only after:  {line}" for line in new[key] if line not in old[key]]
            else:
                lines.append(f"pid {pid}: {key}: before {old.get(key)!r}, after {new.get(key)!r}")
    return lines
