# SPDX-License-Identifier: Apache-2.0
"""Help, manual pages, README and completion name the same commands and options, and none that is not there."""
import re
import subprocess

import pytest

import hosts

SOURCE = hosts.TESTS.parent
DOCUMENTS = hosts.BUILD / "doc"
OPTION = re.compile(r"(?<![\w-])--(?:\[no-\])?([a-z][a-z0-9-]*)")
PAGE_OF = {"migrate": "criu-migrate.8", "receive": "criu-migrate.8"}


def run(*argv):
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout


def help_text(*verb):
    return run(str(hosts.CRIU), *verb, "--help")


def verbs():
    return re.findall(r"^  ([a-z][a-z-]*) +\S", help_text().split("Usage:")[1].split("\nMove ")[0], re.MULTILINE)


def own_options(verb):
    """Those of the verb alone, from its help: the option's column, not what others say of it."""
    text = help_text(verb)
    if "Options of every command:" not in text:
        return set()
    part = text.split("Options of every command:")[0]
    return set(re.findall(r"^  (?:-.,|   ) --(?:\[no-\])?([a-z0-9-]+)", part, re.MULTILINE))


def general_options():
    part = help_text("dump").split("Options of every command:")[1]
    return set(re.findall(r"^  (?:-.,|   ) --(?:\[no-\])?([a-z0-9-]+)", part, re.MULTILINE))


def page(name):
    """The text of a manual page, without marks of roff."""
    text = (DOCUMENTS / name).read_text()
    return re.sub(r"\\f.", "", text).replace("\\-", "-").replace("\\|", "")


def described(text):
    """Options that have a paragraph of their own."""
    return set(re.findall(r"^\.TP\n(?:-., )?--(?:\[no-\])?([a-z0-9-]+)", text, re.MULTILINE))


def section(text, name):
    return re.split(r"^\.SH ", text.split(f"\n.SH {name}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]


def test_every_verb_is_in_the_manual():
    commands = section(page("criu.8"), "COMMANDS")
    missing = [verb for verb in verbs() if not re.search(rf"^\.TP\n{verb} ", commands, re.MULTILINE)]
    assert verbs() and not missing


@pytest.mark.parametrize("verb", verbs())
def test_options_of_a_verb_are_described(verb):
    text = page("criu.8")
    assert own_options(verb) <= described(text)
    assert general_options() <= described(text)
    if verb in PAGE_OF:
        part = section(page(PAGE_OF[verb]), f"OPTIONS OF {verb.upper()}")
        assert described(part) == own_options(verb)


@pytest.mark.parametrize("document", ["criu.8", "criu-migrate.8", "README.md"])
def test_options_that_are_named_exist(document):
    text = (SOURCE / document).read_text() if document.endswith(".md") else page(document)
    known = general_options().union(*(own_options(verb) for verb in verbs()))
    # What the page lists as refused, or accepted without effect, is no promise.
    if document == "criu.8":
        text = text.split("\n.SS Accepted without effect\n")[0] + text.split("\n.SH MIGRATION\n")[1]
    named = set(OPTION.findall(text)) - {"enable", "now"}  # of systemctl
    refused = set(re.findall(r"`--([a-z-]+)`", text.split("refused by name:")[1].split("|")[0])) \
        if "refused by name:" in text else set()
    unknown = {name for name in named if not {name, name.removeprefix("no-")} & (known | refused)}
    assert not unknown


@pytest.mark.parametrize("verb", ["migrate", "receive"])
def test_examples_use_options_of_their_verb(verb):
    text = page("criu-migrate.8")
    for line in re.findall(rf"criu {verb}\b.*", text):
        line = re.split(r"\s(?:src|dst)#", line)[0]
        assert {name.removeprefix("no-") for name in OPTION.findall(line)} <= own_options(verb) | general_options(), line


def complete(*words):
    script = ('source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); compopt() { :; }; _criu; '
              'printf "%s\\n" "${COMPREPLY[@]}"')
    return set(run("bash", "-c", script, "bash", str(DOCUMENTS / "criu"), *words).split())


def test_completion_of_verbs():
    assert complete("criu", "") >= set(verbs())


@pytest.mark.parametrize("verb", verbs())
def test_completion_of_options(verb):
    without_effect = described(page("criu.8").split("\n.SS Accepted without effect\n")[1].split("\n.SS ")[0])
    wanted = {f"--{name}" for name in own_options(verb) - without_effect}
    assert wanted <= complete("criu", verb, "--")


def test_completion_of_values():
    assert complete("criu", "migrate", "--at-timeout", "") == {"cancel", "stop-and-copy", "post-copy"}
    assert complete("criu", "migrate", "--compress", "l") == {"lz4"}
    assert complete("criu", "migrate", "--tree", "1", "") == {"ssh://", "tls://", "tcp://"}
