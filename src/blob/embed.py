#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Links the interpreter into a flat binary and writes it as a C array: embed.py CC LDSCRIPT SOURCE INCLUDE OUTPUT."""
import os
import subprocess
import sys
import tempfile

compiler, script, source, include, output = sys.argv[1:6]
with tempfile.TemporaryDirectory() as directory:
    linked = os.path.join(directory, "interpreter.elf")
    flat = os.path.join(directory, "interpreter.bin")
    subprocess.run(
        [*compiler.split(), "-std=gnu17", "-Os", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fPIC", "-nostdlib",
         "-static", "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fcf-protection=none",
         "-mgeneral-regs-only", "-fno-builtin", "-I", include, "-Wl,--build-id=none", "-Wl,-T," + script,
         source, "-o", linked], check=True)
    subprocess.run(["objcopy", "-O", "binary", linked, flat], check=True)
    with open(flat, "rb") as file:
        code = file.read()
with open(output, "w") as file:
    file.write("/* Made by embed.py from interpreter.c. */\n#include <stdint.h>\n\n")
    file.write("static const uint8_t interpreter_code[] = {\n")
    for start in range(0, len(code), 16):
        file.write("\t" + ", ".join("0x%02x" % byte for byte in code[start:start + 16]) + ",\n")
    file.write("};\n")
