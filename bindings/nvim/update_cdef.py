#!/usr/bin/env python3
"""Writes lua/qwenmoe/cdef.lua, the library's interface for LuaJIT, from its public header.

    bindings/nvim/update_cdef.py            writes it
    bindings/nvim/update_cdef.py --check    fails if it is not what the header says
"""
import pathlib
import re
import sys
import textwrap

here = pathlib.Path(__file__).resolve().parent
header, target = here.parent.parent / "include" / "qwenmoe.h", here / "lua" / "qwenmoe" / "cdef.lua"

HEAD = """-- The interface of libqwenmoe for LuaJIT: declarations and constants of include/qwenmoe.h, written by update_cdef.py.
local M = {}

"""


def interface(text):
    """(declarations, {constant: number}) of a header."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    constants = {name: int(value) for name, value in re.findall(r"^#define QM_(\w+) \(?(-?\d+)\)?\s*$", text, re.MULTILINE)}
    text = re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
    text = text.replace('extern "C" {', "").replace("QM_API ", "")
    declarations = [" ".join(part.split()) for part in text.split(";")]
    declarations = [textwrap.fill(part + ";", 126, subsequent_indent="    ") for part in declarations if part not in ("", "}")]
    return declarations, constants


def lua(declarations, constants):
    lines = [HEAD + "M.declarations = [["] + declarations + ["]]", "", "M.constants = {"]
    lines += [f"    {name} = {value}," for name, value in constants.items()]
    return "\n".join(lines + ["}", "", "return M", ""])


def main():
    wanted = lua(*interface(header.read_text(encoding="utf-8")))
    if sys.argv[1:] == ["--check"]:
        if not target.exists() or target.read_text(encoding="utf-8") != wanted:
            sys.exit(f"{target} is not what {header} says: run bindings/nvim/update_cdef.py")
    elif sys.argv[1:]:
        sys.exit(__doc__)
    else:
        target.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
