#!/usr/bin/env python3
"""Writes qwenmoe/_api.py, the ctypes declarations, from the public header. Refuses what it does not understand.

    generate_api.py            writes it anew, after functions were added to the header
    generate_api.py --check    fails when it is not what the header says
"""
import re
import sys
import textwrap
from pathlib import Path

HERE = Path(__file__).resolve().parent
HEADER = HERE.parent.parent / "include" / "qwenmoe.h"
TARGET = HERE / "qwenmoe" / "_api.py"

SCALARS = {"void": "None", "int32_t": "c_int32", "int64_t": "c_int64", "float": "c_float", "double": "c_double"}


def python_type(c_type, handles, callbacks):
    """The ctypes expression for a C type: scalars, text, handles, callbacks, and pointers to them."""
    words = [word for word in re.findall(r"\w+|\*", c_type) if word != "const"]
    base, stars = words[0], words[1:]
    if any(star != "*" for star in stars):
        raise SystemExit(f"{HEADER.name}: cannot read the type '{c_type}'")
    depth = len(stars)
    if base == "char" and depth >= 1:
        name, depth = "c_char_p", depth - 1
    elif base == "void" and depth >= 1:
        name, depth = "c_void_p", depth - 1
    elif base in handles and depth >= 1:
        name, depth = base, depth - 1
    elif base in callbacks or base in SCALARS:
        name = SCALARS.get(base, base)
    else:
        raise SystemExit(f"{HEADER.name}: cannot read the type '{c_type}'")
    return "POINTER(" * depth + name + ")" * depth


def parameters(text, handles, callbacks):
    """(name, ctypes expression) of each parameter of a C parameter list."""
    found = []
    for parameter in text.split(","):
        parameter = " ".join(parameter.split())
        if parameter == "void":
            continue
        match = re.fullmatch(r"(.*[ *])(\w+)", parameter)
        if not match:
            raise SystemExit(f"{HEADER.name}: cannot read the parameter '{parameter}'")
        found.append((match[2], python_type(match[1], handles, callbacks)))
    return found


def generate(header):
    code = re.sub(r"/\*.*?\*/", " ", header, flags=re.DOTALL)
    constants = re.findall(r"^#define (QM_\w+) \(?(-?\d+)\)?\s*$", code, flags=re.MULTILINE)
    code = re.sub(r"^[ \t]*#.*$", "", code, flags=re.MULTILINE)
    handles = re.findall(r"typedef struct (\w+) \1;", code)
    callbacks = re.findall(r"typedef ([\w ]+?\s*\**)\(\*(\w+)\)\(([^)]*)\);", code)
    functions = re.findall(r"QM_API ([\w ]+?[ *]+)(qm_\w+)\(([^)]*)\);", code)
    if len(functions) != len(re.findall(r"\bQM_API\b", code)) or len(callbacks) != code.count("(*"):
        raise SystemExit(f"{HEADER.name}: a declaration could not be read")
    names = [name for _, name, _ in callbacks]

    lines = ["# Written by generate_api.py from qwenmoe.h, not to be edited: its constants, handles, callbacks and functions.",
             "from ctypes import CFUNCTYPE, POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_void_p",
             "from typing import Any, Dict, Tuple", ""]
    lines += [f"{name} = {value}" for name, value in constants]
    for handle in handles:
        lines += ["", "", f"class {handle}(c_void_p):", "    pass"]
    lines += ["", ""]
    for result, name, arguments in callbacks:
        types = [python_type(result, handles, names)] + [kind for _, kind in parameters(arguments, handles, names)]
        lines.append(f"{name} = CFUNCTYPE({', '.join(types)})")
    lines += ["", "# name: (type of the result, ((name of an argument, its type), ...))",
              "FUNCTIONS: Dict[str, Tuple[Any, Tuple[Tuple[str, Any], ...]]] = {"]
    for result, name, arguments in functions:
        listed = " ".join(f'("{argument}", {kind}),' for argument, kind in parameters(arguments, handles, names))
        lines += textwrap.wrap(f'"{name}": ({python_type(result, handles, names)}, ({listed})),', 130, initial_indent=" " * 4,
                               subsequent_indent=" " * 8, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines + ["}", ""])


def main():
    if sys.argv[1:] not in ([], ["--check"]):
        raise SystemExit(__doc__)
    wanted = generate(HEADER.read_text(encoding="utf-8"))
    if sys.argv[1:] == []:
        TARGET.write_text(wanted, encoding="utf-8")
    elif TARGET.read_text(encoding="utf-8") != wanted:
        raise SystemExit(f"{TARGET} is not what {HEADER} says: run {Path(__file__).resolve()}")


if __name__ == "__main__":
    main()
