# SPDX-License-Identifier: Apache-2.0
"""crit against images that CRIU 4.2 wrote: the same JSON text, the same bytes back, readable refusals.

golden/ holds the images and what CRIU's crit decodes them to. CRIU_SHARED can name another collection.
"""
import json
import os
import pathlib
import subprocess

import pytest

HERE = pathlib.Path(__file__).resolve().parent
BUILD = pathlib.Path(os.environ.get("CRIU_BUILD", HERE.parent.parent / "build"))
CRIT = BUILD / "tools" / "crit"


def collections():
    yield HERE / "golden", HERE / "golden"
    shared = pathlib.Path(os.environ.get("CRIU_SHARED", HERE.parent.parent.parent / "shared")) / "golden" / "zoo"
    if shared.is_dir():
        yield shared / "images", shared / "json"


CASES = [
    pytest.param(images / text.name[: -len(".json")], text, id=f"{images.parent.name}-{text.stem}")
    for images, texts in collections()
    for text in sorted(texts.glob("*.json"))
]


def crit(*arguments):
    command = [str(CRIT), *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)


def refused(result):
    """One readable line, exit 1, nothing on standard output."""
    assert result.returncode == 1
    assert result.stdout == b""
    lines = result.stderr.decode().splitlines()
    assert len(lines) == 1 and lines[0].startswith("crit: ")
    return lines[0]


def test_there_are_cases():
    assert len(CASES) >= 46


@pytest.mark.parametrize("image,text", CASES)
def test_decode_is_the_same_text(image, text):
    result = crit("decode", "-i", image, "--pretty")
    assert result.stderr == b""
    assert result.returncode == 0
    assert result.stdout == text.read_bytes()


@pytest.mark.parametrize("image,text", CASES)
def test_encode_is_the_same_bytes(image, text, tmp_path):
    again = tmp_path / image.name
    result = crit("encode", "-i", text, "-o", again)
    assert result.stderr == b""
    assert result.returncode == 0
    assert again.read_bytes() == image.read_bytes()


def test_decode_without_pretty_is_one_line():
    result = crit("decode", "-i", HERE / "golden" / "pstree.img")
    assert result.stdout.count(b"\n") == 1
    assert json.loads(result.stdout) == json.loads((HERE / "golden" / "pstree.img.json").read_text())


@pytest.mark.parametrize("what", ["ps", "fds", "mems", "rss"])
def test_explore_names_the_processes(what):
    result = crit("x", HERE / "golden", what)
    assert result.returncode == 0
    assert b"zoo-keeper" in result.stdout


def test_explore_shows_what_a_person_looks_for():
    files = crit("x", HERE / "golden", "fds").stdout.decode()
    assert "tcp 127.0.0.1:18080 listening" in files
    assert "@zoo-abstract" in files
    states = {line.split()[0]: line.split()[4] for line in crit("x", HERE / "golden", "ps").stdout.decode().splitlines()}
    assert states["8549"] == "zombie"
    assert states["8550"] == "stopped"


def test_explore_all():
    text = crit("x", HERE / "golden").stdout.decode()
    assert "\nTree\n" in text and "\n  Memory\n" in text and "\n  Files\n" in text
    tasks = json.loads(crit("x", HERE / "golden", "json").stdout)["tasks"]
    assert [task["pid"] for task in tasks] == [8544, 8548, 8551, 8549, 8550]
    assert tasks[0]["threads"] == [8544, 8546, 8547]
    criu = subprocess.run([str(BUILD / "criu"), "show", "--json", str(HERE / "golden")], stdout=subprocess.PIPE)
    assert json.loads(criu.stdout)["tasks"] == tasks
    assert "No such" in refused(crit("x", HERE / "absent"))
    assert "inventory.img" in refused(crit("x", HERE))


def test_info():
    result = crit("info", HERE / "golden" / "files.img")
    assert result.stdout.decode() == "magic: FILES\nentries: 50\n"


def test_truncated_image(tmp_path):
    whole = (HERE / "golden" / "core-8546.img").read_bytes()
    image = tmp_path / "core-8546.img"
    image.write_bytes(whole[:-1])
    line = refused(crit("decode", "-i", image))
    assert "core-8546.img" in line and "ends in the middle" in line


