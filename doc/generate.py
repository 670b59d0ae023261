#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fills @NAME@ marks of a template with what src/cmd/options.def and src/cmd/verbs.c say.

generate.py man|bash|zsh TEMPLATE OPTIONS.DEF VERBS.C VERSION OUTPUT
"""

import re
import sys

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\'.\'|[A-Za-z_]\w*|\d+|[(),|{}]')


def string_of(tokens):
    """Adjacent string literals as one text."""
    return "".join(token[1:-1].replace('\\"', '"').replace("\\\\", "\\") for token in tokens)


def split_arguments(tokens):
    """The comma-separated arguments of one macro or initializer, each a list of tokens."""
    arguments, depth = [[]], 0
    for token in tokens:
        if token in "({":
            depth += 1
        elif token in ")}":
            if depth == 0:
                return arguments
            depth -= 1
        if token == "," and depth == 0:
            arguments.append([])
        else:
            arguments[-1].append(token)
    raise SystemExit("unbalanced parentheses")


def without_comments(text):
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


class Option:
    def __init__(self, kind, arguments):
        self.kind = kind
        self.long = string_of(arguments[0])
        short = arguments[1][0]
        self.short = short[1] if short.startswith("'") else None
        self.argument = arguments[2][0]
        self.value = string_of(arguments[3])
        self.negatable = arguments[4][0] == "NEGATABLE"
        self.verbs = {token for token in arguments[5] if token != "|"}
        self.with_feature = string_of(arguments[7]) if kind == "LATER" else None
        self.help = string_of(arguments[-1])

    def is_for(self, verb):
        return "ALL_VERBS" in self.verbs or verb.replace("-", "_").upper() in self.verbs


class Verb:
    def __init__(self, arguments):
        self.name = string_of(arguments[0])
        self.has_options = arguments[1][0] != "0"
        self.later = None if arguments[5] == ["NULL"] else string_of(arguments[5])
        self.words = string_of(arguments[6])
        self.summary = string_of(arguments[7])


def read_options(path):
    text = without_comments(open(path, encoding="utf-8").read())
    tokens = TOKEN.findall(text)
    return [Option(token, split_arguments(tokens[i + 2:]))
            for i, token in enumerate(tokens) if token in ("OPTION", "HARMLESS", "LATER")]


def read_verbs(path):
    text = without_comments(open(path, encoding="utf-8").read())
    body = text[text.index("verbs[] = {") + len("verbs[] = {"):]
    tokens = TOKEN.findall(body[:body.index("};")])
    return [Verb(split_arguments(tokens[i + 1:])) for i, token in enumerate(tokens) if token == "{"]


# ---- manual page ----

def roff(text):
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = re.sub(r"`([^`]*)`", r"\\fB\1\\fR", text)
    return text.replace("…", "...")


def sentence(text):
    """With a capital, unless it begins with a name."""
    return text if text.startswith("criu ") else text[0].upper() + text[1:]


def roff_option(option, with_verbs=True):
    names = [f"\\fB\\-{option.short}\\fR"] if option.short else []
    names.append("\\fB\\-\\-" + ("[no\\-]" if option.negatable else "") + roff(option.long) + "\\fR")
    heading = ", ".join(names)
    if option.argument == "REQUIRED":
        heading += f" \\fI{roff(option.value)}\\fR"
    elif option.argument == "OPTIONAL":
        heading += f"[=\\fI{roff(option.value)}\\fR]"
    verbs = ""
    if with_verbs and "ALL_VERBS" not in option.verbs:
        names = sorted(verb.lower().replace("_", "-") for verb in option.verbs - {"SERVICE"})
        verbs = " (" + ", ".join(f"\\fB{name}\\fR" for name in names) + ")"
    return f".TP\n{heading}\n{roff(sentence(option.help))}{verbs}."


def roff_options_of(options, verb):
    """Those that are not for every verb."""
    return "\n".join(roff_option(option, with_verbs=False) for option in options
                     if option.kind == "OPTION" and option.is_for(verb) and "ALL_VERBS" not in option.verbs)


def man_marks(options, verbs):
    later = {}
    for option in options:
        if option.kind == "LATER":
            later.setdefault(option.with_feature, []).append(f"\\fB\\-\\-{roff(option.long)}\\fR")
    return {
        "COMMANDS": "\n".join(f".TP\n\\fB{roff(verb.name)}\\fR {roff(verb.words)}\n{roff(sentence(verb.summary))}."
                              for verb in verbs if not verb.later),
        "LATER_COMMANDS": ", ".join(f"\\fB{roff(verb.name)}\\fR" for verb in verbs if verb.later),
        "OPTIONS": "\n".join(roff_option(option) for option in options if option.kind == "OPTION"),
        "MIGRATE_OPTIONS": roff_options_of(options, "migrate"),
        "RECEIVE_OPTIONS": roff_options_of(options, "receive"),
        "HARMLESS": "\n".join(roff_option(option) for option in options if option.kind == "HARMLESS"),
        "LATER": "\n".join(f".TP\nwith {roff(feature)}\n{', '.join(names)}" for feature, names in later.items()),
    }


# ---- completions ----

def usable(options, verb):
    return [option for option in options if option.kind == "OPTION" and option.is_for(verb.name)]


def words_of(options):
    for option in options:
        yield f"--{option.long}"
        if option.negatable:
            yield f"--no-{option.long}"


def of_value(options, *values):
    words = []
    for option in options:
        if option.kind != "LATER" and option.argument == "REQUIRED" and option.value in values:
            words.append(f"--{option.long}")
            if option.short:
                words.append(f"-{option.short}")
    return "|".join(dict.fromkeys(words))


def bash_marks(options, verbs):
    present = [verb for verb in verbs if not verb.later]
    cases = [f"\t{verb.name}) options=\"{' '.join(words_of(usable(options, verb)))}\" ;;" for verb in present
             if verb.has_options]
    taking = [f"-{option.short}" for option in options if option.short and option.argument == "REQUIRED"]
    taking += [f"--{option.long}" for option in options if option.argument == "REQUIRED"]
    return {
        "VERBS": " ".join(verb.name for verb in present),
        "CASES": "\n".join(cases),
        "DIRECTORIES": of_value(options, "DIR"),
        "FILES": of_value(options, "FILE"),
        "PIDS": of_value(options, "PID"),
        "TAKING": "|".join(taking),
    }


def zsh_text(text):
    return (text.replace("`", "").replace("'", "'\\''").replace("[", "\\[").replace("]", "\\]").replace(":", "\\:"))


def zsh_option(option):
    actions = {"DIR": "_files -/", "FILE": "_files", "PID": "_pids"}
    words = {"at-timeout": "(cancel stop-and-copy post-copy)", "compress": "(auto none lz4 zstd)"}
    value = ""
    if option.argument != "NONE":
        colon = ":" if option.argument == "REQUIRED" else "::"
        value = f"{colon}{option.value.lower()}:{words.get(option.long, actions.get(option.value, ''))}"
    equals = {"NONE": "", "REQUIRED": "=", "OPTIONAL": "=-"}[option.argument]
    many = "*" if "can be repeated" in option.help or option.long == "verbosity" else ""
    lines = [f"\t\t'{many}--{option.long}{equals}[{zsh_text(option.help)}]{value}'"]
    if option.short:
        short_equals = {"NONE": "", "REQUIRED": "+", "OPTIONAL": "-"}[option.argument]
        lines.append(f"\t\t'{many}-{option.short}{short_equals}[{zsh_text(option.help)}]{value}'")
    if option.negatable:
        lines.append(f"\t\t'--no-{option.long}[not\\: {zsh_text(option.help)}]'")
    return lines


def zsh_marks(options, verbs):
    present = [verb for verb in verbs if not verb.later]
    cases = []
    for verb in present:
        if not verb.has_options:
            continue
        lines = [line for option in usable(options, verb) for line in zsh_option(option)]
        cases.append(f"\t{verb.name})\n\t\targuments=(\n" + "\n".join(lines) + "\n\t\t)\n\t\t;;")
    return {
        "VERBS": "\n".join(f"\t\t'{verb.name}:{zsh_text(verb.summary)}'" for verb in present),
        "CASES": "\n".join(cases),
    }


def main():
    kind, template, options_path, verbs_path, version, output = sys.argv[1:]
    make = {"man": man_marks, "bash": bash_marks, "zsh": zsh_marks}[kind]
    marks = make(read_options(options_path), read_verbs(verbs_path))
    marks["VERSION"] = version
    text = open(template, encoding="utf-8").read()
    text = re.sub(r"@([A-Z_]+)@", lambda match: marks[match.group(1)], text)
    with open(output, "w", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    main()
