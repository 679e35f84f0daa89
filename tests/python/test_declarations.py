"""The ctypes declarations agree with the header, and with what the compiler made of it."""
import ctypes
import re
import subprocess
import sys
import xml.etree.ElementTree

import pytest

import qwenmoe
from qwenmoe import _api, _errors, _job, _options

from conftest import TOP


def test_generated_from_the_header():
    subprocess.run([sys.executable, TOP / "bindings/python/generate_api.py", "--check"], check=True)


def test_all_exported_functions():
    exported = (TOP / "tests/abi/symbols.txt").read_text().split()
    assert sorted(_api.FUNCTIONS) == sorted(exported)
    library = qwenmoe.library()
    for name in exported:
        assert callable(getattr(library, name))


class Abi:
    """The stored dump of the library's interface. Debugging information of the compiler is where it comes from, and the suite
    compares it with the library."""

    def __init__(self):
        root = xml.etree.ElementTree.parse(TOP / "tests/abi/libqwenmoe.abi").getroot()
        self.types = {node.get("id"): node for node in root.iter() if node.get("id")}
        self.functions = {node.get("name"): node for node in root.iter("function-decl")}

    def strip(self, identity):
        """The type without names and qualifiers: (kind, bits) or (pointer, what it points to)."""
        node = self.types[identity]
        if node.tag in ("typedef-decl", "qualified-type-def"):
            return self.strip(node.get("type-id"))
        if node.tag == "pointer-type-def":
            assert node.get("size-in-bits") == "64"
            return ("pointer", self.strip(node.get("type-id")))
        if node.tag == "type-decl":
            name = node.get("name")
            kind = "float" if name in ("float", "double") else "char" if name == "char" else "void" if name == "void" else "int"
            assert not name.startswith("unsigned")
            return (kind, int(node.get("size-in-bits", "0")))
        if node.tag == "class-decl":
            assert node.get("is-declaration-only") == "yes", "a struct whose layout crosses the line"
            return ("struct", node.get("name"))
        assert node.tag == "function-type"
        return ("function", self.strip(node.find("return").get("type-id")),
                tuple(self.strip(one.get("type-id")) for one in node.findall("parameter")))


SCALARS = {None: ("void", 0), ctypes.c_int32: ("int", 32), ctypes.c_int64: ("int", 64), ctypes.c_float: ("float", 32),
           ctypes.c_double: ("float", 64), ctypes.c_char_p: ("pointer", ("char", 8)), ctypes.c_void_p: ("pointer", ("void", 0))}


def declared(kind):
    """A ctypes type in the same words."""
    if kind in SCALARS:
        found = SCALARS[kind]
        if kind is not None:
            bits = 64 if found[0] == "pointer" else found[1]
            assert ctypes.sizeof(kind) * 8 == bits
        return found
    if issubclass(kind, ctypes.c_void_p):
        return ("pointer", ("struct", kind.__name__))
    if hasattr(kind, "_argtypes_"):
        return ("pointer", ("function", declared(kind._restype_), tuple(declared(one) for one in kind._argtypes_)))
    return ("pointer", declared(kind._type_))


@pytest.mark.parametrize("name", sorted(_api.FUNCTIONS))
def test_types_as_the_compiler_has_them(name, abi=Abi()):
    result, arguments = _api.FUNCTIONS[name]
    node = abi.functions[name]
    assert declared(result) == abi.strip(node.find("return").get("type-id"))
    assert [declared(kind) for _, kind in arguments] == [abi.strip(one.get("type-id")) for one in node.findall("parameter")]


def test_every_error_code_has_its_exception():
    library = qwenmoe.library()
    codes = [code for code in range(-64, 0) if library.qm_error_name(code) != b"unknown"]
    assert sorted(_errors.BY_CODE) == codes
    assert len(set(_errors.BY_CODE.values())) == len(codes)
    for code in codes:
        assert getattr(_api, library.qm_error_name(code).decode()) == code


def test_numbers_of_jobs_are_those_of_the_header():
    header = (TOP / "include/qwenmoe.h").read_text()
    comment = header[:header.index("QM_API int32_t qm_job_number(")].rsplit("/*", 1)[1]
    named = set(re.findall(r'"(\w+)"', comment))
    assert named == set(_job.NUMBERS) and len(named) > 5


def test_version_is_the_headers():
    assert qwenmoe.__version__ == qwenmoe.library().version


def test_handles_are_told_apart():
    library = qwenmoe.library()
    options = library.make(_api.qm_options, library.qm_options_new)
    with pytest.raises(ctypes.ArgumentError):
        library.qm_session_length(options)


def test_callbacks_have_levels_of_logging():
    import logging
    assert [10 * (level + 1) for level in (_api.QM_LOG_DEBUG, _api.QM_LOG_INFO, _api.QM_LOG_WARNING)] == [
        logging.DEBUG, logging.INFO, logging.WARNING]
    lines = []
    callbacks = _options.Callbacks(lambda level, line: lines.append((level, line)), None)
    callbacks.log(_api.QM_LOG_WARNING, "größer".encode(), None)
    assert lines == [(logging.WARNING, "größer")]