def test_not_an_image(tmp_path):
    image = tmp_path / "core-1.img"
    image.write_bytes(b"this is no image")
    assert "not the magics of an image" in refused(crit("decode", "-i", image))
    assert "no such file" in refused(crit("decode", "-i", tmp_path / "absent.img"))


@pytest.mark.parametrize(
    "text,says",
    [
        ("{", "line 1"),
        ("[]", "magic"),
        ('{"magic": "NOTHING", "entries": []}', "NOTHING"),
        ('{"magic": "FS", "entries": {}}', "entries"),
        ('{"magic": "FS", "entries": [{"cwd_id": 1, "root_id": 2, "more": 3}]}', "no field more"),
        ('{"magic": "FS", "entries": [{"cwd_id": 1}]}', "lacks its field root_id"),
        ('{"magic": "FS", "entries": [{"cwd_id": 4294967296, "root_id": 2}]}', "32 bits"),
        ('{"magic": "FS", "entries": [{"cwd_id": -1, "root_id": 2}]}', "cwd_id"),
        ('{"magic": "PIPES_DATA", "entries": [{"pipe_id": 1, "bytes": 4, "extra": "AAAA"}]}', "4"),
        ('{"magic": "PIPES_DATA", "entries": [{"pipe_id": 1, "bytes": 4, "extra": "!"}]}', "base64"),
    ],
)
def test_encode_refuses(tmp_path, text, says):
    source = tmp_path / "source.json"
    source.write_text(text)
    assert says in refused(crit("encode", "-i", source, "-o", tmp_path / "out.img"))


def test_large_numbers_and_strange_text_survive(tmp_path):
    entry = {
        "clockid": 1, "ticks": 18446744073709551615, "settime_flags": "0x0", "vsec": 9223372036854775808, "vnsec": 1,
        "isec": 0, "insec": 0, "fown": {"uid": 0, "euid": 0, "signum": 0, "pid_type": 0, "pid": 0}, "flags": "0x0",
        "id": 1,
    }
    source = tmp_path / "timerfd.json"
    source.write_text(json.dumps({"magic": "TIMERFD", "entries": [entry]}))
    image = tmp_path / "timerfd.img"
    assert crit("encode", "-i", source, "-o", image).stderr == b""
    assert json.loads(crit("decode", "-i", image).stdout)["entries"] == [entry]
    name = "a\"b\\c\n\x01\x7f é € 😀 18446744073709551615"
    source.write_text(json.dumps({"magic": "APPARMOR", "entries": [
        {"namespaces": [{"name": name, "policies": [], "namespaces": []}]}]}))
    assert crit("encode", "-i", source, "-o", image).stderr == b""
    decoded = crit("decode", "-i", image).stdout.decode()
    assert json.loads(decoded)["entries"][0]["namespaces"][0]["name"] == name
    assert json.dumps(name) in decoded


def test_show_tells_what_the_images_say():
    golden = HERE / "golden"
    tree = json.loads((golden / "pstree.img.json").read_text())["entries"]
    shown = json.loads(crit("x", golden, "json").stdout)
    assert [(task["pid"], task["parent"], task["session"]) for task in shown["tasks"]] == \
        [(entry["pid"], entry["ppid"], entry["sid"]) for entry in tree]
    for task in shown["tasks"]:
        core = json.loads((golden / f"core-{task['pid']}.img.json").read_text())["entries"][0]["tc"]
        assert task["name"] == core["comm"]
        if task["state"] == "zombie":
            assert task["wait_status"] == core["exit_code"]
            continue
        pagemap = json.loads((golden / f"pagemap-{task['pid']}.img.json").read_text())["entries"][1:]
        stored = sum(entry["nr_pages"] for entry in pagemap if "PE_PRESENT" in entry["flags"])
        assert task["memory"]["stored_bytes"] == 4096 * stored > 0
        assert len(task["files"]) > 30
    assert [task["state"] for task in shown["tasks"]].count("zombie") == 1
    for part in ("ps", "fds", "mems", "rss"):
        text = crit("x", golden, part).stdout.decode()
        assert all(str(task["pid"]) in text for task in shown["tasks"] if "memory" in task)
    refused(crit("x", golden, "cores"))
