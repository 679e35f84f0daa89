#!/usr/bin/env python3
"""Writes files as C arrays: embed.py OUT.c FILE... gives `const char NAME[]` and `const size_t NAME_length`, where NAME is the
file's name with _ for what C does not take."""
import pathlib
import re
import sys

with open(sys.argv[1], "w") as out:
    out.write("#include <stddef.h>\n")
    for path in map(pathlib.Path, sys.argv[2:]):
        name, data = re.sub(r"\W", "_", path.name), path.read_bytes()
        out.write(f"extern const char {name}[];\nextern const size_t {name}_length;\nconst char {name}[] = {{\n")
        for at in range(0, len(data), 24):
            out.write(",".join(f"{b if b < 128 else b - 256}" for b in data[at:at + 24]) + ",\n")
        out.write(f"0 }};\nconst size_t {name}_length = {len(data)};\n")
